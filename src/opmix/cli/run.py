"""`opmix run`: a whole life, and how it is shown."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson
from opmix.compute.budget import speaks

if TYPE_CHECKING:
    from rich.table import Table

    from opmix.results.life import LifeFile, LossEntry, Spread, StageEntry


def run(
    config: Annotated[Path, typer.Argument(help="lifecycle.yaml: where the model starts, domains, stages.")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="A.B=C", help="Change one setting (stages.0.tokens=2e6); may be repeated."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder; running again resumes.")] = None,
    redo: Annotated[bool, typer.Option("--redo", help="Do finished steps again whose inputs have changed.")] = False,
    as_json: AsJson = False,
) -> None:
    """Live a whole lifecycle: pretraining, midtraining, instruction tuning; every mixture found on the way. Resumes by itself."""
    from opmix.lifecycle.loading import load_lifecycle

    settings, folder = load_lifecycle(config, set_ or []), out or Path("runs") / config.stem

    from opmix.cli.console import Display, importing

    with Display(silent=as_json or not speaks()) as display:
        display.note("loading torch and transformers")
        with importing():
            from opmix.lifecycle.life import run_life

        result = run_life(settings, out=folder, base=config.parent.resolve(), redo=redo, progress=display)
    if not speaks():
        return
    if as_json:
        sys.stdout.write(json.dumps(result.content, indent=2, ensure_ascii=False) + "\n")
    else:
        show_life(result.life, folder)


def show_life(life: LifeFile, folder: Path) -> None:
    """One table per stage, then where things are."""
    from opmix.progress.display import tell, terminal

    console = terminal()
    for seed, lived in life.seeds.items():
        for number, stage in enumerate(lived.stages, 1):
            several = f", seed {seed}" if len(life.seeds) > 1 else ""
            console.print(stage_table(number, stage, several))
            for line in stage_sentences(stage):
                tell(console, line)
    if len(life.seeds) > 1:
        console.print(seeds_table(life))
    for seed, lived in life.seeds.items():
        console.print(f"model (seed {seed}): {folder / lived.model}", soft_wrap=True)
    console.print(f"report: {folder / 'report.html'}", soft_wrap=True)


def stage_table(number: int, stage: StageEntry, suffix: str = "") -> Table:
    """Mixture, interval, predicted and measured losses, forgetting."""
    from opmix.progress.display import table

    decided = stage.last_decision
    predicted = {} if decided is None else decided.predicted
    shown = table(
        "domain",
        "share",
        "interval",
        "predicted",
        "valid",
        "test",
        "forgotten",
        title=f"Stage {number}: {stage.name}{suffix}, {stage.tokens:,} tokens; nats per token",
    )
    for domain, test in stage.losses["test"].items():
        valid = stage.losses["valid"][domain]
        interval = None if decided is None else decided.share_interval(domain)
        forgotten = stage.forgetting.get(domain)
        shown.add_row(
            domain,
            f"{stage.mixture.get(domain, 0.0):.3f}",
            "" if interval is None else "{:.2f}-{:.2f}".format(*interval),
            _number(predicted.get(domain)),
            _change(valid),
            _change(test),
            "" if forgotten is None else f"{forgotten:+.3f}",
        )
    if (targets := stage.targets) is not None:
        shown.add_section()
        for target, test in targets.test.items():
            aimed = "target" if target in targets.aimed_at else "measured"
            told = _number(predicted.get(target))
            shown.add_row(target, aimed, "", told, _change(targets.valid[target]), _change(test), "")
    return shown


def stage_sentences(stage: StageEntry) -> list[str]:
    """Decisions, cost and notes of a stage."""
    lines = [f"  step {p.steps[0]}: {p.reason}" for p in stage.decisions]
    tokens, flops = stage.cost.tokens, stage.cost.flops
    spent = ", ".join(f"{purpose} {tokens[purpose]:,.0f} tokens {flops[purpose]:.2g} FLOPs" for purpose in flops)
    share = stage.cost.search_share
    lines.append(f"  {spent}" + ("" if share is None else f"; search {share:.1%} of training"))
    for domain, score in stage.scores.items():
        now, then = score.after, score.before
        low, high = now["interval"]
        earlier = "" if then is None else f", before {then['right']}"
        lines.append(f"  {domain}: {now['right']} of {now['total']} answers right ({low:.0%}-{high:.0%}){earlier}")
    for task in stage.tasks:
        sure = "" if task["interval"] is None else " ({:.3f} to {:.3f})".format(*task["interval"])
        lines.append(f"  {task['task']}, {task['metric']}: {task['value']:.3f}{sure}")
    return lines + [f"  note: {note}" for note in stage.notes]


def seeds_table(life: LifeFile) -> Table:
    """Mean and standard deviation over seeds."""
    from opmix.progress.display import table

    shown = table("stage", "n", "mean test loss", "shares", title="Over seeds: mean +- standard deviation")
    for stage in life.stages:
        shares = ", ".join(f"{d} {_spread(s, 3)}" for d, s in stage.mixture.items())
        shown.add_row(stage.name, str(stage.n), _spread(stage.mean_test_loss, 4), shares)
    return shown


def _spread(value: Spread, digits: int) -> str:
    deviation = "" if value.sd is None else f" +- {value.sd:.{digits}f}"
    return f"{value.mean:.{digits}f}{deviation}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _change(loss: LossEntry) -> str:
    before, after = loss.before, loss.after
    return f"{'?' if before is None else f'{before:.2f}'}>{after:.2f}"
