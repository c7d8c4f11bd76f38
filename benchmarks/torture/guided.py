"""Coverage-guided fuzzing of every parser (`ways.py`) by atheris, and the corpus that `fuzz.py` starts from.

    pip install atheris            # it has wheels for CPython 3.11 to 3.13 on Linux
    python benchmarks/torture/guided.py --seconds 60 [--only jsonl chat] [--seed 1]

libFuzzer looks at which branches of opmix an input takes and keeps what takes new ones. Of these the shortest that together run every line
that all of them run go into `corpus/`. Exits 1 where a parser ended in something else than a value or an error of opmix.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
sys.path.insert(1, str(Path(__file__).parents[1]))

import atheris  # type: ignore[import-not-found]

with atheris.instrument_imports(include=["opmix"]):
    from ways import Parser, parsers

    WAYS = parsers()

from fuzz import CORPUS, answer_of, kept
from process import quick_disk

LONGEST, ROOM = 1200, 6000
"""Bytes of an input that is kept, and of all that are kept for a parser."""


def fuzzed(way: Parser, place: Path, seconds: int, seed: int) -> None:
    """Fuzz in this process, which ends with it; what went wrong is written to `wrong.jsonl`, once of a kind."""
    seen: set[str] = set()

    def one(data: bytes) -> None:
        kind, wrong = answer_of(way, place, data)
        if wrong and kind not in seen:
            seen.add(kind)
            with (place.parent / "wrong.jsonl").open("a") as file:
                file.write(json.dumps([way.name, wrong, data.decode("latin-1")]) + "\n")

    inputs = _inputs(way, place)
    inputs.mkdir()
    for number, data in enumerate([*way.seeds, *kept(way)]):
        (inputs / str(number)).write_bytes(data)
    options = [f"-max_total_time={seconds}", "-max_len=4000", f"-seed={seed}", "-verbosity=0", "-timeout=20"]
    atheris.Setup([sys.argv[0], str(inputs), *options, f"-artifact_prefix={place.parent}/{way.slug}-"], one)
    atheris.Fuzz()


def _inputs(way: Parser, place: Path) -> Path:
    return place.parent / f"{way.slug}-inputs"


def lines_of(way: Parser, place: Path, data: bytes) -> set[tuple[str, int]]:
    """Lines of opmix that an input runs."""
    found: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if "/opmix/" not in name:
            return None
        if event == "line":
            found.add((name, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        answer_of(way, place, data)
    finally:
        sys.settrace(None)
    return found


def chosen(way: Parser, place: Path) -> list[bytes]:
    """The shortest inputs that together run what all of them run; whole files need not be kept."""
    covered: set[tuple[str, int]] = set().union(*(lines_of(way, place, data) for data in way.seeds))
    found: list[bytes] = []
    for data in sorted((file.read_bytes() for file in _inputs(way, place).iterdir()), key=len):
        if len(data) > LONGEST or sum(map(len, found)) > ROOM or data in way.seeds:
            continue
        new = lines_of(way, place, data) - covered
        if new:
            covered |= new
            found.append(data)
    return found


def in_child(work: Callable[[], None]) -> None:
    """libFuzzer ends its process."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(0)
    os.waitpid(child, 0)


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=int, default=60, help="of each parser")
    arguments.add_argument("--only", nargs="+", default=[way.name for way in WAYS])
    arguments.add_argument("--seed", type=int, default=int(time.time()) // 86400)
    args = arguments.parse_args()
    warnings.simplefilter("ignore")
    CORPUS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=quick_disk()) as base:
        for way in WAYS:
            if way.name not in args.only:
                continue
            place = way.place(Path(base))
            in_child(lambda way=way, place=place: fuzzed(way, place, args.seconds, args.seed))  # type: ignore[misc]
            found = chosen(way, place)
            texts = [data.decode("latin-1") for data in found]
            (CORPUS / f"{way.slug}.json").write_text(json.dumps(texts, indent=0) + "\n")
            sys.stdout.write(f"{way.name}: {len(list(_inputs(way, place).iterdir()))} inputs, {len(found)} kept\n")
            sys.stdout.flush()
        told = Path(base) / "wrong.jsonl"
        wrong = told.read_text().splitlines() if told.exists() else []
        wrong += [file.name for kind in ("crash", "timeout", "oom") for file in Path(base).glob(f"*-{kind}-*")]
    sys.stdout.write("".join(f"{line[:1500]}\n" for line in wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
