"""`opmix.search`: one decision, from a model and some text domains to a mixture that can be trusted. `opmix.run`: a whole life.

`opmix.compare`: several methods beside each other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from opmix.comparison.config import CompareConfig, load_compare
from opmix.comparison.run import CompareResult, run_compare
from opmix.config import parse_config
from opmix.domain import user_path
from opmix.errors import ConfigError
from opmix.lifecycle.life import LifeResult, run_life
from opmix.lifecycle.loading import LifecycleConfig, load_lifecycle
from opmix.mixture_search.search import SearchResult, run_search
from opmix.progress import Progress
from opmix.runs.run_folder import run_folder
from opmix.settings.loading import validated

if TYPE_CHECKING:  # torch and transformers are imported where they are used
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from opmix.training.factory import TrainerFactory

IN_MEMORY = "<model object>"


class SearchKeywords(TypedDict, total=False):
    """Further keys of `search.yaml` that `opmix.search` takes, each as a mapping, a value, or the settings class itself."""

    targets: Mapping[str, Any]
    new_domains: Iterable[str] | None
    objective: Literal["causal_lm", "sft", "sdft"]
    sequence_length: int
    document_mask: bool
    sdft: Mapping[str, Any]
    trainer: Any
    """A mapping, `transformers.TrainingArguments`, or what inherits from it (`trl.SFTConfig`)."""
    probes: Any
    proxies: Any
    solve: Any
    decision: Any
    law: Literal["auto", "log_linear", "effective_tokens"]
    huber_delta: float
    executor: Any
    num_proc: int
    cache_dir: str | Path | None
    seed: int


def search(
    model: PreTrainedModel | str,
    tokenizer: PreTrainedTokenizerBase | None = None,
    domains: Mapping[str, Any] | None = None,
    *,
    budget: int | float | str,
    old_mixture: Mapping[str, float] | None = None,
    out: str | Path | None = None,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | Literal["auto"] | None = "auto",
    **settings: Unpack[SearchKeywords],
) -> SearchResult:
    """Find the mixture for the next stretch of training.

    Args:
        model: A causal LM, or a checkpoint folder, `.gguf` file or hub name. An object is given back unchanged.
        tokenizer: Needed with a model object; else that of the checkpoint.
        domains: Name to source: a path, glob, list of them, hub address (`hf://org/name[@revision][/config][:split]`), or data in
            memory: a `datasets.Dataset`, `DatasetDict` or `IterableDataset`, a list or generator of texts, rows or conversations.
            Or a mapping with `train`, `valid`, `test` of these, `max_tokens` (how far to read; needed of streams), `field`,
            `max_epochs`, ...
        budget: Training tokens of the stretch; a text such as "500M" or "2B" will do.
        old_mixture: Token shares the model was last trained on; domains not in it are new. None: uniform.
        out: Run folder, or a URL to keep it at (`s3://...`); running again with the same inputs resumes. None: nothing is kept.
        make_trainer: Replaces `opmix.training.factory.default_trainer`.
        progress: Shows what is going on; "auto": bars on a terminal or in a notebook, else silence; None: silence.
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
        "domains": _on_disk({} if domains is None else domains, settings.get("cache_dir"), tokenizer, str(named)),
        "budget": budget,
        "old_mixture": old_mixture,
        **{key: str(value) if isinstance(value, Path) else value for key, value in settings.items()},
    }
    from opmix.progress.display import shown

    _check_factory(make_trainer)
    with shown(progress) as display, nullcontext() if out is None else run_folder(out) as folder:
        return run_search(
            parse_config(content),
            model=None if named is model else model,
            tokenizer=tokenizer,
            out=folder,
            make_trainer=make_trainer,
            progress=display,
        )


