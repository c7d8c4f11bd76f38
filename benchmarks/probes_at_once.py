"""Six probes as one batch against one after another (`probes.at_once`): CPU seconds, or on a GPU seconds, and their ratio.

    OMP_NUM_THREADS=1 python benchmarks/probes_at_once.py [--widths 64 256] [--tokens 32 256 1024] [--device cuda] [--turns 3]

Llamas of four layers on random rows of up to 128 tokens; both ways in turn, the whole training (Trainer, adapters, files) counted. What
both learned is compared too. On a GPU also one probe alone: six are to take at most twice its time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from opmix.cli.console import quiet_libraries
from opmix.data import PackedSequences
from opmix.data.cache import TokenSplit
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.probes.at_once import train_at_once, why_one_by_one
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import ProbeRuntime, ProbeTask, probe_arguments, train_probe
from opmix.progress import Silent
from opmix.testing import tiny_model

NAMES = tuple("abcdef")
VOCABULARY = 2048


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32, 256, 1024], help="of a step of one probe")
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    quiet_libraries()
    print(
        "| width | tokens a step | one by one, s | at once, s | ratio | of one probe | weights differ |\n"
        + "| --- " * 7
        + "|"
    )
    for width in args.widths:
        for tokens in args.tokens:
            found = measured(width, tokens, args)
            print(
                "| {} | {} | {one_by_one:.2f} | {at_once:.2f} | {ratio:.2f} ({ratios[0]:.2f}-{ratios[1]:.2f}) "
                "| {of_one_probe:.1f} | {weights_differ:.0e} |".format(width, tokens, **found),
                flush=True,
            )


def rows_of(length: int, steps: int, batch: int) -> dict[str, PackedSequences]:
    """Random ids of as many domains as there are probes, an epoch each."""
    ids = np.random.default_rng(0).integers(VOCABULARY, size=(len(NAMES), 2 * steps * batch * length), dtype=np.int32)
    return {
        name: PackedSequences(
            TokenSplit(
                domain=name,
                split="train",
                fingerprint=name,
                tokens=of,
                offsets=np.array([0, len(of)]),
                byte_counts=np.array([len(of)]),
            ),
            length,
        )
        for name, of in zip(NAMES, ids, strict=True)
    }


def measured(width: int, tokens: int, args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a row of the table, and how far the weights that both ways learned are apart, by their size."""
    length = min(tokens, 128)
    batch = tokens // length
    sizes = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": 4}
    model = tiny_model(vocab_size=VOCABULARY, max_position_embeddings=length, **sizes).to(args.device)
    rows = rows_of(length, args.steps, batch)
    runtime = ProbeRuntime(model=model, shape=model_shape(model), rows=rows, progress=Silent())
    settings = ProbeSettings(steps=args.steps)
    trainer = probe_arguments(settings, {"learning_rate": 1e-3, "per_device_train_batch_size": batch})
    with tempfile.TemporaryDirectory() as place:
        tasks = [
            ProbeTask(
                probe=name,
                mixture=dict(Mixture.normalised({n: 10.0 if n == name else 1.0 for n in NAMES})),
                settings=settings,
                trainer=trainer,
                seed=0,
                stop=args.steps,
                out=Path(place) / "alone" / name,
                parts=Path(place) / f"{name}-parts",
                key=name,
                name=f"probe_{number}",
            )
            for number, name in enumerate(NAMES)
        ]
        together = [replace(task, out=Path(place) / "together" / task.probe) for task in tasks]
        assert why_one_by_one(tasks[0], runtime) is None
        ways: dict[str, Callable[[], object]] = {
            "one": lambda: train_probe(tasks[0], runtime),
            "alone": lambda: [train_probe(task, runtime) for task in tasks],
            "together": lambda: train_at_once(together, runtime, Path(place) / "parts", key="k"),
        }
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(args.turns + 1):
            for name, work in ways.items():
                seconds = timed(work, args.device)
                if turn:  # the first warms up
                    took[name].append(seconds)
        differ = max(apart(task.out, other.out) for task, other in zip(tasks, together, strict=True))
    one, alone, both = (statistics.median(took[name]) for name in ("one", "alone", "together"))
    ratios = [b / a for a, b in zip(took["alone"], took["together"], strict=True)]
    return {
        "one_by_one": alone,
        "at_once": both,
        "ratio": both / alone,
        "ratios": [min(ratios), max(ratios)],
        "of_one_probe": both / one,
        "weights_differ": differ,
    }


def timed(work: Callable[[], object], device: str) -> float:
    """Seconds on a GPU, CPU seconds elsewhere."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    began = clock()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return clock() - began


def apart(one: Path, other: Path) -> float:
    """Of two adapters, the norm of the difference by the first's."""
    first, second = (load_file(folder / "adapter_model.safetensors") for folder in (one, other))
    size = sum(float(weight.square().sum()) for weight in first.values())
    return (sum(float((second[name] - weight).square().sum()) for name, weight in first.items()) / size) ** 0.5


if __name__ == "__main__":
    main()
