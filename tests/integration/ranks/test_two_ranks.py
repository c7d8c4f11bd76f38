"""The same work on one rank and on two (torchrun, gloo): same rows, losses, keys and files; what fails on one fails on both."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import sharded_work
from launched import TORCHRUN, same_search
from ranked_work import STEPS

NEAR = 1e-5
"""Nats: sums in another order."""


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    """A folder in which all was done in this process, and on two ranks; one torchrun for all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    sharded_work.both(folder)
    ended = subprocess.run(
        [sys.executable, *TORCHRUN, sharded_work.__file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return folder


def told(folder):
    """What came out on one rank and on two."""
    return [json.loads((folder / f"{name}.json").read_text()) for name in ("one", "two")]


@pytest.fixture(scope="module")
def found(everything):
    """Where every rank holds the whole model."""
    return told(everything / "ranked")


@pytest.fixture(scope="module")
def in_parts(everything):
    """Where each holds a part of it (FSDP2)."""
    return told(everything / "sharded")


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


class TestParts:
    """Two ranks that hold a part of the model each do what one process does."""

    def test_each_rank_holds_a_part_of_the_same_model(self, in_parts):
        one, two = in_parts
        assert sum(two["trained"]["own"]) == one["weights"]
        assert max(two["trained"]["own"]) < one["weights"]
        assert two["fingerprint"] == one["fingerprint"] * 2

    def test_a_search_has_the_losses_the_keys_and_the_ledger_of_one_process(self, in_parts):
        same_search([content["searched"] for content in in_parts], NEAR)

    def test_every_architecture_is_the_same_model_in_parts(self, in_parts):
        one, two = (content["families"] for content in in_parts)
        assert one.keys() == two.keys() >= {"llama", "gpt_neox", "gemma2", "mixtral"}
        for arch, (losses, fingerprint) in one.items():
            np.testing.assert_allclose(two[arch][0], losses, rtol=0, atol=NEAR, err_msg=arch)
            assert two[arch][1] == fingerprint

    def test_interpolations_are_the_same_weights_bit_for_bit_and_gone_afterwards(self, in_parts):
        one, two = (content["proxied"] for content in in_parts)
        assert two["merged"] == one["merged"] != in_parts[0]["fingerprint"][0]
        assert in_parts[1]["given back"] == in_parts[0]["fingerprint"][0]
        for backend in ("merge", "scale", "gram"):
            np.testing.assert_allclose(two[backend], one[backend], rtol=0, atol=NEAR)
        for ours, theirs in zip(two["tokens"], one["tokens"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=NEAR)

    def test_full_training_is_spread_and_learns_what_one_process_learns(self, in_parts):
        one, two = (content["trained"] for content in in_parts)
        assert two["ends"]["parts"]
        assert two["ends"]["wrapped"]
        assert len(one["losses"]) == STEPS
        assert not one["parts"]
        for losses in (two["ends"]["losses"], two["kept open"]):
            np.testing.assert_allclose(losses, one["losses"], rtol=0, atol=NEAR)
        np.testing.assert_allclose(two["ends"]["kept"], one["kept"], rtol=1e-6)

    def test_a_run_leaves_nothing_that_would_spread_the_next(self, in_parts):
        assert in_parts[1]["trained"]["environment"] == []

    def test_a_checkpoint_counts_only_while_the_files_in_its_folders_are_whole(self, in_parts):
        assert in_parts[1]["trained"]["cut off"] == [[STEPS], []]

    def test_what_cannot_be_done_with_parts_is_refused_by_name(self, in_parts):
        two = in_parts[1]["trained"]
        assert "this stage was begun with a model spread over ranks (trainer.fsdp)" in two["other kind"]
        assert [message.partition(";")[0] for message in two["refused"]] == [
            "AdapterError: probes.kind: full, modules_to_save: []",
            "AdapterError: probes.kind: lora+embeddings, modules_to_save: []",
        ]
