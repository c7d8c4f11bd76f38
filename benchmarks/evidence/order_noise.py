"""What another order of the data changes of a probe, and whether the mean of its last weights takes it away.

    python benchmarks/evidence/order_noise.py run --cells answers-s3 study-s3 answers-s4 [--orders 4] [--data ../shared/data]
    python benchmarks/evidence/order_noise.py tails --cells answers-s3 [--orders 2]
    python benchmarks/evidence/order_noise.py analyse

The cells are those of targets.py, whose searches must have been made. `run` trains every probe of the design, and one on each optimum and
half-way, in several orders, by the product's own session; `tails` trains them once more and evaluates means of their weights over
their last steps. `analyse` writes results/order_noise.json from what there is.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
import torch
from predictors import write_lines
from target_cells import MEAN, Trial, one_thread
from transformers import TrainerCallback

from opmix.mixing.mixture import FloatArray, InterpolationWeights, Mixture, ProbeDesign
from opmix.mixture_search.context import SearchContext
from opmix.probes.evaluation import evaluate
from opmix.probes.kinds import kind_of
from opmix.probes.session import seed_in_order
from opmix.probes.tasks import probe_arguments
from opmix.progress import Silent
from opmix.protocols.mixing_method import Fidelity
from opmix.runs.store import RunStore
from opmix.training.factory import TrainSpec, run_training
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training

RESULTS = Path(__file__).parent / "results" / "order_noise.json"
TAILS = (1, 4, 8, 16)
"""Last steps whose weights are averaged; 1: the probe as it is."""


def prepared(trial: Trial, store: RunStore) -> SearchContext:
    trial.cell.text.write()
    context = SearchContext(trial.config(MEAN, "effective_tokens"), Path.cwd(), store, Silent(), None)
    context.prepare(copy.deepcopy(trial.laboratory.base), trial.cell.text.tokenizer)
    return context


def mixtures(trial: Trial, context: SearchContext, *, halves: bool) -> dict[str, FloatArray]:
    """Of all probes: the design's, the optimum of every objective, and half-way to it."""
    design, current = context.method.design(context.problem).probes, context.problem.current.weights
    rows = dict(zip(design.probes, design.R, strict=True))
    for objective in trial.objectives:
        optimum = np.array(trial.read(trial.search_file("search", objective))["optimum"])
        rows[f"opt-{objective}"] = optimum
        if halves:
            rows[f"half-{objective}"] = (optimum + current) / 2
    return rows


