"""Does the configuration fit together: sizes against lengths and budget, constraints against tokens, and what it costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from opmix.compute.budget import sequences_per_step
from opmix.config import SearchConfig
from opmix.data.inspect.survey import Size
from opmix.domain import Split
from opmix.errors import InfeasibleError
from opmix.execution.settings import ExecutorSettings
from opmix.mixing.design import StageDesign, coordinates_of
from opmix.mixing.log_linear import LogLinearLaw
from opmix.mixing.mixture import Mixture
from opmix.mixing.problem import SolveSettings
from opmix.mixing.solver import solve
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.estimate import DomainSize, estimate_search
from opmix.mixture_search.feasible import prior_of, problem_of
from opmix.preflight.checks import Findings, listed
from opmix.preflight.held_out import check_held_out
from opmix.preflight.model_facts import ModelFacts
from opmix.progress import Silent
from opmix.runs.store import RunStore
from opmix.scaffold.render import PROBE_EPOCHS
from opmix.settings import Given, changed

MAX_EPOCHS = 4.0
"""Repetitions at equal shares above which a domain is pointed out: about where repeating text stops being as good as new
text (Muennighoff et al., arXiv 2305.16264)."""
_DEAR = 0.5
"""Share of the stage's FLOPs from which a search is pointed out as costly."""
_ESTIMATE_SLACK = 1.1


@dataclass(frozen=True, kw_only=True)
class PlannedCost:
    """What a search will cost, an adaptive one at most; tokens of text are estimates, so is all that follows from them."""

    probes: int
    steps: int
    probe_tokens: int
    """Of all probes together."""
    proxies: int
    eval_tokens: int
    flops: float | None
    """None: the model is not known."""
    share: float | None
    """Of the training FLOPs of the stage."""
    memory_bytes: float | None
    adapter_bytes: float | None
    cache_bytes: float
    """Tokenised text."""

    def json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class LifeCost:
    """What one seed's life will cost, its searches at most; an estimate where conversations are rows of unequal length."""

    tokens: int
    """That stages are trained on."""
    training: float
    """FLOPs of the stages' own training."""
    searches: float
    """FLOPs of probes and proxies."""
    measuring: float
    """FLOPs of held-out losses before and after stages."""
    seeds: int
    memory_bytes: float | None = None
    cache_bytes: float = 0.0
    adapter_bytes: float | None = None

    def json(self) -> dict[str, Any]:
        """All of it."""
        return asdict(self)


Sizes = Mapping[str, Mapping[Split, Size | None]]


def check_plan(
    config: SearchConfig,
    base: Path,
    sizes: Sizes,
    model: ModelFacts | None,
    findings: Findings,
    targets: Mapping[str, DomainSize] | None = None,
) -> PlannedCost | None:
    """Check a configuration whose settings are valid against its data and model.

    Args:
        config: The settings.
        base: Folder of the file.
        sizes: Domain, split: estimated text; domains that could not be read are missing.
        model: What is known of the model.
        findings: Where problems go.
        targets: Rows of the targets; without one, it has as many as are asked for.

    Returns:
        The cost; None if a domain could not be read or the probes cannot be laid out.
    """
    _check_length(config, model, findings)
    check_executor(config.executor, config.model.device, config.model.dtype, findings)
    known = {name: size for name, splits in sizes.items() if (size := splits.get("train")) is not None}
    train = {name: round(size.tokens * _kept(config, name)) for name, size in known.items()}
    check_held_out(
        config.domains,
        base,
        sizes,
        findings,
        length=config.sequence_length,
        wanted=config.proxies.eval_sequences,
        judged=("valid",),
        unpacked=config.objective == "sdft",
    )
    if set(sizes) != set(config.domains):
        return None
    # The trainer's arguments are checked elsewhere; the context would raise for them here.
    context = SearchContext(changed(config, trainer=Given()), base, RunStore(base), Silent(), None)
    context.problem = problem_of(config, train)
    design: StageDesign | None = None
    with findings.catching("probes"):
        design = context.method.design(context.problem)
    _check_constraints(context, known, findings)
    check_limits("solve.loss_limits", config.loss_limits, findings)
    if design is None:
        return None
    _check_repetition(config, design, train, sizes, findings)
    cost = _cost(config, sizes, model, targets or {})
    if cost.share is not None and cost.share > _DEAR:
        findings.warn(
            "budget",
            f"the search costs {cost.share:.0%} of the training it is for",
            "lower probes.steps, proxies.count or proxies.eval_sequences, or search for a longer stretch",
        )
    return cost


def _kept(config: SearchConfig, name: str) -> float:
    """Share of a domain's training source that is left when held-out sets are split off."""
    domain = config.domains[name]
    return 1 - domain.holdout * ((domain.valid is None) + (domain.test is None))


def check_executor(wanted: ExecutorSettings, device: str | None, dtype: str, findings: Findings) -> None:
    """There is a GPU for each slot, where the model goes on GPUs; or somebody who would start the tasks.

    Args:
        wanted: The settings.
        device: That the model's settings name; None: the one there is.
        dtype: As the model is loaded.
        findings: Where problems go.
    """
    if not wanted.elsewhere:
        return
    from opmix.execution.engines import engine_of
    from opmix.mixture_search.hand_over import check_precision, devices_of
    from opmix.models.device import device_type

    kind = device_type(device)
    with findings.catching("executor"):
        devices = devices_of(wanted, kind)
        check_precision(wanted, dtype, kind)
        engine = engine_of(wanted, kind)
        if engine is None:
            what = f"GPUs {', '.join(devices)}" if devices else "one thread each unless OMP_NUM_THREADS says otherwise"
            findings.ok("executor", f"{wanted.slots} processes: {what}")
            return
        try:
            findings.ok(
                "executor", f"{wanted.slots} tasks at once: {engine.check()}; all must see the run folder and the data"
            )
        finally:
            engine.close()


