"""Do conversations fit: of every chat source the first ones, rendered and counted as training will see them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from opmix.data.chat.conversation import iter_conversations
from opmix.data.chat.encode import encode_chats
from opmix.data.chat.template import chat_format
from opmix.domain import SPLITS, Domain
from opmix.errors import DataError
from opmix.preflight.checks import Findings

_LOOKED_AT = 200
_MANY = 0.02
"""Share of conversations that are left out or cut from which it is said."""


def check_fit(
    domains: Mapping[str, Domain], tokenizer: Any, length: int, findings: Findings, *, base: Path, template: str | None
) -> None:
    """Say of chat domains how many conversations are too long, and which of their splits would be left with none.

    Args:
        domains: Those that hold conversations and can be read.
        tokenizer: The model's, with a chat template unless one is given.
        length: Tokens of a row.
        findings: Where it goes.
        base: Folder of the configuration.
        template: Jinja text of `model.chat_template`; None: the tokenizer's own.
    """
    for name, given in domains.items():
        domain = given.located(base, template)
        for split in SPLITS:
            source = getattr(domain, split)
            if source is None or source.format == "hub":
                continue
            try:
                rows = list(islice(iter_conversations(source, domain=name), _LOOKED_AT + 1))
                chat = chat_format(tokenizer, domain.chat, domain=name)
                lengths = encode_chats(chat, tokenizer, rows[:_LOOKED_AT]).lengths.tolist() if rows else list[int]()
            except DataError as error:
                findings.fail(f"domains.{name}.{split}", str(error))
                continue
            seen, long = len(lengths), int(sum(size > length for size in lengths))
            every, kept = len(rows) <= _LOOKED_AT, domain.chat.truncate != "drop"
            which = f"{seen} conversations" if every else f"the first {seen} conversations"
            where, remedy = f"domains.{name}.{split}", "raise sequence_length, or set the domain's chat.truncate"
            if long == seen and every and not kept:
                findings.fail(where, f"none of {which} fits into sequence_length {length}", remedy)
            elif long > _MANY * seen:
                what = f"cut on the {domain.chat.truncate}" if kept else "left out"
                findings.warn(
                    where, f"of {which} {long} ({long / seen:.0%}) are longer than {length} tokens and {what}", remedy
                )
