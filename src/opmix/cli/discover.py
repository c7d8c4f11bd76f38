"""The verb `discover`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson
from opmix.errors import ConfigError

if TYPE_CHECKING:
    from opmix.discovery import Discovery

AUTO = "auto"


def _numbers(incomplete: str) -> list[str]:
    return [choice for choice in (AUTO, *map(str, range(2, 25))) if choice.startswith(incomplete)]


def discover(
    corpus: Annotated[list[str], typer.Argument(help="Files, globs or folders of text without domains.")],
    domains: Annotated[
        str, typer.Option("--domains", help="How many, or `auto`: the highest silhouette.", autocompletion=_numbers)
    ] = AUTO,
    out: Annotated[Path, typer.Option("--out", help="An empty or new folder.")] = Path("domains"),
    most: Annotated[int, typer.Option("--most", help="Largest number that `auto` tries.")] = 24,
    field: Annotated[str | None, typer.Option("--field", help="Key of the text; else told from each file.")] = None,
    embed: Annotated[
        str | None, typer.Option("--embed", help="Cluster a small model's hidden states instead of words.")
    ] = None,
    sample: Annotated[int, typer.Option("--sample", help="Documents that clusters are fitted on.")] = 20_000,
    index_only: Annotated[
        bool, typer.Option("--index-only", help="Write a table of assignments, not the documents again.")
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of everything that is drawn.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a former discovery in the folder.")] = False,
    as_json: AsJson = False,
) -> None:
    """Divide a corpus without labels into domains of like documents, named by their words."""
    if domains != AUTO and not domains.isdigit():
        raise ConfigError(f"--domains: {domains!r}; expected `auto` or a number from 2")

    from opmix.cli.console import Display
    from opmix.discovery import DiscoverySettings
    from opmix.discovery import discover as divide

    settings = DiscoverySettings(
        domains=None if domains == AUTO else int(domains),
        most=most,
        field=field,
        embed=embed,
        sample=sample,
        index_only=index_only,
        seed=seed,
    )
    with Display(silent=as_json) as display:
        result = divide(corpus, out, settings, force=force, progress=display)
    if as_json:
        sys.stdout.write(json.dumps(result.json(), indent=2, ensure_ascii=False) + "\n")
    else:
        show_discovery(result, index_only=index_only)


def show_discovery(result: Discovery, *, index_only: bool) -> None:
    """The domains, largest first."""
    from rich.table import Column
    from rich.text import Text

    from opmix.progress.display import table, terminal
    from opmix.scaffold.render import count

    console = terminal()
    total = sum(domain.text_bytes for domain in result.domains)
    shown = table(
        Column("domain", overflow="fold"),
        "documents",
        "of the text",
        "telling words",
        title=f"{len(result.domains)} domains",
    )
    for each in result.domains:
        share = f"{each.text_bytes / max(total, 1):.1%}"
        shown.add_row(Text(each.name), count(each.documents), share, Text(", ".join(each.terms)))
    console.print(shown)
    how = (
        f"the highest of {min(result.scores)} to {max(result.scores)} domains" if result.scores else "as many as asked"
    )
    console.print(f"silhouette {result.silhouette:.2f} ({how})", soft_wrap=True)
    for note in result.notes:
        console.print(f"note: {note}", soft_wrap=True)
    written = "assignments.csv.gz" if index_only else "domains.yaml"
    console.print(f"wrote {result.out / written}", soft_wrap=True)
    if not index_only:
        console.print(f"next: opmix init {result.out} --model NAME", soft_wrap=True)
