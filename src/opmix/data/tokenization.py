"""From documents to token ids: any Hugging Face tokenizer, in this process or several, streamed."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from opmix.errors import ConfigError, DataError

if TYPE_CHECKING:
    from opmix.data.chat.conversation import Conversation
    from opmix.data.choice.question import Question

Document: TypeAlias = "str | npt.NDArray[np.integer[Any]] | Conversation | Question"
"""Text, the ids (n,) of a document that is already tokenised, a conversation, or a question with options."""

PIECE = 1 << 20
"""A text of more characters is tokenised in pieces cut at a line end or space: a fast tokenizer keeps a
hundred bytes and more per token while it works."""
BATCH_DOCUMENTS = 512
BATCH_SIZE = 1 << 21
"""Characters (or ids) per batch; a single longer document is a batch of its own."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """The tokens of a batch of n documents."""

    ids: npt.NDArray[np.uint32]
    """All documents' ids, each ended by EOS, one after the other."""
    lengths: npt.NDArray[np.int64]
    """(n,) ids per document, EOS included."""
    byte_counts: npt.NDArray[np.int64]
    """(n,) UTF-8 bytes per document; of a conversation, of what is supervised."""
    mask: npt.NDArray[np.uint8] | None = None
    """1 for every id that is supervised, else 0; None: all are."""


Encode: TypeAlias = "Callable[[PreTrainedTokenizerBase, Sequence[Document]], Encoded]"
"""Tokenises a batch of documents."""


def check_tokenizer(tokenizer: object) -> None:
    """Refuse what is no tokenizer, such as its name.

    Raises:
        ConfigError: It is none.
    """
    if not callable(getattr(tokenizer, "get_vocab", None)):
        raise ConfigError(
            f"tokenizer: a {type(tokenizer).__name__}; expected a tokenizer object, such as "
            "AutoTokenizer.from_pretrained(...)"
        )


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """One more than the highest id the tokenizer can yield; `len(tokenizer)` is less when ids have gaps."""
    return max(len(tokenizer), 1 + max(tokenizer.get_vocab().values(), default=-1))


