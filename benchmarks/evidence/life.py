"""A life of five continual stages, lived in several ways from the same base: what figures 3, 8 and 9 of the paper share.

A base from scratch learns two domains; five stages add one domain each. Ways to live: `opmix` (a search before every stage, training on
its optimum), `replay` (10 % of what was trained on last, so that early domains fade), `replay_even` (10 %, evenly over all old domains),
`uniform` (all domains so far), `sequential` (new data only), and `retrained`: at every stage a new model from scratch on all domains so
far, uniformly, for as many tokens as the life has had. All stages are equally long and share the schedule (WSD). Models and losses are
kept.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import torch
from common import (
    LENGTH,
    STEP_SEQUENCES,
    TRAINER,
    base_model,
    packed,
    parser,
    shared_domains,
    small_llama,
    tokenizer_for,
)
from continual import ContinualStage
from transformers import LlamaForCausalLM

from opmix.compute.flops import ModelShape
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.progress import Progress
from opmix.runs.files import write_json
from opmix.training.full import train_on_mixture

BASE = ["medical_nih", "math_metamath"]
NEW = ["code_python", "speeches_us", "reviews_movie", "legal_licenses", "bible_kjv"]
ORDERS = {"forward": NEW, "backward": NEW[::-1]}
SHARES = {"replay": 0.9, "replay_even": 0.9, "sequential": 1.0}
"""Of the new domain in the ways of living that do not search."""
WAYS = ("opmix", *SHARES, "uniform")
TEST = 100
"""Test sequences a domain."""


@dataclass(kw_only=True)
class Life:
    """One order and seed."""

    order: str
    seed: int
    out: Path
    data_folder: Path
    progress: Progress
    base_steps: int = 400
    steps: int = 150
    probe_steps: int = 45
    width: int = 64

    def __post_init__(self) -> None:
        lengths = f"{self.base_steps}-{self.steps}-{self.probe_steps}-{self.width}"
        self.home = self.out / f"life-{self.order}-seed{self.seed}-{lengths}"
        self.home.mkdir(parents=True, exist_ok=True)
        self.new = ORDERS[self.order]
        names = sorted([*BASE, *NEW])
        self.domains = shared_domains(self.data_folder, names)
        self.tokenizer = tokenizer_for(self.domains)
        self.cache = self.out / "cache"
        self.data = packed(self.domains, self.tokenizer, self.cache)
        base = self.out / f"life-base-seed{self.seed}-{self.base_steps}-{self.width}"  # the same in every order
        known = {n: self.data["train"][n] for n in BASE}
        start = base_model(base, self.tokenizer, known, Mixture.uniform(BASE), self.base_steps, self.seed, self.width)
        self.shape: ModelShape = model_shape(start)
        self.base = base

    @property
    def step_flops(self) -> float:
        """Of one step of full training."""
        return self.shape.train(LENGTH) * STEP_SEQUENCES * LENGTH

    @cached_property
    def test(self) -> dict[str, Any]:
        """Held-out sequences by domain."""
        return {n: held_out(n, rows, num=TEST, seed=self.seed) for n, rows in self.data["test"].items()}

    def known(self, stages: int) -> list[str]:
        """Domains after so many stages."""
        return [*BASE, *self.new[:stages]]

    def model_folder(self, way: str, stages: int) -> Path:
        """Of the model after so many stages lived in one way."""
        return self.base if stages == 0 else self.home / way / f"stage{stages}"

    def losses(self, way: str, stages: int) -> dict[str, float]:
        """Test loss by domain after so many stages, nats per token; also of domains still to come."""
        file = self.home / way / f"losses{stages}.json"
        if not file.exists():
            model = LlamaForCausalLM.from_pretrained(self.model_folder(way, stages))
            found = evaluate(model, list(self.test.values())).losses[0]
            write_json(file, dict(zip(self.test, map(float, found), strict=True)))
        return dict(json.loads(file.read_text()))

    def mixture(self, way: str, stages: int) -> Mixture:
        """What the model after so many stages was trained on last."""
        mixture = Mixture.uniform(BASE)
        for number in range(1, stages + 1):
            share = self._share(way, number)
            old = Mixture.uniform(self.known(number - 1)) if way in ("replay_even", "uniform") else mixture
            new = self.new[number - 1]
            parts = Mixture.of({"old": 1 - share, new: share}) if share < 1 else Mixture.of({new: 1.0})
            mixture = parts.expand({"old": old}) if share < 1 else parts
        return mixture

    def _share(self, way: str, number: int) -> float:
        """Of the new domain in stage `number`."""
        if way == "uniform":
            return 1 / len(self.known(number))
        searched = self.home / f"stage{number}" / "proposal.json"
        return SHARES.get(way) or float(json.loads(searched.read_text())["share"])

    def stage(self, number: int, way: str = "opmix") -> ContinualStage:
        """Stage 1 to 5, from where a way of living has come to."""
        home = self.home / (f"stage{number}" if way == "opmix" else f"{way}/work")
        home.mkdir(parents=True, exist_ok=True)
        return ContinualStage(
            home=home,
            base=LlamaForCausalLM.from_pretrained(self.model_folder(way, number - 1)),
            tokenizer=self.tokenizer,
            domains=self.domains,
            data=self.data,
            old=self.mixture(way, number - 1),
            new=self.new[number - 1],
            steps=self.steps,
            probe_steps=self.probe_steps,
            seed=self.seed,
            cache=self.cache,
            progress=self.progress,
            num_test=TEST,
        )

    def lived(self, number: int) -> dict[str, Any]:
        """Stage `number` by OP-Mix: search from the model so far, and training on its optimum. Share, action and FLOPs of the search."""
        folder, file = self.model_folder("opmix", number), self.home / f"stage{number}" / "proposal.json"
        if not (file.exists() and (folder / "config.json").exists()):
            stage = self.stage(number)
            result = stage.search()
            share = round(result.verdict.optimum.mixture[stage.new], 4)
            stage.trained(share, keep=folder)
            flops = result.ledger.total("flops", ["probes", "proxies"])
            write_json(file, {"share": share, "action": result.verdict.decision.action, "search_flops": flops})
        return dict(json.loads(file.read_text()))

    def fixed(self, way: str, number: int) -> None:
        """Stage `number` on a fixed share, from where that way of living has come to."""
        folder = self.model_folder(way, number)
        if not (folder / "config.json").exists():
            model = LlamaForCausalLM.from_pretrained(self.model_folder(way, number - 1))
            self._train(model, self.mixture(way, number), self.steps, TRAINER, folder, f"{way}, stage {number}")

    def retrained(self, number: int, way: str = "retrained", rate: float = 3e-3) -> None:
        """From scratch on all domains up to stage `number`, at the base's own learning rate unless said otherwise."""
        folder = self.model_folder(way, number)
        if not (folder / "config.json").exists():
            torch.manual_seed(self.seed)
            model = small_llama(self.tokenizer, self.width)
            mixture, steps = Mixture.uniform(self.known(number)), self.base_steps + number * self.steps
            self._train(
                model, mixture, steps, {**TRAINER, "learning_rate": rate}, folder, f"from scratch, {steps} steps"
            )

    def _train(
        self, model: Any, mixture: Mixture, steps: int, arguments: Mapping[str, Any], folder: Path, name: str
    ) -> None:
        train_on_mixture(
            model,
            self.data["train"],
            mixture,
            tokens=steps * STEP_SEQUENCES * LENGTH,
            arguments=arguments,
            seed=self.seed + 1,
            output_dir=self.home / "trainer",
            progress=self.progress,
            name=f"{self.order}, seed {self.seed}: {name}",
        )
        model.save_pretrained(folder)


def lives(args: Any, progress: Progress) -> list[Life]:
    """Every order and seed that was asked for."""
    return [
        Life(
            order=order,
            seed=seed,
            out=args.out,
            data_folder=args.data,
            base_steps=args.base_steps,
            steps=args.steps,
            probe_steps=args.probe_steps,
            width=args.width,
            progress=progress,
        )
        for seed in args.seeds
        for order in args.orders
    ]


def lengths(args: Any) -> dict[str, int]:
    """What the results depend on besides order and seed."""
    return {"base_steps": args.base_steps, "steps": args.steps, "probe_steps": args.probe_steps, "width": args.width}


def life_parser(description: str | None) -> Any:
    """Arguments of everything about lives."""
    arguments = parser(description)
    arguments.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    arguments.add_argument("--orders", nargs="+", choices=ORDERS, default=list(ORDERS))
    arguments.add_argument("--base-steps", type=int, default=Life.base_steps)
    arguments.add_argument("--steps", type=int, default=Life.steps, help="of a stage")
    arguments.add_argument("--probe-steps", type=int, default=Life.probe_steps)
    arguments.add_argument(
        "--width", type=int, default=Life.width, help="of the model: 64 is 0.34 M parameters, 128 is 1.1 M"
    )
    return arguments
