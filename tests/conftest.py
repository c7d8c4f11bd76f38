"""What all tests share."""

import gc
import os
import sys
from functools import cache

import hypothesis
import pytest
import typer.testing
from forked import forking

_SEEN = pytest.StashKey[int]()
# A verb that is called in a test's own process would build all twenty verbs anew: two thirds of the time of most calls.
typer.testing._get_command = cache(typer.testing._get_command)
# A busy machine is no reason to fail: no example has a deadline, and data that are made slowly are data.
hypothesis.settings.register_profile(
    "any machine", deadline=None, max_examples=50, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any machine")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Reading torch and every test file makes millions of objects that stay: looking for garbage among them is a fifth of the time."""
    gc.disable()
    try:
        return (yield)
    finally:
        # At every training step accelerate looks on the disk whether DeepSpeed has been installed meanwhile.
        if (asks := sys.modules.get("accelerate.utils.imports")) and hasattr(asks, "_is_package_available"):
            asks._is_package_available = cache(asks._is_package_available)
        gc.freeze()
        gc.enable()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """What torch itself cannot do under lowered kernels: its bfloat16 attention still asks an AVX-512 processor for VNNI packing."""
    report = yield
    lowered = report.failed and call.excinfo is not None and "ATEN_CPU_CAPABILITY" in os.environ
    if lowered and "pack_vnni2" in str(call.excinfo.value):
        report.outcome = "skipped"
        report.longrepr = (
            str(item.path),
            item.location[1] or 0,
            "torch's bfloat16 attention needs the machine's own kernels",
        )
    return report


def pytest_runtest_setup(item):
    """A Trainer collects garbage when it ends: a third of a second each, unless it sees nothing of torch and what came after it."""
    if len(sys.modules) > item.config.stash.get(_SEEN, 0) + 100:
        gc.collect(1)  # young garbage; a whole collection here took half a second, a dozen times
        gc.freeze()
        item.config.stash[_SEEN] = len(sys.modules)


@pytest.fixture(scope="session")
def forked():
    """What starts a program of opmix that has read torch: see `forked.py`."""
    with forking() as command:
        yield command
