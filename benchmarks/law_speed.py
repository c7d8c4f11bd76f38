"""Speed and quality of the law and the solve, in one run; ratios, not deadlines.

    python benchmarks/law_speed.py [--swarms ../shared/data/swarms] [--largest]

Default tables (2 x 9: one new domain; 6 x 20: rebalancing) against scipy's `least_squares` from the same starts; the law in effective
tokens on 7 probes of 6 domains looked at thrice, CPU time; and the published RegMix runs: 13 laws, judged on unseen runs.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

from opmix.fit import fit_runs
from opmix.mixing.decision import decide
from opmix.mixing.effective_tokens_fit import EffectiveTokensFit, fit_effective_tokens
from opmix.mixing.law import _START_OFFSETS, fit_law
from opmix.mixing.mixture import Mixture
from opmix.mixing.numerics import rank_correlation
from opmix.mixing.solver import solve
from opmix.mixing.swarm import read_swarm


def table(num_domains: int, num_points: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    if num_domains == 2:
        share = np.linspace(0.1, 0.9, num_points)
        mixtures = np.stack([1 - share, share], axis=1)
    else:
        mixtures = rng.dirichlet(np.ones(num_domains), num_points)
    t = rng.normal(0, 0.5, (num_domains, num_domains))
    return mixtures, 2 + np.exp(mixtures @ t.T) + 2e-3 * rng.standard_normal((num_points, num_domains))


def ours(mixtures: np.ndarray, losses: np.ndarray) -> None:
    names = [f"d{i}" for i in range(mixtures.shape[1])]
    solve(fit_law(mixtures, losses, domains=names, metrics=names).law)


def scipys(mixtures: np.ndarray, losses: np.ndarray) -> None:
    """The same starts, and leave-one-out refits from the best, one `least_squares` call each."""
    for y in losses.T:
        starts = [max(y.min() - o * np.ptp(y), 0.0) for o in _START_OFFSETS]
        first = [np.r_[c, np.linalg.lstsq(mixtures, np.log(np.maximum(y - c, 1e-6)), rcond=None)[0]] for c in starts]
        best = min((run(mixtures, y, x) for x in first), key=lambda r: r.cost)
        for row in range(len(y)):
            run(np.delete(mixtures, row, 0), np.delete(y, row), best.x)


def looks(num_domains: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, tokens and losses of a joint probe and one a domain, looked at after a quarter, half and all of their steps."""
    rng = np.random.default_rng(seed)
    R = np.vstack([np.full(num_domains, 1 / num_domains), 0.9 * np.eye(num_domains) + 0.1 / num_domains])
    mixtures, tokens = np.tile(R, (3, 1)), np.repeat([15360.0, 30720.0, 61440.0], len(R))
    worth = np.exp(rng.normal(-3, 1, (num_domains, num_domains)))
    np.fill_diagonal(worth, 1.0)
    gained = (mixtures * tokens[:, None] / 2000) ** 0.7 @ worth.T
    return mixtures, tokens, 5 - 0.15 * np.log1p(gained) + 5e-3 * rng.standard_normal(gained.shape)


def effective(mixtures: np.ndarray, tokens: np.ndarray, losses: np.ndarray) -> EffectiveTokensFit:
    names = [f"d{i}" for i in range(mixtures.shape[1])]
    probes = [str(i % (len(names) + 1)) for i in range(len(losses))]
    told = {"domains": names, "metrics": names, "probes": probes, "stage_tokens": 3e5}
    return fit_effective_tokens(mixtures, tokens, losses, **told)


def large(num_domains: int, num_points: int, num_metrics: int) -> None:
    """A whole `opmix fit` without its page: laws, draws, their optima and the decision."""
    mixtures, losses = table(num_domains, num_points, 1)
    names, metrics = [f"d{i}" for i in range(num_domains)], [f"m{i}" for i in range(num_metrics)]
    fit = fit_law(mixtures, losses[:, :num_metrics], domains=names, metrics=metrics)
    decide(fit, candidates={"prior": Mixture.uniform(names)}, reference="prior")


def run(mixtures: np.ndarray, y: np.ndarray, start: np.ndarray):
    def jacobian(x: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(y)), np.exp(mixtures @ x[1:])[:, None] * mixtures])

    return least_squares(lambda x: x[0] + np.exp(mixtures @ x[1:]) - y, start, jacobian, loss="huber", f_scale=0.02)


def median_ms(call, *args, repeats: int, clock=time.perf_counter) -> float:
    times = []
    for _ in range(repeats):
        started = clock()
        call(*args)
        times.append(1e3 * (clock() - started))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swarms", type=Path, default=Path("../shared/data/swarms"))
    parser.add_argument(
        "--largest", action="store_true", help="1,000 domains x 2,000 runs x 10 metrics, and nothing else"
    )
    args = parser.parse_args()
    if args.largest:
        spent = median_ms(large, 1000, 2000, 10, repeats=1, clock=time.process_time) / 1e3
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        print(f"1000 x 2000 x 10: laws, 200 draws, decision {spent:.0f} s of CPU, {memory:.2f} GB at most")
        return
    ours(*table(2, 9, 0))
    for num_domains, num_points in ((2, 9), (6, 20)):
        data = table(num_domains, num_points, 1)
        mine, theirs = median_ms(ours, *data, repeats=9), median_ms(scipys, *data, repeats=1)
        print(
            f"{num_domains} x {num_points}: fit, leave-one-out, solve {mine:.1f} ms; scipy {theirs:.0f} ms ({theirs / mine:.0f}x)"
        )
    for count in (6, 17):
        points = looks(count, 1)
        fit = effective(*points)
        fitted = median_ms(effective, *points, repeats=5, clock=time.process_time)
        drawn = median_ms(lambda fit=fit: fit.draws(num_draws=200), repeats=5, clock=time.process_time)
        print(
            f"effective tokens, {count} domains x 3 looks: fit and leave-one-out {fitted:.0f} ms, 200 draws {drawn:.0f} ms of CPU"
        )
    for size in ((64, 200, 5), (200, 500, 2), (300, 700, 1)):
        spent = median_ms(large, *size, repeats=1, clock=time.process_time) / 1e3
        print(f"{' x '.join(map(str, size))} (domains, runs, metrics): laws, 200 draws, decision {spent:.1f} s of CPU")
    regmix = args.swarms / "regmix"
    if not regmix.exists():
        return
    started = time.perf_counter()
    result = fit_runs(regmix / "train_1m.csv")
    print(
        f"RegMix, 13 laws x 17 domains x 512 runs with decision: {time.perf_counter() - started:.2f} s, {dict(result.verdict.seconds)}"
    )
    for name in ("test_1m", "test_60m", "test_1b"):
        other = read_swarm(regmix / f"{name}.csv").table
        predicted = result.fit.law.predict(other.mixtures)
        rho = [rank_correlation(predicted[:, e], other.losses[:, e]) for e in range(len(other.metrics))]
        print(f"{name}: {len(other.points)} unseen runs, Spearman mean {np.mean(rho):.4f}, lowest {min(rho):.4f}")


if __name__ == "__main__":
    main()
