"""A domain from its sources to three tokenised splits, through the cache."""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from opmix.data.cache import FORMAT_VERSION, SplitWriter, TokenizedDomain, TokenSplit, load_split
from opmix.data.chat.conversation import Conversation, domain_kind, iter_conversations
from opmix.data.chat.encode import encode_chats
from opmix.data.chat.template import ChatFormat, chat_format
from opmix.data.choice.question import Question, iter_questions
from opmix.data.choice.rows import FORMAT as CHOICE_FORMAT
from opmix.data.choice.rows import encode_questions
from opmix.data.in_place import TokensInPlace, held_out_stripes
from opmix.data.sources import (
    forget_streams,
    holds_tokens,
    iter_documents,
    iter_token_documents,
    resolve,
    source_fingerprint,
)
from opmix.data.split import SplitRule
from opmix.data.tokenization import (
    Document,
    batched,
    bos_id,
    check_tokenizer,
    encode_batch,
    encode_batches,
    eos_id,
    tokenizer_fingerprint,
    vocabulary_size,
)
from opmix.domain import SPLITS, Domain, Source, Split
from opmix.errors import DataError
from opmix.runs.trace import span

Progress = Callable[[str, int, int | None], None]
"""Called with the domain's name, the documents tokenised so far of one source, and their total once known."""


@span("tokenise", "tokenising")
def prepare_domain(
    domain: Domain,
    tokenizer: PreTrainedTokenizerBase,
    *,
    cache_dir: Path,
    num_proc: int = 1,
    progress: Progress | None = None,
    demonstration: str | None = None,
) -> TokenizedDomain:
    """Read, split and tokenise a domain, or find it in the cache.

    The cache's key covers the sources' bytes, the field, the split rule and the tokenizer: change one of them
    and only what depends on it is tokenised again. Finding it costs reading the sources once, to hash them.

    Args:
        domain: The domain; a missing `valid` or `test` is split off `train` by document.
        tokenizer: Any Hugging Face tokenizer with an EOS, which is put after each document.
        cache_dir: Folder of the cache; made if missing; may be shared by processes and domains.
        num_proc: Processes that tokenise.
        progress: Told about every batch.
        demonstration: Of a chat domain, prepare the contexts of self-distillation's teacher instead, document for document;
            see `ChatFormat.demonstration`.

    Returns:
        The three splits, mapped into memory.

    Raises:
        ConfigError: The tokenizer is none.
        DataError: A source cannot be read or is empty, a split is left without documents, the tokenizer has
            no EOS, no chat template for a chat domain, or is not the one a tokenised source was made with, or the cache
            cannot be written.
    """
    check_tokenizer(tokenizer)
    chat = None
    if domain_kind(domain) == "chat":
        chat = chat_format(tokenizer, domain.chat, domain=domain.name, demonstration=demonstration)
    job = _Preparation(domain, tokenizer, Path(cache_dir), num_proc, progress, chat)
    whole = SplitRule(carved=(), holdout=domain.holdout)
    rule = SplitRule.of(domain)
    splits = dict(job.source(domain.train, rule, ("train", *rule.carved)))
    given: tuple[tuple[Split, Source | None], ...] = (("valid", domain.valid), ("test", domain.test))
    for split, source in given:
        if source is not None:
            splits.update(job.source(source, whole, (split,)))
    return TokenizedDomain(name=domain.name, train=splits["train"], valid=splits["valid"], test=splits["test"])


