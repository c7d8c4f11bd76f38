"""On-policy distillation: another model teaches, asked the plain question."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from opmix.config import parse_config as parse
from opmix.errors import ConfigError, ModelError
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import prepare_stage
from opmix.models.layers import model_shape
from opmix.progress import Silent
from opmix.settings import as_json
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats
from opmix.training.distillation import reverse_kl
from opmix.training.factory import TrainSpec, run_training
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training
from opmix.training.settings import DEMONSTRATION, DistillationSettings


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("teacher")
    model = tiny_model(vocab_size=len(tokenizer), seed=7, num_hidden_layers=1)
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture(scope="module")
def data(tmp_path_factory, tokenizer, teacher):
    folder = tmp_path_factory.mktemp("data")
    config = parse(
        {
            "model": "m",
            "domains": {n: str(f) for n, f in write_toy_chats(folder, {"terse": 1, "wordy": 2}, 60).items()},
            "budget": {"tokens": 1000},
            "sequence_length": 128,
            "objective": "sdft",
            "sdft": {"max_new_tokens": 6, "skip_tokens": 0, "teacher_model": str(teacher[0])},
        }
    )
    return prepare_stage(config, tokenizer, base=folder, cache_dir=folder / "cache", progress=Silent(), limit=256)


def train(data, model, folder, steps):
    usage = Usage()
    arguments = {"per_device_train_batch_size": 4, "learning_rate": 1e-2}
    plan = plan_training(
        data.train,
        Mixture.of({"terse": 0.5, "wordy": 0.5}),
        steps=steps,
        arguments=arguments,
        seed=0,
        objective=data.objective,
    )
    factory = data.objective.trainer(None, usage, model_shape(model))
    run_training(
        factory,
        TrainSpec(model=model, dataset=plan.dataset, output_dir=folder, steps=steps, seed=0, arguments=plan.arguments),
    )
    return usage


def test_the_question_is_plain_unless_said_otherwise():
    assert DistillationSettings().demonstration == DEMONSTRATION
    assert DistillationSettings(teacher_model="m").demonstration == "{prompt}"
    assert DistillationSettings(**as_json(DistillationSettings(teacher_model="m"))).demonstration == "{prompt}"
    assert DistillationSettings(teacher_model="m", demonstration="Kindly: {prompt}").demonstration == "Kindly: {prompt}"
    with pytest.raises(ConfigError, match=r"no \{prompt\}"):
        DistillationSettings(teacher_model="m", demonstration="hello")
    with pytest.raises(ConfigError, match=r"no \{demonstration\}"):
        DistillationSettings(demonstration="{prompt}")


def test_contexts_are_the_prompts(data):
    plan = plan_training(
        data.train,
        Mixture.of({"terse": 1.0, "wordy": 0.0}),
        steps=1,
        arguments={"per_device_train_batch_size": 2},
        seed=0,
        objective=data.objective,
    )
    item = data.objective.dataset(data.train, plan.plan, document_mask=False)[0]
    assert torch.equal(item["prompt"], item["context"])


def test_the_student_comes_to_predict_as_the_teacher_does(data, teacher, tokenizer, tmp_path):
    _, model = teacher
    student = tiny_model(vocab_size=len(tokenizer), seed=1)
    ids = torch.stack([torch.from_numpy(data.train["terse"][i][:24]) for i in range(6)])

    def distance():
        with torch.no_grad():
            return float(reverse_kl(student.eval()(ids).logits, model.eval()(ids).logits).mean())

    before = distance()
    usage = train(data, student, tmp_path, 30)
    assert distance() < 0.6 * before
    assert usage.sampled_tokens > 0
    reloaded = {k: v.clone() for k, v in model.state_dict().items()}
    assert all(torch.equal(v, reloaded[k]) for k, v in model.state_dict().items())


def test_flops_count_the_teacher_that_teaches(tmp_path):
    student, teacher = (
        tiny_model(num_hidden_layers=1),
        tiny_model(num_hidden_layers=4, hidden_size=64, num_key_value_heads=4),
    )
    for model in (student, teacher):
        model.config._attn_implementation = "eager"  # the counter sees matrix products, not fused kernels on the CPU
    both = {"rows": 3, "prompt": 20, "context": 45, "sampled": 12}
    alone = model_shape(student).distillation(**both)
    taught = model_shape(student).distillation(**both, teacher=model_shape(teacher))
    ids = torch.randint(2, 100, (3, 57))
    read = []
    for model in (student, teacher):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(ids, logits_to_keep=13)
        read.append(counter.get_total_flops())
    assert taught - alone == pytest.approx(read[1] - read[0], rel=0.06)


def test_fingerprints_follow_the_teachers_files(data, teacher, tmp_path):
    settings = data.objective.settings()
    other = replace(data.objective, options=replace(data.objective.options, teacher_model=str(tmp_path)))
    (tmp_path / "config.json").write_text("{}")
    assert settings["teacher_model"] != str(teacher[0])
    assert other.settings()["teacher_model"] != settings["teacher_model"]


def test_another_vocabulary_is_refused(data, tokenizer, tmp_path):
    tiny_model(vocab_size=len(tokenizer) + 8).save_pretrained(tmp_path / "other")
    options = replace(data.objective.options, teacher_model=str(tmp_path / "other"))
    changed = replace(data, objective=replace(data.objective, options=options))
    with pytest.raises(ModelError, match="a vocabulary of"):
        train(changed, tiny_model(vocab_size=len(tokenizer)), tmp_path, 1)
