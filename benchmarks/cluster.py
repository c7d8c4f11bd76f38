"""The same search and life in one process, on ranks, in slots and as jobs of real schedulers: unbroken, and with everything killed once.

    python benchmarks/cluster.py [--only slurm] [--steps 60] [--out runs/cluster] [--keep benchmarks/results/cluster.json]

One thread a process. Ways whose engine is not installed are left out with a line that says why (`benchmarks/engines.py`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from engines import two_ray_nodes, two_slurm_nodes, why_no_ray, why_no_slurm

from opmix.execution.attempts import note_of
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

NAMES = ("web", "code", "math")
SAVE_EVERY = 5
LIFE = "life.yaml"


@dataclass
class Started:
    """The engine of a way, started for it."""

    settings: Sequence[str] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    lose_node: Callable[[str], None] = lambda job: None
    """The one that does a job, where that can be said, and put another in its place."""


@dataclass(frozen=True)
class Way:
    """How a search is started, and what is killed."""

    name: str
    kills: tuple[str, ...]
    launcher: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    why_not: Callable[[], str] = lambda: ""
    start: Callable[[ExitStack, Path], Started] = lambda stack, folder: Started()


def _slurm(stack: ExitStack, folder: Path) -> Started:
    environment = stack.enter_context(two_slurm_nodes(folder / "slurm"))

    def lose_node(job: str) -> None:
        told = {**os.environ, **environment}
        asked = ["squeue", "--noheader", f"--jobs={job}", "--format=%N"]
        node = subprocess.run(asked, check=False, env=told, capture_output=True, text=True).stdout.strip() or "n2"
        for state in ("DOWN", "RESUME"):  # it may be back before it is called
            command = ["scontrol", "update", f"NodeName={node}", f"State={state}", "Reason=lost"]
            subprocess.run(command, check=False, env=told, capture_output=True)
            time.sleep(3)

    return Started(("executor.kind=slurm", "executor.slurm.poll_seconds=0.5"), environment, lose_node)


def _ray(stack: ExitStack, folder: Path) -> Started:
    cluster = stack.enter_context(two_ray_nodes())

    def lose_node(job: str) -> None:
        cluster.remove_node(sorted(cluster.worker_nodes, key=id)[0], allow_graceful=False)
        cluster.add_node(num_cpus=1, num_gpus=0, object_store_memory=80 * 2**20)

    return Started(("executor.kind=ray", f"executor.ray.address={cluster.address}"), {}, lose_node)


TWO = ("executor.slots=2", f"executor.save_every={SAVE_EVERY}", "executor.tries=6")
WAYS = {
    "one": Way("one process", ("driver",)),
    "torchrun": Way(
        "torchrun, 2 ranks", ("rank",), ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    ),
    "fsdp": Way(
        "FSDP2, 2 ranks",
        ("rank",),
        ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        ("trainer.fsdp=true",),
    ),
    "slots": Way("2 slots", ("worker", "driver"), settings=TWO),
    "launch": Way(
        "launch, 2 commands",
        ("worker", "driver"),
        settings=(*TWO, "executor.kind=launch", "executor.launch='{command}'"),
    ),
    "ray": Way("Ray, two nodes", ("worker", "node", "driver"), settings=TWO, why_not=why_no_ray, start=_ray),
    "slurm": Way(
        "Slurm, two nodes", ("worker", "job", "node", "driver"), settings=TWO, why_not=why_no_slurm, start=_slurm
    ),
}


def written(folder: Path, steps: int) -> Path:
    """A search.yaml with its model and data."""
    folder.mkdir(parents=True, exist_ok=True)
    paths, tokenizer = write_toy_domains(folder, NAMES, num_documents=200, seed=0), tiny_tokenizer()
    for part in (tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer):
        part.save_pretrained(folder / "model")
    content = {
        "model": "model",
        "domains": {name: str(path) for name, path in paths.items()},
        "budget": "2M",
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "batch": 8, "micro_batch": 4},
        "probes": {"steps": steps, "rank": 4, "adaptive": False},
        "proxies": {"count": 8, "eval_sequences": 16},
        "law": "log_linear",  # four probes and one sweep
        "decision": {"draws": 30, "verify": False},
        "cache_dir": str(folder / "cache"),
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def life_written(folder: Path) -> Path:
    """A life of two stages, whose second begins with a search, on the same domains."""
    content = yaml.safe_load((folder / "search.yaml").read_text())
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 64}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    kept = {name: content[name] for name in ("domains", "sequence_length", "trainer", "cache_dir")}
    told = {
        **kept,
        "architecture": {"model_type": "llama", **shape, **heads},
        "tokenizer": {"vocab_size": 400, "documents": 50},
        "probes": {"steps": 8, "rank": 2, "adaptive": False},
        "proxies": {"eval_sequences": 8},
        "decision": {"draws": 20, "verify": False},
        "evaluation": {"sequences": 8},
        "stages": [
            {"name": "base", "phase": "pretraining", "domains": ["web", "code"], "tokens": 8192, "mixture": "uniform"},
            {"name": "math", "phase": "midtraining", "add": ["math"], "tokens": 4096},
        ],
    }
    file = folder / LIFE
    file.write_text(yaml.safe_dump(told))
    return file


def begun(way: Way, started: Started, file: Path, out: Path) -> subprocess.Popen[str]:
    """The command, as people start it."""
    settings = [word for setting in (*way.settings, *started.settings) for word in ("--set", setting)]
    verb = "run" if file.name == LIFE else "search"
    command = [sys.executable, *way.launcher, "-m", "opmix", verb, str(file), "--out", str(out), *settings]
    out.mkdir(parents=True, exist_ok=True)
    with (out / "said.txt").open("a") as said:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **started.environment}
        return subprocess.Popen(command, stdout=said, stderr=said, env=environment, text=True)


def ended(driver: subprocess.Popen[str], out: Path, timeout: float = 900) -> None:
    """Wait for a search that must end well."""
    try:
        if driver.wait(timeout):
            raise RuntimeError(
                f"the search ended with code {driver.returncode}: {(out / 'said.txt').read_text()[-3000:]}"
            )
    finally:
        driver.kill()


def measured(way: Way, started: Started, file: Path, out: Path) -> float:
    """Seconds of a search from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    before = time.perf_counter()
    ended(begun(way, started, file, out), out)
    return time.perf_counter() - before


