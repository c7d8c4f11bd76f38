"""Probes trained as one batch: what each would have learned alone, up to rounding."""

import contextlib
import dataclasses

import numpy as np
import pytest
import torch
from probe_tasks import NEW, OLD, STEPS, TRAINER, held_out, model_of, runtime_of, task_of
from safetensors.torch import load_file

from opmix.compute.ledger import Ledger
from opmix.mixing.mixture import InterpolationWeights, ProbeDesign
from opmix.models.layers import model_fingerprint
from opmix.probes import at_once
from opmix.probes.at_once import train_at_once, why_one_by_one
from opmix.probes.batches import Batches
from opmix.probes.session import ProbeSession
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import ProxyEvaluator, probe_arguments, train_probe
from opmix.progress import Silent
from opmix.protocols.mixing_method import FULL, Fidelity
from opmix.runs import store as store_module
from opmix.runs.store import RunStore
from opmix.testing.models import ARCHITECTURES
from opmix.training.objectives import SFT

MIXTURES = {"old": OLD, "new": NEW, "even": {"alpha": 0.5, "beta": 0.5}}


def tasks_in(folder, **changes):
    return [
        task_of(folder, probe, mixture, name=f"probe_{k}", **changes)
        for k, (probe, mixture) in enumerate(MIXTURES.items())
    ]


def weights_of(folder, probe):
    return load_file(folder / probe / "adapter_model.safetensors")


class Telling(Silent):
    def __init__(self, told):
        self.note = told.append


def searched(rows, folder, size, *, seed=0, told=None, kind="lora"):
    """A search that looks at its probes once on the way; what it found, and its ledger."""
    settings = ProbeSettings(steps=STEPS, rank=2, at_once=size, kind=kind)
    runtime = runtime_of(rows)
    runtime = dataclasses.replace(runtime, progress=Telling([] if told is None else told))
    design = ProbeDesign(("old", "new"), ("alpha", "beta"), np.array([list(OLD.values()), list(NEW.values())]))
    points = [InterpolationWeights(("old", "new"), w) for w in ([1.0, 0.0], [0.5, 0.5])]
    with RunStore(folder) as store:
        session = ProbeSession(
            runtime=runtime,
            evaluator=ProxyEvaluator(runtime=runtime, settings=settings, held_out=held_out(rows)),
            trainer=TRAINER,
            store=store,
            data_fingerprint="d",
            ledger=Ledger(),
            seed=seed,
        )
        early = session.simulate(design, points, label="proxies-at-2", fidelity=Fidelity(steps=2))
        return (early, session.simulate(design, points, label="proxies", fidelity=FULL)), session.ledger


def check_same(one, other):
    for probe in MIXTURES:
        alone, together = weights_of(one, probe), weights_of(other, probe)
        assert alone.keys() == together.keys()
        for name, weight in alone.items():
            torch.testing.assert_close(together[name], weight, rtol=2e-3, atol=2e-5, msg=f"{probe} {name}")


NO_DROPOUT = {"gpt2": {"resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}}


def check_alike(rows, folder, arch, trainer):
    """Train three probes alone and together; the model is as it was."""
    runtime = runtime_of(rows, model_of(arch=arch, **NO_DROPOUT.get(arch, {})))
    settings, before = ProbeSettings(steps=STEPS, rank=2), model_fingerprint(runtime.model)
    arguments = probe_arguments(settings, TRAINER | trainer)
    alone = [dataclasses.replace(t, name="probe_0") for t in tasks_in(folder / "alone", trainer=arguments)]
    records = [train_probe(task, runtime) for task in alone]
    tasks = tasks_in(folder / "together", trainer=arguments)
    assert why_one_by_one(tasks[0], runtime) is None
    found = train_at_once(tasks, runtime, folder / "parts", key="k")
    assert found == records  # tokens, FLOPs, shares
    check_same(folder / "alone", folder / "together")
    assert model_fingerprint(runtime.model) == before
    assert not any("lora" in name for name, _ in runtime.model.named_modules())


@pytest.mark.parametrize(
    "trainer",
    [{}, {"gradient_accumulation_steps": 2}, {"max_grad_norm": 0.05, "weight_decay": 0.1}],
    ids=["plain", "accumulated", "clipped"],
)
def test_each_learns_what_it_learns_alone(rows, tmp_path, trainer):
    check_alike(rows, tmp_path, "llama", trainer)


@pytest.mark.slow
@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) - {"llama", "mixtral", "qwen2_moe"}))
def test_so_does_every_architecture(rows, tmp_path, arch):
    check_alike(rows, tmp_path, arch, {})


