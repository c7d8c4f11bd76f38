"""Writes examples/smoke/chats/*.jsonl: two small skills as conversations, and an exam of questions, the same bytes every time.

python examples/smoke/make_chats.py
"""

from __future__ import annotations

import json
import random
from pathlib import Path

WORDS = (
    "apple",
    "bridge",
    "candle",
    "dragon",
    "ember",
    "forest",
    "garden",
    "harbour",
    "island",
    "jungle",
    "kettle",
    "lantern",
    "mirror",
    "needle",
    "orchard",
    "pebble",
)
FOLDER = Path(__file__).parent / "chats"


def sums(rng: random.Random) -> tuple[str, str]:
    a, b = rng.randrange(50), rng.randrange(50)
    return f"What is {a} plus {b}?", f"{a} plus {b} is {a + b}."


def spelling(rng: random.Random) -> tuple[str, str]:
    word = rng.choice(WORDS)
    return f"Spell the word {word}.", " ".join(word.upper())


def exam() -> None:
    """What a line of Python goes on with: the right end of it, and those of three others."""
    names = [
        ("import", "os"),
        ("return", "self"),
        ("for i in range(10)", ":"),
        ("def f(x)", ":"),
        ("if x is not", "None"),
        ("raise", "ValueError"),
        ("class A(object)", ":"),
        ("with open(path) as", "file"),
        ("except", "KeyError"),
        ("while", "True"),
    ]
    rng, lines = random.Random("exam"), []
    for number in range(60):
        opening, right = rng.choice(names)
        others = rng.sample(sorted({end for _, end in names} - {right}), 3)
        options = [right, *others]
        rng.shuffle(options)
        row = {"ctx": f"# {number}\n{opening}", "endings": options, "label": options.index(right)}
        lines.append(json.dumps(row) + "\n")
    (FOLDER / "exam.jsonl").write_text("".join(lines), encoding="utf-8")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    exam()
    for skill in (sums, spelling):
        rng = random.Random(skill.__name__)
        lines = []
        for number in range(400):
            question, answer = skill(rng)
            # A number of its own keeps equal questions apart when valid and test are split off by content.
            turns = [{"role": "user", "content": f"({number}) {question}"}, {"role": "assistant", "content": answer}]
            lines.append(json.dumps({"messages": turns}) + "\n")
        (FOLDER / f"{skill.__name__}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
