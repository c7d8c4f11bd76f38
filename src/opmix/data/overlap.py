"""Text that is measured and trained on alike: shared stretches of words between targets and training text, in bounded samples."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from opmix.data.cache import TokenizedDomain, TokenSplit
from opmix.data.chat.conversation import domain_kind, iter_conversations
from opmix.data.choice import iter_questions, target_kind
from opmix.data.in_place import TokensInPlace
from opmix.data.sources import TOKEN_FORMATS, SourceFile, iter_documents, resolve
from opmix.domain import Domain, Kind, Source
from opmix.settings import changed
from opmix.target import naming_target

STRETCH = 13
"""Words: long enough that two texts do not share it by chance (Brown et al., arXiv 2005.14165, appendix C)."""
TELLING = 0.01
"""Share of a target's stretches from which an overlap is told."""
_TARGET_WORDS = 200_000
_DOMAIN_CHARACTERS = 2_000_000
_FILES = 8
_WORD = re.compile(r"\w+")


@dataclass(frozen=True, kw_only=True)
class Overlap:
    """What a target shares with one domain; at least: neither is read whole."""

    target: str
    domain: str
    share: float
    """Of the target's stretches of 13 words, in (0, 1]."""

    def __str__(self) -> str:
        return (
            f"target {self.target!r}: at least {self.share:.0%} of its text is in what domain {self.domain!r} trains "
            f"on ({STRETCH} words in a row); its loss would tell how well it was learned by heart: take it out of one "
            "of them"
        )


def overlaps(domains: Mapping[str, Domain], targets: Mapping[str, Domain]) -> list[Overlap]:
    """Pairs that share more than a hundredth of a target's stretches, most first; of hub datasets and token files nothing is told.

    Args:
        domains: By name, relative paths resolved.
        targets: As domains whose `train` chooses mixtures.

    Raises:
        DataError: A source cannot be read.
    """
    return _compared(
        {name: _target_stretches(d) for name, d in targets.items()},
        {name: partial(_sampled, d) for name, d in domains.items()},
    )


def token_overlaps(
    domains: Mapping[str, TokenizedDomain], targets: Mapping[str, TokenizedDomain], tokenizer: Any
) -> list[Overlap]:
    """The same where only tokens are at hand: documents are read back, of a domain's training split evenly spread ones."""
    return _compared(
        {
            name: _stretches(
                (text for split in (t.valid, t.test) for text in _read_back(split, tokenizer)), 6 * _TARGET_WORDS
            )
            for name, t in targets.items()
        },
        {name: partial(_read_back, d.train, tokenizer) for name, d in domains.items()},
    )


def _read_back(split: TokenSplit, tokenizer: Any) -> Iterator[str]:
    """Documents, every so manieth where all are too many."""
    if isinstance(split.tokens, TokensInPlace):
        yield from (tokenizer.decode(ids.tolist(), skip_special_tokens=True) for ids in split.tokens.samples())
        return
    for i in range(0, split.num_documents, 1 + split.num_bytes // _DOMAIN_CHARACTERS):
        ids = split.tokens[split.offsets[i] : split.offsets[i + 1]]
        yield tokenizer.decode(ids.tolist(), skip_special_tokens=True)


def _compared(stretches: Mapping[str, set[int]], texts: Mapping[str, Callable[[], Iterator[str]]]) -> list[Overlap]:
    """Of targets, by their stretches, with domains, by their texts."""
    every: set[int] = set().union(*stretches.values())
    found = []
    for name, sampled in texts.items() if every else ():
        seen = every & _stretches(sampled(), _DOMAIN_CHARACTERS)
        for target, own in stretches.items():
            if own and (share := len(own & seen) / len(own)) >= TELLING:
                found.append(Overlap(target=target, domain=name, share=share))
    return sorted(found, key=lambda o: -o.share)


def _target_stretches(target: Domain) -> set[int]:
    name, sources = target.name, [source for source in (target.train, target.test) if source is not None]
    with naming_target(name):
        kind = target_kind(target)
        texts = (text for s in sources for file in _readable(s, name) for text in _texts(s, file, kind, name))
        return _stretches(texts, 6 * _TARGET_WORDS)


def _stretches(texts: Iterator[str], limit: int) -> set[int]:
    """Hashes of all stretches of the first texts of about so many characters."""
    found: set[int] = set()
    read = 0
    for text in texts:
        words = _WORD.findall(text[: limit - read].lower())
        found.update(hash(tuple(words[i : i + STRETCH])) for i in range(len(words) - STRETCH + 1))
        read += len(text)
        if read >= limit:
            break
    return found


def _sampled(domain: Domain) -> Iterator[str]:
    """The starts of a few of its files, evenly spread."""
    files = _readable(domain.train, domain.name)
    chosen = files[:: max(1, len(files) // _FILES)]
    kind = domain_kind(domain) if chosen else "text"
    for file in chosen:
        read = 0
        for text in _texts(domain.train, file, kind, domain.name):
            yield text
            read += len(text)
            if read >= _DOMAIN_CHARACTERS // len(chosen):
                break


def _readable(source: Source, name: str) -> list[SourceFile]:
    return [f for f in resolve(source, domain=name) if f.format not in (*TOKEN_FORMATS, "hub")]


def _texts(source: Source, file: SourceFile, kind: Kind, name: str) -> Iterator[str]:
    alone = changed(source, paths=(file.path,), format=file.format)
    if kind == "choice":
        for question in iter_questions(alone, domain=name):
            context, option = question.options[question.answer]
            yield context + option
    elif kind == "chat":
        for chat in iter_conversations(alone, domain=name):
            yield "\n".join(message.content for message in chat.messages)
    else:
        yield from iter_documents(alone, domain=name)