def test_probes_looked_at_together_are_those_looked_at_alone(rows, tmp_path):
    alone, together = (searched(rows, tmp_path / str(size), size) for size in (1, 2))
    for one, other in zip(alone[0], together[0], strict=True):
        np.testing.assert_allclose(other.losses, one.losses, rtol=1e-5)
        np.testing.assert_allclose(other.gram, one.gram, rtol=1e-3)
    booked = [[(e.step, e.purpose, e.tokens, e.flops) for e in found[1].entries] for found in (alone, together)]
    assert booked[0] == booked[1]
    left = [
        sorted(p.relative_to(tmp_path / size).as_posix() for p in (tmp_path / size).rglob("*.json")) for size in "12"
    ]
    assert left[0] == left[1]  # no record or checkpoint of the batch stays


@pytest.mark.parametrize("ends", ["keep probes", "record"], ids=["while they are kept", "between their records"])
def test_killed_it_ends_as_unbroken(rows, tmp_path, monkeypatch, ends):
    searched(rows, tmp_path / "whole", 2)
    seen = []

    def dying(name, kind):
        seen.append(name)
        if name == ends and len([n for n in seen if n == ends]) == 2:
            raise KeyboardInterrupt
        return contextlib.nullcontext()

    monkeypatch.setattr(at_once if ends == "keep probes" else store_module, "span", dying)
    with pytest.raises(KeyboardInterrupt):
        searched(rows, tmp_path / "killed", 2)
    monkeypatch.undo()
    searched(rows, tmp_path / "killed", 2)
    names = sorted(p.relative_to(tmp_path / "whole") for p in (tmp_path / "whole").rglob("*.safetensors"))
    assert len(names) == 2 * 2
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()


def test_a_record_of_a_batch_is_not_taken_for_what_was_trained_in_its_place(rows, tmp_path, monkeypatch):
    """A run killed before its probes had records, then another in the same folder, then the first again."""
    first = searched(rows, tmp_path / "first", 2)[0]
    monkeypatch.setattr(Batches, "result", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        searched(rows, tmp_path / "x", 2)
    monkeypatch.undo()
    searched(rows, tmp_path / "x", 2, seed=1)
    again = searched(rows, tmp_path / "x", 2)[0]
    np.testing.assert_array_equal(again[1].losses, first[1].losses)


REFUSED = {
    "`probes.kind` is not `lora`": {"settings": ProbeSettings(steps=STEPS, kind="full")},
    "a trainer of its own": {"make_trainer": lambda spec: None},
    "conversations": {"objective": SFT},
    "`document_mask`": {"document_mask": True},
    "experts": {"arch": "mixtral"},
    "`trainer.optim` is adafactor": {"trainer": TRAINER | {"optim": "adafactor"}},
    "`trainer.auto_find_batch_size` is set": {"trainer": TRAINER | {"auto_find_batch_size": True}},
    "names an embedding": {"settings": ProbeSettings(steps=STEPS, target_modules=("q_proj", "embed_tokens"))},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_go_together_is_said(rows, tmp_path, why):
    given = dict(REFUSED[why])
    model = model_of(**{k: given.pop(k) for k in ("arch",) if k in given})
    runtime = runtime_of(rows, model, **{k: given.pop(k) for k in ("make_trainer", "objective") if k in given})
    assert why in (why_one_by_one(task_of(tmp_path, **given), runtime) or "")


def test_where_probes_cannot_go_together_they_are_trained_one_by_one_and_it_is_said(rows, tmp_path):
    told = []
    found = searched(rows, tmp_path, 2, told=told, kind="full")[0]
    assert len(found[1].points) == 2
    assert told == ["probes.at_once: 2, but probes are trained one by one: `probes.kind` is not `lora`"]
