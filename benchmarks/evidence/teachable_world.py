"""The model, the data and the sizes of `teachable.py`, and how a model is judged there.

After the checkpoint come two skills, one after the other. One domain of conversations, Python tasks, stands for what the checkpoint was
tuned on before, and is what can be replayed. Two skills and three kinds of text are never trained on: what is forgotten shows there.
Losses are of answers (of texts: of everything), on conversations of the test files. `valid` chooses rates, laws and mixtures.
"""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch

from opmix.data import TokenSplit
from opmix.domain import Domain, Source
from opmix.models.load import load_model, load_tokenizer
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.progress import Silent
from opmix.scores import extractor_of, score_split
from opmix.scores.generate import greedy_answers
from opmix.scores.task import question_and_answer
from opmix.settings import as_json
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains
from opmix.training.distillation import SelfDistillation
from opmix.training.plan import supervised_per_step
from opmix.training.settings import DEMONSTRATION, DistillationSettings
from opmix.training.stage_data import StageData, prepare_data, stop_ids

OLD, FIRST, SECOND = "code_mbpp", "tool_use", "biomed_pubmedqa"
SKILLS = {FIRST: "json", SECOND: "first_word"}
"""What is taught, in this order, and what of an answer is compared."""
NEVER = ("math_gsm8k", "medical_medquad")
TEXTS = ("speeches_us", "medical_nih", "code_python")
RATES = {"sft": (1e-4, 3e-4, 1e-3), "sdft": (3e-5, 1e-4, 3e-4)}
"""Learning rates that are tried, of full training."""
ASKS = {
    "words": DEMONSTRATION,
    "right": "{prompt}\n\nThe right answer is:\n{demonstration}\n\nGive the right answer.",
    "repeat": "{demonstration}\n\nThe lines above answer the following. Repeat them word for word.\n\n{prompt}",
}
"""How a teacher may be shown the answer; the one after which the checkpoint is right most often is used."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What every result depends on."""

    steps: int = 30
    """Of a stage."""
    probe_steps: int = 8
    batch: int = 32
    """Rows of an average domain in a step."""
    length: int = 512
    answer: int = 48
    """Tokens that a student writes at most."""
    held_out: int = 64
    """Rows of a set that losses are of."""
    items: int = 100
    """Questions of a test."""
    scored: int = 96
    """Tokens of an answer that is scored, at most."""
    asked: int = 100
    """Training questions whose answer the checkpoint is shown, in every way."""
    sft_rates: int = 3
    """How many learning rates are tried, the lowest first."""
    sdft_rates: int = 3
    """The same for self-distillation."""
    abstract: int = 0
    """Words that are left of a biomedical abstract, its end; 0: all."""


TINY = Sizes(steps=4, probe_steps=1, batch=4, length=160, answer=4, held_out=4, items=4, scored=4, asked=4)
SMALL = Sizes(
    steps=24,
    probe_steps=6,
    batch=6,
    length=320,
    answer=40,
    held_out=12,
    items=40,
    scored=64,
    asked=24,
    sft_rates=2,
    sdft_rates=1,  # of three at the larger sizes by far the best
    abstract=80,
)
"""A seventh of the rows, short ones, for two cores of a CPU that multiplies in bfloat16."""


