"""`lifecycle.yaml`: a model's whole life, checked before any of it is lived. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from opmix.config import ModelConfig, SearchSettings, SolveConfig
from opmix.domain import Domains
from opmix.errors import ConfigError
from opmix.mixing.decision import DecisionSettings
from opmix.probes.settings import ProbeSettings, ProxySettings
from opmix.settings import Count, Given, PartOf, Share, changed, inline, overlaid, settings
from opmix.target import Target, Targets
from opmix.training.arguments import TrainerArguments
from opmix.training.settings import DistillationSettings, ObjectiveName

OWNED = {
    "save_strategy": "use checkpoint_every",
    "save_steps": "use checkpoint_every",
    "save_total_limit": "use keep",
    "save_only_model": "resuming needs the optimiser's state",
    "eval_strategy": "use evaluation.every",
    "eval_steps": "use evaluation.every",
    "load_best_model_at_end": "a stage ends at its budget",
    "resume_from_checkpoint": "running again resumes",
}
"""Trainer arguments that a life decides itself."""

Named = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,79}$")]


_BYTES_AND_END = 257


@settings
class TokenizerConfig:
    """A saved tokenizer, or one that is trained on the first stage's domains; a plain string in YAML is `name`."""

    name: str | None = None
    vocab_size: Count | None = None
    """Train a byte-level BPE of this size."""
    documents: Count = 200
    """From the start of each domain, to learn merges from."""
    special_tokens: tuple[str, ...] = ()
    """Texts that are one token each, such as the marks of a chat template."""

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """See the class."""
        return {"name": value} if isinstance(value, str) else value

    def __post_init__(self) -> None:
        if (self.name is None) == (self.vocab_size is None):
            raise ConfigError("expected either name (a saved one) or vocab_size (train one)")
        least = _BYTES_AND_END + len(self.special_tokens)
        if self.vocab_size is not None and self.vocab_size < least:
            raise ConfigError(
                f"vocab_size: {self.vocab_size}; expected at least {least} (every byte and the end of a document), one "
                "for each special token among them"
            )


@settings
class ScheduleConfig:
    """Learning rate over a stage, in shares of its steps; see `opmix.compute.schedule`."""

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.02
    decay: Annotated[float, Field(gt=0, le=1)] = 0.1
    final: Share = 0.1


@settings
class TaskConfig:
    """Right answers of a chat domain, counted on its test split; a plain string in YAML is the extractor."""

    extractor: str = "exact"
    """`exact`, `number`, `first_word`, `json` or `regex:PATTERN`: what of an answer is compared."""
    items: Count = 64
    max_new_tokens: Count = 128

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """See the class."""
        return {"extractor": value} if isinstance(value, str) else value


@settings
class HarnessConfig:
    """Tasks of lm-evaluation-harness (the extra `eval`); a plain list in YAML is `tasks`."""

    tasks: Annotated[tuple[str, ...], Field(min_length=1)]
    limit: Count | None = None
    """Items a task; None: all."""
    num_fewshot: Annotated[int, Field(ge=0)] | None = None
    include_path: str | None = None
    """Folder of task YAMLs of your own."""

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """See the class."""
        return {"tasks": value} if isinstance(value, list | tuple) else value


@settings
class EvaluationConfig:
    """Held-out losses of the full model, on `valid` and `test`, before and after every stage."""

    sequences: Count = 128
    """Per domain and split."""
    every: Count | None = None
    """Tokens between evaluations of `valid` while training; None: never."""
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    """By chat domain: how often its questions are answered right. Reported beside the losses, never fitted."""
    harness: HarnessConfig | None = None
    """Further tasks, scored after every stage; never fitted either."""


@settings
class KeepConfig:
    """What stays on disk."""

    models: Literal["all", "last"] = "all"
    """Trained models of all stages, or of the last finished one only (others cannot be started from again)."""
    checkpoints: bool = False
    """Trainer checkpoints at every decision; while a stage runs they are kept anyway."""
    probes: bool = True
    """Adapters of finished searches."""


