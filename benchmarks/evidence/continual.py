"""One continual stage as a laboratory: an old mixture, one new domain, and what search and full training make of them.

Mean test loss judges; no search sees that split. Full trainings of one stage start from the same model, read the same number of tokens
and share their seed; their losses are kept in the stage's folder, so that a run that is broken off goes on.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from common import LENGTH, STEP_SEQUENCES, TRAINER

from opmix import SearchResult, search
from opmix.data import PackedSequences
from opmix.domain import Domain
from opmix.mixing.design import StageDesign
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.reload import configuration_of
from opmix.mixture_search.verify import verify_run
from opmix.probes.evaluation import HeldOut, evaluate
from opmix.probes.held_out import held_out
from opmix.probes.interpolation import Proxies
from opmix.progress import Progress
from opmix.runs.files import write_json
from opmix.runs.store import RunStore
from opmix.training.full import train_on_mixture

GRID = [round(0.1 * i, 1) for i in range(1, 10)]
"""Shares of the new domain; 0.9 is 10 % replay."""


@dataclass(kw_only=True)
class ContinualStage:
    """A model that knows some domains, and one more on offer."""

    home: Path
    base: Any
    tokenizer: Any
    domains: Mapping[str, Domain]
    data: Mapping[str, Mapping[str, PackedSequences]]
    old: Mixture
    new: str
    steps: int
    probe_steps: int
    """0: as many as the search takes by itself."""
    seed: int
    cache: Path
    progress: Progress
    num_test: int = 200
    """Test sequences a domain."""

    @property
    def tokens(self) -> int:
        """Of the stage."""
        return self.steps * STEP_SEQUENCES * LENGTH

    @cached_property
    def test(self) -> list[HeldOut]:
        """What full trainings are judged on."""
        rows = self.data["test"]
        return [held_out(n, rows[n], num=self.num_test, seed=self.seed) for n in (*self.old, self.new)]

    def search(self, folder: str = "search", **settings: Any) -> SearchResult:
        """A search as a user would make it; found again where it was made."""
        files = {
            n: {"train": self.domains[n].train.paths[0], "valid": self.domains[n].valid.paths[0]}
            for n in (*self.old, self.new)
        }
        probes = {"probes": {"steps": self.probe_steps}} if self.probe_steps else {}
        asked = {**probes, "seed": self.seed, **settings}
        return search(
            self.base,
            self.tokenizer,
            files,
            budget=self.tokens,
            old_mixture=dict(self.old),
            sequence_length=LENGTH,
            trainer=TRAINER,
            cache_dir=str(self.cache.resolve()),
            out=self.home / folder,
            progress=self.progress,
            **asked,
        )

    def mixture(self, share: float) -> Mixture:
        """`share` of the new domain, the rest as the old mixture was."""
        return Mixture.of({"old": 1 - share, self.new: share}).expand({"old": self.old})

    def trained(self, share: float, keep: Path | None = None) -> float:
        """Mean test loss after the stage with `share` of the new domain; the model itself goes to `keep`."""
        file = self.home / "trained.json"
        known: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}
        if str(share) not in known or (keep is not None and not (keep / "config.json").exists()):
            model = copy.deepcopy(self.base)
            train_on_mixture(
                model,
                self.data["train"],
                self.mixture(share),
                tokens=self.tokens,
                arguments=TRAINER,
                seed=self.seed + 1,
                output_dir=self.home / "trainer",
                progress=self.progress,
                name=f"{self.home.name}: full training at {share:.3f}",
            )
            known[str(share)] = float(evaluate(model, self.test).losses.mean())
            if keep is not None:
                model.save_pretrained(keep)
            write_json(file, known)
        return known[str(share)]

    def swept(self, coarse: Sequence[float]) -> dict[float, float]:
        """Losses at some points of the grid: the coarse ones, then neighbours until the best has both of its own.

        The best is that of all nine points if the loss has one minimum along the line.
        """
        found = {p: self.trained(p) for p in coarse}
        while True:
            best = GRID.index(min(found, key=found.__getitem__))
            missing = [GRID[i] for i in (best - 1, best + 1) if 0 <= i < len(GRID) and GRID[i] not in found]
            if not missing:
                return dict(sorted(found.items()))
            found[missing[0]] = self.trained(missing[0])

    def judged(self, result: SearchResult, grid: Mapping[float, float], share: float) -> dict[str, Any]:
        """The cell of results/regret.json: proposal, regret, and how true the interpolation was at the proposal.

        `regret` is that of the law's optimum; `followed_regret` of what the search recommends, which may be to leave the new domain out.
        """
        checked = verify_run(
            self.home / "search", model=self.base, tokenizer=self.tokenizer, progress=self.progress
        ).points[0]
        action = result.verdict.decision.action
        best, loss = min(grid.values()), self.trained(share)
        followed = loss if action == "move" else self.trained(0.0)
        return {
            "seed": self.seed,
            "model_size": sum(p.numel() for p in self.base.parameters()),
            "regret": loss / best - 1,
            "replay_regret": grid[0.9] / best - 1,
            "interpolation_error": float((checked.direct - checked.proxy).mean()),
            "kl": float(checked.kl.mean()),
            "proposal": share,
            "interval": list(result.interval[self.new]),
            "best_of_grid": min(grid, key=grid.__getitem__),
            "action": action,
            "followed_regret": followed / best - 1,
            "probability": result.verdict.decision.probability,
            "losses": {str(p): v for p, v in sorted({**grid, share: loss}.items())},
            "search_share_of_flops": result.json()["cost"]["search_share"],
        }

    @contextmanager
    def proxies(self, folder: str = "search") -> Iterator[tuple[StageDesign, Proxies]]:
        """The adapters of a finished search, ready to be interpolated."""
        config, base = configuration_of(self.home / folder, self.base)
        with RunStore(self.home / folder) as store:
            context = SearchContext(config, base, store, self.progress, None)
            context.prepare(self.base, self.tokenizer)
            design = context.method.design(context.problem)
            with context.session.proxies(design.probes) as proxies:
                yield design, proxies

    def simulated(self, shares: Sequence[float], folder: str = "search", num: int | None = None) -> FloatArray:
        """Mean test loss of the paper's proxies, the weighted sums of the `old` and the `new` probe, at some shares.

        On the first `num` test sequences a domain; None: on all.
        """
        losses = []
        test = self.test if num is None else [h.first(num) for h in self.test]
        with self.proxies(folder) as (design, proxies):
            at = [float(design.probes.row(p)[self.new]) for p in ("old", self.new)]
            for share in shares:
                weight = (share - at[0]) / (at[1] - at[0])
                vector = np.zeros(len(design.probes.probes))
                vector[:2] = 1 - weight, weight
                with proxies.at_vector(vector) as model:
                    losses.append(float(evaluate(model, test).losses.mean()))
        return np.array(losses)
