"""The `opmix` app. Every verb imports its work inside its function, so `--help` is instant."""

from __future__ import annotations

import os
import sys

import typer

from opmix.cli import (
    compare,
    demo,
    discover,
    doctor,
    evaluate,
    export,
    first_screen,
    fit,
    init,
    report,
    run,
    search,
    share,
    status,
    task,
    validate,
    verify,
    view,
)
from opmix.cli.last_net import DEBUG, last_net
from opmix.cli.values import Verb
from opmix.compute.budget import world_size
from opmix.runs.trace import command_began

app = typer.Typer(
    name="opmix",
    help="In what proportions should you mix your data for the next stretch of training?",
    invoke_without_command=True,
    callback=first_screen.first_screen,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo", cls=Verb)(demo.demo)
app.command("init", cls=Verb)(init.init)
app.command("validate", cls=Verb)(validate.validate)
app.command("discover", cls=Verb)(discover.discover)
app.command("search", cls=Verb)(search.search)
app.command("run", cls=Verb)(run.run)
app.command("status", cls=Verb)(status.status)
app.command("ls", cls=Verb)(view.ls)
app.command("view", cls=Verb)(view.view)
app.command("compare", cls=Verb)(compare.compare)
app.command("methods", cls=Verb)(compare.methods)
app.command("fit", cls=Verb)(fit.fit)
app.command("eval", cls=Verb)(evaluate.evaluate)
app.command("report", cls=Verb)(report.report)
app.command("export", cls=Verb)(export.export)
app.command("card", cls=Verb)(share.card)
app.command("push", cls=Verb)(share.push)
app.command("verify", cls=Verb)(verify.verify)
app.command("doctor", cls=Verb)(doctor.doctor)
app.command("task", hidden=True, cls=Verb)(task.task)


def main() -> None:
    """Entry point: whatever a verb raises becomes one message and an exit code; `--debug` may stand anywhere."""
    command_began()
    arguments = [a for a in sys.argv[1:] if a != DEBUG]
    try:
        with last_net(debug=len(arguments) < len(sys.argv) - 1):
            app(arguments, prog_name="opmix")
    except SystemExit as ended:
        if world_size() > 1:
            _part(ended.code)
        raise


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
