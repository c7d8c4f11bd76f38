"""Two ranks that hold a part of the model each (FSDP2, gloo) do what one process does; a life, killed in between, too."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from launched import TORCHRUN, one_and_two, same_search
from ranked_work import STEPS
from test_life_on_ranks import keys_of, life, losses_of, opmix  # noqa: F401  (a fixture)

WORK = Path(__file__).with_name("sharded_work.py")
NEAR = 1e-5
"""Nats: sums in another order."""
FSDP = ("--set", "trainer.fsdp=true")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What came out in one process and on two ranks; one torchrun for all tests."""
    return one_and_two(WORK, tmp_path_factory.mktemp("sharded"))


@pytest.mark.slow
class TestTwoRanks:
    def test_each_rank_holds_a_part_of_the_same_model(self, found):
        one, two = found
        assert sum(two["trained"]["own"]) == one["weights"]
        assert max(two["trained"]["own"]) < one["weights"]
        assert two["fingerprint"] == one["fingerprint"] * 2

    def test_a_search_has_the_losses_the_keys_and_the_ledger_of_one_process(self, found):
        same_search([content["searched"] for content in found], NEAR)

    def test_every_architecture_is_the_same_model_in_parts(self, found):
        one, two = (content["families"] for content in found)
        assert one.keys() == two.keys() >= {"llama", "gpt_neox", "gemma2", "mixtral"}
        for arch, (losses, fingerprint) in one.items():
            np.testing.assert_allclose(two[arch][0], losses, rtol=0, atol=NEAR, err_msg=arch)
            assert two[arch][1] == fingerprint

    def test_interpolations_are_the_same_weights_bit_for_bit_and_gone_afterwards(self, found):
        one, two = (content["proxied"] for content in found)
        assert two["merged"] == one["merged"] != found[0]["fingerprint"][0]
        assert found[1]["given back"] == found[0]["fingerprint"][0]
        for backend in ("merge", "scale", "gram"):
            np.testing.assert_allclose(two[backend], one[backend], rtol=0, atol=NEAR)
        for ours, theirs in zip(two["tokens"], one["tokens"], strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=NEAR)

    def test_full_training_is_spread_and_learns_what_one_process_learns(self, found):
        one, two = (content["trained"] for content in found)
        assert two["ends"]["parts"]
        assert two["ends"]["wrapped"]
        assert len(one["losses"]) == STEPS
        assert not one["parts"]
        for losses in (two["ends"]["losses"], two["kept open"]):
            np.testing.assert_allclose(losses, one["losses"], rtol=0, atol=NEAR)
        np.testing.assert_allclose(two["ends"]["kept"], one["kept"], rtol=1e-6)

    def test_a_run_leaves_nothing_that_would_spread_the_next(self, found):
        assert found[1]["trained"]["environment"] == []

    def test_a_checkpoint_counts_only_while_the_files_in_its_folders_are_whole(self, found):
        assert found[1]["trained"]["cut off"] == [[STEPS], []]

    def test_what_cannot_be_done_with_parts_is_refused_by_name(self, found):
        two = found[1]["trained"]
        assert "this stage was begun with a model spread over ranks (trainer.fsdp)" in two["other kind"]
        assert [message.partition(";")[0] for message in two["refused"]] == [
            "AdapterError: probes.kind: full, modules_to_save: []",
            "AdapterError: probes.kind: lora+embeddings, modules_to_save: []",
        ]


@pytest.fixture(scope="module")
def fresh_life(life):  # noqa: F811
    """The life whose moments begin anew in its second stage."""
    content = yaml.safe_load(life.read_text())
    del content["stages"][1]["optimizer"]
    file = life.with_name("fresh.yaml")
    file.write_text(yaml.safe_dump(content))
    return file


def children_of(pid):
    told = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in told.stdout.split()]


def killed_at(file, out, stage):
    """Start a life on two ranks, and kill one when the stage has a whole checkpoint."""
    command = [sys.executable, *TORCHRUN, "-m", "opmix", "run", str(file), "--out", str(out), *FSDP]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    driver = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    try:
        end = time.monotonic() + 400
        while not (found := list((out / "seed-0" / stage / "checkpoints").glob("checkpoint-*/complete.json"))):
            assert driver.poll() is None, "the life ended before it had a checkpoint"
            assert time.monotonic() < end
            time.sleep(0.05)
        os.kill(children_of(driver.pid)[-1], signal.SIGKILL)
        assert driver.wait(120) != 0
    finally:
        driver.kill()
    return found


@pytest.mark.cluster
def test_a_life_with_a_model_in_parts_is_the_life_of_one_process_also_when_a_rank_was_killed(fresh_life, tmp_path):
    opmix("run", fresh_life, "--out", tmp_path / "one")
    opmix("run", fresh_life, "--out", tmp_path / "two", *FSDP, ranks=2)
    killed = killed_at(fresh_life, tmp_path / "killed", "01-base")
    assert killed
    opmix("run", fresh_life, "--out", tmp_path / "killed", *FSDP, ranks=2)
    mixtures, losses = losses_of(tmp_path / "one")
    for name in ("two", "killed"):
        assert keys_of(tmp_path / name) == keys_of(tmp_path / "one")
        others, near = losses_of(tmp_path / name)
        for one, two in zip(mixtures, others, strict=True):
            assert two == pytest.approx(one, abs=1e-3)
        for one, two in zip(losses, near, strict=True):
            assert two == pytest.approx(one, abs=1e-3)
        assert (tmp_path / name / "seed-0" / "01-base" / "model" / "model.safetensors").is_file()
    # One process finds everything, though the configuration still asks for parts.
    before = (tmp_path / "two" / "life.json").read_bytes()
    opmix("run", fresh_life, "--out", tmp_path / "two", *FSDP)
    assert (tmp_path / "two" / "life.json").read_bytes() == before