class _Preparation:
    """What all sources of one domain share."""

    def __init__(
        self,
        domain: Domain,
        tokenizer: PreTrainedTokenizerBase,
        cache_dir: Path,
        num_proc: int,
        progress: Progress | None,
        chat: ChatFormat | None,
    ) -> None:
        self.chat, self.choice = chat, domain.kind == "choice"
        self.domain, self.tokenizer, self.cache_dir = domain, tokenizer, cache_dir
        self.num_proc, self.progress = num_proc, progress
        self.eos = eos_id(tokenizer)
        self.bos = None if chat is not None or domain.bos is False else bos_id(tokenizer)
        self.size = vocabulary_size(tokenizer)
        self.tokenizer_fingerprint = tokenizer_fingerprint(tokenizer)

    def source(self, source: Source, rule: SplitRule, splits: tuple[Split, ...]) -> Mapping[Split, TokenSplit]:
        """The splits that come from one source: those in the cache from there, the others in one pass."""
        origin = source_fingerprint(source, domain=self.domain.name)
        keys = {split: self._key(origin, source, rule, split) for split in splits}
        found = self._in_place(source, rule, keys) if source.in_place else self._load(keys)
        missing = tuple(split for split in splits if split not in found)
        if missing and source.max_tokens is not None:
            missing = splits  # where reading stops depends on the documents of all of them
        if missing:
            self._tokenize(source, rule, splits, {split: keys[split] for split in missing})
            found |= self._load({split: keys[split] for split in missing})
        lost = [split for split in splits if split not in found]
        if lost:
            raise DataError(
                f"domain {self.domain.name!r}: the {lost[0]} split is gone from {self.cache_dir} right after "
                "it was written; expected it to stay; keep other programs from clearing the cache"
            )
        return found

    def _in_place(self, source: Source, rule: SplitRule, keys: Mapping[Split, str]) -> dict[Split, TokenSplit]:
        """Training where the files lie; what is held out of them is copied."""
        name, none = self.domain.name, np.zeros(0, dtype=np.int64)
        whole = TokensInPlace(resolve(source, domain=name), source.dtype, self.eos, name)
        stripes = held_out_stripes(whole, rule, name)
        for sample in whole.samples():
            self._check_document(sample)
        found = self._load({split: keys[split] for split in stripes})
        for split, stretches in stripes.items():
            if split not in found:
                alone = SplitRule(carved=(), holdout=rule.holdout)
                self._tokenize(source, alone, (split,), {split: keys[split]}, whole.documents(stretches))
                found |= self._load({split: keys[split]})
        rest = whole.without([stretch for stretches in stripes.values() for stretch in stretches])
        train = TokenSplit(
            domain=name, split="train", fingerprint=keys["train"], tokens=rest, offsets=none, byte_counts=none
        )
        return {**found, "train": train}

    def _key(self, origin: str, source: Source, rule: SplitRule, split: Split) -> str:
        part = "whole" if not rule.carved else rule.describe(split)
        field = "" if holds_tokens(source) else source.field
        if self.chat is not None:
            field = f"chat {self.chat.fingerprint}"
        if self.choice:
            field = CHOICE_FORMAT
        begins = () if self.bos is None or holds_tokens(source) else (f"bos {self.bos}",)
        most = () if source.max_tokens is None else (f"at most {source.max_tokens}",)
        parts = (FORMAT_VERSION, origin, field, part, self.tokenizer_fingerprint, self.eos, *begins, *most)
        return hashlib.blake2b(repr(parts).encode(), digest_size=16).hexdigest()

    def _load(self, keys: Mapping[Split, str]) -> dict[Split, TokenSplit]:
        loaded = {
            split: load_split(self.cache_dir, key, domain=self.domain.name, split=split) for split, key in keys.items()
        }
        return {split: found for split, found in loaded.items() if found is not None}

    def _tokenize(
        self,
        source: Source,
        rule: SplitRule,
        splits: tuple[Split, ...],
        missing: Mapping[Split, str],
        documents: Iterable[Document] | None = None,
    ) -> None:
        """One pass over a source, or some documents of it, that writes the missing ones of its splits."""
        name = self.domain.name
        dtype = np.dtype("<u2" if self.size <= 1 << 16 else "<u4")
        counts, read = dict.fromkeys(splits, 0), dict.fromkeys(splits, 0)
        tokens, most = 0, source.max_tokens or math.inf
        codes: deque[int] = deque()

        def wanted(document: Document) -> bool:
            # The only split of a source that is not carved up is its own, whatever the rule calls it.
            content = document.prompt_key if isinstance(document, Conversation) else document
            content = content.key if isinstance(content, Question) else content
            split = rule.split_of(content) if rule.carved else splits[0]
            counts[split] += 1
            if split in missing:
                codes.append(SPLITS.index(split))
            return split in missing

        masked = self.chat is not None or self.choice
        with ExitStack() as stack:
            writers = {
                s: stack.enter_context(SplitWriter(self.cache_dir, key, dtype, masked=masked))
                for s, key in missing.items()
            }
            batches = batched(self._documents(source) if documents is None else documents, keep=wanted)
            done = 0
            encode = partial(encode_questions if self.choice else encode_batch, bos=self.bos)
            encode = encode if self.chat is None else partial(encode_chats, self.chat)
            for encoded in encode_batches(self.tokenizer, batches, num_proc=self.num_proc, encode=encode):
                owner = np.array([codes.popleft() for _ in encoded.lengths])
                self._check_ids(int(encoded.ids.max()))
                owner[np.cumsum(encoded.lengths) - encoded.lengths + tokens >= most] = -1  # past what is wanted
                tokens += int(encoded.lengths.sum())
                for split, writer in writers.items():
                    mine = owner == SPLITS.index(split)
                    ids = np.repeat(mine, encoded.lengths)
                    mask = None if encoded.mask is None else encoded.mask[ids]
                    writer.write(encoded.ids[ids], encoded.lengths[mine], encoded.byte_counts[mine], mask)
                    read[split] += int(mine.sum())
                done += int((owner >= 0).sum())
                self._report(done, None)
                if tokens >= most:
                    counts = read
                    break
            _check_counts(name, rule, counts, source)
            for writer in writers.values():
                writer.commit()
            forget_streams(source, self.cache_dir)
            self._report(done, done)

    def _documents(self, source: Source) -> Iterator[Document]:
        if self.choice:
            yield from iter_questions(source, domain=self.domain.name)
        elif self.chat is not None:
            yield from iter_conversations(source, domain=self.domain.name, keep=self.cache_dir)
        elif holds_tokens(source, domain=self.domain.name):
            yield from map(self._check_document, iter_token_documents(source, self.eos, domain=self.domain.name))
        else:
            yield from iter_documents(source, domain=self.domain.name, keep=self.cache_dir)

    def _check_document(self, ids: npt.NDArray[np.integer[Any]]) -> Document:
        low, high = int(ids.min()), int(ids.max())
        if low < 0 or high >= self.size:
            raise DataError(
                f"domain {self.domain.name!r}: token ids from {low} to {high}; expected ids below "
                f"{self.size}, the tokenizer's; check which tokenizer made the file, and the `dtype`"
            )
        return ids

    def _check_ids(self, highest: int) -> None:
        if highest >= self.size:
            raise DataError(
                f"domain {self.domain.name!r}: the tokenizer yields id {highest}; expected ids below "
                f"{self.size}, the size of its vocabulary; repair the tokenizer's files"
            )

    def _report(self, done: int, total: int | None) -> None:
        if self.progress is not None:
            self.progress(self.domain.name, done, total)


def _check_counts(name: str, rule: SplitRule, counts: Mapping[Split, int], source: Source) -> None:
    """Every split has a document.

    Raises:
        DataError: One has none.
    """
    total = sum(counts.values())
    if total == 0:
        raise DataError(
            f"domain {name!r}: {source.paths[0]} holds no document; expected at least one that is not empty"
        )
    empty = [split for split, count in counts.items() if count == 0]
    if empty:
        raise DataError(
            f"domain {name!r}: the source has {total} document{'s' if total > 1 else ''}, and splitting off "
            f"{rule.holdout:g} of them for each of {', '.join(rule.carved)} left {', '.join(empty)} without; "
            "expected at least one each; raise `holdout`, add documents, or give each held-out set a source"
        )
