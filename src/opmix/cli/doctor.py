"""`opmix doctor`: this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from opmix.cli.options import AsJson, print_json

if TYPE_CHECKING:
    from opmix.preflight import Check


_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


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
        print_json({"ok": not failed(checks), "checks": [check.json() for check in checks]})
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
