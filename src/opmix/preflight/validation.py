"""What can be known of a search's configuration without weights and without training; of a life's, the parts that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opmix.compute.budget import asks_for_parts
from opmix.config import ModelConfig, SearchConfig, parse_config
from opmix.data.chat.conversation import domain_kind
from opmix.data.inspect.survey import Size, survey
from opmix.domain import PLACEHOLDER, SPLITS, Domain, Kind, Split
from opmix.errors import ConfigError, DataError, OpMixError
from opmix.preflight.chats import check_fit
from opmix.preflight.checks import Check, Findings, failed
from opmix.preflight.model_facts import ModelFacts, model_facts
from opmix.preflight.plan import LifeCost, PlannedCost, check_plan
from opmix.preflight.sources import check_cache, check_overlap
from opmix.preflight.targets import check_targets, target_rows
from opmix.probes.settings import ProbeSettings, reach_notes
from opmix.progress import Progress
from opmix.settings import Given, changed
from opmix.settings.loading import validated
from opmix.training.arguments import checked_arguments

Sizes = dict[str, dict[Split, Size | None]]
"""Domain, split: how much text; None where nothing here can tell (hub datasets)."""


@dataclass
class Validation:
    """What was found, and what the run would cost."""

    checks: list[Check]
    sizes: Sizes = field(default_factory=dict)
    targets: Sizes = field(default_factory=dict)
    """The same by target, which `valid` and `test` alone are of."""
    config: SearchConfig | None = None
    """None: the settings have problems of their own."""
    model: ModelFacts | None = None
    cost: PlannedCost | LifeCost | None = None
    """None: something that it depends on is missing."""

    @property
    def valid(self) -> bool:
        """Whether nothing is in the way of a run."""
        return not failed(self.checks)

    def json(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "valid": self.valid,
            "checks": [check.json() for check in self.checks],
            "domains": _sizes_json(self.sizes),
            **({"targets": _sizes_json(self.targets)} if self.targets else {}),
            "cost": None if self.cost is None else self.cost.json(),
        }


def check_search(content: Mapping[str, Any], base: Path, progress: Progress) -> Validation:
    """Check what `opmix search` runs."""
    findings = Findings()
    result = Validation(findings.checks)
    with findings.catching("settings"):
        result.config = parse_config(content)
        findings.ok("settings", "every key is known and in range")
    parts = result.config or _readable_parts(content)
    check_trainer(parts.trainer, findings)
    tokenizer, result.model = check_model(
        parts.model, parts.probes, base, findings, in_parts=asks_for_parts(parts.trainer)
    )
    template = parts.model is not None and parts.model.chat_template is not None
    check_sources(parts.domains, base, tokenizer, findings, result.sizes, progress, template=template)
    check_overlap({n: d.located(base) for n, d in parts.domains.items() if n in result.sizes}, findings)
    if result.config is not None:
        check_cache(result.config.cache_dir, findings)
        _check_conversations(result.config, base, tokenizer, result.sizes, findings)
        _check_objective(result.config, base, result.sizes, findings)
        result.targets = check_targets(
            result.config.targets,
            {n: d.located(base) for n, d in parts.domains.items()},
            base,
            tokenizer,
            findings,
            result.config,
            template=template,
        )
        rows = target_rows(result.targets, result.config.sequence_length)
        result.cost = check_plan(result.config, base, result.sizes, result.model, findings, rows)
    return result


@dataclass
class _Parts:
    """What of a faulty configuration can be checked all the same."""

    domains: dict[str, Domain] = field(default_factory=dict)
    model: ModelConfig | None = None
    trainer: Given = field(default_factory=Given)
    probes: ProbeSettings = field(default_factory=ProbeSettings)


def _readable_parts(content: Mapping[str, Any]) -> _Parts:
    parts = _Parts()
    domains = content.get("domains")
    for name, value in (domains if isinstance(domains, dict) else {}).items():
        if (domain := readable(Domain, value)) is not None:
            parts.domains[str(name)] = domain
    parts.model = readable(ModelConfig, content.get("model"))
    parts.probes = readable(ProbeSettings, content.get("probes")) or parts.probes
    trainer = content.get("trainer")
    parts.trainer = Given(trainer) if isinstance(trainer, dict) else Given()
    return parts


def readable(kind: Any, value: Any) -> Any:
    """A block on its own, or None where it is not valid."""
    try:
        return validated(kind, value)
    except ConfigError:
        return None


def check_trainer(arguments: Mapping[str, Any], findings: Findings) -> None:
    """Trainer arguments are known, and their values taken."""
    with findings.catching("trainer"):
        checked_arguments(arguments)
        if "learning_rate" in arguments:
            findings.ok("trainer", f"{len(arguments)} arguments, all known to transformers")
        else:
            findings.warn(
                "trainer",
                "learning_rate is not set; probes would use twice the Trainer's default of 5e-05",
                "set the rate of your full run",
            )


def check_model(
    model: ModelConfig | None, probes: ProbeSettings, base: Path, findings: Findings, *, in_parts: bool = False
) -> tuple[Any, ModelFacts | None]:
    """Tokenizer and facts, each None if it cannot be had; `in_parts`: ranks are to spread the model."""
    if model is None:
        return None, None
    if model.name == PLACEHOLDER:
        findings.fail(
            "model", "still the placeholder of `opmix init`", "put a checkpoint folder, .gguf file or hub name there"
        )
        return None, None
    from opmix.data.tokenization import eos_id
    from opmix.models.files import located
    from opmix.models.load import load_tokenizer

    name = tokenizer = facts = None
    with findings.catching("model"):
        name = located(model.name, base)
    if name is None:
        return None, None
    with findings.catching("tokenizer"):
        tokenizer = load_tokenizer(
            model.tokenizer or name, revision=model.revision, trust_remote_code=model.trust_remote_code
        )
        end = eos_id(tokenizer)
        findings.ok(
            "tokenizer", f"{len(tokenizer):,} entries; documents end with {tokenizer.convert_ids_to_tokens(end)!r}"
        )
    if tokenizer is None and not Path(name).exists() and model.tokenizer is None:
        return None, None  # asking the hub a second time would take as long and fail alike
    with findings.catching("model"):
        facts = model_facts(model, name, probes, in_parts=in_parts)
        findings.ok("model", f"{facts.parameters:,} parameters, {facts.shape.num_layers} layers; weights not loaded")
        for note in reach_notes(facts.reached):
            findings.warn("probes", *note.split(": "))
    if tokenizer is not None and facts is not None:
        highest = max(tokenizer.get_vocab().values(), default=-1)
        if highest >= facts.vocabulary:
            findings.fail(
                "tokenizer",
                f"ids go up to {highest}, the model's embedding has {facts.vocabulary} rows",
                "give the tokenizer that the model was trained with",
            )
    return tokenizer, facts


def check_sources(
    domains: Mapping[str, Domain],
    base: Path,
    tokenizer: Any,
    findings: Findings,
    sizes: Sizes,
    progress: Progress,
    *,
    template: bool,
) -> None:
    """The first documents of every source can be read; fills `sizes`."""
    with progress.task("looking at domains", len(domains)) as advance:
        for number, (name, config) in enumerate(domains.items(), 1):
            with findings.catching(f"domains.{name}"):
                domain = changed(config, name=name).located(base)
                kind = kind_of(domain)
                if kind == "chat" and tokenizer is not None and not (template or tokenizer.chat_template):
                    findings.fail(
                        f"domains.{name}",
                        "holds conversations, and the tokenizer has no chat template",
                        "name a Jinja file as model.chat_template, or use a model that has one",
                    )
                found: dict[Split, Size | None] = {}
                for split in SPLITS:
                    source = getattr(domain, split)
                    if source is None:
                        continue
                    try:
                        found[split] = survey(source, domain=name, kind=kind, tokenizer=tokenizer)
                    except OpMixError as error:
                        findings.fail(f"domains.{name}.{split}", str(error))
                given = [split for split in SPLITS if getattr(domain, split) is not None]
                if set(found) == set(given):
                    sizes[name] = found
            advance(number, len(domains))
    if domains and len(sizes) == len(domains):
        findings.ok("domains", f"{len(sizes)} domains; the first document of every source can be read")


def _check_conversations(config: SearchConfig, base: Path, tokenizer: Any, sizes: Sizes, findings: Findings) -> None:
    if tokenizer is None:
        return
    chats = {n: d for n, d in config.domains.items() if n in sizes and kind_of(d.located(base)) == "chat"}
    with findings.catching("model.chat_template"):
        template = config.model.template(base)
        if template or tokenizer.chat_template:
            check_fit(chats, tokenizer, config.sequence_length, findings, base=base, template=template)


def _check_objective(config: SearchConfig, base: Path, sizes: Sizes, findings: Findings) -> None:
    chats = [name for name in sizes if kind_of(config.domains[name].located(base)) == "chat"]
    if config.objective == "causal_lm":
        for name in chats:
            findings.fail(
                "objective", f"causal_lm, but domain {name!r} holds conversations", "set objective to sft or sdft"
            )
    elif not chats and set(sizes) == set(config.domains):
        findings.fail("objective", f"{config.objective}, but no domain holds conversations", "leave it out")


def kind_of(domain: Domain) -> Kind:
    """Text or conversations; text where it cannot be told."""
    try:
        return domain_kind(domain)
    except DataError:
        return "text"  # the survey says what is wrong, and of which split


def _sizes_json(sizes: Sizes) -> dict[str, Any]:
    return {
        name: {split: None if size is None else _size_json(size) for split, size in splits.items()}
        for name, splits in sizes.items()
    }


def _size_json(size: Size) -> dict[str, Any]:
    return {
        "files": size.files,
        "stored_bytes": size.stored_bytes,
        "documents": size.documents or None,
        "text_bytes": size.text_bytes,
        "tokens": size.tokens,
        "row_tokens": size.row_tokens,
        "exact": size.exact,
    }
