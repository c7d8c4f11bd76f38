"""TRL as the oracle: its SFTTrainer learns the same weights from our rows, its SDFT loss is our loss."""

import copy
import json

import pytest
import torch
from rounding import assert_same_up_to_rounding
from transformers import PrinterCallback

from opmix.data import ChatRows, prepare_domain
from opmix.domain import ChatOptions, Domain, Source
from opmix.mixing.mixture import Mixture
from opmix.models.layers import model_shape
from opmix.testing import tiny_chat_tokenizer, tiny_model, toy_conversations, write_toy_chats
from opmix.training.arguments import given_arguments
from opmix.training.distillation import SelfDistillation, distillation_trainer, reverse_kl
from opmix.training.factory import TrainSpec, default_trainer, run_training
from opmix.training.like_lengths import pad_left
from opmix.training.objectives import SFT, Usage
from opmix.training.plan import plan_training
from opmix.training.settings import DistillationSettings

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module", autouse=True)
def trl():
    """Read when the first test runs: it takes seconds, and every worker reads every test file."""
    return pytest.importorskip("trl")


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.mark.slow
@pytest.mark.parametrize("packing", [True, False])
def test_trls_sft_trainer_learns_the_same_weights(tokenizer, tmp_path, packing):
    from opmix.training.trl_sft import sft_trainer

    files = write_toy_chats(tmp_path, {"terse": 1, "wordy": 2}, 120)
    rows = {
        name: ChatRows(
            prepare_domain(
                Domain(name=name, train=Source(paths=(str(f),))), tokenizer, cache_dir=tmp_path / "cache"
            ).train,
            240,
            ChatOptions(packing=packing),
        )
        for name, f in files.items()
    }
    plan = plan_training(
        rows,
        Mixture.of({"terse": 0.5, "wordy": 0.5}),
        steps=4,
        seed=0,
        objective=SFT,
        arguments={
            "per_device_train_batch_size": 3,
            "learning_rate": 1e-2,
            "gradient_accumulation_steps": 2,
            "adam_epsilon": 1e-3,
        },  # else a gradient that is nothing but rounding moves its weight by the whole rate
    )
    start = tiny_model(vocab_size=len(tokenizer))

    def trained(factory):
        model = copy.deepcopy(start)
        spec = TrainSpec(
            model=model, dataset=plan.dataset, output_dir=tmp_path / "o", steps=4, seed=0, arguments=plan.arguments
        )
        run_training(factory, spec)
        return model.state_dict()

    ours = trained(default_trainer)
    moved = max(float((ours[k] - v).abs().max()) for k, v in start.state_dict().items())
    theirs = trained(sft_trainer)
    assert moved > 1e-2
    assert_same_up_to_rounding(theirs, lambda: trained(default_trainer), start)


def test_reverse_kl_is_trls():
    from trl.experimental.sdft.loss_utils import compute_full_logit_self_distillation_loss

    student, teacher = torch.randn(2, 2, 5, 40, generator=torch.Generator().manual_seed(0)).unbind()
    theirs = compute_full_logit_self_distillation_loss(student, teacher, distillation_alpha=1.0)
    terms = 40 * (2 * student.abs().max() + teacher.abs().max()).item()  # of a sum of p (log p - log q), p <= 1
    roundings = terms * torch.finfo(torch.float32).eps
    torch.testing.assert_close(reverse_kl(student, teacher), theirs, rtol=0, atol=roundings)
    assert reverse_kl(student, student).abs().max() < roundings


@pytest.mark.parametrize("skip", [0, 2])
def test_loss_and_gradient_of_a_row_are_trls(tokenizer, tmp_path, skip):
    """The same sampled answer goes through both trainers: teacher's and student's passes, alignment, mask and loss."""
    from datasets import Dataset
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    question = [m["content"] for m in next(toy_conversations("alpha", 1))]
    prompt, context = (
        torch.tensor(
            tokenizer.apply_chat_template([{"role": "user", "content": c}], add_generation_prompt=True)["input_ids"]
        )
        for c in (question[0], f"{question[0]}\n\n{question[1]}")
    )
    ours, theirs = tiny_model(vocab_size=len(tokenizer)), tiny_model(vocab_size=len(tokenizer))
    objective = SelfDistillation(
        options=DistillationSettings(
            demonstration="", teacher="live", max_new_tokens=9, skip_tokens=skip, temperature=0.7
        ),
        contexts={},
        stop_ids=(0, 513),
    )
    spec = TrainSpec(model=ours, dataset=[{}], output_dir=tmp_path, steps=1, seed=0)
    trainer = distillation_trainer(spec, objective=objective, usage=Usage(), shape=model_shape(ours))
    ids, mask = pad_left([prompt])
    inputs = {
        "prompt_ids": ids,
        "prompt_mask": mask,
        **dict(zip(("context_ids", "context_mask"), pad_left([context]), strict=True)),
    }
    answer, kept = trainer.sample(ours, ids, mask)
    config = SDFTConfig(
        output_dir=str(tmp_path),
        max_steps=1,
        per_device_train_batch_size=1,
        teacher_model_kind="live",
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        num_generations=1,
        distillation_alpha=1.0,
        distillation_mode="full_logits",
        temperature=0.7,
        num_loss_tokens_to_skip=skip,
        distillation_is_clip=None,
        report_to="none",
    )
    row = {"prompt": question[0], "privileged_context": question[1]}
    oracle = SDFTTrainer(
        model=theirs,
        args=config,
        train_dataset=Dataset.from_list([json.loads(json.dumps(row))]),
        processing_class=tokenizer,
    )
    oracle.remove_callback(PrinterCallback)
    oracle.current_gradient_accumulation_steps = 1
    expected = oracle.compute_loss(
        theirs.train(),
        {
            "prompt_ids": ids,
            "prompt_mask": mask,
            "completion_ids": answer,
            "completion_mask": kept,
            "teacher_input_ids": torch.cat([context[None], answer], 1),
            "teacher_attention_mask": torch.cat([torch.ones_like(context)[None], kept], 1),
        },
    )
    expected.backward()
    assert kept.sum() > skip
    found = [expected, [p.grad for p in theirs.parameters()]]

    def computed():
        ours.zero_grad()
        trainer._calls = (-1, 0)
        loss = trainer.compute_loss(ours.train(), inputs)
        loss.backward()
        return [loss, [p.grad for p in ours.parameters()]]

    assert_same_up_to_rounding(found, computed, ours)


def test_trls_arguments_are_taken_as_the_trainers_own_are(trl, tmp_path):
    with pytest.warns(UserWarning, match=r"SFTConfig: max_length are no arguments of transformers.Trainer"):
        found = given_arguments(trl.SFTConfig(output_dir=tmp_path, max_length=77, use_cpu=True, bf16=False))
    # TRL's own defaults are not the Trainer's: they go along.
    assert found["learning_rate"] == trl.SFTConfig(output_dir=tmp_path, use_cpu=True, bf16=False).learning_rate
    assert "max_length" not in found
