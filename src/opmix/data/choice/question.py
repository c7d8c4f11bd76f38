"""Questions, and the schemas of rows they are read from.

A row has a question, its options and which of them is right, under the names that benchmarks use:

    {"question": "...", "choices": ["a", "b"], "answer": 1}                               MMLU; the answer a number, letter or text
    {"question": "...", "choices": {"text": [...], "label": ["A", ...]}, "answerKey": "B"}  ARC, CommonsenseQA, OpenBookQA
    {"ctx": "...", "endings": [...], "label": 2}                                           HellaSwag: options go on with the text
    {"options": [["context", " continuation"], ...], "answer": 0}                          exactly what is scored, as `task` keeps it
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opmix.data.chat.conversation import domain_kind, first_row
from opmix.data.readers import WholeRow, check_utf8
from opmix.data.sources import TOKEN_FORMATS, place, read_rows, resolve
from opmix.domain import Domain, Kind, Source
from opmix.errors import DataError

_QUESTIONS = ("question", "question_stem", "query", "prompt")
_OPENINGS = ("ctx", "context")
"""Texts that the options go on with as they are."""
_OPTIONS = ("options", "choices", "endings")
_ANSWERS = ("answer", "answerKey", "label", "gold")


@dataclass(frozen=True, slots=True)
class Question:
    """What is scored: each option is a context and how it goes on."""

    options: tuple[tuple[str, str], ...]
    answer: int
    """Index of the right option."""
    where: str
    """File and line, for messages."""

    def __len__(self) -> int:
        return sum(len(context) + len(option) for context, option in self.options)

    @property
    def key(self) -> str:
        """The same for the same question, whatever its right answer is said to be."""
        return "\n".join(sorted(context + option for context, option in self.options))


def question_of(row: Any, where: str) -> Question:
    """The question in one row.

    Raises:
        DataError: No question, fewer than two options, or no right one among them.
    """
    if not isinstance(row, dict):
        raise DataError(f"{where}: a JSON {type(row).__name__}; expected one object a line with question and choices")
    given = _first(row, _OPTIONS)
    exact = isinstance(given, list) and bool(given) and all(isinstance(option, list | tuple) for option in given)
    options, labels = _options(given, where, least=1 if exact else 2)
    if all(isinstance(option, list | tuple) for option in options):
        pairs = tuple(_pair(option, where) for option in options)
    else:
        pairs = tuple((_asked(row, where), " " + _text(option, where, "an option").strip()) for option in options)
    return Question(pairs, _answer(_first(row, _ANSWERS), labels, options, where), where)


def iter_questions(source: Source, *, domain: str | None = None) -> Iterator[Question]:
    """The questions of a source, streamed in a fixed order.

    Raises:
        DataError: A file is missing or damaged, or a row is no question; see `question_of`.
    """
    for file in resolve(source, domain=domain):
        where = place(domain, file.path)
        if file.format in (*TOKEN_FORMATS, "text"):
            raise DataError(f"{where}: a {file.format} file has no rows; expected JSON Lines with question and choices")
        for number, row in enumerate(read_rows(file, source, WholeRow(), where), 1):
            yield question_of(row, f"{where}:{number}")


def target_kind(domain: Domain) -> Kind:
    """What a target holds: as said, or as its first row shows.

    Raises:
        DataError: The source cannot be read.
    """
    if domain.kind is not None:
        return domain.kind
    row = first_row(domain)
    asks = isinstance(row, dict) and domain.train.field not in row and any(key in row for key in _OPTIONS)
    return "choice" if asks else domain_kind(domain)


def _first(row: Mapping[str, Any], names: Sequence[str]) -> Any:
    return next((row[name] for name in names if row.get(name) is not None), None)


def _asked(row: Mapping[str, Any], where: str) -> str:
    opening = _first(row, _OPENINGS)
    if opening is not None and not any(row.get(name) for name in _QUESTIONS):
        return _text(opening, where, "ctx").rstrip()
    question = _first(row, _QUESTIONS)
    if isinstance(question, dict):  # ARC as AllenAI published it: {"stem": ..., "choices": [...]}
        question = question.get("stem")
    if question is None:
        have = ", ".join(map(repr, list(row)[:8])) or "none"
        raise DataError(
            f"{where}: no question (it has {have}); expected `question`, `choices` and `answer`; rename them"
        )
    passage = f"{_text(opening, where, 'context')}\n" if opening is not None else ""
    return f"{passage}Question: {_text(question, where, 'question').strip()}\nAnswer:"


def _options(given: Any, where: str, *, least: int) -> tuple[list[Any], list[str]]:
    """The options and what they are called."""
    options, labels = given, None
    if isinstance(given, dict):
        options, labels = given.get("text"), given.get("label")
    if not isinstance(options, list | tuple) or len(options) < least:
        have = "none" if options is None else options if not isinstance(options, list | tuple) else f"{len(options)}"
        raise DataError(
            f"{where}: options: {have}; expected a list of at least two as `choices`; repair or drop the row"
        )
    letters = [chr(ord("A") + i) for i in range(len(options))]
    return list(options), [str(label) for label in labels] if isinstance(labels, list | tuple) else letters


def _answer(given: Any, labels: Sequence[str], options: Sequence[Any], where: str) -> int:
    """Index of the right option: a number from 0, a label (A, B, ...; as the row calls them), or the option's own text."""
    text = given.strip() if isinstance(given, str) else given
    if isinstance(text, int) and not isinstance(text, bool) and 0 <= text < len(options):
        return text
    if isinstance(text, str):
        for names in (labels, [label.lower() for label in labels], [str(o).strip() for o in options]):
            if names.count(text) == 1:
                return names.index(text)
        if text.isdecimal() and int(text) < len(options):
            return int(text)
    said = "none" if given is None or given == "" else repr(given)
    raise DataError(
        f"{where}: answer: {said}; expected which of the {len(options)} options is right: a number from 0, "
        f"one of {', '.join(labels)}, or its text; repair or drop the row"
    )


def _pair(option: Sequence[Any], where: str) -> tuple[str, str]:
    if len(option) != 2:
        raise DataError(f"{where}: an option of {len(option)} parts; expected a context and how it goes on")
    return _text(option[0], where, "a context", empty=True), _text(option[1], where, "an option")


def _text(value: Any, where: str, what: str, *, empty: bool = False) -> str:
    if not isinstance(value, str | int | float) or isinstance(value, bool) or not (empty or str(value).strip()):
        kind = "empty" if value == "" else "null" if value is None else type(value).__name__
        raise DataError(f"{where}: {what} is {kind}; expected text; repair or drop the row")
    check_utf8(str(value), where, what)
    return str(value)
