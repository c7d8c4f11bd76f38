"""Work in one process and in processes of their own: seconds, their ratio, and whether the bytes are the same.

    python benchmarks/fan_out.py [search|run|compare] [--slots 2] [--steps 80] [--times 1] [--out runs/fan-out]

`search`: six probes of a small model. `run`: two seeds of examples/smoke/lifecycle.yaml. `compare`: examples/smoke/compare.yaml, a base and
four methods; of both with so many times their tokens. Each run is the command as people start it, imports and tokenising included, one
thread a process. The machine should be idle: the load before each run is printed beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

SMOKE = Path(__file__).parents[1] / "examples" / "smoke"
SEEDS = ("seeds=[0,1]",)
NAMES = ("web", "code", "math", "law", "news")  # five probes of their own and one of the centre


def written(folder: Path, steps: int) -> Path:
    """A search.yaml with its model and data."""
    tokenizer = tiny_tokenizer()
    model = tiny_model(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
    )
    for part in (model, tokenizer):
        part.save_pretrained(folder / "model")
    domains = {name: str(path) for name, path in write_toy_domains(folder, NAMES, 2000).items()}
    content = {
        "model": "model",
        "domains": domains,
        "budget": "20M",
        "sequence_length": 128,
        "trainer": {"learning_rate": 3e-3, "per_device_train_batch_size": 8},
        "probes": {"steps": steps},
        "proxies": {"eval_sequences": 32},
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@dataclass(frozen=True)
class Work:
    """What is done with any number of slots."""

    verb: str
    file: Path
    result: str
    """File of the run folder that must be the same."""
    settings: tuple[str, ...] = ()

    def seconds(self, out: Path, slots: int) -> float:
        """Wall time from nothing."""
        cache = out.with_name(f"{out.name}-cache")
        for folder in (out, cache):
            shutil.rmtree(folder, ignore_errors=True)
        told = (*self.settings, f"cache_dir={cache}", f"executor.slots={slots}")
        command = [sys.executable, "-m", "opmix", self.verb, str(self.file), "--out", str(out)]
        command += [word for setting in told for word in ("--set", setting)]
        load, started = os.getloadavg()[0], time.perf_counter()
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        taken = time.perf_counter() - started
        print(f"{self.verb}, {slots} slots: {taken:.1f} s (load before: {load:.2f})", flush=True)
        return taken


def work(verb: str, folder: Path, steps: int, times: int) -> Work:
    """The one that is asked for; what it reads is written into `folder`."""
    if verb == "search":
        return Work(verb, written(folder, steps), "mixture.json")
    name = "lifecycle.yaml" if verb == "run" else "compare.yaml"
    content = yaml.safe_load((SMOKE / name).read_text())
    for stage in content["stages"]:
        stage["tokens"] *= times
    (folder / name).write_text(yaml.safe_dump(content))
    return Work(verb, folder / name, "life.json" if verb == "run" else "compare.json", SEEDS if verb == "run" else ())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", nargs="?", choices=("search", "run", "compare"), default="search")
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=80, help="of a probe of the search")
    parser.add_argument("--times", type=int, default=1, help="the stages' tokens of a life or comparison")
    parser.add_argument("--out", type=Path, default=Path("runs/fan-out"))
    args = parser.parse_args()
    args.out = args.out.resolve()  # paths in a file are relative to it
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = work(args.verb, args.out, args.steps, args.times)
    one = chosen.seconds(args.out / "one", 1)
    several = chosen.seconds(args.out / "several", args.slots)
    same = (args.out / "one" / chosen.result).read_bytes() == (args.out / "several" / chosen.result).read_bytes()
    said = "the same" if same else "NOT the same"
    print(f"{args.verb}: {several / one:.2f} of the wall time of one slot; {chosen.result} is {said}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
