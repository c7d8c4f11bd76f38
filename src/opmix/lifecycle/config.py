"""`lifecycle.yaml`: a model's whole life, checked before any of it is lived. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opmix.config import DomainConfig, ModelConfig, SdftConfig, SearchConfig
from opmix.errors import ConfigError
from opmix.mixing.mixture import Mixture
from opmix.strict import Count, Strict, nearest, read_yaml, validated

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

MODEL = "<model object>"
"""Of a decision whose model is not kept on disk."""

SEARCH_BLOCKS = ("probes", "proxies", "solve", "decision")
_BY_DOMAIN = ("weights", "floors", "ceilings", "fixed", "loss_limits")

Named = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.\-]{0,79}$")]


class TokenizerConfig(Strict):
    """A saved tokenizer, or one that is trained on the first stage's domains; a plain string in YAML is `name`."""

    name: str | None = None
    vocab_size: Count | None = None
    """Train a byte-level BPE of this size."""
    documents: Count = 200
    """From the start of each domain, to learn merges from."""
    special_tokens: tuple[str, ...] = ()
    """Texts that are one token each, such as the marks of a chat template."""

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of(self) -> TokenizerConfig:
        if (self.name is None) == (self.vocab_size is None):
            raise ConfigError("tokenizer: expected either name (a saved one) or vocab_size (train one)")
        return self


class ScheduleConfig(Strict):
    """Learning rate over a stage, in shares of its steps; see `opmix.compute.schedule`."""

    kind: Literal["wsd", "cosine", "linear", "constant"] = "wsd"
    warmup: float = Field(default=0.02, ge=0, lt=1)
    decay: float = Field(default=0.1, gt=0, le=1)
    final: float = Field(default=0.1, ge=0, le=1)


class TaskConfig(Strict):
    """Right answers of a chat domain, counted on its test split; a plain string in YAML is the extractor."""

    extractor: str = "exact"
    """`exact`, `number`, `first_word`, `json` or `regex:PATTERN`: what of an answer is compared."""
    items: Count = 64
    max_new_tokens: Count = 128

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"extractor": value} if isinstance(value, str) else value


class EvaluationConfig(Strict):
    """Held-out losses of the full model, on `valid` and `test`, before and after every stage."""

    sequences: Count = 128
    """Per domain and split."""
    every: Count | None = None
    """Tokens between evaluations of `valid` while training; None: never."""
    tasks: dict[str, TaskConfig] = Field(default_factory=dict)
    """By chat domain: how often its questions are answered right. Reported beside the losses, never fitted."""


class KeepConfig(Strict):
    """What stays on disk."""

    models: Literal["all", "last"] = "all"
    """Trained models of all stages, or of the last finished one only (others cannot be started from again)."""
    checkpoints: bool = False
    """Trainer checkpoints at every decision; while a stage runs they are kept anyway."""
    probes: bool = True
    """Adapters of finished searches."""


class StageConfig(Strict):
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
    mixture: Literal["search", "uniform", "size", "current"] | dict[str, float] = "search"
    """`search`: OP-Mix decides; else a fixed mixture without a search."""
    prefix: float | None = Field(default=None, ge=0, lt=1)
    """Share of the stage trained before the first decision; None: 0.2 where a model starts from scratch, else 0."""
    prefix_mixture: Literal["uniform", "size"] | dict[str, float] = "uniform"
    remix_every: Count | None = None
    """Tokens after which the mixture is decided again; None: once."""
    replay: Literal["remaining", "repeat"] = "remaining"
    """Old domains go on with tokens not seen yet (then again from the start), or begin from the start in this stage."""
    optimizer: Literal["fresh", "continued"] = "fresh"
    """Moments of the optimiser; `continued` takes those in which the stage before ended."""
    objective: Literal["causal_lm", "sft", "sdft"] | None = None
    """None: `sft` where a domain on offer holds conversations, else `causal_lm`."""
    sdft: SdftConfig | None = None
    schedule: ScheduleConfig | None = None
    trainer: dict[str, Any] = Field(default_factory=dict)
    probes: dict[str, Any] = Field(default_factory=dict)
    proxies: dict[str, Any] = Field(default_factory=dict)
    solve: dict[str, Any] = Field(default_factory=dict)
    decision: dict[str, Any] = Field(default_factory=dict)