@dataclass(frozen=True, kw_only=True)
class World:
    """Everything that all arms share; lies in `out`."""

    out: Path
    sizes: Sizes
    device: str
    data: Path | None = None
    """The shared data; None: toy conversations and a model of two layers."""
    model: str | None = None

    @property
    def start(self) -> Path:
        """The checkpoint as a plain folder."""
        return self.out / "start"

    def begin(self) -> None:
        """Write the checkpoint, or the toy in its place."""
        if (self.start / "config.json").exists():
            return
        if self.data is None:
            tokenizer = tiny_chat_tokenizer()
            model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=512)
        else:
            assert self.model is not None
            tokenizer, model = load_tokenizer(self.model), load_model(self.model, dtype="float32", device="cpu")
        tokenizer.save_pretrained(self.start)
        model.save_pretrained(self.start)

    @cached_property
    def files(self) -> dict[str, dict[str, Any]]:
        """Domains as a configuration names them. `valid` is split off train: the valid files, which share no group with train, judge."""
        chat = {"supervise": "last", "packing": False}
        if self.data is None:
            toys = write_toy_chats(self.out / "toys", dict.fromkeys((OLD, *SKILLS, *NEVER), 1), 120)
            return {n: {"train": str(f), "holdout": 0.2, "chat": chat} for n, f in toys.items()}
        home = (self.data / "instruct").resolve()
        both = {n: (home / n / "train.jsonl.gz", home / n / "valid.jsonl.gz") for n in (OLD, *SKILLS, *NEVER)}
        if self.sizes.abstract:  # or scores would be of long questions that nothing was trained on
            both = {n: (self._short(n, a), self._short(n, b)) for n, (a, b) in both.items()}
        return {n: {"train": str(a), "test": str(b), "holdout": 0.1, "chat": chat} for n, (a, b) in both.items()}

    def _short(self, name: str, file: Path) -> Path:
        """The conversations that fit; of biomedical ones the end of the abstract, where the results are."""
        short = (self.out / "short" / name / file.name).resolve()
        if not short.exists():
            rows = [json.loads(line) for line in gzip.decompress(file.read_bytes()).splitlines()]
            for row in rows if name == SECOND else ():
                abstract, question = row["messages"][0]["content"].split("\n\nQuestion: ")
                words = abstract.removeprefix("Abstract:\n").split()[-self.sizes.abstract :]
                row["messages"][0]["content"] = "Abstract:\n" + " ".join(words) + "\n\nQuestion: " + question
            texts = [self.tokenizer.apply_chat_template(row["messages"], tokenize=False) for row in rows]
            sizes = [len(ids) for ids in self.tokenizer(texts)["input_ids"]]
            kept = [json.dumps(r) + "\n" for r, n in zip(rows, sizes, strict=True) if n <= self.sizes.length]
            short.parent.mkdir(parents=True, exist_ok=True)
            short.write_bytes(gzip.compress("".join(kept).encode(), mtime=0))
        return short

    @cached_property
    def judged(self) -> StageData:
        """All conversations and texts."""
        if self.data is None:
            texts = {n: str(f) for n, f in write_toy_domains(self.out / "toys", TEXTS, 60).items()}
        else:  # the small files: texts are only looked at
            texts = {n: str((self.data / "pretrain" / n / "valid.jsonl.gz").resolve()) for n in TEXTS}
        return self.prepared(
            {**self._domains, **{n: Domain(name=n, train=Source(paths=(t,)), holdout=0.4) for n, t in texts.items()}}
        )

    @property
    def _domains(self) -> dict[str, Domain]:
        from opmix.config import parse_config

        told = {"model": "m", "domains": self.files, "budget": {"tokens": 1}, "sequence_length": self.sizes.length}
        return dict(parse_config(told).domains)

    def prepared(self, domains: Mapping[str, Domain], sdft: DistillationSettings | None = None) -> StageData:
        """Tokenised; with the contexts of a teacher where `sdft` says what it is asked."""
        return prepare_data(
            domains,
            self.tokenizer,
            objective="sft" if sdft is None else "sdft",
            sdft=sdft or DistillationSettings(),
            sequence_length=self.sizes.length,
            cache_dir=self.out / "cache",
            num_proc=1,
            progress=Silent(),
        )

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's."""
        return load_tokenizer(self.start)

    def chats(self, names: tuple[str, ...], sdft: DistillationSettings | None = None) -> StageData:
        """Some of the conversations."""
        return self.prepared({n: d for n, d in self._domains.items() if n in names}, sdft)

    def stage_tokens(self) -> list[int]:
        """Supervised tokens of the two stages."""
        arguments, train = {"batch": self.sizes.batch}, self.judged.train
        offered = [(OLD, FIRST), (OLD, FIRST, SECOND)]
        return [round(self.sizes.steps * supervised_per_step({n: train[n] for n in o}, arguments)) for o in offered]

    def rates(self, objective: str) -> tuple[float, ...]:
        """Learning rates that are tried."""
        return RATES[objective][: self.sizes.sft_rates if objective == "sft" else self.sizes.sdft_rates]

    def judge(self, folder: Path, *, taught: Sequence[str] = tuple(SKILLS)) -> dict[str, Any]:
        """Losses of a model on `valid` and `test`, nats per token, and right answers with Wilson's interval.

        On a CPU what no table shows is left out: scores of what is not `taught` yet, and `valid` once everything is.
        """
        all_of_it, chooses = self.reading is None, taught != tuple(SKILLS) or folder == self.start
        model, found = load_model(folder, dtype="float32", device=self.device), {}
        for split in ("valid", "test"):
            rows = self.judged.rows(split)
            if split == "valid" and not all_of_it:
                rows = {n: rows[n] for n in (OLD, *taught)} if chooses else {}
            sets = [held_out(n, r, num=self.sizes.held_out, seed=0) for n, r in rows.items()]
            if not sets:
                continue
            losses = evaluate(model, sets, dtype=self.reading)
            found[split] = dict(zip(losses.names, map(float, losses.losses[0]), strict=True))
            errors = dict(zip(losses.names, map(float, losses.standard_errors[0]), strict=True))
        writer = model.to(self.reading or torch.float32)
        return {
            **found,
            "error": errors,
            "scores": {n: self.score(writer, n) for n in (SKILLS if all_of_it else taught)},
        }

    @property
    def reading(self) -> torch.dtype | None:
        """What models are judged in: on a CPU, where it is half the time, bfloat16 as in training; None: float32."""
        return None if self.device.startswith("cuda") or self.data is None else torch.bfloat16

    def score(self, model: Any, skill: str) -> dict[str, Any]:
        """Right answers of a skill's test, and what saying always the same would get."""
        domain, extract = self.judged.domains[skill], self.extractor(skill)
        score = score_split(
            model,
            self.tokenizer,
            domain.test,
            extract,
            num=self.sizes.items,
            max_new_tokens=self.sizes.scored,
            stop_ids=stop_ids(self.tokenizer, {skill: domain.train}),
            batch_size=self.together,
        )
        return {
            **score.json(),
            "outcomes": {str(k): v for k, v in score.outcomes.items()},
            "same": self._always(domain.test, extract),
        }

    @property
    def together(self) -> int:
        """Questions that are answered at a time: a CPU gains nothing from more, and pads them to the longest."""
        return 64 if self.device.startswith("cuda") else 12

    def shown(self) -> dict[str, Any]:
        """How often the checkpoint is right, on training questions, when it is shown the answer in each of the ways, and when not."""
        model, found = load_model(self.start, dtype="float32", device=self.device), {}
        model = model.to(self.reading or torch.float32)
        for skill in SKILLS:
            for ask, text in {"nothing": "", **ASKS}.items():
                told = distillation(self.sizes, demonstration=text)
                data = self.chats((skill,), DistillationSettings(**told))
                assert isinstance(data.objective, SelfDistillation)
                contexts, split, extract = (
                    data.objective.contexts[skill],
                    data.domains[skill].train,
                    self.extractor(skill),
                )
                chosen = (
                    np.linspace(0, split.num_documents - 1, min(self.sizes.asked, split.num_documents))
                    .astype(int)
                    .tolist()
                )
                pairs = [question_and_answer(split, i) for i in chosen]
                shown = [
                    contexts.tokens[contexts.offsets[i] : contexts.offsets[i + 1]].astype(np.int64) for i in chosen
                ]
                said = greedy_answers(
                    model,
                    [q for q, _ in pairs] if ask == "nothing" else shown,
                    stop_ids=data.objective.stop_ids,
                    max_new_tokens=self.sizes.scored,
                    batch_size=self.together,
                )
                same = [
                    self.compared(extract, a) == self.compared(extract, b)
                    for a, (_, b) in zip(said, pairs, strict=True)
                ]
                found.setdefault(ask, {})[skill] = {"right": sum(same), "total": len(same)}
        return found

    def compared(self, extract: Any, answer: Any) -> Any:
        """What of an answer counts."""
        return extract(self.tokenizer.decode(answer, skip_special_tokens=True))

    def extractor(self, skill: str) -> Any:
        """Toy answers hold no JSON."""
        return extractor_of("first_word" if self.data is None else SKILLS[skill])

    def _always(self, split: TokenSplit, extract: Any) -> float:
        said = [self.compared(extract, question_and_answer(split, i)[1]) for i in range(split.num_documents)]
        return max(map(said.count, set(said))) / len(said)

    @property
    def facts(self) -> dict[str, Any]:
        """What a record must have been made with."""
        return {
            **asdict(self.sizes),
            "toy": self.data is None,
            "asks": sorted(ASKS),
            "model": Path(self.model).name if self.model else None,
        }


def distillation(sizes: Sizes, **changes: Any) -> dict[str, Any]:
    """How self-distillation is done: nothing is skipped, because the first token of a short answer is half of it."""
    return dict(as_json(DistillationSettings(**{"max_new_tokens": sizes.answer, "skip_tokens": 0, **changes})))


def device_facts(device: str) -> str:
    """What it ran on."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def read(path: Path) -> Any:
    """A record."""
    return json.loads(path.read_text(encoding="utf-8"))
