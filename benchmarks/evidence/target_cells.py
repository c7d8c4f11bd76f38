"""A cell of the evidence for targets: its mixtures, searches, swarms and full trainings, each made once and kept in a file of its own."""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import yaml
from predictor_cells import BATCH, Cell, leaning
from predictor_runs import FULL_PROBE, SAME, STAGE, Laboratory
from predictor_texts import LENGTH, Pool

from opmix.config import SearchConfig, parse_config
from opmix.methods.swarm.climb import Climb
from opmix.methods.swarm.olmix import Olmix
from opmix.methods.swarm.regmix import RegMix
from opmix.mixing.decision import LIKELIER_THAN_NOT, SURE
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.search import run_search
from opmix.mixture_search.trial_runner import TrialRunner
from opmix.progress import Silent
from opmix.runs.store import RunStore

POOLS = yaml.safe_load(Path(__file__).with_name("targets.yaml").read_text())
ORDERS = 2
SINGLE = 0.65
MEAN, NORMALISED = "mean", "normalised"
SEARCHES: Mapping[str, Mapping[str, Any]] = {
    "search": {},
    "log_linear": {"law": "log_linear"},
    "held_out_128": {"proxies": {"eval_sequences": 128}},
    "as_measured": {"proxies": {"eval_sequences": 128}},
}
"""What a search is told besides what every one is; `as_measured` is `held_out_128` by the code after 2026-11-26, 23:22 (targets.md)."""
USUAL = ("search", "log_linear")
SWARM = 24
"""Runs of a swarm, four a domain (Olmix's rule); together they cost what one search does."""
SWARMS = ("regmix", "olmix", "climb")
CLIMB = (14, 7, 3)
"""Of them, by iteration."""
CONFIRMED = ("search", "held_out_128")


def unconfirmed(search: str) -> str:
    """Name of what a search's law would have had."""
    return "unconfirmed" if search == "search" else f"{search}, unconfirmed"


def likelier(search: str) -> str:
    """Name of what a search recommends where a gain has to be likelier than not."""
    return f"{search}, likelier than not"


