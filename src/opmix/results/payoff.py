"""What a mixture for targets buys and costs, set by set; `payoff` in `mixture.json`, where there are targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

KEY = "payoff"


@dataclass(frozen=True, kw_only=True)
class Change:
    """Of a set's loss from the reference's mixture to another, as the law foretells it, nats; a minus is a gain."""

    nats: float
    interval: tuple[float, float]
    percent: float
    """Of the current model's loss, as limits are."""

    def __str__(self) -> str:
        return f"{self.nats:+.3f} ({self.interval[0]:+.3f} to {self.interval[1]:+.3f})"


@dataclass(frozen=True, kw_only=True)
class Alone:
    """The mixture that is best for one target alone, under the search's own constraints."""

    mixture: Mapping[str, float]
    changes: Mapping[str, float]
    """By set, nats from the reference; its own among them."""
    frontier: tuple[tuple[float, float, float], ...] = ()
    """Weight of this target, the others sharing the rest evenly (with one target: the domains); its change there, and the mean of
    theirs, nats."""


@dataclass(frozen=True, kw_only=True)
class Silent:
    """A target whose losses differ between the probes by no more than other held-out text would make them, nats: it has no say."""

    spread: float
    noise: float


@dataclass(frozen=True, kw_only=True)
class Payoff:
    """Of a search for targets."""

    reference: str
    """The mixture in use, which changes are taken from."""
    mixture: Mapping[str, float]
    """What is recommended; where that is to keep, what was proposed."""
    changes: Mapping[str, Change]
    """By evaluation set, domains first."""
    targets: tuple[str, ...]
    weights: Mapping[str, float]
    """Of every set in the objective; they add up to one."""
    alone: Mapping[str, Alone] = field(default_factory=dict)
    silent: Mapping[str, Silent] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """What the file holds."""
        return asdict(self)

    @classmethod
    def read(cls, evidence: Mapping[str, Any]) -> Self | None:
        """Return that of a document's evidence; None: a search without targets, or a file that somebody else wrote otherwise."""
        try:
            found = dict(evidence[KEY])
            found["changes"] = {
                n: Change(**{**c, "interval": tuple(c["interval"])}) for n, c in found["changes"].items()
            }
            found["alone"] = {
                n: Alone(**{**a, "frontier": tuple(map(tuple, a["frontier"]))}) for n, a in found["alone"].items()
            }
            found["silent"] = {n: Silent(**s) for n, s in found["silent"].items()}
            return cls(**{**found, "targets": tuple(found["targets"])})
        except (KeyError, TypeError, ValueError):
            return None

    def sentences(self) -> list[str]:
        """For the terminal: what the targets gain, what each domain pays at most."""
        ordered = sorted(self.targets, key=lambda t: self.changes[t].nats)
        said = [f"{t} {self.changes[t]}" for t in ordered[:4]]
        more = f", and {len(ordered) - 4} more" if len(ordered) > 4 else ""
        lines = [f"targets, nats against {self.reference}: {', '.join(said)}{more}"]
        paying = {n: c for n, c in self.changes.items() if n not in self.targets and c.nats > 0}
        worst = sorted(paying, key=lambda n: -paying[n].percent)[:3]
        if worst:
            lines.append("paid by: " + ", ".join(f"{n} {paying[n].percent:+.1f} %" for n in worst))
        if self.silent:
            lines.append(f"without a say, their losses do not stand out of noise: {', '.join(self.silent)}")
        return lines
