"""What a target is: a metric without a domain. Its text chooses a mixture and judges it, and is never trained on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from opmix.domain import ChatOptions, Domain, Kind, Source
from opmix.errors import ConfigError, DataError
from opmix.settings import Count, NotNegative, changed, settings

LOSS_LIMIT = 5.0
"""Percent above the current model's loss that training domains may rise to where targets are asked for and nothing else is said: a
target alone cost other sets 24 to 68 % in trials."""
_HOLDOUT = 0.3
"""Share of the documents of `valid` that become a missing `test`."""


@settings
class Target:
    """Text to get better at; a plain string or list of strings in YAML is `valid`.

    Examples:
        >>> Target.from_short("dev/manual.jsonl")
        {'valid': 'dev/manual.jsonl'}
    """

    valid: Source | None = None
    """Chooses the mixture; or `task`."""
    test: Source | None = None
    """Judges it; None: split off `valid` by document."""
    kind: Kind | None = None
    """`text`: loss of every token; `chat`: loss of the answers given their prompts; `choice`: how surely the right option of a question
    is preferred to the others, nats a question; None: told from the first row of a local file."""
    task: str | None = None
    """In place of text: a task of lm-evaluation-harness (the extra `eval`), its items and gold answers."""
    limit: Count | None = None
    """Items of a task at most, of its validation and of its test items; None: all."""
    include_path: str | None = None
    """Folder of task YAMLs of your own."""
    weight: NotNegative = 1.0
    """In the objective; 0: measured only."""
    family: str | None = None
    """Targets of one family are averaged first, so that a family counts as one target."""
    bos: bool | None = None
    """See `Domain`."""
    chat: ChatOptions = ChatOptions()

    def __post_init__(self) -> None:
        if (self.valid is None) == (self.task is None):
            raise ConfigError("expected either valid (text) or task (of lm-evaluation-harness), one of them")
        if self.task is not None and (self.test is not None or self.kind is not None):
            raise ConfigError("test, kind: a task has its own; remove them, or give valid in place of task")
        if self.task is None and (self.limit is not None or self.include_path is not None):
            raise ConfigError("limit, include_path: of a task alone; remove them, or give task in place of valid")

        if any(source is not None and source.in_place for source in (self.valid, self.test)):
            raise ConfigError("in_place: a target is measured whole; expected it of a domain's train; leave it out")

    @classmethod
    def from_short(cls, value: Any) -> Any:
        """A path or a list of them stands for `valid`."""
        return {"valid": value} if isinstance(value, str | list) else value

    def same_text(self, other: Target) -> bool:
        """Whether both stand for the same text, read alike."""
        return changed(self, weight=1.0, family=None) == changed(other, weight=1.0, family=None)

    def domain(self, name: str, base: Path, template: str | None = None) -> Domain:
        """As a domain whose `train` is what its `test` leaves of `valid`: what chooses mixtures.

        Args:
            name: The target's.
            base: Folder that relative paths start from.
            template: Jinja text of the chat template; None: the tokenizer's own.
        """
        valid = self.valid
        assert valid is not None  # tasks are files by now, see opmix.scores.task_questions
        made = Domain(
            name=name,
            train=valid,
            valid=valid,
            test=self.test,
            holdout=_HOLDOUT,
            kind=self.kind,
            bos=self.bos,
            chat=self.chat,
        )
        return made.located(base, template)


Targets = dict[str, Target]
"""Targets of a file by name."""


@contextmanager
def naming_target(name: str) -> Iterator[None]:
    """Errors about this target's text say that it is a target: who reads a source knows its name alone."""
    try:
        yield
    except DataError as error:
        told = str(error).replace(f"domain {name!r}", f"target {name!r}").replace("the domain's `", "the target's `")
        error.args = (told,)
        raise


def target_problems(
    targets: Mapping[str, Target], domains: Sequence[str], weights: Mapping[str, float]
) -> Iterator[str]:
    """A sentence for everything that is wrong with targets beside these domains."""
    for name, target in targets.items():
        try:
            Domain(name=name or " ", train=target.valid or Source(paths=("task",)))
        except ConfigError as error:
            yield from (f"targets: {problem}" for problem in error.problems)
        if name in domains:
            yield f"targets.{name}: is a domain's name too; expected a name of its own: rename the target"
        if target.valid is not None and target.test == target.valid:
            same = "the same text as valid, which chooses the mixture"
            yield f"targets.{name}.test: {same}; give other text, or remove it to split it off"
    if targets and not objective_weights(targets, weights, [*domains, *targets]).any():
        yield "targets: all weights are 0; expected one above 0 (`weight` of a target, or solve.weights)"


def objective_weights(
    targets: Mapping[str, Target], weights: Mapping[str, float], metrics: Sequence[str]
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What every evaluation set counts in the objective, (E,), not normalised.

    Args:
        targets: By name; those of a family share what one of them would count.
        weights: In place of a target's own; a domain counts only where it is named here.
        metrics: Evaluation sets.
    """
    families = [t.family for t in targets.values()]
    own = {n: t.weight / (families.count(t.family) if t.family is not None else 1) for n, t in targets.items()}
    given = {**dict.fromkeys(metrics, 0.0), **own, **weights}
    return np.array([given[m] for m in metrics], dtype=np.float64)


def served_sets(
    targets: Mapping[str, Target], weights: Mapping[str, float], domains: Sequence[str]
) -> dict[str, float] | None:
    """Evaluation sets that count, by what they count: for mixers that serve held-out sets. None: there are no targets."""
    if not targets:
        return None
    metrics = [*domains, *targets]
    counted = objective_weights(targets, weights, metrics)
    return {m: float(w) for m, w in zip(metrics, counted, strict=True) if w > 0}