class LifecycleConfig(Strict):
    """A life: where it starts, its domains, its stages, and what holds for all of them."""

    model: ModelConfig | None = None
    """An existing checkpoint to start from; or `architecture`."""
    architecture: dict[str, Any] | None = None
    """`model_type` and settings of a transformers config, to start from scratch."""
    tokenizer: TokenizerConfig | None = None
    """Needed with `architecture`."""
    domains: dict[str, DomainConfig] = Field(min_length=1)
    old_mixture: dict[str, float] | None = None
    """With `model`: what it was last trained on, over domains of this file; None: nothing of them."""
    stages: tuple[StageConfig, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = (0,)
    sequence_length: Count = 1024
    document_mask: bool = False
    trainer: dict[str, Any] = Field(default_factory=dict)
    chat_template: str | None = None
    """For conversations: a Jinja file, or the text itself; None: the tokenizer's own."""
    sdft: SdftConfig = SdftConfig()
    schedule: ScheduleConfig | None = None
    """None: what `trainer` says, else warm-up, stable, decay."""
    probes: dict[str, Any] = Field(default_factory=dict)
    proxies: dict[str, Any] = Field(default_factory=dict)
    solve: dict[str, Any] = Field(default_factory=dict)
    decision: dict[str, Any] = Field(default_factory=dict)
    huber_delta: float = Field(default=0.02, gt=0)
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint_every: Count | None = None
    """Tokens between checkpoints; None: ten a stage."""
    keep: KeepConfig = KeepConfig()
    num_proc: Count = 1
    cache_dir: str | None = None

    @model_validator(mode="after")
    def _cross_field_rules(self) -> LifecycleConfig:
        from opmix.lifecycle.stages import stage_problems

        problems = list(_start_problems(self))
        if not problems:
            problems = list(stage_problems(self))
        if problems:
            raise ConfigError(problems)
        return self

    def trainer_of(self, stage: StageConfig) -> dict[str, Any]:
        """The stage's trainer arguments, without a schedule."""
        return {**self.trainer, **stage.trainer}

    def search(
        self,
        stage: StageConfig,
        domains: Mapping[str, DomainConfig],
        weighed: tuple[str, ...] | None,
        old: Mixture | None,
        tokens: int,
        seed: int,
        objective: str,
    ) -> SearchConfig:
        """The configuration of one decision of a stage.

        Raises:
            ConfigError: What is wrong with the stage's own settings.
        """
        known = set(domains)
        blocks = {b: {**_restricted(b, getattr(self, b), known), **getattr(stage, b)} for b in SEARCH_BLOCKS}
        content = {
            "model": MODEL, "domains": {n: d.model_dump() for n, d in domains.items()},
            "old_mixture": None if old is None else dict(old), "new_domains": weighed,
            "budget": {"tokens": tokens}, "sequence_length": self.sequence_length, "document_mask": self.document_mask,
            "trainer": self.trainer_of(stage), "huber_delta": self.huber_delta, "seed": seed, "num_proc": self.num_proc,
            "cache_dir": self.cache_dir, "objective": objective, "sdft": (stage.sdft or self.sdft).model_dump(), **blocks,
        }  # fmt: skip
        return validated(SearchConfig, content)


def load_lifecycle(path: Path, overrides: tuple[str, ...] | list[str] = ()) -> LifecycleConfig:
    """Read and check a lifecycle; `a.b=c` overrides reach into stages by number (`stages.0.tokens=2e6`).

    Raises:
        ConfigError: All problems at once, each with its dotted path.
    """
    return validated(LifecycleConfig, read_yaml(path, overrides, expected="domains and stages"), where=str(path))


def _restricted(block: str, content: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """What a life-wide block says of the domains of one stage."""
    if block != "solve":
        return dict(content)
    kept = {k: {d: v for d, v in x.items() if d in known} if k in _BY_DOMAIN else x for k, x in content.items()}
    if isinstance(kept.get("prior"), Mapping):
        kept["prior"] = {d: v for d, v in kept["prior"].items() if d in known}
    groups = {
        name: {**group, "domains": inside}
        for name, group in dict(kept.get("groups") or {}).items()
        if (inside := [d for d in group["domains"] if d in known])
    }
    return {**kept, "groups": groups} if "groups" in kept else kept


def _start_problems(config: LifecycleConfig) -> list[str]:
    """Where the life begins, and what is owned by it."""
    problems = []
    if (config.model is None) == (config.architecture is None):
        problems.append("model: expected either model (a checkpoint) or architecture (from scratch), one of them")
    if config.architecture is not None and config.tokenizer is None:
        problems.append(
            "tokenizer: missing; a model from scratch needs one: a saved one, or {vocab_size: N} to train it"
        )
    if config.old_mixture is not None:
        if config.model is None:
            problems.append("old_mixture: a model from scratch has seen nothing; remove it, or give model")
        try:
            Mixture.of(config.old_mixture)
        except ConfigError as error:
            problems.append(f"old_mixture: {error}")
    if not config.seeds or len(set(config.seeds)) != len(config.seeds) or min(config.seeds) < 0:
        problems.append(f"seeds: {list(config.seeds)}; expected different whole numbers >= 0")
    problems += [
        f"evaluation.tasks.{n}: unknown domain{nearest(n, list(config.domains))}"
        for n in config.evaluation.tasks
        if n not in config.domains
    ]
    for where, arguments in (
        ("trainer", config.trainer),
        *((f"stages.{i}.trainer", s.trainer) for i, s in enumerate(config.stages)),
    ):
        problems += [f"{where}.{name}: {why}; remove it" for name, why in OWNED.items() if name in arguments]
    return problems


__all__ = ["EvaluationConfig", "KeepConfig", "LifecycleConfig", "ScheduleConfig", "StageConfig", "load_lifecycle"]
