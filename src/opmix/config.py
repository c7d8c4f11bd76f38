"""`search.yaml`: YAML into checked values, all problems at once, before any work starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from opmix.domain import ChatOptions, Domain, Kind, Source, SourceFormat, Supervise, Truncate, located
from opmix.errors import ConfigError
from opmix.mixing.constraints import Constraints, Group
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import Mixture
from opmix.strict import Count, Strict, nearest, read_yaml, validated

Share = Annotated[float, Field(ge=0, le=1)]


DEMONSTRATION = (
    "{prompt}\n\nAn example of a good response:\n{demonstration}\n\nNow respond yourself, in your own words."
)


class SourceConfig(Strict):
    """Where documents come from; a plain string or list of strings in YAML is `paths`."""

    paths: tuple[str, ...]
    format: SourceFormat | None = None
    field: str = "text"
    split: str | None = None
    config_name: str | None = None
    dtype: str = "uint16"

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"paths": (value,)}
        if isinstance(value, list | tuple):
            return {"paths": tuple(value)}
        if isinstance(value, Mapping) and isinstance(value.get("paths"), str):
            return {**value, "paths": (value["paths"],)}
        return value

    def source(self, base: Path) -> Source:
        """With relative paths resolved against the configuration's folder."""
        paths = self.paths if self.format == "hub" else tuple(located(p, base) for p in self.paths)
        return Source(
            paths=paths,
            format=self.format,
            field=self.field,
            split=self.split,
            config_name=self.config_name,
            dtype=self.dtype,
        )


class ChatConfig(Strict):
    """How the conversations of a domain become rows."""

    supervise: Supervise = "all"
    """Loss on every answer, or on the last of each conversation only (self-distillation: always the last)."""
    packing: bool = True
    """Several whole conversations to a row (self-distillation: never)."""
    truncate: Truncate = "drop"
    """What a conversation longer than sequence_length loses: tokens on the left or right, or its place."""


class DomainConfig(Strict):
    """One domain; a plain string in YAML is its `train`."""

    train: SourceConfig
    valid: SourceConfig | None = None
    test: SourceConfig | None = None
    max_epochs: float | None = Field(default=None, gt=0)
    holdout: float = Field(default=0.05, gt=0, lt=0.5)
    kind: Kind | None = None
    """None: told from the first row of a local file; a hub dataset counts as text."""
    chat: ChatConfig = ChatConfig()

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"train": value} if isinstance(value, str | list) else value

    def domain(self, name: str, base: Path, chat_template: str | None = None) -> Domain:
        """As the library's value; `chat_template` is Jinja text."""
        held = {split: None if (s := getattr(self, split)) is None else s.source(base) for split in ("valid", "test")}
        return Domain(
            name=name, train=self.train.source(base), max_epochs=self.max_epochs, holdout=self.holdout, kind=self.kind,
            chat=ChatOptions(template=chat_template, **self.chat.model_dump()), **held,
        )  # fmt: skip


class ModelConfig(Strict):
    """The model as it is now; a plain string in YAML is its name or path."""

    name: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    chat_template: str | None = None
    """For conversations: a Jinja file, or the text itself; None: the tokenizer's own."""

    def template(self, base: Path) -> str | None:
        """The text of the chat template.

        Raises:
            ConfigError: Neither a file that can be read nor Jinja.
        """
        given = self.chat_template
        if given is None or "{{" in given or "{%" in given:
            return given
        try:
            return (base / Path(given).expanduser()).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.chat_template: {given!r} cannot be read ({error}); expected a Jinja file, or a text with {{{{ }}}} or {{% %}}"
            ) from error

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class BudgetConfig(Strict):
    """The next stretch of training that the mixture is for, fixed before the mixture is known."""

    tokens: Count


class ProbesConfig(Strict):
    """How probes are trained; all of them for the same number of steps and tokens."""

    steps: Count = 200
    """At most, with `adaptive`."""
    adaptive: bool | None = None
    """Look at the probes while they train and stop where the predicted regret is below `tolerance`; None: where a domain is new."""
    tolerance: float = Field(default=0.05, ge=0)
    """Of the predicted regret and its change, as a share of what mixtures change at all (0: never stop)."""
    first_look: Count | None = None
    """Steps before the first look at least, each later one after twice as many; None: a sixteenth of `steps`."""
    share: float = Field(default=0.9, gt=0, le=1)
    """Of a probe's own data in its training mixture (paper's code: 0.9); above 0.5 where domains are new."""
    joint: bool = True
    """In continual stages also train one probe on the centre, so that interference can be measured."""
    rank: Count = 16
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    rslora: bool = False
    target_modules: tuple[str, ...] | None = None
    """None: every linear layer except the output head."""
    modules_to_save: tuple[str, ...] = ()
    """Modules trained in full beside the adapters (their deltas are linear too), such as embeddings."""
    learning_rate_multiplier: float = Field(default=2.0, gt=0)
    """Times the trainer's learning rate (paper's code: 2)."""


