"""`opmix validate`: a configuration, checked without training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson, Changes, print_json

if TYPE_CHECKING:
    from opmix.preflight import Validation


def validate(
    config: Annotated[Path, typer.Argument(help="search.yaml or lifecycle.yaml.")],
    set_: Changes = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration without training: settings, files, fields, constraints, model, and what it will cost."""
    from opmix.cli.console import Display, quiet_libraries
    from opmix.preflight import validate as check

    quiet_libraries()
    with Display(silent=as_json) as display:
        result = check(config, set_ or [], progress=display)
    if as_json:
        print_json(result.json())
    else:
        show_validation(result)
    if not result.valid:
        raise typer.Exit(1)


def show_validation(result: Validation) -> None:
    """Domains, checks and cost."""
    from opmix.cli.doctor import show_checks
    from opmix.preflight.plan import LifeCost
    from opmix.progress.display import table, terminal
    from opmix.scaffold.render import count

    console = terminal()
    if result.sizes:
        shown = table(
            "domain", "files", "documents", "tokens", "held out", title="Domains (tokens of text are estimates)"
        )
        for name, splits in result.sizes.items():
            train, valid = splits.get("train"), splits.get("valid")
            held = "split off" if "valid" not in splits else "?" if valid is None else count(valid.tokens)
            documents = "?" if train is None or not train.documents else count(train.documents)  # of ids nobody counts
            cells = ("?",) * 3 if train is None else (str(train.files), documents, count(train.tokens))
            shown.add_row(name, *cells, held)
        console.print(shown)
    show_checks(result.checks)
    if isinstance(cost := result.cost, LifeCost):
        each = " a seed" if cost.seeds > 1 else ""
        console.print(
            f"cost{each}: {count(cost.tokens)} tokens, {cost.training:.2g} FLOPs of training; searches at most "
            f"{cost.searches:.2g} ({cost.searches / max(cost.training, 1):.0%} of it), measuring {cost.measuring:.2g}",
            soft_wrap=True,
        )
    elif cost is not None:
        most = "at most " if result.config is not None and result.config.adaptive else ""
        console.print(
            f"cost: {most}{cost.probes} short trainings of {cost.steps} steps ({count(cost.probe_tokens)} tokens) and "
            f"{cost.proxies} mixtures tried without training ({count(cost.eval_tokens)} tokens)",
            soft_wrap=True,
        )
        if cost.flops is not None and cost.share is not None and cost.memory_bytes is not None:
            console.print(
                f"      about {cost.flops:.2g} FLOPs, {cost.share:.1%} of the stage's training; "
                f"about {cost.memory_bytes / 1e9:.1f} GB of memory, {(cost.adapter_bytes or 0) / 1e6:.0f} MB of "
                "adapters, "
                f"{cost.cache_bytes / 1e6:.0f} MB of tokens",
                soft_wrap=True,
            )
    verdict = "ready: nothing stands in the way of a run" if result.valid else "not ready: see the lines that say fail"
    console.print(verdict, style="bold")
