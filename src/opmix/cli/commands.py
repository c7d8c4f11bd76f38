"""One function a verb."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from opmix.compute.budget import speaks
from opmix.errors import ConfigError

Out = Annotated[Path | None, typer.Option("--out", help="Run folder; running again with the same inputs resumes.")]
Objective = Literal["mean", "weighted", "worst_case"]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]


def search(
    config: Annotated[Path, typer.Argument(help="search.yaml: model, domains, budget, ...")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
    ] = None,
    out: Out = None,
    refine: Annotated[
        bool, typer.Option("--refine", help="Then verify the proposal, and refine while its error matters.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Find the mixture for the next stretch: checkpoint + domains -> shares with intervals."""
    from opmix.config import load_config

    settings = load_config(config, set_ or [])

    from opmix.cli.console import Display, importing, show_search

    with importing():
        from opmix.api import run_search
    folder = out or Path("runs") / config.stem
    with Display(silent=as_json or not speaks()) as display:
        result = run_search(settings, base=config.parent.resolve(), out=folder, progress=display)
        made = None
        if refine:
            from opmix.mixture_search.verify import verify_run

            made = verify_run(folder, refine=True, progress=display)
    if not speaks():
        return
    if as_json:
        extra = {} if made is None else {"verification": made.json()}
        _print_json({**result.json(), "timing": result.timing().json(), **extra})
        return
    show_search(result, folder)
    if made is not None:
        from opmix.cli.verify import show_verification

        show_verification(made, folder)


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
        _print_json({**result.json(), "timing": result.timing().json()})
        return
    from opmix.cli.console import show_fit

    show_fit(result, out)
    if result.predictions is not None and out is None:
        sys.stdout.write(predictions_csv(*result.predictions, result.fit.law.metrics))


def report(run: Annotated[Path, typer.Argument(help="Run folder with mixture.json.")]) -> None:
    """Write the run's report.html again."""
    from opmix.report import write_report

    typer.echo(str(write_report(run)))


def demo(
    out: Annotated[Path, typer.Option("--out", help="Run folder.")] = Path("demo-run"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    as_json: AsJson = False,
) -> None:
    """The whole path in minutes on a CPU: real text, a small model, the proposal against uniform, and a report."""
    from opmix.cli.console import Display, importing, show_demo

    with Display(silent=as_json) as display:
        display.note("loading torch and transformers")
        with importing():
            from opmix.demo import run_demo

        result = run_demo(out, seed=seed, progress=display)
    if as_json:
        _print_json({**result.search.json(), "comparison": result.comparison})
    else:
        show_demo(result, out)


def _print_json(content: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
