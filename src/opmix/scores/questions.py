"""Questions with options: how often a model prefers the right one, and how surely."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from opmix.data.choice import ChoiceRows
from opmix.errors import DataError
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.scores.intervals import wilson
from opmix.scores.paired import TaskScore


def score_questions(model: Any, rows: ChoiceRows, name: str, *, num: int | None = None) -> list[TaskScore]:
    """The share of questions whose right option has the highest summed log-likelihood, and the loss that a `choice` target has.

    Args:
        model: A causal LM.
        rows: Questions.
        name: The task's.
        num: Questions, evenly spread; None: all.

    Returns:
        `acc` (ties count as wrong) and `choice loss` (nats a question, lower is better), by question.

    Raises:
        DataError: Fewer than two questions, or some without alternatives.
    """
    if not rows.compared:
        raise DataError(f"{name}: its questions have one option each; expected at least two to choose from")
    asked = held_out(name, rows, num=num or len(rows), seed=0)
    assert asked.questions is not None
    # The options apart from each other, so that it can be told which is preferred.
    apart = replace(asked, questions=None, num_bytes=np.full(len(asked.input_ids), np.nan))
    by_option = evaluate(model, [apart]).nll[0][0]
    first = np.searchsorted(asked.questions, np.arange(len(asked)))
    best_other = np.where(np.isin(np.arange(len(by_option)), first), np.inf, by_option)
    right = by_option[first] < np.minimum.reduceat(best_other, first)
    losses = asked.losses_of(by_option)
    total, share = len(right), float(right.mean())
    left_out = {"left_out": rows.split.num_documents - len(rows)}
    error = float(losses.std(ddof=1) / total**0.5)
    return [
        TaskScore(
            task=name,
            metric="acc",
            value=share,
            stderr=(share * (1 - share) / total) ** 0.5,
            interval=wilson(int(right.sum()), total),
            total=total,
            higher_is_better=True,
            details=left_out,
            items=dict(enumerate(right.astype(float).tolist())),
        ),
        TaskScore(
            task=name,
            metric="choice loss",
            value=float(losses.mean()),
            stderr=error,
            interval=(float(losses.mean() - 1.96 * error), float(losses.mean() + 1.96 * error)),
            total=total,
            higher_is_better=False,
            details=left_out,
            items=dict(enumerate(losses.tolist())),
        ),
    ]
