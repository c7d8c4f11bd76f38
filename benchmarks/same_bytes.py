"""Two commits live the smoke runs; every result that depends on no clock must have the same bytes.

    python benchmarks/same_bytes.py BASE [HEAD] [--only lifecycle] [--keep runs/same-bytes]

Runs `examples/smoke/{lifecycle,instruction,compare}.yaml` unbroken with each commit's own source, in a git worktree of its own. Compared:
every file of the run folder, JSON without the fields that hold times or memory; the report of BASE's run folder as HEAD writes it.
Prints what differs, with the first few fields; exits 1 on any difference. `--keep` holds finished runs by commit, to be used again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SMOKES = {"lifecycle": "run", "instruction": "run", "compare": "compare"}
# Fields and files that hold a time, or a size of memory; reports are compared by writing them again.
MEASURED = {"seconds", "time", "finished", "created", "started", "peak_memory", "solver_seconds", "commit"}
# Sizes of files that hold times; when the files of examples/ were checked out.
MEASURED |= {"bytes_written", "files"}
SKIPPED = {"README.md", "report.html", "timing.json", "trace.jsonl", "progress.json", "lock"}
SHOWN = 6  # differing fields printed a file


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()


def opmix(tree: Path, *arguments: str, log: Path) -> None:
    """Run the command line of the commit checked out in `tree`."""
    environment = {**os.environ, "PYTHONPATH": str(tree / "src"), "PYTHONHASHSEED": "0"}
    environment |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-m", "opmix.cli.main", *arguments]
    with log.open("ab") as output:
        code = subprocess.run(command, cwd=tree, env=environment, stdout=output, stderr=subprocess.STDOUT).returncode
    if code:
        sys.exit(f"`opmix {' '.join(arguments)}` exited with {code}; the end of {log}:\n{log.read_text()[-2000:]}")


def runs_of(commit: str, names: list[str], keep: Path) -> Path:
    """The folder with the commit's source in `tree` and its finished runs by name; runs those that are missing."""
    folder = keep / commit
    tree = folder / "tree"
    if not (tree / "src").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        git("worktree", "prune")
        git("worktree", "add", "--detach", "--force", str(tree), commit)
    for name in names:
        out = folder / name
        if not out.exists():  # renamed into place when it is finished
            unfinished = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=folder))
            config = tree / "examples" / "smoke" / f"{name}.yaml"
            opmix(tree, SMOKES[name], str(config), "--out", str(unfinished / name), log=unfinished / "log")
            (unfinished / name / ".was").write_text(str(unfinished / name))
            (unfinished / name).rename(out)
            shutil.rmtree(unfinished)
    return folder


def without_measured(value: Any) -> Any:
    """JSON without fields that no two runs share; the names of adapted modules sorted, since PEFT writes a set."""
    if isinstance(value, dict):
        kept = {k: without_measured(v) for k, v in value.items() if k not in MEASURED}
        return {k: sorted(v) if k == "target_modules" and isinstance(v, list) else v for k, v in kept.items()}
    return [without_measured(v) for v in value] if isinstance(value, list) else value


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a JSON value with its path; an empty container is a leaf."""
    if isinstance(value, (dict, list)) and value:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in items:
            yield from flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def field_differences(a: Any, b: Any) -> list[str]:
    left, right = dict(flat(a)), dict(flat(b))
    paths = [p for p in {**left, **right} if p not in left or p not in right or repr(left[p]) != repr(right[p])]
    if not paths:
        return ["the order of the fields"]
    lines = [f"{p}: {left.get(p, 'missing')!r} -> {right.get(p, 'missing')!r}" for p in paths[:SHOWN]]
    return lines + ([f"and {len(paths) - SHOWN} more"] if len(paths) > SHOWN else [])


def tensor_differences(a: Path, b: Path) -> list[str]:
    import numpy as np
    from safetensors.numpy import load_file

    left, right = load_file(a), load_file(b)
    if left.keys() != right.keys() or any(left[n].shape != right[n].shape for n in left):
        return ["other tensors or shapes"]
    far = {n: float(np.abs(left[n].astype(float) - right[n].astype(float)).max()) for n in left}
    worst = max(far, key=lambda n: far[n])
    return [f"{sum(d > 0 for d in far.values())} of {len(far)} tensors; farthest {worst}, by {far[worst]:.3g}"]


def parsed(path: Path, names: tuple[str, ...]) -> Any:
    """The comparable content of a text file: its folders' names replaced, measured fields left out."""
    text = path.read_text()
    for name in names:
        text = text.replace(name, "FOLDER")
    if path.suffix == ".json":
        return without_measured(json.loads(text))
    if path.suffix == ".jsonl":
        return [without_measured(json.loads(line)) for line in text.splitlines()]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(text.splitlines()))
        return [{"header": text.partition("\n")[0]}, *({k: v for k, v in r.items() if k not in MEASURED} for r in rows)]
    return text.splitlines()


