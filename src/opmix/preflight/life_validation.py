"""`opmix validate lifecycle.yaml`: a whole life, as far as it can be known before it is lived."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from opmix.comparison.config import CompareConfig, checked_comparison
from opmix.compute.budget import asks_for_parts
from opmix.compute.flops import ModelShape
from opmix.config import ModelConfig
from opmix.domain import Domain, Kind
from opmix.lifecycle.likeness import start_likeness
from opmix.lifecycle.limits import check_budgets, check_decisions, check_stage_probes
from opmix.lifecycle.loading import LifecycleConfig, checked_trainers
from opmix.lifecycle.stages import Stage, resolve
from opmix.lifecycle.status import planned_flops
from opmix.lifecycle.steps import DataFacts, StageRows, chain
from opmix.preflight.chats import check_fit
from opmix.preflight.checks import Findings, failed
from opmix.preflight.held_out import check_held_out
from opmix.preflight.plan import MAX_EPOCHS, LifeCost, check_executor, check_limits
from opmix.preflight.sources import check_cache
from opmix.preflight.targets import check_targets
from opmix.preflight.validation import Sizes, Validation, check_model, check_sources, kind_of, readable
from opmix.progress import Progress
from opmix.settings.loading import validated

_MORE = 1.1  # tokens are estimates: a budget is only out of reach where it is so by more than this


def check_life(content: Mapping[str, Any], base: Path, progress: Progress) -> Validation:
    """Check what `opmix run` or `opmix compare` runs."""
    findings = Findings()
    result = Validation(findings.checks)
    life: LifecycleConfig | None = None
    comparison: CompareConfig | None = None
    with findings.catching("settings"):
        if "methods" in content:
            comparison = validated(CompareConfig, content)
        life = validated(LifecycleConfig, content) if comparison is None else comparison.life
        several = "" if comparison is None else f", {len(comparison.methods)} methods"
        findings.ok("settings", f"every key is known and in range; {len(life.stages)} stages{several}")
    if life is None:
        named: dict[str, Any] = {}
        domains = content.get("domains")
        for name, value in (domains if isinstance(domains, Mapping) else {}).items():
            if (domain := readable(Domain, value)) is not None:
                named[str(name)] = domain
        check_sources(named, base, None, findings, result.sizes, progress, template=True)
        return result
    with findings.catching("trainer"):
        life = checked_trainers(life) if comparison is None else checked_comparison(comparison).life
        findings.ok("trainer", "all arguments of all stages are known to transformers")
    tokenizer = None
    if life.model is not None:
        tokenizer, result.model = check_model(
            life.model, life.search.probes, base, findings, in_parts=asks_for_parts(life.search.trainer)
        )
    if life.tokenizer is not None and life.tokenizer.name is not None:
        tokenizer = _check_tokenizer(life, life.tokenizer.name, base, findings)
    if life.architecture is not None:
        _check_architecture(life, tokenizer, findings)
    template = life.chat_template is not None
    with findings.catching("chat_template"):
        ModelConfig(name="", chat_template=life.chat_template).template(base)
    check_cache(life.search.cache_dir, findings)
    # A life loads its models in float32 wherever nothing is said.
    check_executor(life.search.executor, None if life.model is None else life.model.device, "float32", findings)
    check_sources(life.domains, base, tokenizer, findings, result.sizes, progress, template=template)
    result.targets = check_targets(
        life.targets,
        {n: d.located(base) for n, d in life.domains.items()},
        base,
        tokenizer,
        findings,
        life.search,
        template=template,
    )
    _check_held_out(life, base, result.sizes, findings)
    if set(result.sizes) == set(life.domains):
        _check_fit(life, base, tokenizer, findings)
        result.cost = _check_stages(life, base, result.sizes, findings)
    return result


def _check_held_out(life: LifecycleConfig, base: Path, sizes: Sizes, findings: Findings) -> None:
    """Searches read `valid`, measuring reads `test`, of the domains that a stage sees."""
    stages = resolve(life)
    used = {name for stage in stages for name in stage.seen}
    check_held_out(
        life.domains,
        base,
        {name: size for name, size in sizes.items() if name in used},
        findings,
        length=life.search.sequence_length,
        wanted=min(life.search.proxies.eval_sequences, life.evaluation.sequences),
        judged=("valid", "test") if any(stage.searched for stage in stages) else ("test",),
        unpacked=any(stage.config.objective == "sdft" for stage in stages),
    )


def _check_fit(life: LifecycleConfig, base: Path, tokenizer: Any, findings: Findings) -> None:
    """Conversations of every stage against the one sequence length of the life."""
    used = dict.fromkeys(name for stage in resolve(life) for name in stage.seen)
    chats = {n: life.domains[n] for n in used if kind_of(life.domains[n].located(base)) == "chat"}
    template = None
    with findings.catching("chat_template"):
        template = ModelConfig(name="", chat_template=life.chat_template).template(base)
    if tokenizer is not None and (template or tokenizer.chat_template):
        check_fit(chats, tokenizer, life.search.sequence_length, findings, base=base, template=template)


def _check_tokenizer(life: LifecycleConfig, name: str, base: Path, findings: Findings) -> Any:
    """A saved tokenizer of the life's own; None where it cannot be had."""
    from opmix.models.files import located
    from opmix.models.load import load_tokenizer

    model = life.model or ModelConfig(name="")
    with findings.catching("tokenizer"):
        found = load_tokenizer(located(name, base), revision=model.revision, trust_remote_code=model.trust_remote_code)
        findings.ok("tokenizer", f"{len(found):,} entries")
        return found
    return None