def _check_length(config: SearchConfig, model: ModelFacts | None, findings: Findings) -> None:
    if model is None or model.longest is None:
        return
    if config.sequence_length > model.longest:
        findings.fail(
            "sequence_length",
            f"{config.sequence_length}; the model takes at most {model.longest} tokens",
            f"set sequence_length to {model.longest} or less",
        )
    else:
        findings.ok("sequence_length", f"{config.sequence_length} of the model's {model.longest} positions")


def _check_constraints(context: SearchContext, known: Mapping[str, Size], findings: Findings) -> None:
    """Solve a flat problem, as the search itself does before it trains; here with estimated tokens."""
    names = context.names
    available = {n: t for n, t in context.problem.available_tokens.items() if n in known}

    def attempt(slack: float) -> None:
        settings = SolveSettings(kl=context.config.kl, prior=prior_of(context.config, context.problem))
        solve(
            LogLinearLaw.flat(names),
            coordinates=coordinates_of(names, context.old, context.config.new_domains),
            settings=settings,
            constraints=context.config.constraints(available={n: round(t * slack) for n, t in available.items()}),
        )

    with findings.catching("solve"):
        try:
            attempt(1.0)
        except InfeasibleError:
            attempt(_ESTIMATE_SLACK)  # raises again unless the estimate of the tokens decides
            findings.warn(
                "solve",
                "the constraints can only just be met; whether they can depends on the exact token counts",
                "loosen a bound",
            )
            return
        findings.ok("solve", "some mixture satisfies all constraints")


def check_limits(where: str, limits: Mapping[str, float], findings: Findings) -> None:
    """Limits below the current loss: whether any mixture meets them nobody knows before the probes."""
    below = {n: f"{percent:g} %" for n, percent in limits.items() if percent < 0}
    if below:
        findings.warn(
            where,
            f"losses must fall below the current model's: {listed(below)}; whether a mixture can is known only after "
            "the probes, and where none can the search ends without one (its probes are kept)",
            "0 allows no forgetting; weigh what should get better in solve.weights",
        )


def _check_repetition(
    config: SearchConfig, design: StageDesign, train: Mapping[str, int], sizes: Sizes, findings: Findings
) -> None:
    worth = [size.tokens / max(size.row_tokens, 1) for splits in sizes.values() if (size := splits.get("train"))]
    rows = config.probe_settings.num_steps * sequences_per_step(config.trainer)
    drawn = rows * config.sequence_length * fmean(worth or [1.0])  # supervised tokens, as the sizes are
    stage: dict[str, str] = {}
    probe: dict[str, str] = {}
    for index, name in enumerate(design.probes.domains):
        if name not in train:
            continue
        tokens = max(train[name], 1)
        epochs = config.budget.tokens / len(config.domains) / tokens
        if epochs > MAX_EPOCHS and (config.domains[name].max_epochs or config.solve.max_epochs) is None:
            stage[name] = f"{epochs:.1f} times"
        seen = float(design.probes.R[:, index].max()) * drawn / tokens
        if seen > PROBE_EPOCHS:
            probe[name] = f"{seen:.1f} times"
    if stage:
        findings.warn(
            "domains",
            f"an equal share of the budget repeats {listed(stage)}",
            "set max_epochs, or a smaller budget.tokens",
        )
    if probe:
        findings.warn(
            "domains",
            f"a probe repeats {listed(probe)}; such gains are then over-estimated",
            "lower probes.steps or add text",
        )


def _cost(
    config: SearchConfig, sizes: Sizes, model: ModelFacts | None, targets: Mapping[str, DomainSize]
) -> PlannedCost:
    length, old = config.sequence_length, None if config.old_mixture is None else Mixture.of(config.old_mixture)
    known = {n: s for n in config.domains if (s := _size(config, n, sizes[n])) is not None}
    found = estimate_search(config, old, {**known, **targets})
    stored = sum(size.row_tokens for splits in sizes.values() for size in splits.values() if size is not None)
    wide = 4 if model is not None and model.vocabulary > 1 << 16 else 2
    flops = share = memory = adapters = None
    if model is not None:
        flops = found.cost(model.shape, length, adapter_parameters=model.priced_parameters).total("flops")
        share = found.share(flops, model.shape, length)
        memory = model.memory(config, found.num_probes)
        adapters = 4.0 * found.num_probes * model.probe_parameters
    return PlannedCost(
        probes=found.num_probes,
        steps=config.probe_settings.num_steps,
        probe_tokens=found.probe_tokens,
        proxies=found.num_points,
        eval_tokens=found.proxy_tokens,
        flops=flops,
        share=share,
        memory_bytes=memory,
        adapter_bytes=adapters,
        cache_bytes=float(stored * wide),
    )


def _size(config: SearchConfig, name: str, splits: Mapping[Split, Size | None]) -> DomainSize | None:
    """Rows of a domain by its estimated text; None where that is not known."""
    train, length = splits.get("train"), config.sequence_length
    held = splits.get("valid", train)
    if train is None or held is None or not train.tokens:
        return None
    share = 1.0 if "valid" in splits else config.domains[name].holdout
    return DomainSize(
        available=round(train.tokens * _kept(config, name)),
        row=length,
        supervised=length * train.tokens / train.row_tokens,
        held_out=int(held.row_tokens * share // length),
        held_out_row=length,
    )
