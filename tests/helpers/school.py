"""Two toy domains, a model that has learned the first of them, and lessons in the second."""

from dataclasses import replace

import pytest
import torch

from opmix.config import parse_config
from opmix.continual.base import StageContext
from opmix.data import pad_rows
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import prepare_stage
from opmix.models.layers import model_shape
from opmix.progress import Silent
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains
from opmix.training.checkpoints import Checkpoints
from opmix.training.factory import default_trainer
from opmix.training.full import planned_run, train_on_mixture, train_segment
from opmix.training.objectives import CAUSAL_LM, Usage
from opmix.training.plan import plan_training

LENGTH = 128
ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.0,
}


class School:
    """Data, the model after its first stage, and ways to teach it more."""

    def __init__(self, tmp):
        self.tmp, self.tokenizer = tmp, tiny_chat_tokenizer()
        files = {**write_toy_domains(tmp, ("alpha", "beta", "gamma"), 150), **write_toy_chats(tmp, {"chat": 1}, 80)}
        config = parse_config(
            {
                "model": "m",
                "domains": {n: str(f) for n, f in files.items()},
                "budget": {"tokens": 1000},
                "sequence_length": LENGTH,
                "objective": "sft",
            }
        )
        self.data = prepare_stage(
            config, self.tokenizer, base=tmp, cache_dir=tmp / "cache", progress=Silent(), limit=256
        )
        self.train, self.valid = self.data.train, self.data.rows("valid")
        self._educated = {}

    def model(self, seed=0):
        return tiny_model(vocab_size=len(self.tokenizer), seed=seed)

    def educated(self, steps=40, seed=0):
        """A model trained on alpha."""
        model = self.model(seed)
        if (steps, seed) not in self._educated:
            train_on_mixture(
                model,
                self.only("alpha"),
                Mixture.of({"alpha": 1.0}),
                tokens=steps * 4 * LENGTH,
                arguments=ARGUMENTS,
                seed=seed,
                output_dir=self.tmp / "first",
                progress=Silent(),
                name="first",
            )
            self._educated[steps, seed] = {k: v.clone() for k, v in model.state_dict().items()}
        model.load_state_dict(self._educated[steps, seed])
        return model

    def only(self, *names):
        return {n: self.train[n] for n in names}

    def lesson(self, folder, old=("alpha",), before=None, **more):
        folder.mkdir(parents=True, exist_ok=True)
        return StageContext(
            old=self.only(*old),
            old_mixture=Mixture.uniform(list(old)) if old else None,
            rows_per_step=4,
            collate=pad_rows,
            seed=0,
            shape=model_shape(self.model()),
            sequence_length=LENGTH,
            folder=folder,
            before=before,
            usage=Usage(),
            **more,
        )

    def teach(
        self, learner, model, lesson, folder, *, new="beta", steps=4, arguments=None, callbacks=(), save_every=2, seed=0
    ):
        """A stage on the new domain as the engine runs it; None as the learner: plain training."""
        arguments = {**ARGUMENTS, **(arguments or {})}
        plan = plan_training(
            self.only(new), Mixture.of({new: 1.0}), steps=steps, arguments=arguments, seed=seed, objective=CAUSAL_LM
        )
        model = model if learner is None else learner.begin(model, lesson)
        spec = replace(
            planned_run(model, plan, folder=folder, seed=seed),
            callbacks=callbacks,
            arguments={"logging_steps": 1, **plan.arguments},
        )
        trainer = train_segment(
            spec,
            Checkpoints(key="k", save_every=save_every),
            usage=lesson.usage,
            make_trainer=default_trainer if learner is None else lambda spec: learner.trainer(replace(spec), lesson),
        )
        return trainer.model if learner is None else learner.end(trainer.model, lesson)

    def loss(self, model, name):
        """Nats per token on held-out rows."""
        rows = self.valid[name]
        ids = torch.from_numpy(rows.batch(range(min(24, len(rows)))))
        with torch.no_grad():
            return float(model.eval()(input_ids=ids, labels=ids).loss)


def weights_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.fixture(scope="session")
def school(tmp_path_factory):
    return School(tmp_path_factory.mktemp("school"))
