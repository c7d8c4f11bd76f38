"""A life, or a comparison, killed with SIGKILL at random moments of random steps and finished, against the unbroken one: same bytes.

    python benchmarks/kill_and_resume.py examples/lifecycle.yaml --kills 3 --seed 0

Prints the moments, what was being done, and every file that differs; exits 1 if one does. An unbroken run that exists already is used.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from datetime import datetime
from pathlib import Path

from common import record


def start(config: Path, out: Path, log: Path) -> subprocess.Popen[bytes]:
    verb = "compare" if "\nmethods:" in config.read_text() else "run"
    command = [sys.executable, "-m", "opmix.cli.main", verb, str(config), "--out", str(out)]
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT)


def last_event(out: Path) -> str:
    try:
        event = json.loads((out / "events.jsonl").read_text().splitlines()[-1])
    except (OSError, IndexError, ValueError):
        return "before the first step"
    progress = out / "progress.json"
    task = json.loads(progress.read_text()) if progress.exists() else {}
    return f"{event['event']} {event.get('step', '')} ({task.get('task')} {task.get('done')}/{task.get('total')})"


def events(out: Path, kind: str) -> list[tuple[str, float]]:
    """Steps that began or ended, with the time."""
    try:
        lines = [json.loads(line) for line in (out / "events.jsonl").read_text().splitlines()]
    except (OSError, ValueError):
        return []
    return [(e["step"], datetime.fromisoformat(e["time"]).timestamp()) for e in lines if e["event"] == kind]


def moments(whole: Path, kills: int, rng: random.Random) -> list[tuple[str, float]]:
    """A step and the seconds into it, one in each of equal stretches of the unbroken run; no step twice."""
    ends = dict(events(whole, "end"))
    steps = [(step, began, ends[step] - began) for step, began in events(whole, "begin") if step in ends]
    first, last = steps[0][1], max(ends.values())
    chosen: list[tuple[str, float]] = []
    for i in range(kills):
        at = first + (i + rng.random()) / kills * 0.9 * (last - first)
        left = [(step, began, took) for step, began, took in steps[:-1] if step not in dict(chosen)]
        step, began, took = max((s for s in left if s[1] <= at), key=lambda s: s[1], default=left[0])
        chosen.append((step, min(max(at - began, 0.0), 0.9 * took)))
    order = [step for step, _, _ in steps]
    return sorted(chosen, key=lambda moment: order.index(moment[0]))


def differing(a: Path, b: Path) -> tuple[list[str], int]:
    """Result files whose bytes differ, and how many were compared."""
    names = [p.relative_to(a) for p in sorted(a.rglob("mixture.json"))]
    names += [p.relative_to(a) for p in sorted(a.rglob("*.safetensors"))]
    names += [
        p.relative_to(a) for p in (a / "life.json", a / "compare.json", *sorted(a.glob("tables/*.csv"))) if p.exists()
    ]
    names += [p.relative_to(a) for p in sorted(a.rglob("training.csv"))]
    wrong = [str(n) for n in names if not (b / n).exists() or (a / n).read_bytes() != (b / n).read_bytes()]
    return wrong, len(names)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("config", type=Path)
    arguments.add_argument("--kills", type=int, default=3)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--out", type=Path, default=Path("runs/kill-and-resume"))
    arguments.add_argument("--fresh", action="store_true", help="do the unbroken run again even if it is there")
    args = arguments.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    whole, broken = args.out / "unbroken", args.out / "killed"
    if args.fresh or not (whole / "report.html").exists():
        shutil.rmtree(whole, ignore_errors=True)
        started = time.monotonic()
        if start(args.config, whole, args.out / "unbroken.log").wait():
            sys.exit(f"the unbroken run failed; see {args.out / 'unbroken.log'}")
        (args.out / "unbroken.seconds").write_text(str(time.monotonic() - started))
    seconds = float((args.out / "unbroken.seconds").read_text())
    shutil.rmtree(broken, ignore_errors=True)
    killed, began = [], time.monotonic()
    for step, wait in moments(whole, args.kills, random.Random(args.seed)):
        process = start(args.config, broken, args.out / "killed.log")
        while process.poll() is None and step not in dict(events(broken, "begin")):
            time.sleep(0.05)
        try:
            process.wait(wait)
            break  # faster than the unbroken run
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed.append(last_event(broken))
            sys.stdout.write(f"killed {wait:.1f} s into {step}: {killed[-1]}\n")
    if start(args.config, broken, args.out / "killed.log").wait():
        sys.exit(f"the resumed run failed; see {args.out / 'killed.log'}")
    wrong, compared = differing(whole, broken)
    took = time.monotonic() - began
    sys.stdout.write(
        f"unbroken {seconds:.0f} s; killed {len(killed)} times and finished {took:.0f} s; {compared} files compared, {len(wrong)} differ\n"
    )
    for name in wrong:
        sys.stdout.write(f"  differs: {name}\n")
    record(
        args.out / "result.json",
        {
            "config": str(args.config),
            "seed": args.seed,
            "killed": killed,
            "seconds": seconds,
            "seconds_killed": took,
            "compared": compared,
            "differ": wrong,
        },
    )
    return 1 if wrong or not killed else 0


if __name__ == "__main__":
    sys.exit(main())
