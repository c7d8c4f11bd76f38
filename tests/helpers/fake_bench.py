"""A bench on which training costs nothing: losses follow a law that the test knows, with noise that depends on what was asked for."""

import zlib
from dataclasses import dataclass, field

import numpy as np

from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.protocols.mixing_method import DecisionProblem
from opmix.protocols.trials import Trials

DOMAINS = ("web", "code", "math", "news")


def stage_of(domains=DOMAINS, *, old=None, new=None, sizes=None, budget=1_000_000, seed=0):
    sizes = dict.fromkeys(domains, 4 * budget) if sizes is None else dict(zip(domains, sizes, strict=True))
    old = None if old is None else Mixture.of(old)
    return DecisionProblem(
        domains=tuple(domains),
        old=old,
        budget_tokens=budget,
        available_tokens=sizes,
        seed=seed,
        new=None if new is None else tuple(new),
    )


def exponential(t, c=2.0):
    """`c + exp(t_e . p)` as a law of a FakeBench."""
    t = np.asarray(t, dtype=float)
    return lambda shares, tokens: c + np.exp(shares @ t.T)


def own_share(num, steep=2.0, help_=None):
    """Every domain is learned from its own share; `help_` scales how steeply."""
    return -steep * np.diag(np.ones(num) if help_ is None else np.asarray(help_, dtype=float))


@dataclass
class FakeBench:
    """`train` and `average` of a Bench; `asked` keeps what was asked for, in order."""

    problem: DecisionProblem
    law: object
    noise: float = 0.0
    interference: float = 0.0
    asked: list = field(default_factory=list)
    tokens_per_step: float = 1000.0
    targets: tuple = ()
    """Further columns of the law; the first is all that counts."""

    def solve_settings(self, baseline, metrics, *, simulated=None):
        omega = np.array([float(m == self.targets[0]) for m in metrics])
        return SolveSettings(objective="weighted", omega=omega, reference=baseline)

    def losses(self, shares, tokens, label=""):
        shares = np.atleast_2d(shares)
        clean = self.law(shares, tokens)
        drawn = [
            np.random.default_rng(zlib.crc32(label.encode() + np.round(s, 9).tobytes())).normal(size=clean.shape[1])
            for s in shares
        ]
        return clean + self.noise * np.array(drawn)

    def objective(self, mixture, tokens=1_000_000):
        """What the methods should minimise, without noise."""
        return float(self.law(mixture.on(self.problem.domains).weights[None], tokens).mean())

    def train(self, mixtures, proxy, *, label):
        self.asked.append((label, proxy, len(mixtures)))
        return self._trials(mixtures, self.losses(np.array([m.weights for m in mixtures]), proxy.tokens, label), proxy)

    def average(self, mixtures, weights, proxy, *, label):
        self.asked.append((label, proxy, len(mixtures)))
        shares = weights @ np.array([m.weights for m in mixtures])
        # Averaged models are worse than jointly trained ones, most where many are averaged.
        worse = self.interference * (1 - (weights**2).sum(axis=1, keepdims=True))
        names = self.problem.domains
        return self._trials(
            [Mixture(names, s) for s in shares], self.losses(shares, proxy.tokens, label) + worse, proxy
        )

    def _trials(self, mixtures, losses, proxy):
        uniform = np.full((1, len(self.problem.domains)), 1 / len(self.problem.domains))
        return Trials(
            metrics=(*self.problem.domains, *self.targets),
            mixtures=tuple(mixtures),
            losses=losses,
            standard_errors=np.full_like(losses, self.noise),
            baseline=self.law(uniform, proxy.tokens)[0] + 0.5,
        )
