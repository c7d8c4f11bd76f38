"""What the race of predictors trains and measures in a cell, each unit of work once, its raw numbers in a file of its own.

Searches see the valid split; full trainings are judged on the test split. Every number that a predictor needs is kept by sequence, so
that any predictor can be computed later without a model.
"""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import get_peft_model
from predictor_cells import BATCH, Cell
from predictor_texts import LENGTH
from transformers import LlamaForCausalLM, TrainerCallback

from opmix.mixing.design import StageDesign, design_stage
from opmix.mixing.mixture import InterpolationWeights, Mixture
from opmix.models import from_scratch as scratch
from opmix.probes.adapters import DeltaSet
from opmix.probes.evaluation import HeldOut
from opmix.probes.interpolation import make_proxies
from opmix.probes.session import ProbeSettings
from opmix.progress import Silent
from opmix.runs.files import write_json
from opmix.training.factory import TrainSpec, default_trainer
from opmix.training.full import train_on_mixture

PREFIX = {
    "per_device_train_batch_size": BATCH,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant_with_warmup",
    "warmup_steps": 30,
    "weight_decay": 0.1,
}
STAGE = {**PREFIX, "learning_rate": 2e-3, "lr_scheduler_type": "linear", "warmup_steps": 20}
FULL_PROBE = {**STAGE, "lr_scheduler_type": "constant", "warmup_steps": 0}
LOOKS = (8, 4, 2, 1)
"""A probe is looked at after its steps divided by these."""
SWARM = 14
"""Runs of the swarm; together they have the probes' steps."""
SAME = 0.02
"""Mixtures that are less apart than this in total variation are one training."""

Row = dict[str, list[float]]
"""Summed nats of each sequence, by set."""


