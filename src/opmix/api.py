"""`opmix.search`: one decision, from a model and some text domains to a mixture that can be trusted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opmix.compute.ledger import Ledger
from opmix.config import SearchConfig, parse_config
from opmix.lifecycle.context import SearchContext
from opmix.methods.base import Proposal, Stage
from opmix.mixing.decision import Verdict
from opmix.mixing.law import LogLinearLaw
from opmix.mixing.mixture import Mixture
from opmix.mixing.table import ProxyTable
from opmix.progress import Progress, Silent
from opmix.results import bits_per_byte, draws_json, verdict_json
from opmix.runs.files import environment, write_json
from opmix.runs.store import RunStore

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from opmix.training.factory import TrainerFactory

IN_MEMORY = "<model object>"


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The answer of a search, with its evidence."""

    proposal: Proposal
    ledger: Ledger
    config: SearchConfig
    stage: Stage
    bytes_per_token: Mapping[str, float]
    """Of each held-out set; turns nats per token into bits per byte."""
    counts: Mapping[str, Mapping[str, Mapping[str, int]]]
    """Domain, split: tokens, bytes and documents."""
    training_flops: float
    """Of the stage that the mixture is for."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

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
    def law(self) -> LogLinearLaw:
        """The fitted laws."""
        return self.proposal.fit.law

    @property
    def verdict(self) -> Verdict:
        """Optimum, decision and alternatives."""
        return self.proposal.verdict

    def json(self) -> dict[str, Any]:
        """The content of `mixture.json`."""
        cost = self.ledger.by_purpose()
        search = self.ledger.total("flops", ["probes", "proxies"])
        return verdict_json(
            "search", self.proposal.fit, self.verdict, check=self.proposal.check, baseline=dict(self.proposal.baseline),
            bytes_per_token=dict(self.bytes_per_token), domains=self.counts, notes=list(self.notes), seconds=dict(self.seconds),
            baseline_bits_per_byte={m: bits_per_byte(v, self.bytes_per_token[m]) for m, v in self.proposal.baseline.items()},
            cost={**cost, "search_share": search / self.training_flops, "stage_tokens": self.stage.budget_tokens},
            epochs=self.mixture.epochs(self.stage.budget_tokens, self.stage.available_tokens),
        )  # fmt: skip

    def write(self, folder: Path) -> None:
        """Write `mixture.json`, `law_draws.json`, `manifest.json`, `tables/proxies.csv` and `report.html`."""
        from opmix.report import write_report

        write_json(folder / "mixture.json", self.json())
        write_json(folder / "law_draws.json", draws_json(self.verdict))
        manifest = {
            "command": "search",
            "config": self.config.model_dump(mode="json"),
            "ledger": self.ledger.json(),
        }
        write_json(folder / "manifest.json", {**manifest, **environment()})
        self.table.write(folder / "tables" / "proxies.csv")
        write_report(folder)


def search(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    domains: Mapping[str, Any] | None = None,
    *,
    budget: int,
    old_mixture: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> SearchResult:
    """Find the mixture for the next stretch of training.

    Args:
        model: A causal LM, or a checkpoint folder, `.gguf` file or hub name. An object is given back unchanged.
        tokenizer: Needed with a model object; else that of the checkpoint.
        domains: Name to source: a path, glob, list of them, or a mapping with `train`, `valid`, `test`, `max_epochs`, ...
        budget: Training tokens of the stretch.
        old_mixture: Token shares the model was last trained on; domains not in it are new. None: uniform.
        out: Run folder; running again with the same inputs resumes. None: nothing is kept.
        make_trainer: Replaces `opmix.training.factory.default_trainer`.
        progress: Shows what is going on; None: silence.
        **settings: Further keys of `search.yaml`: sequence_length, trainer, probes, proxies, solve, decision, seed, ...

    Returns:
        The mixture with intervals, table, laws, decision and ledger.

    Raises:
        ConfigError: All problems of the settings at once.
        DataError: A domain that cannot be read, is empty, or does not fit the tokenizer.
        OpMixError: Whatever else stops the search; see `opmix.errors`.
    """
    named = model if isinstance(model, str | Path) else IN_MEMORY
    content = {
        "model": str(named),
        "domains": dict(domains or {}),
        "budget": {"tokens": budget},
        "old_mixture": old_mixture,
        **settings,
    }
    return run_search(
        parse_config(content), model=None if named is model else model, tokenizer=tokenizer, out=None if out is None else Path(out),
        make_trainer=make_trainer, progress=progress,
    )  # fmt: skip


def run_search(
    config: SearchConfig,
    *,
    base: Path | None = None,
    model: Any = None,
    tokenizer: Any = None,
    out: Path | None = None,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """Run a checked configuration; see `search`. Relative paths are resolved against `base`."""
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
            )
    with RunStore(out) as store:
        context = SearchContext(config, base or Path.cwd(), store, progress or Silent(), make_trainer)
        clock = [time.perf_counter()]
        context.prepare(model, tokenizer)
        clock.append(time.perf_counter())
        proposal = context.method.propose(context)
        clock.append(time.perf_counter())
        result = SearchResult(
            proposal=proposal,
            ledger=context.ledger,
            config=config,
            stage=context.stage,
            bytes_per_token={n: d.valid.num_bytes / d.valid.num_tokens for n, d in context.data.items()},
            counts=context.counts(),
            training_flops=context.training_flops,
            seconds=dict(zip(("prepare", "search"), np.diff(clock), strict=True)),
            notes=tuple(context.notes()),
        )
        result.write(out)
        return result


__all__ = ["SearchResult", "run_search", "search"]