def replicates(trial: Trial, orders: int, folder: Path) -> None:
    """Losses by order and look, (O, 2, M, E)."""
    with RunStore(folder / trial.name) as store:
        context = prepared(trial, store)
        rows, domains = mixtures(trial, context, halves=True), context.names
        design = ProbeDesign(tuple(rows), domains, np.stack(list(rows.values())))
        points = [InterpolationWeights(design.probes, row) for row in np.eye(len(rows))]
        looks = [
            [
                context.simulate(
                    design, points, label=f"rep-{s}-{order}", fidelity=Fidelity(order=order, steps=s)
                ).losses
                for s in (context.session.settings.num_steps // 2, None)
            ]
            for order in range(orders)
        ]
    np.savez(folder / f"{trial.name}.npz", names=list(rows), sets=list(trial.cell.sets), losses=looks)


class Tail(TrainerCallback):
    """Sums of a probe's weights after every step."""

    def __init__(self, model: Any) -> None:
        self.trained = [p for p in model.parameters() if p.requires_grad]
        self.sums = [[torch.zeros_like(p) for p in self.trained]]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.sums.append([s + p.detach() for s, p in zip(self.sums[-1], self.trained, strict=True)])

    def put(self, steps: int) -> None:
        """The mean over the last so many steps."""
        with torch.no_grad():
            for p, late, early in zip(self.trained, self.sums[-1], self.sums[-1 - steps], strict=True):
                p.copy_((late - early) / steps)


def tails(trial: Trial, orders: int, folder: Path) -> None:
    """Losses by tail and order, (T, O, M, E)."""
    with RunStore(folder / f"tails-{trial.name}") as store:
        context = prepared(trial, store)
        rows = mixtures(trial, context, halves=False)
        found = np.array([[_tails_of(context, row, o) for row in rows.values()] for o in range(orders)])  # (O, M, T, E)
    np.savez(
        folder / f"tails-{trial.name}.npz",
        names=list(rows),
        sets=list(trial.cell.sets),
        losses=found.transpose(2, 0, 1, 3),
    )


def _tails_of(context: SearchContext, shares: FloatArray, order: int) -> list[FloatArray]:
    session = context.session
    arguments, steps = probe_arguments(session.settings, session.trainer), session.settings.num_steps
    seed, objective = seed_in_order(session.seed, order), session.runtime.objective
    plan = plan_training(
        session.runtime.rows,
        Mixture(context.names, shares),
        steps=steps,
        arguments=arguments,
        seed=seed,
        objective=objective,
    )
    torch.manual_seed(seed)
    with kind_of(session.settings).attached(session.runtime.model, session.settings, "probe_0") as attached:
        tail = Tail(attached.model)
        spec = TrainSpec(
            model=attached.model,
            dataset=plan.dataset,
            output_dir=context.store.folder / "tail",
            steps=steps,
            seed=seed,
            arguments=plan.arguments,
            callbacks=[tail],
        )
        run_training(objective.trainer(None, Usage(), session.runtime.shape), spec)
        losses = []
        for last in TAILS:
            tail.put(last)
            losses.append(evaluate(attached.model, session.held_out, batch_tokens=8192).losses[0])
    return losses


def facts(losses: FloatArray, names: list[str], sets: list[str]) -> dict[str, Any]:
    """Of one look or tail, (O, M, E): what order changes, as it is and by what mixtures change; gains of the optima by order."""
    design = [i for i, n in enumerate(names) if not n.startswith(("opt-", "half-"))]
    spread = np.ptp(losses.mean(axis=0)[design], axis=0)
    noise = np.sqrt(losses.var(axis=0, ddof=1))  # (M, E)
    gains = {}
    for i, name in enumerate(names):
        if name.startswith(("opt-", "half-")):
            wanted = name.partition("-")[2]
            e = [
                k for k, s in enumerate(sets) if s == f"target_{wanted}" or (wanted == MEAN and s.startswith("target_"))
            ]
            gains[name] = (losses[:, 0][:, e] - losses[:, i][:, e]).mean(axis=1).round(4).tolist()
    return {
        "spread": float(spread.mean()),
        "noise": float(np.sqrt((noise**2).mean())),
        "noise_of_the_mixture_in_use": float(np.sqrt((noise[0] ** 2).mean())),
        "share_of_spread": float(np.sqrt(((noise / spread) ** 2).mean())),
        "share_of_spread_of_the_mixture_in_use": float(np.sqrt(((noise[0] / spread) ** 2).mean())),
        "gains_by_order": gains,
    }


def relations(looks: FloatArray) -> dict[str, float]:
    """Correlations of what the order changes, of (O, 2, M, E): between looks, evaluation sets, and probes in one order."""
    away = looks - looks.mean(axis=0)
    last = away[:, -1]
    sets = np.corrcoef(last.reshape(-1, last.shape[-1]).T)
    probes = [np.corrcoef(last[:, i].ravel(), last[:, j].ravel())[0, 1] for i in range(last.shape[1]) for j in range(i)]
    return {
        "between_looks": float(np.corrcoef(away[:, 0].ravel(), last.ravel())[0, 1]),
        "between_sets": float((sets.sum() - len(sets)) / (len(sets) * (len(sets) - 1))),
        "between_probes": float(np.mean(probes)),
    }


def analyse(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"cells": {}, "tails": {}}
    for file in sorted(folder.glob("*.npz")):
        with np.load(file) as kept:
            names, sets, losses = list(map(str, kept["names"])), list(map(str, kept["sets"])), kept["losses"]
        if file.stem.startswith("tails-"):
            told: Mapping[str, Any] = {str(n): facts(part, names, sets) for n, part in zip(TAILS, losses, strict=True)}
            found["tails"][file.stem.removeprefix("tails-")] = {"orders": losses.shape[1], "last_steps": told}
        else:
            looks = {"half": facts(losses[:, 0], names, sets), "end": facts(losses[:, 1], names, sets)}
            found["cells"][file.stem] = {"orders": len(losses), "correlations": relations(losses), **looks}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("run", "tails", "analyse"))
    parser.add_argument("--cells", nargs="*", default=["answers-s3", "study-s3", "answers-s4"])
    parser.add_argument("--orders", type=int, default=3)
    parser.add_argument("--targets", type=Path, default=Path("runs/evidence/targets"))
    parser.add_argument("--out", type=Path, default=Path("runs/evidence/order_noise"))
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    args = parser.parse_args()
    if args.what == "analyse":
        write_lines(RESULTS, analyse(args.out))
        return
    one_thread()
    args.out.mkdir(parents=True, exist_ok=True)
    for cell in args.cells:
        pool, _, seed = cell.rpartition("-s")
        trial = Trial(pool, int(seed), args.targets, args.data)
        (replicates if args.what == "run" else tails)(trial, args.orders, args.out)


if __name__ == "__main__":
    main()
