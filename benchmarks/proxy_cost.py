"""What a simulated model costs beside a plain forward pass, both back ends, in one run.

python benchmarks/proxy_cost.py [--widths 128 256] [--probes 5]
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from opmix.mixing.mixture import InterpolationWeights
from opmix.models.layers import lora_targets
from opmix.probes.evaluation import HeldOut, evaluate, evaluate_proxies
from opmix.probes.interpolation import make_proxies
from opmix.testing import tiny_adapter


def seconds(call, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 256])
    parser.add_argument("--probes", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    for width in args.widths:
        torch.manual_seed(0)
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=2048,
                hidden_size=width,
                intermediate_size=3 * width,
                num_hidden_layers=width // 32,
                num_attention_heads=4,
                num_key_value_heads=4,
                max_position_embeddings=256,
                tie_word_embeddings=True,
            )
        )
        parameters = sum(p.numel() for p in model.parameters())
        held_out = [HeldOut("x", np.random.default_rng(0).integers(0, 2048, (32, 256)), np.full(32, 700.0))]
        plain = seconds(lambda m=model, h=held_out: evaluate(m, h), args.repeats)
        names = [f"probe_{i}" for i in range(args.probes)]
        targets = lora_targets(model)
        for seed, name in enumerate(names):
            model = tiny_adapter(model, name, seed, r=16, target_modules=targets)
        weights = [InterpolationWeights.uniform(names)]
        line = f"{parameters / 1e6:.1f} M parameters, 8,192 tokens, {args.probes} probes of rank 16: forward {1e3 * plain:.0f} ms"
        for backend in ("merge", "scale"):
            proxies = make_proxies(model, names, backend=backend)
            cost = seconds(lambda p=proxies, w=weights, h=held_out: evaluate_proxies(p, w, h), args.repeats)
            line += f", {backend} {cost / plain:.2f}x"
        print(line)


if __name__ == "__main__":
    main()
