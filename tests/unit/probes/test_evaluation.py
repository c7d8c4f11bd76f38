"""Held-out losses equal the models' own, per sequence and paired; KL between proxies."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from rounding import assert_same_up_to_rounding

from opmix.errors import DataError, TrainingError
from opmix.mixing.mixture import InterpolationWeights
from opmix.mixing.paired import loss_difference_error
from opmix.models import heads
from opmix.probes import token_losses
from opmix.probes.evaluation import HeldOut, evaluate, evaluate_proxies, predictive_kl
from opmix.probes.interpolation import make_proxies
from opmix.testing import ARCHITECTURES, tiny_adapter, tiny_model

IDS = np.random.default_rng(0).integers(2, 128, (10, 40))
BYTES = np.full(10, 90.0)


def plain(name="plain"):
    return HeldOut(name, IDS, BYTES)


def masked():
    labels = IDS.copy()
    labels[:, :9] = -100
    labels[3, 10:] = -100
    labels[5] = -100
    return HeldOut("masked", IDS, BYTES, labels=labels)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_losses_are_the_models_own(arch):
    model = tiny_model(arch)
    result = evaluate(model, [plain(), masked()], batch_tokens=100)
    ids = torch.as_tensor(IDS)

    @torch.no_grad()
    def own():
        return np.array([float(model(input_ids=ids, labels=torch.as_tensor(x)).loss) for x in (IDS, masked().labels)])

    assert_same_up_to_rounding(result.losses[0], own, model)
    assert result.tokens[0].tolist() == [39.0] * 10
    assert result.tokens[1].tolist() == [31, 31, 31, 1, 31, 0, 31, 31, 31, 31]
    assert result.nll[1][0, 5] == 0


@pytest.mark.parametrize("arch", ["gemma2", "granite", "cohere"])
def test_altered_logits_are_not_chunked(arch):
    assert token_losses.separate_head(tiny_model(arch), torch.as_tensor(IDS)) is None


def test_an_unknown_alteration_is_found_by_trying(monkeypatch):
    monkeypatch.setattr(heads, "_ALTERED", ())
    ids = torch.as_tensor(IDS)
    with torch.no_grad():
        assert token_losses.separate_head(tiny_model("granite"), ids) is None
        assert token_losses.separate_head(tiny_model("gemma2"), ids) is None
        assert token_losses.separate_head(tiny_model("llama"), ids) is not None


def test_neither_batch_nor_chunk_changes_the_losses(monkeypatch):
    model = tiny_model()
    with monkeypatch.context() as patch:
        patch.setattr(token_losses, "CHUNK_TOKENS", 7)
        pieces = evaluate(model, [plain(), masked()], batch_tokens=1).losses
    assert_same_up_to_rounding(pieces, lambda: evaluate(model, [plain(), masked()]).losses, model)


def test_position_ids_are_passed_on():
    model = tiny_model()
    restart = np.tile(np.concatenate([np.arange(20), np.arange(20)]), (10, 1))
    packed = evaluate(model, [HeldOut("x", IDS, BYTES, position_ids=restart)])
    assert abs(packed.losses - evaluate(model, [plain()]).losses).max() > 1e-3


def test_standard_error_and_bits():
    result = evaluate(tiny_model(), [plain(), masked()])
    rates = result.nll[0][0] / 39
    assert np.isclose(result.standard_errors[0, 0], rates.std(ddof=1) / np.sqrt(10))
    assert np.isfinite(result.standard_errors).all()
    assert np.isclose(result.bits_per_byte[0, 0], result.losses[0, 0] * 39 / np.log(2) / 90)
    assert np.isnan(evaluate(tiny_model(), [HeldOut("one", IDS[:1], BYTES[:1])]).standard_errors).all()


def test_modes_come_back_module_by_module():
    model = tiny_model()
    model.train()
    model.model.layers[0].eval()
    modes = [module.training for module in model.modules()]
    evaluate(model, [plain()])
    assert [module.training for module in model.modules()] == modes


def test_bf16_autocast_is_near():
    low = evaluate(tiny_model(), [plain()], dtype=torch.bfloat16).losses
    np.testing.assert_allclose(low, evaluate(tiny_model(), [plain()]).losses, rtol=torch.finfo(torch.bfloat16).eps)


def test_a_broken_model_is_named():
    model = tiny_model()
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    with pytest.raises(TrainingError, match="'plain' is nan"):
        evaluate(model, [plain()])


def test_held_out_sets_are_checked():
    with pytest.raises(DataError, match="every token is masked"):
        HeldOut("x", IDS, BYTES, labels=np.full_like(IDS, -100))
    with pytest.raises(DataError, match="labels is"):
        HeldOut("x", IDS, BYTES, labels=IDS[:, :5])
    with pytest.raises(DataError, match="num_bytes"):
        HeldOut("x", IDS, BYTES[:3])
    with pytest.raises(DataError, match="expected integers"):
        HeldOut("x", IDS.astype(float), BYTES)


@pytest.fixture
def proxies():
    return make_proxies(tiny_adapter(tiny_adapter(tiny_model(), "a", 1), "b", 2), ["a", "b"])


def point(weight):
    return InterpolationWeights(("a", "b"), [weight, 1 - weight])


def test_a_sweep_is_paired_and_equals_one_by_one(proxies):
    seen = []
    points = [point(w) for w in (0.0, 0.25, 1.0)]
    result = evaluate_proxies(proxies, points, [plain(), masked()], progress=lambda *counts: seen.append(counts))
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [n.shape for n in result.nll] == [(3, 10), (3, 10)]
    for row, weights in enumerate(points):
        with proxies.at(weights) as model:
            assert np.array_equal(evaluate(model, [plain(), masked()]).losses[0], result.losses[row])
    paired = loss_difference_error(result.nll, result.tokens, 0, 1)
    assert np.all(paired < result.standard_errors[0] + result.standard_errors[1])


def test_kl_of_shared_weights_equals_the_dense_computation(proxies):
    kl = predictive_kl(
        lambda: proxies.at(point(0.2)), lambda: proxies.at(point(0.9)), [plain(), masked()], batch_tokens=100
    )
    wanted = masked().labels[:, 1:] != -100

    def dense():
        logs = []
        for weights in (0.2, 0.9):
            with proxies.at(point(weights)) as model, torch.no_grad():
                logs.append(torch.log_softmax(model(torch.as_tensor(IDS)).logits[:, :-1].double(), dim=-1))
        tokens = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).numpy()
        return np.array([tokens.mean(), tokens[wanted].mean()])

    with proxies.at(point(0.2)) as model:
        pass
    assert_same_up_to_rounding(kl, dense, model)


def test_kl_of_a_model_with_itself_is_zero():
    model = tiny_model("gemma2")
    kl = predictive_kl(lambda: nullcontext(model), lambda: nullcontext(model), [plain()])
    assert np.abs(kl).max() < 1e-9
