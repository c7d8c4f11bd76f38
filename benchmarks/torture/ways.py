"""The ways in: every format that opmix reads from somebody else, or from a disk that may have been hurt."""

from __future__ import annotations

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

OLD_RUNS = Path(__file__).parents[2] / "tests" / "data" / "runs-0.1.0.tar.gz"


@dataclass(frozen=True)
class Parser:
    """A way in."""

    name: str
    file: str
    """Of its input, below a folder of its own."""
    seeds: tuple[bytes, ...]
    parse: Callable[[Path], object]
    """Takes the folder."""
    beside: Mapping[str, bytes] = field(default_factory=dict)
    """Sound files that are read with it."""

    @property
    def slug(self) -> str:
        """Its name for a file."""
        return "".join(c if c.isalnum() else "-" for c in self.name)

    def place(self, folder: Path) -> Path:
        """Its own folder, with what lies beside it."""
        own = folder / self.slug
        (own / self.file).parent.mkdir(parents=True, exist_ok=True)
        for name, content in self.beside.items():
            (own / name).write_bytes(content)
        return own


def drained(rows: Iterable[object]) -> int:
    return sum(1 for _ in rows)


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def npz(**arrays: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def old_run(name: str) -> bytes:
    """A file of a run folder as 0.1.0 wrote it."""
    with tarfile.open(OLD_RUNS) as archive:
        found = archive.extractfile(name)
        assert found is not None
        return found.read()


def parsers() -> list[Parser]:
    """All of them."""
    return [*of_settings(), *of_data(), *of_tokens(), *of_tables(), *of_runs(), *of_work()]


def of_settings() -> list[Parser]:
    """YAML and what stands on a command line."""
    from opmix.comparison.config import CompareConfig
    from opmix.config import SearchConfig
    from opmix.lifecycle.loading import LifecycleConfig
    from opmix.scaffold.trainer_yaml import read_trainer
    from opmix.settings.loading import validated
    from opmix.settings.reading import apply_override, read_yaml

    search = (
        b"model: m\ndomains: {web: a.jsonl, code: {train: b.jsonl, max_epochs: 2}}\nbudget: 2e9\nsolve: {kl: 0.05}\n"
    )
    life = (
        b"model: m\ndomains: {web: a, code: b}\nold_mixture: {web: 1}\nstages:\n- {name: a, tokens: 1e6, mixture: uniform}\n"
        b"- {name: two, tokens: 1e6}\n"
    )
    axolotl = b"base_model: m\ndatasets:\n- {path: a.jsonl, type: completion}\n- {path: b.jsonl, type: completion}\nsequence_len: 64\n"

    def of(kind: type[Any], expected: str) -> Callable[[Path], object]:
        return lambda folder: validated(kind, read_yaml(folder / "s.yaml", expected=expected))

    def overridden(folder: Path) -> object:
        content: dict[str, Any] = {"a": {"b": [1, {"c": 2}]}}
        apply_override(content, (folder / "o.txt").read_bytes().decode(errors="surrogateescape"))
        return content

    return [
        Parser("search.yaml", "s.yaml", (search,), of(SearchConfig, "model")),
        Parser("life.yaml", "s.yaml", (life,), of(LifecycleConfig, "stages")),
        Parser(
            "compare.yaml",
            "s.yaml",
            (life + b"methods: {uniform: {}, op_mix: {}}\n",),
            of(CompareConfig, "methods"),
        ),
        Parser("override", "o.txt", (b"a.b.1.c=3e-4", b"trainer.x={y: 1}"), overridden),
        Parser("trainer.yaml", "t.yaml", (axolotl,), lambda f: read_trainer(f / "t.yaml")),
    ]


def of_data() -> list[Parser]:
    """Documents, conversations, questions."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from opmix.data.chat.conversation import iter_conversations
    from opmix.data.choice.question import iter_questions
    from opmix.data.inspect.samples import read_rows
    from opmix.data.sources import iter_documents
    from opmix.domain import Source

    rows = b"".join(json.dumps({"text": f"text {i} é"}).encode() + b"\n" for i in range(4))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats = b"".join(json.dumps({"messages": turns}).encode() + b"\n" for _ in range(3))
    sharegpt = json.dumps({"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}).encode()
    alpaca = json.dumps({"instruction": "a", "input": "", "output": "b"}).encode()
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    ]
    asked = json.dumps({"question": "a?", "choices": ["b", "c"], "answer": 1}).encode()
    named = json.dumps(
        {"question": "a?", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"}
    ).encode()
    table = io.BytesIO()
    pq.write_table(pa.table({"text": ["one", "two"], "n": [1, 2]}), table)

    def source(folder: Path, name: str) -> Source:
        return Source(paths=(str(folder / name),))

    def documents(name: str) -> Callable[[Path], object]:
        return lambda folder: drained(iter_documents(source(folder, name)))

    return [
        Parser("jsonl", "d.jsonl", (rows, b"[" + rows.replace(b"\n", b",")[:-1] + b"]"), documents("d.jsonl")),
        Parser("text", "d.txt", (b"one\n\ntwo\n",), documents("d.txt")),
        Parser("parquet", "d.parquet", (table.getvalue(),), documents("d.parquet")),
        Parser(
            "chat",
            "c.jsonl",
            (chats, sharegpt, alpaca, json.dumps({"messages": parts}).encode()),
            lambda f: drained(iter_conversations(source(f, "c.jsonl"))),
        ),
        Parser("questions", "q.jsonl", (asked, named), lambda f: drained(iter_questions(source(f, "q.jsonl")))),
        Parser("rows of init", "r.jsonl", (rows, chats), lambda f: read_rows(f / "r.jsonl", "jsonl")),
    ]


def of_tokens() -> list[Parser]:
    """Token ids with their indices, and what is kept of probes."""
    from opmix.data.sources import iter_token_documents
    from opmix.data.token_writers import TOKEN_WRITERS
    from opmix.domain import Source
    from opmix.probes.tasks import ProxyLosses

    def source(name: str, kind: str = "") -> Callable[[Path], object]:
        given = {"format": kind} if kind else {}
        return lambda f: drained(iter_token_documents(Source(paths=(str(f / name),), **given), 3))  # type: ignore[arg-type]

    def written(trainer: str, kind: str, suffix: str) -> list[Parser]:
        """A way for each file of a layout, beside its sound others."""
        with tempfile.TemporaryDirectory() as place:
            TOKEN_WRITERS[trainer].write(Path(place), [np.arange(1, 9), np.arange(5, 8)], "<u2", 8)
            files = {path.name: path.read_bytes() for path in Path(place).iterdir()}
        (read,) = (name for name in files if name.endswith(suffix))
        named = (
            (name, {n: c for n, c in files.items() if n != name}) for name in files if not name.endswith(".metadata")
        )
        return [Parser(f"{kind} {name}", name, (files[name],), source(read, kind), others) for name, others in named]

    tokens = npy(np.arange(64, dtype=np.uint16))
    return [
        *written("megatron", "megatron", ".bin"),
        *written("nanotron", "datatrove", ".ds"),
        *written("litdata", "litdata", ".bin"),
        Parser("npy", "t.npy", (tokens,), source("t.npy")),
        Parser(
            "sequences.npz",
            "s.npz",
            (tokens, npz(nll_0=np.ones((2, 3)), baseline=np.ones(2))),
            lambda f: ProxyLosses.load(f / "s.npz", ("a",)),
        ),
    ]


def of_tables() -> list[Parser]:
    """Finished runs."""
    from opmix.mixing.swarm import read_mixtures, read_prior, read_swarm
    from opmix.trackers.tables import read_csv_runs

    table = b"run,web,code,loss\na,0.5,0.5,3.1\nb,0.2,0.8,3.0\nc,0.9,0.1,2.9\nd,0.4,0.6,3.2\n"
    prefixed = b"run,ratio_a,ratio_b,loss_x\n" + b"".join(
        b"r%d,0.%d,0.%d,3.%d\n" % (i, i, 10 - i, i) for i in range(1, 9)
    )
    runs = b'name,config,summary\na,"{""web"": 0.5}","{""loss"": 3}"\n'
    shares = b"name,web,code\na,0.5,0.5\nb,0.2,0.8\n"
    return [
        Parser("swarm.csv", "t.csv", (table, prefixed), lambda f: read_swarm(f / "t.csv")),
        Parser("runs.csv", "r.csv", (runs,), lambda f: read_csv_runs(f / "r.csv")),
        Parser("mixtures.csv", "m.csv", (shares,), lambda f: read_mixtures(f / "m.csv", ("web", "code"))),
        Parser("prior", "p.json", (b'{"web": 0.5, "code": 0.5}',), lambda f: read_prior(f / "p.json", ("web", "code"))),
    ]


def of_runs() -> list[Parser]:
    """The files of a run folder."""
    from opmix.lifecycle.data_file import DataFile
    from opmix.report.card import run_card
    from opmix.results.asked import AskedFile
    from opmix.results.comparison import CompareFile
    from opmix.results.draws import LawDrawsFile
    from opmix.results.files import read_document
    from opmix.results.life import LifeFile
    from opmix.results.manifest import Manifest
    from opmix.results.mixture import MixtureFile
    from opmix.results.timing import TimingFile
    from opmix.results.verification import VerificationFile
    from opmix.runs.lock import lock_holder
    from opmix.runs.store import RunStore
    from opmix.runs.trace import read_spans
    from opmix.view.runs import read_run

    mixture, manifest = old_run("search/mixture.json"), old_run("search/manifest.json")
    span = b'{"name": "a", "kind": "step", "start": 1.0, "seconds": 2.0, "pid": 1, "thread": 1}\n'
    asked = json.dumps({"schema": 1, "settings": {"domains": ["a", "b"], "budget": 1000}, "runs": []}).encode()
    own: list[tuple[str, str, bytes, Callable[[Path], object]]] = [
        ("mixture.json", "mixture.json", mixture, MixtureFile.read),
        ("manifest.json", "manifest.json", manifest, Manifest.read),
        ("timing.json", "timing.json", old_run("search/timing.json"), TimingFile.read),
        ("life.json", "life.json", old_run("life/life.json"), LifeFile.read),
        ("data.json", "data.json", old_run("life/data.json"), DataFile.read),
        ("compare.json", "compare.json", old_run("compare/compare.json"), CompareFile.read),
        ("law_draws.json", "law_draws.json", old_run("search/law_draws.json"), LawDrawsFile.read),
        ("verification.json", "verification.json", old_run("search/verification.json"), VerificationFile.read),
        ("asked.json", "asked.json", asked, AskedFile.find),
        ("document", "x.json", mixture, lambda f: read_document(f / "x.json")),
        ("lock", "lock", json.dumps({"pid": 1, "host": "h"}).encode(), lock_holder),
        ("trace", "trace.jsonl", span, read_spans),
        ("record", "steps/a.json", old_run("search/steps/proxies.json"), lambda f: RunStore(f).found("a", "k")),
        ("row of a list", "mixture.json", mixture, lambda f: read_run(f.parent, f)),
    ]
    beside = {"mixture.json": mixture, "manifest.json": manifest}
    return [
        *(Parser(name, file, (seed,), parse) for name, file, seed, parse in own),
        Parser("manifest of a card", "manifest.json", (manifest,), lambda f: run_card(f).section(), beside),
    ]


def of_work() -> list[Parser]:
    """What processes leave each other."""
    from opmix.execution.attempts import note_of
    from opmix.execution.tasks import read_task

    task = json.dumps({"name": "a", "key": "k", "kind": "probe", "payload": {"steps": 1}}).encode()
    note = json.dumps({"attempt": "a1", "key": "k", "engine": "slurm", "job": "12"}).encode()
    return [
        Parser("task", "tasks/a.json", (task,), lambda f: read_task(f, "a")),
        Parser("job note", "tasks/a.job.json", (note,), lambda f: note_of(f, "a")),
    ]
