"""Self-distillation that was interrupted ends where the unbroken run does: the teacher is part of a checkpoint."""

import pytest
import torch

from opmix.config import parse_config
from opmix.data import MixtureDataset, plan_mixture
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import prepare_stage
from opmix.models.layers import model_shape
from opmix.progress import Silent
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats
from opmix.training.factory import TrainSpec, run_training
from opmix.training.objectives import Usage
from opmix.training.plan import plan_training


@pytest.mark.parametrize("teacher", ["ema", "frozen"])
def test_a_resumed_run_ends_in_the_same_weights(tmp_path, teacher):
    tokenizer = tiny_chat_tokenizer()
    files = write_toy_chats(tmp_path, {"terse": 1, "wordy": 2}, 120)
    config = parse_config(
        {
            "model": "m",
            "domains": {n: str(f) for n, f in files.items()},
            "budget": {"tokens": 1000},
            "sequence_length": 160,
            "objective": "sdft",
            "sdft": {"max_new_tokens": 6, "skip_tokens": 0, "teacher": teacher, "ema_rate": 0.3},
        }
    )
    data = prepare_stage(config, tokenizer, base=tmp_path, cache_dir=tmp_path / "cache", progress=Silent(), limit=256)
    arguments = {
        "per_device_train_batch_size": 3,
        "learning_rate": 1e-2,
        "save_strategy": "steps",
        "save_steps": 2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "lr_scheduler_type": "constant",
    }
    plan = plan_training(
        data.train,
        Mixture.of({"terse": 0.5, "wordy": 0.5}),
        steps=4,
        arguments=arguments,
        seed=0,
        objective=data.objective,
    )
    valid = data.rows("valid")
    watched = MixtureDataset(
        valid, plan_mixture(Mixture.of({"terse": 1.0}), 3, {n: len(r) for n, r in valid.items()}, seed=0)
    )
    ends = []
    for resume in (None, tmp_path / "run" / "checkpoint-2"):
        model = tiny_model(vocab_size=len(tokenizer), seed=0 if resume is None else 1)
        spec = TrainSpec(
            model=model,
            dataset=plan.dataset,
            output_dir=tmp_path / "run",
            steps=4,
            seed=0,
            arguments=plan.arguments,
            resume_from=resume,
            held_out={"terse": watched},
        )
        trainer = run_training(data.objective.trainer(None, Usage(), model_shape(model)), spec)
        assert any("eval_terse_loss" in entry for entry in trainer.state.log_history)
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    assert all(torch.equal(a, ends[1][k]) for k, a in ends[0].items())
