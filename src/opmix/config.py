"""`search.yaml`: one decision, composed of its components' own settings and checked before any work starts. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from opmix.compute.budget import sequences_per_step
from opmix.domain import Domains, user_path
from opmix.errors import ConfigError
from opmix.execution.settings import ExecutorSettings
from opmix.mixing.constraints import Constraints, Group
from opmix.mixing.decision import LIKELIER_THAN_NOT, DecisionSettings
from opmix.mixing.design import coordinates_of
from opmix.mixing.mixture import Mixture
from opmix.probes.settings import CONFIRMING, ProbeSettings, ProxySettings
from opmix.settings import (
    Bounds,
    Count,
    Given,
    NotNegative,
    Positive,
    Processes,
    ReadAs,
    Share,
    changed,
    number,
    settings,
)
from opmix.settings.loading import nearest, validated
from opmix.settings.reading import read_yaml
from opmix.target import LOSS_LIMIT, Targets, target_problems
from opmix.training.arguments import TrainerArguments
from opmix.training.fsdp_arguments import kept_from_parts
from opmix.training.settings import DistillationSettings, ObjectiveName

LawName = Literal["log_linear", "effective_tokens"]
_BY_DOMAIN = ("floors", "ceilings", "fixed")
_BY_METRIC = ("weights", "loss_limits")


@settings
class ModelConfig:
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
            return user_path(given, base).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"model.chat_template: {given!r} cannot be read ({error}); "
                "expected a Jinja file, or a text with {{ }} or {% %}"
            ) from error

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """A string stands for `name`."""
        return {"name": str(value)} if isinstance(value, str | Path) else value


@settings
class BudgetConfig:
    """The next stretch of training that the mixture is for, fixed before the mixture is known; a number in YAML is `tokens`."""

    tokens: Count

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """A number, or a text such as `500M`, stands for `tokens`."""
        return {"tokens": value} if isinstance(value, int | float | str) else value


@settings
class SolveConfig:
    """Objective and constraints of the convex problem."""

    objective: Literal["mean", "weighted", "worst_case", "perplexity"] = "mean"
    """Of the targets where there are any, else of the domains; `perplexity`: the mean of exp(loss), in which hard sets count more."""
    unit: Literal["nats", "bpb"] = "nats"
    """What a mean is taken of: nats per token, or bits per byte, whatever the tokenizer; of a question always what it is."""
    weights: dict[str, NotNegative] = field(default_factory=dict)
    kl: Annotated[float, Bounds(ge=0, le=1e6)] | None = None
    """None: 0.05 nats (paper's code) with the log-linear law; a tenth of the foretold spread with effective tokens."""
    prior: Literal["uniform", "current", "size"] | dict[str, float] = "uniform"
    """`uniform`: over what can be varied (old data counts as one); or shares by domain."""
    floors: dict[str, Share] = field(default_factory=dict)
    ceilings: dict[str, Share] = field(default_factory=dict)
    fixed: dict[str, Share] = field(default_factory=dict)
    groups: dict[str, Group] = field(default_factory=dict)
    max_epochs: Positive | None = None
    """For every domain that sets none of its own; None: repetition is reported, not limited."""
    loss_limits: dict[str, Annotated[float, Field(gt=-100)]] | Literal["none"] = field(default_factory=dict)
    """Domain or target: highest allowed loss, in percent above the current model's (0: no forgetting at all). With targets, domains that
    are not named may rise by 5 %; `none` lifts that."""

    def __post_init__(self) -> None:
        if self.unit == "bpb" and self.objective in ("worst_case", "perplexity"):
            raise ConfigError(
                f"unit: 'bpb' with objective {self.objective!r}, which compares nats per token; expected objective "
                "mean or weighted, or unit nats"
            )

    def unknown_names(self, known: Sequence[str], targets: Collection[str] = ()) -> Iterator[str]:
        """A sentence for every domain or target named here that is not known."""
        metrics = [*known, *targets]
        for key in _BY_METRIC:
            for name in _names(getattr(self, key)):
                if name not in metrics:
                    what = "domain or target" if targets else "domain"
                    yield f"solve.{key}.{name}: unknown {what}{nearest(name, metrics)}"
        named: list[tuple[str, Sequence[str]]] = [(key, list(getattr(self, key))) for key in _BY_DOMAIN]
        named += [(f"groups.{name}", group.domains) for name, group in self.groups.items()]
        named.append(("prior", list(self.prior) if isinstance(self.prior, Mapping) else []))
        for path, names in named:
            for name in names:
                if name not in known:
                    yield f"solve.{path}.{name}: unknown domain{nearest(name, known)}"

    def restricted(self, known: Sequence[str], targets: Collection[str] = ()) -> SolveConfig:
        """What is said here of some of the domains, and of the targets."""
        kept: dict[str, Any] = {key: _among(getattr(self, key), known) for key in _BY_DOMAIN}
        for key in _BY_METRIC:
            if (given := getattr(self, key)) != "none":
                kept[key] = _among(given, [*known, *targets])
        if isinstance(self.prior, Mapping):
            kept["prior"] = _among(self.prior, known)
        inside = {name: tuple(d for d in group.domains if d in known) for name, group in self.groups.items()}
        kept["groups"] = {name: changed(self.groups[name], domains=names) for name, names in inside.items() if names}
        return changed(self, **kept)


def _names(given: Mapping[str, float] | str) -> list[str]:
    return [] if isinstance(given, str) else list(given)


def _among(values: Mapping[str, Any], known: Sequence[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name in known}


@settings
class SearchSettings:
    """What a search and the searches of a whole life are told alike."""

    targets: Targets = field(default_factory=dict)
    """What the mixture is for, by name; none: the domains themselves."""
    sequence_length: Annotated[int, Bounds(ge=2, le=10**9), ReadAs(number)] = 1024
    document_mask: bool = False
    """Keep attention inside documents when sequences are packed."""
    sdft: DistillationSettings = DistillationSettings()
    trainer: TrainerArguments = field(default_factory=Given)
    """Passed to `transformers.TrainingArguments` as it is (learning_rate, per_device_train_batch_size, bf16, ...)."""
    probes: ProbeSettings = ProbeSettings()
    proxies: ProxySettings = ProxySettings()
    solve: SolveConfig = field(default_factory=SolveConfig)
    decision: DecisionSettings = DecisionSettings()
    law: Literal["auto", "log_linear", "effective_tokens"] = "auto"
    """What foretells the losses: the paper's law on interpolated proxies, or a law in effective tokens on the trained probes alone; `auto`:
    the first where one new domain is weighed against an old mixture without targets, else the second."""
    huber_delta: Positive = 0.02
    executor: ExecutorSettings = ExecutorSettings()
    num_proc: Processes = 1
    """Processes that tokenise."""
    cache_dir: str | None = None
    """Tokenised data; None: the user's cache folder."""

    def kept_from_parts(self) -> list[str]:
        """What cannot be done with a model that is spread over ranks (`trainer.fsdp`)."""
        probes, adapters = self.probes, "expected lora"
        said = {
            "probes.kind": (probes.kind != "lora", adapters),
            "probes.modules_to_save": (bool(probes.modules_to_save), "leave it out"),
            "executor": (
                self.executor.elsewhere and self.executor.ranks == 1,
                "give its tasks several GPUs (executor.resources.gpus), or start ranks without an executor",
            ),
        }
        return list(kept_from_parts(self.trainer, said))


@settings
class SearchConfig(SearchSettings):
    """One decision: checkpoint + domains -> mixture."""

    model: ModelConfig
    domains: Annotated[Domains, Field(min_length=2)]
    old_mixture: dict[str, float] | None = None
    """Token shares the model was last trained on; domains not in it are new. None: uniform over all domains."""
    new_domains: tuple[str, ...] | None = None
    """Domains weighed against the old mixture as a whole, in it or not; None: those not in it."""
    budget: BudgetConfig
    objective: ObjectiveName = "causal_lm"
    """Of probes and full run."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    def __post_init__(self) -> None:
        known = list(self.domains)
        problems = list(self.solve.unknown_names(known, self.targets))
        problems += target_problems(self.targets, known, self.solve.weights)
        for key in ("old_mixture", "new_domains"):
            unknown = [name for name in getattr(self, key) or () if name not in self.domains]
            problems += [f"{key}.{name}: unknown domain{nearest(name, known)}" for name in unknown]
        if self.old_mixture is not None:
            try:
                Mixture.of(self.old_mixture)
            except ConfigError as error:
                problems.append(f"old_mixture: {error}")
        if self.solve.objective == "weighted" and not any(self.solve.weights.values()) and not self.targets:
            given = "all weights are 0" if self.solve.weights else "empty"
            problems.append(
                f"solve.weights: {given}; objective 'weighted' needs a weight per domain, one of them above 0"
            )
        distilled = {"objective": (self.objective == "sdft", "expected causal_lm or sft")}
        problems += [*self.kept_from_parts(), *kept_from_parts(self.trainer, distilled)]
        if problems:
            raise ConfigError(problems)

    @property
    def adaptive(self) -> bool:
        """Whether probes are looked at while they train: as said, else where a domain is weighed against an old mixture."""
        if self.probes.adaptive is not None:
            return self.probes.adaptive
        return bool(self.new_domains) or (
            self.old_mixture is not None and any(n not in self.old_mixture for n in self.domains)
        )

    @property
    def chosen_law(self) -> LawName:
        """The law that `law` stands for."""
        if self.law != "auto":
            return self.law
        if self.targets:
            return "effective_tokens"
        old = None if self.old_mixture is None else Mixture.of(self.old_mixture)
        coordinates = coordinates_of(tuple(self.domains), old, self.new_domains)
        line = coordinates.names != coordinates.domains and len(coordinates.names) == 2
        return "log_linear" if line else "effective_tokens"

    @property
    def probe_settings(self) -> ProbeSettings:
        """`probes` with the number of steps known; probes of a law in effective tokens are as long as the stage pays for."""
        stage = self.budget.tokens / (sequences_per_step(self.trainer) * self.sequence_length)
        old = None if self.old_mixture is None else Mixture.of(self.old_mixture)
        coordinates = coordinates_of(tuple(self.domains), old, self.new_domains)
        runs = len(coordinates.names) + 1 + (CONFIRMING if self.decision.verify else 0)
        return self.probes.settled(stage, runs if self.chosen_law == "effective_tokens" else None)

    @property
    def rule(self) -> DecisionSettings:
        """`decision` with the confidence that a move asks for."""
        told = self.decision
        usual = LIKELIER_THAN_NOT if self.targets else told.asked
        return changed(told, confidence=usual if told.confidence is None else told.confidence, seed=self.seed)

    @property
    def kl(self) -> float:
        """Weight of KL(p || prior), nats."""
        given = self.solve.kl
        return given if given is not None else 0.05 if self.chosen_law == "log_linear" else 0.0

    @property
    def default_limits(self) -> tuple[str, ...]:
        """Domains that are limited only because there are targets."""
        given = self.solve.loss_limits
        return tuple(n for n in self.domains if n not in given) if self.targets and given != "none" else ()

    @property
    def loss_limits(self) -> dict[str, float]:
        """Domain or target: percent that its loss may be above the current model's."""
        given = self.solve.loss_limits
        return {**({} if given == "none" else given), **dict.fromkeys(self.default_limits, LOSS_LIMIT)}

    @property
    def pulls(self) -> bool:
        """Whether a KL term pulls towards the prior: unless it is given as 0."""
        return self.solve.kl is None or self.solve.kl > 0

    def constraints(
        self, *, available: Mapping[str, int] | None = None, baseline: Mapping[str, float] | None = None
    ) -> Constraints:
        """As the library's value; token caps need `available`, loss limits `baseline` (losses of the current model)."""
        solve = self.solve
        percent = self.loss_limits
        limits = {d: baseline[d] * (1 + y / 100) for d, y in percent.items()} if baseline else {}
        epochs = {n: e for n, d in self.domains.items() if (e := d.max_epochs or solve.max_epochs) is not None}
        return Constraints(
            floors=solve.floors,
            ceilings=solve.ceilings,
            fixed=solve.fixed,
            groups=solve.groups,
            available_tokens=dict(available or {}),
            max_epochs=epochs,
            budget=self.budget.tokens,
            max_loss=limits,
            current_loss={d: baseline[d] for d in limits} if baseline else {},
            max_loss_labels={
                d: f"loss limit: {d} at most {percent[d]:g} % above the current {baseline[d]:.4f} nats" for d in limits
            }
            if baseline
            else {},
        )


def load_config(path: Path, overrides: Sequence[str] = ()) -> SearchConfig:
    """Read a YAML file, apply `a.b=c` overrides, and check everything.

    Raises:
        ConfigError: All problems at once, each with its dotted path; an unknown key with the nearest known one.
    """
    return parse_config(
        read_yaml(path, overrides, expected="model, domains and budget", verb="search"), where=str(path)
    )


def parse_config(content: Mapping[str, Any], *, where: str | None = None) -> SearchConfig:
    """Check a mapping as `load_config` does."""
    return validated(SearchConfig, content, where=where)
