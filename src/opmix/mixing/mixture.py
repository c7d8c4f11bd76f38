"""Two kinds of weights that must never be confused: over domains, and over probes.

Shape letters in this package: D domains, P probes, M mixtures (proxies), E evaluation sets, B posterior draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from html import escape
from typing import Self

import numpy as np
import numpy.typing as npt

from opmix.errors import ConfigError

FloatArray = npt.NDArray[np.float64]

SUM_TOLERANCE = 1e-6
"""How far weights may be from adding up to one before it is an error rather than rounding."""


def _simplex_point(kind: str, names: Sequence[str], weights: npt.ArrayLike) -> tuple[tuple[str, ...], FloatArray]:
    try:
        names, array = tuple(names), np.array(weights, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{kind}: {str(error)[:100]}; expected names and one number per name") from error
    if any(not isinstance(name, str) for name in names):
        raise ConfigError(f"{kind}: names {names!r}; expected texts")
    if array.shape != (len(names),) or not names:
        raise ConfigError(f"{kind}: {array.shape} weights for {len(names)} names; expected one weight per name")
    if len(set(names)) != len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ConfigError(f"{kind}: {', '.join(map(repr, twice))} named twice; expected each name once")
    wrong = np.flatnonzero(~(np.isfinite(array) & (array >= 0)))
    if wrong.size:
        bad = [f"{names[i]}={array[i]:g}" for i in wrong]
        raise ConfigError(f"{kind}: weights {', '.join(bad)}; expected finite numbers >= 0")
    if abs(array.sum() - 1) > SUM_TOLERANCE:
        raise ConfigError(
            f"{kind}: weights add up to {array.sum():.6g}; expected 1 (use {kind}.normalised for relative weights)"
        )
    array /= array.sum()
    array.flags.writeable = False
    return names, array


def _columns(kind: str, shares: Mapping[str, float]) -> tuple[tuple[str, ...], FloatArray]:
    """Names and values of what should be a mapping of numbers."""
    if not isinstance(shares, Mapping):
        raise ConfigError(f"{kind}: a {type(shares).__name__}; expected names with their weights, such as {{'web': 1}}")
    try:
        return tuple(shares), np.array(list(shares.values()), dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:
        raise ConfigError(f"{kind}: {str(error)[:100]}; expected one number per name") from error


@dataclass(frozen=True, eq=False)
class _Simplex(Mapping[str, float]):
    """A point on the simplex over named things."""

    names: tuple[str, ...]
    weights: FloatArray

    def __init__(self, names: Sequence[str], weights: npt.ArrayLike) -> None:
        checked_names, checked = _simplex_point(type(self).__name__, names, weights)
        object.__setattr__(self, "names", checked_names)
        object.__setattr__(self, "weights", checked)

    @classmethod
    def of(cls, shares: Mapping[str, float]) -> Self:
        """Build from a mapping whose values add up to one."""
        return cls(*_columns(cls.__name__, shares))

    @classmethod
    def normalised(cls, shares: Mapping[str, float]) -> Self:
        """Build from relative weights: `{"a": 3, "b": 1}` becomes 0.75 and 0.25."""
        names, values = _columns(cls.__name__, shares)
        if not values.size or not np.all(np.isfinite(values)) or values.min() < 0 or values.sum() <= 0:
            raise ConfigError(f"{cls.__name__}: {dict(shares)}; expected finite weights >= 0, at least one positive")
        return cls(names, values / values.sum())

    @classmethod
    def uniform(cls, names: Sequence[str]) -> Self:
        """The centre of the simplex."""
        return cls(names, np.full(len(names), 1 / max(len(names), 1)))

    def __getitem__(self, name: str) -> float:
        return float(self.weights[self._places[name]])

    @cached_property
    def _places(self) -> dict[str, int]:
        """Where each name's weight is: a search through the names would be quadratic in all that reads a mixture."""
        return {name: place for place, name in enumerate(self.names)}

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and dict(self) == dict(other)

    def __hash__(self) -> int:
        return hash((type(self).__name__, frozenset(self.items())))

    def __repr__(self) -> str:
        inside = ", ".join(f"{name}={weight:.4g}" for name, weight in self.items())
        return f"{type(self).__name__}({inside})"

    def _repr_html_(self) -> str:
        # By hand: the report's helpers live above this package.
        rows = "".join(f"<tr><th>{escape(name)}</th><td>{weight:.4f}</td></tr>" for name, weight in self.items())
        return f"<table><caption>{type(self).__name__}</caption><tbody>{rows}</tbody></table>"


