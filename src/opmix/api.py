"""`opmix.search`: one decision, from a model and some text domains to a mixture that can be trusted."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from opmix.compute.ledger import Ledger
from opmix.config import SearchConfig, parse_config
from opmix.errors import ConfigError, DataError
from opmix.methods.base import Proposal, Stage
from opmix.methods.op_mix import OpMix
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings, Verdict
from opmix.mixing.design import coordinates_of
from opmix.mixing.law import LogLinearLaw
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.solver import SolveSettings
from opmix.mixing.table import ProxyTable
from opmix.progress import Progress, Silent
from opmix.results import draws_json, verdict_json
from opmix.runs.files import default_cache_dir, environment, write_json
from opmix.runs.store import RunStore, fingerprint

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from opmix.data import PackedSequences, TokenizedDomain
    from opmix.probes.evaluation import HeldOut
    from opmix.probes.session import ProbeSession
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
            bytes_per_token=dict(self.bytes_per_token), notes=list(self.notes), seconds=dict(self.seconds),
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
        work = _Search(config, base or Path.cwd(), store, progress or Silent(), make_trainer)
        return work.run(model, tokenizer)


class _Search:
    """One search in progress: the `MethodContext` of OP-Mix."""

    def __init__(
        self,
        config: SearchConfig,
        base: Path,
        store: RunStore,
        progress: Progress,
        make_trainer: TrainerFactory | None,
    ) -> None:
        from opmix.training.factory import check_arguments

        check_arguments(config.trainer)
        self.config, self.base, self.store, self.progress, self.make_trainer = (
            config,
            base,
            store,
            progress,
            make_trainer,
        )
        self.ledger = Ledger()
        self.names = tuple(config.domains)
        self.old = None if config.old_mixture is None else Mixture.of(config.old_mixture)
        # A design that cannot be, and constraints that contradict each other, are found before data are read.
        self.method = OpMix(
            share=config.probes.share,
            joint=config.probes.joint,
            num_points=config.proxies.count,
            huber_delta=config.huber_delta,
        )

    def run(self, model: Any, tokenizer: Any) -> SearchResult:
        clock = time.perf_counter()
        model, tokenizer = self._load(model, tokenizer)
        data = self._prepare(tokenizer)
        self.stage = Stage(
            domains=self.names, old=self.old, budget_tokens=self.config.budget.tokens,
            available_tokens={n: d.train.num_tokens for n, d in data.items()}, seed=self.config.seed,
        )  # fmt: skip
        self._check_constraints()
        self.session = self._session(model, data)
        self._estimate()
        prepared = time.perf_counter()
        proposal = self.method.propose(self)
        done = time.perf_counter()
        shape, length = self.session.shape, self.config.sequence_length
        result = SearchResult(
            proposal=proposal, ledger=self.ledger, config=self.config, stage=self.stage,
            bytes_per_token={n: d.valid.num_bytes / d.valid.num_tokens for n, d in data.items()},
            training_flops=self.config.budget.tokens * shape.train(length),
            seconds={"prepare": prepared - clock, "search": done - prepared}, notes=tuple(self._notes(data)),
        )  # fmt: skip
        result.write(self.store.folder)
        return result

    # -- what a method may ask for -----------------------------------------------------------------------------

    def simulate(self, design: Any, points: Any) -> Any:
        return self.session.simulate(design, points)

    def solve_settings(self, baseline: FloatArray, metrics: Sequence[str]) -> SolveSettings:
        solve = self.config.solve
        omega = np.array([solve.weights.get(m, 0.0) for m in metrics]) if solve.objective == "weighted" else None
        return SolveSettings(
            objective=solve.objective, omega=omega, reference=baseline, kl=solve.kl, prior=self._prior()
        )

    def constraints(self, baseline: Mapping[str, float]) -> Constraints:
        return self.config.constraints(available=self.stage.available_tokens, baseline=baseline)

    def decision(self) -> DecisionSettings:
        return self.config.decision.settings(self.config.seed)

    def _prior(self) -> Mixture:
        chosen = self.config.solve.prior
        if isinstance(chosen, Mapping):
            return Mixture.normalised({n: chosen.get(n, 0.0) for n in self.names})
        if chosen == "current":
            return self.stage.current
        if chosen == "size":
            return self.stage.by_size
        coordinates = coordinates_of(self.names, self.old)
        return coordinates.mixture(np.full(len(coordinates.names), 1 / len(coordinates.names)))

    # -- preparation -------------------------------------------------------------------------------------------

    def _load(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        from opmix.models import check_vocabulary, load_model, load_tokenizer

        wanted = self.config.model
        if model is not None and tokenizer is None and wanted.tokenizer is None:
            raise ConfigError("tokenizer: missing; a model object needs the tokenizer it was trained with")
        if tokenizer is None:
            tokenizer = load_tokenizer(
                wanted.tokenizer or self._name(wanted.name),
                revision=wanted.revision,
                trust_remote_code=wanted.trust_remote_code,
            )
        if model is None:
            self.progress.note(f"loading {wanted.name}")
            model = load_model(
                self._name(wanted.name), dtype=wanted.dtype, device=wanted.device, revision=wanted.revision,
                trust_remote_code=wanted.trust_remote_code, attn_implementation=wanted.attn_implementation,
            )  # fmt: skip
        check_vocabulary(tokenizer, model)
        return model, tokenizer

    def _name(self, name: str) -> str:
        """A checkpoint beside the configuration, or a hub name."""
        local = self.base / Path(name).expanduser()
        return str(local) if local.exists() else name

    def _prepare(self, tokenizer: Any) -> dict[str, TokenizedDomain]:
        from opmix.data import prepare_domain

        cache = Path(self.config.cache_dir) if self.config.cache_dir else default_cache_dir()
        data = {}
        with self.progress.task("tokenise", len(self.names)) as advance:
            for done, (name, wanted) in enumerate(self.config.domains.items()):
                data[name] = prepare_domain(
                    wanted.domain(name, self.base), tokenizer, cache_dir=cache, num_proc=self.config.num_proc
                )
                advance(done + 1, len(self.names))
        return data

    def _check_constraints(self) -> None:
        """Solve a flat problem: contradictory constraints are named before anything is trained."""
        from opmix.mixing.solver import solve

        flat = LogLinearLaw(
            self.names,
            self.names,
            np.zeros(len(self.names)),
            np.zeros((len(self.names),) * 2),
            np.zeros(len(self.names)),
            1,
        )
        linear = self.config.constraints(available=self.stage.available_tokens)
        solve(
            flat,
            coordinates=coordinates_of(self.names, self.old),
            settings=SolveSettings(kl=self.config.solve.kl, prior=self._prior()),
            constraints=linear,
        )

    def _session(self, model: Any, data: Mapping[str, TokenizedDomain]) -> ProbeSession:
        from opmix.data import PackedSequences
        from opmix.models import model_shape
        from opmix.probes.session import ProbeSession, ProbeSettings
        from opmix.training.factory import default_trainer

        config, length = self.config, self.config.sequence_length
        limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and length > limit:
            raise ConfigError(f"sequence_length: {length}; the model takes at most {limit} tokens")
        chosen = config.probes.model_dump(exclude={"share", "joint"})
        return ProbeSession(
            model=model, shape=model_shape(model), train={n: PackedSequences(d.train, length) for n, d in data.items()},
            held_out=[held_out(n, PackedSequences(d.valid, length), config) for n, d in data.items()],
            settings=ProbeSettings(**chosen), trainer=config.trainer, make_trainer=self.make_trainer or default_trainer,
            store=self.store, data_fingerprint=fingerprint([[d.fingerprint for d in data.values()], length, config.proxies.eval_sequences]),
            ledger=self.ledger, progress=self.progress, seed=config.seed, backend=config.proxies.backend,
            batch_tokens=config.proxies.batch_tokens, document_mask=config.document_mask,
        )  # fmt: skip

    def _estimate(self) -> None:
        """What the search will cost, before it does."""
        design, session = self.method.design(self.stage), self.session
        length, shape = self.config.sequence_length, session.shape
        num_probes = len(design.probes.probes)
        probe_tokens = num_probes * session.probe_sequences * length
        eval_tokens = (len(design.points) + 1) * sum(h.input_ids.size for h in session.held_out)
        flops = probe_tokens * shape.train_lora(length, 0) + eval_tokens * shape.forward(length)
        share = flops / (self.config.budget.tokens * shape.train(length))
        per_probe = _adapter_bytes(session)
        self.progress.note(
            f"{num_probes} probes x {session.settings.steps} steps ({probe_tokens:,} tokens), {len(design.points)} proxies "
            f"({eval_tokens:,} tokens): about {flops:.2g} FLOPs, {share:.1%} of the {self.config.budget.tokens:,}-token stage; "
            f"{num_probes * per_probe / 1e6:.1f} MB of adapters"
        )

    def _notes(self, data: Mapping[str, TokenizedDomain]) -> list[str]:
        """What a careful reader would want to be told."""
        notes = []
        design = self.method.design(self.stage).probes
        drawn = self.session.probe_sequences * self.config.sequence_length
        for name, domain in data.items():
            seen = (
                float(max(row[i] for row in design.R for i in [design.domains.index(name)]))
                * drawn
                / domain.train.num_tokens
            )
            if seen > 1.5:
                notes.append(
                    f"a probe repeats {name} {seen:.1f} times; its gain is then over-estimated unless the stage repeats it as often"
                )
        if "learning_rate" not in self.config.trainer:
            notes.append(
                "trainer.learning_rate is not set: probes used twice the Trainer's default of 5e-05; set the rate of your full run"
            )
        return notes


def _adapter_bytes(session: ProbeSession) -> float:
    from opmix.models import lora_targets

    wanted = session.settings.target_modules or lora_targets(session.model)
    total = 0
    for name, module in session.model.named_modules():
        if any(name == w or name.endswith("." + w) for w in wanted) and hasattr(module, "weight"):
            total += session.settings.rank * sum(module.weight.shape)
    return 4.0 * total


def held_out(name: str, packed: PackedSequences, config: SearchConfig) -> HeldOut:
    """The held-out sequences that every proxy is evaluated on.

    Raises:
        DataError: Fewer than two sequences: no noise can be estimated.
    """
    from opmix.data import held_out_batch
    from opmix.probes.evaluation import HeldOut

    if len(packed) < 2:
        raise DataError(
            f"domain {name!r}: {len(packed)} held-out sequence(s) of {packed.sequence_length} tokens; expected at least 2: give it a larger "
            "valid set, a larger holdout or a shorter sequence_length"
        )
    rows = held_out_batch(packed, min(config.proxies.eval_sequences, len(packed)), config.seed)
    positions = np.stack([packed.position_ids(int(i)) for i in rows]) if config.document_mask else None
    return HeldOut(name, packed.batch(rows), np.array([packed.num_bytes(int(i)) for i in rows]), position_ids=positions)


__all__ = ["SearchResult", "held_out", "run_search", "search"]
