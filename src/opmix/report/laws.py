"""The laws of a run folder, of either kind: read from its files, and written down for the what-if view."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from opmix.errors import StoreError
from opmix.mixing.effective_tokens import EffectiveTokensDraws, EffectiveTokensLaw, Tokens
from opmix.mixing.log_linear import LogLinearDraws, LogLinearLaw
from opmix.mixing.mixture import FloatArray
from opmix.protocols.law import LawDraws, MixingLaw
from opmix.results.draws import LawDrawsFile
from opmix.results.mixture import LawEntry, MixtureFile

EFFECTIVE_TOKENS = "effective_tokens"
_Asked = TypeVar("_Asked", MixingLaw, LawDraws)


def known(laws: Mapping[str, LawEntry]) -> bool:
    """Whether the report can predict with these laws: there are some, of one kind that it knows."""
    return bool(laws) and {law.other.get("kind") for law in laws.values()} in ({None}, {EFFECTIVE_TOKENS})


def by_domain(law: LawEntry) -> Mapping[str, float]:
    """The law's number for every domain: exponents, or what its tokens are worth."""
    return law.other.get("worth", {}) if law.other else law.t


def read_law(laws: Mapping[str, LawEntry], domains: Sequence[str]) -> MixingLaw:
    """The laws as one, its domains in this order.

    Raises:
        StoreError: A number is missing or not finite.
    """
    missing = [f"{m}/{d}" for m, law in laws.items() for d in domains if d not in by_domain(law)]
    if missing:
        raise StoreError(
            f"mixture.json: laws lack an exponent for {', '.join(missing[:4])}; "
            "expected one per domain and metric; run the command again to rewrite it"
        )
    entries, metrics, names = list(laws.values()), tuple(laws), tuple(domains)
    table = np.array([[by_domain(law)[d] for d in domains] for law in entries], dtype=np.float64)
    if not entries[0].other:
        c, gamma = (np.array([getattr(law, key) for law in entries]) for key in ("c", "interference"))
        _finite(table, c, gamma)
        return LogLinearLaw(metrics, names, c, table, gamma, len(names))
    try:
        base, b = (np.array([float(law.other[key]) for law in entries]) for key in ("base", "b"))
        rho, tokens = float(entries[0].other["rho"]), _tokens(entries[0].other, names)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"mixture.json: a law lacks {error}; run the command again to rewrite it") from error
    _finite(table, base, b, np.array([rho, tokens.stage]))
    return EffectiveTokensLaw(metrics, names, base, b, table, rho, tokens)


def _tokens(parameters: Mapping[str, Any], domains: Sequence[str]) -> Tokens:
    unique = parameters.get("unique") or {}
    have = np.array([float(unique.get(d, math.inf)) for d in domains])
    return Tokens(float(parameters["tokens"]), have, float(parameters["repetition_decay"]))


def _finite(*blocks: FloatArray) -> None:
    if not all(np.isfinite(block).all() for block in blocks):
        raise StoreError("mixture.json: a share, a law or the KL weight is not finite; run the command again")


def at_probes(law: _Asked, document: MixtureFile) -> _Asked:
    """The law, or draws of it, as probes can be held against it: at their own length and scale, and nothing repeated."""
    if not isinstance(law, EffectiveTokensLaw | EffectiveTokensDraws):
        return law
    factor = float(((document.settings.fit or {}).get("discrepancy") or {}).get("factor", 1.0))
    return replace(law, b=law.b / factor, tokens=Tokens(1.0, np.full(len(law.domains), np.inf)))


def read_draws(document: LawDrawsFile | None, law: MixingLaw) -> LawDraws | None:
    """Posterior draws, metrics and domains in the law's order; None where there is no file of its kind.

    Raises:
        StoreError: They lack a metric or a domain of the law.
    """
    effective = isinstance(law, EffectiveTokensLaw)
    if document is None or bool(document.other) != effective:
        return None
    lost = [*(set(law.metrics) - set(document.metrics)), *(set(law.domains) - set(document.domains))]
    if lost:
        raise StoreError(f"law_draws.json: lacks {sorted(lost)[:4]}, which mixture.json has; run the command again")
    rows = [document.metrics.index(m) for m in law.metrics]
    columns = [document.domains.index(d) for d in law.domains]
    if isinstance(law, EffectiveTokensLaw):
        base, b, worth, rho = (np.array(document.other[key], float) for key in ("base", "b", "worth", "rho"))
        worth = worth[:, rows][:, :, columns]
        return EffectiveTokensDraws(
            law.metrics, law.domains, base[:, rows], b[:, rows], worth, rho, law.tokens, np.ones(len(rho))
        )
    c, t = np.array(document.c)[:, rows], np.array(document.t)[:, rows][:, :, columns]
    open_above = np.full(len(rows), np.inf)
    return LogLinearDraws(law.metrics, law.domains, c, t, np.zeros_like(c), len(columns), open_above)


def law_for_view(law: MixingLaw) -> dict[str, Any]:
    """What `numerics.js` predicts from, at full precision."""
    if isinstance(law, EffectiveTokensLaw):
        unique = [float(u) if np.isfinite(u) else None for u in law.tokens.unique]
        blocks = {name: getattr(law, name).tolist() for name in ("base", "b", "worth")}
        asked = {"tokens": law.tokens.stage, "unique": unique, "decay": law.tokens.decay}
        return {"kind": EFFECTIVE_TOKENS, **blocks, "rho": law.rho, **asked}
    assert isinstance(law, LogLinearLaw)
    return {"c": law.c.tolist(), "t": law.t.tolist()}


def draws_for_view(draws: LawDraws | None) -> dict[str, Any] | None:
    """The draws, packed: float32 holds them to a thousandth of their own spread at a fifth of JSON's size."""
    if draws is None:
        return None
    names = ("base", "b", "worth", "rho") if isinstance(draws, EffectiveTokensDraws) else ("c", "t")
    return {"count": len(draws), **{name: _packed(getattr(draws, name)) for name in names}}


def _packed(values: FloatArray) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype="<f4").tobytes()).decode()
