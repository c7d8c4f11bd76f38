"""What a settings class is: one frozen dataclass that is the Python API, the schema of a file and the record of a run."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass, replace
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    TypeVar,
    cast,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from opmix.errors import ConfigError

if TYPE_CHECKING:  # read by pydantic, which is slow to import, where a file is read
    from pydantic import GetCoreSchemaHandler

_T = TypeVar("_T")

_POWERS = {"k": 3, "m": 6, "b": 9, "g": 9, "t": 12}
_NUMBER = re.compile(r"([-+]?[\d_]*\.?[\d_]+(?:[eE][-+]?\d+)?)\s*([kKmMbBgGtT]?)")


def number(value: Any) -> Any:
    """A count as people write it: `2e9`, `1_000`, `500M`, `2B`; anything else is returned as it is.

    Examples:
        >>> number("2B"), number("1.5k"), number(2e6), number("many")
        (2000000000, 1500, 2000000, 'many')
    """
    if isinstance(value, str) and (found := _NUMBER.fullmatch(value.strip())):
        power = _POWERS.get(found[2].lower(), 0)
        value = float(f"{found[1].replace('_', '')}") * 10**power
    return int(value) if isinstance(value, float) and value.is_integer() else value


_BOUND_WORDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """Marks the annotation of a number: what a file may say."""

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Read by pydantic."""
        return {**handler(source), **{name: bound for name, bound in vars(self).items() if bound is not None}}

    def unmet(self, value: float) -> str:
        """What was expected of a number that is outside; empty: it is inside."""
        holds = {"gt": operator.gt, "ge": operator.ge, "lt": operator.lt, "le": operator.le}
        given = {name: bound for name, bound in vars(self).items() if bound is not None}
        if all(holds[name](value, bound) for name, bound in given.items()):
            return ""
        return " and ".join(f"{_BOUND_WORDS[name]} {bound:g}" for name, bound in given.items())


@dataclass(frozen=True)
class ReadAs:
    """Marks an annotation: a function of what a file says, called before it is checked."""

    convert: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Read by pydantic."""
        from pydantic_core import core_schema

        return core_schema.no_info_before_validator_function(self.convert, handler(source))


@dataclass(frozen=True)
class Then:
    """Marks an annotation: a function of the checked value, called last."""

    convert: Callable[[Any], Any]

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Read by pydantic."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self.convert, handler(source))


Count = Annotated[int, Bounds(gt=0, le=10**15), ReadAs(number)]
"""A whole number above zero, and below what anything can be counted to."""
Processes = Annotated[int, Bounds(gt=0, le=1024), ReadAs(number)]
"""Of one machine."""
Share = Annotated[float, Bounds(ge=0, le=1)]
Positive = Annotated[float, Bounds(gt=0)]
NotNegative = Annotated[float, Bounds(ge=0)]
Inside = Annotated[float, Bounds(gt=0, lt=1)]
"""Between zero and one, neither of them."""


class Given(dict[str, Any]):
    """Settings that were given, of a class or of a library: laid over others they win, key by key."""

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Read by pydantic."""
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(cls, core_schema.dict_schema(core_schema.str_schema()))


def internal(*, default: Any) -> Any:
    """A field that code sets: no key of a file, and not recorded."""
    return field(default=default, metadata={"internal": True})


def inline(*, default_factory: Any = MISSING) -> Any:
    """A field whose own fields are keys of the file beside those of the class that holds it; required without a default."""
    return field(default_factory=default_factory, metadata={"inline": True})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field, internal, inline))
def settings(cls: type[_T]) -> type[_T]:
    """Make a class a settings class: frozen, keyword-only and slotted; from a file, unknown keys are errors.

    Rules over several fields are raised as `ConfigError` in `__post_init__`, each sentence starting with the field's name. A class
    method `from_short(value)` may turn short forms, such as a string for a path, into the mapping that they stand for.
    """
    made: Any = dataclass(frozen=True, kw_only=True, slots=True)(cls)
    made.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}
    made.__get_pydantic_core_schema__ = classmethod(_schema)
    result: type[_T] = made
    return result


def keys_of(kind: Any) -> list[str]:
    """Keys that a file may hold for a settings class."""
    keys: list[str] = []
    for item in fields(kind):
        if item.metadata.get("inline"):
            keys += keys_of(_hints(kind)[item.name])
        elif not item.metadata.get("internal"):
            keys.append(item.name)
    return keys


def as_json(value: Any) -> Any:
    """Settings as a file holds them: mappings, lists, strings and numbers."""
    if is_dataclass(value):
        content: dict[str, Any] = {}
        for item in fields(value):
            inner = as_json(getattr(value, item.name))
            if item.metadata.get("inline"):
                content |= inner
            elif not item.metadata.get("internal"):
                content[item.name] = inner
        return content
    if isinstance(value, Mapping):
        return {key: as_json(inner) for key, inner in value.items()}
    return [as_json(inner) for inner in value] if isinstance(value, list | tuple) else value


