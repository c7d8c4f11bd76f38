"""Tasks of lm-evaluation-harness as targets: their items and gold answers as a file of questions that stays in the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from opmix.domain import Source, Split, user_path
from opmix.errors import ConfigError, DataError
from opmix.runs.files import default_cache_dir, write_text
from opmix.scores.harness import task_manager
from opmix.settings import changed
from opmix.target import Target, Targets

_FORMAT = 1
_MULTIPLE, _KNOWN = "multiple_choice", ("multiple_choice", "generate_until", "loglikelihood")


def without_tasks(targets: Mapping[str, Target], base: Path, cache_dir: Path | None) -> Targets:
    """Targets with their tasks as files: of multiple choice its options, of any other task its gold answers.

    A task's validation items choose, its test items judge; a task with one of the two is split by item. The files are made once.

    Args:
        targets: By name.
        base: Folder that `include_path` starts from.
        cache_dir: Of tokenised data; None: the user's cache folder.

    Raises:
        ModelError: lm_eval is missing.
        ConfigError: Unknown task, a group of tasks, or one that has no gold answers.
        DataError: Its items cannot be had.
    """
    place = (cache_dir or default_cache_dir()) / "tasks"
    return {name: t if t.task is None else _as_files(name, t, base, place) for name, t in targets.items()}


def _as_files(name: str, target: Target, base: Path, place: Path) -> Target:
    include = None if target.include_path is None else user_path(target.include_path, base)
    files = {split: place / f"{_key(target, include)}-{split}.jsonl" for split in ("valid", "test")}
    if not files["valid"].is_file():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the harness's and the datasets' remarks
            rows = task_rows(load_task(str(target.task), include, where=f"targets.{name}.task"), target.limit)
        for split in ("test", "valid"):  # the one that tells that both are whole comes last
            if split in rows:
                write_text(files[split], "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows[split]))
    test = Source(paths=(str(files["test"]),)) if files["test"].is_file() else None
    valid = Source(paths=(str(files["valid"]),))
    return changed(target, task=None, limit=None, include_path=None, valid=valid, test=test, kind="choice")


def _key(target: Target, include: Path | None) -> str:
    """What the items depend on; those of a hub dataset are taken not to change."""
    own = sorted(p for p in include.rglob("*.yaml")) if include is not None and include.is_dir() else []
    try:
        version = importlib.metadata.version("lm_eval")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    parts = (_FORMAT, target.task, target.limit, version, [p.read_text(encoding="utf-8") for p in own])
    return f"{target.task}-{hashlib.blake2b(repr(parts).encode(), digest_size=8).hexdigest()}".replace("/", "_")


def load_task(task: str, include: Path | None, *, where: str) -> Any:
    """A task of the harness.

    Raises:
        ModelError: lm_eval is missing.
        ConfigError: Unknown, or a group.
        DataError: Its data cannot be had.
    """
    try:
        manager = task_manager([task], include)
    except ConfigError as error:
        raise ConfigError([f"{where}: {problem}" for problem in error.problems]) from error
    from lm_eval.tasks import get_task_dict

    try:
        found = get_task_dict([task], manager).get(task)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise DataError(
            f"{where}: the data of {task!r} cannot be had ({reason}); expected them here or on a hub within reach"
        ) from error
    if found is None or isinstance(found, Mapping):
        raise ConfigError(
            f"{where}: {task!r} is a group of tasks; expected one task; name its tasks as targets of one `family`"
        )
    if getattr(found, "OUTPUT_TYPE", None) not in _KNOWN:
        raise ConfigError(
            f"{where}: {task!r} is a task of kind {getattr(found, 'OUTPUT_TYPE', None)!r}, which has no gold answers "
            f"to score; expected one of {', '.join(_KNOWN)}; give its text as `valid` instead"
        )
    return found


def task_rows(task: Any, limit: int | None) -> dict[Split, list[dict[str, Any]]]:
    """The first items of a task as rows of questions: `valid`, and `test` where the task has both.

    Args:
        task: A task object of the harness.
        limit: Items of each split at most; None: all.

    Raises:
        DataError: It has no items, or one without a gold answer.
    """
    docs: dict[Split, Any] = {}
    if task.has_validation_docs():
        docs["valid"] = task.validation_docs()
    if task.has_test_docs():
        docs["test" if docs else "valid"] = task.test_docs()
    rows = {split: list(_rows(task, items, limit)) for split, items in docs.items()}
    if "test" in rows and any(row is None for row in rows["test"]):
        del rows["test"]  # benchmarks that keep their test answers to themselves
    kept: dict[Split, list[dict[str, Any]]] = {s: [r for r in of if r is not None] for s, of in rows.items()}
    if not kept.get("valid"):
        raise DataError(f"task {task.config.task!r}: no item with a gold answer; expected some; choose another task")
    return kept


def _rows(task: Any, docs: Sequence[Any], limit: int | None) -> Iterator[dict[str, Any] | None]:
    """One row an item; None where it has no gold answer."""
    for number, doc in enumerate(docs):
        if limit is not None and number >= limit:
            return
        yield _multiple(task, doc) if task.OUTPUT_TYPE == _MULTIPLE else _gold(task, doc)


def _multiple(task: Any, doc: Any) -> dict[str, Any] | None:
    context = task.doc_to_text(doc)
    several = bool(getattr(task, "multiple_input", False))  # the options are the contexts, and all go on alike
    gold = _index(context if several else task.doc_to_target(doc), task.doc_to_choice(doc))
    if gold is None:
        return None
    described = f"{task.config.description or ''}{'' if several else context}"
    made = task.construct_requests(doc=doc, ctx=described)
    options = [list(request.args[:2]) for request in made[: len(task.doc_to_choice(doc))]]
    return {"options": options, "answer": gold}


def _gold(task: Any, doc: Any) -> dict[str, Any] | None:
    target = task.doc_to_target(doc)
    target = target[0] if isinstance(target, list | tuple) and target else target
    if target is None or not str(target).strip():
        return None
    context = f"{task.config.description or ''}{task.doc_to_text(doc)}"
    return {"options": [[context, f"{task.config.target_delimiter}{target}"]], "answer": 0}


def _index(gold: Any, choices: Sequence[Any]) -> int | None:
    """Which option is right; the first where several are."""
    gold = gold[0] if isinstance(gold, list | tuple) and gold else gold
    if isinstance(gold, str):
        return list(choices).index(gold) if gold in choices else int(gold) if gold.isdecimal() else None
    return int(gold) if isinstance(gold, int) and 0 <= gold < len(choices) else None
