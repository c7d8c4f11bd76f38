"""Conversations, and the schemas of rows they are read from; see `RowSchema`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from opmix.data.hub import check_there
from opmix.data.readers import WholeRow, check_utf8
from opmix.data.sources import TOKEN_FORMATS, place, read_rows, resolve
from opmix.domain import CHAT_COLUMNS, Domain, Kind, RowSchema, Source, is_url
from opmix.errors import DataError

_OPTIONAL = ("tools", "system", "input")

ROLES = ("system", "developer", "user", "assistant", "tool")
_SHAREGPT = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant", "observation": "tool"}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn."""

    role: str
    content: str
    extra: tuple[tuple[str, Any], ...] = ()
    """Further keys, such as `reasoning_content` and `name`: a template may render them."""

    def plain(self) -> dict[str, Any]:
        """As chat templates want it."""
        return {"role": self.role, "content": self.content, **dict(self.extra)}


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns, at least one of them an assistant's that may be learned from."""

    messages: tuple[Message, ...]
    where: str
    """File and line, for messages."""
    first: int = 0
    """Index of the first turn that is not part of a given prompt."""
    tools: str = ""
    """JSON of what may be called, a list of schemas; empty: nothing."""

    def __len__(self) -> int:
        return sum(len(message.content) for message in self.messages)

    @property
    def answers(self) -> list[int]:
        """Indices of the assistant turns that may be learned from."""
        return [i for i, m in enumerate(self.messages) if i >= self.first and m.role == "assistant"]

    @property
    def prompt_key(self) -> str:
        """All before the last answer: the same for the same question, whatever the answer is."""
        turns = [[m.role, m.content, *([dict(m.extra)] if m.extra else [])] for m in self.messages[: self.answers[-1]]]
        return json.dumps([*turns, *([self.tools] if self.tools else [])], ensure_ascii=False, default=str)


class ChatRow:
    """Picks the conversation in a row; all rows of one source must have the same schema."""

    def __init__(self) -> None:
        self._schema: RowSchema | None = None

    def columns(self, names: Sequence[str], where: str) -> list[str]:
        """Those of its schema, and what may stand beside it."""
        wanted = (*CHAT_COLUMNS[_schema_of(names, where)], *_OPTIONAL)
        return [name for name in names if name in wanted]

    def __call__(self, row: Any, where: str, what: str = "key") -> Conversation:
        """The conversation.

        Raises:
            DataError: Another schema than the rows before, wrong roles, an empty answer or none.
        """
        if not isinstance(row, dict):
            raise DataError(f"{where}: a JSON {type(row).__name__}; expected one object a line with `messages`")
        tools = _tools(row.get("tools"), where)
        schema = _schema_of(row, where)
        if self._schema not in (None, schema):
            raise DataError(
                f"{where}: has {schema}, the rows before have {self._schema}; expected one schema in a source; "
                "make them two domains, or convert one"
            )
        self._schema = schema
        if len(CHAT_COLUMNS[schema]) == 1:
            return _checked(_turns(row[schema], where), 0, where, tools)
        if schema == "instruction and output":
            prompt, completion = _asked(row, where), _completion(row["output"], where)
        else:
            prompt, completion = _prompt(row["prompt"], where), _completion(row["completion"], where)
        return _checked((*prompt, *completion), len(prompt), where, tools)


def schema_of(names: Sequence[str]) -> RowSchema | None:
    """The schema of rows with these columns; None: no conversation."""
    return next((schema for schema, needed in CHAT_COLUMNS.items() if set(needed) <= set(names)), None)


def _schema_of(names: Mapping[str, Any] | Sequence[str], where: str) -> RowSchema:
    if isinstance(names, Mapping):  # a table's row has every column of the table
        names = [name for name, value in names.items() if value is not None]
    schema = schema_of(names)
    if schema is None or (schema == "messages" and "completion" in names):
        have = ", ".join(map(repr, list(names)[:8])) or "none"
        raise DataError(
            f"{where}: has {have}; expected either `messages`, `prompt` and `completion`, `conversations`, or "
            "`instruction` and "
            "`output`; rename the fields"
        )
    return schema


