"""Files into values: YAML without its traps, and overrides."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from opmix.errors import ConfigError

_DEEPEST, _LARGEST = 40, 100_000
"""Levels and values of a file, its aliases written out: far above any configuration, far below what fills a memory."""


class _Loader(yaml.SafeLoader):
    """PyYAML's, with the floating-point numbers of YAML 1.2: `1e-3` is text to YAML 1.1, whose rules PyYAML follows.

    Brackets in brackets end while they are read: what looks for a key among them takes the square of their number.
    """

    def fetch_flow_collection_start(self, token: Any) -> None:
        """Called by PyYAML at every `[` and `{`."""
        if self.flow_level > _DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(token)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\d[\d_]*(\.[\d_]*)?|\.\d[\d_]*)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def parsed_yaml(text: str) -> Any:
    """The value of a YAML text.

    Raises:
        ConfigError: Keys that are given twice, keys with control characters, or aliases and levels without end.
        yaml.YAMLError: It is not YAML.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if problems := list(dict.fromkeys(_key_problems(node, {}, "", 0))):
            raise ConfigError(problems)
        return loader.construct_document(node)
    except RecursionError as error:
        raise ConfigError(f"is nested too deeply; expected at most {_DEEPEST} levels") from error
    finally:
        loader.dispose()


def _key_problems(node: yaml.Node, sizes: dict[int, int], path: str, depth: int) -> Iterator[str]:
    """Sentences about a node; `sizes` learns how many values each one holds, its aliases written out."""
    if depth > _DEEPEST:
        raise ConfigError(f"line {node.start_mark.line + 1}: is nested too deeply; expected at most {_DEEPEST} levels")
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        inner = [value for _, value in node.value]
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            place = f"{path}.{name}" if path else name
            if not name.isprintable():
                yield f"line {line}: key {name!r} holds a control character; expected printable text"
            if name in seen and name != "<<":
                yield f"{place}: given twice, in line {seen[name]} and in line {line}; keep one of them"
            seen.setdefault(name, line)
            if id(value) not in sizes:
                yield from _key_problems(value, sizes, place, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
        for index, value in enumerate(inner):
            if id(value) not in sizes:
                yield from _key_problems(value, sizes, f"{path}.{index}" if path else str(index), depth + 1)
    sizes[id(node)] = 1 + sum(sizes[id(value)] for value in inner)
    if sizes[id(node)] > _LARGEST:
        raise ConfigError(f"{path or 'the file'}: holds more than {_LARGEST:,} values with its aliases written out")


def verb_for(content: Mapping[str, Any]) -> str | None:
    """Which verb the keys of a file are for; None where they do not say."""
    keys = {"methods": "compare", "stages": "run", "budget": "search"}
    return next((verb for key, verb in keys.items() if key in content), None)


def read_yaml(path: Path, overrides: Sequence[str] = (), *, expected: str, verb: str | None = None) -> dict[str, Any]:
    """A YAML mapping with overrides applied.

    Args:
        path: The file.
        overrides: `a.b=c`.
        expected: Names its main keys in the error.
        verb: What it was given to.

    Raises:
        ConfigError: The file cannot be read, is not YAML, is for another verb, or holds something else.
    """
    try:
        content = parsed_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", where=str(path)) from error
    except ConfigError as error:
        raise ConfigError(error.problems, where=str(path)) from error
    if not isinstance(content, dict):
        raise ConfigError(f"holds {type(content).__name__}; expected a mapping with {expected}", where=str(path))
    if verb is not None and (other := verb_for(content)) not in (None, verb):
        raise ConfigError(f"is for `opmix {other}`, not `opmix {verb}`; use that verb", where=str(path))
    for override in overrides:
        apply_override(content, override)
    return content


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` (YAML value) in a nested mapping."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key.path=value, such as --set probes.steps=100")
    here: Any = content
    *parents, last = key.split(".")
    for parent in parents:
        if isinstance(here, list):
            here = _item(here, parent, override)
        else:
            inside = here.get(parent)
            if isinstance(inside, str):  # `model: NAME` and `domain: FILE` are short for a mapping
                inside = here[parent] = {"name" if parent == "model" else "train": inside}
            here = here.setdefault(parent, {}) if inside is None else inside
        if not isinstance(here, dict | list):
            raise ConfigError(f"--set {override}: {parent!r} holds {here!r}, not a mapping")
    try:
        value = parsed_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not valid YAML; quote it, as in --set 'key=\"text\"'"
        ) from error
    except ConfigError as error:
        raise ConfigError([f"--set {override}: {problem}" for problem in error.problems]) from error
    if isinstance(here, list):
        _item(here, last, override)
        here[int(last)] = value
    else:
        here[last] = value


def _item(items: list[Any], index: str, override: str) -> Any:
    if not index.isdecimal() or int(index) >= len(items):
        raise ConfigError(
            f"--set {override}: {index!r} is no item of a list of {len(items)}; expected 0 to {len(items) - 1}"
        )
    return items[int(index)]
