"""The table of faults cannot rot: every row has a test that exists, or says that it is open."""

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
REPORTED = "B1 B2 B5 B6 B8 B9 B10 B11 B14 B16 B18 B19 B20 B21 B22 B28"
HOSTILE = "1 2 3 4 5 7 8 10 12 14 15 17 18 20 21 23 25 26 27 29 30 32 33 34 36 37 38 40 42"
ROWS = {
    "From other projects' reports": REPORTED.split(),
    "With hostile input, faults and files": HOSTILE.split(),
    "As a new user": [
        *(f"B{n}" for n in range(1, 6)),
        *(f"W{n}" for n in range(1, 17)),
        *(f"A{n}" for n in range(1, 23)),
        *(f"M{n}" for n in range(1, 11)),
    ],
    "More of their kinds": [f"S{n}" for n in range(1, 47)],
}


def rows(section):
    """Row ids of a section, and what stands in the last column."""
    text = PAGE.split(f"## {section}\n")[1].split("\n## ")[0]
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {first.strip(): last.strip() for first, _, last in cells[1:]}


@cache
def functions_of_the_tree():
    """`file::function` of every test, methods among them."""
    paths = (ROOT / "tests").rglob("test_*.py")
    defined = re.compile(r"^ *def (test_\w+)\(", re.MULTILINE)
    return {f"{path.stem}::{name}" for path in paths for name in defined.findall(path.read_text(encoding="utf-8"))}


@pytest.mark.parametrize("section", ROWS)
def test_every_row_of_the_lists_is_there(section):
    assert list(rows(section)) == ROWS[section]


@pytest.mark.parametrize("section", ROWS)
def test_every_row_has_a_test_that_exists_or_is_open(section):
    known = functions_of_the_tree()
    assert len(known) > 500
    for row, cell in rows(section).items():
        named = re.findall(r"`(\w+::\w+)`", cell)
        assert named or cell.startswith("open"), row
        assert [name for name in named if name not in known] == [], row
