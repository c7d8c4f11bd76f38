"""Held-out losses of the full model before and after a stage, and what the Trainer logs in between."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from opmix.data import GroupedDataset, MixtureDataset, MixturePlan, TokenizedDomain, held_out_batch, pad_rows
from opmix.domain import Split
from opmix.errors import ConfigError, DataError
from opmix.lifecycle.runtime import LifeRuntime
from opmix.lifecycle.stages import Stage
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.runs.files import write_text
from opmix.scores import extractor_of, score_split
from opmix.scores.harness import harness_scores
from opmix.training.stage_data import stop_ids

Losses = dict[str, dict[str, dict[str, float]]]
"""Split, domain: `loss` and its standard `error`, nats per token."""

_SPLITS: tuple[Split, ...] = ("valid", "test")


def check_measured(runtime: LifeRuntime) -> None:
    """Cut the held-out rows of the whole life once: what cannot be judged on is said before anything is trained.

    Raises:
        DataError: All sets at once that have too little text, or no conversation that fits.
        ConfigError: A task asks a domain that holds no conversations.
    """
    problems = []
    for name in runtime.data.sets:
        for split in _SPLITS:
            try:
                for set_name, rows in runtime.data.only([name]).evaluated(split).items():
                    held_out(set_name, rows, num=2, seed=0, document_mask=False)
            except DataError as error:
                problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    for name in runtime.life.evaluation.tasks:
        if name in runtime.data.domains:
            _asked(runtime, name)


def measure(model: Any, runtime: LifeRuntime, names: Sequence[str], seed: int) -> tuple[Losses, int]:
    """Losses on `valid` (which chooses mixtures) and `test` (which judges them), and the tokens it took."""
    life, tokens, data = runtime.life, 0, runtime.data.only(names)
    losses: Losses = {split: {} for split in _SPLITS}
    for split in _SPLITS if names else ():
        sets = [
            held_out(n, rows, num=life.evaluation.sequences, seed=seed, document_mask=life.search.document_mask)
            for n, rows in data.evaluated(split).items()
        ]
        tokens += sum(h.input_ids.size for h in sets)
        found = evaluate(model, sets)
        for n, loss, error in zip(found.names, found.losses[0], found.standard_errors[0], strict=True):
            losses[split][n] = {"loss": float(loss), "error": float(error)}
    return losses, tokens


def task_scores(model: Any, runtime: LifeRuntime, names: Sequence[str]) -> dict[str, Any]:
    """Right answers on the test split of the chat domains that the configuration asks for.

    Raises:
        ConfigError: Such a domain holds text.
    """
    scores = {}
    for name, task in runtime.life.evaluation.tasks.items():
        if name not in names:
            continue
        domain = _asked(runtime, name)
        score = score_split(
            model,
            runtime.tokenizer,
            domain.test,
            extractor_of(task.extractor),
            num=task.items,
            max_new_tokens=task.max_new_tokens,
            stop_ids=stop_ids(runtime.tokenizer, {name: domain.train}),
        )
        scores[name] = score.json()
    return scores


def _asked(runtime: LifeRuntime, name: str) -> TokenizedDomain:
    domain = runtime.data.domains[name]
    if domain.test.mask is None:
        raise ConfigError(
            f"evaluation.tasks.{name}: the domain holds text; expected conversations with answers to compare"
        )
    return domain


def harness_results(model: Any, runtime: LifeRuntime) -> list[dict[str, Any]]:
    """Scores on tasks of lm-evaluation-harness, where the configuration names some.

    Raises:
        ModelError: The package is missing.
        ConfigError: Unknown task.
    """
    wanted = runtime.life.evaluation.harness
    if wanted is None:
        return []
    found = harness_scores(
        model,
        runtime.tokenizer,
        wanted.tasks,
        limit=wanted.limit,
        num_fewshot=wanted.num_fewshot,
        include_path=None if wanted.include_path is None else runtime.base / wanted.include_path,
    )
    return [score.json() for score in found]


def watched_rows(runtime: LifeRuntime, stage: Stage, seed: int) -> dict[str, Dataset[Any]] | None:
    """Rows of `valid` that the Trainer evaluates as it goes, for every domain seen so far; None where it is not to."""
    if stage.life.evaluation.every is None:
        return None
    watched: dict[str, Dataset[Any]] = {}
    for name, rows in runtime.data.only(stage.seen).rows("valid").items():
        chosen = held_out_batch(rows, stage.life.evaluation.sequences, seed)
        plan = MixturePlan((name,), np.zeros(len(chosen), dtype=np.int16), chosen, (len(rows),), seed)
        dataset: Dataset[Any] = MixtureDataset({name: rows}, plan, document_mask=stage.life.search.document_mask)
        # Rows of conversations differ in length: each is a batch of its own.
        watched[name] = (
            GroupedDataset(dataset, np.arange(1, len(chosen) + 1), pad_rows) if rows.conversations else dataset
        )
    return watched


def last_loss(history: Sequence[Mapping[str, Any]]) -> float | None:
    """The training loss that the Trainer logged last."""
    losses = [float(entry["loss"]) for entry in history if "loss" in entry]
    return losses[-1] if losses else None


def write_log(path: Path, history: Sequence[Mapping[str, Any]], step_tokens: float) -> None:
    """`training.csv`: losses and learning rate by step, the whole stage so far."""
    # In a fixed order: the entries of a checkpoint come back with their keys sorted.
    known = {key for entry in history for key in entry}
    losses = sorted(k for k in known if k.endswith("loss") and k not in ("loss", "train_loss"))
    columns = [k for k in ("loss", *losses, "learning_rate", "grad_norm") if k in known]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["step", "tokens", *columns])
    for step in dict.fromkeys(entry["step"] for entry in history):
        here = {k: v for entry in history if entry["step"] == step for k, v in entry.items()}
        if any(c in here for c in columns):
            writer.writerow([step, round(step * step_tokens), *(here.get(c, "") for c in columns)])
    write_text(path, text.getvalue())
