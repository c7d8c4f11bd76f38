"""What chunks save of the training loss of a large vocabulary, and what they cost: one step of loss and gradients, a process each.

    OMP_NUM_THREADS=1 python benchmarks/vocabulary.py [--entries 150000] [--rows 4] [--tokens 512]

A model of two layers, nearly all head: the worst case for time. Memory is the peak above the loaded model.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time

import torch
from transformers import Trainer

from opmix.testing import tiny_model
from opmix.training.factory import TrainSpec, default_trainer


def step(args: argparse.Namespace) -> dict[str, float]:
    """Loss, CPU seconds and peak megabytes of one step, the model's own way or in chunks."""
    torch.set_num_threads(1)
    sizes = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "max_position_embeddings": args.tokens,
    }
    model = tiny_model(vocab_size=args.entries, **sizes).train()
    with tempfile.TemporaryDirectory() as folder:
        trainer = default_trainer(TrainSpec(model=model, dataset=[], output_dir=folder, steps=1, seed=0, arguments={}))
    ids = torch.randint(0, args.entries, (args.rows, args.tokens), generator=torch.Generator().manual_seed(0))
    kind = Trainer if args.one == "own" else type(trainer)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    loss = kind.compute_loss(trainer, model, {"input_ids": ids, "labels": ids})
    loss.backward()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"loss": float(loss), "seconds": time.process_time() - began, "megabytes": peak / 1024}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--entries", type=int, default=150_000)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--one", choices=["own", "chunks"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(step(args)))
        return
    found = {}
    for way in ("own", "chunks"):
        done = subprocess.run([sys.executable, *sys.argv, "--one", way], check=True, capture_output=True, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{way}: loss {found[way]['loss']:.6f}, {found[way]['seconds']:.1f} s of CPU, {found[way]['megabytes']:.0f} MB",
            flush=True,
        )
    own, cut = found["own"], found["chunks"]
    print(
        f"chunks: {cut['megabytes'] / own['megabytes']:.2f} of the memory, {cut['seconds'] / own['seconds']:.2f} of the time"
    )


if __name__ == "__main__":
    main()
