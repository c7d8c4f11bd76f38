"""How much text a source holds, estimated from the starts of a few of its files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.data.chat.conversation import iter_conversations
from opmix.data.choice import iter_questions
from opmix.data.inspect.samples import MAX_ROWS, read_head, read_rows
from opmix.data.sources import TOKEN_FORMATS, SourceFile, iter_documents, resolve
from opmix.data.token_files import open_tokens
from opmix.domain import Kind, Source, is_url
from opmix.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BYTES_PER_TOKEN = 4.0
"""Assumed where no tokenizer is at hand: English with a vocabulary of about 50,000. Smaller vocabularies need more tokens."""
SAMPLED_FILES = 8
_TOKENIZED_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Size:
    """How much there is."""

    files: int
    stored_bytes: int
    documents: int
    text_bytes: int
    tokens: int
    """Of text all of them; of conversations those of the answers, which alone are learned."""
    row_tokens: int
    """Those that fill sequences: of conversations the questions', too; what a chat template adds is not counted."""
    exact: bool
    """Whether documents were counted; tokens of text are always an estimate."""


def spread(files: Sequence[Any], limit: int) -> list[Any]:
    """At most `limit` of them, first and last included, evenly spread."""
    if len(files) <= limit:
        return list(files)
    return [files[round(i * (len(files) - 1) / (limit - 1))] for i in range(limit)]


def survey(
    source: Source, *, domain: str, kind: Kind = "text", tokenizer: PreTrainedTokenizerBase | None = None
) -> Size | None:
    """Read the first document of up to eight files of a source and estimate the size of all.

    Args:
        source: The source.
        domain: Whose it is, for messages.
        kind: Text, or conversations.
        tokenizer: What tokens are counted with; None: `BYTES_PER_TOKEN`.

    Returns:
        The estimate; None for a hub dataset, whose size nothing here can tell.

    Raises:
        DataError: A file is missing, damaged, lacks the field or holds no document.
    """
    files = resolve(source, domain=domain)
    seen = [(file, _measure(file, source, domain, kind, tokenizer)) for file in spread(files, SAMPLED_FILES)]
    sizes = [size for _, size in seen if size is not None]
    if not sizes:
        return None
    stored = sum(stored_bytes(Path(file.path)) for file in files)
    sampled = sum(size.stored_bytes for size in sizes)
    factor = stored / sampled if len(seen) < len(files) and sampled else 1.0
    documents, rows = sum(size.documents for size in sizes), sum(size.row_tokens for size in sizes)
    if source.max_tokens is not None and rows * factor > source.max_tokens:
        factor = max(source.max_tokens, rows / max(documents, 1)) / rows  # the document that completes them is read
    return Size(
        files=len(files),
        stored_bytes=stored,
        documents=round(documents * factor),
        text_bytes=round(sum(size.text_bytes for size in sizes) * factor),
        tokens=round(sum(size.tokens for size in sizes) * factor),
        row_tokens=round(rows * factor),
        exact=all(size.exact for size in sizes) and factor == 1,
    )


def stored_bytes(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) if path.is_dir() else path.stat().st_size


def tokens_of(texts: Sequence[str], text_bytes: int, documents: int, tokenizer: Any) -> int:
    """Tokens of `text_bytes` bytes in `documents` documents like `texts`, one end-of-sequence token each."""
    per_byte = 1 / BYTES_PER_TOKEN
    if tokenizer is not None and texts:
        sample, size = [], 0
        for text in texts:
            sample.append(text[:_TOKENIZED_BYTES])
            size += len(sample[-1].encode("utf-8", "replace"))
            if size >= _TOKENIZED_BYTES:
                break
        rows = tokenizer(sample, add_special_tokens=False, verbose=False)["input_ids"]
        per_byte = sum(map(len, rows)) / max(size, 1)
    return round(text_bytes * per_byte) + documents


