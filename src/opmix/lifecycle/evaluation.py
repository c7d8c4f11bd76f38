"""Which model of a run folder, and its task scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from opmix.data import TokenSplit, prepare_domain
from opmix.data.choice import ChoiceRows, target_kind
from opmix.domain import Domain, Source, user_path
from opmix.errors import ConfigError, StoreError
from opmix.models.layers import base_model_of
from opmix.models.load import load_model, load_tokenizer
from opmix.progress import Progress
from opmix.results.life import NAME as LIFE
from opmix.results.life import LifeFile
from opmix.runs.files import default_cache_dir
from opmix.runs.ranks import ranks_here, refuse_ranks
from opmix.scores import Difference, TaskScore, extractor_of, paired_difference, score_split
from opmix.scores.harness import harness_scores
from opmix.scores.questions import score_questions
from opmix.training.stage_data import stop_ids


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to ask a model."""

    tasks: tuple[str, ...] = ()
    """Of lm-evaluation-harness."""
    include_path: Path | None = None
    num_fewshot: int | None = None
    chat: bool = False
    domain: Path | None = None
    """Conversations, of which the last answers are asked for; or questions with options."""
    extractor: str = "exact"
    max_new_tokens: int = 256
    limit: int | None = None
    """Items of a task or file."""
    batch_size: int = 16

    def __post_init__(self) -> None:
        problems = [] if self.tasks or self.domain else ["nothing to ask; expected --tasks, --domain, or both"]
        if self.domain is not None and not self.domain.exists():
            problems.append(
                f"--domain: {str(self.domain)!r} does not exist; expected a file of conversations or questions"
            )
        for name in ("max_new_tokens", "batch_size", "limit"):
            number = getattr(self, name)
            if number is not None and number < 1:
                problems.append(f"--{name.replace('_', '-')}: {number}; expected at least 1")
        if problems:
            raise ConfigError(problems)
        extractor_of(self.extractor)


def find_model(path: str, *, stage: str | None = None, seed: int | None = None) -> str:
    """The model that is meant: a folder or name as it is, or one of a run folder of `opmix run`.

    Args:
        path: Model or run folder.
        stage: Of a run: whose model; None: the finished life's last.
        seed: Of a run: which life; None: the first.

    Raises:
        ConfigError: No such stage or seed, or one is named where there is no run.
        StoreError: The run's `life.json` is damaged.
    """
    folder = user_path(path)
    lives = sorted(life for life in folder.glob("seed-*/*/") if re.fullmatch(r"seed-\d{1,18}", life.parent.name))
    if not lives:
        if stage is not None or seed is not None:
            raise ConfigError(
                f"{path!r} is no run folder of `opmix run`; leave out the stage and the seed, or name one"
            )
        return path
    seeds = sorted({int(life.parent.name.removeprefix("seed-")) for life in lives})
    number = seeds[0] if seed is None else seed
    if number not in seeds:
        raise ConfigError(f"seed {number} is not in {path!r}; expected one of {', '.join(map(str, seeds))}")
    if stage is None:
        return str(folder / _last(folder, number))
    there = {
        re.sub(r"^\d+-", "", life.name): life / "model"
        for life in lives
        if life.parent.name == f"seed-{number}" and (life / "model" / "config.json").exists()
    }
    if stage not in there:
        names = ", ".join(there) or "none yet"
        raise ConfigError(f"stage {stage!r} has no model in {path!r}, seed {number}; those that have one: {names}")
    return str(there[stage])


def _last(folder: Path, seed: int) -> str:
    if not (folder / LIFE).is_file():
        raise ConfigError(f"{str(folder)!r} holds a life that is not finished; name a stage with --stage")
    try:
        return LifeFile.read(folder).seeds[str(seed)].model
    except KeyError as error:
        raise StoreError(f"{folder / LIFE}: damaged: no model of seed {seed}; run `opmix run` again") from error


def evaluate_model(path: str, wanted: Wanted, progress: Progress) -> list[TaskScore]:
    """Scores of one model.

    Raises:
        ModelError: It cannot be loaded, or lm_eval is missing.
        ConfigError: Several ranks are asked for tasks of lm-evaluation-harness.
        DataError: What it is asked cannot be read.
    """
    if wanted.tasks:
        refuse_ranks("lm-evaluation-harness", "leave out --tasks, or start without a launcher")
    ranks_here()  # each has its own GPU from here on
    tokenizer, model = load_tokenizer(path), load_model(path)
    scores = [] if wanted.domain is None else _own_scores(model, tokenizer, wanted, wanted.domain, progress)
    if wanted.tasks:
        scores += harness_scores(
            model,
            tokenizer,
            wanted.tasks,
            limit=wanted.limit,
            num_fewshot=wanted.num_fewshot,
            include_path=wanted.include_path,
            batch_size=wanted.batch_size,
            chat=wanted.chat,
        )
    return scores


def _own_scores(model: Any, tokenizer: Any, wanted: Wanted, file: Path, progress: Progress) -> list[TaskScore]:
    """The whole file is asked: given for all three splits, it is not cut up."""
    source = Source(paths=(str(file),))
    name = re.sub(r"[^A-Za-z0-9_.\-]", "-", file.name.partition(".")[0]).lstrip("_.-")[:80] or "domain"
    domain = Domain(name=name, train=source, valid=source, test=source)
    choice = target_kind(domain) == "choice"
    domain = replace(domain, kind="choice" if choice else "chat")
    split = prepare_domain(domain, tokenizer, cache_dir=default_cache_dir()).test
    if choice:
        longest = getattr(base_model_of(model).config.get_text_config(), "max_position_embeddings", None) or 1 << 30
        return score_questions(model, ChoiceRows(split, longest), name, num=wanted.limit)
    return [_answers(model, tokenizer, wanted, name, split, progress)]


def _answers(model: Any, tokenizer: Any, wanted: Wanted, name: str, split: TokenSplit, progress: Progress) -> TaskScore:
    with progress.task(f"answers to {name}", 0) as advance:
        score = score_split(
            model,
            tokenizer,
            split,
            extractor_of(wanted.extractor),
            stop_ids=stop_ids(tokenizer, {name: split}),
            num=wanted.limit,
            max_new_tokens=wanted.max_new_tokens,
            batch_size=wanted.batch_size,
            progress=advance,
        )
    return TaskScore(
        task=name,
        metric=f"right ({wanted.extractor})",
        value=score.share,
        stderr=(score.share * (1 - score.share) / score.total) ** 0.5,
        interval=score.interval,
        total=score.total,
        higher_is_better=True,
        details={"left_out": score.left_out, "unreadable": score.unreadable},
        items={document: float(right) for document, right in score.outcomes.items()},
    )


def differences(first: Sequence[TaskScore], second: Sequence[TaskScore]) -> list[Difference]:
    """Of every metric that both have item by item."""
    other = {(score.task, score.metric): score for score in second if score.items}
    pairs = [(score, other.get((score.task, score.metric))) for score in first if score.items]
    return [paired_difference(score, against) for score, against in pairs if against is not None]
