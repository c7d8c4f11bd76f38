"""The verbs of first contact: a screen for no verb at all, `init`, `validate` and `doctor`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from opmix.preflight import Check, Validation
    from opmix.scaffold import FirstConfig

FIRST_SCREEN = """\
opmix: in what proportions should you mix your data for the next stretch of
language-model training?

Start here:
  opmix demo                      the whole path on real text, minutes on a CPU
  opmix init FOLDER --model NAME  write search.yaml for a folder of text
  opmix validate search.yaml      check it and its cost; nothing is trained
  opmix search search.yaml        find the mixture, with intervals and a report
  opmix run lifecycle.yaml        a whole life: find it, train on it, and again

More:  opmix --help, opmix VERB --help; opmix doctor if something does not work
Docs:  docs/first-steps.md in the source; docs/search.md has every setting
"""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def _say_version(wanted: bool) -> None:
    if wanted:
        import opmix

        typer.echo(f"opmix {opmix.__version__}")
        raise typer.Exit


def first_screen(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_say_version)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an unforeseen error.")] = False,
) -> None:
    """In what proportions should you mix your data for the next stretch of training?"""
    if context.invoked_subcommand is None:
        sys.stdout.write(FIRST_SCREEN)


def init(
    places: Annotated[
        list[str] | None,
        typer.Argument(
            help="A folder of text: a sub-folder or a file for each domain. Or several folders, files and datasets "
            "of the hub (org/name): each a domain. Else the folder you are in.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="Checkpoint folder, .gguf file or hub name; else a placeholder.")
    ] = None,
    tokens: Annotated[
        float | None, typer.Option("--tokens", help="Training tokens of the next stretch (2e9); else all there are.")
    ] = None,
    target: Annotated[
        list[Path] | None,
        typer.Option(
            "--target", help="File or folder that the mixture is for; may be repeated. Else a folder targets/."
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option(
            "--from", help="In place of a folder: an axolotl or LLaMA-Factory YAML; its model, LoRA and data."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = Path("search.yaml"),
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it exists.")] = False,
) -> None:
    """Write a commented search.yaml for your data: finds domains, formats, text fields, conversations and sizes."""
    from opmix.errors import ConfigError

    if tokens is not None and not 1 <= tokens < float("inf"):
        raise ConfigError(f"--tokens: {tokens:g}; expected a positive number of tokens, such as 2e9")
    if from_ is not None:
        _init_from(from_, out, tokens, model, force=force)
        return

    from opmix.cli.console import Display
    from opmix.scaffold import first_config

    with Display() as display:
        result = first_config(
            places or ["."],
            out,
            model=model,
            tokens=None if tokens is None else round(tokens),
            targets=target or [],
            force=force,
            progress=display,
        )
    show_first_config(result)


def _init_from(path: Path, out: Path, tokens: float | None, model: str | None, *, force: bool) -> None:
    from opmix.domain import user_path
    from opmix.scaffold import search_from_trainer

    config, found = search_from_trainer(user_path(path), user_path(out), tokens=tokens, model=model, force=force)
    typer.echo(f"{out}: model {config.model.name}, domains {', '.join(config.domains)}, from {found.trainer}'s {path}")
    for note in found.notes:
        typer.echo(f"note: {note}")
    typer.echo(f"next: opmix validate {out}; opmix search {out}; opmix export RUN --into {path}")


def validate(
    config: Annotated[Path, typer.Argument(help="search.yaml or lifecycle.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check a configuration without training: settings, files, fields, constraints, model, and what it will cost."""
    from opmix.cli.console import Display, quiet_libraries
    from opmix.preflight import validate as check

    quiet_libraries()
    with Display(silent=as_json) as display:
        result = check(config, set_ or [], progress=display)
    if as_json:
        _print_json(result.json())
    else:
        show_validation(result)
    if not result.valid:
        raise typer.Exit(1)


def doctor(
    config: Annotated[
        Path | None, typer.Argument(help="Also say what would fail for this configuration.", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at versions, devices, memory, disk, threads and the model hub: each line ok, warn or fail, with a remedy."""
    from opmix.cli.console import Display
    from opmix.preflight import examine, failed

    with Display(silent=as_json) as display:
        checks = examine(config, progress=display)
    if as_json:
        _print_json({"ok": not failed(checks), "checks": [check.json() for check in checks]})
    else:
        show_checks(checks)
    if failed(checks):
        raise typer.Exit(1)


def show_checks(checks: Sequence[Check]) -> None:
    """One line a check, its remedy below it where there is something to do."""
    from rich.text import Text

    from opmix.progress.display import terminal

    console = terminal()
    width = max((len(check.name) for check in checks), default=0)
    for check in checks:
        line = Text.assemble((f"{check.status:<4}", _STYLES[check.status]), f"  {check.name:<{width}}  {check.detail}")
        console.print(line, soft_wrap=True)
        if check.remedy and check.status != "ok":
            console.print(Text(f"{'':<{width + 8}}{check.remedy}", style="bold"), soft_wrap=True)


def show_validation(result: Validation) -> None:
    """Domains, checks and cost."""
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
            f"cost: {most}{cost.probes} probes x {cost.steps} steps ({count(cost.probe_tokens)} tokens), "
            f"{cost.proxies} proxies ({count(cost.eval_tokens)} tokens)",
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


def show_first_config(result: FirstConfig) -> None:
    """What was found and what to do next."""
    from opmix.progress.display import table, terminal
    from opmix.scaffold.render import count

    console = terminal()
    shown = table("domain", "documents", "tokens", "held out", "from", title="Domains (tokens are estimates)")
    for each in result.domains:
        train, source = each.sizes["train"], each.sources["train"]
        field = "" if source.field == "text" else f", field {source.field!r}"
        held = ", ".join(split for split in each.sources if split != "train") or "split off"
        files = f"{train.files} file{'s' if train.files > 1 else ''}{field}"
        documents = count(train.documents) if train.documents else "?"
        shown.add_row(each.name, documents, count(train.tokens), held, files)
    console.print(shown)
    if result.config.targets:
        console.print(f"targets, never trained on: {', '.join(result.config.targets)}", soft_wrap=True)
    for each in result.left_out:
        console.print(f"left out: {each.problem}", style="yellow", soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    console.print(f"wrote {result.path}", soft_wrap=True)
    if not result.has_model:
        console.print(
            "No model was given: put yours where the file says REPLACE THIS (or use --set model=NAME).",
            style="bold",
        )
    for verb in ("validate", "search"):
        console.print(f"next: opmix {verb} {result.path}", soft_wrap=True)


def _print_json(content: object) -> None:
    from opmix.runs.files import plain

    sys.stdout.write(json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")
