"""What trackers are told of a decision, a life and a comparison: numbers by name, a step each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from opmix.mixing.table import ProxyTable

if TYPE_CHECKING:
    from opmix.results.comparison import CompareFile, ContenderRow
    from opmix.results.life import LifeFile, Spread
    from opmix.results.mixture import MixtureFile

Row = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Told:
    """A tracker's run."""

    rows: Sequence[Row]
    """One a step; every number is finite."""
    summary: str
    settings: Mapping[str, str | float]


def of_decision(found: MixtureFile, table: ProxyTable | None) -> Told:
    """The points in the table's order, then what was decided.

    `loss/SET` and `share/DOMAIN` of a point; of the decision `mixture/DOMAIN`, `optimum/DOMAIN`, `interval_low/DOMAIN`,
    `interval_high/DOMAIN`, `decision/...` and `cost/...`. Losses and gains in nats per token.
    """
    rows: list[Mapping[str, float | None]] = []
    for i in range(0 if table is None else len(table.points)):
        assert table is not None
        told = {f"loss/{m}": x for m, x in zip(table.metrics, table.losses[i], strict=True)}
        rows.append({**told, **{f"share/{d}": x for d, x in zip(table.domains, table.mixtures[i], strict=True)}})
    last: dict[str, float | None] = {f"mixture/{d}": x for d, x in found.mixture.items()}
    last |= {f"optimum/{d}": x for d, x in (found.optimum or {}).items()}
    for d, (low, high) in found.interval.items():
        last |= {f"interval_low/{d}": low, f"interval_high/{d}": high}
    if (decision := found.decision) is not None:
        last |= {
            "decision/move": float(decision.action == "move"),
            "decision/gain": decision.gain,
            "decision/gain_low": decision.gain_interval[0],
            "decision/gain_high": decision.gain_interval[1],
            "decision/probability": decision.probability,
            "decision/measured_gain": decision.direct_gain,
            "decision/joint_gain": decision.joint_gain,
            "decision/joint_probability": decision.joint_probability,
        }
    if found.cost is not None:
        last |= {"cost/flops": found.cost.total("flops"), "cost/search_share": found.cost.search_share}
    points = "" if table is None else ", ".join(table.points)
    asked = found.settings
    settings: dict[str, str | float] = {"kind": found.kind, "points": points, "objective": str(asked.objective)}
    settings |= {} if asked.kl is None else {"kl": asked.kl}
    return Told(rows=[*map(_known, rows), _known(last)], summary=found.summary(), settings=settings)


def of_life(life: LifeFile, summary: str) -> Told:
    """A step for every stage: means over seeds, and where there are several the deviations too.

    `share/DOMAIN`, `loss/DOMAIN`, `target_loss/TARGET`, `forgetting/DOMAIN`, `mean_loss` and `cost/search_share`; losses of the test
    splits at the stage's end, in nats per token. Deviations are under the same names with `sd/` before them.
    """
    rows = []
    for stage in life.stages:
        told = {f"share/{d}": x for d, x in stage.mixture.items()} | {
            f"loss/{d}": x for d, x in stage.test_loss.items()
        }
        told |= {f"target_loss/{t}": x for t, x in (stage.target_test_loss or {}).items()}
        told |= {f"forgetting/{d}": x for d, x in stage.forgetting.items()}
        rows.append(_spreads({**told, "mean_loss": stage.mean_test_loss, "cost/search_share": stage.search_share}))
    settings = {"kind": life.kind, "stages": ", ".join(s.name for s in life.stages), "seeds": ", ".join(life.seeds)}
    return Told(rows=rows, summary=summary, settings=settings)


def of_comparison(comparison: CompareFile, summary: str) -> Told:
    """A step for every stage that was contested, then the table: means over seeds.

    `stage_loss/ENTRANT` after a stage; at the end `loss/ENTRANT`, `difference/ENTRANT` (to the reference, paired by seed),
    `forgetting/ENTRANT`, `search_flops/ENTRANT` and `total_flops/ENTRANT`, deviations with `sd/` before them.
    """
    rows: list[Row] = []
    for i in range(len(comparison.contested)):
        rows.append({})
        for name in comparison.entrants:
            losses = [life.mean_loss_by_stage[i] for life in comparison.lives(name) if i < len(life.mean_loss_by_stage)]
            rows[i] |= _known({f"stage_loss/{name}": fmean(losses) if losses else None})
    last: dict[str, Spread] = {}
    for row in comparison.table:
        last |= {f"{kind}/{row.entrant}": x for kind, x in _of_entrant(row).items() if x is not None}
    settings = {"kind": comparison.kind, "reference": comparison.reference, "methods": ", ".join(comparison.entrants)}
    return Told(rows=[*rows, _spreads(last)], summary=summary, settings=settings)


def _of_entrant(row: ContenderRow) -> dict[str, Spread | None]:
    return {
        "loss": row.mean_loss,
        "difference": row.difference,
        "forgetting": row.forgetting,
        "search_flops": row.search_flops,
        "total_flops": row.total_flops,
    }


def _spreads(values: Mapping[str, Spread]) -> Row:
    return _known({k: x.mean for k, x in values.items()} | {f"sd/{k}": x.sd for k, x in values.items()})


def _known(values: Mapping[str, float | None]) -> Row:
    return {k: float(v) for k, v in values.items() if v is not None and np.isfinite(v)}
