"""`law_draws.json`: posterior draws of the laws, thinned, for live intervals."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from opmix.errors import StoreError
from opmix.protocols.law import LawDraws
from opmix.results.files import OptionalFile, read_json, typed
from opmix.runs.files import plain

_MOST = 64


@dataclass(frozen=True, kw_only=True)
class LawDrawsFile(OptionalFile):
    """B draws of E laws over D domains."""

    NAME: ClassVar[str] = "law_draws.json"
    metrics: tuple[str, ...]
    domains: tuple[str, ...]
    c: tuple[tuple[float, ...], ...] = ()
    """(B, E)"""
    t: tuple[tuple[tuple[float, ...], ...], ...] = ()
    """(B, E, D)"""
    other: Mapping[str, Any] = field(default_factory=dict)
    """All of the file, of a law that is not log-linear."""

    @classmethod
    def of(cls, draws: LawDraws) -> Self:
        """Return the file of at most 64 of the draws."""
        chosen = np.linspace(0, len(draws) - 1, min(_MOST, len(draws))).astype(int)
        content = draws.take(chosen).json()
        if "kind" in content:
            return cls(metrics=draws.metrics, domains=draws.domains, other=content)
        return cls(**content)

    def json(self) -> dict[str, Any]:
        """Return what the file holds."""
        content = {key: value for key, value in vars(self).items() if key != "other"}
        return dict(plain(self.other or content))

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """Return the folder's file; None where there is none, or no draw in it.

        Raises:
            StoreError: It is damaged.
        """
        path = folder / cls.NAME
        if not path.is_file():
            return None
        content = read_json(path)
        if isinstance(content, dict) and "kind" in content:
            return cls._other(content, path)
        draws = typed(cls, content, path)
        if not draws.c:
            return None
        count, metrics, domains = len(draws.c), len(draws.metrics), len(draws.domains)
        square = all(len(row) == metrics for row in draws.c) and all(
            len(draw) == metrics and all(len(row) == domains for row in draw) for draw in draws.t
        )
        if len(draws.t) != count or not square:
            raise StoreError(
                f"{path}: damaged: c and t are not {count} draws of {metrics} metrics and {domains} domains; "
                "run the command again to rewrite it"
            )
        return draws

    @classmethod
    def _other(cls, content: Mapping[str, Any], path: Path) -> Self:
        """Draws of another law: `base` and `b` (B, E), `worth` (B, E, D), `rho` (B,)."""
        metrics, domains = tuple(content.get("metrics") or ()), tuple(content.get("domains") or ())
        try:
            base, b, worth, rho = (np.array(content[key], float) for key in ("base", "b", "worth", "rho"))
        except (KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path}: damaged: {error}; run the command again to rewrite it") from error
        size = (len(rho), len(metrics))
        if base.shape != size or b.shape != size or worth.shape != (*size, len(domains)):
            raise StoreError(
                f"{path}: damaged: base, b and worth are not {len(rho)} draws of {len(metrics)} metrics and "
                f"{len(domains)} domains; run the command again to rewrite it"
            )
        return cls(metrics=metrics, domains=domains, other=content)
