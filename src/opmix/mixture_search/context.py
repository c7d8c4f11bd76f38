"""The context of one search: configuration, data, model and run folder brought together for a method."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opmix.compute.budget import spread
from opmix.compute.ledger import Ledger
from opmix.config import SearchConfig
from opmix.domain import SPLITS
from opmix.errors import ConfigError
from opmix.methods.findings import findings
from opmix.methods.op_mix import method_of
from opmix.mixing.constraints import Constraints
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import FloatArray, Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixture_search.estimate import DomainSize, estimate_search, eval_sequences
from opmix.mixture_search.feasible import check_decision, problem_of, solve_settings_of
from opmix.mixture_search.hand_over import elsewhere
from opmix.mixture_search.payoff import silent_targets
from opmix.progress import Progress
from opmix.protocols.mixing_method import LawProposal, Simulation
from opmix.results.payoff import Silent
from opmix.runs.files import default_cache_dir
from opmix.runs.store import RunStore, fingerprint
from opmix.settings import changed
from opmix.target import LOSS_LIMIT
from opmix.training.arguments import checked_arguments

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from opmix.data import TokenizedDomain
    from opmix.probes.session import ProbeSession
    from opmix.training.factory import TrainerFactory
    from opmix.training.stage_data import StageData


class SearchContext:
    """One search in progress: the `MethodContext` of OP-Mix."""

    def __init__(
        self,
        config: SearchConfig,
        base: Path,
        store: RunStore,
        progress: Progress,
        make_trainer: TrainerFactory | None,
    ) -> None:
        self.config = changed(config, trainer=checked_arguments(config.trainer))
        self.base, self.store = base, store
        self.progress, self.make_trainer = progress, make_trainer
        self.ledger = Ledger()
        self.silent: dict[str, Silent] = {}
        """Targets that the probes tell nothing of."""
        self.names = tuple(config.domains)
        self.old = None if config.old_mixture is None else Mixture.of(config.old_mixture)
        self.method = method_of(config)

    def prepare(self, model: Any, tokenizer: Any, data: StageData | None = None) -> None:
        """Load, tokenise and check: everything that can fail cheaply, before anything is trained.

        Args:
            model: Already loaded, or None.
            tokenizer: Already loaded, or None.
            data: Already tokenised, or None.

        Raises:
            OpMixError: Whatever is wrong with model, tokenizer, domains or constraints.
        """
        from opmix.probes.kinds import check_probes

        given = model, tokenizer
        model, tokenizer = self._load(model, tokenizer)
        self.prepared = self._prepare(model, tokenizer) if data is None else data
        if missing := set(self.config.targets) - set(self.prepared.targets):
            raise ConfigError(
                [f"targets.{n}: its text was not prepared; give it where the data is made" for n in missing]
            )
        available = self.prepared.available_tokens
        self.problem = problem_of(self.config, available)
        check_decision(self.config, self.problem, available)
        check_probes(model, self.config.probes)
        self.session = self._session(model, given)

    @property
    def data(self) -> Mapping[str, TokenizedDomain]:
        """The domains, tokenised."""
        return self.prepared.domains

    @property
    def training_flops(self) -> float:
        """Of the stage that the mixture is for."""
        tokens = round(self.config.budget.tokens * self.prepared.row_tokens_per_supervised)
        return self.prepared.objective.flops(
            self.session.runtime.shape, row_tokens=tokens, length=self.config.sequence_length
        )

    def saved(self, steps: int) -> dict[str, float]:
        """FLOPs of a search whose probes stopped after `steps`, and of the same with whole probes; the test of a move left out."""
        design, session = self.method.design(self.problem), self.session
        own = {f"probe {p}" for p in design.probes.probes}
        trained = sum(e.flops for e in self.ledger.entries if e.step in own)
        swept = sum(e.flops for e in self.ledger.entries if e.step.startswith("proxies"))
        whole = trained * session.settings.num_steps / steps
        whole += session.evaluating(session.held_out, len(design.points))
        return {"flops": trained + swept, "fixed_flops": whole, "saved": 1 - (trained + swept) / whole}

    def counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """Tokens, bytes and documents by domain and split."""
        return {n: {s: self.prepared.counts(n, s) for s in SPLITS} for n in self.data}

    def target_counts(self) -> dict[str, dict[str, dict[str, int]]]:
        """The same by target; nothing of them is trained on."""
        return {n: {s: self.prepared.counts(n, s) for s in SPLITS[1:]} for n in self.prepared.targets}

    # -- what a method may ask for -----------------------------------------------------------------------------

    @property
    def simulate(self) -> Callable[..., Simulation]:
        """See `MethodContext`."""
        return self.session.simulate

    @property
    def token_losses(self) -> Callable[..., Mapping[str, FloatArray]]:
        """See `MethodContext`."""
        return self.session.token_losses

    def solve_settings(
        self, baseline: FloatArray, metrics: Sequence[str], *, simulated: Simulation | None = None
    ) -> SolveSettings:
        """See `MethodContext`."""
        if simulated is not None and simulated.fidelity.steps is None:
            self.silent = silent_targets(self.config, simulated)
        size = self.prepared.bytes_per_token
        return solve_settings_of(self.config, self.problem, baseline, metrics, silent=self.silent, bytes_per_token=size)

    def constraints(self, baseline: Mapping[str, float]) -> Constraints:
        """See `MethodContext`."""
        return self.config.constraints(available=self.problem.available_tokens, baseline=baseline)

    def decision(self) -> DecisionSettings:
        """See `MethodContext`."""
        return self.config.rule

    def _target_notes(self) -> list[str]:
        notes = [
            f"{name} has no say: its loss differs by {told.spread:.4f} nats between the probes, and other held-out "
            f"text would change it by {told.noise:.4f}; give it more text, train probes longer, or name it in "
            "solve.weights"
            for name, told in self.silent.items()
        ]
        limited = self.config.default_limits
        if not limited:
            return notes
        return [
            *notes,
            f"with targets, the loss of training domains may rise by at most {LOSS_LIMIT:g} % above the current "
            "model's "
            f"({', '.join(limited)}); `solve.loss_limits: none` lifts that, a limit of a domain's own replaces it",
        ]

    # -- preparation -------------------------------------------------------------------------------------------

    def _load(self, model: Any, tokenizer: Any) -> tuple[Any, Any]:
        from opmix.data.tokenization import check_tokenizer
        from opmix.models.files import located
        from opmix.models.load import check_vocabulary, load_model, load_tokenizer
        from opmix.probes.preserve_state import plain_model

        wanted = self.config.model
        if model is not None:
            model = plain_model(model)
        if model is not None and tokenizer is None and wanted.tokenizer is None:
            raise ConfigError("tokenizer: missing; a model object needs the tokenizer it was trained with")
        if tokenizer is not None:
            check_tokenizer(tokenizer)
        else:
            tokenizer = load_tokenizer(
                wanted.tokenizer or located(wanted.name, self.base),
                revision=wanted.revision,
                trust_remote_code=wanted.trust_remote_code,
            )
        if model is None:
            self.progress.note(f"loading {wanted.name}")
            model = load_model(
                located(wanted.name, self.base),
                dtype=wanted.dtype,
                device=wanted.device,
                revision=wanted.revision,
                trust_remote_code=wanted.trust_remote_code,
                attn_implementation=wanted.attn_implementation,
                sharded=spread(self.config.trainer),
            )
        check_vocabulary(tokenizer, model)
        return model, tokenizer

    def _prepare(self, model: Any, tokenizer: Any) -> StageData:
        config, limit = self.config, getattr(model.config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and config.sequence_length > limit:
            raise ConfigError(f"sequence_length: {config.sequence_length}; the model takes at most {limit} tokens")
        cache = Path(config.cache_dir) if config.cache_dir else default_cache_dir()
        return prepare_stage(config, tokenizer, base=self.base, cache_dir=cache, progress=self.progress, limit=limit)

    def _session(self, model: Any, given: tuple[Any, Any]) -> ProbeSession:
        from opmix.models.layers import model_shape
        from opmix.probes.held_out import held_out
        from opmix.probes.session import ProbeSession
        from opmix.probes.tasks import ProbeRuntime, ProxyEvaluator

        config, data = self.config, self.prepared
        runtime = ProbeRuntime(
            model=model,
            shape=model_shape(model),
            rows=data.train,
            progress=self.progress,
            objective=data.objective,
            make_trainer=self.make_trainer,
        )
        sequences = eval_sequences(config, self.old)
        evaluator = ProxyEvaluator(
            runtime=runtime,
            settings=config.probe_settings,
            held_out=[
                held_out(n, rows, num=num, seed=config.seed, document_mask=config.document_mask)
                for (n, rows), num in zip(data.evaluated("valid").items(), sequences, strict=True)
            ],
            backend=config.proxies.backend,
            batch_tokens=config.proxies.batch_tokens,
        )
        return ProbeSession(
            runtime=runtime,
            evaluator=evaluator,
            trainer=config.trainer,
            store=self.store,
            data_fingerprint=fingerprint([*data.fingerprint, sequences]),
            ledger=self.ledger,
            seed=config.seed,
            document_mask=config.document_mask,
            elsewhere=elsewhere(
                config, self.base, self.store, model=model, given=given, make_trainer=self.make_trainer
            ),
        )

    def note_estimate(self) -> None:
        """Note what the search will cost, before it does."""
        from opmix.data import supervised_per_row
        from opmix.probes.kinds import probe_weights

        session, length = self.session, self.config.sequence_length
        sizes = {
            n: DomainSize(
                available=self.problem.available_tokens[n],
                row=float(rows.lengths.mean()),
                supervised=supervised_per_row(rows),
                held_out=len(held.input_ids),
                held_out_row=held.input_ids.shape[1],
            )
            for (n, rows), held in zip(session.runtime.rows.items(), session.held_out, strict=False)
        }
        for held in session.held_out[len(sizes) :]:  # targets
            sizes[held.name] = DomainSize(
                row=length, supervised=length, held_out=len(held.input_ids), held_out_row=held.input_ids.shape[1]
            )
        chosen = session.settings
        weights = probe_weights(chosen, session.runtime.model)
        self.estimate = found = estimate_search(self.config, self.old, sizes)
        cost = found.cost(
            session.runtime.shape, length, adapter_parameters=weights.priced, objective=self.prepared.objective
        )
        flops = cost.total("flops")
        share = found.share(flops, session.runtime.shape, length, self.prepared.objective)
        most = "at most " if self.config.adaptive else ""
        self.progress.note(
            f"{most}{found.num_probes} short trainings of {chosen.steps} steps ({found.probe_tokens:,} tokens) and "
            f"{found.num_points} mixtures tried without training ({found.proxy_tokens:,} tokens): about {flops:.2g} "
            f"FLOPs, {share:.1%} of training on the {self.config.budget.tokens:,} tokens that the mixture is for; "
            f"{found.num_probes * 4.0 * weights.kept / 1e6:.1f} MB on disk"
        )

    def notes(self, proposal: LawProposal) -> list[str]:
        """What a careful reader would want to be told."""
        from opmix.models.layers import reached_share
        from opmix.probes.kinds import modules_in_full
        from opmix.probes.settings import reach_notes

        notes = [*self.prepared.notes(), *self._target_notes(), *findings(proposal)]
        reached = proposal.evidence.get("adaptive", {}).get("steps", self.session.settings.num_steps)
        seen = self.session.probe_tokens * reached / self.session.settings.num_steps
        design, shares = self.method.design(self.problem).probes, proposal.verdict.optimum.mixture
        for index, (name, most) in enumerate(zip(design.domains, design.R.max(axis=0), strict=True)):
            available = self.problem.available_tokens[name]
            probe, stage = most * seen / available, shares[name] * self.problem.budget_tokens / available
            notes += repetition(name, float(probe), float(stage)) if design.R[:, index].any() else []
        if "learning_rate" not in self.config.trainer:
            notes.append(
                "trainer.learning_rate is not set: probes used twice the Trainer's default of 5e-05; set the rate of "
                "your full run"
            )
        settings = self.session.settings
        if settings.kind == "full":
            return notes
        model = self.session.runtime.model
        in_full = [*settings.modules_to_save, *modules_in_full(settings, model)]
        return notes + reach_notes(reached_share(model, settings.target_modules, in_full))


def prepare_stage(
    config: SearchConfig, tokenizer: Any, *, base: Path, cache_dir: Path, progress: Progress, limit: int | None = None
) -> StageData:
    """Tokenise the domains of a search and choose the objective; see `prepare_data`."""
    from opmix.scores.task_questions import without_tasks
    from opmix.training.stage_data import prepare_data

    template = config.model.template(base)
    return prepare_data(
        {name: domain.located(base, template) for name, domain in config.domains.items()},
        tokenizer,
        targets={
            name: target.domain(name, base, template)
            for name, target in without_tasks(config.targets, base, cache_dir).items()
        },
        objective=config.objective,
        sdft=config.sdft.located(base),
        sequence_length=config.sequence_length,
        cache_dir=cache_dir,
        num_proc=config.num_proc,
        progress=progress,
        limit=limit,
    )


def repetition(name: str, probe: float, stage: float) -> list[str]:
    """A warning where probes and stage repeat a domain differently (arXiv 2606.07597).

    Args:
        name: The domain.
        probe: Epochs of the probe that sees most of it.
        stage: Epochs at the share that the law is best at.
    """
    if probe > max(1.5, stage):
        return [
            f"a probe reads {name} {probe:.1f} times over, the stage would read it {stage:.1f} times at the law's "
            "optimum; its gain may be misjudged, so train probes for fewer steps or give it more text"
        ]
    if stage > max(4.0, 4 * probe):
        return [
            f"the stage would read {name} {stage:.1f} times over at the law's optimum, and a probe reads "
            f"{f'{probe:.0%} of it' if probe < 1 else f'it {probe:.1f} times'}; its gain is then over-estimated, so "
            "limit max_epochs or give it more text"
        ]
    return []
