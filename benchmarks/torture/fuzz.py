"""Damaged bytes into every parser: a value, or an error of ours.

The corpus is made on the spot from whole files; an input is one of them, or an input that reached a new kind of answer before, with bytes
flipped, cut, doubled, spliced, or with words that hurt put in. Not guided by coverage: an input is kept where the answer's kind is new.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

WORDS = (
    b"null", b"NaN", b"-1e999", b"1e400", b"{}", b"[]", b"[[", b'"', b"\x00", b"\xff\xfe", b"\xed\xa0\x80", b"\xe2\x80\xa8", b"true", b": ",
    b"\n", b"\r\n", b"- ", b"&a ", b"*a", b"<<: *a", b"!!python/object", b"|\n", b",,", b"=1+1",
    b"99999999999999999999", b"../", b"\\u0000",
)  # fmt: skip


@dataclass(frozen=True)
class Parser:
    """A way in."""

    name: str
    file: str
    """Of its input, below a folder of its own."""
    seeds: tuple[bytes, ...]
    parse: Callable[[Path], object]
    """Takes the folder."""


def drained(rows: Iterable[object]) -> int:
    return sum(1 for _ in rows)


def npy(array: Any, folder: Path) -> bytes:
    file = folder / "seed.npy"
    np.save(file, array)
    return file.read_bytes()


def parsers(folder: Path) -> list[Parser]:
    """Every format that opmix reads from somebody else, or from a disk that may have been hurt."""
    from opmix.config import SearchConfig
    from opmix.data.chat.conversation import iter_conversations
    from opmix.data.sources import iter_documents, iter_token_documents
    from opmix.domain import Source
    from opmix.mixing.swarm import read_swarm
    from opmix.probes.tasks import ProxyLosses
    from opmix.results.files import read_document
    from opmix.results.manifest import Manifest
    from opmix.results.mixture import MixtureFile
    from opmix.results.timing import TimingFile
    from opmix.runs.lock import lock_holder
    from opmix.settings.loading import apply_override, read_yaml, validated
    from opmix.trackers.tables import read_csv_runs

    folder.mkdir(parents=True, exist_ok=True)
    search = (
        b"model: m\ndomains: {web: a.jsonl, code: {train: b.jsonl, max_epochs: 2}}\nbudget: 2e9\nsolve: {kl: 0.05}\n"
    )
    rows = b"".join(json.dumps({"text": f"text {i} é"}).encode() + b"\n" for i in range(4))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats = b"".join(json.dumps({"messages": turns}).encode() + b"\n" for _ in range(3))
    table = b"run,web,code,loss\na,0.5,0.5,3.1\nb,0.2,0.8,3.0\nc,0.9,0.1,2.9\nd,0.4,0.6,3.2\n"
    runs = b'name,config,summary\na,"{""web"": 0.5}","{""loss"": 3}"\n'
    mixture = json.dumps(
        {"schema": 1, "kind": "search", "mixture": {"web": 0.5, "code": 0.5}, "interval": {"web": [0.1, 0.9]}}
    ).encode()
    manifest = json.dumps({"command": "search", "config": {"model": {"name": "m"}}, "base": "/x"}).encode()
    lock = json.dumps({"pid": 1, "host": "h"}).encode()
    tokens = npy(np.arange(64, dtype=np.uint16), folder)

    def source(folder: Path, name: str) -> Source:
        return Source(paths=(str(folder / name),))

    def settings(folder: Path) -> object:
        return validated(SearchConfig, read_yaml(folder / "s.yaml", expected="model"))

    def overridden(folder: Path) -> object:
        content: dict[str, Any] = {"a": {"b": [1, {"c": 2}]}}
        apply_override(content, (folder / "o.txt").read_bytes().decode(errors="surrogateescape"))
        return content

    return [
        Parser("search.yaml", "s.yaml", (search,), settings),
        Parser("override", "o.txt", (b"a.b.1.c=3e-4", b"trainer.x={y: 1}"), overridden),
        Parser(
            "jsonl",
            "d.jsonl",
            (rows, b"[" + rows.replace(b"\n", b",")[:-1] + b"]"),
            lambda f: drained(iter_documents(source(f, "d.jsonl"))),
        ),
        Parser("text", "d.txt", (b"one\n\ntwo\n",), lambda f: drained(iter_documents(source(f, "d.txt")))),
        Parser("chat", "c.jsonl", (chats,), lambda f: drained(iter_conversations(source(f, "c.jsonl")))),
        Parser("npy", "t.npy", (tokens,), lambda f: drained(iter_token_documents(source(f, "t.npy"), 3))),
        Parser("swarm.csv", "t.csv", (table,), lambda f: read_swarm(f / "t.csv")),
        Parser("runs.csv", "r.csv", (runs,), lambda f: read_csv_runs(f / "r.csv")),
        Parser("mixture.json", "mixture.json", (mixture,), MixtureFile.read),
        Parser("manifest.json", "manifest.json", (manifest,), Manifest.read),
        Parser("timing.json", "timing.json", (b'{"seconds": {"search": 1.0}}',), TimingFile.read),
        Parser("document", "x.json", (mixture, b"{}"), lambda f: read_document(f / "x.json")),
        Parser("lock", "lock", (lock,), lock_holder),
        Parser("sequences.npz", "s.npz", (tokens, b"PK\x03\x04"), lambda f: ProxyLosses.load(f / "s.npz", ("a",))),
    ]


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
    return bytes(out[:4000])


def torture(folder: Path, *, seed: int, most: int, part: tuple[int, int], seconds: float) -> dict[str, Any]:
    """Feed every parser in turn; what breaks one is said with its bytes."""
    import warnings

    from opmix.errors import OpMixError

    warnings.simplefilter("ignore")
    deadline, rng = time.monotonic() + seconds, random.Random(1000 * seed + part[0])
    memory = Path("/dev/shm")
    folder = (memory if memory.is_dir() else folder.parent) / folder.name
    folder.mkdir(exist_ok=True)
    ways = parsers(folder)
    corpus = {way.name: list(way.seeds) for way in ways}
    kinds: dict[str, set[str]] = {way.name: set() for way in ways}
    done, wrong = 0, []
    try:
        while done < most // part[1] and time.monotonic() < deadline:
            way = ways[done % len(ways)]
            data = mutated(rng.choice(corpus[way.name]), rng)
            (folder / way.file).write_bytes(data)
            started = time.monotonic()
            try:
                answer = f"value {type(way.parse(folder)).__name__}"
            except OpMixError as error:
                answer = f"{type(error).__name__} {''.join(c for c in str(error) if c.isalpha())[-40:]}"
            except Exception as error:  # what nobody foresaw
                answer = f"unforeseen {type(error).__name__}"
                if answer not in kinds[way.name]:
                    wrong.append(f"{way.name}: {type(error).__name__}: {error}: {data!r}"[:1500])
            if time.monotonic() - started > 2:
                wrong.append(f"{way.name}: took {time.monotonic() - started:.1f} s: {data!r}"[:1500])
            done += 1
            if answer not in kinds[way.name] and len(kinds[way.name]) < 500:
                kinds[way.name].add(answer)
                corpus[way.name].append(data)
    finally:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    return {"done": {"executions": done, "kinds of answers": sum(map(len, kinds.values()))}, "wrong": wrong}
