"""`opmix ls` and `opmix view`: all runs below a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from opmix.cli.options import AsJson

Folder = Annotated[Path, typer.Argument(help="Folder with run folders in it, at any depth.")]


def ls(
    folder: Folder = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """List the runs below a folder: verb, state, mixture, gain; the newest first."""
    from opmix.domain import user_path
    from opmix.view.runs import find_runs

    lines = find_runs(user_path(folder))
    if as_json:
        sys.stdout.write(json.dumps([line.json() for line in lines], indent=2, ensure_ascii=False) + "\n")
        return
    from rich.box import SIMPLE
    from rich.table import Column, Table

    from opmix.progress.display import terminal

    table = Table(
        Column("run", overflow="fold"),
        "verb",
        "state",
        "mixture",
        "gain",
        "says",
        box=SIMPLE,
        padding=(0, 1),
        pad_edge=False,
    )
    for line in lines:
        top = sorted(line.mixture.items(), key=lambda item: -item[1])[:3]
        gain = "" if line.gain is None else f"{line.gain:+.4f}"
        shares = ", ".join(f"{name} {share:.0%}" for name, share in top) + (" ..." if len(line.mixture) > 3 else "")
        says = line.action if line.state == "finished" and line.action else line.told
        table.add_row(line.path, line.kind, line.state, shares, gain, says)
    console = terminal()
    console.print(table if lines else f"no run below {folder}")


def view(
    folder: Folder = Path("runs"),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 0,
    open_: Annotated[bool, typer.Option("--open", help="Open it in a browser.")] = False,
) -> None:
    """A page of all runs below a folder on this machine: live while they run, decisions compared, a life's history."""
    from opmix.domain import user_path
    from opmix.view.server import RunServer

    with RunServer(user_path(folder), port) as server:
        typer.echo(f"{server.address} shows the runs below {folder}; Ctrl-C ends it")
        if open_:
            import webbrowser

            webbrowser.open(server.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("ended")
