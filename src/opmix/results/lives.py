"""`compare.json` and `spent.json` of `opmix compare`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opmix.errors import StoreError
from opmix.results.files import read_document, read_object
from opmix.runs.files import write_json

COMPARE, SPENT = "compare.json", "spent.json"


def write_comparison(folder: Path, content: Mapping[str, Any], spent: Mapping[str, Any]) -> None:
    """Write `compare.json`, and what differs from run to run: `spent.json`."""
    write_json(folder / COMPARE, content)
    write_json(folder / SPENT, spent)


def read_comparison(folder: Path) -> dict[str, Any]:
    """Return the `compare.json` of a run folder, its `spent.json` as `spent`.

    Raises:
        StoreError: One is damaged, or `compare.json` is missing or of another version.
    """
    content, spent = _complete(folder / COMPARE, ("table", "entrants"), "`opmix compare`"), folder / SPENT
    return {**content, "spent": read_object(spent, "`opmix compare`") if spent.is_file() else {}}


def _complete(path: Path, wanted: tuple[str, ...], command: str) -> dict[str, Any]:
    content = read_document(path, command)
    missing = [key for key in wanted if not content.get(key)]
    if missing:
        raise StoreError(f"{path}: damaged: {missing[0]} is missing or empty; run {command} again to rewrite it")
    return content