def _asked(row: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    """Alpaca's question: the instruction, and below it the input where there is one."""
    parts = [_text(row.get(key) or "", where, key) for key in ("system", "instruction", "input")]
    system = (Message("system", parts[0]),) if parts[0] else ()
    return (*system, Message("user", "\n\n".join(part for part in parts[1:] if part)))


def _turns(value: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise DataError(
            f"{where}: the turns are {_kind(value)}; expected a list of turns with role and content; repair or drop "
            "the row"
        )
    return tuple(_turn(item, number, where) for number, item in enumerate(value, 1))


def _turn(item: Any, number: int, where: str) -> Message:
    if isinstance(item, dict) and "role" not in item and "from" in item:  # ShareGPT
        renamed = {"role": _SHAREGPT.get(str(item["from"]), item["from"]), "content": item.get("value")}
        item = renamed | {k: v for k, v in item.items() if k not in ("from", "value")}
    if not isinstance(item, dict) or item.get("role") not in ROLES:
        role = repr(item.get("role")) if isinstance(item, dict) else _kind(item)
        raise DataError(
            f"{where}: role of turn {number} is {role}; expected one of {', '.join(ROLES)}; rename it or drop the row"
        )
    extra = {k: v for k, v in item.items() if k not in ("role", "content", "tool_calls") and v is not None}
    if calls := item.get("tool_calls"):
        extra["tool_calls"] = _calls(calls, number, where)
        if item.get("content") is None:
            item = {**item, "content": ""}
    content = _text(item.get("content"), where, f"content of turn {number}")
    return Message(item["role"], content, tuple(sorted(extra.items())))


def _calls(value: Any, number: int, where: str) -> list[Any]:
    """A turn's calls as chat templates take them: `{"type": "function", "function": {"name": ..., "arguments": {...}}}`."""
    found = []
    for call in value if isinstance(value, list) else [value]:
        inside = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(inside, Mapping) or not isinstance(inside.get("name"), str):
            raise DataError(
                f"{where}: turn {number} has a tool call {str(call)[:80]!r}; expected a function with a name and "
                "arguments; repair or drop the row"
            )
        given = inside.get("arguments")
        if isinstance(given, str):  # as the OpenAI interface writes them
            with suppress(ValueError):  # text that is no JSON is the template's to render
                given = json.loads(given)
        function = {**_filled(inside), "arguments": _filled(given if given is not None else {})}
        found.append({**_filled(call), "type": call.get("type") or "function", "function": function})
    return found


def _tools(value: Any, where: str) -> str:
    """The `tools` of a row: a list of schemas, or its JSON."""
    if not value:
        return ""
    try:
        tools = json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        tools = None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError(
            f"{where}: `tools` are {str(value)[:80]!r}; expected a list of JSON schemas; repair or drop the row"
        )
    return json.dumps(_filled(tools), ensure_ascii=False)


def _filled(value: Any) -> Any:
    """Without the keys that a table fills with null because another row has them."""
    if isinstance(value, Mapping):
        return {key: _filled(inner) for key, inner in value.items() if inner is not None}
    return [_filled(inner) for inner in value] if isinstance(value, list) else value


def _text(value: Any, where: str, what: str) -> str:
    """Text, or a list of parts that are all text."""
    if isinstance(value, list) and value:
        other = [p for p in value if not (isinstance(p, dict) and p.get("type", "text") == "text" and "text" in p)]
        if other:
            kind = repr(other[0].get("type")) if isinstance(other[0], dict) else _kind(other[0])
            raise DataError(f"{where}: {what} has a part of type {kind}; expected parts of type 'text'; drop the row")
        value = "".join(_text(part["text"], where, what) for part in value)
    if not isinstance(value, str):
        raise DataError(f"{where}: {what} is {_kind(value)}; expected text; repair or drop the row")
    check_utf8(value, where, what)
    return value


def _prompt(value: Any, where: str) -> tuple[Message, ...]:
    return (Message("user", _text(value, where, "prompt")),) if isinstance(value, str) else _turns(value, where)


def _completion(value: Any, where: str) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("assistant", _text(value, where, "completion")),)
    turns = _turns(value, where)
    if turns[0].role != "assistant":
        raise DataError(
            f"{where}: the completion starts with a turn of {turns[0].role!r}; expected 'assistant'; move it to the "
            "prompt"
        )
    return turns


def _checked(messages: tuple[Message, ...], first: int, where: str, tools: str = "") -> Conversation:
    conversation = Conversation(messages, where, first, tools)
    if not conversation.answers:
        roles = ", ".join(message.role for message in messages)
        raise DataError(f"{where}: no assistant turn (it has {roles}); expected at least one to learn; drop the row")
    said = [bool(m.content.strip()) or "tool_calls" in dict(m.extra) for m in messages]
    empty = [i for i in conversation.answers if not said[i]]
    if empty:
        raise DataError(f"{where}: assistant turn {empty[0] + 1} is empty; expected an answer to learn; drop the row")
    if conversation.answers[0] == 0:
        raise DataError(
            f"{where}: starts with the assistant's turn; expected a turn of the user before it; drop the row"
        )
    return conversation


def _kind(value: Any) -> str:
    return "null" if value is None else "empty" if value in ([], "", {}) else type(value).__name__


def iter_conversations(
    source: Source, *, domain: str | None = None, keep: Path | None = None
) -> Iterator[Conversation]:
    """The conversations of a source, streamed in a fixed order; `keep`: see `iter_documents`.

    Raises:
        DataError: A file is missing, damaged or has no rows, or a row is no conversation; see `ChatRow`.
    """
    pick = ChatRow()
    for file in resolve(source, domain=domain):
        yield from read_rows(file, source, pick, place(domain, file.path), keep)


def domain_kind(domain: Domain) -> Kind:
    """What a domain holds: as said, or as the first row of `train` shows.

    Raises:
        DataError: The source cannot be read.
    """
    return domain.kind or ("text" if row_schema(domain) == "text" else "chat")


def first_row(domain: Domain) -> Any:
    """The first row of `train`; None where it has no rows, or is a hub dataset out of reach, which whoever reads it will say.

    Raises:
        DataError: A file cannot be read.
    """
    file = resolve(domain.train, domain=domain.name)[0]
    if file.format in (*TOKEN_FORMATS, "text"):
        return None
    if file.format == "hub":
        return _first_of_hub(domain.train)
    rows = read_rows(file, domain.train, WholeRow(), place(domain.name, file.path))
    return next(islice(rows, 1), None)


@cache
def _first_of_hub(source: Source) -> Any:
    try:
        file = resolve(source)[0]
        if not is_url(file.path):
            check_there(source)
        return next(islice(read_rows(file, source, WholeRow(), file.path), 1), None)
    except DataError:
        return None


def row_schema(domain: Domain) -> RowSchema:
    """What the rows of a domain hold, as the first row of `train` shows; a hub dataset that cannot be had counts as text.

    Raises:
        DataError: The source cannot be read.
    """
    if domain.kind == "text":
        return "text"
    row = first_row(domain)
    if not isinstance(row, dict) or (domain.train.field in row and domain.kind is None):
        return "text"
    schema = schema_of([name for name, value in row.items() if value is not None])
    turns = row.get("conversations")
    sharegpt = schema == "conversations" and isinstance(turns, list) and turns and "from" in turns[0]
    return "sharegpt" if sharegpt else schema or "text"
