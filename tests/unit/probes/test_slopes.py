"""Slopes of the loss by interpolation weights: exact on both back ends and every architecture, by sequence, nothing left behind."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opmix.errors import TrainingError
from opmix.mixing.mixture import InterpolationWeights
from opmix.models import base_modules, model_shape
from opmix.probes.adapters import DeltaSet
from opmix.probes.evaluation import HeldOut, evaluate, evaluate_proxies
from opmix.probes.interpolation import make_proxies
from opmix.probes.slopes import evaluate_mixed, evaluate_slopes
from opmix.testing import ARCHITECTURES, tiny_adapter, tiny_model

IDS = np.random.default_rng(0).integers(2, 128, (5, 24))
PLAIN = HeldOut("plain", IDS, np.full(5, 50.0))
NAMES = ("a", "b", "c")
POINT = np.array([0.5, 0.2, 0.3])


def masked():
    labels = IDS.copy()
    labels[:, :9] = -100
    labels[2] = -100
    return HeldOut("masked", IDS, np.full(5, 50.0), labels=labels)


def probed(arch="llama", **lora):
    model = tiny_model(arch)
    for seed, name in enumerate(NAMES):
        model = tiny_adapter(model, name, seed, **lora)
    return model


def slopes_of(model, *, backend="merge", held_out=(PLAIN,), **options):
    deltas = DeltaSet.from_peft(model, NAMES)
    proxies = make_proxies(model, NAMES, backend=backend)
    return evaluate_slopes(proxies, deltas, [InterpolationWeights(NAMES, POINT)], list(held_out), **options)


def differences(model, held_out=(PLAIN,), step=1e-3):
    """Central differences of the loss by each weight, (E, P), in float64."""
    model = model.double()
    proxies = make_proxies(model, NAMES, backend="scale")
    found = []
    for k in range(len(NAMES)):
        ends = []
        for sign in (1, -1):
            with proxies.at_vector(POINT + sign * step * np.eye(len(NAMES))[k]) as proxy:
                ends.append(evaluate(proxy, list(held_out)).losses[0])
        found.append((ends[0] - ends[1]) / (2 * step))
    return np.array(found).T


def dense(model):
    """The plain road, (1, P): the loss's gradient by every whole weight, times every delta weight."""
    deltas = DeltaSet.from_peft(model, NAMES)
    ids = torch.as_tensor(IDS)
    with make_proxies(model, NAMES).at(InterpolationWeights(NAMES, POINT)) as proxy:
        modules = dict(base_modules(model))
        weights = {n: modules[n.rpartition(".")[0]].weight for n in deltas.deltas}
        for weight in weights.values():
            weight.requires_grad_(True)
        gradients = torch.autograd.grad(proxy(input_ids=ids, labels=ids).loss, list(weights.values()))
    by_name = dict(zip(weights, gradients, strict=True))
    return np.array(
        [[sum(float((by_name[n] * deltas.delta(n, one)).sum()) for n in weights) for one in np.eye(len(NAMES))]]
    )


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_slopes_are_the_losses_own(arch):
    model = probed(arch)
    held_out = (PLAIN, masked())
    merged, scaled = (slopes_of(model, backend=b, held_out=held_out) for b in ("merge", "scale"))
    assert np.allclose(merged.gradients, scaled.gradients, rtol=1e-4, atol=1e-5)
    # Routing jumps between experts and has no float64 kernel, so differences say nothing there.
    assert np.allclose(merged.gradients[0, :1], dense(model), rtol=2e-4, atol=2e-6)
    if arch not in ("mixtral", "qwen2_moe"):
        assert np.allclose(merged.gradients[0], differences(model, held_out), rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize(
    "lora",
    [
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head", "norm"]},
        {"target_modules": ["embed_tokens", "down_proj"]},
        {"target_modules": ["lm_head", "v_proj"]},
        {"target_modules": ["lm_head"], "use_rslora": True},
    ],
)
def test_heads_embeddings_and_modules_trained_in_full(lora):
    full = "modules_to_save" in lora
    model = probed(**lora)
    found = slopes_of(model).gradients[0]
    deltas = DeltaSet.from_peft(model, NAMES)
    proxies = make_proxies(model, deltas=deltas) if full else make_proxies(model, NAMES)
    numeric = []
    for k in range(3):
        ends = []
        for sign in (1, -1):
            with proxies.at_vector(POINT + sign * 1e-2 * np.eye(3)[k]) as proxy:
                ends.append(evaluate(proxy, [PLAIN]).losses[0])
        numeric.append((ends[0] - ends[1]) / 2e-2)
    assert np.allclose(found, np.array(numeric).T, rtol=2e-2, atol=3e-4)
    assert np.abs(found).max() > 1e-3


def test_sequences_add_up_and_batches_do_not_matter():
    model = probed()
    whole, single = slopes_of(model), slopes_of(model, batch_tokens=1)
    assert whole.slopes[0].shape == (1, 5, 3)
    assert np.allclose(whole.slopes[0], single.slopes[0], rtol=1e-4, atol=1e-4)
    assert np.allclose(whole.gradients[0, 0], whole.slopes[0][0].sum(axis=0) / PLAIN.tokens.sum())
    with make_proxies(model, NAMES).at(InterpolationWeights(NAMES, POINT)) as proxy:
        assert np.allclose(whole.losses, evaluate(proxy, [PLAIN]).losses, rtol=1e-5)


def test_points_with_and_without_slopes_keep_their_places():
    model = probed()
    deltas, proxies = DeltaSet.from_peft(model, NAMES), make_proxies(model, NAMES)
    points = [InterpolationWeights(NAMES, w) for w in (*np.eye(3), POINT)]
    told = []
    mixed, steep = evaluate_mixed(
        proxies, deltas, points, (3, 0), [PLAIN, masked()], progress=lambda *a: told.append(a)
    )
    assert np.allclose(mixed.losses, evaluate_proxies(proxies, points, [PLAIN, masked()]).losses, rtol=1e-5)
    assert np.allclose(steep.losses, mixed.losses[[3, 0]])
    assert sorted(told) == [(i, 4) for i in (1, 2, 3, 4)]
    assert evaluate_mixed(proxies, deltas, points[:1], (), [PLAIN])[1] is None
    assert np.allclose(evaluate_mixed(proxies, deltas, points[3:], (0,), [PLAIN])[0].losses, mixed.losses[3:, :1])


def test_the_model_is_given_back_as_it_was():
    model = probed()
    before = {n: (p.detach().clone(), p.requires_grad) for n, p in model.named_parameters()}
    slopes_of(model)
    slopes_of(model, backend="scale")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name][0]), name
        assert parameter.requires_grad == before[name][1]
        assert parameter.grad is None
    assert not any(module._forward_hooks for module in model.modules())


def test_a_diverged_probe_is_named():
    model = probed()
    with torch.no_grad():
        next(p for n, p in model.named_parameters() if "lora_B.b" in n).fill_(float("nan"))
    with pytest.raises(TrainingError, match="plain"):
        slopes_of(model)


def test_the_cost_is_what_the_ledger_says():
    model = probed()
    deltas, proxies = DeltaSet.from_peft(model, NAMES), make_proxies(model, NAMES)
    with proxies.at(InterpolationWeights(NAMES, POINT)) as proxy, FlopCounterMode(display=False) as plain:
        evaluate(proxy, [PLAIN])
    with FlopCounterMode(display=False) as counter:
        evaluate_slopes(proxies, deltas, [InterpolationWeights(NAMES, POINT)], [PLAIN])
    adapters = sum(d.left.numel() + d.right.numel() for d in deltas.deltas.values())
    ours = IDS.size * model_shape(model).slopes(24, adapters)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.15), (plain.get_total_flops(), adapters)