class Mixture(_Simplex):
    """Shares of training **tokens** per domain (method.md: `p`).

    Examples:
        >>> old = Mixture.of({"web": 0.75, "code": 0.25})
        >>> old.tokens(1000)
        {'web': 750, 'code': 250}
        >>> Mixture.of({"old": 0.6, "math": 0.4}).expand({"old": old})
        Mixture(web=0.45, code=0.15, math=0.4)
    """

    def on(self, names: Sequence[str]) -> Self:
        """The same mixture over another list of domains; domains it lacks get share 0.

        Raises:
            ConfigError: A domain with a positive share is not in `names`.
        """
        among = set(names)
        lost = [name for name, weight in self.items() if weight > 0 and name not in among]
        if lost:
            raise ConfigError(f"mixture has shares of {', '.join(map(repr, lost))}, which are not among {list(names)}")
        return type(self)(names, [self.get(name, 0.0) for name in names])

    def expand(self, parts: Mapping[str, Mixture]) -> Mixture:
        """Replace collapsed coordinates by the mixtures they stand for; shares of one domain add up."""
        leaves: dict[str, float] = {}
        for name, weight in self.items():
            inside = parts.get(name)
            for leaf, share in inside.items() if inside is not None else ((name, 1.0),):
                leaves[leaf] = leaves.get(leaf, 0.0) + weight * share
        return Mixture.normalised(leaves)

    def tokens(self, budget: int) -> dict[str, int]:
        """Whole tokens per domain that add up to `budget` exactly (largest remainder)."""
        exact = self.weights * budget
        counts = np.floor(exact).astype(np.int64)
        for index in np.argsort(-(exact - counts), kind="stable")[: budget - int(counts.sum())]:
            counts[index] += 1
        return {name: int(count) for name, count in zip(self.names, counts, strict=True)}

    def epochs(self, budget: int, available: Mapping[str, int]) -> dict[str, float]:
        """How often each domain's available tokens are seen when `budget` tokens are drawn."""
        return {name: weight * budget / available[name] for name, weight in self.items()}

    def kl(self, prior: Mixture) -> float:
        """KL(self || prior) in nats; infinite where the prior has no mass."""
        q = prior.on(self.names).weights if set(prior) <= set(self.names) else None
        if q is None:
            q = np.array([prior.get(name, 0.0) for name in self.names])
        used = self.weights > 0
        if np.any(q[used] == 0):
            return float("inf")
        return float(np.sum(self.weights[used] * np.log(self.weights[used] / q[used])))


class InterpolationWeights(_Simplex):
    """Weights over **probes**, not domains; `ProbeDesign.mixture_of` says what mixture they stand for."""


@dataclass(frozen=True)
class ProbeDesign:
    """What each probe is trained on: the rows of `R`, P probes x D domains.

    The mixture that interpolation weights `w` stand for is `p = R^T w`; this class is the only way from one
    to the other.

    Examples:
        >>> design = ProbeDesign(("old", "new"), ("web", "math"), np.array([[0.9, 0.1], [0.1, 0.9]]))
        >>> design.mixture_of(InterpolationWeights.of({"old": 0.5, "new": 0.5}))
        Mixture(web=0.5, math=0.5)
    """

    probes: tuple[str, ...]
    domains: tuple[str, ...]
    R: FloatArray

    def __post_init__(self) -> None:
        if self.R.shape != (len(self.probes), len(self.domains)):
            raise ConfigError(
                f"probe design: matrix {self.R.shape} for {len(self.probes)} probes and {len(self.domains)} domains"
            )
        for probe, row in zip(self.probes, self.R, strict=True):
            _simplex_point(f"probe {probe!r}", self.domains, row)

    def row(self, probe: str) -> Mixture:
        """The mixture that `probe` is trained on."""
        return Mixture(self.domains, self.R[self.probes.index(probe)])

    def mixture_of(self, weights: InterpolationWeights) -> Mixture:
        """`p = R^T w`.

        Raises:
            TypeError: `weights` is not an `InterpolationWeights`; a `Mixture` is not over probes.
            ConfigError: `weights` is over other probes.
        """
        if not isinstance(weights, InterpolationWeights):
            raise TypeError(f"mixture_of takes InterpolationWeights over probes, not {type(weights).__name__}")
        if weights.names != self.probes:
            raise ConfigError(f"weights are over {weights.names}; this design's probes are {self.probes}")
        return Mixture(self.domains, self.R.T @ weights.weights)
