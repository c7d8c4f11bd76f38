"""Online runs on a two-layer model: their data, mixers that want every signal or none, and what kills a run at a moment."""

import numpy as np
import pytest
import torch

from opmix.data import ChatRows, PackedSequences, prepare_domain
from opmix.domain import ChatOptions, Domain, Source
from opmix.mixing.mixture import Mixture
from opmix.protocols.online_mixer import MixerSegment
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains
from opmix.training.online import OnlineRun
from opmix.training.signals import SignalSources

LENGTH, STEPS, NAMES = 24, 10, ("alpha", "beta", "gamma")
ARGUMENTS = {
    "learning_rate": 5e-3,
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "logging_steps": 1,
    "lr_scheduler_type": "linear",
}


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_chat_tokenizer()


@pytest.fixture(scope="module")
def splits(tmp_path_factory, tokenizer):
    folder = tmp_path_factory.mktemp("texts")
    files = write_toy_domains(folder, NAMES, 120) | write_toy_chats(folder, {"terse": 1, "wordy": 3}, 120)
    return {
        name: prepare_domain(Domain(name=name, train=Source(paths=(str(path),))), tokenizer, cache_dir=folder / "cache")
        for name, path in files.items()
    }


@pytest.fixture(scope="module")
def texts(splits):
    return {n: PackedSequences(splits[n].train, LENGTH) for n in NAMES}


@pytest.fixture(scope="module")
def chats(splits):
    options = ChatOptions(packing=False, truncate="left")
    made = {n: ChatRows(splits[n].train, 96, options) for n in ("terse", "wordy")}
    return {**made, "alpha": PackedSequences(splits["alpha"].train, 96)}


@pytest.fixture
def model(tokenizer):
    return fresh(tokenizer)


def fresh(tokenizer, seed=0):
    return tiny_model("llama", vocab_size=len(tokenizer), seed=seed, attention_dropout=0.1)


class Everything:
    """Wants every signal, and lets each of them move its mixture."""

    signals = frozenset({"train_loss", "held_out", "gradients", "excess"})

    def __init__(self, every=3):
        self.every, self.seen = every, []

    def init(self, names):
        return {"log": [], "weights": [1 / len(names)] * len(names)}, MixerSegment(Mixture.uniform(names), self.every)

    def update(self, state, seen):
        self.seen.append(seen)
        parts = [seen.train_loss, seen.held_out, seen.gradients.sum(axis=1), seen.gradient_norms, 10 * seen.excess]
        scores = sum(np.nan_to_num(part) for part in parts)
        raw = np.exp(scores - scores.max())
        weights = raw / raw.sum()
        state = {"log": [*state["log"], [p.tolist() for p in parts]], "weights": weights.tolist()}
        return state, MixerSegment(Mixture(seen.mixture.names, 0.5 * weights + 0.5 / len(weights)), self.every)


class Fixed:
    """Never changes its mind."""

    def __init__(self, mixture, every=3, signals=()):
        self.mixture, self.every, self.signals = mixture, every, frozenset(signals)

    def update(self, state, seen):
        return state, MixerSegment(self.mixture, self.every)


def evaluate_on(rows):
    def evaluate(model):
        torch.rand(3)  # draws, as an evaluation may
        np.random.rand(3)  # noqa: NPY002
        with torch.no_grad():
            losses = []
            for r in rows.values():
                ids = torch.as_tensor(r.batch(np.arange(4)))
                losses.append(float(model(input_ids=ids, labels=ids).loss))
        return np.array(losses)

    return evaluate


def run_of(mixer, start, rows, tokenizer, **changes):
    senses = SignalSources(
        evaluate=evaluate_on(rows),
        evaluate_tokens=100,
        held_out=rows,
        reference=fresh(tokenizer, seed=9).train(),
        gradient_rows=3,
    )
    settings = {"steps": STEPS, "arguments": ARGUMENTS, "seed": 3, "senses": senses, **changes}
    return OnlineRun(mixer=mixer, start=start, rows=rows, **settings)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())
