import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opmix.compute.ledger import Entry, Ledger
from opmix.models.layers import model_shape
from opmix.testing import tiny_adapter, tiny_model
from opmix.training.factory import TrainSpec, default_trainer, run_training

ARCHITECTURES = ["llama", "gpt2", "qwen2"]


def counted(model, ids, *, backward):
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids).loss
        if backward:
            loss.backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_forward_and_training_agree_with_torch(arch):
    model = tiny_model(arch, vocab_size=256)
    model.config._attn_implementation = "eager"  # the counter sees matrix products, not fused kernels on the CPU
    ids = torch.randint(2, 250, (2, 32), generator=torch.Generator().manual_seed(0))
    shape, tokens = model_shape(model), ids.numel()
    assert counted(model, ids, backward=False) == pytest.approx(tokens * shape.forward(32), rel=0.03)
    assert counted(model.train(), ids, backward=True) == pytest.approx(tokens * shape.train(32), rel=0.06)


def test_lora_training_agrees_with_torch():
    model = tiny_model("llama", vocab_size=256, num_hidden_layers=4, hidden_size=64)
    shape = model_shape(model)
    model.config._attn_implementation = "eager"
    wrapped = tiny_adapter(model, "a", r=4)
    ids = torch.randint(2, 250, (2, 32), generator=torch.Generator().manual_seed(0))
    adapter = sum(p.numel() for p in wrapped.parameters() if p.requires_grad)
    expected = ids.numel() * shape.train_lora(32, adapter)
    assert counted(wrapped.train(), ids, backward=True) == pytest.approx(expected, rel=0.1)


def test_the_ledger_adds_up():
    ledger = Ledger()
    for step, purpose in (("a", "probes"), ("b", "probes"), ("c", "proxies")):
        ledger.add(Entry(step=step, purpose=purpose, tokens=10, flops=2.0, seconds=0.5))
    assert ledger.cost.json() == {
        "tokens": {"probes": 20.0, "proxies": 10.0},
        "flops": {"probes": 4.0, "proxies": 2.0},
        "seconds": {"probes": 1.0, "proxies": 0.5},
    }
    assert ledger.total("flops") == 6.0
    assert [e["step"] for e in ledger.json()] == ["a", "b", "c"]


@pytest.mark.parametrize("checkpointing", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_whole_trainer_step_agrees_with_torch(tmp_path, checkpointing):
    """Two accumulated batches; recomputing activations costs another forward pass, which the ledger does not count as training."""
    rows = torch.randint(2, 250, (8, 32), generator=torch.Generator().manual_seed(0))
    model = tiny_model("llama", vocab_size=256)
    model.config._attn_implementation = "eager"
    spec = TrainSpec(
        model=model,
        dataset=[{"input_ids": row, "labels": row.clone()} for row in rows],
        output_dir=tmp_path,
        steps=2,
        seed=0,
        arguments={
            "per_device_train_batch_size": 2,
            "gradient_accumulation_steps": 2,
            "gradient_checkpointing": checkpointing,
        },
    )
    with FlopCounterMode(display=False) as counter:
        run_training(default_trainer, spec)
    shape = model_shape(model)
    layers = shape.forward(32) - 2 * 256 * 32  # the output head is not recomputed
    expected = rows.numel() * (shape.train(32) + (layers if checkpointing else 0))
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.06)