class ProxiesConfig(Strict):
    """Which interpolations are evaluated, and on how much text."""

    count: Count | None = None
    """None: 9 on a line for one new domain, else 2 x probes + 6."""
    eval_sequences: Count = 64
    """Held-out sequences per domain, the same for every proxy. Old domains that count as one share twice as many, so that a search
    does not grow with what the model already knows."""
    backend: Literal["auto", "merge", "scale"] = "auto"
    batch_tokens: Count = 8192


class GroupConfig(Strict):
    """Domains bounded together."""

    domains: tuple[str, ...]
    floor: Share | None = None
    ceiling: Share | None = None


class SolveConfig(Strict):
    """Objective and constraints of the convex problem."""

    objective: Literal["mean", "weighted", "worst_case"] = "mean"
    weights: dict[str, float] = Field(default_factory=dict)
    kl: float = Field(default=0.05, ge=0)
    prior: Literal["uniform", "current", "size"] | dict[str, float] = "uniform"
    """`uniform`: over what can be varied (old data counts as one); or shares by domain."""
    floors: dict[str, Share] = Field(default_factory=dict)
    ceilings: dict[str, Share] = Field(default_factory=dict)
    fixed: dict[str, Share] = Field(default_factory=dict)
    groups: dict[str, GroupConfig] = Field(default_factory=dict)
    max_epochs: float | None = Field(default=None, gt=0)
    """For every domain that sets none of its own; None: repetition is reported, not limited."""
    loss_limits: dict[str, float] = Field(default_factory=dict)
    """Domain: highest allowed loss, in percent above the current model's (0: no forgetting at all)."""


class SdftConfig(Strict):
    """Self-distillation (arXiv 2601.19897): the model, shown a demonstration, teaches the model that was not."""

    demonstration: str = DEMONSTRATION
    """What the teacher is asked: text with `{prompt}` and `{demonstration}`."""
    teacher: Literal["ema", "frozen", "live"] = "ema"
    """Weights that follow the student's slowly, those it started from, or its own."""
    teacher_model: str | None = None
    """Another model with the same vocabulary as the teacher: on-policy distillation. It is asked just `{prompt}` unless said otherwise."""
    ema_rate: float = Field(default=0.01, gt=0, le=1)
    """Share of the student in the teacher's weights that each step adds."""
    max_new_tokens: Count = 256
    """The student writes at most."""
    temperature: float = Field(default=1.0, gt=0)
    skip_tokens: int = Field(default=3, ge=0)
    """First tokens of an answer that are not learned from (paper's code: 3)."""

    @model_validator(mode="before")
    @classmethod
    def _plain_question(cls, value: Any) -> Any:
        other = isinstance(value, Mapping) and value.get("teacher_model") is not None
        return {"demonstration": "{prompt}", **value} if other else value

    @model_validator(mode="after")
    def _has_places(self) -> SdftConfig:
        needed = ("{prompt}",) if self.teacher_model is not None else ("{prompt}", "{demonstration}")
        if missing := [p for p in needed if p not in self.demonstration]:
            raise ConfigError(f"sdft.demonstration: has no {missing[0]}; expected {' and '.join(needed)}")
        return self


class DecisionConfig(Strict):
    """When a predicted gain is believed."""

    confidence: float = Field(default=0.9, gt=0, lt=1)
    min_gain: float = Field(default=0.0, ge=0)
    interval_level: float = Field(default=0.9, gt=0, lt=1)
    draws: Count = 200
    verify: bool = True
    """Before a move, train one probe on the optimum itself and let it object (where the reference has its own probe)."""
    prove_new: bool = False
    """Whether a new domain must prove that it helps; else it is left out only where the numbers say, as surely, that it harms."""

    def settings(self, seed: int) -> DecisionSettings:
        """As the library's value."""
        return DecisionSettings(
            confidence=self.confidence,
            min_gain=self.min_gain,
            prove_new=self.prove_new,
            interval_level=self.interval_level,
            num_draws=self.draws,
            seed=seed,
        )


