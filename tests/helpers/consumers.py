"""Packages of other projects that only some environments have."""

import importlib
import os

import pytest

MUST = os.environ.get("OPMIX_CONSUMERS", "").split()
"""What `make consumers` has installed: there a test that skips would never run."""


def real(name):
    """The package, or the test is skipped where it need not be there."""
    if name.split(".")[0] in MUST:
        return importlib.import_module(name)
    return pytest.importorskip(name, reason=f"{name} is not installed; `make consumers` has it")


def skip_without(name, there):
    """Skip the test where the package is not `there` and need not be."""
    if not there:
        assert name not in MUST, f"{name} is to be installed here, and is not found"
        pytest.skip(f"{name} is not installed; put its folder in OPMIX_TRAINERS (`make consumers` has some)")
