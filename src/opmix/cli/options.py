"""Options and output that verbs share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path | None, typer.Option("--out", help="Run folder; running again with the same inputs resumes.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output, nothing else.")]
Changes = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Change one setting; may be repeated.")
]


def print_json(content: object) -> None:
    """Indented, on standard output."""
    from opmix.runs.files import plain

    sys.stdout.write(json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")
