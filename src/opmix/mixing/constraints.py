"""What the mixture must obey, as labelled linear rows over domains plus limits on predicted losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from opmix.errors import ConfigError
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.settings import Share, settings


@settings
class Group:
    """Domains whose shares are bounded together."""

    domains: tuple[str, ...]
    floor: Share | None = None
    ceiling: Share | None = None


@dataclass(frozen=True)
class LinearRow:
    """`row . p <= bound` with the sentence that explains it."""

    row: FloatArray
    bound: float
    label: str


@dataclass(frozen=True, kw_only=True)
class Constraints:
    """Everything a user may demand of a mixture. Shares are of training tokens, in [0, 1].

    Examples:
        >>> rules = Constraints(ceilings={"code": 0.5}, floors={"web": 0.2})
        >>> [row.label for row in rules.rows(("web", "code"))]
        ['floor: web >= 0.2', 'ceiling: code <= 0.5']
    """

    floors: Mapping[str, float] = field(default_factory=dict)
    ceilings: Mapping[str, float] = field(default_factory=dict)
    fixed: Mapping[str, float] = field(default_factory=dict)
    groups: Mapping[str, Group] = field(default_factory=dict)
    available_tokens: Mapping[str, int] = field(default_factory=dict)
    """Training tokens each domain has; with `budget` and `max_epochs` they cap its share."""
    max_epochs: Mapping[str, float] = field(default_factory=dict)
    budget: int | None = None
    """Tokens of the stage the mixture is for."""
    max_loss: Mapping[str, float] = field(default_factory=dict)
    """Metric: highest predicted loss allowed, in nats per token."""
    max_loss_labels: Mapping[str, str] = field(default_factory=dict)
    current_loss: Mapping[str, float] = field(default_factory=dict)
    """Metric: the loss that limits are told in percent of, in nats per token."""

    def check(self, domains: Sequence[str], metrics: Sequence[str]) -> None:
        """Every name is known and every bound a share.

        Raises:
            ConfigError: All problems at once.
        """
        problems = []
        for kind, shares in (("floors", self.floors), ("ceilings", self.ceilings), ("fixed", self.fixed)):
            problems += [
                f"{kind}.{d}: unknown domain; expected one of {list(domains)}" for d in shares if d not in domains
            ]
            problems += [f"{kind}.{d}: {s}; expected a share in [0, 1]" for d, s in shares.items() if not 0 <= s <= 1]
        for name, group in self.groups.items():
            problems += [
                f"groups.{name}: unknown domain {d!r}; expected some of {list(domains)}"
                for d in group.domains
                if d not in domains
            ]
            if group.floor is None and group.ceiling is None:
                problems.append(f"groups.{name}: neither floor nor ceiling given; expected at least one")
            problems += [
                f"groups.{name}: {s}; expected a share in [0, 1]"
                for s in (group.floor, group.ceiling)
                if s is not None and not 0 <= s <= 1
            ]
        problems += [
            f"max_loss.{m}: unknown eval set; expected one of {list(metrics)}"
            for m in self.max_loss
            if m not in metrics
        ]
        if problems:
            raise ConfigError(problems, where="constraints")

    def rows(self, domains: Sequence[str]) -> list[LinearRow]:
        """The linear constraints over `domains`, in the order a reader expects; shares add up to one elsewhere."""

        def row(names: Sequence[str], sign: float) -> FloatArray:
            return np.array([sign if domain in names else 0.0 for domain in domains])

        rows = [LinearRow(row([d], -1), -s, f"floor: {d} >= {s:g}") for d, s in self.floors.items()]
        rows += [LinearRow(row([d], 1), s, f"ceiling: {d} <= {s:g}") for d, s in self.ceilings.items()]
        for name, group in self.groups.items():
            inside = " + ".join(group.domains)
            if group.floor is not None:
                rows.append(
                    LinearRow(row(group.domains, -1), -group.floor, f"group {name}: {inside} >= {group.floor:g}")
                )
            if group.ceiling is not None:
                rows.append(
                    LinearRow(row(group.domains, 1), group.ceiling, f"group {name}: {inside} <= {group.ceiling:g}")
                )
        for d, s in self.fixed.items():
            rows.append(LinearRow(row([d], 1), s, f"fixed: {d} = {s:g}"))
            rows.append(LinearRow(row([d], -1), -s, f"fixed: {d} = {s:g}"))
        for d, share in self.token_caps(domains).items():
            if share < 1:
                rows.append(
                    LinearRow(
                        row([d], 1),
                        share,
                        f"tokens: {d} has {self.available_tokens[d]:.4g} tokens at max_epochs={self.max_epochs[d]:g}, "
                        f"so at most {share:.4g} of a budget of {self.budget:.4g}",
                    )
                )
        return rows

    def token_caps(self, domains: Sequence[str]) -> dict[str, float]:
        """Largest share of the budget that each domain's tokens allow."""
        if not self.budget:
            return {}
        return {
            d: self.available_tokens[d] * self.max_epochs[d] / self.budget
            for d in domains
            if d in self.available_tokens and d in self.max_epochs
        }

    def sentences(self, domains: Sequence[str]) -> list[str]:
        """What a reader is told, one sentence per constraint."""
        linear = list(dict.fromkeys(row.label for row in self.rows(domains)))
        return linear + [self.loss_label(metric) for metric in self.max_loss]

    def loss_label(self, metric: str) -> str:
        """The sentence of one loss limit."""
        return self.max_loss_labels.get(metric, f"loss limit: {metric} <= {self.max_loss[metric]:.4g}")

    def violation(self, mixture: Mixture, predicted: Mapping[str, float] | None = None) -> float:
        """By how much the worst constraint is broken; 0 or less: none is."""
        p = mixture.weights
        worst = max((float(r.row @ p - r.bound) for r in self.rows(mixture.names)), default=0.0)
        limits = (predicted[m] - limit for m, limit in self.max_loss.items()) if predicted is not None else ()
        return max([worst, *limits])
