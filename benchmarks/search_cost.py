"""FLOPs of a search by part, as shares of a stage: probes, looks at them, candidates and their sweep.

    python benchmarks/search_cost.py [--stage-steps 500] [--batch 64] [--length 1024] [--before]

For 2, 6 and 17 domains that the model all knows, full held-out sets, by the estimate that a search prints (and its ledger meets, see
tests/unit/mixture_search/test_estimate.py). The model is a Llama of 135 M. `--before`: the defaults before 2026-11-26: 200 steps, and
what looks and sweeps cost then (after a quarter, half and all of the steps, every time on all sequences).
"""

from __future__ import annotations

import argparse

from opmix.compute.flops import ModelShape
from opmix.config import parse_config
from opmix.mixture_search.estimate import estimate_search

SHAPE = ModelShape(matmul_parameters=134_500_000, num_layers=30, attention_width=576, head_parameters=28_300_000)
ADAPTER = 4_900_000


def shares(count: int, args: argparse.Namespace, kind: str, steps: int | None) -> dict[str, float]:
    """Parts by FLOPs of the stage's training."""
    config = parse_config(
        {
            "model": "m",
            "domains": {f"d{i}": "x" for i in range(count)},
            "budget": {"tokens": args.stage_steps * args.batch * args.length},
            "sequence_length": args.length,
            "trainer": {"per_device_train_batch_size": args.batch},
            "probes": {"kind": kind, **({} if steps is None else {"steps": steps})},
        }
    )
    found, weights = estimate_search(config, None), None if kind == "full" else ADAPTER
    stage = found.stage_tokens * SHAPE.train(args.length)
    first, then = (
        part.cost(SHAPE, args.length, adapter_parameters=weights).flops for part in (found, found.confirming)
    )
    made = {"steps": config.probe_settings.num_steps, "probes": first["probes"] / stage}
    sweep = first["proxies"] / stage
    if args.before:  # three looks of all sequences
        sequences = config.proxies.eval_sequences * count * args.length
        sweep = 3 * (count + 2) * sequences * SHAPE.forward(args.length) / stage
    made |= {"looks": sweep, "candidates": then["probes"] / stage, "their sweep": then["proxies"] / stage}
    return {**made, "all": sum(list(made.values())[1:])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage-steps", type=int, default=500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--before", action="store_true")
    args = parser.parse_args()
    print(
        "| domains | probes | steps | probes | looks | candidates | their sweep | all |\n|---|---|---|---|---|---|---|---|"
    )
    for kind in ("lora", "full"):
        for count in (2, 6, 17):
            made = shares(count, args, kind, 200 if args.before else None)
            print(f"| {count} | {kind} | {made.pop('steps')} | " + " | ".join(f"{v:.1%}" for v in made.values()) + " |")


if __name__ == "__main__":
    main()
