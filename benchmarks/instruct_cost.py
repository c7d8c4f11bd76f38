"""What chat domains are made of for a model's own template, and what a supervised token costs with SFT and with self-distillation.

python benchmarks/instruct_cost.py MODEL FOLDER [--length 512]     # FOLDER/*/train.jsonl.gz, one domain each

No training: token counts are exact, FLOPs follow `ModelShape` with answers as long as the demonstrations.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np

from opmix.data import ChatRows, prepare_domain
from opmix.domain import ChatOptions, Domain, Source
from opmix.models.layers import model_shape
from opmix.models.load import load_model, load_tokenizer
from opmix.training.settings import DEMONSTRATION


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--cache", type=Path, default=Path("runs/cache"))
    args = parser.parse_args()
    tokenizer, shape = load_tokenizer(args.model), model_shape(load_model(args.model, dtype="float32", device="cpu"))
    print(
        "| domain | conversations | supervised | packed rows | filled | supervised a row | left out | SFT | SDFT | ratio |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for file in sorted(args.folder.glob("*/train.jsonl.gz")):
        name = file.parent.name
        domain = Domain(name=name, train=Source(paths=(str(file),)), chat=ChatOptions(supervise="last"))
        started = time.perf_counter()
        split = prepare_domain(domain, tokenizer, cache_dir=args.cache).train
        seconds = time.perf_counter() - started
        contexts = prepare_domain(domain, tokenizer, cache_dir=args.cache, demonstration=DEMONSTRATION).train
        packed = ChatRows(split, args.length, ChatOptions())
        rows = ChatRows(split, args.length, ChatOptions(packing=False))
        answers, prompts = rows.supervised, rows.lengths - rows.supervised
        context = np.diff(contexts.offsets)[rows.documents]
        sft = sum(float(n) * shape.train(int(n)) for n in rows.lengths)
        sdft = sum(
            shape.distillation(rows=1, prompt=int(p), context=int(c), sampled=int(a))
            for p, c, a in zip(prompts, context, answers, strict=True)
        )
        print(
            f"| {name} | {split.num_documents:,} | {split.supervised_tokens / split.num_tokens:.0%} | {len(packed):,} | "
            f"{packed.lengths.mean() / args.length:.0%} | {packed.supervised.mean():.0f} | {packed.report.dropped} | "
            f"{sft / answers.sum():.3g} | {sdft / answers.sum():.3g} | {sdft / sft:.2f} | <!-- {seconds:.1f} s -->"
        )


if __name__ == "__main__":
    main()
