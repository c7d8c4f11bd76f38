"""A stage of six unlike domains (the demo's until 2026-11-26) as a laboratory, with every full training kept and never done twice.

A model of 1.1 M parameters is trained on the uniform mixture for a prefix; `true_losses` trains a copy on any mixture for the
stage and reads the test split, which no search sees. Mixtures are compared on equal tokens, same seed, same base.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from common import PREFIX_STEPS, STAGE_STEPS, rebalancing_config
from transformers import LlamaForCausalLM

from opmix.config import SearchConfig
from opmix.data import PackedSequences, prepare_domain
from opmix.demo.run import (
    LENGTH,
    PREFIX_TRAINER,
    STAGE_TRAINER,
    STEP_SEQUENCES,
    new_model,
    train_tokenizer,
)
from opmix.demo.texts import write_domains
from opmix.mixing.mixture import Mixture
from opmix.probes.evaluation import HeldOut, evaluate
from opmix.probes.held_out import held_out
from opmix.progress import Progress
from opmix.runs.files import write_json
from opmix.training.full import train_on_mixture

RESULTS = Path(__file__).parent / "results"
UP, DOWN = 2.0, 0.36
"""Factors on one domain's uniform share in the grid: 1/6 becomes 0.33 or 0.06."""


@dataclass
class RebalancingStage:
    """One seed's stage."""

    seed: int
    out: Path
    progress: Progress

    def __post_init__(self) -> None:
        self.out.mkdir(parents=True, exist_ok=True)
        files = write_domains(self.out.parent / "data")
        self.names = tuple(files)
        self.tokenizer = train_tokenizer(files)
        self.config: SearchConfig = rebalancing_config(files, self.out, self.seed)
        cache = self.out.parent / "cache"
        data = {
            n: prepare_domain(d.located(self.out), self.tokenizer, cache_dir=cache)
            for n, d in self.config.domains.items()
        }
        self.train = {n: PackedSequences(d.train, LENGTH) for n, d in data.items()}
        self.test: list[HeldOut] = [
            held_out(n, PackedSequences(d.test, LENGTH), num=128, seed=self.seed) for n, d in data.items()
        ]
        self.uniform = Mixture.uniform(self.names)
        self.base = self._base()

    def _base(self) -> LlamaForCausalLM:
        folder = self.out / "base"
        if not (folder / "config.json").exists():
            model = new_model(self.tokenizer, self.seed)
            train_on_mixture(
                model,
                self.train,
                self.uniform,
                tokens=PREFIX_STEPS * STEP_SEQUENCES * LENGTH,
                arguments=PREFIX_TRAINER,
                seed=self.seed,
                output_dir=self.out / "trainer",
                progress=self.progress,
                name="prefix",
            )
            model.save_pretrained(folder)
        return LlamaForCausalLM.from_pretrained(folder)

    def known(self, mixture: Mixture) -> bool:
        """Whether the full training on `mixture` was done."""
        file = RESULTS / f"rebalancing-trainings-seed{self.seed}.json"
        shares = {n: round(float(s), 6) for n, s in mixture.on(self.names).items()}
        return file.exists() and any(_same(e["shares"], shares) for e in json.loads(file.read_text()))

    def true_losses(self, mixture: Mixture, seed: int | None = None) -> dict[str, float]:
        """Test losses after the stage on `mixture`, nats per token; kept in `trainings.json`."""
        file = RESULTS / f"rebalancing-trainings-seed{self.seed}.json"
        known: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []
        shares = {n: round(float(s), 6) for n, s in mixture.on(self.names).items()}
        order = self.seed + 1 if seed is None else seed
        for entry in known:
            if _same(entry["shares"], shares) and entry["order"] == order:
                return dict(entry["losses"])
        model = copy.deepcopy(self.base)
        train_on_mixture(
            model,
            self.train,
            mixture,
            tokens=STAGE_STEPS * STEP_SEQUENCES * LENGTH,
            arguments=STAGE_TRAINER,
            seed=order,
            output_dir=self.out / "trainer",
            progress=self.progress,
            name=f"full training {len(known) + 1}",
        )
        losses = dict(zip(self.names, map(float, evaluate(model, self.test).losses[0]), strict=True))
        write_json(file, [*known, {"shares": shares, "order": order, "losses": losses}])
        return losses

    def grid(self) -> dict[str, Mixture]:
        """Uniform, and each domain doubled or cut to about a third, the others scaled alike."""
        made = {"uniform": self.uniform}
        for name in self.names:
            for label, factor in (("+", UP), ("-", DOWN)):
                share = factor / len(self.names)
                rest = (1 - share) / (len(self.names) - 1)
                made[f"{name}{label}"] = Mixture.of({n: share if n == name else rest for n in self.names})
        return made


def _same(a: Mapping[str, float], b: Mapping[str, float]) -> bool:
    """Mixtures that differ by less than one sequence in five hundred are one training."""
    return all(abs(a[name] - b[name]) < 2e-3 for name in b)


def mean(losses: Mapping[str, float]) -> float:
    """Mean over evaluation sets."""
    return float(np.mean(list(losses.values())))


def parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of every script here."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--out", type=Path, default=Path("runs/evidence"))
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    return arguments
