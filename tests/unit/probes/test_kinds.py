"""What every kind of probe keeps to: exact at its own vertex and between, resumable, and the model given back."""

import copy

import numpy as np
import pytest
import torch
from probe_tasks import NEW, OLD, STEPS, held_out, model_of, runtime_of, task_of

from opmix.errors import AdapterError
from opmix.models.layers import base_parameters, model_fingerprint
from opmix.probes.evaluation import evaluate
from opmix.probes.kinds import Attached, kind_of
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import probe_arguments, train_probe

KINDS = ["lora", "lora+embeddings", "full"]
IDS = torch.randint(2, 128, (2, 12), generator=torch.Generator().manual_seed(0))
FEW_ROUNDINGS = 2e-5
"""Logits are of order 1 and sums of some hundred float32 products; probes move them by some tenths."""


def settings_of(kind):
    return ProbeSettings(steps=STEPS, rank=2, kind=kind)


def logits_of(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits.clone()


@pytest.fixture(params=[pytest.param(False, marks=pytest.mark.slow), True], ids=["untied", "tied"])
def tied(request):
    return request.param


@pytest.mark.parametrize("kind", [pytest.param(k, marks=() if "+" in k else pytest.mark.slow) for k in KINDS])
def test_interpolation_is_exact_at_the_trained_models_and_linear_in_weights_between(
    rows, tmp_path, monkeypatch, kind, tied
):
    model = model_of(tie_word_embeddings=tied)
    before, settings, trained = model_fingerprint(model), settings_of(kind), []
    folders, real = [], Attached.__init__

    def remembering(self, **given):
        save = given["save"]

        def saved(folder):
            trained.append(logits_of(given["model"]))
            save(folder)

        real(self, **{**given, "save": saved})

    monkeypatch.setattr(Attached, "__init__", remembering)
    for probe, mixture in (("old", OLD), ("new", NEW)):
        task = task_of(tmp_path, probe, mixture, settings)
        train_probe(task, runtime_of(rows, model))
        folders.append(task.out)
    assert model_fingerprint(model) == before
    with kind_of(settings).interpolated(model, settings, folders, "auto") as (proxies, gram):
        with proxies.at_vector(np.zeros(2)) as proxy:
            start = {name: p.detach().clone() for name, p in base_parameters(proxy)}
        moved = []
        for weights, expected in zip(([1.0, 0.0], [0.0, 1.0]), trained, strict=True):
            with proxies.at_vector(np.array(weights)) as proxy:
                torch.testing.assert_close(logits_of(proxy), expected, rtol=0, atol=FEW_ROUNDINGS)
                moved.append({n: p.detach() - start[n] for n, p in base_parameters(proxy)})
        with proxies.at_vector(np.array([0.5, 0.5])) as proxy:
            for name, p in base_parameters(proxy):
                middle = start[name] + 0.5 * (moved[0][name] + moved[1][name])
                torch.testing.assert_close(p, middle, rtol=0, atol=FEW_ROUNDINGS)
        assert gram.shape == (2, 2)
        assert gram[0, 0] > 0
    assert model_fingerprint(model) == before
    assert not torch.equal(trained[0], logits_of(model))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_probe_of_any_kind_looked_at_or_killed_goes_on_to_the_same_bytes(rows, tmp_path, monkeypatch, kind):
    settings, runtime = settings_of(kind), runtime_of(rows)
    before = model_fingerprint(runtime.model)
    train_probe(task_of(tmp_path / "a", settings=settings), runtime)
    train_probe(task_of(tmp_path / "b", settings=settings, stop=2, out=tmp_path / "b" / "old-at-2"), runtime)
    with monkeypatch.context() as patch:
        patch.setattr(type(kind_of(settings)), "save", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train_probe(task_of(tmp_path / "b", settings=settings), runtime)
    assert model_fingerprint(runtime.model) == before
    train_probe(task_of(tmp_path / "b", settings=settings), runtime)
    file = next((tmp_path / "a" / "old").glob("*.safetensors")).name
    whole, looked = (tmp_path / run / "old" / file for run in "ab")
    assert whole.read_bytes() == looked.read_bytes()
    assert kind_of(settings).is_whole(whole.parent)
    assert (tmp_path / "b" / "old-at-2" / file).read_bytes() != whole.read_bytes()
    assert model_fingerprint(runtime.model) == before


def test_full_probes_move_only_what_may_be_trained_and_at_the_trainers_own_rate(rows, tmp_path):
    model, settings = model_of(), settings_of("full")
    model.get_input_embeddings().weight.requires_grad_(False)
    task = task_of(tmp_path, settings=settings)
    train_probe(task, runtime_of(rows, model))
    plain = evaluate(model, held_out(rows)).losses
    frozen = model.get_input_embeddings().weight.clone()
    with (
        kind_of(settings).interpolated(model, settings, [task.out], "auto") as (proxies, _),
        proxies.at_vector(np.ones(1)) as proxy,
    ):
        assert torch.equal(proxy.get_input_embeddings().weight, frozen)
        assert evaluate(proxy, held_out(rows)).losses.mean() < plain.mean()
    rates = [probe_arguments(settings_of(kind), {"learning_rate": 1e-3})["learning_rate"] for kind in KINDS]
    assert rates == [2e-3, 2e-3, 1e-3]
    model.requires_grad_(False)
    with pytest.raises(AdapterError, match=r"probes\.kind: lora"):
        train_probe(task, runtime_of(rows, model))


def test_weights_that_cannot_be_written_are_told_before_a_probe_is_trained():
    from transformers import AutoModelForCausalLM

    from opmix.probes.kinds import check_probes
    from opmix.testing import tiny_model

    full, model = ProbeSettings(kind="full"), tiny_model("llama")
    check_probes(model, full)
    with torch.device("meta"):
        likeness = AutoModelForCausalLM.from_config(copy.deepcopy(model.config))
    check_probes(likeness, full)
    for packed in (model, likeness):
        packed.config.quantization_config = {"quant_method": "gptq", "bits": 4}
        with pytest.raises(AdapterError, match="its weights are quantised"):
            check_probes(packed, full)