def killed(way: Way, started: Started, file: Path, out: Path) -> list[str]:
    """The search again, in which everything is killed once, in the middle of a probe; what was."""
    shutil.rmtree(out, ignore_errors=True)
    driver, done = begun(way, started, file, out), []
    for what in way.kills:
        task = _in_the_middle(driver, out)
        if task is None:
            break
        note = note_of(out, task)
        job = "" if note is None or note.job is None else note.job
        if what == "node":
            started.lose_node(job)
        elif what == "job":
            subprocess.run(["scancel", job], check=True, env={**os.environ, **started.environment})
        elif what == "driver":
            driver.kill()
        else:
            os.kill(_process_of(task, out) if what == "worker" else next(_children_of(driver.pid)), signal.SIGKILL)
        done.append(what)
        if what in ("driver", "rank"):
            driver.wait(120)
            driver = begun(way, started, file, out)
    ended(driver, out)
    return done


def _in_the_middle(driver: subprocess.Popen[str], out: Path, seconds: float = 300) -> str | None:
    """Wait for another whole checkpoint of a probe, or until a probe is done where none are kept; whose; None: too late."""
    before, known = time.monotonic(), set(out.glob("probes/*-parts/checkpoint-*"))
    while driver.poll() is None and time.monotonic() - before < seconds:
        for file in out.glob("probes/*-parts/checkpoint-*/complete.json"):
            if file.parent not in known:
                return f"probe-{file.parents[1].name.removesuffix('-parts')}"
        if any(out.glob("steps/probe-*.json")) and not any(out.glob("tasks")):
            return ""
        time.sleep(0.05)
    return None


def _process_of(task: str, out: Path) -> int:
    """The process that does a task of a run folder; where it does one after another, any that does."""
    found: dict[int, bool] = {}
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = file.read_bytes().decode(errors="replace").split("\0")
            if "task" in words and str(out) in words and words[0].endswith("python"):
                found[int(file.parent.name)] = task in words
    return max(found, key=lambda pid: found[pid])