def run(
    lifecycle: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    redo: bool = False,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | Literal["auto"] | None = "auto",
) -> LifeResult:
    """Take a model through a lifecycle: every stage's mixture found, trained on, and found again. Running it again resumes.

    Args:
        lifecycle: A `lifecycle.yaml`, or its content.
        out: Run folder, or a URL to keep it at (`s3://...`).
        redo: Do finished steps again whose inputs have changed; else that is an error.
        make_trainer: Replaces `opmix.training.factory.default_trainer`, for probes and full runs alike.
        progress: Shows what is going on; "auto": bars on a terminal or in a notebook, else silence; None: silence.

    Raises:
        ConfigError: All problems of the settings at once.
        StoreError: The folder is held, the disk is full, or finished steps have become stale.
        OpMixError: Whatever else stops it; see `opmix.errors`.
    """
    if isinstance(lifecycle, Mapping):
        config, base = validated(LifecycleConfig, _life_on_disk(lifecycle)), Path.cwd()
    else:
        file = user_path(lifecycle)
        config, base = load_lifecycle(file), file.parent.resolve()
    from opmix.progress.display import shown

    _check_factory(make_trainer)
    with shown(progress) as display, run_folder(out) as folder:
        return run_life(config, out=folder, base=base, redo=redo, make_trainer=make_trainer, progress=display)


def compare(
    comparison: str | Path | Mapping[str, Any],
    *,
    out: str | Path,
    only: Iterable[str] = (),
    redo: bool = False,
    make_trainer: TrainerFactory | None = None,
    progress: Progress | Literal["auto"] | None = "auto",
) -> CompareResult:
    """Let several methods live the same life: same model, data, tokens and seeds. Running it again resumes.

    Args:
        comparison: A `compare.yaml`, or its content.
        out: Run folder, or a URL to keep it at (`s3://...`).
        only: Entrants to run now; empty: all.
        redo: Do finished steps again whose inputs have changed; else that is an error.
        make_trainer: Replaces `opmix.training.factory.default_trainer`, except where a method brings its own.
        progress: Shows what is going on; "auto": bars on a terminal or in a notebook, else silence; None: silence.

    Raises:
        ConfigError: All problems of the settings at once.
        StoreError: The folder is held, the disk is full, or finished steps have become stale.
        OpMixError: Whatever else stops it; see `opmix.errors`.
    """
    if isinstance(comparison, Mapping):
        config, base = validated(CompareConfig, _life_on_disk(comparison)), Path.cwd()
    else:
        file = user_path(comparison)
        config, base = load_compare(file), file.parent.resolve()
    from opmix.progress.display import shown

    _check_factory(make_trainer)
    with shown(progress) as display, run_folder(out) as folder:
        return run_compare(
            config, out=folder, base=base, only=only, redo=redo, make_trainer=make_trainer, progress=display
        )


def _check_factory(make_trainer: object) -> None:
    if make_trainer is not None and not callable(make_trainer):
        raise ConfigError(f"make_trainer: a {type(make_trainer).__name__}; expected a function of a TrainSpec")


def _on_disk(domains: Mapping[str, Any], cache_dir: Any, tokenizer: Any, name: str) -> dict[str, Any]:
    """The domains, those in memory written to the cache."""
    if not isinstance(domains, Mapping):
        raise ConfigError(
            f"domains: a {type(domains).__name__}; expected names with their data, such as {{'web': FILE}}"
        )
    if all(isinstance(value, str | Path) for value in domains.values()):
        return dict(domains)
    from opmix.data.memory import Tokens, on_disk

    def counter() -> Tokens:
        from opmix.models.load import load_tokenizer

        made = load_tokenizer(name) if tokenizer is None else tokenizer
        return lambda texts: sum(map(len, made(texts, add_special_tokens=False, verbose=False)["input_ids"]))

    return on_disk(domains, cache_dir=cache_dir, tokens=counter)


def _life_on_disk(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a lifecycle or comparison, domains in memory written to the cache."""
    named, domains = content.get("tokenizer") or content.get("model"), content.get("domains")
    if not isinstance(domains, Mapping):
        return dict(content)
    name = named.get("name") if isinstance(named, Mapping) else named
    return {**content, "domains": _on_disk(domains, content.get("cache_dir"), None, str(name))}


__all__ = ["CompareResult", "LifeResult", "SearchResult", "compare", "run", "run_search", "search"]
