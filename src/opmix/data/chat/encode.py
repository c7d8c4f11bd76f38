"""Rendered conversations to token ids and a mask of the supervised ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from opmix.data.chat.conversation import Conversation
from opmix.data.chat.template import ChatFormat, Rendered
from opmix.data.tokenization import Document, Encoded
from opmix.errors import DataError

Mask = npt.NDArray[np.uint8]


def encode_chats(chat: ChatFormat, tokenizer: PreTrainedTokenizerBase, documents: Sequence[Document]) -> Encoded:
    """Render and tokenise n conversations; nothing is added to what the template writes.

    Text and answers are tokenised apart, so that a supervised span starts and ends with a token, as it does when the model is asked and
    answers. Tokenizers that put a space before every text (SentencePiece) would put one into the middle there; with them the
    whole is tokenised, and a token is supervised if a character of it is.

    Raises:
        DataError: A conversation that cannot be rendered; see `ChatFormat.render`.
    """
    rendered = [chat.render(document) for document in documents if isinstance(document, Conversation)]
    coded = _whole(tokenizer, rendered) if _adds_space(tokenizer) else _apart(tokenizer, rendered)
    for document, (ids, _) in zip(documents, coded, strict=True):
        if not len(ids):
            where = getattr(document, "where", "a conversation")
            raise DataError(f"{where}: the chat template renders it to nothing; expected text; repair the template")
    supervised = ["".join(r.text[a:b] for a, b in r.spans) for r in rendered]
    return Encoded(
        ids=_joined([ids for ids, _ in coded], np.uint32),
        lengths=np.array([len(ids) for ids, _ in coded], dtype=np.int64),
        byte_counts=np.array([len(text.encode()) for text in supervised], dtype=np.int64),
        mask=_joined([mask for _, mask in coded], np.uint8),
    )


def _joined(parts: list[npt.NDArray[Any]], kind: type[np.generic]) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(kind) if parts else np.zeros(0, kind)


def _ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], **options: Any) -> Any:
    return tokenizer(
        list(texts),
        add_special_tokens=False,
        padding=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
        **options,
    )


def _adds_space(tokenizer: PreTrainedTokenizerBase) -> bool:
    first = tokenizer.convert_ids_to_tokens(_ids(tokenizer, ["a"])["input_ids"][0])
    return bool(first) and str(first[0]).startswith("▁") and bool(tokenizer.is_fast)


def _apart(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]
) -> list[tuple[npt.NDArray[np.int64], Mask]]:
    pieces: list[str] = []
    owners: list[tuple[int, int]] = []
    for number, item in enumerate(rendered):
        start = 0
        for first, last in (*item.spans, (len(item.text), len(item.text))):
            for text, code in ((item.text[start:first], 0), (item.text[first:last], 1)):
                if text:
                    pieces.append(text)
                    owners.append((number, code))
            start = last
    found: list[tuple[list[int], list[int]]] = [([], []) for _ in rendered]
    for (number, code), row in zip(owners, _ids(tokenizer, pieces)["input_ids"] if pieces else [], strict=True):
        found[number][0].extend(row)
        found[number][1].extend([code] * len(row))
    return [(np.array(ids, dtype=np.int64), np.array(mask, dtype=np.uint8)) for ids, mask in found]


def _whole(
    tokenizer: PreTrainedTokenizerBase, rendered: Sequence[Rendered]
) -> list[tuple[npt.NDArray[np.int64], Mask]]:
    rows = _ids(tokenizer, [item.text for item in rendered], return_offsets_mapping=True)
    coded = []
    for item, ids, offsets in zip(rendered, rows["input_ids"], rows["offset_mapping"], strict=True):
        places = np.array(offsets, dtype=np.int64).reshape(-1, 2)
        mask = np.zeros(len(ids), dtype=np.uint8)
        for first, last in item.spans:
            mask[(places[:, 1] > first) & (places[:, 0] < last)] = 1
        coded.append((np.array(ids, dtype=np.int64), mask))
    return coded
