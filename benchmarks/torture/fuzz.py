"""Damaged bytes into every parser (`ways.py`): a value, or an error of ours.

An input is a whole file, or one of `corpus/`, which coverage-guided fuzzing found (`guided.py`), or one that reached a new kind of answer
before; with bytes flipped, cut, doubled, or with words that hurt put in. All parsers get the same time.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

from ways import Parser, parsers

WORDS = (
    b"null",
    b"NaN",
    b"-1e999",
    b"1e400",
    b"{}",
    b"[]",
    b"[[",
    b'"',
    b"\x00",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"\xe2\x80\xa8",
    b"true",
    b": ",
    b"\n",
    b"\r\n",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: *a",
    b"!!python/object",
    b"|\n",
    b",,",
    b"=1+1",
    b"99999999999999999999",
    b"../",
    b"\\u0000",
    b"[" * 2000,
)
LONGEST, SLOW = 16_000, 2.0
CORPUS = Path(__file__).parent / "corpus"


def kept(way: Parser) -> list[bytes]:
    """What coverage-guided fuzzing found for a parser: one text of latin-1 each."""
    file = CORPUS / f"{way.slug}.json"
    return [text.encode("latin-1") for text in json.loads(file.read_text())] if file.exists() else []


def answer_of(way: Parser, place: Path, data: bytes) -> tuple[str, str]:
    """The kind of a parser's answer to an input, and what is wrong with it."""
    from opmix.errors import OpMixError

    (place / way.file).write_bytes(data)
    started = time.process_time()
    try:
        kind, wrong = f"value {type(way.parse(place)).__name__}", ""
    except OpMixError as error:
        kind, wrong = f"{type(error).__name__} {''.join(filter(str.isalpha, str(error)[-80:]))[-40:]}", ""
    except Exception as error:  # what nobody foresaw
        kind, wrong = f"unforeseen {type(error).__name__}", f"{type(error).__name__}: {error}"
    spent = time.process_time() - started
    return kind, wrong or (f"took {spent:.1f} s" if spent > SLOW else "")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """The same, hurt one to four times."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, to = sorted((rng.randint(0, len(out)), rng.randint(0, len(out))))
        kind = rng.randrange(6)
        if kind == 0 and out:
            out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del out[at : min(to, at + 40)]
        elif kind == 2:
            out[at:at] = out[at : min(to, at + 200)]
        elif kind == 3:
            out[at:at] = rng.choice(WORDS)
        elif kind == 4:
            out[at : min(to, at + 8)] = rng.choice(WORDS)
        else:
            del out[rng.randint(0, len(out)) :]
    return bytes(out[:LONGEST])


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Feed every parser in turn; what breaks one is said with its bytes."""
    import warnings

    warnings.simplefilter("ignore")
    deadline, rng = time.monotonic() + seconds, random.Random(1000 * seed + part[0])
    ways = [(way, way.place(folder)) for way in parsers()]
    corpus = {way.name: [*way.seeds, *kept(way)] for way, _ in ways}
    kinds: dict[str, set[str]] = {way.name: set() for way, _ in ways}
    spent = dict.fromkeys(kinds, 0.0)
    done, wrong = 0, []
    while done < most // part[1] and time.monotonic() < deadline:
        way, place = min(ways, key=lambda each: spent[each[0].name])
        began = time.process_time()
        data = mutated(rng.choice(corpus[way.name]), rng)
        kind, text = answer_of(way, place, data)
        spent[way.name] += time.process_time() - began
        done += 1
        if text and (kind not in kinds[way.name] or not text.startswith(kind.split()[-1])):
            wrong.append(f"{way.name}: {text}: {data!r}"[:1500])
        if kind not in kinds[way.name] and len(kinds[way.name]) < 500:
            kinds[way.name].add(kind)
            corpus[way.name].append(data)
    return {"done": {"executions": done, "kinds of answers": sum(map(len, kinds.values()))}, "wrong": wrong}
