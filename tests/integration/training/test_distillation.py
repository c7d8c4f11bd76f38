"""Self-distillation: the right teacher, the right tokens, reproducible, and its cost counted."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from rounding import assert_same_up_to_rounding
from torch.utils.flop_counter import FlopCounterMode

from opmix.config import parse_config
from opmix.data import ChatRows, PackedSequences
from opmix.errors import StoreError
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import prepare_stage
from opmix.models.layers import model_shape
from opmix.progress import Silent
from opmix.testing import tiny_adapter, tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains
from opmix.training.distillation import (
    SelfDistillation,
    distillation_trainer,
    prompt_of,
)
from opmix.training.factory import TrainSpec, run_training
from opmix.training.like_lengths import answered_by_length, pad_left
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training, training_cost
from opmix.training.settings import DEMONSTRATION, DistillationSettings
from opmix.training.teacher import Teacher, cast_once

ARGUMENTS = {"per_device_train_batch_size": 4, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("data")
    files = write_toy_chats(folder, {"terse": 1, "wordy": 2}, 120) | write_toy_domains(folder, ["web"], 120)
    config = parse_config(
        {
            "model": "m",
            "domains": {n: str(f) for n, f in files.items()},
            "budget": {"tokens": 1000},
            "sequence_length": 128,
            "objective": "sdft",
            "sdft": {"max_new_tokens": 8, "skip_tokens": 1},
        }
    )
    return prepare_stage(config, tokenizer, base=folder, cache_dir=folder / "cache", progress=Silent(), limit=256)


def train(data, model, folder, *, mixture=None, steps=3, **options):
    objective = data.objective
    if options:
        objective = SelfDistillation(
            options=replace(data.objective.options, **options),
            contexts=objective.contexts,
            stop_ids=objective.stop_ids,
            limit=objective.limit,
        )
    usage, mixture = Usage(), Mixture.of(mixture or {"terse": 0.5, "wordy": 0.3, "web": 0.2})
    plan = plan_training(data.train, mixture, steps=steps, arguments=ARGUMENTS, seed=0, objective=objective)
    spec = TrainSpec(
        model=model, dataset=plan.dataset, output_dir=folder, steps=steps, seed=0, arguments=plan.arguments
    )
    trainers = []

    def factory(spec):
        trainers.append(objective.trainer(None, usage, model_shape(model))(spec))
        return trainers[0]

    run_training(factory, spec)
    return trainers[0], training_cost(plan, usage, objective, model_shape(model), 128)


def weights(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


class TestData:
    def test_rows_are_single_conversations_and_the_last_answer(self, data):
        terse = data.train["terse"]
        assert isinstance(terse, ChatRows)
        assert all(len(terse.members(i)) == 1 for i in range(len(terse)))
        assert isinstance(data.train["web"], PackedSequences)
        assert data.objective.name == "sdft"
        assert set(data.objective.stop_ids) == {0, 513}

    def test_items_are_prompt_and_context(self, data, tokenizer):
        plan = plan_training(
            data.train, Mixture.of({"terse": 1.0}), steps=2, arguments=ARGUMENTS, seed=0, objective=data.objective
        )
        items = data.objective.dataset(data.train, plan.plan, document_mask=False)
        row = int(plan.plan.row[0])
        answer = tokenizer.decode(data.train["terse"][row][data.train["terse"].labels(row) != -100].tolist())
        prompt, context = (tokenizer.decode(items[0][k].tolist()) for k in ("prompt", "context"))
        assert prompt.endswith("<|im_start|>assistant\n")
        assert answer.removesuffix("<|im_end|>") in context
        assert prompt.removesuffix("<|im_end|>\n<|im_start|>assistant\n") in context
        batch = plan.dataset[0]
        assert set(batch) == {"prompt_ids", "prompt_mask", "context_ids", "context_mask"}

    def test_contexts_too_long_for_the_model_are_left_out(self, data):
        tight = SelfDistillation(
            options=data.objective.options, contexts=data.objective.contexts, stop_ids=(0,), limit=140
        )
        sizes = np.diff(data.objective.contexts["wordy"].offsets)
        assert tight.fitting("wordy").tolist() == (sizes <= 132).tolist()
        assert not tight.fitting("wordy").all()


class TestTeacher:
    def test_it_starts_as_the_student_in_memory_and_follows(self):
        model = tiny_model()
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)  # changed in memory: no checkpoint has this
        start, teacher = weights(model), Teacher(model, 0.25)
        with torch.no_grad():
            model.lm_head.weight.add_(4.0)
        with teacher.in_place():
            assert all(torch.equal(v, start[k]) for k, v in model.state_dict().items())
        assert torch.allclose(model.lm_head.weight, start["lm_head.weight"] + 4)
        teacher.follow()
        with teacher.in_place():
            assert torch.allclose(model.lm_head.weight, start["lm_head.weight"] + 1)

    def test_other_adapters_are_left_alone(self):
        model = tiny_adapter(tiny_adapter(tiny_model(), "probe_0"), "probe_1", seed=1)
        model.set_adapter("probe_1")
        before, teacher = weights(model), Teacher(model, 1.0)
        assert all("probe_1" in name for name in teacher._weights)
        with torch.no_grad():
            for p in model.parameters():
                if p.requires_grad:
                    p.add_(1.0)
        teacher.follow()
        with teacher.in_place():
            pass
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items() if "probe_1" not in k)
        assert set(model.peft_config) == {"probe_0", "probe_1"}

    def test_an_error_inside_puts_the_student_back(self):
        model = tiny_model()
        teacher = Teacher(model, 0.5)
        with torch.no_grad():
            model.lm_head.weight.add_(1.0)
        now = weights(model)
        with pytest.raises(RuntimeError), teacher.in_place():
            raise RuntimeError
        assert all(torch.equal(v, now[k]) for k, v in model.state_dict().items())

    def test_it_is_saved_and_loaded(self, tmp_path):
        model = tiny_model()
        teacher, other = Teacher(model, 0.5), Teacher(tiny_model(seed=1), 0.5)
        teacher.save(tmp_path)
        other.load(tmp_path)
        assert all(torch.equal(w, teacher._weights[k]) for k, w in other._weights.items())
        with pytest.raises(StoreError, match="holds other weights"):
            Teacher(tiny_model("gpt2"), 0.5).load(tmp_path)
        with pytest.raises(StoreError, match="cannot be read"):
            teacher.load(tmp_path / "none")


class TestTraining:
    def test_the_same_seed_gives_the_same_weights_whatever_else_draws(self, data, tokenizer, tmp_path):
        start, ends = tiny_model(vocab_size=len(tokenizer)), []
        for noise in (0, 5):
            model = copy.deepcopy(start)
            torch.manual_seed(noise)
            torch.rand(noise)
            _, trained = train(data, model, tmp_path)
            ends.append(weights(model))
        assert all(torch.equal(a, ends[1][k]) for k, a in ends[0].items())
        assert any(not torch.equal(a, start.state_dict()[k]) for k, a in ends[0].items())
        assert trained.sampled_tokens > 0
        assert trained.flops > 0

    @pytest.mark.parametrize("kind", ["ema", "frozen", "live"])
    def test_every_teacher_trains_and_text_is_replayed(self, data, tokenizer, tmp_path, kind):
        model = tiny_model(vocab_size=len(tokenizer))
        start = weights(model)
        trainer, _ = train(data, model, tmp_path, teacher=kind, ema_rate=0.5, mixture={"terse": 0.5, "web": 0.5})
        assert (trainer.teacher is None) == (kind == "live")
        if trainer.teacher is not None:
            with trainer.teacher.in_place():
                same = all(torch.equal(v, start[k]) for k, v in model.state_dict().items())
            assert same == (kind == "frozen")

    def test_text_alone_is_cross_entropy(self, data, tokenizer, tmp_path):
        model = tiny_model(vocab_size=len(tokenizer))
        objective, rows = data.objective, {"web": data.train["web"]}
        plan = plan_training(rows, Mixture.of({"web": 1.0}), steps=1, arguments=ARGUMENTS, seed=0, objective=objective)
        spec = TrainSpec(
            model=model, dataset=plan.dataset, output_dir=tmp_path, steps=1, seed=0, arguments=plan.arguments
        )
        trainer = distillation_trainer(spec, objective=objective, usage=Usage(), shape=model_shape(model))
        batch = plan.dataset[0]
        found = trainer.compute_loss(model.train(), dict(batch)).item()
        assert_same_up_to_rounding(found, lambda: model(**batch).loss, model)

    def test_a_live_teacher_without_demonstration_teaches_nothing(self, data, tokenizer, tmp_path):
        """Teacher and student are then the same distribution: no loss, no gradient."""
        model = tiny_model(vocab_size=len(tokenizer))
        trainer = self.trainer(data, model, tmp_path, teacher="live")
        ids, mask = pad_left([torch.as_tensor(prompt_of(data.train["terse"], i)) for i in range(3)])
        inputs = {"prompt_ids": ids, "prompt_mask": mask, "context_ids": ids, "context_mask": mask}
        loss = trainer.compute_loss(model.train(), inputs)
        loss.backward()
        assert abs(loss.item()) < 1e-6
        assert max(p.grad.abs().max().item() for p in model.parameters() if p.grad is not None) < 1e-6

    def test_only_the_active_adapter_learns(self, data, tokenizer, tmp_path):
        model = tiny_adapter(tiny_adapter(tiny_model(vocab_size=len(tokenizer)), "probe_0"), "probe_1", seed=1)
        model.set_adapter("probe_1")
        before = weights(model)
        train(data, model, tmp_path)
        changed = {k for k, v in model.state_dict().items() if not torch.equal(v, before[k])}
        assert changed
        assert all("probe_1" in k for k in changed)

    @pytest.mark.parametrize("adapter", [False, True])
    def test_weights_are_cast_once_for_writing_and_the_same_is_written(
        self, data, tokenizer, tmp_path, monkeypatch, adapter
    ):
        model = tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=True)
        model = tiny_adapter(model, "a") if adapter else model
        trainer = self.trainer(data, model, tmp_path, arguments={"bf16": True})
        wrapped = trainer.accelerator.prepare_model(model).train()
        before, prompts = weights(model), pad_left([torch.arange(2, 30), torch.arange(5, 40)])
        head, kinds = model.get_output_embeddings(), []
        layer = next(m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head)
        layer.register_forward_hook(lambda module, *_: kinds.append((module.weight.dtype, head.weight.dtype)))
        once = trainer.sample(wrapped, *prompts)
        assert set(kinds) == {(torch.bfloat16, torch.float32)}
        assert all(v.dtype == before[k].dtype and torch.equal(v, before[k]) for k, v in model.state_dict().items())
        monkeypatch.setattr("opmix.training.distillation.cast_once", lambda *_: nullcontext())
        trainer._calls = (-1, 0)
        each = trainer.sample(wrapped, *prompts)
        assert kinds[-1] == (torch.float32, torch.float32)
        assert all(torch.equal(a, b) for a, b in zip(once, each, strict=True))

    def test_gradients_of_earlier_micro_batches_stay_while_weights_are_cast(self, data, tokenizer, tmp_path):
        model = tiny_model(vocab_size=len(tokenizer))
        (model(torch.arange(2, 30)[None]).logits.sum() * 2).backward()
        gradients = {k: p.grad.clone() for k, p in model.named_parameters()}
        with cast_once(model, torch.bfloat16), torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            model(torch.arange(2, 30)[None])
        assert all(torch.equal(p.grad, gradients[k]) for k, p in model.named_parameters())
        (model(torch.arange(2, 30)[None]).logits.sum() * 2).backward()
        assert all(torch.equal(p.grad, 2 * gradients[k]) for k, p in model.named_parameters())

    @staticmethod
    def trainer(data, model, folder, arguments=None, **options):
        objective = SelfDistillation(
            options=DistillationSettings(
                **{"demonstration": DEMONSTRATION, "max_new_tokens": 8, "skip_tokens": 0, **options}
            ),
            contexts={},
            stop_ids=(0, 513),
            limit=256,
        )
        spec = TrainSpec(model=model, dataset=[{}], output_dir=folder, steps=1, seed=0, arguments=arguments or {})
        return distillation_trainer(spec, objective=objective, usage=Usage(), shape=model_shape(model))


@pytest.mark.parametrize("arch", ["llama", "gpt2"])
def test_the_loss_of_an_answer_does_not_depend_on_its_neighbours(data, tokenizer, tmp_path, arch):
    model = tiny_model(arch, vocab_size=len(tokenizer))
    trainer = TestTraining.trainer(data, model, tmp_path)
    rows = data.train["wordy"]
    prompts = [torch.as_tensor(prompt_of(rows, i)) for i in (0, 1, 2)]
    answer = torch.randint(2, 500, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3, [1] * 6])

    def batch(rows):
        ids, shown = pad_left([prompts[i] for i in rows])
        return {"prompt_ids": ids, "prompt_mask": shown, "answer_ids": answer[rows], "answer_mask": mask[rows]}

    def first_logits(inputs, kept):
        return trainer._logits(model, inputs, "prompt")[0, :kept]

    with torch.no_grad():
        together = trainer._logits(model, batch([0, 1, 2]), "prompt")
        for i in range(3):
            kept = int(mask[i].sum())
            assert_same_up_to_rounding(together[i, :kept], partial(first_logits, batch([i]), kept), model)


def test_rows_read_by_length_have_the_loss_and_the_gradient_of_all_at_once(tokenizer, data, tmp_path, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    prompts = [torch.randint(2, 500, (n,), generator=generator) for n in (12, 150, 14, 149)]
    inputs = {}
    for name, rows in {"prompt": prompts, "context": [torch.cat([p, p[:9]]) for p in prompts]}.items():
        inputs[f"{name}_ids"], inputs[f"{name}_mask"] = pad_left(rows)
    found = {}
    for whole in (True, False):
        model, passes = tiny_model(vocab_size=len(tokenizer)).train().double(), []
        trainer = TestTraining.trainer(data, model, tmp_path, teacher="live", max_new_tokens=5)
        monkeypatch.setattr(
            "opmix.training.distillation.answered_by_length",
            lambda batch, told=whole, **_: answered_by_length(batch, whole=told),
        )
        seen = model.register_forward_pre_hook(
            lambda _, __, told, passes=passes: passes.append(tuple(told["input_ids"].shape)), with_kwargs=True
        )
        monkeypatch.setattr("opmix.training.like_lengths._EXTRA", {"cpu": 8})
        answers = trainer.sample(model, inputs["prompt_ids"], inputs["prompt_mask"])
        monkeypatch.setattr(trainer, "sample", lambda *_, answers=answers: answers)
        passes.clear()
        loss = trainer.compute_loss(model, inputs)
        loss.backward()
        seen.remove()
        found[whole] = (loss.item(), passes, {n: p.grad for n, p in model.named_parameters()}, trainer.usage.flops)
    assert [rows for rows, _ in found[True][1]] == [4, 4]
    assert [rows for rows, _ in found[False][1]] == [2, 2, 2, 2]
    assert max(width for _, width in found[False][1][1::2]) < 30  # the short ones are not padded to the long ones
    assert found[False][0] == pytest.approx(found[True][0], rel=1e-5)  # losses are summed in float32
    for name, gradient in found[True][2].items():
        torch.testing.assert_close(found[False][2][name], gradient, rtol=1e-4, atol=1e-6)
    assert found[False][3] < found[True][3]


@pytest.mark.parametrize("adapter", [False, True])
def test_flops_agree_with_torch(data, tokenizer, tmp_path, adapter):
    model = tiny_model(vocab_size=len(tokenizer), num_hidden_layers=4, hidden_size=64, num_key_value_heads=4)
    shape = model_shape(model)
    model.config._attn_implementation = "eager"  # the counter sees matrix products, not fused kernels on the CPU
    if adapter:
        model = tiny_adapter(model, "a", r=4)
    trainer = TestTraining.trainer(data, model, tmp_path, max_new_tokens=12)
    # A stop that is hardly ever drawn in 12 tokens; were it, the widths below would not hold.
    trainer.objective = SelfDistillation(options=trainer.objective.options, contexts={}, stop_ids=(1,), limit=256)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "prompt_ids": torch.randint(2, 500, (3, 20), generator=generator),
        "prompt_mask": torch.ones(3, 20, dtype=torch.long),
        "context_ids": torch.randint(2, 500, (3, 45), generator=generator),
        "context_mask": torch.ones(3, 45, dtype=torch.long),
    }
    with FlopCounterMode(display=False) as counter:
        trainer.compute_loss(model.train(), inputs).backward()
    adapters = sum(p.numel() for p in model.parameters() if p.requires_grad) if adapter else None
    expected = shape.distillation(rows=3, prompt=20, context=45, sampled=12, adapter_parameters=adapters)
    assert trainer.usage.flops == pytest.approx(expected)
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.06)
