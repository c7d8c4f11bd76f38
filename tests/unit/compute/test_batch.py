"""Rows of a step over ranks and micro-batches: one number in the keys, the same rows whoever reads them."""

import numpy as np
import pytest

from opmix.compute.budget import Batch, for_transformers, sequences_per_step, speaks, world_size
from opmix.errors import ConfigError, TrainingError
from opmix.lifecycle.steps import HARMLESS
from opmix.mixing.mixture import Mixture
from opmix.runs.files import write_text
from opmix.runs.ranks import ALONE, Ranks, ranks_here, refuse_ranks
from opmix.runs.store import RunStore
from opmix.training.arguments import checked_arguments
from opmix.training.checkpoints import MARKER, mark_checkpoint, whole_checkpoints
from opmix.training.objectives import CAUSAL_LM, SFT, Usage
from opmix.training.plan import plan_training

PER_DEVICE = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
MIX = Mixture.of({"a": 0.6, "b": 0.4})


class Rows:
    """Rows of a domain, as a plan sees them."""

    sequence_length, restarts = 8, False

    def __init__(self, num, conversations=False, seed=0):
        worth = np.random.default_rng(seed).integers(1, 9, num)
        self.conversations, self.lengths = conversations, np.full(num, 8)
        self.supervised = worth if conversations else self.lengths

    def __len__(self):
        return len(self.lengths)


def test_rows_of_a_step_and_processes_of_a_run(monkeypatch):
    assert (sequences_per_step({}), sequences_per_step(PER_DEVICE), sequences_per_step({"batch": 12})) == (8, 8, 12)
    assert (world_size(), speaks()) == (1, True)
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "3")
    assert (world_size(), speaks()) == (4, False)


@pytest.mark.parametrize(
    ("arguments", "ranks", "laid_out"),
    [
        ({}, 1, (8, 8, 1)),
        (PER_DEVICE, 1, (8, 4, 2)),
        ({"batch": 256, "micro_batch": 4}, 8, (256, 4, 8)),
        ({"batch": 24}, 1, (24, 8, 3)),
        ({"batch": 24}, 2, (24, 6, 2)),
        ({"batch": 14}, 2, (14, 7, 1)),
    ],
)
def test_a_step_is_laid_out_over_ranks(arguments, ranks, laid_out):
    batch = Batch.of(arguments, ranks)
    assert (batch.rows, batch.micro, batch.accumulation) == laid_out
    assert batch.micro * batch.accumulation * ranks == batch.rows


@pytest.mark.parametrize(
    ("arguments", "ranks", "said"),
    [
        (PER_DEVICE, 2, r"trainer.batch: missing; with 2 ranks .* `batch: 8` in place of per_device_train_batch_size"),
        ({"batch": 9}, 2, "trainer.batch: 9 rows for 2 ranks; expected a multiple of 2"),
        (
            {"batch": 16, "micro_batch": 3},
            2,
            "trainer.micro_batch: 3; expected a divisor of 8, the rows of a step on each",
        ),
    ],
)
def test_what_cannot_be_laid_out_is_refused(arguments, ranks, said, monkeypatch):
    with pytest.raises(ConfigError, match=said):
        Batch.of(arguments, ranks)
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    with pytest.raises(ConfigError, match=said):
        checked_arguments(arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"batch": 8, **PER_DEVICE}, "trainer.gradient_accumulation_steps: said by trainer.batch too; leave one out"),
        ({"micro_batch": 2}, "trainer.micro_batch: divides trainer.batch, which is missing; add it"),
        ({"batch": 0}, "trainer.batch: 0; expected at least 1"),
    ],
)
def test_contradictions_are_said(arguments, said):
    with pytest.raises(ConfigError, match=said):
        checked_arguments(arguments)
    assert checked_arguments({"batch": "16", "micro_batch": 4.0}) == {"batch": 16, "micro_batch": 4}


def test_transformers_is_told_its_own_names():
    assert for_transformers(PER_DEVICE) == PER_DEVICE
    told = for_transformers({"batch": 16, "micro_batch": 4, "learning_rate": 1.0})
    assert told == {"learning_rate": 1.0, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert "micro_batch" in HARMLESS
    assert "batch" not in HARMLESS


@pytest.mark.parametrize("conversations", [False, True])
def test_a_plan_has_the_same_rows_in_each_step_on_any_number_of_ranks(monkeypatch, conversations):
    rows = {"a": Rows(400, conversations, 0), "b": Rows(300, conversations, 1)}
    objective, steps = SFT if conversations else CAUSAL_LM, 6
    seen = {}
    for ranks, micro in ((1, 8), (1, 2), (2, 4), (4, 2)):
        monkeypatch.setenv("WORLD_SIZE", str(ranks))
        arguments = {"batch": 16, "micro_batch": micro}
        plan = plan_training(rows, MIX, steps=steps, arguments=arguments, seed=3, objective=objective)
        ends = plan.ends[len(plan.ends) // steps - 1 :: len(plan.ends) // steps] if conversations else None
        seen[ranks, micro] = plan.plan.domain.tolist(), plan.plan.row.tolist(), None if ends is None else ends.tolist()
        each = plan.arguments["per_device_train_batch_size"] * plan.arguments["gradient_accumulation_steps"] * ranks
        assert (len(plan.ends) if conversations else len(plan.plan)) == steps * each
    assert all(found == seen[1, 8] for found in seen.values())


def test_one_process_is_alone(tmp_path):
    assert ranks_here() is ALONE
    assert (ALONE.first, ALONE.shared(3), ALONE.collected(3)) == (True, 3, [3])
    with ALONE.in_turn(), pytest.raises(ZeroDivisionError), ALONE.agreed():
        _ = 1 / 0
    refuse_ranks("this", "do that")


def test_parts_of_rows_give_all_of_them_in_order():
    for num in (0, 1, 2, 7):
        parts = [range(num)[Ranks(rank, 3).own(num)] for rank in range(3)]
        assert [i for part in parts for i in part] == list(range(num))


def test_only_the_first_rank_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("opmix.runs.files.ranks_here", lambda: Ranks(1, 2))
    write_text(tmp_path / "a.txt", "a")
    store = RunStore(tmp_path, ranks=Ranks(1, 2))
    store.event("begun")
    assert list(tmp_path.iterdir()) == []


def test_ranks_that_are_not_there_are_said_so(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(TrainingError, match="WORLD_SIZE is 2, but the ranks cannot be connected"):
        ranks_here()
    with pytest.raises(ConfigError, match="WORLD_SIZE is 2; `opmix verify` drives one process: do that"):
        refuse_ranks("`opmix verify`", "do that")


def test_a_checkpoint_with_a_file_cut_off_in_a_folder_of_it_does_not_count(tmp_path):
    folder = tmp_path / "checkpoint-3"
    (folder / "optimizer_0").mkdir(parents=True)
    (folder / "optimizer_0" / "part").write_bytes(b"moments")
    mark_checkpoint(folder, "k", 3, Usage())
    assert whole_checkpoints(tmp_path) == [(3, folder)]
    assert (folder / MARKER).exists()
    (folder / "optimizer_0" / "part").write_bytes(b"mom")
    assert whole_checkpoints(tmp_path) == []
