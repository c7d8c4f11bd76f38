"""Values of options: names and NAME=NUMBER, repeated or joined by commas."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from typer import echo
from typer.core import TyperCommand

from opmix.compute.budget import speaks
from opmix.errors import ConfigError
from opmix.runs.remote import url_of

_KEPT = {"search": "out", "run": "out", "compare": "out", "fit": "out", "demo": "out", "verify": "run"}
"""Verbs that write a run folder, and where they are told which: it may be a URL."""
_ONLY_WITH = {
    "eval": {
        "include_path": "tasks",
        "num_fewshot": "tasks",
        "chat": "tasks",
        "extractor": "domain",
        "max_new_tokens": "domain",
        "against_stage": "against",
    },
    "export": {"tokenizer": "materialise"},
    "fit": {"ratio_prefix": "from_", "metric_prefix": "from_"},
    "verify": {"max_rounds": "refine"},
}
"""By verb: options that say nothing without another."""
_NOT_WITH = {
    "discover": {"most": "domains"},
    "export": {"out": "into"},
    "init": {"places": "from_", "target": "from_"},
    "status": {"watch": "as_json"},
}
"""By verb: options that would be passed over beside another."""
_ALONE = {"export": "list_"}
"""By verb: the option beside which every other would be."""
_READ = {"status": "folder", "ls": "folder", "view": "folder", "report": "run", "export": "run", "card": "run"}
"""Verbs that read one, of which they get a copy."""


class Verb(TyperCommand):
    """A verb whose paths are ones: `~` is expanded, and what no system takes for a path is an error before the verb begins.

    A run folder may be a URL (`runs.run_folder`); the verb sees a folder of this machine.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Called by typer before the verb."""
        from opmix.domain import user_path

        rest = super().parse_args(ctx, args)
        if ctx.resilient_parsing:  # of a line that is still being typed
            return rest
        # Typer 0.29 has made paths of them by now; before it did so when it called the verb.
        later = {p.name for p in self.params if type(getattr(p, "type", None)).__name__ == "TyperPath"}
        urls = []
        for name, value in ctx.params.items():
            if isinstance(value, list | tuple):
                if name in later or any(isinstance(item, Path) for item in value):
                    ctx.params[name] = [user_path(item) for item in value]
            elif not isinstance(value, Path) and (name not in later or value is None):
                continue
            elif (url := url_of(value)) is None:
                ctx.params[name] = user_path(value)
            elif name in (_KEPT.get(self.name or ""), _READ.get(self.name or "")):
                urls.append((name, url))
            else:
                raise ConfigError(f"{name}: {url}; expected a path of this machine: only run folders may be addresses")
        self._check_company(ctx)
        for name, url in urls:
            self._open_folder(ctx, name, url)
        return rest

    def _check_company(self, ctx: Any) -> None:
        """No option is passed over in silence."""
        known, verb = {p.name: p for p in self.params}, self.name or ""

        def given(name: str) -> bool:
            return getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"

        def says_something(name: str) -> bool:
            return given(name) and ctx.params[name] != known[name].get_default(ctx)

        def called(name: str) -> str:
            return known[name].opts[0] if known[name].param_type_name == "option" else name.upper()

        problems = [
            f"{called(option)}: says nothing without {called(other)}; give both, or leave it out"
            for option, other in _ONLY_WITH.get(verb, {}).items()
            if given(option) and not says_something(other)
        ]
        problems += [
            f"{called(option)}: would be passed over beside {called(other)}; leave one of them out"
            for option, other in _NOT_WITH.get(verb, {}).items()
            if given(option) and says_something(other)
        ]
        if (alone := _ALONE.get(verb)) is not None and says_something(alone):
            problems = [
                f"{called(name)}: would be passed over beside {called(alone)}; leave one of them out"
                for name in known
                if name != alone and given(name)
            ]
        if problems:
            raise ConfigError(problems)

    def _open_folder(self, ctx: Any, name: str, url: str) -> None:
        """Have a run folder at a URL open until the verb is over, or a copy of one that is only read."""
        from opmix.runs.run_folder import copy_of, run_folder

        if name != _KEPT.get(self.name or ""):
            ctx.params[name] = copy_of(url)
            return
        folder = run_folder(url)
        ctx.params[name] = folder.__enter__()
        ctx.call_on_close(partial(_leave, folder, url))


def _leave(folder: AbstractContextManager[Path], url: str) -> None:
    """Called by click when a verb is over. Not every click tells what it ended by, which one rank alone must know: Python does."""
    kind, error, trace = sys.exc_info()
    folder.__exit__(kind, error, trace)
    if kind is None and speaks():
        echo(f"kept at {url}", err=True)


def names(values: Iterable[str] | None) -> tuple[str, ...]:
    """Names in order, each once.

    Examples:
        >>> names(["a,b", "c"])
        ('a', 'b', 'c')
    """
    return tuple(dict.fromkeys(n for value in values or () for n in (part.strip() for part in value.split(",")) if n))


def numbers(option: str, values: Iterable[str] | None) -> dict[str, float]:
    """NAME=NUMBER pairs; a name may hold `=`.

    Examples:
        >>> numbers("--weights", ["web=0.2,code=1"])
        {'web': 0.2, 'code': 1.0}

    Raises:
        ConfigError: No pair, a name that stands twice, or no finite number.
    """
    found: dict[str, float] = {}
    for part in (p for value in values or () for p in value.split(",") if p.strip()):
        name, equals, text = part.strip().rpartition("=")
        if not equals or not name:
            raise ConfigError(f"{option}: {part.strip()!r}; expected NAME=NUMBER, several joined by commas")
        if name in found:
            raise ConfigError(f"{option}: {name!r} stands twice; expected each name once")
        found[name] = number(f"{option} {name}", text)
    return found


def number(what: str, text: str) -> float:
    """A finite number.

    Raises:
        ConfigError: It is none.
    """
    try:
        value = float(text.replace("_", ""))
    except (ValueError, OverflowError):
        value = float("nan")
    if not abs(value) < float("inf"):
        raise ConfigError(f"{what}: {text!r}; expected a number such as 0.5 or 2e9")
    return value
