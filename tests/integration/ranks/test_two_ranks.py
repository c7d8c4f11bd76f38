"""The same work on one rank and on two (torchrun, gloo): same rows, losses, keys and files; what fails on one fails on both."""

from pathlib import Path

import numpy as np
import pytest
from launched import one_and_two, same_search
from ranked_work import STEPS

WORK = Path(__file__).with_name("ranked_work.py")
NEAR = 1e-5
"""Nats: sums in another order."""


@pytest.fixture(scope="session")
def found(tmp_path_factory):
    """What came out on one rank and on two; one torchrun for all tests."""
    return one_and_two(WORK, tmp_path_factory.mktemp("ranks"))


def test_ranks_hear_of_each_other(found):
    one, two = found
    assert one["ranks"] == [[0, True, 0]]
    assert two["ranks"] == [[0, True, 0], [1, False, 0]]
    assert one["rows"] == two["rows"] == list(range(11))


def test_a_run_is_the_same_on_one_and_on_two_ranks(found):
    one, two = found
    assert len(one["losses"]) == STEPS
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=0, atol=NEAR)
    np.testing.assert_allclose(two["evaluated"], one["evaluated"], rtol=0, atol=NEAR)
    assert two["fingerprints"][0] == two["fingerprints"][1]


def test_answers_of_unequal_worth_too(found):
    one, two = found
    assert one["answered"]["tokens"] == two["answered"]["tokens"]
    np.testing.assert_allclose(two["answered"]["losses"], one["answered"]["losses"], rtol=0, atol=NEAR)


def test_a_run_stopped_and_gone_on_with_is_the_unbroken_one_also_on_another_number_of_ranks(found):
    one, two = found
    assert one["in_stretches"] == one["losses"]
    for stretches in (two["in_stretches"], two["taken_over"]):
        np.testing.assert_allclose(stretches, one["losses"], rtol=0, atol=NEAR)
    np.testing.assert_allclose(two["moments"], one["moments"], rtol=1e-4)


def test_a_search_on_ranks_has_the_keys_the_ledger_and_the_files_of_one_process(found):
    same_search([content["searched"] for content in found], NEAR)


def test_a_checkpoint_counts_though_a_rank_is_late(found):
    assert found[1]["late"] == {"whole": [3], "files": ["rng_state_0.pth", "rng_state_1.pth"]}


def test_what_fails_on_one_rank_is_raised_on_both(found):
    disk, locked, alone = found[1]["refused"]
    assert disk == ["StoreError: rank 1: its disk is full", "StoreError: its disk is full"]
    assert [message.partition(": ")[0] for message in locked] == ["StoreError", "StoreError"]
    assert all("held by process 1 on elsewhere" in message for message in locked)
    assert alone == ["ConfigError: no such thing", "ConfigError: rank 0: no such thing"]
