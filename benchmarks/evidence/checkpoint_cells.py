"""The stages of checkpoint.py, and its two kinds of job: a search, and a full training that judges searches."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch

from opmix.cli.console import quiet_libraries
from opmix.config import parse_config
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import prepare_stage
from opmix.mixture_search.search import run_search
from opmix.models.load import load_model, load_tokenizer
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.progress import Silent
from opmix.runs.files import write_json
from opmix.training.full import train_on_mixture

GENERAL = ("dictionary", "reviews_movie", "speeches_us", "legal_licenses")
EVERY = (*GENERAL, "medical_nih", "math_metamath", "bible_kjv", "docs_python")
SHARES = (0.1, 0.25, 0.4, 0.6, 0.8)
KINDS = ("lora", "lora+embeddings", "full")
SINGLE = 0.65
TRAINER = {"per_device_train_batch_size": 8, "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 10}


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    length: int
    steps: int
    probe_steps: int
    test: int
    held_out: int

    @property
    def tokens(self) -> int:
        return self.steps * TRAINER["per_device_train_batch_size"] * self.length  # type: ignore[operator, no-any-return]


WHOLE, QUICK = Sizes(512, 120, 24, 32, 24), Sizes(128, 2, 2, 6, 6)


@dataclass(frozen=True)
class Cell:
    """A stage: what is old, what is new, or what is aimed at."""

    name: str
    old: tuple[str, ...]
    new: tuple[str, ...] = ()
    target: str = ""
    seeds: tuple[int, ...] = (0, 1)

    @property
    def domains(self) -> tuple[str, ...]:
        return (*self.old, *self.new)

    def arms(self) -> dict[str, Mixture]:
        """Mixtures that no search chose."""
        if self.target:
            even = Mixture.uniform(self.domains)
            rest = (1 - SINGLE) / (len(self.domains) - 1)
            return {
                "uniform": even,
                **{d: Mixture.of({n: SINGLE if n == d else rest for n in self.domains}) for d in EVERY[1::2]},
            }
        made = {f"{s:.2f}": self.mixed(dict.fromkeys(self.new, s / len(self.new))) for s in SHARES}
        if len(self.new) == 2:
            first, second = self.new
            made |= {f"{a:.2f} + {b:.2f}": self.mixed({first: a, second: b}) for a, b in ((0.4, 0.1), (0.1, 0.4))}
        return made

    def mixed(self, new: Mapping[str, float]) -> Mixture:
        left = (1 - sum(new.values())) / len(self.old)
        return Mixture.of({**dict.fromkeys(self.old, left), **new})


CELLS = {
    c.name: c
    for c in (
        Cell("mathematics", GENERAL, ("math_metamath",)),
        Cell("aim-medicine", EVERY, target="medical_medquad"),
        Cell("scripture", GENERAL, ("bible_kjv",)),
        Cell("two", GENERAL, ("math_metamath", "bible_kjv")),
        Cell("aim-code", EVERY, target="code_mbpp"),
        Cell("medicine", GENERAL, ("medical_nih",)),
    )
}


@dataclass(frozen=True)
class Setting:
    """What all jobs of a run share; small, for it is sent to every process."""

    out: Path
    data: Path
    model: Path
    sizes: Sizes

    def told(self, cell: Cell, seed: int, kind: str = "lora") -> dict[str, Any]:
        """The search, as a user would write it."""
        files = {
            n: {s: str(self.data / "pretrain" / n / f"{s}.jsonl.gz") for s in ("train", "valid")} for n in cell.domains
        }
        target = (
            {}
            if not cell.target
            else {
                "targets": {
                    cell.target: {"valid": str(self.data / "instruct" / cell.target / "valid.jsonl.gz"), "kind": "chat"}
                }
            }
        )
        return {
            "model": str(self.model),
            "domains": files,
            **target,
            "objective": "causal_lm",
            "old_mixture": dict.fromkeys(cell.old, 1 / len(cell.old)),
            "budget": self.sizes.tokens,
            "sequence_length": self.sizes.length,
            "trainer": TRAINER,
            "probes": {"kind": kind, "steps": self.sizes.probe_steps},
            "proxies": {"eval_sequences": self.sizes.held_out},
            "cache_dir": str(self.out / "cache"),
            "seed": seed,
        }


@dataclass(frozen=True)
class Job:
    """One search (`kind` given) or one training (`shares` given)."""

    cell: str
    seed: int
    name: str
    kind: str = ""
    shares: tuple[tuple[str, float], ...] = ()

    def file(self, out: Path) -> Path:
        return out / self.cell / f"s{self.seed}" / ("searches" if self.kind else "trainings") / f"{self.name}.json"


@cache
def tokenizer_of(model: Path) -> Any:
    return load_tokenizer(model)


def stage_of(setting: Setting, told: Mapping[str, Any]) -> Any:
    return prepare_stage(
        parse_config(dict(told)),
        tokenizer_of(setting.model),
        base=Path.cwd(),
        cache_dir=setting.out / "cache",
        progress=Silent(),
    )


def searched(setting: Setting, job: Job) -> dict[str, Any]:
    """What the search said, and its law at the cell's arms."""
    cell = CELLS[job.cell]
    found = run_search(
        parse_config(setting.told(cell, job.seed, job.kind)),
        model=load_model(setting.model, dtype="float32"),
        tokenizer=tokenizer_of(setting.model),
        out=None,
    )
    decision, law = found.verdict.decision, found.law
    reference = next(a for a in found.verdict.alternatives if a.name == decision.reference)

    def at(mixture: Mixture) -> dict[str, float]:
        shares = dict(mixture)
        row = [shares[d] if d in shares else sum(shares[o] for o in cell.old) for d in law.domains]
        return dict(zip(law.metrics, law.predict(np.array([row]))[0].tolist(), strict=True))

    mixtures = {"optimum": found.verdict.optimum.mixture, "recommended": found.mixture, "reference": reference.mixture}
    return {
        "mixtures": {n: dict(m) for n, m in mixtures.items()},
        "foretold": {n: at(m) for n, m in {**cell.arms(), **mixtures}.items()},
        "action": decision.action,
        "reason": decision.reason,
        "gain": decision.gain,
        "gain_interval": list(decision.gain_interval),
        "direct_gain": decision.direct_gain,
        "direct_error": decision.direct_error,
        "interval": {n: list(v) for n, v in found.interval.items()},
        "search_share": found.search_share,
    }


