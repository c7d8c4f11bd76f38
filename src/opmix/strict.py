"""YAML into checked values: strict blocks, overrides, and errors that say where and what was meant. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from opmix.errors import ConfigError

_REMOVED = {
    "proxies.gradients": "removed in 0.1.0 (corrected slopes were no better than interpolated points); delete the key",
    "proxies.specialised": "removed in 0.1.0 (its optimum lost in two sets of domains of three); delete the key, "
    "decision.verify holds a move against a trained probe",
    "decision.arbiter": "removed in 0.1.0 (it moved once, wrongly, in eight searches); delete the key, `opmix verify` measures "
    "an optimum that was not acted on",
}
"""Settings that are gone: their block and name."""


def number(value: Any) -> Any:
    """YAML reads `2e9` and `1_000` as text; people write both for token counts."""
    if isinstance(value, str):
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(number), Field(gt=0)]


class Strict(BaseModel):
    """A block of a configuration: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def without_removed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A recorded configuration without settings that are gone since, where they were off."""
    return {
        block: {k: v for k, v in inside.items() if v or f"{block}.{k}" not in _REMOVED}
        if isinstance(inside, Mapping)
        else inside
        for block, inside in content.items()
    }


def read_yaml(path: Path, overrides: Sequence[str] = (), *, expected: str) -> dict[str, Any]:
    """A YAML mapping with overrides applied; `expected` names its main keys in the error.

    Raises:
        ConfigError: The file cannot be read, is not YAML, or holds something else.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise ConfigError(f"holds {type(content).__name__}; expected a mapping with {expected}", where=str(path))
    for override in overrides:
        apply_override(content, override)
    return content


_Model = TypeVar("_Model", bound=BaseModel)


def validated(kind: type[_Model], content: Mapping[str, Any], *, where: str | None = None) -> _Model:
    """A checked block.

    Raises:
        ConfigError: All problems at once, each with its dotted path; an unknown key with the nearest known one.
    """
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        raise ConfigError([_sentence(item, kind) for item in error.errors()], where=where) from error
    except ConfigError as error:
        raise ConfigError(error.problems, where=where) from error


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
            continue
        inside = here.get(parent)
        if isinstance(inside, str):  # `model: NAME` and `domain: FILE` are short for a mapping
            inside = here[parent] = {"name" if parent == "model" else "train": inside}
        here = here.setdefault(parent, {}) if inside is None else inside
        if not isinstance(here, dict | list):
            raise ConfigError(f"--set {override}: {parent!r} holds {here!r}, not a mapping")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(
            f"--set {override}: the value is not valid YAML; quote it, as in --set 'key=\"text\"'"
        ) from error
    if isinstance(here, list):
        _item(here, last, override)
        here[int(last)] = value
    else:
        here[last] = value


def _item(items: list[Any], index: str, override: str) -> Any:
    if not index.isdigit() or int(index) >= len(items):
        raise ConfigError(
            f"--set {override}: {index!r} is no item of a list of {len(items)}; expected 0 to {len(items) - 1}"
        )
    return items[int(index)]


def nearest(name: str, known: Sequence[str]) -> str:
    """The end of an error message: the nearest known name, or all of them."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {sorted(known)}"


def _sentence(error: Any, kind: type[BaseModel]) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        if (gone := _REMOVED.get(".".join(location[-2:]))) is not None:
            return f"{path}: {gone}"
        return f"{path}: unknown key{nearest(location[-1], _keys_at(location[:-1], kind))}"
    if error["type"] == "missing":
        return f"{path}: missing; it has no default"
    given = error.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{path}: {error['msg']}{shown}"


def _keys_at(location: Sequence[str], kind: type[BaseModel]) -> list[str]:
    """Field names of the model that a dotted path leads to."""
    model: Any = kind
    for part in location:
        fields = getattr(model, "model_fields", {})
        annotation = fields[part].annotation if part in fields else model
        model = _inner_model(annotation) or model
    return list(getattr(model, "model_fields", {}))


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner_model(argument)) is not None:
            return found
    return None