class SearchConfig(Strict):
    """One decision: checkpoint + domains -> mixture."""

    model: ModelConfig
    domains: dict[str, DomainConfig] = Field(min_length=2)
    old_mixture: dict[str, float] | None = None
    """Token shares the model was last trained on; domains not in it are new. None: uniform over all domains."""
    new_domains: tuple[str, ...] | None = None
    """Domains weighed against the old mixture as a whole, in it or not; None: those not in it."""
    budget: BudgetConfig
    sequence_length: Count = 1024
    document_mask: bool = False
    """Keep attention inside documents when sequences are packed."""
    objective: Literal["causal_lm", "sft", "sdft"] = "causal_lm"
    """Of probes and full run: every token of texts; the answers of conversations; or self-distillation on their prompts."""
    sdft: SdftConfig = SdftConfig()
    trainer: dict[str, Any] = Field(default_factory=dict)
    """Passed to `transformers.TrainingArguments` as it is (learning_rate, per_device_train_batch_size, bf16, ...)."""
    probes: ProbesConfig = ProbesConfig()
    proxies: ProxiesConfig = ProxiesConfig()
    solve: SolveConfig = SolveConfig()
    decision: DecisionConfig = DecisionConfig()
    huber_delta: float = Field(default=0.02, gt=0)
    seed: int = Field(default=0, ge=0)
    num_proc: Count = 1
    """Processes that tokenise."""
    cache_dir: str | None = None
    """Tokenised data; None: the user's cache folder."""

    @model_validator(mode="after")
    def _cross_field_rules(self) -> SearchConfig:
        problems = list(self._unknown_names())
        if self.old_mixture is not None:
            try:
                Mixture.of(self.old_mixture)
            except ConfigError as error:
                problems.append(f"old_mixture: {error}")
        if self.solve.objective == "weighted" and not self.solve.weights:
            problems.append("solve.weights: empty; objective 'weighted' needs a weight per domain")
        if problems:
            raise ConfigError(problems)
        return self

    def _unknown_names(self) -> Iterator[str]:
        named: list[tuple[str, Sequence[str]]] = [("old_mixture", list(self.old_mixture or ()))]
        solve = self.solve
        named += [
            (f"solve.{k}", list(getattr(solve, k))) for k in ("weights", "floors", "ceilings", "fixed", "loss_limits")
        ]
        named.append(("new_domains", list(self.new_domains or ())))
        named += [(f"solve.groups.{g}", group.domains) for g, group in solve.groups.items()]
        named.append(("solve.prior", list(solve.prior) if isinstance(solve.prior, Mapping) else []))
        for path, names in named:
            for name in names:
                if name not in self.domains:
                    yield f"{path}.{name}: unknown domain{nearest(name, list(self.domains))}"

    @property
    def adaptive(self) -> bool:
        """Whether probes are looked at while they train: as said, else where a domain is weighed against an old mixture."""
        if self.probes.adaptive is not None:
            return self.probes.adaptive
        return bool(self.new_domains) or (
            self.old_mixture is not None and any(n not in self.old_mixture for n in self.domains)
        )

    def constraints(
        self, *, available: Mapping[str, int] | None = None, baseline: Mapping[str, float] | None = None
    ) -> Constraints:
        """As the library's value; token caps need `available`, loss limits `baseline` (losses of the current model)."""
        solve = self.solve
        limits = {d: baseline[d] * (1 + y / 100) for d, y in solve.loss_limits.items()} if baseline else {}
        epochs = {n: e for n, d in self.domains.items() if (e := d.max_epochs or solve.max_epochs) is not None}
        return Constraints(
            floors=solve.floors,
            ceilings=solve.ceilings,
            fixed=solve.fixed,
            groups={n: Group(domains=g.domains, floor=g.floor, ceiling=g.ceiling) for n, g in solve.groups.items()},
            available_tokens=dict(available or {}),
            max_epochs=epochs,
            budget=self.budget.tokens,
            max_loss=limits,
            max_loss_labels={
                d: f"loss limit: {d} at most {solve.loss_limits[d]:g} % above the current {baseline[d]:.4f} nats"
                for d in limits
            }
            if baseline
            else {},
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a YAML file, apply `a.b=c` overrides, and check everything.

    Raises:
        ConfigError: All problems at once, each with its dotted path; an unknown key with the nearest known one.
    """
    return parse_config(read_yaml(path, overrides, expected="model, domains and budget"), where=str(path))


def parse_config(content: Mapping[str, Any], *, where: str | None = None) -> SearchConfig:
    """Check a mapping as `load_config` does."""
    return validated(SearchConfig, content, where=where)
