"""The ledger of a run: what every finished step has cost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from opmix.compute.cost import Cost, Kind


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One finished step."""

    step: str
    purpose: str
    """`probes`, `proxies`, `baseline`, `training`, ..."""
    tokens: int
    flops: float
    seconds: float
    peak_memory: int = 0
    """Bytes: of the device on a GPU, of the process else; 0: not watched."""


@dataclass
class Ledger:
    """Append-only."""

    entries: list[Entry] = field(default_factory=list)

    def add(self, entry: Entry) -> None:
        """Book a step."""
        self.entries.append(entry)

    def total(self, kind: Kind, purposes: Iterable[str] | None = None) -> float:
        """Return the tokens, FLOPs or seconds of some purposes (None: of all)."""
        wanted = None if purposes is None else set(purposes)
        return float(sum(getattr(e, kind) for e in self.entries if wanted is None or e.purpose in wanted))

    @property
    def cost(self) -> Cost:
        """Cost by purpose."""
        return Cost.sum(Cost.of(e.purpose, tokens=e.tokens, flops=e.flops, seconds=e.seconds) for e in self.entries)

    def json(self) -> list[dict[str, Any]]:
        """All entries."""
        return [asdict(e) for e in self.entries]
