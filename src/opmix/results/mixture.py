"""`mixture.json`: the answer of `opmix search` and `opmix fit`.

It holds nothing that a clock decides, so the same inputs give the same bytes; when and how long is in `timing.json`. Only the kind and
the mixture must be there when it is read.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from opmix.compute.cost import Cost
from opmix.errors import StoreError
from opmix.mixing.decided import Decision
from opmix.mixing.mixture import Mixture
from opmix.results.files import SCHEMA, Losses, Shares, read_document, typed
from opmix.results.loss_limits import limit_sentences, read_limits
from opmix.results.opinion import Opinion
from opmix.results.payoff import Payoff
from opmix.results.timing import TimingFile
from opmix.runs.files import plain, write_json

if TYPE_CHECKING:
    from opmix.mixing.decision import Verdict
    from opmix.protocols.law import LawFit

NAME = "mixture.json"
_SHOWN = 8

Interval = tuple[float, float]


def bits_per_byte(nats_per_token: float, bytes_per_token: float) -> float:
    """Loss independent of the tokenizer: nats per token over ln 2 and UTF-8 bytes per token."""
    return nats_per_token / math.log(2) / bytes_per_token


@dataclass(frozen=True, kw_only=True)
class LawEntry:
    """One evaluation set's law, log-linear where `other` is empty: `loss = c + exp(sum_d t_d p_d)`; how well it holds (nats per token)."""

    c: float = math.nan
    t: Shares = field(default_factory=dict)
    interference: float = 0.0
    """Nats per unit of interference; predictions are made at 0."""
    huber: float | None = None
    rmse: float | None = None
    loo_rmse: float | None = None
    spearman: float | None = None
    loo_spearman: float | None = None
    num_points: int | None = None
    rank: int | None = None
    other: Mapping[str, Any] = field(default_factory=dict)
    """Parameters of another law; its `kind` among them. Keys of their own in the file."""

    @classmethod
    def of(cls, parameters: Mapping[str, Any], **quality: Any) -> Self:
        """Return the entry of a law that is told by its parameters."""
        return cls(**quality, **({"other": parameters} if "kind" in parameters else parameters))

    def json(self) -> dict[str, Any]:
        """Return what the file holds."""
        content = asdict(replace(self, other={}))
        del content["other"]
        if self.other:
            content = {**self.other, **{k: v for k, v in content.items() if k not in ("c", "t", "interference")}}
        return content


@dataclass(frozen=True, kw_only=True)
class AlternativeEntry:
    """A mixture scored beside the proposal."""

    name: str
    mixture: Shares | None = None
    predicted: Losses = field(default_factory=dict)
    objective: float | None = None
    gain: float | None = None
    gain_interval: Interval | None = None
    feasible: bool = True
    note: str | None = None
    measured: Losses | None = None


@dataclass(frozen=True, kw_only=True)
class SolverEntry:
    """The certificate of the convex solve."""

    status: str = ""
    objective: float | None = None
    gap: float | None = None
    max_violation: float | None = None
    iterations: int | None = None
    infeasible_draws: int | None = None
    seconds: float | None = None
    """From `timing.json`."""


@dataclass(frozen=True, kw_only=True)
class ProblemEntry:
    """What was minimised, under which constraints (one sentence each)."""

    objective: str = "mean"
    weights: Losses | None = None
    kl: float = 0.05
    prior: Shares | None = None
    constraints: tuple[str, ...] = ()
    huber_delta: float | None = None
    draws: int | None = None
    seed: int | None = None
    fit: Mapping[str, Any] | None = None
    """Settings of another law than the log-linear one."""


@dataclass(frozen=True, kw_only=True)
class CoordinateEntry:
    """The directions a law can tell apart, each a mixture of domains."""

    names: tuple[str, ...]
    mixtures: Mapping[str, Shares]


@dataclass(frozen=True, kw_only=True)
class TwinEntry:
    """Two proxies with the same mixture and different interpolation weights; `difference` is a minus b."""

    mixture: Shares = field(default_factory=dict)
    a: str = "a"
    b: str = "b"
    difference: Losses = field(default_factory=dict)
    standard_error: Losses = field(default_factory=dict)
    explained: Losses = field(default_factory=dict)
    """What the law's interference term accounts for."""


