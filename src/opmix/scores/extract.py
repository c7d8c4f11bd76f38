"""What of an answer is compared: the same is taken from the model's and from the reference."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable
from decimal import Decimal

from opmix.errors import ConfigError

Extractor = Callable[[str], str | None]
"""The part of an answer that counts, normalised; None where there is none."""

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")
_MARKED = re.compile(r"####\s*(\S.*)")
_WORD = re.compile(r"[^\W\d_]+")


def whole(answer: str) -> str | None:
    """All of it, white space at its ends left out."""
    return answer.strip() or None


def number(answer: str) -> str | None:
    r"""The number after the first `####` (GSM8K; a model that runs on writes more), else the last number.

    Examples:
        >>> number("so 3 x 4 = 12\n#### 1,012.0"), number("It is -7."), number("none")
        ('1012', '-7', None)
    """
    answer = answer.replace("\N{MINUS SIGN}", "-")
    marked = _MARKED.search(answer)
    found = _NUMBER.findall(marked[1])[:1] if marked else []
    found = found or _NUMBER.findall(answer)[-1:]
    if not found:
        return None
    text = format(Decimal(found[0].replace(",", "")), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    digits = text.removeprefix("-").lstrip("0")
    digits = f"0{digits}" if digits[:1] in ("", ".") else digits
    return f"-{digits}" if text[0] == "-" and digits != "0" else digits


def first_word(answer: str) -> str | None:
    """The first word, in lower case: yes, no or maybe.

    Examples:
        >>> first_word("**Yes**, because no study ...")
        'yes'
    """
    found = _WORD.search(answer)
    return found[0].lower() if found else None


def json_value(answer: str) -> str | None:
    r"""The first JSON object or list, whatever is around it; order of keys and white space do not count.

    Examples:
        >>> json_value('Here: [{"b": 1, "a": 2.0}] ok') == json_value('```json\n[{"a":2,"b":1}]\n```')
        True
    """
    decoder = json.JSONDecoder()
    for place in re.finditer(r"[\[{]", answer):
        try:
            value, _ = decoder.raw_decode(answer, place.start())
        except (ValueError, RecursionError):
            continue
        return json.dumps(_plain(value), sort_keys=True, ensure_ascii=False)
    return None


def _plain(value: object) -> object:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


EXTRACTORS: dict[str, Extractor] = {"exact": whole, "number": number, "first_word": first_word, "json": json_value}
"""By name."""


def extractor_of(name: str) -> Extractor:
    r"""One of `EXTRACTORS`, or `regex:PATTERN`: what its first group (or all of it) last matches.

    Raises:
        ConfigError: Unknown name or broken pattern.

    Examples:
        >>> extractor_of("regex:answer is (\w+)")("The answer is B, no, the answer is C.")
        'C'
    """
    if name in EXTRACTORS:
        return EXTRACTORS[name]
    kind, _, text = name.partition(":")
    if kind != "regex" or not text:
        close = difflib.get_close_matches(name, list(EXTRACTORS), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"extractor {name!r}: expected one of {', '.join(EXTRACTORS)} or 'regex:PATTERN'{hint}")
    try:
        pattern = re.compile(text, re.DOTALL)
    except re.error as error:
        raise ConfigError(f"extractor {name!r}: no valid regular expression ({error}); repair the pattern") from error

    def last_match(answer: str) -> str | None:
        matches = list(pattern.finditer(answer))
        return (matches[-1][1] if pattern.groups else matches[-1][0]).strip() if matches else None

    return last_match
