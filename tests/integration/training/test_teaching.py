"""Self-distillation teaches: a model that can follow a demonstration learns to answer without one, never shown the answer as a target."""

import itertools
import json

import numpy as np
import pytest

from opmix.config import parse_config
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import prepare_stage
from opmix.models.layers import model_shape
from opmix.progress import Silent
from opmix.scores import extractor_of, score_split
from opmix.testing import tiny_chat_tokenizer, tiny_model
from opmix.training.factory import TrainSpec, run_training
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training

WORDS = list("abcdefgh")
ASK = "{prompt} such as {demonstration}"


def stage(folder, name, rows, objective, tokenizer):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in rows))
    splits = dict.fromkeys(("train", "valid", "test"), str(path))
    config = parse_config(
        {
            "model": "m",
            "domains": {"a": splits, "b": splits},
            "budget": {"tokens": 1000},
            "sequence_length": 32,
            "objective": objective,
            "sdft": {"demonstration": ASK, "max_new_tokens": 4, "skip_tokens": 0},
        }
    )
    return prepare_stage(config, tokenizer, base=folder, cache_dir=folder / "cache", progress=Silent(), limit=256)


def train(data, model, steps, rate, folder):
    arguments = {"per_device_train_batch_size": 32, "learning_rate": rate, "lr_scheduler_type": "constant"}
    plan = plan_training(
        {"a": data.train["a"]},
        Mixture.of({"a": 1.0}),
        steps=steps,
        arguments=arguments,
        seed=0,
        objective=data.objective,
    )
    spec = TrainSpec(
        model=model, dataset=plan.dataset, output_dir=folder, steps=steps, seed=0, arguments=plan.arguments
    )
    run_training(data.objective.trainer(None, Usage(), model_shape(model)), spec)


@pytest.mark.slow
def test_a_model_learns_what_its_demonstrated_self_knows(tmp_path):
    tokenizer, rng = tiny_chat_tokenizer(), np.random.default_rng(0)
    model = tiny_model(vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128)
    # It learns to repeat a demonstration, and that any word may answer a question without one.
    pairs = list(itertools.product(WORDS, WORDS))
    shown = [(ASK.replace("{prompt}", q).replace("{demonstration}", a), a) for q, a in pairs]
    train(stage(tmp_path, "shown", shown * 3 + pairs, "sft", tokenizer), model, 200, 5e-3, tmp_path)
    # Then each word gets one answer, which only the teacher sees.
    answers = rng.permutation(WORDS).tolist()
    data = stage(tmp_path, "taught", list(zip(WORDS, answers, strict=True)) * 20, "sdft", tokenizer)

    def right():
        split = data.domains["a"].valid
        return score_split(model, tokenizer, split, extractor_of("exact"), stop_ids=(0, 513), max_new_tokens=4).share

    before = right()
    train(data, model, 60, 1e-3, tmp_path)
    assert before < 0.5
    assert right() > 0.9
