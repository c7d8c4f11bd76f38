"""The cost of work: tokens, FLOPs and seconds by purpose."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Kind = Literal["tokens", "flops", "seconds"]
KINDS: tuple[Kind, ...] = ("tokens", "flops", "seconds")
SEARCH_PURPOSES = ("probes", "proxies", "verification", "trials", "overhead")
"""What a search is charged with; the rest is `training` and `measuring`."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Tokens, FLOPs and seconds by purpose; `+` adds purpose by purpose.

    Examples:
        >>> spent = Cost.of("probes", tokens=10, flops=60.0) + Cost.of("proxies", tokens=5, flops=10.0)
        >>> spent.total("tokens"), spent.total("flops", ["probes"])
        (15.0, 60.0)
    """

    tokens: Mapping[str, float] = field(default_factory=dict)
    flops: Mapping[str, float] = field(default_factory=dict)
    seconds: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, purpose: str, *, tokens: float = 0, flops: float = 0.0, seconds: float = 0.0) -> Self:
        """Return the cost of work that serves one purpose."""
        return cls(tokens={purpose: tokens}, flops={purpose: flops}, seconds={purpose: seconds})

    @classmethod
    def read(cls, record: Mapping[str, Any] | None) -> Self:
        """Return the cost that a record keeps under its key `amounts`; a record without one has cost nothing."""
        return cls(**{kind: (record or {}).get("amounts", {}).get(kind, {}) for kind in KINDS})

    @classmethod
    def sum(cls, costs: Iterable[Cost]) -> Self:
        """Return the sum of costs, purposes in the order of their first appearance."""
        total: dict[Kind, dict[str, float]] = {kind: {} for kind in KINDS}
        for cost in costs:
            for kind, amounts in total.items():
                for purpose, amount in getattr(cost, kind).items():
                    amounts[purpose] = amounts.get(purpose, 0.0) + amount
        return cls(**total)

    def __add__(self, other: Cost) -> Cost:
        return Cost.sum((self, other))

    def total(self, kind: Kind, purposes: Iterable[str] | None = None) -> float:
        """Return the tokens, FLOPs or seconds of some purposes (None: of all)."""
        amounts: Mapping[str, float] = getattr(self, kind)
        wanted = amounts if purposes is None else set(purposes)
        return sum(amount for purpose, amount in amounts.items() if purpose in wanted)

    def json(self) -> dict[str, dict[str, float]]:
        """Return `{"tokens": {purpose: n}, "flops": {...}, "seconds": {...}}`, as records keep it."""
        return {kind: dict(getattr(self, kind)) for kind in KINDS}