@settings
class StageConfig:
    """One stretch of life: who is on offer, for how many tokens, and how the mixture is found."""

    name: Named
    phase: Literal["pretraining", "midtraining", "instruction"] | None = None
    """A label for people; what happens follows from the other keys."""
    domains: tuple[str, ...] | None = None
    """All domains on offer; None: those of the stage before, with `add` and without `drop`."""
    add: tuple[str, ...] = ()
    """Domains weighed against the old mixture as a whole; usually new ones, but those already in it may be named."""
    drop: tuple[str, ...] = ()
    tokens: Count
    targets: dict[str, Target | None] = field(default_factory=dict)
    """Beside those of the life; one of theirs with null is none of this stage."""
    mixture: Literal["search", "uniform", "size", "current"] | dict[str, float] = "search"
    """`search`: OP-Mix decides; else a fixed mixture without a search."""
    prefix: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Share of the stage trained before the first decision; None: 0.2 where a model starts from scratch, else 0."""
    prefix_mixture: Literal["uniform", "size"] | dict[str, float] = "uniform"
    remix_every: Count | None = None
    """Tokens after which the mixture is decided again; None: once."""
    replay: Literal["remaining", "repeat"] = "remaining"
    """Old domains go on with tokens not seen yet (then again from the start), or begin from the start in this stage."""
    optimizer: Literal["fresh", "continued"] = "fresh"
    """Moments of the optimiser; `continued` takes those in which the stage before ended."""
    objective: ObjectiveName | None = None
    """None: `sft` where a domain on offer holds conversations, else `causal_lm`."""
    sdft: DistillationSettings | None = None
    """None: those of the life; else all of them, not single ones."""
    schedule: ScheduleConfig | None = None
    trainer: TrainerArguments = field(default_factory=Given)
    probes: Annotated[Given, PartOf(ProbeSettings)] = field(default_factory=Given)
    """Of this and the next blocks single settings, which are laid over those of the life."""
    proxies: Annotated[Given, PartOf(ProxySettings)] = field(default_factory=Given)
    solve: Annotated[Given, PartOf(SolveConfig)] = field(default_factory=Given)
    decision: Annotated[Given, PartOf(DecisionSettings)] = field(default_factory=Given)


_OVERLAID = ("trainer", "sdft", "probes", "proxies", "solve", "decision")
"""Settings of a life that a stage may have of its own."""


@settings
class LifeSettings:
    """A life: where it starts, its domains, its stages, and what holds for all of them; see `LifecycleConfig` for its rules."""

    model: ModelConfig | None = None
    """An existing checkpoint to start from; or `architecture`."""
    architecture: dict[str, Any] | None = None
    """`model_type` and settings of a transformers config, to start from scratch."""
    tokenizer: TokenizerConfig | None = None
    """Needed with `architecture`."""
    domains: Annotated[Domains, Field(min_length=1)]
    old_mixture: dict[str, float] | None = None
    """With `model`: what it was last trained on, over domains of this file; None: nothing of them."""
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1)]
    seeds: tuple[int, ...] = (0,)
    chat_template: str | None = None
    """For conversations: a Jinja file, or the text itself; None: the tokenizer's own."""
    schedule: ScheduleConfig | None = None
    """None: what `trainer` says, else warm-up, stable, decay."""
    search: SearchSettings = inline(default_factory=SearchSettings)
    """What every decision is told, as far as its stage does not say otherwise."""
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint_every: Count | None = None
    """Tokens between checkpoints; None: ten a stage."""
    keep: KeepConfig = KeepConfig()

    @property
    def targets(self) -> Targets:
        """Of the life and its stages: all are measured before and after every stage."""
        return {**self.search.targets, **{n: t for s in self.stages for n, t in s.targets.items() if t is not None}}

    def targets_of(self, stage: StageConfig) -> Targets:
        """What the mixture of a stage is for."""
        return {n: t for n, t in {**self.search.targets, **stage.targets}.items() if t is not None}

    def settings_of(self, stage: StageConfig, domains: Sequence[str]) -> SearchSettings:
        """What a stage's decisions are told: the life's settings on its domains, with the stage's own laid over them."""
        own = {name: given for name in _OVERLAID if (given := getattr(stage, name))}
        targets = self.targets_of(stage)
        kept = changed(self.search, targets=targets, solve=self.search.solve.restricted(domains, targets))
        return overlaid(kept, own)
