"""EleutherAI's lm-evaluation-harness (`lm_eval`, the extra `eval`) behind one function."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from opmix.errors import ConfigError, DataError, ModelError
from opmix.models.load import load_model, load_tokenizer
from opmix.probes.token_losses import evaluating
from opmix.runs.trace import span
from opmix.scores.intervals import wilson
from opmix.scores.paired import TaskScore, binary


@span("lm-evaluation-harness", "evaluating")
def harness_scores(
    model: Any,
    tokenizer: PreTrainedTokenizerBase | None,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    batch_size: int = 16,
    chat: bool = False,
    bootstrap: int = 1000,
) -> list[TaskScore]:
    """Scores of a model on tasks of lm-evaluation-harness.

    Args:
        model: A causal LM, wherever it is; or a folder or name for `load_model`. Its modes and the random generators come back
            as they were.
        tokenizer: Its tokenizer; None: the one in the folder.
        tasks: Names of tasks, groups or tags.
        limit: Items a task at most, its first ones; None: all.
        num_fewshot: Examples before each item; None: what the task says.
        include_path: Folder of task YAMLs of your own.
        batch_size: Requests at a time.
        chat: Put requests into the tokenizer's chat template.
        bootstrap: Resamples for the standard errors that have no formula; 0: none are given.

    Returns:
        One per task (or group) and metric. Intervals are Wilson's where all items are right or wrong, else normal.

    Raises:
        ModelError: The package is missing, or the model cannot be loaded.
        ConfigError: Unknown task, no such folder, or a number that cannot be.
        DataError: A task's data cannot be had, or a task cannot be run.
    """
    _check(tasks, limit, num_fewshot, include_path, batch_size)
    with warnings.catch_warnings(), _generators_kept():
        warnings.simplefilter("ignore")  # the harness's and its metrics' remarks
        manager = task_manager(tasks, include_path)
        if isinstance(model, str | Path):
            tokenizer = tokenizer or load_tokenizer(model)
            model = load_model(model)
        if tokenizer is None:
            raise ModelError("tokenizer is None beside a loaded model; expected its tokenizer; give it")
        from lm_eval import simple_evaluate
        from lm_eval.models.huggingface import HFLM

        with evaluating(model):
            try:
                found = simple_evaluate(
                    HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                    tasks=list(tasks),
                    limit=limit,
                    num_fewshot=num_fewshot,
                    task_manager=manager,
                    bootstrap_iters=bootstrap,
                    apply_chat_template=chat,
                    log_samples=True,
                )
            except (OSError, ValueError) as error:
                reason = str(error).strip().partition("\n")[0]
                raise DataError(
                    f"tasks {', '.join(tasks)} cannot be run: {reason}; expected their data here or on a hub within "
                    "reach; "
                    "see the harness's notes on the task"
                ) from error
    return [score for task, row in found["results"].items() for score in _scores(task, row, found)]


def _check(
    tasks: Sequence[str], limit: int | None, num_fewshot: int | None, include_path: Path | None, batch_size: int
) -> None:
    problems = [] if tasks else ["tasks: none given; expected at least one name"]
    for name, number, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0), ("batch_size", batch_size, 1)):
        if number is not None and number < least:
            problems.append(f"{name}: {number}; expected at least {least}")
    if include_path is not None and not include_path.is_dir():
        problems.append(f"include_path: {str(include_path)!r} is no folder; expected one with task YAMLs")
    if problems:
        raise ConfigError(problems)


def task_manager(tasks: Sequence[str], include_path: Path | None) -> Any:
    """The harness's index of tasks. Its own 14,000 take seconds to index, so they are left out where all tasks are local."""
    if importlib.util.find_spec("lm_eval") is None:
        raise ModelError("tasks of lm-evaluation-harness need the lm_eval package: pip install lm_eval")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ModelError(f"lm_eval cannot be imported ({error}): pip install lm_eval") from error

    include = None if include_path is None else str(include_path)
    if include is not None:
        local = TaskManager(include_path=include, include_defaults=False)
        if set(tasks) <= set(local.all_subtasks):
            return local
    manager = TaskManager(include_path=include)
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            close = difflib.get_close_matches(task, sorted(known), n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            where = "in its own tasks" if include is None else f"in its own tasks and {include}"
            raise ConfigError(f"task {task!r} is unknown to lm-evaluation-harness; expected a name {where}{hint}")
    return manager


def _scores(task: str, row: Mapping[str, Any], found: Mapping[str, Any]) -> Iterator[TaskScore]:
    total = found.get("n-samples", {}).get(task, {}).get("effective")
    for key, value in row.items():
        metric, _, filter_name = key.partition(",")
        if not filter_name or metric.endswith("_stderr") or not isinstance(value, int | float | np.number):
            continue
        error = row.get(f"{metric}_stderr,{filter_name}")
        stderr = float(error) if isinstance(error, int | float | np.number) else None
        items = _items(found.get("samples", {}).get(task, ()), metric, filter_name, float(value))
        yield TaskScore(
            task=task,
            metric=metric if filter_name == "none" else f"{metric} ({filter_name})",
            value=float(value),
            stderr=stderr,
            interval=_interval(float(value), stderr, items),
            total=total,
            higher_is_better=found.get("higher_is_better", {}).get(task, {}).get(metric),
            details={},
            items=items,
        )


def _items(samples: Sequence[Mapping[str, Any]], metric: str, filter_name: str, value: float) -> dict[int, float]:
    """Values by item where the score is their mean."""
    mine = [s for s in samples if s.get("filter") == filter_name and metric in s]
    if not mine or not all(isinstance(s[metric], bool | int | float | np.number) for s in mine):
        return {}
    items = {int(s["doc_id"]): float(s[metric]) for s in mine}
    return items if np.isclose(np.mean(list(items.values())), value) else {}


def _interval(value: float, stderr: float | None, items: Mapping[int, float]) -> tuple[float, float] | None:
    if items and binary(list(items.values())):
        return wilson(round(sum(items.values())), len(items))
    if stderr is None:
        return None
    half = NormalDist().inv_cdf(0.975) * stderr
    return value - half, value + half


@contextmanager
def _generators_kept() -> Iterator[None]:
    """The harness seeds Python's, NumPy's and torch's global generators."""
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the state that the harness changes)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
