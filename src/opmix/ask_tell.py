"""Ask-and-tell: a search whose runs somebody else trains, on a cluster or in a program of their own. Imports no torch.

Design, law, decision and findings are those of `opmix fit` and `opmix search`; everything told is kept in the run folder at once.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from opmix.errors import ConfigError, DataError, StoreError
from opmix.fit import FitResult
from opmix.methods.findings import findings
from opmix.mixing.confirm import confirm
from opmix.mixing.decision import Verdict, decide
from opmix.mixing.design import new_domains
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import FloatArray
from opmix.mixing.paired import objective_values
from opmix.mixing.problem import SolveSettings
from opmix.mixing.table import ProxyTable
from opmix.mixture_search.asking import CURRENT, PROPOSAL, AskSettings, asked_runs, search_of
from opmix.mixture_search.feasible import check_decision, problem_of, solve_settings_of
from opmix.protocols.law import LawFit
from opmix.protocols.mixing_method import LawProposal
from opmix.results.asked import NAME, AskedFile, AskedRun
from opmix.results.manifest import Manifest
from opmix.runs.files import plain
from opmix.runs.run_folder import local_folder
from opmix.runs.store import RunStore
from opmix.settings.loading import nearest, validated

PATIENCE = 60.0
"""Seconds that a call waits for another one that writes the same folder."""
_HERE = threading.Lock()


class AskTell:
    """A search that says what to train, and is told how that went.

    Every run starts from the model as it is now (or from scratch, all alike), and trains the same number of tokens. The same call on
    the same folder goes on; several processes may tell at once.

    Examples:
        ```python
        search = opmix.AskTell(["web", "code"], budget="2B", old_mixture={"web": 0.7, "code": 0.3}, out="runs/asked")
        while runs := search.ask():
            for run in runs:
                search.tell({run.name: my_cluster.losses(run.mixture)})   # {"web": 2.31, "code": 1.17}
        print(search.result())
        ```
    """

    def __init__(
        self,
        domains: Sequence[str],
        *,
        budget: int | float | str,
        out: str | Path,
        old_mixture: Mapping[str, float] | None = None,
        targets: Sequence[str] = (),
        available: Mapping[str, int] | None = None,
        mixtures: int | None = None,
        solve: Mapping[str, Any] | None = None,
        decision: Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        """Design the runs, or find them in the folder.

        Args:
            domains: D >= 2 names.
            budget: Training tokens of the stretch that the mixture is for.
            out: Run folder, of this machine.
            old_mixture: Token shares the model was last trained on; domains not in it are new. None: uniform.
            targets: Further evaluation sets, which the mixture is then for; losses of domains may rise by 5 %
                (`solve={"loss_limits": ...}`).
            available: Training tokens of each domain, for limits of repetition.
            mixtures: Runs besides one a domain; None: as many as can be varied, at least 4.
            solve: As in `search.yaml`: objective, weights, kl, floors, ceilings, loss_limits, ...
            decision: As in `search.yaml`: confidence, verify, ...
            seed: Of the mixtures and of the law's draws.

        Raises:
            ConfigError: All problems of the settings at once.
            InfeasibleError: The constraints contradict each other.
            StoreError: The folder holds something else, or a search with other settings.
        """
        given = {
            "domains": domains,
            "budget": budget,
            "old_mixture": old_mixture,
            "targets": targets,
            "available": available,
            "mixtures": mixtures,
            "solve": {} if solve is None else solve,
            "decision": {} if decision is None else decision,
            "seed": seed,
        }
        self.folder = local_folder(out)
        self._start(plain(given))

    @classmethod
    def open(cls, folder: str | Path) -> Self:
        """Return the search that a folder holds.

        Raises:
            StoreError: It holds none, or a damaged one.
        """
        place = local_folder(folder)
        found = AskedFile.find(place)
        if found is None:
            raise StoreError(f"{folder}: no {NAME}; expected the folder of an `opmix.AskTell`")
        made = cls.__new__(cls)
        made.folder = place
        try:
            made._start(dict(found.settings))
        except ConfigError as error:
            raise StoreError(f"{place / NAME}: damaged: {error}; start again in another folder") from error
        return made

    def _start(self, given: dict[str, Any]) -> None:
        checked = validated(AskSettings, given)
        self._config, self._available = search_of(checked)
        self.problem = problem_of(self._config, self._available)
        check_decision(self._config, self.problem, self._available)
        self.design, runs = asked_runs(self.problem, checked.mixtures)
        with self._held():
            found = AskedFile.find(self.folder)
            if found is not None and found.settings != given:
                names = ", ".join(k for k in given if found.settings.get(k) != given[k])
                raise StoreError(
                    f"{self.folder}: holds a search with other settings ({names}); use another folder, or "
                    "opmix.AskTell.open(folder) to go on with that one"
                )
            if found is None:
                Manifest.write(self.folder, "fit", inputs={"ask_tell": given})
                AskedFile(settings=given, runs=runs).write(self.folder)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Evaluation sets that losses are told of, E: domains, then targets."""
        return (*self.problem.domains, *self._config.targets)

    @property
    def runs(self) -> tuple[AskedRun, ...]:
        """All runs asked for so far, in order."""
        return self._file().runs

    def ask(self) -> tuple[AskedRun, ...]:
        """Runs that nothing was told of yet; none: `result()` is final.

        Once the design is told, the optimum itself is asked for where a run on the mixture in use can be held against it.

        Raises:
            LawError: Too many runs failed for a law.
            StoreError: The folder is damaged.
        """
        if waiting := tuple(run for run in self.runs if not run.told):
            return waiting
        if any(run.name == PROPOSAL for run in self.runs):
            return ()
        verdict = self._decided()[-1]
        if verdict.decision.action == "keep" or not self._config.decision.verify or self._in_use() is None:
            return ()
        asked = AskedRun(name=PROPOSAL, mixture=dict(verdict.optimum.mixture))
        with self._held():
            now = self._file()
            if all(run.name != PROPOSAL for run in now.runs):
                replace(now, runs=(*now.runs, asked)).write(self.folder)
        return tuple(run for run in self.runs if not run.told)

    def tell(self, losses: Mapping[str, Mapping[str, float] | None], *, again: bool = False) -> None:
        """Keep what became of runs.

        Args:
            losses: Run to its losses, evaluation set to nats per token; None: the run failed and is left out.
            again: Whether a run that was told otherwise before is told anew.

        Raises:
            DataError: Unknown runs or sets, missing or non-finite losses, a run told before; nothing is kept then.
        """
        if not isinstance(losses, Mapping):
            raise DataError(
                f"losses: a {type(losses).__name__}; expected runs with their losses, {{'probe web': {{...}}}}"
            )
        with self._held():
            now = self._file()
            known = {run.name: run for run in now.runs}
            problems: list[str] = []
            for name, told in losses.items():
                if name not in known:
                    problems.append(f"run {name!r}: not asked for{nearest(name, list(known))}")
                    continue
                problems += self._problems(name, told)
                new = AskedRun(name=name, mixture=known[name].mixture, losses=told, failed=told is None)
                if not problems:
                    new = replace(new, losses=None if told is None else {m: float(told[m]) for m in self.metrics})
                    if known[name].told and known[name] != new and not again:
                        problems.append(f"run {name!r}: told otherwise before; pass again=True to replace that")
                known[name] = new
            if problems:
                raise DataError("; ".join(problems))
            replace(now, runs=tuple(known.values())).write(self.folder)

    def result(self) -> FitResult:
        """Law and decision from everything told; written into the folder with its report.

        Raises:
            DataError: Runs of the design are missing.
            LawError: Too few or degenerate runs.
        """
        table, fit, verdict = self._decided()
        told = {run.name: run for run in self.runs}
        notes = [f"run {run.name!r} failed and is left out" for run in told.values() if run.failed]
        if (tried := told.get(PROPOSAL)) is not None and tried.losses is not None:
            verdict = self._confirmed(table, verdict, tried.losses)
        elif tried is not None and not tried.failed:
            notes.append("the optimum was not measured yet: train the run 'proposal' and tell its losses")
        baseline = dict(told[CURRENT].losses or {})
        proposal = LawProposal(
            mixture=verdict.mixture, table=table, fit=fit, verdict=verdict, check={}, baseline=baseline
        )
        result = FitResult(table, fit, verdict, (*notes, *findings(proposal)))
        with self._held():
            result.write_into(self.folder, inputs={"ask_tell": dict(self._file().settings)})
        return result

    # -- law and decision --------------------------------------------------------------------------------------

    def _decided(self) -> tuple[ProxyTable, LawFit, Verdict]:
        design, problem, rule = self._table(), self.problem, self._config.rule
        current = next(run.losses for run in self.runs if run.name == CURRENT)
        if current is None and self._config.loss_limits:
            limited = ", ".join(self._config.loss_limits)
            raise DataError(
                f"run {CURRENT!r}: no losses, and those of {limited} are limited relative to them; tell them, or pass "
                'solve={"loss_limits": "none"}'
            )
        fit = fit_law(
            design.mixtures,
            design.losses,
            domains=design.domains,
            metrics=design.metrics,
            delta=self._config.huber_delta,
        )
        settings, in_use = self._settings(fit, current), self._in_use()
        candidates = problem.candidates(settings.prior)
        if not self._available:
            candidates.pop("size")
        verdict = decide(
            fit,
            candidates=candidates,
            reference="current",
            points=design.points,
            newcomers=bool(new_domains(problem.domains, problem.current)),
            coordinates=self.design.coordinates,
            settings=settings,
            constraints=self._config.constraints(available=self._available, baseline=current),
            decision=replace(rule, seed=self._config.seed),
            measured={} if in_use is None else {"current": design.measured(problem.current) or {}},
        )
        return design, fit, verdict

    def _settings(self, fit: LawFit, current: Mapping[str, float] | None) -> SolveSettings:
        metrics = fit.law.metrics
        reference = fit.law.predict(self.problem.current.weights)[0]
        if current is not None:
            reference = np.array([current[m] for m in metrics])
        return solve_settings_of(self._config, self.problem, reference, metrics)

    def _table(self) -> ProxyTable:
        runs = [run for run in self.runs if run.name not in (CURRENT, PROPOSAL)]
        if missing := [run.name for run in runs if not run.told]:
            raise DataError(
                f"{self.folder}: {len(missing)} of {len(runs)} runs are not told yet ({', '.join(missing[:5])}); "
                "ask() names them, tell() takes their losses, or None for one that failed"
            )
        kept = [(run, run.losses) for run in runs if run.losses is not None]
        return ProxyTable(
            points=tuple(run.name for run, _ in kept),
            kinds=("probe",) * len(kept),
            domains=self.problem.domains,
            metrics=self.metrics,
            mixtures=_rows([run.mixture or {} for run, _ in kept], self.problem.domains),
            losses=_rows([losses for _, losses in kept], self.metrics),
        )

    def _in_use(self) -> FloatArray | None:
        """Losses of a run on the mixture in use, (E,); None: there is none, or it failed."""
        found = self._table().measured(self.problem.current)
        return None if found is None else np.array([found[m] for m in self.metrics])

    def _confirmed(self, table: ProxyTable, verdict: Verdict, measured: Mapping[str, float]) -> Verdict:
        """The optimum held against the mixture in use; single runs err by what they scatter about the law."""
        in_use = self._in_use()
        if in_use is None or verdict.decision.action == "keep":
            return verdict
        losses = np.stack([in_use, [measured[m] for m in table.metrics]])
        kept, moved = objective_values(losses, verdict.settings)
        return confirm(verdict, float(kept - moved), verdict.decision.noise)

    # -- the folder --------------------------------------------------------------------------------------------

    def _file(self) -> AskedFile:
        found = AskedFile.find(self.folder)
        if found is None:
            raise StoreError(f"{self.folder / NAME}: is gone; start again in another folder")
        return found

    @contextmanager
    def _held(self) -> Iterator[None]:
        """The folder, held by this call alone; it waits a little for another process."""
        patience = time.monotonic() + PATIENCE
        with _HERE, ExitStack() as stack:
            while True:
                try:
                    stack.enter_context(RunStore(self.folder, "fit"))
                    break
                except StoreError:
                    if not (self.folder / "lock").is_file() or time.monotonic() > patience:
                        raise
                    time.sleep(0.1)
            yield

    def _problems(self, name: str, told: object) -> list[str]:
        if told is None:
            return []
        if not isinstance(told, Mapping):
            return [f"run {name!r}: a {type(told).__name__}; expected evaluation sets with their losses"]
        found = [f"run {name!r}: no loss of {m!r}" for m in self.metrics if m not in told]
        found += [f"run {name!r}: unknown set {m!r}{nearest(m, self.metrics)}" for m in told if m not in self.metrics]
        return found + [
            f"run {name!r}: {m} is {told[m]!r}; expected a finite number (None instead of the losses: the run failed)"
            for m in self.metrics
            if m in told and not _finite(told[m])
        ]


def _finite(value: object) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, int | float | np.floating) and math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _rows(told: Sequence[Mapping[str, float]], names: Sequence[str]) -> FloatArray:
    return np.array([[row[n] for n in names] for row in told], dtype=np.float64).reshape(len(told), len(names))