def _measure(file: SourceFile, source: Source, domain: str, kind: Kind, tokenizer: Any) -> Size | None:
    path = Path(file.path)
    where = f"domain {domain!r}: {path}"
    if file.format in TOKEN_FORMATS:
        tokens = open_tokens(path, file.format, source.dtype, where).tokens
        if not len(tokens):
            raise DataError(f"{where}: holds no token; expected at least one document; remove it or make it again")
        _check_ids(tokens[: 1 << 20], tokenizer, where)
        return Size(1, stored_bytes(path), 0, round(len(tokens) * BYTES_PER_TOKEN), len(tokens), len(tokens), False)
    kind_of_file = source.format if is_url(file.path) else file.format
    alone = Source(
        paths=(file.path,), format=kind_of_file, field=source.field, split=source.split, config_name=source.config_name
    )
    if kind == "choice":
        return _measure_questions(file, alone, domain, tokenizer)
    if kind == "chat":
        return _measure_chats(file, alone, domain, tokenizer)
    first = next(iter_documents(alone, domain=domain), None)  # says what is wrong in the reader's own words
    if first is None:
        raise DataError(f"{where}: holds no document; expected at least one that is not empty; remove the file")
    if file.format == "hub":
        return None
    texts, documents, text_bytes, exact = _sample(file, alone, first)
    count = tokens_of(texts, text_bytes, documents, tokenizer)
    return Size(1, stored_bytes(path), documents, text_bytes, count, count, exact)


def _measure_chats(file: SourceFile, alone: Source, domain: str, tokenizer: Any) -> Size | None:
    if file.format == "hub":
        next(iter_conversations(alone, domain=domain), None)
        return None
    path = Path(file.path)
    chats = list(islice(iter_conversations(alone, domain=domain), MAX_ROWS))
    if not chats:
        raise DataError(f"domain {domain!r}: {path}: holds no conversation; expected at least one; remove the file")
    if file.format == "arrow":
        total, exact, stretch = (rows := len(_arrow_rows(path, alone))), True, rows / len(chats)
    else:
        found = read_rows(path, file.format)
        total, exact, stretch = found.total, found.exact, found.stretch
    whole = ["\n".join(message.content for message in chat.messages) for chat in chats]
    answers = ["\n".join(chat.messages[i].content for i in chat.answers) for chat in chats]
    sizes = [round(sum(len(text.encode("utf-8", "replace")) for text in texts) * stretch) for texts in (whole, answers)]
    return Size(
        1,
        stored_bytes(path),
        total,
        sizes[0],
        tokens_of(answers, sizes[1], total, tokenizer),
        tokens_of(whole, sizes[0], total, tokenizer),
        exact,
    )


def _measure_questions(file: SourceFile, alone: Source, domain: str, tokenizer: Any) -> Size | None:
    """Every question of a benchmark is read: there are few, and one without an answer must be told."""
    questions = list(iter_questions(alone, domain=domain)) if file.format != "hub" else []
    if file.format == "hub":
        next(iter_questions(alone, domain=domain), None)
        return None
    path = Path(file.path)
    if not questions:
        raise DataError(f"domain {domain!r}: {path}: holds no question; expected at least one; remove the file")
    whole = [context + option for q in questions for context, option in q.options]
    right = [q.options[q.answer][1] for q in questions]
    sizes = [sum(len(text.encode("utf-8", "replace")) for text in texts) for texts in (whole, right)]
    return Size(
        1,
        stored_bytes(path),
        len(questions),
        sizes[0],
        tokens_of(right, sizes[1], 0, tokenizer),
        tokens_of(whole, sizes[0], 0, tokenizer),
        True,
    )


def _sample(file: SourceFile, alone: Source, first: str) -> tuple[list[str], int, int, bool]:
    """Some texts of a file, its number of documents, its bytes of text, and whether that number is exact."""
    path = Path(file.path)
    if file.format == "text":
        head = read_head(path)
        return [first], 1, round(path.stat().st_size * head.expansion), True
    if file.format == "arrow":
        rows = _arrow_rows(path, alone)
        texts = [str(text) for text in rows[:MAX_ROWS][alone.field]]
        total, exact, stretch = len(rows), True, len(rows) / max(len(texts), 1)
    else:
        found = read_rows(path, file.format)
        texts = [row[alone.field] for row in found.rows if isinstance(row.get(alone.field), str)]
        total, exact, stretch = found.total, found.exact, found.stretch
    return texts, total, round(sum(len(text.encode("utf-8", "replace")) for text in texts) * stretch), exact


def _arrow_rows(folder: Path, source: Source) -> Any:
    import datasets

    found = datasets.load_from_disk(str(folder))
    return found[source.split or next(iter(found))] if isinstance(found, datasets.DatasetDict) else found


def _check_ids(tokens: Any, tokenizer: Any, where: str) -> None:
    if tokenizer is None:
        return
    highest, size = int(tokens.max()), max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))
    if highest >= size:
        raise DataError(
            f"{where}: token id {highest}; expected ids below {size}, the tokenizer's; check which tokenizer made the "
            "file, and `dtype`"
        )
