"""Datasets of the Hugging Face hub before they are read: its configurations and splits, and how large it is."""

from __future__ import annotations

from itertools import islice
from typing import Any

import datasets

from opmix.data.chat.conversation import iter_conversations
from opmix.data.hub import check_there, explained_hub
from opmix.data.inspect.samples import MAX_ROWS
from opmix.data.inspect.survey import Size, tokens_of
from opmix.data.readers import WholeRow
from opmix.data.sources import iter_documents, read_rows, resolve
from opmix.domain import Kind, Source
from opmix.errors import DataError


def parts_of(source: Source) -> dict[str, tuple[str, ...]]:
    """Splits by configuration, of the one that the source names or of all.

    Raises:
        DataError: See `check_there`.
    """
    check_there(source)
    name, _, revision = source.paths[0].partition("@")
    with explained_hub(name):
        found = datasets.get_dataset_config_names(name, revision=revision or None)
        wanted = found if source.config_name is None else [source.config_name]
        return {c: tuple(datasets.get_dataset_split_names(name, c, revision=revision or None)) for c in wanted}


def first_rows(source: Source, *, domain: str, limit: int = 100) -> list[dict[str, Any]]:
    """The first rows of a split as they are.

    Raises:
        DataError: It cannot be opened.
    """
    (file,) = resolve(source, domain=domain)
    return list(islice(read_rows(file, source, WholeRow(), f"domain {domain!r}: {file.path}"), limit))


def hub_size(source: Source, *, domain: str, kind: Kind, tokenizer: Any, most: int) -> tuple[Size, bool]:
    """Estimate a split's text from its first rows, cut at `most` tokens of text.

    Returns:
        The estimate, and whether the split ends before `most`; where the hub does not say how many rows there are, it is taken not to.

    Raises:
        DataError: It cannot be read, or is empty.
    """
    if kind == "chat":
        chats = list(islice(iter_conversations(source, domain=domain), MAX_ROWS + 1))
        whole = ["\n".join(m.content for m in chat.messages) for chat in chats]
        learned = ["\n".join(chat.messages[i].content for i in chat.answers) for chat in chats]
    else:
        whole = learned = list(islice(iter_documents(source, domain=domain), MAX_ROWS + 1))
    if not whole:
        raise DataError(f"domain {domain!r}: {source.paths[0]}: holds no document; expected at least one")
    seen = len(whole)
    sizes = [sum(len(text.encode("utf-8", "replace")) for text in texts) for texts in (whole, learned)]
    rows, taught = tokens_of(whole, sizes[0], seen, tokenizer), tokens_of(learned, sizes[1], seen, tokenizer)
    total = seen if seen <= MAX_ROWS else _rows(source)
    ends = total is not None and total / seen * rows <= most
    factor = total / seen if total is not None and ends else most / rows
    return (
        Size(
            files=1,
            stored_bytes=0,
            documents=round(seen * factor),
            text_bytes=round(sizes[0] * factor),
            tokens=round(taught * factor),
            row_tokens=round(rows * factor),
            exact=seen <= MAX_ROWS,
        ),
        ends,
    )


def _rows(source: Source) -> int | None:
    """Rows of a split as its card says; None: it does not."""
    name, _, revision = source.paths[0].partition("@")
    with explained_hub(name):
        splits = datasets.load_dataset_builder(name, source.config_name, revision=revision or None).info.splits or {}
    told = splits.get(source.split or "train")
    return None if told is None or not told.num_examples else int(told.num_examples)
