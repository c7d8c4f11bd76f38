"""The user's model is given back bit for bit, or refused before any work, whatever state it is in."""

import copy
import random
from functools import partial, wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from probe_tasks import model_of, runtime_of, task_of
from torch import nn

from opmix.errors import ModelError, TrainingError
from opmix.probes.kinds import ADAPTERS
from opmix.probes.preserve_state import plain_model, preserve_model_state
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import train_probe
from opmix.testing import tiny_adapter, tiny_model

IDS = torch.randint(2, 128, (2, 12), generator=torch.Generator().manual_seed(0))
SETTINGS = ProbeSettings(steps=2, rank=2)


def plain(model):
    return model


def training(model):
    return model.train()


def frozen_parts(model):
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


def with_gradients(model):
    model(input_ids=IDS, labels=IDS).loss.backward()
    return model


def checkpointing(model):
    model.gradient_checkpointing_enable()
    return model.train()


def cache_off(model):
    model.config.use_cache = False
    return model


def hooked(model):
    model.seen = []
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: output * 1.5)
    model.get_output_embeddings().register_forward_pre_hook(lambda module, inputs: model.seen.append(1))
    return model


def patched(model):
    model.forward = wraps(type(model).forward)(partial(type(model).forward, model))
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


CASES = [
    plain,
    training,
    frozen_parts,
    with_gradients,
    checkpointing,
    cache_off,
    hooked,
    patched,
    compiled_in_place,
]


def slow_are(cases):
    return [pytest.param(case, marks=pytest.mark.slow if case in cases else ()) for case in CASES]


TIED = {"tie_word_embeddings": True}


def state_of(model):
    """Everything that must not change, as values."""
    modules = dict(model.named_modules())
    return {
        "weights": {name: tensor.detach().clone() for name, tensor in model.state_dict().items()},
        "parameters": {name: id(p) for name, p in model.named_parameters(remove_duplicate=False)},
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "gradients": {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()},
        "modules": {name: (id(module), module.training, sorted(vars(module))) for name, module in modules.items()},
        "hooks": {name: [*m._forward_hooks.values(), *m._forward_pre_hooks.values()] for name, m in modules.items()},
        "config": copy.deepcopy(vars(model.config)),
        "generation": copy.deepcopy(vars(model.generation_config)),
        "forward": vars(model).get("forward"),
        "compiled": vars(model).get("_compiled_call_impl"),
        "random": (torch.random.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),  # noqa: NPY002
    }


def assert_same(one, other):
    tensors = ("weights", "gradients", "random")
    for what in one:
        if what not in tensors:
            assert one[what] == other[what], what
    assert torch.equal(one["random"][0], other["random"][0])
    assert one["random"][1:] == other["random"][1:]
    for what in ("weights", "gradients"):
        assert one[what].keys() == other[what].keys()
        for name, tensor in one[what].items():
            there = other[what][name]
            assert tensor is there if tensor is None or there is None else torch.equal(tensor, there), (what, name)


@pytest.mark.parametrize("made", [{}, pytest.param(TIED, marks=pytest.mark.slow)], ids=["untied", "tied"])
@pytest.mark.parametrize("case", slow_are({compiled_in_place}), ids=lambda case: case.__name__)
def test_the_model_comes_back_bit_for_bit_after_a_probe(rows, tmp_path, case, made):
    model = case(model_of(**made))
    before = state_of(model)
    train_probe(task_of(tmp_path, settings=SETTINGS), runtime_of(rows, model))
    assert_same(state_of(model), before)


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt, pytest.param(TrainingError, marks=pytest.mark.slow)], ids=["interrupted", "diverged"]
)
@pytest.mark.parametrize("case", slow_are(set(CASES) - {plain, frozen_parts, hooked}), ids=lambda case: case.__name__)
def test_the_model_comes_back_bit_for_bit_from_the_middle_of_a_probe(rows, tmp_path, monkeypatch, case, error):
    model = case(model_of())
    before = state_of(model)

    def stopped(*given):
        raise error

    monkeypatch.setattr(type(ADAPTERS), "save", stopped)
    with pytest.raises(error):
        train_probe(task_of(tmp_path, settings=SETTINGS), runtime_of(rows, model))
    assert_same(state_of(model), before)


def test_handles_of_hooks_stay_valid(rows, tmp_path):
    model = model_of()
    seen = []
    handle = model.lm_head.register_forward_hook(lambda *given: seen.append(1))
    train_probe(task_of(tmp_path, settings=SETTINGS), runtime_of(rows, model))
    handle.remove()
    seen.clear()
    model(input_ids=IDS)
    assert seen == []


def test_configurations_inside_others_come_back():
    model = tiny_model()
    model.config.text_config = type(model.config)(use_cache=True)
    with preserve_model_state(model):
        model.config.text_config.use_cache = model.config.use_cache = False
        model.generation_config.max_length = 3
    assert model.config.text_config.use_cache
    assert model.config.use_cache
    assert model.generation_config.max_length != 3


def test_models_that_cannot_be_given_back_are_refused_with_a_remedy():
    with pytest.raises(ModelError, match="merge_and_unload"):
        plain_model(tiny_adapter(tiny_model(), "mine"))
    injected = tiny_adapter(tiny_model(), "mine").get_base_model()
    with pytest.raises(ModelError, match="PEFT adapters"):
        plain_model(injected)
    with pytest.raises(ModelError, match="Linear"):
        plain_model(nn.Linear(2, 2))
    with pytest.raises(ModelError, match="offloaded"):
        plain_model(tiny_model().to("meta"))
    model = tiny_model()
    assert plain_model(torch.compile(model, backend="eager")) is model


def test_weights_that_bitsandbytes_packed_anew_are_refused_and_none_are_meanwhile():
    """On processors with AVX512-BF16 it does so wherever 4-bit weights are evaluated, and what unpacks them reads other values."""
    model = tiny_model()
    layer = model.model.layers[0].self_attn.q_proj
    layer.support_avx512bf16_for_cpu = True
    with preserve_model_state(model):
        assert not layer.support_avx512bf16_for_cpu
    assert layer.support_avx512bf16_for_cpu
    assert plain_model(model) is model
    layer.weight.quant_state = SimpleNamespace(packing_format_for_cpu=True)
    with pytest.raises(ModelError, match=r"q_proj: bitsandbytes has packed its weights anew"):
        plain_model(model)