@torch.no_grad()
def token_losses(model: Any, held: HeldOut) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Nats of every token but the first, (S, T - 1)."""
    was, rows = model.training, []
    model.eval()
    for first in range(0, len(held.input_ids), 16):
        ids = torch.as_tensor(held.input_ids[first : first + 16])
        logits = model(input_ids=ids).logits[:, :-1]
        rows.append(
            torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            .view(len(ids), -1)
            .numpy()
        )
    model.train(was)
    return np.concatenate(rows)


def measured(model: Any, sets: Sequence[HeldOut]) -> Row:
    return {h.name: token_losses(model, h).sum(axis=1).round(4).tolist() for h in sets}


class At(TrainerCallback):
    """Does something after some steps."""

    def __init__(self, steps: Sequence[int], work: Callable[[int, Any], None]) -> None:
        self.steps, self.work = set(steps), work

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step in self.steps:
            self.work(state.global_step, kwargs["model"])


@dataclass(frozen=True)
class Laboratory:
    """A cell with its models."""

    cell: Cell

    @cached_property
    def folder(self) -> Path:
        return self.cell.out / self.cell.name

    @cached_property
    def base(self) -> LlamaForCausalLM:
        """The model of this age; both ages of a pool are one life."""
        lengths = self.cell.lengths
        home = self.cell.out / "bases" / f"{self.cell.pool.name}-{self.cell.size}"
        if not (home / "grown" / "config.json").exists():
            model = scratch.new_model(lengths.architecture, self.cell.text.tokenizer, self.cell.seed)
            saved = At(
                [lengths.young, lengths.grown],
                lambda step, m: m.save_pretrained(home / ("young" if step == lengths.young else "grown")),
            )
            self.trained(model, self.cell.uniform, lengths.grown, PREFIX, self.cell.seed, saved)
        return LlamaForCausalLM.from_pretrained(home / self.cell.age)

    @cached_property
    def valid(self) -> list[HeldOut]:
        return self.cell.text.held_out("valid", self.cell.lengths.held_out)

    @cached_property
    def test(self) -> list[HeldOut]:
        return self.cell.text.held_out("test", self.cell.lengths.test)

    @cached_property
    def design(self) -> StageDesign:
        """The default's of d824eca: joint and one probe a domain at 0.9, and its averaged points."""
        return design_stage(self.cell.domains, self.cell.uniform, seed=self.cell.seed)

    @cached_property
    def rows(self) -> Mapping[str, Any]:
        return self.cell.text.train()

    def trained(
        self,
        model: Any,
        mixture: Mixture,
        steps: int,
        arguments: Mapping[str, Any],
        seed: int,
        *callbacks: TrainerCallback,
    ) -> None:
        def factory(spec: TrainSpec) -> Any:
            if spec.steps != steps:
                raise RuntimeError(f"{spec.steps} steps planned instead of {steps}")
            return default_trainer(replace(spec, callbacks=[*spec.callbacks, *callbacks]))

        train_on_mixture(
            model,
            self.rows,
            mixture,
            tokens=steps * BATCH * LENGTH,
            arguments=arguments,
            seed=seed,
            output_dir=self.cell.out / "trainer",
            progress=Silent(),
            name="",
            make_trainer=factory,
        )

    # -- units of work ------------------------------------------------------------------------------------------------

    def unit(self, name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """A unit's numbers, made where they are missing."""
        file = self.folder / f"{name}.json"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, work())
        found: dict[str, Any] = json.loads(file.read_text())
        return found

    def trainings(self) -> list[dict[str, Any]]:
        """All full trainings of the cell so far."""
        return [json.loads(f.read_text()) for f in sorted((self.folder / "trainings").glob("*.json"))]

    def full_training(self, mixture: Mixture, name: str, order: int = 0) -> dict[str, Any]:
        """Test losses after the stage; a mixture that was trained on already, or nearly, is not trained again."""
        for found in self.trainings():
            if found["order"] == order and 0.5 * np.abs(np.array(found["mixture"]) - mixture.weights).sum() < SAME:
                return found

        number = len(self.trainings())
        return self.unit(f"trainings/{number:03d}", lambda: self.stage(mixture, name, order))

    def stage(self, mixture: Mixture, name: str, order: int) -> dict[str, Any]:
        """Train the whole stage; its numbers."""
        model = copy.deepcopy(self.base)
        self.trained(model, mixture, self.cell.lengths.stage, STAGE, self.cell.seed + 1 + 100 * order)
        return {"name": name, "mixture": mixture.weights.tolist(), "order": order, "test": measured(model, self.test)}

    def start(self) -> dict[str, Any]:
        """The base's own losses, and what a cell is made of."""

        def work() -> dict[str, Any]:
            cell, pool = self.cell, self.cell.pool
            facts = {"pool": pool.name, "use": pool.use, "age": cell.age, "size": cell.size, "seed": cell.seed}
            sets = {"domains": cell.domains, "targets": cell.targets}
            told = {
                "lengths": vars(cell.lengths),
                "parameters": sum(p.numel() for p in self.base.parameters()),
                "tokens_per_sequence": LENGTH - 1,
                "step_tokens": BATCH * LENGTH,
                "available": {n: len(r) * LENGTH for n, r in self.rows.items()},
                "R": self.design.probes.R.tolist(),
            }
            return {
                **facts,
                **sets,
                **told,
                "valid": measured(self.base, self.valid),
                "test": measured(self.base, self.test),
            }

        return self.unit("start", work)

    def looked_at(self, model: Any, mixture: Mixture, arguments: Mapping[str, Any], steps: int) -> list[dict[str, Any]]:
        """Train a probe; its losses at every look, at the early ones on half of the sequences."""
        looks: list[dict[str, Any]] = []
        half = [h.first(len(h.input_ids) // 2) for h in self.valid]

        def look(step: int, trained: Any) -> None:
            looks.append({"step": step, "nll": measured(trained, self.valid if step == steps else half)})

        self.trained(model, mixture, steps, arguments, self.cell.seed, At([max(1, steps // k) for k in LOOKS], look))
        return looks

    def full_probe(self, mixture: Mixture) -> tuple[list[dict[str, Any]], Any]:
        model = copy.deepcopy(self.base)
        return self.looked_at(model, mixture, FULL_PROBE, self.cell.lengths.probe), model

    def lora_probe(
        self, mixture: Mixture, wrapped: Any = None, name: str = "probe_0"
    ) -> tuple[list[dict[str, Any]], Any]:
        """The default's adapter: all start from the same factors."""
        settings = ProbeSettings(steps=self.cell.lengths.probe)
        torch.manual_seed(self.cell.seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if wrapped is None:
                wrapped = get_peft_model(copy.deepcopy(self.base), settings.lora(self.base), adapter_name=name)
            else:
                wrapped.add_adapter(name, settings.lora(self.base))
        wrapped.set_adapter(name)
        return self.looked_at(wrapped, mixture, settings.arguments(STAGE), settings.steps), wrapped

    def probes(self, kind: str) -> dict[str, Any]:
        """The design's probes; for lora the averaged points too. Token losses of the probes go to a file beside."""

        def work() -> dict[str, Any]:
            found, tokens, wrapped = {}, {}, None
            for number, probe in enumerate(self.design.probes.probes):
                row = self.design.probes.row(probe)
                if kind == "lora":
                    looks, wrapped = self.lora_probe(row, wrapped, f"probe_{number}")
                    model = wrapped
                else:
                    looks, model = self.full_probe(row)
                found[probe] = {"mixture": row.weights.tolist(), "looks": looks}
                tokens |= {f"{number}/{h.name}": token_losses(model, h).astype(np.float16) for h in self.valid}
            np.savez(self.folder / f"tokens-{kind}.npz", **tokens)
            return {"probes": found, **(self.averaged(wrapped) if kind == "lora" else {})}

        return self.unit(f"probes-{kind}", work)

    def averaged(self, wrapped: Any) -> dict[str, Any]:
        """The default's points."""
        adapters = tuple(f"probe_{i}" for i in range(len(self.design.probes.probes)))
        points = [InterpolationWeights(adapters, w.weights) for w in self.design.points]
        with make_proxies(wrapped, adapters).sweep(points) as models:
            nll = [measured(model, self.valid) for model in models]
        gram = DeltaSet.from_peft(wrapped, adapters).gram()
        return {"points": [w.weights.tolist() for w in points], "nll": nll, "gram": gram.tolist()}

    def swarm(self) -> dict[str, Any]:
        """Short full-parameter runs on random mixtures, with the steps of all probes together."""

        def work() -> dict[str, Any]:
            rng = np.random.default_rng([self.cell.seed, 7])
            steps = max(1, round(len(self.design.probes.probes) * self.cell.lengths.probe / SWARM))
            runs = []
            for _ in range(SWARM):
                mixture = Mixture(self.cell.domains, rng.dirichlet(np.ones(len(self.cell.domains))))
                model = copy.deepcopy(self.base)
                self.trained(model, mixture, steps, FULL_PROBE, self.cell.seed)
                runs.append({"mixture": mixture.weights.tolist(), "nll": measured(model, self.valid)})
            return {"steps": steps, "runs": runs}

        return self.unit("swarm", work)

    def gradients(self) -> dict[str, Any]:
        """Inner products at the base of each set's gradient (valid) with each domain's (train), and their squared norms."""

        def work() -> dict[str, Any]:
            def gradient(ids: Any) -> torch.Tensor:
                model = self.base
                model.zero_grad()
                model(input_ids=torch.as_tensor(ids), labels=torch.as_tensor(ids)).loss.backward()
                return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

            rng = np.random.default_rng([self.cell.seed, 8])
            of_sets = [gradient(h.input_ids[:32]) for h in self.valid]
            of_domains = [gradient(r.batch(rng.choice(len(r), 32, replace=False))) for r in self.rows.values()]
            return {
                "products": [[float(a @ b) for b in of_domains] for a in of_sets],
                "sets": [float(a @ a) for a in of_sets],
                "domains": [float(b @ b) for b in of_domains],
            }

        return self.unit("gradients", work)

    def candidates(self, kind: str, wanted: Mapping[str, Mixture]) -> dict[str, Any]:
        """Probes trained on mixtures that a predictor proposes, for decisions by measurement."""
        found = {}
        for name, mixture in wanted.items():

            def work(mixture: Mixture = mixture) -> dict[str, Any]:
                looks, _ = self.lora_probe(mixture) if kind == "lora" else self.full_probe(mixture)
                return {"mixture": mixture.weights.tolist(), "looks": looks[-1:]}

            found[name] = self.unit(f"candidates-{kind}/{name}", work)
        return found

    def raw(self) -> None:
        """Everything that no predictor's answer is needed for."""
        self.start()
        for name, mixture in self.cell.arms().items():
            self.full_training(mixture, name)
        for order in (1, 2) if self.cell.pool.use == "choosing" else (1,):
            self.full_training(self.cell.uniform, "uniform", order)
        for kind in ("lora", "full"):
            self.probes(kind)
        self.swarm()
        self.gradients()