@dataclass(frozen=True, kw_only=True)
class CheckEntry:
    """Does the proxy loss depend on the mixture alone?"""

    available: bool = False
    twins: tuple[TwinEntry, ...] = ()
    worst: float | None = None
    left: float | None = None
    structural: float | None = None
    corrected: bool = False
    verdict: str = ""

    @classmethod
    def of(cls, check: Mapping[str, Any]) -> Self:
        """Return what `opmix.mixing.twins` says."""
        return cls(**{**check, "twins": tuple(TwinEntry(**twin) for twin in check["twins"])})


@dataclass(frozen=True, kw_only=True)
class SearchCost(Cost):
    """Cost by purpose, `seconds` from `timing.json`; and the search's share of the stage's training FLOPs."""

    search_share: float | None = None
    stage_tokens: int | None = None


_SEARCH_ONLY = ("check", "baseline", "bytes_per_token", "domains", "baseline_bits_per_byte", "cost", "epochs")


@dataclass(frozen=True, kw_only=True)
class MixtureFile:
    """A decision and its evidence."""

    schema: int = SCHEMA
    kind: str
    """`search` or `fit`."""
    formula: str = ""
    mixture: Shares
    """The recommendation."""
    optimum: Shares | None = None
    interval: Mapping[str, Interval] = field(default_factory=dict)
    interval_level: float = 0.9
    decision: Decision | None = None
    laws: Mapping[str, LawEntry] = field(default_factory=dict)
    alternatives: tuple[AlternativeEntry, ...] = ()
    solver: SolverEntry | None = None
    settings: ProblemEntry = field(default_factory=ProblemEntry)
    coordinates: CoordinateEntry | None = None
    """None: every domain is one."""
    units: str = "nats per token"
    check: CheckEntry | None = None
    baseline: Losses = field(default_factory=dict)
    """Of the current model."""
    bytes_per_token: Mapping[str, float] = field(default_factory=dict)
    domains: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    """Domain, split: tokens, bytes and documents."""
    targets: Mapping[str, Mapping[str, Mapping[str, int]]] = field(default_factory=dict)
    """The same by target; no key of a file without any."""
    notes: tuple[str, ...] = ()
    baseline_bits_per_byte: Mapping[str, float] = field(default_factory=dict)
    cost: SearchCost | None = None
    epochs: Mapping[str, float] = field(default_factory=dict)
    """Of the stage on the mixture, by domain."""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Keys of their own in the file, such as `adaptive`."""
    created: str = ""
    """From `timing.json`."""

    @classmethod
    def of(cls, kind: str, fit: LawFit, verdict: Verdict, **extra: Any) -> Self:
        """Return the file of a decision; `extra` are further fields."""
        coordinates, best, domains = verdict.coordinates, verdict.optimum, fit.law.domains
        collapsed = coordinates.names != coordinates.domains
        return cls(
            kind=kind,
            formula=f"optimum = argmin_p objective({fit.law.formula}) + kl * KL(p || prior), constants dropped",
            mixture=dict(verdict.mixture),
            optimum=dict(best.mixture),
            interval=dict(verdict.interval),
            interval_level=verdict.decision_settings.interval_level,
            decision=verdict.decision,
            laws=_laws(fit),
            alternatives=tuple(
                AlternativeEntry(**{**vars(a), "mixture": dict(a.mixture), "predicted": dict(a.predicted)})
                for a in verdict.alternatives
            ),
            solver=SolverEntry(
                status=best.status,
                objective=best.objective,
                gap=best.gap,
                max_violation=best.max_violation,
                iterations=best.iterations,
                infeasible_draws=verdict.optima.infeasible,
            ),
            settings=_problem(fit, verdict),
            coordinates=CoordinateEntry(
                names=coordinates.names,
                mixtures={
                    n: dict(zip(domains, row, strict=True))
                    for n, row in zip(coordinates.names, coordinates.E, strict=True)
                },
            )
            if collapsed
            else None,
            **extra,
        )

    def summary(self) -> str:
        """Return the decision in about five lines: why, shares with intervals, what was measured, cost."""
        lines = [self.decision.reason] if self.decision is not None else []
        top = sorted(self.mixture.items(), key=lambda item: -item[1])
        shares = [
            f"{name} {share:.3f}" + (" ({:.2f}-{:.2f})".format(*self.interval[name]) if name in self.interval else "")
            for name, share in top[:_SHOWN]
        ]
        more = f", and {len(top) - _SHOWN} smaller" if len(top) > _SHOWN else ""
        lines.append(f"mixture ({self.interval_level:.0%} interval): {', '.join(shares)}{more}")
        if self.decision is not None:
            found = self.decision
            gain = found.gain if found.joint_gain is None else found.joint_gain
            low, high = found.joint_interval or found.gain_interval
            measured = "" if found.direct_gain is None else f", measured between probes {found.direct_gain:+.4f}"
            lines.append(
                f"gain over {found.reference}: {gain:+.4f} ({low:+.4f} to {high:+.4f}) {self.units}{measured}; "
                f"probability that it is better {found.known_probability:.0%}"
            )
        if (told := Payoff.read(self.evidence)) is not None:
            lines += told.sentences()
        lines += limit_sentences(read_limits(self.evidence))
        if (second := Opinion.read(self.evidence)) is not None:
            lines.append(second.sentence())
        if self.cost is not None and self.cost.search_share is not None:
            flops = self.cost.total("flops")
            lines.append(f"cost: {flops:.2g} FLOPs, {self.cost.search_share:.1%} of the stage's training")
        if self.notes:
            lines.append(f"notes: {len(self.notes)}, the first: {self.notes[0]}")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        """Return what the file holds: the same inputs give the same bytes."""
        content = asdict(replace(self, evidence={}))
        content["laws"] = {metric: law.json() for metric, law in self.laws.items()}
        hidden = {"evidence", "created", *(() if self.kind == "search" else _SEARCH_ONLY)}
        if not self.targets:
            hidden.add("targets")
        if self.settings.fit is None:
            del content["settings"]["fit"]
        for timed in ("solver", "cost"):
            if content[timed] is not None:
                del content[timed]["seconds"]
        return dict(plain({**{k: v for k, v in content.items() if k not in hidden}, **self.evidence}))

    def write(self, folder: Path) -> None:
        """Write `mixture.json`."""
        write_json(folder / NAME, self.json())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Return the folder's file, with what `timing.json` knows of the clock.

        Raises:
            StoreError: It is missing, damaged, of another schema, or without a mixture.
        """
        path = folder / NAME
        if not path.is_file():
            raise StoreError(
                f"{folder}: no {NAME}; expected the --out folder of a finished `opmix search` or `opmix fit`"
            )
        content = read_document(path)
        known = {f.name for f in fields(cls)} - {"evidence", "created"}
        evidence = {key: value for key, value in content.items() if key not in known}
        laws = content.get("laws")
        if isinstance(laws, dict):
            content["laws"] = {m: _split(law) if isinstance(law, dict) else law for m, law in laws.items()}
        found = typed(cls, {k: v for k, v in content.items() if k in known}, path)
        if not found.mixture:
            raise StoreError(f"{path}: mixture is empty; expected a share per domain; run the command again")
        found, timing = replace(found, evidence=evidence), TimingFile.read(folder)
        if timing is None:
            return found
        return replace(
            found,
            created=timing.created,
            cost=None if found.cost is None else replace(found.cost, seconds=timing.cost or {}),
            solver=None if found.solver is None else replace(found.solver, seconds=timing.solver_seconds),
        )


