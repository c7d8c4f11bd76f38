"""`opmix export`: a run's mixture for somebody's trainer."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.values import number
from opmix.domain import user_path
from opmix.errors import ConfigError

if TYPE_CHECKING:
    from opmix.exporters import Export, ExportOptions
    from opmix.exporters.plan import Unit

_UNITS: tuple[Unit, ...] = ("documents", "sequences", "tokens")


def _trainers(incomplete: str) -> list[str]:
    from opmix.exporters import EXPORTERS

    return [name for name in EXPORTERS if name.startswith(incomplete)]


def export(
    run: Annotated[Path | None, typer.Argument(help="Run folder with mixture.json.")] = None,
    to: Annotated[str | None, typer.Option("--to", help="The trainer; see --list.", autocompletion=_trainers)] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the trainers, their units and limits.")] = False,
    into: Annotated[
        Path | None,
        typer.Option(
            "--into", help="In place of --to: your axolotl or LLaMA-Factory YAML; its numbers change in place."
        ),
    ] = None,
    materialise: Annotated[
        Path | None,
        typer.Option("--materialise", help="Folder to write the data into as well, each domain's part of the budget."),
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option("--tokenizer", help="With --materialise: in place of the run's model's.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; standard output otherwise.")] = None,
    tokens: Annotated[str | None, typer.Option("--tokens", help="Budget, such as 2e9; the run's otherwise.")] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit",
            help="What one sample of your data is: sequences or documents.",
            autocompletion=lambda: list(_UNITS),
        ),
    ] = None,
    sequence_length: Annotated[
        int | None, typer.Option("--sequence-length", min=1, help="Tokens a sequence; the run's otherwise.")
    ] = None,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", help="NAME=PLACE of a domain's data, or a template with {domain}; may be repeated."),
    ] = None,
    row_tokens: Annotated[
        list[str] | None, typer.Option("--row-tokens", help="[NAME=]N: mean tokens per document; may be repeated.")
    ] = None,
    available: Annotated[
        list[str] | None, typer.Option("--available", help="[NAME=]N: tokens that there are; may be repeated.")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--base", help="Folder that the configuration's relative paths start from.")
    ] = None,
) -> None:
    """A run's mixture in a trainer's own format and unit."""
    if list_:
        _show_list()
        return
    if run is None or (to is None) == (into is None):
        raise ConfigError(
            "export: RUN and one of --to and --into are needed, as in `opmix export RUN --to trl`; see --list for the "
            "trainers"
        )
    from opmix.exporters import ExportOptions, export_run

    options = ExportOptions(
        tokens=None if tokens is None else round(_number("--tokens", tokens)),
        unit=_unit(unit),
        sequence_length=sequence_length,
        paths=_places(path or []),
        row_tokens={n: _number("--row-tokens", v) for n, v in _named(row_tokens or []).items()},
        available={n: round(_number("--available", v)) for n, v in _named(available or []).items()},
        base=base,
    )
    if materialise is not None and into is not None:
        raise ConfigError("--materialise: beside --into, which changes numbers alone; expected --to; leave one out")
    if into is not None:
        _write_back(run, into, options)
        return
    assert to is not None
    if materialise is None:
        _write(export_run(run, to, options), out)
        return
    _write(_materialised(run, to, user_path(materialise), options, tokenizer), out)


def _materialised(run: Path, to: str, folder: Path, options: ExportOptions, tokenizer: str | None) -> Export:
    from opmix.progress.display import Display
    from opmix.scaffold.materialise import materialise

    with Display() as display:
        made = materialise(run, to, folder, options, tokenizer=tokenizer, progress=display)
    for name, written in made.written.items():
        there = ", there already" if written.again else ""
        typer.echo(f"{name}: {written.tokens:,} tokens, {written.documents:,} documents{there}", err=True)
    return made.export


def _write_back(run: Path, into: Path, options: ExportOptions) -> None:
    from opmix.scaffold.write_back import write_back

    found, warnings = write_back(run, user_path(into), options)
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
    typer.echo(f"{into}: the mixture is in it, for {found.trainer}")


def _write(result: Export, out: Path | None) -> None:

    from opmix.progress.display import terminal

    console = terminal(stderr=True)
    missing = [] if out else [f"{name} belongs beside it; --out FILE writes both" for name in result.companions]
    said = [f"warning: {w}" for w in result.warnings] + [f"note: {n}" for n in (*result.notes, *missing)]
    for line in said:
        console.print(line, soft_wrap=True)
    if out is None:
        sys.stdout.write(result.text)
        return
    from opmix.runs.files import write_text

    for name, text in result.companions.items():
        place = out.parent / name
        if place.exists() and place.read_text(encoding="utf-8") != text:
            raise ConfigError(
                f"--out: {place} exists and says something else; choose another folder, then merge the two"
            )
        write_text(place, text)
    write_text(out, result.text)
    for written in (out, *(out.parent / name for name in result.companions)):
        typer.echo(str(written))


def _show_list() -> None:

    from opmix.exporters import EXPORTERS
    from opmix.progress.display import table, terminal

    shown = table("--to", "trainer", "unit", "what it cannot express")
    for exporter in EXPORTERS.values():
        shown.add_row(exporter.name, exporter.trainer, exporter.unit, exporter.limits)
    terminal().print(shown)


def _unit(text: str | None) -> Unit | None:
    for unit in _UNITS:
        if text == unit:
            return unit
    if text is not None:
        raise ConfigError(f"--unit: {text!r}; expected one of {', '.join(_UNITS)}")
    return None


def _places(values: list[str]) -> dict[str, str]:
    """NAME=PLACE, or a template that is for all domains."""
    places: dict[str, str] = {}
    for value in values:
        name, equals, place = value.partition("=")
        if "{domain}" in value and not (equals and "{domain}" not in name and "/" not in name):
            name, place = "", value
        elif not equals or not place:
            raise ConfigError(f"--path: {value!r}; expected NAME=PLACE, or a template such as 'data/{{domain}}.jsonl'")
        places[name] = place
    return places


def _named(values: list[str]) -> dict[str, str]:
    """NAME=VALUE, or a value that is for all domains."""
    found = {}
    for value in values:
        name, equals, number = value.rpartition("=")
        found[name if equals else ""] = number
    return found


def _number(option: str, text: str) -> float:
    if not (value := number(option, text)) > 0:
        raise ConfigError(f"{option}: {text!r}; expected a positive number such as 2e9")
    return value