def trained(setting: Setting, job: Job) -> dict[str, Any]:
    """Test losses after the whole stage on a mixture."""
    cell, sizes = CELLS[job.cell], setting.sizes
    data = stage_of(setting, setting.told(cell, job.seed))
    model = load_model(setting.model, dtype="float32")
    test = [held_out(n, rows, num=sizes.test, seed=0) for n, rows in data.evaluated("test").items()]
    before = evaluate(model, test).losses[0]
    with tempfile.TemporaryDirectory() as folder:
        train_on_mixture(
            model,
            data.train,
            Mixture.of(dict(job.shares)),
            tokens=sizes.tokens,
            arguments=TRAINER,
            seed=job.seed + 1,
            output_dir=Path(folder),
            progress=Silent(),
            name=job.name,
        )
    losses = evaluate(model, test).losses[0]
    names = [h.name for h in test]
    return {
        "mixture": dict(job.shares),
        "parameters": sum(p.numel() for p in model.parameters()),
        "before": dict(zip(names, before.tolist(), strict=True)),
        "losses": dict(zip(names, losses.tolist(), strict=True)),
    }


def work(setting: Setting, job: Job) -> dict[str, Any]:
    """In a process of its own: do a job, write its file."""
    quiet_libraries()
    torch.backends.cuda.matmul.allow_tf32 = True
    started = time.perf_counter()
    with contextlib.redirect_stderr(Path(os.devnull).open("w")):
        made = searched(setting, job) if job.kind else trained(setting, job)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    made |= {"seconds": time.perf_counter() - started, "device": device}
    write_json(job.file(setting.out), made)
    return made
