"""The `opmix` command. Every verb imports its work inside its function, so `--help` is instant."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from opmix.cli.last_net import DEBUG, last_net
from opmix.cli.verbs import VERBS, app_of
from opmix.compute.budget import world_size
from opmix.runs.trace import command_began

if TYPE_CHECKING:
    from typer import Typer


def main() -> None:
    """Entry point: whatever a verb raises becomes one message and an exit code; `--debug` may stand anywhere."""
    command_began()
    arguments = [a for a in sys.argv[1:] if a != DEBUG]
    try:
        with last_net(debug=len(arguments) < len(sys.argv) - 1):
            _app(arguments[:1])(arguments, prog_name="opmix")
    except SystemExit as ended:
        if world_size() > 1:
            _part(ended.code)
        raise


def _app(first: list[str]) -> Typer:
    if first and first[0] in VERBS:
        return app_of(first)
    from opmix.cli.app import app

    return app


def _part(code: object) -> None:
    """End one of several ranks: those that the others wait for in vain would hang if they ended in the usual way."""
    from opmix.runs.ranks import part

    if code:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)
    part()


if __name__ == "__main__":
    main()
