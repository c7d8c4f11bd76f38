"""`opmix fit`: laws and mixture from finished runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from opmix.cli.options import AsJson, print_json
from opmix.errors import ConfigError

if TYPE_CHECKING:
    from opmix.fit import FitResult


Objective = Literal["mean", "weighted", "worst_case"]


def _sources(incomplete: str) -> list[str]:
    from opmix.trackers import READERS

    return [name for name in ("table", *READERS) if name.startswith(incomplete)]


def fit(
    ratios: Annotated[
        Path, typer.Argument(help="Ratios by run, or one table with ratio_* and loss_* columns; or a tracker's runs.")
    ],
    metrics: Annotated[Path | None, typer.Argument(help="Losses by run, joined by run id.")] = None,
    from_: Annotated[
        str,
        typer.Option(
            "--from",
            help="table, wandb (CSV, JSON, folder), mlflow (mlruns, .db, CSV), tensorboard.",
            autocompletion=_sources,
        ),
    ] = "table",
    ratio_prefix: Annotated[str, typer.Option("--ratio-prefix", help="Trackers: of the shares' names.")] = "ratio/",
    metric_prefix: Annotated[str, typer.Option("--metric-prefix", help="Trackers: of the losses' names.")] = "eval/",
    metrics_: Annotated[
        list[str] | None, typer.Option("--metrics", help="Columns to fit, A,B; all that are losses otherwise.")
    ] = None,
    maximize: Annotated[
        list[str] | None, typer.Option("--maximize", help="Scores of which more is better, A,B.")
    ] = None,
    minimize: Annotated[
        list[str] | None, typer.Option("--minimize", help="Metrics of which less is better whatever their name says.")
    ] = None,
    objective: Annotated[
        Objective, typer.Option("--objective", help="Of the metrics: mean, weighted, or worst_case against the prior.")
    ] = "mean",
    weights: Annotated[list[str] | None, typer.Option("--weights", help="METRIC=W,...: with weighted.")] = None,
    limit: Annotated[
        list[str] | None, typer.Option("--limit", help="METRIC=PERCENT,...: at most so much above the prior's.")
    ] = None,
    floor: Annotated[list[str] | None, typer.Option("--floor", help="DOMAIN=SHARE,...: at least.")] = None,
    ceiling: Annotated[list[str] | None, typer.Option("--ceiling", help="DOMAIN=SHARE,...: at most.")] = None,
    fixed: Annotated[list[str] | None, typer.Option("--fixed", help="DOMAIN=SHARE,...: exactly.")] = None,
    prior: Annotated[str, typer.Option("--prior", help="`uniform`, or a JSON file: domain to share.")] = "uniform",
    kl: Annotated[float, typer.Option("--kl", help="Weight of KL(p || prior).")] = 0.05,
    predict: Annotated[
        Path | None, typer.Option("--predict", help="Ratios to predict losses for (predictions.csv).")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder for mixture.json, tables, predictions and the report."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Law, mixture and decision from anybody's finished runs; no model needed."""
    from opmix.cli.console import Display
    from opmix.cli.values import names, numbers
    from opmix.fit import fit_runs, predictions_csv
    from opmix.mixing.constraints import Constraints
    from opmix.mixing.swarm import Directions
    from opmix.runs.store import RunStore

    if not 0 <= kl < float("inf"):
        raise ConfigError(f"--kl: {kl}; expected a number >= 0")
    if out is not None:
        RunStore(out, "fit").check_command()
    wanted = {"metrics": names(metrics_), "maximize": names(maximize), "minimize": names(minimize)}
    rules = Constraints(
        floors=numbers("--floor", floor), ceilings=numbers("--ceiling", ceiling), fixed=numbers("--fixed", fixed)
    )
    asked = {"objective": objective, "weights": numbers("--weights", weights), "loss_limits": numbers("--limit", limit)}
    with Display(silent=as_json) as display:
        result = fit_runs(
            ratios,
            metrics,
            source=from_,
            ratio_prefix=ratio_prefix,
            metric_prefix=metric_prefix,
            directions=Directions(chosen=wanted["metrics"], maximize=wanted["maximize"], minimize=wanted["minimize"]),
            constraints=rules,
            prior=None if prior == "uniform" else Path(prior),
            kl=kl,
            objective=objective,
            weights=numbers("--weights", weights),
            loss_limits=numbers("--limit", limit),
            predict=predict,
            progress=display,
        )
    if out is not None:
        where = {"ratios": ratios, "metrics": metrics, "prior": prior, "kl": kl, "predict": predict, "from": from_}
        shares = {"floors": rules.floors, "ceilings": rules.ceilings, "fixed": rules.fixed}
        result.write(out, inputs={**where, **{k: v for k, v in {**wanted, **shares, **asked}.items() if v}})
    if as_json:
        print_json({**result.json(), "timing": result.timing().json()})
        return
    show_fit(result, out)
    if result.predictions is not None and out is None:
        sys.stdout.write(predictions_csv(*result.predictions, result.fit.law.metrics))


def show_fit(result: FitResult, folder: Path | None) -> None:
    """Laws, mixture and decision of `opmix fit`."""
    from opmix.cli.console import show_report, show_verdict
    from opmix.progress.display import table, tell, terminal

    console = terminal()
    for note in result.notes:
        tell(console, f"note: {note}")
    laws = table(
        "eval set",
        "LOO error",
        "Spearman",
        title=f"{len(result.fit.law.metrics)} laws from {len(result.table.points)} runs",
    )
    for metric, quality in zip(result.fit.law.metrics, result.fit.quality, strict=True):
        laws.add_row(metric, f"{quality.loo_rmse:.4f}", f"{quality.loo_spearman:.3f}")
    console.print(laws)
    show_verdict(console, result.verdict, "prior")
    show_report(console, folder)
