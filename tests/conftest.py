"""What all tests share."""

import gc
import os

import pytest


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


@pytest.fixture(scope="session", autouse=True)
def _quick_collections():
    """A Trainer collects garbage when it ends: a third of a second each, unless all of torch is out of the collector's sight."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