def _children_of(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(stat.read_text().rpartition(")")[2].split()[1]) == pid:
                yield int(stat.parent.name)


def compared(out: Path, reference: Path) -> dict[str, Any]:
    """A search against the one in one process."""
    here, there = (json.loads((folder / "mixture.json").read_text()) for folder in (out, reference))
    names = here["mixture"].keys() | there["mixture"].keys()
    differences = [0.0]
    for table in reference.glob("tables/sequences-*.npz"):
        with np.load(table) as one, np.load(out / "tables" / table.name) as other:
            kinds = [name for name in one.files if name.startswith(("nll", "baseline"))]
            tokens = {name: one[name.replace("nll", "tokens")].sum() if name != "baseline" else 1 for name in kinds}
            for name in kinds:
                sums = [t[name].sum(axis=-1) / tokens[name] if name != "baseline" else t[name] for t in (one, other)]
                differences.append(float(np.abs(sums[0] - sums[1]).max()))
    return {
        "same_decision": here["decision"]["action"] == there["decision"]["action"],
        "same_bytes": (out / "mixture.json").read_bytes() == (reference / "mixture.json").read_bytes(),
        "mixture": max(abs(here["mixture"].get(n, 0) - there["mixture"].get(n, 0)) for n in names),
        "losses": max(differences),
    }


def compared_lives(out: Path, reference: Path) -> dict[str, Any]:
    """A life against the one in one process."""
    files = [folder / "life.json" for folder in (out, reference)]
    here, there = (json.loads(file.read_text())["seeds"]["0"]["stages"] for file in files)
    mixtures = [abs(a["mixture"][n] - b["mixture"][n]) for a, b in zip(here, there, strict=True) for n in b["mixture"]]
    tests = [(a["losses"]["test"], b["losses"]["test"]) for a, b in zip(here, there, strict=True)]
    losses = [abs(a[n]["after"] - b[n]["after"]) for a, b in tests for n in b]
    same = files[0].read_bytes() == files[1].read_bytes()
    return {"same_bytes": same, "mixture": max(mixtures), "losses": max(losses)}


def lived(way: Way, file: Path, out: Path, reference: Path) -> dict[str, Any]:
    """Seconds of a life, and what it came to."""
    with ExitStack() as stack:
        started = way.start(stack, out / "for-life")
        seconds = measured(way, started, file, out / "life")
    return {"seconds": seconds, **compared_lives(out / "life", reference)}


def tried(way: Way, file: Path, out: Path, reference: Path) -> dict[str, Any]:
    """One row of the table."""
    with ExitStack() as stack:
        started = way.start(stack, out)
        load = os.getloadavg()[0]
        seconds = measured(way, started, file, out / "unbroken")
        facts = {"way": way.name, "seconds": seconds, "load": load, **compared(out / "unbroken", reference)}
        print(facts, flush=True)
        what = killed(way, started, file, out / "killed")
        facts |= {"killed": what, "after": compared(out / "killed", reference)}
        print(facts, flush=True)
    return facts


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """As the page shows it."""
    lines = [
        "| | decision | search | seconds | killed in another run | after that | life | seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for one in rows:
        decision = "the same" if one["same_decision"] and one["after"]["same_decision"] else "**another**"
        killed_ones, life = ", ".join(one["killed"]), one["life"]
        found = [
            _said(one),
            f"{one['seconds']:.0f}",
            killed_ones,
            _said(one["after"]),
            _said(life),
            f"{life['seconds']:.0f}",
        ]
        lines.append(f"| {' | '.join([one['way'], decision, *found])} |")
    return "\n".join(lines)


def _said(facts: Mapping[str, Any]) -> str:
    if facts["same_bytes"]:
        return "the same bytes"
    return f"mixture within {facts['mixture']:.1g}, losses {facts['losses']:.1g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=WAYS, default=list(WAYS))
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path("runs/cluster"))
    parser.add_argument("--keep", type=Path)
    parser.add_argument("--lives", action="store_true", help="try lives only, for ways that were tried before")
    args = parser.parse_args()
    out = args.out.resolve()
    file, reference, rows = written(out, args.steps), out / "one", {}
    if args.keep and args.keep.exists() and reference.exists():  # ways that were tried before stay
        rows = {row["way"]: row for row in json.loads(args.keep.read_text())["rows"]}
    for name in dict.fromkeys([*([] if rows else ["one"]), *args.only]):
        way = WAYS[name]
        if why := way.why_not():
            print(f"{way.name}: left out: {why}")
            continue
        if not args.lives:
            rows[way.name] = tried(way, file, out / name, reference / "unbroken")
        rows[way.name]["life"] = lived(way, life_written(out), out / name, reference / "life")
        print(rows[way.name]["life"], flush=True)
        if args.keep:
            args.keep.write_text(json.dumps({"steps": args.steps, "rows": list(rows.values())}, indent=1) + "\n")
    print(table(list(rows.values())))
    sys.exit(not all(one["same_decision"] and one["after"]["same_decision"] for one in rows.values()))


if __name__ == "__main__":
    main()
