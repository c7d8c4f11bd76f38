"""A search of six probes in one process and in processes of their own: seconds, their ratio, and whether the bytes are the same.

    python benchmarks/fan_out.py [--slots 2] [--steps 80] [--out runs/fan-out]

Each run is `opmix search` as people start it, imports and tokenising included, one thread a process. The machine should be idle: the load
before each run is printed beside it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import yaml

from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

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
        "cache_dir": str(folder / "cache"),
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


def seconds(file: Path, out: Path, slots: int) -> float:
    """Wall time of one search from nothing."""
    shutil.rmtree(out, ignore_errors=True)
    command = [
        sys.executable,
        "-m",
        "opmix",
        "search",
        str(file),
        "--out",
        str(out),
        "--set",
        f"executor.slots={slots}",
    ]
    load, started = os.getloadavg()[0], time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    taken = time.perf_counter() - started
    print(f"{slots} slots: {taken:.1f} s (load before: {load:.2f})", flush=True)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--out", type=Path, default=Path("runs/fan-out"))
    args = parser.parse_args()
    args.out = args.out.resolve()  # paths in a file are relative to it
    args.out.mkdir(parents=True, exist_ok=True)
    file = written(args.out, args.steps)
    subprocess.run([sys.executable, "-m", "opmix", "validate", str(file)], check=True, capture_output=True)
    one = seconds(file, args.out / "one", 1)
    several = seconds(file, args.out / "several", args.slots)
    same = (args.out / "one" / "mixture.json").read_bytes() == (args.out / "several" / "mixture.json").read_bytes()
    print(f"{several / one:.2f} of the wall time of one slot; mixture.json is {'the same' if same else 'NOT the same'}")
    sys.exit(not same)


if __name__ == "__main__":
    main()