def eos_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that ends a document.

    Raises:
        DataError: The tokenizer has none.
    """
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"tokenizer {tokenizer.name_or_path or type(tokenizer).__name__}: has no end-of-sequence token; "
            "expected one to end documents with; set tokenizer.eos_token to a token of its vocabulary"
        )
    return int(tokenizer.eos_token_id)


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """A hash of all that decides which ids a text becomes: 32 hexadecimal digits.

    Truncation and padding are left out: they are off here, and calls elsewhere change them in passing.
    """
    parts: dict[str, Any] = {"eos": tokenizer.eos_token_id, "special": bool(tokenizer.split_special_tokens)}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        state = json.loads(backend.to_str())
        parts["backend"] = {name: part for name, part in state.items() if name not in ("truncation", "padding")}
    else:
        parts["class"] = type(tokenizer).__qualname__
        parts["vocabulary"] = tokenizer.get_vocab()
        parts["added"] = {str(index): str(token) for index, token in tokenizer.added_tokens_decoder.items()}
        # Merges and scores of a slow tokenizer live in its vocabulary file only.
        file = Path(str(getattr(tokenizer, "vocab_file", None) or ""))
        parts["file"] = hashlib.blake2b(file.read_bytes()).hexdigest() if file.is_file() else ""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _pieces(text: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE:
        middle, stop = start + PIECE // 2, start + PIECE
        cut = text.rfind("\n", middle, stop)
        cut = cut if cut > 0 else text.rfind(" ", middle, stop)
        cut = cut if cut > 0 else stop
        yield text[start:cut]
        start = cut
    yield text[start:]


def _grouped(pieces: Iterable[tuple[int, str]]) -> Iterator[list[tuple[int, str]]]:
    group: list[tuple[int, str]] = []
    size = 0
    for owner, piece in pieces:
        if group and size + len(piece) > BATCH_SIZE:
            yield group
            group, size = [], 0
        group.append((owner, piece))
        size += len(piece)
    if group:
        yield group


def bos_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The id that the tokenizer itself puts before every text; None: it puts none."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return None
    ids = tokenizer("a", padding=False, truncation=False)["input_ids"]
    return int(bos) if list(ids)[:1] == [bos] else None


def _ids(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> list[list[int]]:
    """The ids of each text and nothing else: no special tokens, padding or truncation.

    Where the tokenizer's own call is that of all fast ones, its back end is asked for ids without offsets: a fifth less time.
    """
    kind = type(tokenizer)
    plain = getattr(kind, "_encode_plus", None) is PreTrainedTokenizerFast._encode_plus
    plain = plain and kind.__call__ is PreTrainedTokenizerBase.__call__
    rows = tokenizer(
        texts[:1] if plain else texts,  # also sets what the back end does
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,  # no warning that a document is longer than the model's window
    )["input_ids"]
    if not plain:
        return list(rows)
    rest = tokenizer.backend_tokenizer.encode_batch_fast(texts[1:], add_special_tokens=False)
    return [*rows, *(encoding.ids for encoding in rest)]


def encode_texts(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, bos: int | None = None) -> Encoded:
    """Tokenise n texts: no special tokens but one EOS after each, and `bos` before each that does not spell it out itself.

    A special token spelt out in a text becomes that token, as it does in rendered chats.
    """
    end = eos_id(tokenizer)
    lengths = np.zeros(len(texts), dtype=np.int64)
    parts: list[npt.NDArray[np.uint32]] = []
    last = -1
    for group in _grouped((owner, piece) for owner, text in enumerate(texts) for piece in _pieces(text)):
        rows = _ids(tokenizer, [piece for _, piece in group])
        # EOS comes when the next document starts: a document may be several pieces, in several groups.
        ids: list[list[int]] = []
        for (owner, _), row in zip(group, rows, strict=True):
            if owner != last and last >= 0:
                ids.append([end])
            if bos is not None and owner != last and row[:1] != [bos]:
                row = [bos, *row]
            ids.append(row)
            lengths[owner] += len(row)
            last = owner
        parts.append(np.fromiter(chain.from_iterable(ids), dtype=np.uint32))
    parts.append(np.array([end] if texts else [], dtype=np.uint32))
    byte_counts = np.array([len(text) if text.isascii() else len(text.encode()) for text in texts], dtype=np.int64)
    return Encoded(ids=np.concatenate(parts), lengths=lengths + 1, byte_counts=byte_counts)


def encode_tokens(tokenizer: PreTrainedTokenizerBase, documents: Sequence[npt.NDArray[np.integer[Any]]]) -> Encoded:
    """Add EOS to n documents of ids that are tokenised already, and count the bytes of their text."""
    end = eos_id(tokenizer)
    texts = tokenizer.batch_decode([document.tolist() for document in documents], skip_special_tokens=True)
    flat = [part for document in documents for part in (document.astype(np.uint32), np.array([end], dtype=np.uint32))]
    return Encoded(
        ids=np.concatenate(flat) if flat else np.zeros(0, dtype=np.uint32),
        lengths=np.array([len(document) + 1 for document in documents], dtype=np.int64),
        byte_counts=np.array([len(text.encode("utf-8", "replace")) for text in texts], dtype=np.int64),
    )


def encode_batch(
    tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document], *, bos: int | None = None
) -> Encoded:
    """`encode_texts` or, as they are, `encode_tokens`, by what the documents are."""
    texts = [document for document in documents if isinstance(document, str)]
    if len(texts) == len(documents):
        return encode_texts(tokenizer, texts, bos=bos)
    return encode_tokens(tokenizer, [document for document in documents if isinstance(document, np.ndarray)])


_worker_tokenizer: PreTrainedTokenizerBase | None = None
_worker_encode: Encode | None = None


def _start_worker(tokenizer: PreTrainedTokenizerBase, encode: Encode) -> None:
    global _worker_tokenizer, _worker_encode
    _worker_tokenizer, _worker_encode = tokenizer, encode


def _encode_in_worker(documents: Sequence[Document]) -> Encoded:
    assert _worker_encode is not None
    return _worker_encode(_worker_tokenizer, documents)


@contextmanager
def _one_thread_per_process() -> Iterator[None]:
    """Set, for the time of the block, what keeps every forked tokenizer to one thread and quiet about it."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def encode_batches(
    tokenizer: PreTrainedTokenizerBase,
    batches: Iterable[Sequence[Document]],
    *,
    num_proc: int = 1,
    encode: Encode | None = None,
) -> Iterator[Encoded]:
    """Tokenise batches of documents, in order, a few batches ahead of the reader at most.

    Args:
        tokenizer: Any Hugging Face tokenizer with an EOS.
        batches: See `batched`.
        num_proc: Worker processes; 1 works in this one, where a fast tokenizer uses threads of its own.
        encode: None: `encode_batch`, for text and ids.

    Yields:
        The tokens of each batch.

    Raises:
        DataError: A worker died.
    """
    encode = encode or encode_batch
    if num_proc <= 1:
        yield from map(partial(encode, tokenizer), batches)
        return
    # Forked workers start at once and need no `if __name__ == "__main__"`; elsewhere fork is unsafe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    with (
        _one_thread_per_process(),
        ProcessPoolExecutor(
            num_proc, mp_context=context, initializer=_start_worker, initargs=(tokenizer, encode)
        ) as pool,
    ):
        pending: deque[Future[Encoded]] = deque()
        try:
            for batch in batches:
                pending.append(pool.submit(_encode_in_worker, batch))
                if len(pending) > 2 * num_proc:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        except BrokenProcessPool as error:
            raise DataError(
                f"tokenising: one of {num_proc} worker processes died, probably for lack of memory; "
                "expected them to finish; use a smaller num_proc"
            ) from error
        finally:
            for future in pending:
                future.cancel()


def batched(documents: Iterable[Document], *, keep: Callable[[Document], bool]) -> Iterator[list[Document]]:
    """Documents in batches of bounded size, only those that `keep` says True to."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        if not keep(document):
            continue
        if batch and (len(batch) >= BATCH_DOCUMENTS or size + len(document) > BATCH_SIZE):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document)
    if batch:
        yield batch
