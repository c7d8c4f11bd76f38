"""`search.yaml`: YAML into checked values, all problems at once, before any work starts. Imports no torch."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from opmix.domain import Domain, Source, SourceFormat
from opmix.errors import ConfigError
from opmix.mixing.constraints import Constraints, Group
from opmix.mixing.decision import DecisionSettings
from opmix.mixing.mixture import Mixture

Share = Annotated[float, Field(ge=0, le=1)]


def _number(value: Any) -> Any:
    """YAML reads `2e9` and `1_000` as text; people write both for token counts."""
    if isinstance(value, str):
        try:
            number = float(value.replace("_", ""))
        except ValueError:
            return value
        return int(number) if number.is_integer() else number
    return int(value) if isinstance(value, float) and value.is_integer() else value


Count = Annotated[int, BeforeValidator(_number), Field(gt=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SourceConfig(_Strict):
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
        paths = self.paths if self.format == "hub" else tuple(str(base / Path(p).expanduser()) for p in self.paths)
        return Source(
            paths=paths,
            format=self.format,
            field=self.field,
            split=self.split,
            config_name=self.config_name,
            dtype=self.dtype,
        )


class DomainConfig(_Strict):
    """One domain; a plain string in YAML is its `train`."""

    train: SourceConfig
    valid: SourceConfig | None = None
    test: SourceConfig | None = None
    max_epochs: float | None = Field(default=None, gt=0)
    holdout: float = Field(default=0.05, gt=0, lt=0.5)

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"train": value} if isinstance(value, str | list) else value

    def domain(self, name: str, base: Path) -> Domain:
        """As the library's value."""
        held = {split: None if (s := getattr(self, split)) is None else s.source(base) for split in ("valid", "test")}
        return Domain(
            name=name, train=self.train.source(base), max_epochs=self.max_epochs, holdout=self.holdout, **held
        )


class ModelConfig(_Strict):
    """The model as it is now; a plain string in YAML is its name or path."""

    name: str
    tokenizer: str | None = None
    revision: str | None = None
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False

    @model_validator(mode="before")
    @classmethod
    def _short(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class BudgetConfig(_Strict):
    """The next stretch of training that the mixture is for, fixed before the mixture is known."""

    tokens: Count


class ProbesConfig(_Strict):
    """How probes are trained; all of them for the same number of steps and tokens."""

    steps: Count = 200
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


class ProxiesConfig(_Strict):
    """Which interpolations are evaluated, and on how much text."""

    count: Count | None = None
    """None: 9 on a line for one new domain, else 2 x probes + 6."""
    eval_sequences: Count = 64
    """Held-out sequences per domain, the same for every proxy."""
    backend: Literal["auto", "merge", "scale"] = "auto"
    batch_tokens: Count = 8192
    gradients: bool = False
    """Evaluate fewer points, each with its slopes along every probe (one backward pass)."""


class GroupConfig(_Strict):
    """Domains bounded together."""

    domains: tuple[str, ...]
    floor: Share | None = None
    ceiling: Share | None = None


class SolveConfig(_Strict):
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


class DecisionConfig(_Strict):
    """When a predicted gain is believed."""

    confidence: float = Field(default=0.9, gt=0, lt=1)
    min_gain: float = Field(default=0.0, ge=0)
    interval_level: float = Field(default=0.9, gt=0, lt=1)
    draws: Count = 200
    verify: bool = True
    """Before a move, train one probe on the optimum itself and let it object (where the reference has its own probe)."""

    def settings(self, seed: int) -> DecisionSettings:
        """As the library's value."""
        return DecisionSettings(
            confidence=self.confidence,
            min_gain=self.min_gain,
            interval_level=self.interval_level,
            num_draws=self.draws,
            seed=seed,
        )


class SearchConfig(_Strict):
    """One decision: checkpoint + domains -> mixture."""

    model: ModelConfig
    domains: dict[str, DomainConfig] = Field(min_length=2)
    old_mixture: dict[str, float] | None = None
    """Token shares the model was last trained on; domains not in it are new. None: uniform over all domains."""
    budget: BudgetConfig
    sequence_length: Count = 1024
    document_mask: bool = False
    """Keep attention inside documents when sequences are packed."""
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
        named += [(f"solve.groups.{g}", group.domains) for g, group in solve.groups.items()]
        named.append(("solve.prior", list(solve.prior) if isinstance(solve.prior, Mapping) else []))
        for path, names in named:
            for name in names:
                if name not in self.domains:
                    yield f"{path}.{name}: unknown domain{_nearest(name, list(self.domains))}"

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
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise ConfigError(f"is not valid YAML: {error}", where=str(path)) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"holds {type(content).__name__}; expected a mapping with model, domains and budget",
            where=str(path),
        )
    for override in overrides:
        apply_override(content, override)
    return parse_config(content, where=str(path))


def parse_config(content: Mapping[str, Any], *, where: str | None = None) -> SearchConfig:
    """Check a mapping as `load_config` does."""
    try:
        return SearchConfig.model_validate(content)
    except ValidationError as error:
        raise ConfigError([_sentence(item) for item in error.errors()], where=where) from error
    except ConfigError as error:
        raise ConfigError(error.problems, where=where) from error


def apply_override(content: dict[str, Any], override: str) -> None:
    """Set `a.b.c=value` (YAML value) in a nested mapping."""
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"--set {override}: expected key.path=value, such as --set probes.steps=100")
    here: Any = content
    *parents, last = key.split(".")
    for parent in parents:
        inside = here.get(parent)
        if isinstance(inside, str):  # `model: NAME` and `domain: FILE` are short for a mapping
            inside = here[parent] = {"name" if parent == "model" else "train": inside}
        here = here.setdefault(parent, {}) if inside is None else inside
        if not isinstance(here, dict):
            raise ConfigError(f"--set {override}: {parent!r} holds {here!r}, not a mapping")
    here[last] = yaml.safe_load(text)


def _nearest(name: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else f"; expected one of {sorted(known)}"


def _sentence(error: Any) -> str:
    location = [str(part) for part in error["loc"]]
    path = ".".join(location)
    if error["type"] == "extra_forbidden":
        return f"{path}: unknown key{_nearest(location[-1], _keys_at(location[:-1]))}"
    if error["type"] == "missing":
        return f"{path}: missing; it has no default"
    given = error.get("input")
    shown = f" (got {given!r})" if isinstance(given, str | int | float | bool) or given is None else ""
    return f"{path}: {error['msg']}{shown}"


def _keys_at(location: Sequence[str]) -> list[str]:
    """Field names of the model that a dotted path leads to."""
    model: Any = SearchConfig
    for part in location:
        fields = getattr(model, "model_fields", {})
        annotation = fields[part].annotation if part in fields else model
        model = _inner_model(annotation) or model
    return list(getattr(model, "model_fields", {}))


def _inner_model(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _inner_model(argument)) is not None:
            return found
    return None
