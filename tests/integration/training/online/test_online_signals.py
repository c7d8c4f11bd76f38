"""What an online run tells its mixer is what is so: losses of its rows, and what gradients foretell."""

import numpy as np
import pytest
import torch
from online_runs import ARGUMENTS, LENGTH, NAMES, Everything, fresh, run_of
from rounding import assert_same_up_to_rounding

from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.protocols.online_mixer import MixerSegment
from opmix.training.objectives import CAUSAL_LM, Usage
from opmix.training.online import train_online
from opmix.training.plan import training_cost
from opmix.training.signals import gradient, inner


def test_training_losses_are_those_of_the_rows(texts, tokenizer, tmp_path, model):
    mixture = Mixture(NAMES, [0.5, 0.5, 0.0])
    mixer = Everything(every=1)
    model.config.attention_dropout = 0.0
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.0
    arguments = {
        **ARGUMENTS,
        "learning_rate": 1e-12,
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 1,
    }
    run = run_of(
        mixer, ({"log": [], "weights": []}, MixerSegment(mixture, 1)), texts, tokenizer, steps=2, arguments=arguments
    )
    before = fresh(tokenizer)
    usage = Usage()
    result = train_online(model, run, folder=tmp_path, usage=usage)
    (seen,) = mixer.seen
    plan, reference = result.plan.plan, run.senses.reference
    for k in range(2):

        @torch.no_grad()
        def told(k=k):
            losses = []
            for index in np.flatnonzero(plan.domain[:4] == k):
                ids = torch.as_tensor(texts[NAMES[k]][int(plan.row[index])])[None]
                logits = [m.eval()(input_ids=ids).logits[0, :-1] for m in (before, reference)]
                losses.append([torch.nn.functional.cross_entropy(x, ids[0, 1:], reduction="none") for x in logits])
            own, other = (torch.cat(x) for x in zip(*losses, strict=True))
            return torch.stack([own.mean(), (own - other).clamp(min=0).mean()])

        assert_same_up_to_rounding(np.array([seen.train_loss[k], seen.excess[k]]), told, before)
        assert 0 < seen.excess[k] < seen.train_loss[k]
    assert np.isnan(seen.train_loss[2])
    assert np.isnan(seen.excess[2])
    shape, read = model_shape(model), 2 * 4 * LENGTH  # the reference reads every training row
    gradients = 6 * 3 * LENGTH
    assert usage.extra["tokens"] == read + 100 + gradients
    flops = (read + 100) * shape.forward(LENGTH) + gradients * shape.train(LENGTH)
    assert usage.extra["flops"] == pytest.approx(flops)
    assert training_cost(result.plan, usage, CAUSAL_LM, shape, LENGTH).row_tokens == read


def test_gradients_predict_how_a_small_step_moves_a_loss(texts, model):
    def batch(name, rows):
        ids = torch.as_tensor(np.stack([texts[name][i] for i in rows]))
        return {"input_ids": ids, "labels": ids}

    def loss(name):
        with torch.no_grad():
            return float(model(**batch(name, [5, 6])).loss)

    own, other = gradient(model, [batch("alpha", [0, 1])]), gradient(model, [batch("beta", [5, 6])])
    two = gradient(model, [batch("alpha", [0]), batch("alpha", [1])])
    assert_same_up_to_rounding(two, lambda: gradient(model, [batch("alpha", [0, 1])]), model)
    before, step = loss("beta"), 1e-3
    with torch.no_grad():
        for parameter, part in zip(model.parameters(), own, strict=True):
            parameter -= step * part
    assert (before - loss("beta")) / step == pytest.approx(inner(own, other), rel=0.05)
    assert all(p.grad is None for p in model.parameters())
