"""The training stream in a real Trainer: the plan's rows in order; a resumed run ends bit-identical."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from opmix.data import MixtureDataset, PackedSequences, plan_mixture, prepare_domain
from opmix.domain import Domain
from opmix.mixing.mixture import Mixture

LENGTH = 16


class Spy(MixtureDataset):
    """Remembers which indices were asked for."""

    seen: list[int]

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self.seen.append(index)
        return super().__getitem__(index)


@pytest.fixture
def packed(domain: Domain, tokenizer: Any, tmp_path: Path) -> dict[str, PackedSequences]:
    data = prepare_domain(domain, tokenizer, cache_dir=tmp_path / "cache")
    return {"web": PackedSequences(data.train, LENGTH), "small": PackedSequences(data.valid, LENGTH)}


def stream(
    packed: dict[str, PackedSequences], n: int, kind: type[MixtureDataset] = MixtureDataset, **options: Any
) -> Any:
    plan = plan_mixture(Mixture.of({"web": 0.7, "small": 0.3}), n, {k: len(v) for k, v in packed.items()}, seed=1)
    return kind(packed, plan, **options), plan


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def test_items_are_the_plans_rows(packed: dict[str, PackedSequences]) -> None:
    dataset, plan = stream(packed, 50, document_mask=True)
    for i in range(50):
        source = packed[plan.names[plan.domain[i]]]
        row = int(plan.row[i])
        np.testing.assert_array_equal(dataset[i]["input_ids"], source[row])
        np.testing.assert_array_equal(dataset[i]["labels"], source[row])
        np.testing.assert_array_equal(dataset[i]["position_ids"], source.position_ids(row))


@pytest.mark.parametrize("workers", [0, 2])
def test_workers_see_the_same_order(packed: dict[str, PackedSequences], workers: int) -> None:
    dataset, _ = stream(packed, 32)
    batches = [batch["input_ids"] for batch in DataLoader(dataset, batch_size=4, num_workers=workers)]
    want = torch.stack([dataset[i]["input_ids"] for i in range(32)])
    assert torch.equal(torch.cat(batches), want)


def test_pickle_holds_no_tokens(packed: dict[str, PackedSequences]) -> None:
    dataset, _ = stream(packed, 8)
    data = pickle.dumps(dataset)
    assert len(data) < 4000
    assert torch.equal(pickle.loads(data)[3]["input_ids"], dataset[3]["input_ids"])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_document_mask_keeps_attention_inside_documents(packed: dict[str, PackedSequences], attention: str) -> None:
    dataset, _ = stream(packed, 40, document_mask=True)
    item = next(item for item in map(dataset.__getitem__, range(40)) if 2 < int(item["position_ids"][-1]) < LENGTH - 3)
    start = LENGTH - 1 - int(item["position_ids"][-1])
    model = tiny_llama().eval()
    model.set_attn_implementation(attention)
    ids, positions = item["input_ids"][None], item["position_ids"][None]
    changed = ids.clone()
    changed[0, :start] = (changed[0, :start] + 1) % 300
    with torch.no_grad():
        one = model(input_ids=ids, position_ids=positions).logits[0, start:]
        two = model(input_ids=changed, position_ids=positions).logits[0, start:]
        plain = model(input_ids=changed).logits[0, start:] - model(input_ids=ids).logits[0, start:]
    torch.testing.assert_close(one, two)
    assert plain.abs().max() > 1e-4


def arguments(folder: Path, **options: Any) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
        save_strategy="steps",
        save_steps=3,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        logging_strategy="no",
        learning_rate=1e-2,
        dataloader_pin_memory=False,
        **options,
    )


def train(dataset: Spy, folder: Path, checkpoint: str | None = None) -> dict[str, torch.Tensor]:
    set_seed(0)
    dataset.seen = []
    trainer = Trainer(model=tiny_llama(), args=arguments(folder), train_dataset=dataset)
    trainer.train(resume_from_checkpoint=checkpoint)
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


@pytest.mark.slow
def test_trainer_resumes_bit_identically(packed: dict[str, PackedSequences], tmp_path: Path) -> None:
    dataset, _ = stream(packed, 24, Spy)
    through = train(dataset, tmp_path / "a")
    assert dataset.seen == list(range(24))
    resumed = train(dataset, tmp_path / "b", str(tmp_path / "a" / "checkpoint-3"))
    assert dataset.seen == list(range(12, 24))
    assert all(torch.equal(value, resumed[name]) for name, value in through.items())
    start = tiny_llama().state_dict()
    assert any(not torch.equal(value, start[name]) for name, value in through.items())