@dataclass(frozen=True)
class Trial:
    """One cell: a pool, a seed and a size."""

    pool: str
    seed: int
    out: Path
    data: Path
    size: str = "0.3M"
    swarms: tuple[str, ...] = SWARMS
    searches: tuple[str, ...] = USUAL

    @property
    def name(self) -> str:
        return f"{self.pool}-s{self.seed}-{self.size}"

    @cached_property
    def cell(self) -> Cell:
        told = POOLS[self.pool]
        pool = Pool(f"{self.pool}-s{self.seed}", "confirming", self.seed, told["domains"], tuple(told["targets"]))
        return Cell(pool, self.size, "young", self.out, self.data)

    @cached_property
    def laboratory(self) -> Laboratory:
        return Laboratory(self.cell)

    # -- mixtures ------------------------------------------------------------------------------------------------

    @property
    def objectives(self) -> dict[str, dict[str, float]]:
        """Weights of the targets: each alone, and all alike."""
        names = self.cell.targets
        single = {t.removeprefix("target_"): {n: float(n == t) for n in names} for t in names}
        return {**single, MEAN: dict.fromkeys(names, 1.0)}

    def wanted(self, search: str) -> tuple[str, ...]:
        """Objectives that a search is asked for."""
        return (*self.objectives, NORMALISED) if search == "search" else tuple(self.objectives)

    def rules(self) -> dict[str, Mixture]:
        """Mixtures that need neither search nor target."""
        available = self.laboratory.start()["available"]
        sizes = np.array([available[d] for d in self.cell.domains], dtype=np.float64)
        made = {"uniform": np.ones(len(sizes)), "size": sizes, "temperature": sizes ** (1 / 5)}
        made["unimax"] = unimax(sizes, float(self.cell.lengths.stage * BATCH * LENGTH))
        return {n: Mixture(self.cell.domains, p / p.sum()) for n, p in made.items()}

    def singles(self) -> dict[str, Mixture]:
        count = len(self.cell.domains)
        return {d: Mixture(self.cell.domains, leaning(count, i, SINGLE)) for i, d in enumerate(self.cell.domains)}

    def by_hand(self, objective: str) -> Mixture:
        told = POOLS[self.pool]["by_hand"][objective]
        return Mixture.normalised({d: told[d] for d in self.cell.domains})

    def fixed(self) -> dict[str, Mixture]:
        """What is trained whatever a search says."""
        singles = {f"single {d}": m for d, m in self.singles().items()}
        return {**self.rules(), **singles, **{f"by hand, {o}": self.by_hand(o) for o in self.objectives}}

    def proposals(self) -> dict[str, dict[str, Mixture]]:
        """By objective and method, what searches and swarms recommend; `mean` has two other ways to weigh several targets too."""
        made = {
            o: {method: self._found(self.search_file(method, o)) for method in (*self.searches, *self.swarms)}
            for o in self.objectives
        }
        for o in self.objectives:  # what the law would have had, had no trained candidate been asked
            for s in (s for s in self.searches if s in CONFIRMED):
                made[o][unconfirmed(s)] = self._found(self.search_file(s, o), "optimum")
                made[o][likelier(s)] = self._likelier(self.search_file(s, o))
        if "search" in self.searches:
            alone = np.mean([made[o]["search"].weights for o in self.objectives if o != MEAN], axis=0)
            made[MEAN]["mean of optima"] = Mixture(self.cell.domains, alone / alone.sum())
            made[MEAN]["normalised gains"] = self._found(self.search_file("search", NORMALISED))
        return made

    def _likelier(self, file: str) -> Mixture:
        """What the search recommends where a gain has to be likelier than not: what gains most of what is sure, else the surest."""
        candidates = [c for c in self.read(file)["evidence"]["candidates"] if not c["breaks"]]

        def probability(
            c: Mapping[str, Any],
        ) -> float:  # not kept by the first cells; never less than what is told here
            told = 1 - len(candidates) * (1 - NormalDist().cdf(c["gain"] / c["error"]))
            return float(c.get("probability", told))

        sure = [c for c in candidates if probability(c) >= SURE]
        best = max(sure, key=lambda c: float(c["gain"])) if sure else max(candidates, key=probability, default=None)
        if best is None or probability(best) < LIKELIER_THAN_NOT:
            return self.rules()["uniform"]
        return Mixture(self.cell.domains, np.array([best["mixture"][d] for d in self.cell.domains]))

    def _found(self, file: str, what: str = "mixture") -> Mixture:
        return Mixture(self.cell.domains, np.array(self.read(file)[what]))

    # -- units of work -------------------------------------------------------------------------------------------

    def made(self, unit: str) -> bool:
        return (self.laboratory.folder / f"{unit}.json").exists()

    def read(self, unit: str) -> dict[str, Any]:
        def missing() -> dict[str, Any]:
            raise LookupError(f"{self.name}: {unit} is not made")

        return self.laboratory.unit(unit, missing)

    @staticmethod
    def search_file(method: str, objective: str) -> str:
        return f"searches/{method}-{objective}"

    def search(self, method: str) -> None:
        """What a law's searches recommend; they share one run folder, so probes are trained once."""
        for objective in self.wanted(method):
            self.laboratory.unit(self.search_file(method, objective), lambda o=objective: self._search(method, o))

    def _search(self, method: str, objective: str) -> dict[str, Any]:
        started = time.perf_counter()
        found = run_search(
            self.config(objective, **SEARCHES[method]),
            model=copy.deepcopy(self.laboratory.base),
            tokenizer=self.cell.text.tokenizer,
            out=self.laboratory.folder / f"search-{method}",
        )
        decision, evidence = found.verdict.decision, found.proposal.evidence
        told = {"action": decision.action, "reason": decision.reason, "search_share": found.search_share}
        mixtures = {
            "mixture": found.mixture.weights.tolist(),
            "optimum": found.verdict.optimum.mixture.weights.tolist(),
        }
        kept = {k: evidence[k] for k in ("payoff", "candidates", "limits", "second_opinion") if k in evidence}
        flops = found.ledger.total("flops", ["probes", "proxies"])
        spent = {"flops": flops, "seconds": time.perf_counter() - started}
        return {**told, **mixtures, **spent, "baseline": dict(found.proposal.baseline), "evidence": kept}

    def weights(self, objective: str) -> Mapping[str, float]:
        """Of the targets; of the normalised objective, one by what each target gains at its own optimum."""
        if objective != NORMALISED:
            return self.objectives[objective]
        alone = self.read(self.search_file("search", MEAN))["evidence"]["payoff"]["alone"]
        gains = {t: max(-alone[t]["changes"][t], 1e-3) for t in self.cell.targets}
        return {t: 1 / g for t, g in gains.items()}

    def config(self, objective: str, **other: Any) -> SearchConfig:
        folder, lengths = self.cell.text.folder, self.cell.lengths

        def files(name: str, *splits: str) -> dict[str, str]:
            return {s: str((folder / f"{name}.{s}.jsonl").resolve()) for s in splits}

        told = {
            "model": "<the base>",
            "domains": {d: files(d, "train", "valid", "test") for d in self.cell.domains},
            "targets": {t: files(t, "valid", "test") for t in self.cell.targets},
            "old_mixture": dict(self.cell.uniform),
            "budget": lengths.stage * BATCH * LENGTH,
            "sequence_length": LENGTH,
            "trainer": STAGE,
            "probes": {"steps": lengths.probe},
            "proxies": {"eval_sequences": lengths.held_out},
            "solve": {"weights": dict(self.weights(objective))},
            "law": "effective_tokens",
            "seed": self.seed,
        } | other
        return parse_config({"cache_dir": str((folder / f"cache-{told['law']}").resolve()), **told})

    def swarm(self, method: str) -> None:
        """What a swarm of the search's FLOPs recommends for every objective; CLIMB's later runs are an objective's own."""
        for objective in self.objectives:
            self.laboratory.unit(self.search_file(method, objective), lambda o=objective: self._swarm(method, o))

    def _swarm(self, method: str, objective: str) -> dict[str, Any]:
        started = time.perf_counter()
        cache = str((self.cell.text.folder / f"cache-{method}").resolve())
        # A run of a dozen steps has no time for the stage's warm-up; probes have none either.
        config = self.config(objective, trainer=FULL_PROBE, cache_dir=cache)
        tokenizer = self.cell.text.tokenizer
        with RunStore(self.laboratory.folder / f"search-{method}") as store:
            context = SearchContext(config, Path.cwd(), store, Silent(), None)
            context.prepare(copy.deepcopy(self.laboratory.base), tokenizer)
            share = self._swarm_share(context)
            told = {"proxy_share": share, "start": "current"}
            coordinates = len(self.cell.domains)
            made = {
                "regmix": lambda: RegMix(runs=SWARM, **told),
                "olmix": lambda: Olmix(runs_per_coordinate=SWARM // coordinates, reuse=False, **told),
                "climb": lambda: Climb(runs=CLIMB, **told),
            }[method]()
            found = made.propose(TrialRunner(context, tokenizer, None, None))
            flops = context.ledger.total("flops", ["trials", "proxies"])
        spent = {"flops": flops, "seconds": time.perf_counter() - started}
        searched = self.read(self.search_file("search", MEAN))
        steps = round(share * self.cell.lengths.stage)
        told = {"search_share": searched["search_share"] * flops / searched["flops"], "steps": steps}
        return {"mixture": found.mixture.weights.tolist(), **told, **spent}

    def _swarm_share(self, context: SearchContext) -> float:
        """Of the stage's tokens, so that runs and their evaluations together cost what the search did."""
        shape, held = context.session.runtime.shape, context.session.held_out
        each = self.read(self.search_file("search", MEAN))["flops"] / SWARM
        read = sum(h.input_ids.size for h in held) * shape.forward(LENGTH)
        steps = max(1, round((each - read) / (BATCH * LENGTH * shape.train(LENGTH))))
        return steps / self.cell.lengths.stage

    # -- full trainings ------------------------------------------------------------------------------------------

    def representatives(self) -> dict[str, Mixture]:
        """Mixtures that are trained: of those less apart than SAME the first in an order that no timing changes."""
        wanted = dict(self.fixed())
        if self.decided:
            wanted |= {f"{m}, {o}": p for o, told in self.proposals().items() for m, p in told.items()}
        kept: dict[str, Mixture] = {}
        for name, mixture in wanted.items():
            if stands_for(mixture, kept) is None:
                kept[name] = mixture
        return kept

    @property
    def decided(self) -> bool:
        """Whether every search and swarm has said what it recommends."""
        return not self._searches_left()

    def training_file(self, name: str, order: int) -> str:
        return f"trainings/{re.sub('[^a-z0-9]+', '-', name.lower())}-{order}"

    def train(self, name: str, order: int) -> None:
        mixture = self.representatives()[name]
        self.laboratory.unit(self.training_file(name, order), lambda: self.laboratory.stage(mixture, name, order))

    def trained(self, mixture: Mixture) -> FloatArray:
        """Test losses (E,) after the stage, the mean over orders of the data."""
        name = stands_for(mixture, self.representatives())
        if name is None:
            raise LookupError(f"{self.name}: {dict(mixture)} is not among what is trained")
        return np.mean([self.test_losses(self.read(self.training_file(name, o))) for o in range(ORDERS)], axis=0)

    def test_losses(self, run: Mapping[str, Any]) -> FloatArray:
        return np.array([np.mean(run["test"][s]) / (LENGTH - 1) for s in self.cell.sets])

    def work(self) -> float:
        """Of the whole cell in optimizer steps; evaluations count a third of a step's tokens."""
        lengths, domains, wanted = self.cell.lengths, len(self.cell.domains), len(self.objectives)
        valid, test = (
            len(self.cell.sets) * n * LENGTH / (3 * BATCH * LENGTH) for n in (lengths.held_out, lengths.test)
        )
        probes = (domains + 1) * (lengths.probe + 1.5 * valid)
        candidates = 2 * lengths.probe + 3 * valid
        laws = len(self.searches) * (probes + (wanted + 1) * candidates)
        shared = {"climb": 1 + (wanted - 1) * (1 - CLIMB[0] / SWARM)}  # other runs after the first iteration
        swarms = sum(shared.get(m, 1.0) for m in self.swarms) * (probes + candidates)
        most = len(self.fixed_names) + wanted * (len(self.searches) + len(self.swarms)) + 2
        return lengths.grown + test + laws + swarms + ORDERS * most * (lengths.stage + test)

    @property
    def fixed_names(self) -> tuple[str, ...]:
        singles = (f"single {d}" for d in self.cell.domains)
        return ("uniform", "size", "temperature", "unimax", *singles, *(f"by hand, {o}" for o in self.objectives))

    # -- what is left --------------------------------------------------------------------------------------------

    def _searches_left(self) -> list[Task]:
        def open_(method: str, objectives: tuple[str, ...]) -> bool:
            return not all(self.made(self.search_file(method, o)) for o in objectives)

        left = [Task(self, "search", s) for s in self.searches if open_(s, self.wanted(s))]
        return left + [Task(self, "swarm", m) for m in self.swarms if open_(m, tuple(self.objectives))]

    def left(self) -> list[Task]:
        """What can be done now, the longest first; nothing: the cell is whole."""
        if not self.made("start"):
            return [Task(self, "start")]
        cost_known = self.made(self.search_file("search", MEAN))
        searches = [t for t in self._searches_left() if t.kind == "search" or cost_known]
        trainings = [
            Task(self, "training", name, order)
            for name in self.representatives()
            for order in range(ORDERS)
            if not self.made(self.training_file(name, order))
        ]
        return searches + trainings


@dataclass(frozen=True)
class Task:
    """A unit of work that a process of its own can do."""

    trial: Trial
    kind: Literal["start", "search", "swarm", "training"]
    name: str = ""
    order: int = 0
    key: tuple[str, str, str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.trial.name, self.kind, self.name, self.order))

    def __str__(self) -> str:
        return " ".join(str(part) for part in self.key if part != "")

    def __reduce__(self) -> Any:
        t = self.trial  # without what it has loaded
        told = (t.pool, t.seed, t.out, t.data, t.size, t.swarms, t.searches)
        return _task, (told, self.kind, self.name, self.order)

    def run(self) -> float:
        """Seconds."""
        started = time.perf_counter()
        if self.kind == "start":
            self.trial.cell.text.write()
            self.trial.laboratory.start()
        elif self.kind == "search":
            self.trial.search(self.name)
        elif self.kind == "swarm":
            self.trial.swarm(self.name)
        else:
            self.trial.train(self.name, self.order)
        return time.perf_counter() - started


@cache
def _trial(*told: Any) -> Trial:
    """One a process: text and base are read once."""
    return Trial(*told)


def _task(told: tuple[Any, ...], *what: Any) -> Task:
    return Task(_trial(*told), *what)


def one_thread() -> None:
    """At the start of a worker."""
    import torch

    from opmix.cli.console import quiet_libraries

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    torch.set_num_threads(1)
    quiet_libraries()


def stands_for(mixture: Mixture, trained: Mapping[str, Mixture]) -> str | None:
    """The first of the trained ones that is nearly this."""
    for name, other in trained.items():
        if 0.5 * np.abs(other.weights - mixture.weights).sum() < SAME:
            return name
    return None


def unimax(sizes: FloatArray, budget: float, epochs: float = 1.0) -> FloatArray:
    """Even shares as far as no domain is repeated more often than so (arXiv 2304.09151), (D,)."""
    shares, left = np.zeros(len(sizes)), budget
    order = np.argsort(sizes)
    for place, d in enumerate(order):
        shares[d] = min(left / (len(order) - place), sizes[d] * epochs)
        left -= shares[d]
    return shares / shares.sum()
