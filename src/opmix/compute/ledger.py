"""The account of a run: tokens, FLOPs and seconds by purpose."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


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

    def total(self, field_name: str, purposes: Iterable[str] | None = None) -> float:
        """Sum of `tokens`, `flops` or `seconds` over purposes (None: all)."""
        wanted = None if purposes is None else set(purposes)
        return float(sum(getattr(e, field_name) for e in self.entries if wanted is None or e.purpose in wanted))

    def by_purpose(self) -> dict[str, dict[str, float]]:
        """`{"tokens": {purpose: n}, "flops": {...}, "seconds": {...}}`."""
        purposes = list(dict.fromkeys(e.purpose for e in self.entries))
        return {f: {p: self.total(f, [p]) for p in purposes} for f in ("tokens", "flops", "seconds")}

    def json(self) -> list[dict[str, Any]]:
        """All entries."""
        return [asdict(e) for e in self.entries]
