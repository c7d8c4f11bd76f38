"""Simulated against true: where do proxies put the optimum, and where do full trainings?

A base model is trained on old domains, a new one is added; OP-Mix proposes from short probes; then the full model is trained on every
mixture of a grid, for equal tokens, and on the proposal. Mean test loss over all domains decides; the search never saw that split.

    python benchmarks/simulated_vs_true.py [--old medical_nih math_metamath] [--new code_python] [--seed 0]
"""

from __future__ import annotations

import copy

import numpy as np
from common import (
    LENGTH,
    STEP_SEQUENCES,
    TRAINER,
    base_model,
    packed,
    parser,
    record,
    shared_domains,
    tokenizer_for,
)

from opmix import search
from opmix.cli.console import Display, quiet_libraries
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.training.full import train_on_mixture


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--old", nargs="+", default=["medical_nih", "math_metamath"])
    arguments.add_argument("--new", default="code_python")
    arguments.add_argument("--base-steps", type=int, default=800)
    arguments.add_argument("--steps", type=int, default=400, help="of the stage")
    arguments.add_argument("--probe-steps", type=int, default=100)
    arguments.add_argument(
        "--grid",
        type=float,
        nargs="+",
        default=[0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9],
        help="shares of the new domain",
    )
    args = arguments.parse_args()
    quiet_libraries()
    names = [*args.old, args.new]
    domains = shared_domains(args.data, names)
    label = f"{'+'.join(args.old)}-{args.new}-seed{args.seed}"
    tokenizer = tokenizer_for(domains)
    data = packed(domains, tokenizer, args.out / "cache")
    old = Mixture.uniform(args.old)
    base = base_model(
        args.out / f"base-{label}",
        tokenizer,
        {n: data["train"][n] for n in args.old},
        old,
        args.base_steps,
        args.seed,
    )
    tokens = args.steps * STEP_SEQUENCES * LENGTH
    with Display() as display:
        result = search(
            base,
            tokenizer,
            {n: {"train": d.train.paths[0], "valid": d.valid.paths[0]} for n, d in domains.items()},
            budget=tokens,
            old_mixture=dict(old),
            sequence_length=LENGTH,
            trainer=TRAINER,
            seed=args.seed,
            probes={"steps": args.probe_steps},
            cache_dir=str(args.out / "cache"),
            out=args.out / f"search-{label}",
            progress=display,
        )
        test = [held_out(n, p, num=200, seed=args.seed) for n, p in data["test"].items()]
        share = result.verdict.optimum.mixture[args.new]
        losses = {}
        for new in sorted({*args.grid, round(share, 4)}):
            mixture = Mixture.of({"old": 1 - new, args.new: new}).expand({"old": old})
            model = copy.deepcopy(base)
            train_on_mixture(
                model,
                data["train"],
                mixture,
                tokens=tokens,
                arguments=TRAINER,
                seed=args.seed + 1,
                output_dir=args.out / "trainer",
                progress=display,
                name=f"full training at {new:.3f} {args.new}",
            )
            losses[new] = float(evaluate(model, test).losses.mean())
            display.note(f"{args.new} {new:.3f}: mean test loss {losses[new]:.4f}")
    best = min(args.grid, key=losses.__getitem__)
    chosen = losses[round(share, 4)]
    law = {
        new: float(
            result.law.predict(
                Mixture.of({"old": 1 - new, args.new: new}).expand({"old": old}).on(tuple(result.mixture)).weights
            ).mean()
        )
        for new in losses
    }
    content = {
        "label": label,
        "grid": losses,
        "simulated": law,
        "proposal": share,
        "interval": result.interval[args.new],
        "law_argmin": float(
            min(
                np.linspace(0.05, 0.95, 181),
                key=lambda s: result.law.predict(
                    Mixture.of({"old": 1 - s, args.new: s}).expand({"old": old}).on(tuple(result.mixture)).weights
                ).mean(),
            )
        ),
        "true_argmin": best,
        "regret": chosen / min(losses.values()) - 1,
        "regret_10_percent_replay": losses.get(0.9, float("nan")) / min(losses.values()) - 1,
        "search_share_of_flops": result.json()["cost"]["search_share"],
        "check": result.proposal.check["verdict"],
        "decision": result.verdict.decision.reason,
    }
    record(args.out / f"simulated_vs_true-{label}.json", content)
    print(f"{'share':>8} {'true':>8} {'simulated':>10}")
    for new, loss in losses.items():
        print(f"{new:8.3f} {loss:8.4f} {law[new]:10.4f}{'  <- proposal' if new == round(share, 4) else ''}")
    for key in (
        "proposal",
        "interval",
        "law_argmin",
        "true_argmin",
        "regret",
        "regret_10_percent_replay",
        "search_share_of_flops",
        "check",
        "decision",
    ):
        print(f"{key}: {content[key]}")


if __name__ == "__main__":
    main()
