"""A domain's training documents written out, as many as a mixture needs: token ids in a trainer's layout, or rows of JSON."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from opmix.data.cache import TokenSplit
from opmix.data.chat.conversation import Conversation, iter_conversations
from opmix.data.sampler import draw
from opmix.data.sources import holds_tokens, iter_documents
from opmix.data.split import SplitRule
from opmix.data.token_writers import TokenFormat
from opmix.domain import Domain
from opmix.errors import DataError, StoreError
from opmix.results.files import read_object
from opmix.runs.files import remove_leftovers, writing_prefix

ROWS = "train.jsonl"
_RECORD = ".written.json"
_PIECES = 1 << 20
_SHORTEST_PIECE = 1 << 12


@dataclass(frozen=True, kw_only=True)
class Written:
    """What lies in a domain's folder."""

    tokens: int
    """Supervised ones, which shares are of."""
    documents: int
    again: bool = False
    """Whether it was there already."""


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What may be chosen of a split: its documents, or stretches where they are not counted."""

    split: TokenSplit
    edges: npt.NDArray[np.int64]
    """(n + 1,)"""
    worth: npt.NDArray[np.int64]
    """(n,) supervised tokens of each."""

    @classmethod
    def of(cls, split: TokenSplit) -> Pieces:
        """Of a split."""
        edges = np.asarray(split.offsets)
        if not split.counted:
            length = max(_SHORTEST_PIECE, split.num_tokens // _PIECES)
            edges = np.append(np.arange(0, split.num_tokens, length), split.num_tokens)
        if split.mask is None:
            return cls(split=split, edges=edges, worth=np.diff(edges))
        learned = np.concatenate([[0], np.cumsum(split.mask, dtype=np.int64)])
        return cls(split=split, edges=edges, worth=np.diff(learned[edges]))

    def chosen(self, wanted: int, seed: int) -> npt.NDArray[np.bool_]:
        """As few as are worth `wanted` tokens, drawn from all over the split, (n,); all where all are worth less."""
        order = draw(self.split.domain, seed, 0, len(self.worth), len(self.worth))
        enough = int(np.searchsorted(np.cumsum(self.worth[order]), wanted)) + 1
        kept = np.zeros(len(self.worth), dtype=np.bool_)
        kept[order[:enough]] = True
        return kept

    def ids(self, kept: npt.NDArray[np.bool_]) -> Iterator[npt.NDArray[np.integer[Any]]]:
        """Token ids of the documents of those that are kept, in their order; the edges of a stretch may cut one."""
        for i in np.flatnonzero(kept).tolist():
            first, last = int(self.edges[i]), int(self.edges[i + 1])
            ids = np.asarray(self.split.tokens[first:last])
            begins = self.split.starts(first + 1, last) if not self.split.counted else ()
            yield from np.split(ids, np.asarray(begins, dtype=np.int64) - first)


def write_tokens(pieces: Pieces, kept: npt.NDArray[np.bool_], form: TokenFormat, size: int, length: int) -> Any:
    """What writes chosen documents as token ids into a folder.

    Args:
        pieces: Of the domain's training split.
        kept: (n,) the chosen ones.
        form: The trainer's layout.
        size: Of the vocabulary.
        length: Tokens of a sequence, for layouts of sequences.
    """
    return lambda folder: form.write(folder, pieces.ids(kept), "<u2" if size <= 1 << 16 else "<u4", length)


def write_rows(
    domain: Domain, pieces: Pieces, kept: npt.NDArray[np.bool_], tokenizer: PreTrainedTokenizerBase
) -> Callable[[Path], None]:
    """What writes chosen documents as rows of JSON into a folder: `text`, or `messages` (and `tools`)."""

    def write(folder: Path) -> None:
        with (folder / ROWS).open("w", encoding="utf-8") as file:
            for row in _rows(domain, pieces, kept, tokenizer):
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")

    return write


def _rows(
    domain: Domain, pieces: Pieces, kept: npt.NDArray[np.bool_], tokenizer: PreTrainedTokenizerBase
) -> Iterator[dict[str, Any]]:
    if holds_tokens(domain.train, domain=domain.name):
        yield from ({"text": tokenizer.decode(ids.tolist(), skip_special_tokens=True)} for ids in pieces.ids(kept))
        return
    rule, masked = SplitRule.of(domain), pieces.split.mask is not None
    found: Iterator[Any] = (iter_conversations if masked else iter_documents)(domain.train, domain=domain.name)
    mine = (d for d in found if rule.split_of(d.prompt_key if isinstance(d, Conversation) else d) == "train")
    for keep in kept.tolist():
        if (document := next(mine, None)) is None:
            raise DataError(
                f"domain {domain.name!r}: fewer documents than were tokenised; expected the files that the cache was "
                "made of; run the command again"
            )
        if keep:
            yield _chat_row(document, domain) if isinstance(document, Conversation) else {"text": document}


def _chat_row(chat: Conversation, domain: Domain) -> dict[str, Any]:
    given = any(message.role == "assistant" for message in chat.messages[: chat.first])
    if given or (domain.chat.supervise == "last" and len(chat.answers) > 1):
        raise DataError(
            f"{chat.where}: answers that are not learned from, which a row of messages cannot say; expected one "
            "answer; convert such rows yourself"
        )
    tools = {"tools": json.loads(chat.tools)} if chat.tools else {}
    return {"messages": [message.plain() for message in chat.messages], **tools}


def write_folder(folder: Path, key: str, made: Written, write: Callable[[Path], None]) -> Written:
    """A folder whole or not at all; one that is there under the same key is kept.

    Raises:
        StoreError: Something else is there, or the disk is full.
    """
    if folder.exists():
        record = read_object(folder / _RECORD, "`opmix export`") if (folder / _RECORD).is_file() else {}
        if record.get("key") != key:
            raise StoreError(
                f"{folder}: holds something else; expected nothing, or what the same export wrote; remove it, or "
                "choose another --materialise folder"
            )
        return Written(tokens=made.tokens, documents=made.documents, again=True)
    temporary = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder.parent)
        temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=writing_prefix()))
        write(temporary)
        record = {"key": key, "tokens": made.tokens, "documents": made.documents}
        (temporary / _RECORD).write_text(json.dumps(record), encoding="utf-8")
        temporary.chmod(0o755)
        os.rename(temporary, folder)  # noqa: PTH104 (of a folder, onto nothing)
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be written ({error.strerror or error}); free space, and run the command again: finished "
            "domains are kept"
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return made
