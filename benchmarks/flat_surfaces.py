"""How often does a search move where nothing can be gained? At most as often as it says: one minus `decision.confidence`.

    python benchmarks/flat_surfaces.py [--searches 200] [--domains 4] [--confidence 0.9]

Searches on fake surfaces that mixtures do not move at all, read through held-out sequences that like some domains by chance and probes
whose data came in some order: losses go down with tokens, the rest is noise. Nothing is trained. A move is one too many.
"""

from __future__ import annotations

import argparse
import math
import time

import numpy as np

from opmix.methods.trained_probes import TrainedProbes
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import Mixture
from opmix.protocols.mixing_method import DecisionProblem
from opmix.testing import FakeContext, log_linear_surface

NOISES = {
    "held-out sequences": {"noise": 0.1},
    "order of the data": {"order": 0.01},
    "both": {"noise": 0.1, "order": 0.01},
}
"""Nats; 0.1 a sequence is 0.0125 on a set of 64."""


def moved(domains: int, seed: int, *, confidence: float, **noise: float) -> bool:
    names = tuple(f"d{i}" for i in range(domains))
    problem = DecisionProblem(
        domains=names,
        old=Mixture.uniform(names),
        budget_tokens=64_000,
        available_tokens=dict.fromkeys(names, 10**6),
        seed=seed,
    )
    context = FakeContext(
        problem=problem,
        surface=log_linear_surface([[0.0] * domains] * domains),
        course=lambda tokens: np.repeat(
            3.0 - 0.2 * np.log1p(tokens.sum(axis=1, keepdims=True) / 2000), domains, axis=1
        ),
        rule=DecisionSettings(draws=40, confidence=confidence),
        seed=seed,
        **noise,
    )
    method = TrainedProbes(steps=32, given_kl=False)
    return method.propose(context).verdict.decision.action == "move"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--searches", type=int, default=200)
    parser.add_argument("--domains", type=int, default=4)
    parser.add_argument("--confidence", type=float, default=0.9)
    args = parser.parse_args()
    nominal = 1 - args.confidence
    slack = 2 * math.sqrt(nominal * (1 - nominal) / args.searches)
    for name, noise in NOISES.items():
        started = time.process_time()
        moves = sum(moved(args.domains, s, confidence=args.confidence, **noise) for s in range(args.searches))
        rate = moves / args.searches
        held = "held" if rate <= nominal + slack else "NOT held"
        print(
            f"noise of {name}: {moves} of {args.searches} searches move ({rate:.1%}; {nominal:.0%} allowed, {held}), "
            f"{(time.process_time() - started) / args.searches:.2f} s of CPU a search"
        )


if __name__ == "__main__":
    main()
