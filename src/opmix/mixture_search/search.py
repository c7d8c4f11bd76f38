"""One search from a checked configuration: prepare, let the method propose, write the run folder."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opmix.compute.ledger import Ledger
from opmix.config import SearchConfig
from opmix.errors import ConfigError
from opmix.mixing.decision import Verdict
from opmix.mixing.mixture import Mixture
from opmix.mixing.table import ProxyTable
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.payoff import payoff_of
from opmix.progress import Progress, Silent
from opmix.protocols.law import MixingLaw
from opmix.protocols.mixing_method import DecisionProblem, LawProposal
from opmix.results.draws import LawDrawsFile
from opmix.results.loss_limits import KEY as LIMITS
from opmix.results.loss_limits import limits_json
from opmix.results.manifest import Manifest
from opmix.results.mixture import CheckEntry, MixtureFile, SearchCost, bits_per_byte
from opmix.results.payoff import KEY as PAYOFF
from opmix.results.timing import TimingFile
from opmix.runs.progress_file import ProgressFile
from opmix.runs.ranks import ranks_here
from opmix.runs.run_folder import run_folder
from opmix.runs.store import RunStore
from opmix.runs.trace import span
from opmix.settings import as_json
from opmix.trackers import check_trackers, log_decision
from opmix.trackers.write import PROJECT, Log

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from opmix.training.factory import TrainerFactory
    from opmix.training.stage_data import StageData


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The answer of a search, with its evidence."""

    proposal: LawProposal
    ledger: Ledger
    config: SearchConfig
    problem: DecisionProblem
    bytes_per_token: Mapping[str, float]
    """Of each held-out set; turns nats per token into bits per byte."""
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    """Domain, split: tokens, bytes and documents."""
    targets: Mapping[str, Mapping[str, Mapping[str, int]]]
    """The same by target."""
    training_flops: float
    """Of the stage that the mixture is for."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    base: Path = Path()
    """Folder that relative paths of the configuration start from."""

    @property
    def mixture(self) -> Mixture:
        """The recommendation: token shares for the next stretch."""
        return self.proposal.mixture

    @property
    def interval(self) -> Mapping[str, tuple[float, float]]:
        """Interval of every domain's share."""
        return self.proposal.verdict.interval

    @property
    def table(self) -> ProxyTable:
        """What was simulated."""
        return self.proposal.table

    @property
    def law(self) -> MixingLaw:
        """The fitted laws."""
        return self.proposal.fit.law

    @property
    def verdict(self) -> Verdict:
        """Optimum, decision and alternatives."""
        return self.proposal.verdict

    @property
    def search_share(self) -> float:
        """FLOPs of the search over those of the stage's training."""
        return self.ledger.total("flops", ["probes", "proxies"]) / self.training_flops

    def json(self) -> dict[str, Any]:
        """The content of `mixture.json`."""
        return self.file().json()

    def timing(self) -> TimingFile:
        """Return when and how long, as `timing.json` keeps it."""
        return TimingFile.of(self.verdict, seconds=self.seconds, cost=self.ledger.cost.seconds)

    def file(self) -> MixtureFile:
        """Return the decision as `mixture.json` keeps it."""
        cost, proposal = self.ledger.cost, self.proposal
        return MixtureFile.of(
            "search",
            proposal.fit,
            self.verdict,
            check=CheckEntry.of(proposal.check),
            baseline=dict(proposal.baseline),
            bytes_per_token=dict(self.bytes_per_token),
            domains=self.counts,
            targets=self.targets,
            notes=self.notes,
            baseline_bits_per_byte={
                m: bits_per_byte(loss, self.bytes_per_token[m])
                for m, loss in proposal.baseline.items()
                if m in self.bytes_per_token
            },
            cost=SearchCost(
                tokens=cost.tokens,
                flops=cost.flops,
                search_share=self.search_share,
                stage_tokens=self.problem.budget_tokens,
            ),
            epochs=self.mixture.epochs(self.problem.budget_tokens, self.problem.available_tokens),
            evidence=proposal.evidence,
        )

    def log_to(self, to: str | Sequence[str] | Log, *, project: str = PROJECT, folder: str | Path = "logs") -> None:
        """Log points, mixture, decision and cost as a run of its own; see `opmix.trackers.write.log_decision`.

        Args:
            to: `tensorboard`, `wandb`, `mlflow`, `trackio`, several of them, or a function such as `wandb.log`.
            project: Of trackers that have projects.
            folder: Where trackers that write files write them.

        Raises:
            ConfigError: A tracker that is not known or not installed.
        """
        log_decision(self.file(), self.table, to, project=project, folder=folder)

    def push_to_hub(self, repo: str, *, private: bool = True, token: str | None = None) -> str:
        """Push decision, tables, report and card to a dataset repository of the hub; returns its address.

        Raises:
            StoreError: The hub cannot be reached or refuses.
        """
        from opmix.report.hub import push_run

        with tempfile.TemporaryDirectory(prefix="opmix-") as folder:
            self.write_into(Path(folder))
            return push_run(folder, repo, private=private, token=token)

    def __repr__(self) -> str:
        return self.file().summary()

    def _repr_html_(self) -> str:
        from opmix.report.notebook import decision_html

        return decision_html(self.file())

    def write(self, folder: str | Path) -> None:
        """Write `mixture.json`, `law_draws.json`, `timing.json`, `manifest.json`, `tables/proxies.csv` and `report.html`.

        Args:
            folder: Made where it does not exist; a URL will do.

        Raises:
            ConfigError: No path.
            StoreError: Another process holds the folder, or it holds a run of another command.
        """
        with run_folder(folder) as here, RunStore(here, "search"):
            self.write_into(here)

    def write_into(self, folder: Path) -> None:
        """The same into a folder that is held already."""
        from opmix.data import row_schema
        from opmix.report import write_report

        self.file().write(folder)
        LawDrawsFile.of(self.verdict.draws).write(folder)
        self.timing().write(folder)
        settings, base = as_json(self.config), str(self.base.resolve())
        rows = {n: row_schema(d.located(self.base)) for n, d in self.config.domains.items()}
        chats = {"rows": rows} if set(rows.values()) != {"text"} else {}  # what exporters need to know
        Manifest.write(folder, "search", config=settings, base=base, ledger=self.ledger.json(), **chats)
        self.table.write(folder / "tables" / "proxies.csv")
        write_report(folder)


