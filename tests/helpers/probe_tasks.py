"""A tiny model, rows of two toy domains and probe tasks over them."""

import numpy as np

from opmix.data import PackedSequences, prepare_domain
from opmix.domain import Domain, Source
from opmix.models.layers import model_shape
from opmix.probes.evaluation import HeldOut
from opmix.probes.settings import ProbeSettings
from opmix.probes.tasks import ProbeRuntime, ProbeTask, probe_arguments
from opmix.progress import Silent
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

LENGTH, STEPS, VOCABULARY = 16, 4, 300
TRAINER = {"learning_rate": 1e-2, "per_device_train_batch_size": 2}
OLD, NEW = {"alpha": 0.9, "beta": 0.1}, {"alpha": 0.1, "beta": 0.9}


def toy_rows(folder):
    tokenizer = tiny_tokenizer(vocab_size=VOCABULARY)
    split = {
        name: prepare_domain(
            Domain(name=name, train=Source(paths=(str(path),))), tokenizer, cache_dir=folder / "cache"
        ).train
        for name, path in write_toy_domains(folder, ("alpha", "beta"), 120).items()
    }
    return {name: PackedSequences(tokens, LENGTH) for name, tokens in split.items()}


def model_of(**changes):
    return tiny_model(vocab_size=VOCABULARY, **changes)


def runtime_of(rows, model=None, **changes):
    base = model_of() if model is None else model
    return ProbeRuntime(model=base, shape=model_shape(base), rows=rows, progress=Silent(), **changes)


def held_out(rows):
    return [HeldOut(name, r.batch(np.arange(6)), np.full(6, 40.0)) for name, r in rows.items()]


def task_of(folder, probe="old", mixture=OLD, settings=None, **changes):
    settings = settings or ProbeSettings(steps=STEPS, rank=2)
    given = {
        "probe": probe,
        "mixture": mixture,
        "settings": settings,
        "trainer": probe_arguments(settings, TRAINER),
        "seed": 0,
        "stop": settings.steps,
        "out": folder / probe,
        "parts": folder / f"{probe}-parts",
        "key": probe,
    }
    return ProbeTask(**{**given, **changes})
