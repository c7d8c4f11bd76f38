"""The chunked loss is the model's own, gradients included; where it cannot be, the model's own is taken."""

import copy

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer

from opmix.testing import tiny_adapter, tiny_model
from opmix.training import chunked_loss
from opmix.training.factory import TrainSpec, default_trainer

SIZES = {
    "llama": {"num_key_value_heads": 2},
    "qwen2": {"num_key_value_heads": 2, "tie_word_embeddings": True},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 8, "final_logit_softcapping": 5.0},
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
}


def made(kind, **more):
    torch.manual_seed(0)
    plain = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes = {**({} if kind == "gpt2" else plain), **SIZES[kind], "vocab_size": 101, **more}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes))


def batch():
    ids = torch.randint(0, 101, (3, 17), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[0, :9] = -100
    return {"input_ids": ids, "labels": labels, "attention_mask": torch.ones_like(ids)}


def trainer_of(model, folder, **arguments):
    spec = TrainSpec(model=model, dataset=[], output_dir=folder, steps=1, seed=0, arguments=arguments)
    return default_trainer(spec)


def loss_and_gradients(trainer, model, num_items=None, plain=False):
    model.train().zero_grad()
    compute = Trainer.compute_loss if plain else type(trainer).compute_loss
    loss = compute(trainer, model, batch(), num_items_in_batch=num_items)
    loss.backward()
    return loss.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def counted(monkeypatch):
    """Every batch is large, chunks are of seven tokens; counts what is chunked."""
    calls = []
    whole = chunked_loss.chunked_nll
    monkeypatch.setattr(chunked_loss, "BOUND", 0)
    monkeypatch.setattr(chunked_loss, "_CHUNK", 7 * 101)
    monkeypatch.setattr(chunked_loss, "chunked_nll", lambda *a: calls.append(1) or whole(*a))
    return calls


@pytest.mark.parametrize("num_items", [None, 96])
@pytest.mark.parametrize(
    ("kind", "more", "chunked"),
    [
        ("llama", {}, True),
        ("qwen2", {}, True),
        ("qwen2", {"tie_word_embeddings": False}, True),
        ("gpt2", {}, True),
        ("gemma2", {}, False),
        ("gemma2", {"final_logit_softcapping": None}, True),
    ],
)
def test_loss_and_gradients_are_the_models_own(kind, more, chunked, num_items, counted, tmp_path):
    model = made(kind, **more)
    trainer = trainer_of(model, tmp_path)
    items = None if num_items is None else torch.tensor(num_items)
    own, theirs = loss_and_gradients(trainer, model, items, plain=True)
    loss, gradients = loss_and_gradients(trainer, model, items)
    assert bool(counted) == chunked
    torch.testing.assert_close(loss, own)
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], msg=name)


def test_adapters_learn_the_same(counted, tmp_path):
    model = tiny_adapter(tiny_model(vocab_size=101), "a", 0)
    trainer = trainer_of(model, tmp_path)
    own, theirs = loss_and_gradients(trainer, model, plain=True)
    loss, gradients = loss_and_gradients(trainer, model)
    assert counted
    torch.testing.assert_close(loss, own)
    assert gradients.keys() == theirs.keys() != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, theirs[name], msg=name)


def test_small_batches_smoothed_labels_and_evaluation_keep_the_models_own_way(counted, tmp_path, monkeypatch):
    model = made("llama")
    smooth = trainer_of(copy.deepcopy(model), tmp_path, label_smoothing_factor=0.1)
    smooth.compute_loss(smooth.model.train(), batch())
    trainer = trainer_of(model, tmp_path)
    trainer.compute_loss(model.eval(), batch())
    monkeypatch.setattr(chunked_loss, "BOUND", 3 * 17 * 101)
    trainer.compute_loss(model.train(), batch())
    assert not counted


def test_a_batch_without_supervised_tokens_has_a_loss_of_zero_to_go_back_from(counted, tmp_path):
    model = made("llama")
    rows = batch()
    rows["labels"][:] = -100
    loss = trainer_of(model, tmp_path).compute_loss(model.train(), rows, num_items_in_batch=torch.tensor(5))
    loss.backward()
    assert loss == 0
    assert counted
