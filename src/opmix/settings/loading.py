"""Values into checked settings, with errors that say where and what was meant. Imports no torch."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import ValidationError

from opmix.errors import ConfigError
from opmix.settings import hints_of, keys_of, settings_class
from opmix.settings.checker import checker

_T = TypeVar("_T")


_REMOVED = {
    "proxies.gradients": "removed in 0.1.0 (corrected slopes were no better than interpolated points); delete the key",
    "proxies.specialised": "removed in 0.1.0 (its optimum lost in two sets of domains of three); delete the key, "
    "decision.verify holds a move against a trained probe",
    "decision.arbiter": "removed in 0.1.0 (on two further sets of domains its only move was wrong); delete the key, "
    "`opmix verify` measures an optimum that was not acted on",
}
"""Settings that are gone: their block and name."""


def without_removed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration without settings that are gone since, where they were off."""
    return {
        block: {k: v for k, v in inside.items() if v or f"{block}.{k}" not in _REMOVED}
        if isinstance(inside, Mapping)
        else inside
        for block, inside in content.items()
    }


def validated(kind: type[_T], content: Any, *, where: str | None = None) -> _T:
    """Checked settings.

    Raises:
        ConfigError: All problems at once, each with its dotted path; an unknown key with the nearest known one.
    """
    try:
        made: _T = checker(cast("Any", kind)).validate_python(content)
    except ValidationError as error:
        raise ConfigError([p for item in error.errors() for p in _sentences(item, kind)], where=where) from error
    return made


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {sorted(known)}"


def under(place: str, problem: str) -> str:
    """A problem with the place in front of it: `a` and `b: text` are `a.b: text`, `a` and `text` are `a: text`."""
    if not place:
        return problem
    return f"{place}.{problem}" if re.match(r"[\w.<>\-]+: ", problem) else f"{place}: {problem}"


def _sentences(error: Any, kind: Any) -> list[str]:
    """Pydantic's account of a problem, as a user can read it."""
    kind_of_error, context = error["type"], error.get("ctx", {})
    location, keys = _place(error["loc"], kind, context.get("key") if kind_of_error == "unknown" else None)
    path = ".".join(location)
    if kind_of_error == "problems":
        return [under(path, problem) for problem in context["problems"]]
    if kind_of_error in ("unknown", "extra_forbidden", "unexpected_keyword_argument"):
        if (gone := _REMOVED.get(".".join(location[-2:]))) is not None:
            return [f"{path}: {gone}"]
        return [f"{path}: unknown key{nearest(location[-1], keys)}"]
    if kind_of_error in ("missing", "missing_argument"):
        return [f"{path}: missing; it has no default"]
    text = "Input should be a mapping of settings" if kind_of_error == "dataclass_type" else error["msg"]
    given = error.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return [f"{path}: {text}{shown}"]


def _place(location: Sequence[Any], kind: Any, key: str | None) -> tuple[list[str], list[str]]:
    """A place as the file writes it, without inlined blocks; and the keys that are known where its last part stands.

    `key` is one more part that is no field.
    """
    shown, hint, known = list[str](), kind, list[str]()
    for part in location:
        here = settings_class(hint)
        hints = {} if here is None else hints_of(here)
        if here is not None:
            known = keys_of(here)
        if part not in hints or part in known:
            shown.append(str(part))
        hint = hints.get(part, hint)
    if key is not None:
        shown, known = [*shown, key], keys_of(settings_class(hint))
    return shown, known