def file_differences(a: Path, b: Path, names: tuple[str, ...]) -> list[str]:
    """How two files differ, in words; empty when they do not."""
    if a.read_bytes() == b.read_bytes():
        return []
    if a.suffix in (".json", ".jsonl", ".csv", ".html"):
        left, right = parsed(a, names), parsed(b, names)
        return [] if json.dumps(left) == json.dumps(right) else field_differences(left, right)
    return tensor_differences(a, b) if a.suffix == ".safetensors" else ["bytes"]


def compared(a: Path, b: Path, names: tuple[str, ...]) -> tuple[int, dict[str, list[str]]]:
    """How many files were compared, and how each differing one differs."""
    files = {p.relative_to(r) for r in (a, b) for p in r.rglob("*") if p.is_file() and not p.name.startswith(".")}
    files = {p for p in files if p.name not in SKIPPED}
    wrong: dict[str, list[str]] = {}
    for path in sorted(files):
        missing = [side for side, root in (("BASE", a), ("HEAD", b)) if not (root / path).exists()]
        lines = [f"not in {missing[0]}"] if missing else file_differences(a / path, b / path, names)
        if lines:
            wrong[str(path)] = lines
    return len(files), wrong


def report_differences(base: Path, tree: Path, names: tuple[str, ...]) -> list[str]:
    """How the report of BASE's run folder differs when HEAD's code writes it."""
    with tempfile.TemporaryDirectory() as temporary:
        again = Path(temporary) / base.name
        shutil.copytree(base, again)
        opmix(tree, "report", str(again), log=Path(temporary) / "log")
        return file_differences(base / "report.html", again / "report.html", (*names, str(again)))


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("base", help="a commit, branch or tag")
    arguments.add_argument("head", nargs="?", default="HEAD", help="the other one (default HEAD)")
    arguments.add_argument("--only", action="append", choices=sorted(SMOKES), help="a smoke run; may be repeated")
    arguments.add_argument("--keep", type=Path, help="folder for finished runs, by commit (default: a temporary one)")
    args = arguments.parse_args()
    names = args.only or list(SMOKES)
    base, head = (git("rev-parse", f"{c}^{{commit}}") for c in (args.base, args.head))
    keep = (args.keep or Path(tempfile.mkdtemp(prefix="same-bytes-"))).resolve()
    wrong = 0
    try:
        first, second = runs_of(base, names, keep), runs_of(head, names, keep)
        for name in names:
            a, b = first / name, second / name
            folders = ((a / ".was").read_text(), (b / ".was").read_text())
            folders = (*folders, str(first / "tree"), str(second / "tree"))
            count, differing = compared(a, b, folders)
            if report := report_differences(a, second / "tree", folders):
                differing["report.html of BASE's run, written by HEAD"] = report
            wrong += len(differing)
            sys.stdout.write(f"{name}: {count + 1} files compared, {len(differing)} differ\n")
            for path, lines in differing.items():
                sys.stdout.write(f"  {path}\n" + "".join(f"    {line}\n" for line in lines))
    finally:
        if args.keep is None:
            shutil.rmtree(keep, ignore_errors=True)
            git("worktree", "prune")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
