"""Examples in docstrings: what they show is what comes out."""

import doctest
import importlib
from pathlib import Path

import pytest

import opmix

PACKAGE = Path(opmix.__file__).parent
SHOWING = sorted(path.relative_to(PACKAGE.parent) for path in PACKAGE.rglob("*.py") if ">>> " in path.read_text())


@pytest.mark.parametrize("path", SHOWING, ids=str)
def test_examples_are_true(path):
    module = importlib.import_module(".".join(path.with_suffix("").parts).removesuffix(".__init__"))
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
