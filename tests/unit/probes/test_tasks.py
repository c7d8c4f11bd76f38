"""A probe and a sweep as tasks: no run folder, the same bytes wherever they are done, the model given back."""

import pickle

import numpy as np
import pytest
import torch
from probe_tasks import LENGTH, NEW, OLD, STEPS, held_out, runtime_of, task_of
from safetensors.torch import load_file

from opmix.mixing.mixture import InterpolationWeights
from opmix.models.layers import model_fingerprint
from opmix.probes.evaluation import evaluate
from opmix.probes.tasks import ProxyEvaluator, ProxyLosses, train_probe


def test_a_task_is_a_value_and_leaves_an_adapter_and_the_model_as_it_was(rows, tmp_path):
    runtime = runtime_of(rows)
    before = model_fingerprint(runtime.model)
    task = pickle.loads(pickle.dumps(task_of(tmp_path, "old", OLD)))
    record = train_probe(task, runtime)
    assert record.row_tokens == STEPS * 2 * LENGTH
    assert record.flops > 0
    kept = load_file(tmp_path / "old" / "adapter_model.safetensors")
    assert max(float(tensor.abs().max()) for name, tensor in kept.items() if "lora_B" in name) > 0
    assert model_fingerprint(runtime.model) == before
    assert not any("lora" in name for name, _ in runtime.model.named_modules())


def test_a_probe_is_the_same_bytes_whatever_was_trained_before_it(rows, tmp_path):
    runtime = runtime_of(rows)
    train_probe(task_of(tmp_path / "a", "old", OLD), runtime)
    train_probe(task_of(tmp_path / "a", "new", NEW, name="probe_1"), runtime)
    torch.rand(3)
    train_probe(task_of(tmp_path / "b", "new", NEW), runtime_of(rows))
    one, other = (tmp_path / run / "new" / "adapter_model.safetensors" for run in "ab")
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.slow
def test_a_probe_looked_at_goes_on_to_the_bytes_of_one_that_was_not(rows, tmp_path):
    runtime = runtime_of(rows)
    train_probe(task_of(tmp_path / "a", "old", OLD), runtime)
    train_probe(task_of(tmp_path / "b", "old", OLD, stop=2, out=tmp_path / "b" / "old-at-2"), runtime)
    train_probe(task_of(tmp_path / "b", "old", OLD), runtime)
    one, other = (tmp_path / run / "old" / "adapter_model.safetensors" for run in "ab")
    assert one.read_bytes() == other.read_bytes()
    assert (tmp_path / "b" / "old-at-2" / "adapter_model.safetensors").read_bytes() != one.read_bytes()


def test_interpolations_of_kept_probes_are_evaluated_and_their_table_survives_the_disk(rows, tmp_path):
    runtime = runtime_of(rows)
    folders = []
    for probe, mixture in (("old", OLD), ("new", NEW)):
        task = task_of(tmp_path, probe, mixture)
        train_probe(task, runtime)
        folders.append(task.out)
    evaluator = ProxyEvaluator(runtime=runtime, settings=task.settings, held_out=held_out(rows))
    points = [InterpolationWeights(("old", "new"), w) for w in ([1.0, 0.0], [0.5, 0.5], [0.0, 1.0])]
    before = model_fingerprint(runtime.model)
    found = evaluator.evaluate(folders, points)
    assert model_fingerprint(runtime.model) == before
    assert found.points.losses.shape == (3, 2)
    assert found.points.losses[0, 0] < found.points.losses[2, 0]  # the old probe saw more of alpha
    plain = evaluate(runtime.model, evaluator.held_out).losses[0]
    np.testing.assert_array_equal(found.baseline, plain)
    file = tmp_path / "tables" / "sequences.npz"
    found.save(file)
    names = tuple(rows)
    read = ProxyLosses.load(file, names)
    np.testing.assert_array_equal(read.points.losses, found.points.losses)
    np.testing.assert_array_equal(read.gram, found.gram)
    file.write_bytes(file.read_bytes()[:200])
    assert ProxyLosses.load(file, names) is None
    for damaged in (b"\x93NUMPY\x01\x00v\x00{'descr': (64", b"PK\x03\x04", b""):
        file.write_bytes(damaged)
        assert ProxyLosses.load(file, names) is None
    np.save(file.with_suffix(".npy"), np.arange(3))
    assert ProxyLosses.load(file.with_suffix(".npy"), names) is None  # one array, where several were expected
    assert ProxyLosses.load(tmp_path / "nowhere.npz", names) is None