def changed(base: _T, **changes: Any) -> _T:
    """A copy of settings with some fields changed; its rules are checked again."""
    made: _T = replace(base, **changes)  # type: ignore[type-var]
    return made


def overlaid(base: _T, given: Mapping[str, Any]) -> _T:
    """Settings with those laid over them that were given; blocks (`Given`) are laid over key by key.

    Raises:
        ConfigError: Rules over several fields that do not hold together.
    """
    changes = {}
    for name, value in given.items():
        current = getattr(base, name)
        if isinstance(value, Given) and isinstance(current, Mapping):
            value = Given({**current, **value})
        elif isinstance(value, Given) and is_dataclass(current):
            value = overlaid(current, value)
        elif isinstance(value, Given) and (kind := settings_class(_hints(type(base))[name])) is not None:
            value = kind(**value)
        changes[name] = value
    return changed(base, **changes)


@dataclass(frozen=True)
class PartOf:
    """Marks an annotation: some settings of a class, each checked as the class would."""

    kind: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> Any:
        """Read by pydantic."""
        from pydantic_core import core_schema

        known = {
            name: core_schema.typed_dict_field(handler.generate_schema(_partial(hint)), required=False)
            for name, hint in _hints(self.kind).items()
            if name in keys_of(self.kind)
        }
        checked = core_schema.typed_dict_schema(
            known, extra_behavior="forbid", config={"allow_inf_nan": False}, cls_name=self.kind.__name__
        )
        return core_schema.no_info_after_validator_function(Given, checked)


def settings_class(hint: Any) -> Any:
    """The settings class that an annotation is of or marks, a part of it or an optional one included; else None."""
    if isinstance(hint, type) and is_dataclass(hint):
        return hint
    for inner in (*getattr(hint, "__metadata__", ()), *get_args(hint)):
        if isinstance(inner, PartOf):
            return inner.kind
        if (found := settings_class(inner)) is not None:
            return found
    return None


def hints_of(kind: Any) -> dict[str, Any]:
    """Annotations of a settings class by field."""
    return _hints(kind)


def _hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind, include_extras=True)


def _partial(hint: Any) -> Any:
    """The annotation, of a block of settings as a part of them."""
    if isinstance(get_origin(hint), type) and issubclass(get_origin(hint), Mapping):
        return hint  # named blocks: each is given as a whole
    kinds = [k for k in (hint, *get_args(hint)) if isinstance(k, type) and is_dataclass(k)]
    return Annotated[Given, PartOf(kinds[0])] if len(kinds) == 1 and not hasattr(hint, "__metadata__") else hint


def _schema(cls: Any, source: Any, handler: GetCoreSchemaHandler) -> Any:
    """How pydantic reads a settings class: short forms, inlined blocks, and rules that name their place."""
    from pydantic_core import core_schema

    def read(value: Any, validate: Callable[[Any], Any]) -> Any:
        if isinstance(value, cls):
            return value
        short = getattr(cls, "from_short", None)
        try:
            value = value if short is None else short(value)
            return validate(_nested(cls, value) if isinstance(value, Mapping) else value)
        except ConfigError as error:
            raise problems_error(error.problems) from error

    # The name goes to the outer schema: pydantic takes what it finds by name where the class occurs again.
    inner = dict(handler.resolve_ref_schema(handler(source)))
    name: Any = inner.pop("ref", None)
    return core_schema.no_info_wrap_validator_function(read, cast("Any", inner), ref=name)


def problems_error(problems: Iterable[str]) -> ValueError:
    """What `opmix.settings.loading.validated` turns into a `ConfigError` again, with the place in front."""
    from pydantic_core import PydanticCustomError

    return PydanticCustomError("problems", "rules are broken", {"problems": list(problems)})


def _nested(cls: Any, value: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of inlined blocks moved into them; keys that only code may set are refused."""
    from pydantic_core import PydanticCustomError

    content = dict(value)
    marked: list[Field[Any]] = [f for f in fields(cls) if f.metadata]
    for item in marked:
        if item.metadata.get("internal") and item.name in content:
            raise PydanticCustomError("unknown", "unknown key", {"key": item.name})
        if item.metadata.get("inline") and not is_dataclass(content.get(item.name)):
            if item.name in content:
                raise PydanticCustomError("unknown", "unknown key", {"key": item.name})
            inner = keys_of(_hints(cls)[item.name])
            content[item.name] = {key: content.pop(key) for key in inner if key in content}
    return content