def run_search(
    config: SearchConfig,
    *,
    base: Path | None = None,
    model: Any = None,
    tokenizer: Any = None,
    out: Path | None = None,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | None = None,
    data: StageData | None = None,
) -> SearchResult:
    """Run a checked configuration; see `opmix.search`. Relative paths are resolved against `base`; `data` is used where given."""
    ranks = ranks_here()
    if out is None and ranks.size > 1:
        raise ConfigError("out: missing; several ranks need a run folder that all of them see")
    if out is None:
        with tempfile.TemporaryDirectory(prefix="opmix-") as folder:
            return run_search(
                config,
                base=base,
                model=model,
                tokenizer=tokenizer,
                out=Path(folder),
                make_trainer=make_trainer,
                progress=progress,
                data=data,
            )
    with RunStore(out, "search") as store, _on_plain_weights(model) as model:
        shown = ProgressFile(out / "progress.json", progress or Silent()) if ranks.first else Silent()
        context = SearchContext(config, base or Path.cwd(), store, shown, make_trainer)
        clock = [time.perf_counter()]
        with span("prepare the search", "loading"):
            context.prepare(model, tokenizer, data)
            context.note_estimate()
        clock.append(time.perf_counter())
        with span("decide", "deciding"):
            proposal = context.method.propose(context)
        clock.append(time.perf_counter())
        proposal, remarks = _with_savings(context, proposal)
        proposal = _with_limits(_with_payoff(context, proposal))
        result = SearchResult(
            proposal=proposal,
            ledger=context.ledger,
            config=context.config,
            problem=context.problem,
            bytes_per_token=context.prepared.bytes_per_token,
            counts=context.counts(),
            targets=context.target_counts(),
            training_flops=context.training_flops,
            seconds=dict(zip(("prepare", "search"), np.diff(clock), strict=True)),
            notes=(*context.notes(proposal), *remarks),
            base=context.base,
        )
        with ranks.agreed():
            if ranks.first:
                result.write_into(out)
                _report_to_trackers(result, out, shown)
        return result


@contextmanager
def _on_plain_weights(model: Any) -> Iterator[Any]:
    """A model that carries adapters with these in its weights, for as long as the search takes."""
    if model is None:
        yield None
        return
    from opmix.probes.own_adapters import adapters_in_base

    with adapters_in_base(model) as plain:
        yield plain


def _report_to_trackers(result: SearchResult, out: Path, shown: Progress) -> None:
    """Log to the trackers of `trainer.report_to`; what one of them raises loses no result."""
    wanted = check_trackers(result.config.trainer.get("report_to"), strict=False)
    if not wanted:
        return
    try:
        log_decision(result.file(), result.table, wanted, folder=out / "trackers", report=out / "report.html")
    except Exception as error:  # a tracker's server, network or account
        shown.note(f"not logged to {', '.join(wanted)}: {type(error).__name__}: {error}; the result is in {out}")


def _with_payoff(context: SearchContext, proposal: LawProposal) -> LawProposal:
    """With what a mixture for targets buys and costs."""
    if not context.config.targets:
        return proposal
    told = payoff_of(proposal, tuple(context.config.targets), context.silent)
    return replace(proposal, evidence={**proposal.evidence, PAYOFF: told.json()})


def _with_limits(proposal: LawProposal) -> LawProposal:
    """With what is foretold of limited losses."""
    told = limits_json(proposal.verdict.limits(proposal.fit.law))
    return replace(proposal, evidence={**proposal.evidence, LIMITS: told}) if told else proposal


def _with_savings(context: SearchContext, proposal: LawProposal) -> tuple[LawProposal, list[str]]:
    """An adaptive search's evidence with what it saved, and the sentence that says so."""
    looks = proposal.evidence.get("adaptive")
    if looks is None:
        return proposal, []
    cost = context.saved(looks["steps"])
    change = f"{cost['saved']:.0%} less" if cost["saved"] >= 0 else f"{-cost['saved']:.0%} more"
    note = f"{looks['reason']}; the search took {cost['flops']:.2g} FLOPs, {change} than with whole probes"
    return replace(proposal, evidence={"adaptive": {**looks, **cost}}), [note]
