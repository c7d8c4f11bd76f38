"""`opmix init`: a first search.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.errors import ConfigError

if TYPE_CHECKING:
    from opmix.scaffold import FirstConfig


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
