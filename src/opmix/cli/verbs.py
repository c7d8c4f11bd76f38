"""The verbs of `opmix`, and apps of all or of some of them."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

import typer

from opmix.cli.first_screen import first_screen
from opmix.cli.values import Verb

VERBS = {
    "demo": "demo:demo",
    "init": "init:init",
    "validate": "validate:validate",
    "discover": "discover:discover",
    "search": "search:search",
    "run": "run:run",
    "status": "status:status",
    "ls": "view:ls",
    "view": "view:view",
    "compare": "compare:compare",
    "methods": "compare:methods",
    "fit": "fit:fit",
    "eval": "evaluate:evaluate",
    "report": "report:report",
    "export": "export:export",
    "card": "share:card",
    "push": "share:push",
    "verify": "verify:verify",
    "doctor": "doctor:doctor",
    "task": "task:task",
}
"""Where each one is, in this package, in the order of the help."""
_HIDDEN = frozenset({"task"})


def app_of(verbs: Iterable[str]) -> typer.Typer:
    """The app of some verbs: a command line that names one needs no other, and all of them take longer to read than `status`."""
    app = typer.Typer(
        name="opmix",
        help="In what proportions should you mix your data for the next stretch of training?",
        invoke_without_command=True,
        callback=first_screen,
        add_completion=True,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )
    for verb in verbs:
        module, function = VERBS[verb].split(":")
        work = getattr(import_module(f"opmix.cli.{module}"), function)
        app.command(verb, cls=Verb, hidden=verb in _HIDDEN)(work)
    return app
