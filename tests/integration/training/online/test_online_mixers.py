"""Every mixer on a real model: it gets what it asks for, decides, and a run that was killed ends the same."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import TrainerCallback

from opmix.data import PackedSequences, prepare_domain
from opmix.domain import Domain, Source
from opmix.methods.online.doge import GradientAlignment
from opmix.methods.online.doremi import GroupDro
from opmix.methods.registry import entry_of
from opmix.progress import Silent
from opmix.protocols.mixing_method import DecisionProblem
from opmix.protocols.trials import Trials
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_domains
from opmix.training.checkpoints import Checkpoints
from opmix.training.full import train_on_mixture
from opmix.training.online import OnlineRun, train_online
from opmix.training.signals import SignalSources

LENGTH, STEPS, NAMES = 24, 12, ("alpha", "beta")
ARGUMENTS = {"learning_rate": 5e-3, "per_device_train_batch_size": 4, "logging_steps": 1}
MIXERS = {
    **{name: entry_of(name).make() for name in ("odm", "skill_it", "aioli", "grape")},
    "ado": entry_of("ado").make({"every": 2, "points": 3}),
    "tikmix": entry_of("tikmix").make({"every": 3}),
    "dro": GroupDro(every=2),
    "alignment": GradientAlignment(every=2),
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.fixture(scope="module")
def rows(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("texts")
    prepared = {
        name: prepare_domain(Domain(name=name, train=Source(paths=(str(path),))), tokenizer, cache_dir=folder / "cache")
        for name, path in write_toy_domains(folder, NAMES, 120).items()
    }
    return {n: {s: PackedSequences(getattr(d, s), LENGTH) for s in ("train", "valid")} for n, d in prepared.items()}


@dataclass
class SmallBench:
    """What mixers ask of a bench before a run: short trainings of a real model."""

    rows: dict
    vocabulary: int
    folder: Path

    def __post_init__(self):
        available = {n: len(r["train"]) * LENGTH for n, r in self.rows.items()}
        self.problem = DecisionProblem(
            domains=NAMES, old=None, budget_tokens=STEPS * 4 * LENGTH, available_tokens=available
        )

    def model(self, seed=0):
        return tiny_model("llama", vocab_size=self.vocabulary, seed=seed)

    def evaluate(self, model):
        with torch.no_grad():
            batches = [torch.as_tensor(r["valid"].batch(np.arange(4))) for r in self.rows.values()]
            return np.array([float(model(input_ids=ids, labels=ids).loss) for ids in batches])

    def train(self, mixtures, proxy, *, label):
        losses = []
        for mixture in mixtures:
            model = self.model()
            train_on_mixture(
                model,
                {n: r["train"] for n, r in self.rows.items()},
                mixture,
                tokens=proxy.tokens,
                arguments=ARGUMENTS,
                seed=0,
                output_dir=self.folder,
                progress=Silent(),
                name=label,
            )
            losses.append(self.evaluate(model.eval()))
        errors = np.zeros((len(losses), len(NAMES)))
        return Trials(
            metrics=NAMES,
            mixtures=tuple(mixtures),
            losses=np.array(losses),
            standard_errors=errors,
            baseline=self.evaluate(self.model()),
        )


class KilledError(Exception):
    """What stops a run in the middle."""


class KillAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KilledError


@pytest.mark.parametrize("name", MIXERS)
def test_it_lives_a_real_run_and_survives_a_kill(rows, tokenizer, tmp_path, name):
    bench, mixer = SmallBench(rows, len(tokenizer), tmp_path), MIXERS[name]
    senses = SignalSources(
        evaluate=bench.evaluate,
        held_out={n: r["valid"] for n, r in rows.items()},
        reference=bench.model(seed=5),
        gradient_rows=4,
    )
    train = {n: r["train"] for n, r in rows.items()}
    ends, results = [], []
    for kill in (False, True):
        run = OnlineRun(
            mixer=mixer,
            start=mixer.init(bench, STEPS),
            rows=train,
            steps=STEPS,
            arguments=ARGUMENTS,
            seed=1,
            senses=senses,
        )
        folder, kept, model = tmp_path / str(kill), Checkpoints(key="k", save_every=2), bench.model()
        if kill:
            with pytest.raises(KilledError):
                train_online(bench.model(), run, folder=folder, checkpoints=kept, callbacks=[KillAt(7)])
        results.append(train_online(model, run, folder=folder, checkpoints=kept))
        ends.append({k: v.clone() for k, v in model.state_dict().items()})
    assert all(torch.equal(value, ends[1][k]) for k, value in ends[0].items())
    first, second = results
    assert (first.segments, first.state) == (second.segments, second.state)
    assert sum(s.steps for s in first.segments) == STEPS
    assert len({s.mixture for s in first.segments}) > (
        0 if name == "tikmix" else 1
    )  # its constraint may pin the mixture