def _laws(fit: LawFit) -> dict[str, LawEntry]:
    return {
        metric: LawEntry.of(fit.law.json(e), **vars(quality), num_points=len(fit.fitted), rank=fit.rank)
        for e, (metric, quality) in enumerate(zip(fit.law.metrics, fit.quality, strict=True))
    }


def _split(law: dict[str, Any]) -> dict[str, Any]:
    """A law's entry with the parameters of another kind of law apart."""
    if law.get("kind") is None:
        return law
    known = {f.name for f in fields(LawEntry)}
    return {**{k: v for k, v in law.items() if k in known}, "other": {k: v for k, v in law.items() if k not in known}}


def _problem(fit: LawFit, verdict: Verdict) -> ProblemEntry:
    settings, rule = verdict.settings, verdict.decision_settings
    weights = None if settings.omega is None else dict(zip(fit.law.metrics, settings.omega, strict=True))
    own = fit.settings if set(fit.settings) <= {"huber_delta"} else {"fit": fit.settings}
    return ProblemEntry(
        objective=settings.objective,
        weights=weights,
        kl=settings.kl,
        prior=dict(settings.prior or Mixture.uniform(fit.law.domains)),
        constraints=tuple(verdict.constraints.sentences(fit.law.domains)),
        draws=len(verdict.draws),
        seed=rule.seed,
        **own,
    )
