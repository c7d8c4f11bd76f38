"""The section `opmix` of a trainer's own YAML: what is mixed, and when it is decided again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from opmix.data import MixtureStream
from opmix.domain import Domains
from opmix.errors import ConfigError
from opmix.mixture_search.callback import RemixCallback
from opmix.runs.files import default_cache_dir
from opmix.settings import Count, Share, settings
from opmix.settings.loading import validated


@settings
class RemixSection:
    """What a trainer is to read, in packed rows, and after how many tokens to ask again. Paths start from the working folder."""

    domains: Domains
    """As in search.yaml."""
    mixture: dict[str, Share]
    """Token shares to begin with."""
    at: list[Count] = field(default_factory=list)
    """Tokens of the run after which to decide; or:"""
    every: Count | None = None
    """tokens between decisions."""
    out: str | None = None
    """Folder of the decisions; None: `opmix` in the trainer's output folder."""
    cache_dir: str | None = None
    document_mask: bool = False
    """Give `position_ids` that restart at each document."""
    seed: int = 0
    search: dict[str, Any] = field(default_factory=dict)
    """Further keys of search.yaml: targets, probes, proxies, solve, decision, ..."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.mixture) - set(self.domains)):
            raise ConfigError(f"mixture: {', '.join(unknown)} is no domain; expected some of {', '.join(self.domains)}")
        if bool(self.at) == (self.every is not None):
            raise ConfigError("at: expected either at: [tokens, ...] or every: tokens")

    def stream(self, tokenizer: Any, *, rows: int, sequence_length: int) -> MixtureStream:
        """Tokenise the domains and lay out the run.

        Args:
            tokenizer: The trainer's.
            rows: Of the whole run: steps times sequences of a step.
            sequence_length: Tokens of a row.

        Raises:
            DataError: A domain cannot be read, or is shorter than its share.
        """
        return MixtureStream.open(
            {name: domain.located(Path.cwd()) for name, domain in self.domains.items()},
            tokenizer,
            self.mixture,
            cache_dir=self.cache,
            num_sequences=rows,
            sequence_length=sequence_length,
            seed=self.seed,
            document_mask=self.document_mask,
        )

    def callback(self, stream: MixtureStream, output: str | Path) -> RemixCallback:
        """What decides in the middle of the run, below the trainer's output folder where no other is named.

        Raises:
            ConfigError: Keys of `search` that cannot hold.
        """
        out = self.out or Path(output) / "opmix"
        search = {"cache_dir": str(self.cache), **self.search}
        return RemixCallback(stream, at=self.at, every=self.every, out=out, **search)

    @property
    def cache(self) -> Path:
        """Folder of tokenised domains."""
        return Path(self.cache_dir) if self.cache_dir else default_cache_dir()


def section_of(content: Mapping[str, Any] | None, where: str) -> RemixSection:
    """The checked section of a trainer's settings; `where` names the file in messages.

    Raises:
        ConfigError: There is none, or its keys cannot hold.
    """
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: no section `opmix`; expected opmix: {{domains: ..., mixture: ..., every: TOKENS}}")
    return validated(RemixSection, dict(content), where=f"{where}, section opmix")


def whole_run(steps: int, *per_step: int) -> int:
    """Rows of a run of a known number of steps.

    Raises:
        ConfigError: The trainer counts epochs: a stream has none.
    """
    if steps <= 0:
        raise ConfigError(f"max_steps: {steps}; expected the number of steps, for a stream has no epochs; give it")
    rows = steps
    for factor in per_step:
        rows *= factor
    return rows
