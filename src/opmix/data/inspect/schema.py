"""Which key of a row is the text; or that the rows are chats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from opmix.domain import CHAT_COLUMNS

USUAL_FIELDS = ("text", "content", "document", "raw_content", "body", "article", "code", "passage", "markdown")
"""Names that hold the text more often than not, most common first."""


@dataclass(frozen=True, slots=True)
class Schema:
    """What rows hold."""

    kind: Literal["text", "chat", "none"]
    field: str = ""
    """The key of the text or of the chat."""
    others: tuple[str, ...] = ()
    """Further keys that always hold text: candidates that were not chosen."""


def schema_of(rows: Sequence[dict[str, Any]]) -> Schema:
    """The schema that all rows share.

    Rows without a `text` that have the columns of a conversation (`opmix.domain.CHAT_COLUMNS`) are conversations. The text is the first of
    `USUAL_FIELDS` that holds a string in every row; else the key, filled everywhere, that holds the most characters.

    Examples:
        >>> schema_of([{"id": "7", "content": "some words"}]).field
        'content'
        >>> schema_of([{"messages": [{"role": "user", "content": "hi"}]}]).kind
        'chat'
        >>> schema_of([{"text": "a"}, {"body": "b"}]).kind
        'none'
    """
    if not rows:
        return Schema("none")
    shared = [key for key in rows[0] if all(key in row for row in rows)]
    strings = [key for key in shared if all(isinstance(row[key], str) for row in rows)]
    usual = [key for key in USUAL_FIELDS if key in strings]
    if "text" not in strings:  # as `opmix.data.row_schema` tells them
        for chat, needed in CHAT_COLUMNS.items():
            lists = [key for key in needed if key in ("messages", "conversations")]
            if set(needed) <= set(shared) and all(_is_chat(row[key]) for key in lists for row in rows):
                return Schema("chat", chat)
    if not strings:
        return Schema("none")
    longest = max(strings, key=lambda key: sum(len(row[key]) for row in rows))
    chosen = usual[0] if usual else longest
    return Schema("text", chosen, tuple(key for key in strings if key != chosen))


def _is_chat(value: Any) -> bool:
    """A list of messages, as most chat data have them."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and {"role", "from"} & set(m) for m in value)
    )
