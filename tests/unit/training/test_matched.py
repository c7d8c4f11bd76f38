"""Runs on different mixtures have the same steps and the same supervised tokens in each."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rounding import assert_same_up_to_rounding

from opmix.data import ChatRows, MixturePlan, PackedSequences, pad_rows, prepare_domain
from opmix.domain import ChatOptions, Domain, Source
from opmix.errors import ConfigError
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.progress import Silent
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains
from opmix.training.factory import TrainSpec, check_attention, default_trainer, run_training
from opmix.training.full import train_on_mixture
from opmix.training.objectives import SFT, Usage
from opmix.training.plan import (
    TrainingPlan,
    group_ends,
    plan_training,
    steps_for,
    supervised_per_step,
    training_cost,
)

ARGUMENTS = {"per_device_train_batch_size": 4, "learning_rate": 1e-3}
LENGTH = 96


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.fixture(scope="module")
def splits(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("chats")
    files = write_toy_chats(folder, {"terse": 1, "wordy": 3}, 250) | write_toy_domains(folder, ["web"], 120)
    return {
        name: prepare_domain(Domain(name=name, train=Source(paths=(str(path),))), tokenizer, cache_dir=folder / "cache")
        for name, path in files.items()
    }


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "padded"])
def rows(request, splits):
    options = ChatOptions(packing=request.param, truncate="left")
    chats = {n: ChatRows(splits[n].train, LENGTH, options) for n in ("terse", "wordy")}
    return {**chats, "web": PackedSequences(splits["web"].train, LENGTH)}


MIXTURES = [{"terse": 0.9, "wordy": 0.1}, {"wordy": 0.9, "terse": 0.1}, {"web": 0.5, "terse": 0.25, "wordy": 0.25}]


def plan(rows, mixture, steps=12, **changes):
    return plan_training(
        rows, Mixture.of(mixture), steps=steps, arguments={**ARGUMENTS, **changes}, seed=0, objective=SFT
    )


@pytest.mark.parametrize("accumulation", [1, 2])
def test_steps_and_supervised_tokens_are_matched(rows, accumulation):
    wanted, most = (
        supervised_per_step(rows, ARGUMENTS) * accumulation,
        max(int(r.supervised.max()) for r in rows.values()),
    )
    for mixture in MIXTURES:
        planned = plan(rows, mixture, gradient_accumulation_steps=accumulation)
        assert planned.supervised_tokens == pytest.approx(12 * wanted, abs=1.5 * most)
        off = 0.6 * most / planned.supervised_tokens
        assert {n: s for n, s in planned.shares.items() if s} == pytest.approx(mixture, abs=off)
        device, groups = (
            planned.arguments["per_device_train_batch_size"],
            planned.arguments["gradient_accumulation_steps"],
        )
        assert device == 1
        assert len(planned.dataset) == 12 * groups
        worth = [(batch["labels"] != -100).sum().item() for batch in planned.dataset]
        steps = np.add.reduceat(worth, np.arange(0, len(worth), groups))
        assert np.abs(steps - planned.supervised_tokens / 12).max() <= most
        assert max(len(batch["input_ids"]) for batch in planned.dataset) <= 2 * ARGUMENTS["per_device_train_batch_size"]


def test_text_alone_is_batched_as_ever(splits):
    rows = {"web": PackedSequences(splits["web"].train, 32), "code": PackedSequences(splits["web"].train, 32)}
    planned = plan(rows, {"web": 0.5, "code": 0.5}, steps=3)
    assert planned.accumulation == 0
    assert planned.arguments == ARGUMENTS
    assert len(planned.dataset) == 12
    assert set(planned.dataset[0]) == {"input_ids", "labels"}
    assert planned.supervised_tokens == planned.row_tokens == 12 * 32
    assert supervised_per_step(rows, ARGUMENTS) == 4 * 32
    assert steps_for(1000, rows, ARGUMENTS) == 8


def test_a_plan_goes_on_where_the_one_before_ends(rows):
    first = plan(rows, MIXTURES[0], steps=4)
    more = plan_training(
        rows, Mixture.of(MIXTURES[2]), steps=5, arguments=ARGUMENTS, seed=0, objective=SFT, previous=first
    )
    assert more.accumulation == first.accumulation
    assert len(more.dataset) == 9 * first.accumulation
    assert more.shares == pytest.approx(MIXTURES[2], abs=0.06)
    for a, b in zip(first.dataset, (more.dataset[i] for i in range(len(first.dataset))), strict=True):
        assert torch.equal(a["input_ids"], b["input_ids"])


def test_a_stage_goes_on_where_earlier_stages_read_to(rows):
    first = plan(rows, MIXTURES[2], steps=3)
    names, cursors = first.plan.names, first.plan.cursors()
    none = np.empty(0, dtype=np.int64)
    drawn = tuple(cursors[n] for n in names)
    empty = MixturePlan(names, none.astype(np.int16), none, tuple(len(rows[n]) for n in names), 0, drawn)
    start = TrainingPlan(
        plan=empty, dataset=first.dataset, arguments={}, steps=0, row_tokens=0, supervised_tokens=0, shares={}
    )
    later = plan_training(
        rows, Mixture.of(MIXTURES[2]), steps=3, arguments=ARGUMENTS, seed=0, objective=SFT, previous=start
    )
    seen = {(int(d), int(r)) for d, r in zip(first.plan.domain, first.plan.row, strict=True)}
    again = [(d, r) in seen for d, r in zip(later.plan.domain.tolist(), later.plan.row.tolist(), strict=True)]
    assert not any(again)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 20))
def test_groups_are_nearly_equal_and_never_empty(worth, groups):
    if groups > len(worth):
        return
    ends = group_ends(np.array(worth), groups)
    assert ends[-1] == len(worth)
    assert (np.diff([0, *ends]) >= 1).all()


class TestTraining:
    def test_flash_attention_is_refused_where_it_would_leak(self, splits, tokenizer, tmp_path):
        model = tiny_model(vocab_size=len(tokenizer))
        model.config._attn_implementation_internal = "flash_attention_2"
        for packing in (True, False):
            rows = {n: ChatRows(splits[n].train, 240, ChatOptions(packing=packing)) for n in ("terse", "wordy")}
            planned = plan(rows, MIXTURES[0], steps=1)
            spec = TrainSpec(model=model, dataset=planned.dataset, output_dir=tmp_path, steps=1, seed=0)
            assert planned.dataset.restarts == packing
            if packing:
                with pytest.raises(ConfigError, match="see each other"):
                    check_attention(spec)
            else:
                check_attention(spec)

    @pytest.mark.slow
    def test_sft_learns_answers_and_only_them(self, splits, tokenizer, tmp_path):
        rows = {n: ChatRows(splits[n].train, LENGTH, ChatOptions(truncate="left")) for n in ("terse", "wordy")}
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=LENGTH)
        planned = plan(rows, {"terse": 0.5, "wordy": 0.5}, steps=25, learning_rate=5e-3)

        def losses():
            batch = {k: torch.as_tensor(v) for k, v in _batch(rows["terse"], range(8)).items()}
            with torch.no_grad():
                answers = model(**batch).loss.item()
                prompts = batch | {"labels": torch.where(batch["labels"] == -100, batch["input_ids"], -100)}
                return answers, model(**prompts).loss.item()

        before = losses()
        spec = TrainSpec(
            model=model, dataset=planned.dataset, output_dir=tmp_path, steps=25, seed=0, arguments=planned.arguments
        )
        run_training(default_trainer, spec)
        after = losses()
        assert after[0] < before[0] - 1.0
        trained = training_cost(planned, Usage(), SFT, model_shape(model), LENGTH)
        assert trained.flops == pytest.approx(planned.row_tokens * model_shape(model).train(LENGTH))
        assert trained.supervised_tokens < trained.row_tokens

    def test_the_full_run_counts_supervised_tokens(self, splits, tokenizer, tmp_path):
        rows = {n: ChatRows(splits[n].train, LENGTH, ChatOptions(truncate="left")) for n in ("terse", "wordy")}
        model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=LENGTH)
        seen = train_on_mixture(
            model,
            rows,
            Mixture.of({"terse": 0.5, "wordy": 0.5}),
            tokens=2000,
            arguments=ARGUMENTS,
            seed=0,
            output_dir=tmp_path,
            progress=Silent(),
            name="full",
            objective=SFT,
        )
        assert seen == pytest.approx(2000, abs=supervised_per_step(rows, ARGUMENTS))


def _batch(rows, indices):
    parts = {"input_ids": rows.__getitem__, "labels": rows.labels, "position_ids": rows.position_ids}
    return pad_rows([{key: torch.as_tensor(part(i)) for key, part in parts.items()} for i in indices])


class TestInvariance:
    """A conversation's loss is its own: not its neighbours', not its padding's, not its side's."""

    @pytest.mark.parametrize(
        "arch", ["llama", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("gpt2", "qwen3", "gemma2"))]
    )
    def test_loss_does_not_depend_on_packing_padding_side_or_batch(self, splits, tokenizer, arch):
        split = splits["terse"].train
        alone = ChatRows(split, 250, ChatOptions(packing=False))
        packed = ChatRows(split, 250, ChatOptions(packing=True))
        model = tiny_model(arch, vocab_size=len(tokenizer))

        def nll(ids, labels, **more):
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False, **more).logits[:, :-1]
            loss = torch.nn.functional.cross_entropy(
                logits.transpose(1, 2), labels[:, 1:], ignore_index=-100, reduction="none"
            )
            return loss.sum(1)

        inputs = {}
        for i in range(60):
            (document,) = [int(alone.documents[m]) for m in alone.members(i)]
            inputs[document] = (torch.as_tensor(alone[i][None]), torch.as_tensor(alone.labels(i)[None]))

        def one_by_one(documents):
            return np.array([nll(*inputs[d]).item() for d in documents])

        batch = _batch(alone, range(60))
        together = nll(batch["input_ids"], batch["labels"], position_ids=batch["position_ids"])
        assert_same_up_to_rounding(together, lambda: one_by_one(inputs), model)
        # The same on the left, as generation pads.
        width = batch["input_ids"].shape[1]
        sizes = alone.lengths[:60]
        left = {
            k: torch.stack([torch.roll(row, width - int(n)) for row, n in zip(batch[k], sizes, strict=True)])
            for k in batch
        }
        mask = torch.stack([(torch.arange(width) >= width - int(n)).long() for n in sizes])
        shifted = nll(
            left["input_ids"], left["labels"], attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        )
        assert_same_up_to_rounding(shifted, lambda: one_by_one(inputs), model)
        checked = 0
        for i in range(len(packed)):
            documents = [int(packed.documents[m]) for m in packed.members(i)]
            if len(documents) > 1 and set(documents) <= set(inputs):
                row = _batch(packed, [i])
                sums = nll(row["input_ids"], row["labels"], position_ids=row["position_ids"]).item()
                assert_same_up_to_rounding(sums, lambda d=documents: one_by_one(d).sum(), model)
                checked += 1
        assert checked > 3
