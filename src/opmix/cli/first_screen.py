"""What `opmix` says without a verb."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

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