def _check_architecture(life: LifecycleConfig, tokenizer: Any, findings: Findings) -> None:
    from opmix.models.from_scratch import model_config
    from opmix.models.load import empty_model

    assert life.architecture is not None
    with findings.catching("architecture"):
        trained = (life.tokenizer and life.tokenizer.vocab_size) or 32_000
        config = model_config(life.architecture, {"vocab_size": trained if tokenizer is None else len(tokenizer)})
        limit = getattr(config.get_text_config(), "max_position_embeddings", None)
        if limit is not None and life.search.sequence_length > limit:
            findings.fail(
                "sequence_length",
                f"{life.search.sequence_length}; the architecture takes at most {limit} tokens",
                "shorten it, or raise max_position_embeddings",
            )
        weights = sum(p.numel() for p in empty_model(config).parameters())
        findings.ok("architecture", f"{life.architecture['model_type']}, {weights:,} parameters")


def _check_stages(life: LifecycleConfig, base: Path, sizes: Sizes, findings: Findings) -> LifeCost | None:
    """Objectives against what domains hold, budgets against what there is; returns the cost, None where it cannot be known."""
    kinds: dict[str, Kind] = {n: kind_of(d.located(base)) for n, d in life.domains.items()}
    tokens = {n: size.tokens if (size := s.get("train")) is not None else None for n, s in sizes.items()}
    offers = []
    for stage in resolve(life):
        offers.append(_offer(stage, kinds, sizes))
    for stage in resolve(life, offers):
        chats = [n for n in stage.domains if kinds[n] == "chat"]
        where = f"stages.{stage.index}.objective"
        if stage.objective == "causal_lm" and chats:
            findings.fail(
                where,
                f"causal_lm, but domain {chats[0]!r} holds conversations",
                "set it to sft or sdft, or leave it out",
            )
        if stage.objective != "causal_lm" and not chats:
            findings.fail(where, f"{stage.objective}, but no domain of the stage holds conversations", "leave it out")
        limits = stage.settings.solve.loss_limits
        if stage.searched and limits != "none":
            check_limits(f"stages.{stage.index}.solve.loss_limits", limits, findings)
        known = [t for n in stage.domains if (t := tokens[n]) is not None]
        if known and stage.tokens > MAX_EPOCHS * sum(known):
            findings.warn(
                f"stages.{stage.index}.tokens",
                f"{stage.tokens:,} is {stage.tokens / sum(known):.1f} times all its domains hold",
                "lower the budget, or add text",
            )
    facts = DataFacts(
        tokenizer="", fingerprints=dict.fromkeys((*tokens, *life.targets), ""), rows={}, stages=tuple(offers)
    )
    with findings.catching("stages"):
        check_decisions(life, facts)
    sound = not any(c.status == "fail" and c.name in ("model", "architecture") for c in findings.checks)
    likeness = cache(lambda: start_likeness(life, base))
    if sound:
        with findings.catching("stages"):
            check_stage_probes(life, facts, likeness)
    with findings.catching("budget"):
        check_budgets(life, facts)
        total = sum(s.tokens for s in resolve(life, offers)) * len(life.seeds)
        findings.ok(
            "budget",
            f"{total:,} tokens of training in all" + (f", {len(life.seeds)} seeds" if len(life.seeds) > 1 else ""),
        )
    if not sound or failed(findings.checks):
        return None
    from opmix.models.layers import model_shape

    return _cost(life, facts, model_shape(likeness()))


def _cost(life: LifecycleConfig, facts: DataFacts, shape: ModelShape) -> LifeCost:
    """What one seed takes, by the estimates that `opmix status` counts down."""
    spent = {"training": 0.0, "probes": 0.0, "proxies": 0.0, "measuring": 0.0}
    for step in chain(life, facts, life.seeds[0]):
        for kind, flops in planned_flops(step, shape).items():
            spent[kind] += flops
    return LifeCost(
        tokens=sum(stage.tokens for stage in resolve(life, facts.stages)),
        training=spent["training"],
        searches=spent["probes"] + spent["proxies"],
        measuring=spent["measuring"],
        seeds=len(life.seeds),
    )


def _offer(stage: Stage, kinds: Mapping[str, Kind], sizes: Sizes) -> StageRows:
    """Rows of a stage's domains and their worth, as far as estimates tell; where nothing tells, enough of whole sequences."""
    length = stage.life.search.sequence_length
    known = {n: size for n in stage.domains if (size := sizes[n].get("train")) is not None}
    have = {n: known[n].row_tokens if n in known else stage.tokens for n in stage.domains}
    worth = {n: size.tokens / max(size.row_tokens, 1) for n, size in known.items()}
    chats = any(kinds[n] == "chat" for n in stage.domains)
    return StageRows(
        rows={n: max(1, round(_MORE * t / length)) for n, t in have.items()},
        worth={n: length * worth.get(n, 1.0) for n in stage.domains},
        objective=stage.config.objective or ("sft" if chats else "causal_lm"),
    )
