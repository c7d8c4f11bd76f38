"""What an exporter is given: token shares, what is known of the data, and the conversion to other units.

A mixture is shares of **tokens**. A trainer that draws documents needs shares of rows instead: with `m_k` mean tokens
per document, `r_k = (p_k / m_k) / sum_j (p_j / m_j)`. Sequences of equal length are tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from opmix.domain import RowSchema, Source
from opmix.errors import ConfigError
from opmix.mixing.mixture import Mixture

Unit = Literal["documents", "sequences", "tokens"]
"""What a weight weighs: rows of any length, rows of equal length, or tokens (the last two are the same share)."""

NEGLIGIBLE = 1e-6
"""Shares below this are a solver's zero: several trainers refuse them, none could realise them."""

_RESOLUTION = 10**9
"""Weights are written with nine decimals that add up to one exactly; samplers check the sum."""


@dataclass(frozen=True, kw_only=True)
class DomainPlan:
    """One domain of the mixture, and what is known of its data."""

    name: str
    share: float
    """Of the tokens; positive."""
    source: Source | None = None
    """As in the run's configuration, or made of the path that the user gave; None: not known."""
    path: str | None = None
    """Where the user says the data are in the trainer's own format."""
    tokens: int | None = None
    """In the files, opmix's held-out documents included where they are in the same files."""
    row_tokens: float | None = None
    """Mean tokens per document."""
    rows: RowSchema = "text"
    """What the source's rows hold."""
    held_out: float = 0.0
    """Share of the files' documents that opmix held out."""


@dataclass(frozen=True, kw_only=True)
class MixturePlan:
    """The mixture to export. D domains, all with a positive share."""

    origin: str
    """The run folder, as it was named."""
    kind: str
    """`search` or `fit`."""
    domains: tuple[DomainPlan, ...]
    dropped: tuple[str, ...] = ()
    budget: int | None = None
    """Tokens of the stretch; None: not known, nor therefore epochs."""
    sequence_length: int | None = None
    unit: Unit | None = None
    """What one sample of the user's data is, for trainers that take both; None: the trainer's usual."""
    seed: int = 0

    @property
    def chats(self) -> tuple[str, ...]:
        """Domains whose rows are conversations."""
        return tuple(domain.name for domain in self.domains if domain.rows != "text")

    @property
    def names(self) -> tuple[str, ...]:
        """Of the domains, in the mixture's order."""
        return tuple(domain.name for domain in self.domains)

    @property
    def shares(self) -> dict[str, float]:
        """Token shares, nine decimals, adding up to one."""
        return exact({domain.name: domain.share for domain in self.domains})

    def row_shares(self) -> dict[str, float]:
        """Shares of documents that give the token shares, nine decimals, adding up to one.

        Raises:
            ConfigError: A domain's mean document length is not known.
        """
        return exact({d.name: d.share / length for d, length in zip(self.domains, self._row_tokens(), strict=True)})

    def rows(self) -> int | None:
        """Documents that the budget takes on average; None without a budget."""
        if self.budget is None:
            return None
        lengths = self._row_tokens()
        return round(self.budget * sum(d.share / n for d, n in zip(self.domains, lengths, strict=True)))

    def sequences(self) -> int | None:
        """Sequences that the budget takes; None without a budget or their length."""
        if self.budget is None or self.sequence_length is None:
            return None
        return self.budget // self.sequence_length

    def epochs(self) -> dict[str, float] | None:
        """How often each domain's tokens are seen; None unless the budget and all sizes are known."""
        if self.budget is None or any(domain.tokens is None for domain in self.domains):
            return None
        return {d.name: d.share * self.budget / d.tokens for d in self.domains if d.tokens}

    def known_epochs(self) -> dict[str, float]:
        """`epochs` of those domains whose size is known; empty without a budget."""
        if self.budget is None:
            return {}
        return {d.name: d.share * self.budget / d.tokens for d in self.domains if d.tokens}

    def available(self) -> dict[str, int]:
        """Tokens of every domain.

        Raises:
            ConfigError: A size is not known.
        """
        self._need([d.name for d in self.domains if not d.tokens], "tokens available", "--available", "TOKENS")
        return {d.name: d.tokens for d in self.domains if d.tokens}

    def _row_tokens(self) -> tuple[float, ...]:
        self._need([d.name for d in self.domains if not d.row_tokens], "mean tokens per document", "--row-tokens", "N")
        return tuple(d.row_tokens for d in self.domains if d.row_tokens)

    def _need(self, missing: Sequence[str], what: str, option: str, value: str) -> None:
        if missing:
            raise ConfigError(
                f"{self.origin}: {what} of {', '.join(map(repr, missing))} not known (a run of `opmix {self.kind}`); "
                f"this trainer's unit needs it; give {option} {missing[0]}={value}"
            )


def exact(shares: Mapping[str, float]) -> dict[str, float]:
    """Relative weights as decimals with nine digits that add up to one.

    Examples:
        >>> exact({"a": 1, "b": 2})
        {'a': 0.333333333, 'b': 0.666666667}
    """
    counts = Mixture.normalised(shares).tokens(_RESOLUTION)
    return {name: count / _RESOLUTION for name, count in counts.items()}
