"""Proxies are exact: they are what PEFT computes, linear in the weights, and leave nothing behind."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from rounding import ROUNDINGS, assert_same_up_to_rounding
from torch import nn

from opmix.errors import AdapterError
from opmix.mixing.mixture import InterpolationWeights, Mixture
from opmix.models.layers import base_parameters, model_fingerprint
from opmix.models.load import load_model
from opmix.probes.adapters import DeltaSet, _differences
from opmix.probes.interpolation import MergeProxies, ScaleProxies, make_proxies
from opmix.probes.preserve_state import preserve_model_state
from opmix.testing import tiny_adapter, tiny_model

EPS = torch.finfo(torch.float32).eps
TINY = EPS * torch.finfo(torch.float32).tiny
IDS = torch.randint(2, 128, (3, 24), generator=torch.Generator().manual_seed(0))
FULL = {"modules_to_save": ["lm_head"]}
EMBED = {"target_modules": ["embed_tokens", "q_proj"]}

CASES = {
    "llama": ("llama", {}, {}, {}),
    "gpt2 (Conv1D)": ("gpt2", {}, {}, {}),
    "gpt_neox": ("gpt_neox", {}, {}, {}),
    "qwen2": ("qwen2", {}, {}, {}),
    "mixtral": ("mixtral", {}, {}, {}),
    "gemma2": ("gemma2", {}, {}, {}),
    "rslora": ("llama", {"use_rslora": True, "r": 8}, {"use_rslora": True, "r": 2}, {}),
    "patterns": ("llama", {"alpha_pattern": {"q_proj": 32}, "rank_pattern": {"v_proj": 2}}, {}, {}),
    "other targets": ("llama", {"target_modules": ["q_proj"]}, {"target_modules": ["up_proj", "q_proj"]}, {}),
    "embedding": ("llama", EMBED, {}, {}),
    "tied embedding": ("llama", EMBED, {}, {"tie_word_embeddings": True}),
    "lm_head in full": ("llama", FULL, FULL, {}),
    "norm in full": ("llama", {"modules_to_save": ["norm"]}, {}, {}),
    "tied embedding in full": (
        "llama",
        {"modules_to_save": ["embed_tokens"]},
        {},
        {"tie_word_embeddings": True},
    ),
    "both tied sides in full": (
        "llama",
        {"modules_to_save": ["embed_tokens", "lm_head"]},
        {},
        {"tie_word_embeddings": True},
    ),
}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits.clone()


def probes(arch="llama", a=None, b=None, **overrides):
    model = tiny_model(arch, **overrides)
    return tiny_adapter(tiny_adapter(model, "a", 1, **(a or {})), "b", 2, **(b or {}))


# The others differ in where adapters sit, not in what is computed: they are looked at with the slow tests.
QUICK = {"llama", "gpt2 (Conv1D)", "tied embedding", "lm_head in full", "both tied sides in full"}


@pytest.fixture(params=[pytest.param(name, marks=() if name in QUICK else pytest.mark.slow, id=name) for name in CASES])
def case(request):
    arch, a, b, overrides = CASES[request.param]
    return probes(arch, a, b, **overrides)


def test_one_hot_weights_are_the_probe_and_zero_is_the_base(case):

    def alone(name):
        case.set_adapter(name)
        return logits(case)

    with case.disable_adapter():
        base = logits(case)
    before = model_fingerprint(case)
    proxies = make_proxies(case, ["a", "b"], backend="merge")
    for index, name in enumerate("ab"):
        with proxies.at_vector(np.eye(2)[index]) as model:
            found = logits(model)
        assert_same_up_to_rounding(found, partial(alone, name), case)
    with proxies.at_vector(np.zeros(2)) as model:
        assert torch.equal(logits(model), base)
    assert model_fingerprint(case) == before


def test_merge_equals_scale_or_scale_refuses(case):
    merge = make_proxies(case, ["a", "b"], backend="merge")
    if any(case.peft_config[name].modules_to_save for name in "ab"):
        with pytest.raises(AdapterError, match="in full"):
            make_proxies(case, ["a", "b"], backend="scale")
        return
    scale = make_proxies(case, ["a", "b"], backend="scale")

    def simulated(proxies, weights):
        with proxies.at_vector(np.array(weights)) as model:
            return logits(model)

    for weights in ([0.3, 0.7], [-1.0, 2.0]):
        assert_same_up_to_rounding(simulated(merge, weights), partial(simulated, scale, weights), case)


@pytest.mark.parametrize("arch", ["llama", *(pytest.param(a, marks=pytest.mark.slow) for a in ("gpt2", "qwen2"))])
def test_untied_one_hot_equals_merge_and_unload(arch):
    wrapped = probes(arch)
    with make_proxies(wrapped, ["a", "b"]).at(InterpolationWeights(("a", "b"), [0, 1])) as model:
        ours = logits(model)
    wrapped.set_adapter("b")

    def unloaded():
        return logits(copy.deepcopy(wrapped).merge_and_unload(adapter_names=["b"]))

    assert_same_up_to_rounding(ours, unloaded, wrapped)


@settings(max_examples=15, deadline=None)
@given(
    u=st.lists(st.floats(-2, 2), min_size=2, max_size=2),
    v=st.lists(st.floats(-2, 2), min_size=2, max_size=2),
    factor=st.floats(-3, 3),
)
def test_deltas_are_linear(u, v, factor):
    deltas = DELTAS
    u, v = np.array(u), np.array(v)
    for name in deltas.deltas:
        together = deltas.delta(name, u + factor * v)
        apart = deltas.delta(name, u) + factor * deltas.delta(name, v)
        sizes = [float(deltas.delta(name, probe).abs().max()) for probe in np.eye(2)]
        largest = float((np.abs(u) + abs(factor) * np.abs(v)) @ sizes)  # of the terms that are summed
        # Below the smallest normal number a rounding is no longer a share of what is rounded.
        torch.testing.assert_close(together, apart, rtol=0, atol=ROUNDINGS * (EPS * largest + TINY))


DELTAS = DeltaSet.from_peft(probes("llama", FULL, {"use_rslora": True, "r": 3}), ["a", "b"])


def test_gram_equals_the_products_of_the_deltas_themselves():
    deltas = DeltaSet.from_peft(probes("llama", FULL, {**FULL, "r": 3}), ["a", "b"])
    full = [{n: deltas.delta(n, np.eye(2)[i]).double() for n in deltas.deltas} for i in range(2)]
    expected = [[sum(float((p[n] * q[n]).sum()) for n in p) for q in full] for p in full]
    np.testing.assert_allclose(deltas.gram(), expected, rtol=0, atol=ROUNDINGS * EPS * np.max(expected))


@torch.no_grad()
def test_the_difference_to_pefts_linear_combination():
    """`combination_type="linear"` sums A's and B's apart; the products then have cross terms A_i B_j."""
    wrapped = probes()
    deltas = DeltaSet.from_peft(wrapped, ["a", "b"])
    wrapped.add_weighted_adapter(["a", "b"], [0.3, 0.7], "peft", combination_type="linear")
    worst_peft = worst_ours = 0.0
    for path, layer in wrapped.get_base_model().named_modules():
        if isinstance(layer, LoraLayer):
            exact = sum(
                w * layer.scaling[n] * layer.lora_B[n].weight.double() @ layer.lora_A[n].weight.double()
                for n, w in (("a", 0.3), ("b", 0.7))
            )
            ours = deltas.delta(f"{path}.weight", np.array([0.3, 0.7])).double()
            worst_ours = max(worst_ours, float((ours - exact).norm() / exact.norm()))
            theirs = layer.get_delta_weight("peft").double()
            worst_peft = max(worst_peft, float((theirs - exact).norm() / exact.norm()))
    assert worst_ours < ROUNDINGS * EPS
    assert worst_peft > 0.5


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("backend", ["merge", "scale"])
def test_nothing_stays_after_an_error(backend, error):
    wrapped = probes()
    wrapped.set_adapter("a")
    before, flags = model_fingerprint(wrapped), [p.requires_grad for p in wrapped.parameters()]
    alone = logits(wrapped)
    with pytest.raises(error), make_proxies(wrapped, ["a", "b"], backend=backend).at_vector(np.ones(2)):
        raise error
    assert model_fingerprint(wrapped) == before
    assert [p.requires_grad for p in wrapped.parameters()] == flags
    assert torch.equal(logits(wrapped), alone)


def test_an_interrupt_while_restoring_is_made_good(monkeypatch):
    wrapped = probes()
    before = model_fingerprint(wrapped)
    from opmix.probes import merging

    restore, calls = merging._Place.restore, []

    def interrupted(place):
        calls.append(place)
        if len(calls) == 3:
            raise KeyboardInterrupt
        restore(place)

    monkeypatch.setattr(merging._Place, "restore", interrupted)
    with pytest.raises(KeyboardInterrupt), make_proxies(wrapped, ["a", "b"]).at_vector(np.ones(2)):
        pass
    assert model_fingerprint(wrapped) == before


def test_bf16_base_with_float32_adapters():
    model = tiny_model().to(torch.bfloat16)
    wrapped = tiny_adapter(tiny_adapter(model, "a", 1), "b", 2)
    before = model_fingerprint(wrapped)
    deltas = DeltaSet.from_peft(wrapped, ["a", "b"])
    weights = np.array([0.4, 0.6])
    expected = {
        n: (p.float() + deltas.delta(n, weights)).to(torch.bfloat16)
        for n, p in base_parameters(wrapped)
        if n in deltas.deltas
    }
    proxies = make_proxies(wrapped, ["a", "b"])
    for _ in range(3):
        with proxies.at_vector(weights):
            merged = dict(base_parameters(wrapped))
            assert all(torch.equal(merged[n], value) for n, value in expected.items())
    assert model_fingerprint(wrapped) == before
    # In float32 the rounding of the merged weights to bf16 is gone too.
    with MergeProxies(wrapped, deltas, dtype=torch.float32).at_vector(weights):
        merged = dict(base_parameters(wrapped))
        assert all(merged[n].dtype == torch.float32 for n in expected)
        assert any(not torch.equal(merged[n].to(torch.bfloat16).float(), merged[n]) for n in expected)
    assert model_fingerprint(wrapped) == before


def test_training_settings_do_not_touch_the_merge():
    wrapped = probes()
    proxies = make_proxies(wrapped, ["a", "b"])
    with proxies.at_vector(np.ones(2)):
        plain = {n: p.clone() for n, p in base_parameters(wrapped)}
    with torch.autocast("cpu", torch.bfloat16), proxies.at_vector(np.ones(2)):
        assert all(torch.equal(plain[n], p) for n, p in base_parameters(wrapped))
        assert torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("backend", ["merge", "scale"])
def test_a_sweep_equals_single_proxies_and_stops_early(backend):
    wrapped = probes()
    before = model_fingerprint(wrapped)
    proxies = make_proxies(wrapped, ["a", "b"], backend=backend)
    points = [InterpolationWeights(("a", "b"), [w, 1 - w]) for w in (0.0, 0.5, 1.0)]
    singles = []
    for point in points:
        with proxies.at(point) as model:
            singles.append(logits(model))
    with proxies.sweep(points) as models:
        swept = [logits(model) for model in models]
    assert all(torch.equal(a, b) for a, b in zip(singles, swept, strict=True))
    with proxies.sweep(points) as models:
        next(models)
    assert model_fingerprint(wrapped) == before


def test_entering_twice_is_refused_also_through_another_object():
    wrapped = probes()
    one, two = make_proxies(wrapped, ["a", "b"]), make_proxies(wrapped, ["a", "b"], backend="scale")
    with (
        one.at_vector(np.ones(2)),
        pytest.raises(AdapterError, match="inside a proxy already"),
        two.at_vector(np.ones(2)),
    ):
        pass
    with two.at_vector(np.ones(2)):
        pass


def test_weights_must_be_over_these_probes():
    proxies = make_proxies(probes(), ["a", "b"])
    with pytest.raises(TypeError, match="InterpolationWeights"):
        proxies.at(Mixture.of({"a": 1.0}))
    with pytest.raises(AdapterError, match="over probes"):
        proxies.at(InterpolationWeights.of({"b": 0.5, "a": 0.5}))
    with pytest.raises(AdapterError, match="finite numbers"), proxies.at_vector(np.array([np.nan, 1])):
        pass


REFUSED = {
    "use_dora": {"use_dora": True},
    "lora_bias": {"lora_bias": True},
    "bias='all'": {"bias": "all"},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "olora"},
    "trainable_token_indices": {"trainable_token_indices": [3]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3]},
}


@pytest.mark.parametrize("what", REFUSED)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::peft.utils.warning.PeftWarning")
def test_what_is_not_linear_is_refused_by_name(what):
    arch = "qwen2" if what == "lora_bias" else "llama"
    extra = {"target_modules": ["q_proj", "v_proj"]}
    wrapped = tiny_adapter(tiny_model(arch), "a", 1, **extra, **REFUSED[what])
    for backend in ("merge", "scale"):
        with pytest.raises(AdapterError, match=what):
            make_proxies(wrapped, ["a"], backend=backend)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_fused_experts_and_merged_adapters_are_refused():
    extra = {"target_modules": ["q_proj"], "target_parameters": ["mlp.experts.gate_up_proj"]}
    with pytest.raises(AdapterError, match="target_parameters"):
        make_proxies(tiny_adapter(tiny_model("mixtral"), "a", 1, **extra), ["a"])
    wrapped = tiny_adapter(tiny_model(), "a", 1)
    wrapped.merge_adapter()
    with pytest.raises(AdapterError, match="unmerge it first"):
        make_proxies(wrapped, ["a"])
    with pytest.raises(AdapterError, match="not loaded"):
        make_proxies(wrapped, ["c"])


@pytest.mark.parametrize(
    "lora",
    [
        {},
        EMBED,
        *(
            pytest.param(c, marks=pytest.mark.slow)
            for c in ({"use_rslora": True}, FULL, {"rank_pattern": {"q_proj": 2}})
        ),
    ],
)
def test_folders_give_the_same_deltas_and_leave_the_base_alone(lora, tmp_path):
    wrapped = probes("llama", lora)
    wrapped.save_pretrained(tmp_path, save_embedding_layers=False)
    expected = DeltaSet.from_peft(wrapped, ["a", "b"])
    base = tiny_model()
    state = (model_fingerprint(base), [p.requires_grad for p in base.parameters()], str(base))
    deltas = DeltaSet.from_folders(base, {"a": tmp_path / "a", "b": tmp_path / "b"})
    assert deltas.deltas.keys() == expected.deltas.keys()
    for name in expected.deltas:
        for weights in np.eye(2):
            assert torch.equal(deltas.delta(name, weights), expected.delta(name, weights))
    assert state == (model_fingerprint(base), [p.requires_grad for p in base.parameters()], str(base))
    with make_proxies(base, deltas=deltas).at_vector(np.array([0, 1.0])) as model:
        found = logits(model)
    wrapped.set_adapter("b")
    assert_same_up_to_rounding(found, lambda: logits(wrapped), wrapped)


@pytest.mark.parametrize(
    ("other", "match"),
    [
        ({"hidden_size": 64}, r"down_proj.*\(32, 4\).*\(64, 4\)"),
        ({"num_hidden_layers": 3}, r"layers\.2.*not there"),
        ({"num_hidden_layers": 1}, r"layers\.1.*no such layer"),
    ],
)
def test_adapters_of_another_base_are_refused_with_layer_and_shapes(other, match, tmp_path):
    tiny_adapter(tiny_model(), "a", 1).save_pretrained(tmp_path)
    with pytest.raises(AdapterError, match=match):
        DeltaSet.from_folders(tiny_model(**other), {"a": tmp_path / "a"})
    deltas = DeltaSet.from_folders(tiny_model(), {"a": tmp_path / "a"})
    if "num_hidden_layers" not in other or other["num_hidden_layers"] == 1:
        with pytest.raises(AdapterError, match="expected the base model"):
            MergeProxies(tiny_model(**other), deltas)
    with pytest.raises(AdapterError, match=r"adapter_config\.json"):
        DeltaSet.from_folders(tiny_model(), {"a": tmp_path})


def test_quantised_models_are_not_merged_into():
    wrapped = probes()
    wrapped.get_base_model().is_quantized = True
    assert isinstance(make_proxies(wrapped, ["a", "b"]), ScaleProxies)
    with pytest.raises(AdapterError, match="quantised"):
        make_proxies(wrapped, ["a", "b"], backend="merge")


def test_weights_trained_between_two_proxies_are_kept():
    wrapped = probes()
    proxies = make_proxies(wrapped, ["a", "b"])
    with proxies.at_vector(np.ones(2)):
        pass
    with torch.no_grad():
        for _, parameter in base_parameters(wrapped):
            parameter.mul_(1.01)
    trained = model_fingerprint(wrapped)
    with proxies.at_vector(np.ones(2)):
        pass
    assert model_fingerprint(wrapped) == trained


def test_the_base_comes_back_from_under_adapters_where_unload_does_not_give_it(tmp_path):
    base = tiny_model()
    before = model_fingerprint(base)
    with preserve_model_state(base):
        tiny_adapter(base, "a", 1, **FULL)
    assert model_fingerprint(base) == before
    base.save_pretrained(tmp_path)
    assert model_fingerprint(load_model(tmp_path, device="cpu")) == before
    assert model_fingerprint(tiny_adapter(tiny_model(), "a", 1, **FULL).unload()) != before


def test_differences_lie_where_the_model_does_though_the_file_was_read_elsewhere():
    wrapped = ModulesToSaveWrapper(nn.Embedding(4, 2, device="meta"), "a")
    wrapped.modules_to_save["a"] = nn.Embedding(4, 2)
    (_, difference, shape), *more = _differences(wrapped, ["a"])
    assert (difference[0].device.type, shape, more) == ("meta", (4, 2), [])
