"""Searches that stop when they know enough: the rule's limits, parts that are one run, kill and resume, and what is booked."""

import json

import numpy as np
import pytest

import opmix
from opmix.config import parse_config
from opmix.mixing.decision import DecisionSettings, decide
from opmix.mixing.law import fit_law
from opmix.mixing.mixture import Mixture
from opmix.mixing.posterior import resampling_noise
from opmix.mixing.problem import SolveSettings
from opmix.mixing.regret import change, predicted_regret
from opmix.mixture_search.context import repetition
from opmix.mixture_search.estimate import estimate_search
from opmix.mixture_search.verify import verify_run
from opmix.models.layers import model_fingerprint
from opmix.probes import kinds, tasks
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

NAMES = ["web", "code", "math"]
STEPS, BATCH, LENGTH = 4, 4, 32


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    paths = write_toy_domains(folder, NAMES, num_documents=120, seed=0)
    return folder, {name: str(path) for name, path in paths.items()}, tiny_tokenizer()


def find(toys, out, proxies=None, **probes):
    folder, paths, tokenizer = toys
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64)
    return opmix.search(
        model,
        tokenizer,
        paths,
        budget=20_000,
        old_mixture={"web": 0.6, "code": 0.4},
        sequence_length=LENGTH,
        trainer={"learning_rate": 1e-2, "per_device_train_batch_size": BATCH},
        decision={"draws": 8, "confidence": 0.5},
        probes={"steps": STEPS, "rank": 4, "dropout": 0.1, "adaptive": False, "first_look": 1, **probes},
        proxies={"eval_sequences": 16, **(proxies or {})},
        cache_dir=str(folder / "cache"),
        out=out,
    )


@pytest.fixture(scope="module")
def fixed(toys, tmp_path_factory):
    return find(toys, tmp_path_factory.mktemp("fixed"))


@pytest.fixture(scope="module")
def unstopped(toys, tmp_path_factory):
    """Tolerance 0: looked at all the way, never stopped."""
    folder = tmp_path_factory.mktemp("unstopped")
    return find(toys, folder, adaptive=True, tolerance=0), folder


def record_of(result):
    return result.proposal.evidence["adaptive"]


def test_without_tolerance_it_ends_as_the_search_of_fixed_length(fixed, unstopped):
    result, folder = unstopped
    assert dict(result.verdict.optimum.mixture) == dict(fixed.verdict.optimum.mixture)
    assert np.array_equal(result.table.losses, fixed.table.losses)  # three parts with dropout are one run, to the bit
    seen = record_of(result)
    assert [s["steps"] for s in seen["segments"]] == [1, 2, 4]
    assert "for all 4 steps" in seen["reason"]
    assert seen["saved"] < 0  # the looks cost something
    assert not list((folder / "probes").glob("*-parts"))


def test_each_step_of_a_probe_is_booked_once(fixed, unstopped):
    result, _ = unstopped
    ours, theirs = result.ledger, fixed.ledger
    for what in ("tokens", "flops"):
        assert ours.total(what, ["probes"]) == pytest.approx(theirs.total(what, ["probes"]))
        assert ours.total(what, ["proxies"]) > theirs.total(what, ["proxies"])
    assert ours.total("tokens", ["probes"]) == 3 * STEPS * BATCH * LENGTH
    segments = record_of(result)["segments"]
    assert sum(s["flops"] for s in segments) == pytest.approx(ours.total("flops", ["probes", "proxies"]))
    held = 3 * 16 * LENGTH
    early = [3 * s["sequences"] * LENGTH * (s["points"] + 1) for s in segments[:-1]]
    assert ours.total("tokens", ["proxies"]) == sum(early) + held * (segments[-1]["points"] + 1)


def test_killed_anywhere_it_ends_in_the_same_bytes(toys, unstopped, tmp_path, monkeypatch):
    """Killed at the end of a training part, before the adapter is saved, before its record is written, and before a sweep's."""
    whole, folder = unstopped
    trainings, saves, sweeps = [], [], []
    train, save, arrays = tasks.run_training, kinds.AdapterProbes.save, tasks.ProxyLosses.save

    def after(calls, real, where):
        def wrapped(*args):
            calls.append(1)
            made = real(*args)
            if len(calls) in where:
                raise KeyboardInterrupt
            return made

        return wrapped

    monkeypatch.setattr(tasks, "run_training", after(trainings, train, (2, 7)))
    monkeypatch.setattr(kinds.AdapterProbes, "save", after(saves, save, (4, 7)))
    monkeypatch.setattr(tasks.ProxyLosses, "save", after(sweeps, arrays, (2,)))
    killed = 0
    for _ in range(10):
        try:
            resumed = find(toys, tmp_path, adaptive=True, tolerance=0)
            break
        except KeyboardInterrupt:
            killed += 1
    assert killed == 5
    assert len(trainings) == 9 + 4  # 3 probes in 3 parts, and only the parts that were cut off again
    assert resumed.json() == whole.json()
    for file in ("mixture.json", "law_draws.json", "tables/proxies.csv"):
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes()
    for file in folder.glob("probes/*/adapter_model.safetensors"):
        assert (tmp_path / file.relative_to(folder)).read_bytes() == file.read_bytes()


def test_a_stopped_search_goes_on_where_it_stopped_and_its_parts_are_verified(toys, fixed, tmp_path, monkeypatch):
    result = find(toys, tmp_path, adaptive=True, tolerance=1e9)
    seen = record_of(result)
    assert result.ledger.total("tokens", ["probes"]) == 3 * 2 * BATCH * LENGTH  # matched: all probes alike
    assert 0 < seen["saved"] < 1
    assert seen["fixed_flops"] == pytest.approx(fixed.ledger.total("flops", ["probes", "proxies"]), rel=1e-6)
    content = json.loads((tmp_path / "mixture.json").read_text())
    assert content["adaptive"]["segments"] == seen["segments"]
    assert [n for n in content["notes"] if "stopped after 2 of 4 steps" in n and "less than with whole probes" in n]
    _, _, tokenizer = toys
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64)
    before = model_fingerprint(model)
    manifest = json.loads((tmp_path / "manifest.json").read_text())  # as older versions wrote it
    manifest["config"]["proxies"] |= {"gradients": False, "specialised": False}
    manifest["config"]["decision"]["arbiter"] = False
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    made = verify_run(tmp_path, refine=True, max_rounds=1, model=model, tokenizer=tokenizer)
    assert model_fingerprint(model) == before
    assert np.isfinite(made.measured.regret_bound)
    own = json.loads(next((tmp_path / "steps").glob("probe-*-proposal-at-2.json")).read_text())["result"]
    assert own["row_tokens"] == 2 * BATCH * LENGTH  # as long as the probes it is held against
    trained, real = [], tasks.run_training
    monkeypatch.setattr(tasks, "run_training", lambda f, spec: trained.append(spec.resume_from) or real(f, spec))
    stricter = find(toys, tmp_path, adaptive=True, tolerance=0)
    assert len(trained) == 3  # the last two steps of three probes; both looks are found
    assert all(where is not None for where in trained)
    assert dict(stricter.verdict.optimum.mixture) == dict(fixed.verdict.optimum.mixture)


def line(noise, seed=0, num=8):
    """Losses of two evaluation sets along a line whose mean is lowest at the middle, as sums over sequences."""
    rng = np.random.default_rng(seed)
    p = np.linspace(0.1, 0.9, 9)
    mixtures = np.stack([1 - p, p], axis=1)
    means = 2 + np.exp(np.stack([1 - 2 * p, 2 * p - 1], axis=1))
    own = rng.normal(scale=noise, size=(2, num, 2))  # a sequence's own slopes
    tokens = tuple(np.full(num, 100.0) for _ in range(2))
    nll = tuple(100 * (means[:, [e]] + mixtures @ own[e].T) for e in range(2))
    losses = np.stack([n.sum(axis=1) / 100 / num for n in nll], axis=1)
    fit = fit_law(mixtures, losses, domains=("a", "b"), metrics=("x", "y"))
    drawn = resampling_noise(nll, tokens, num_draws=60, seed=1)
    verdict = decide(
        fit,
        candidates={"a": Mixture.of({"a": 1.0, "b": 0.0})},
        reference="a",
        settings=SolveSettings(kl=0.01),
        noise=drawn,
        decision=DecisionSettings(draws=60),
    )
    return verdict, fit, drawn


def test_predicted_regret_falls_with_the_noise_that_evaluation_leaves():
    regrets = [predicted_regret(*line(noise)) for noise in (0.8, 0.2, 0.02)]
    assert [r.mean for r in regrets] == sorted((r.mean for r in regrets), reverse=True)
    assert regrets[0].mean > 10 * regrets[2].mean
    for r in regrets:
        assert 0 <= r.interval[0] <= r.mean <= r.interval[1]
        assert 0.5 < r.noise / r.mean < 2  # nothing but sequences is uncertain here


def test_predicted_regret_is_what_the_draws_say():
    verdict, fit, noise = line(0.3)
    told = predicted_regret(verdict, fit, noise)
    grid = np.stack([1 - np.linspace(0, 1, 2001), np.linspace(0, 1, 2001)], axis=1)
    prior = np.full(2, 0.5)
    kl = 0.01 * np.sum(np.where(grid > 0, grid * np.log(np.maximum(grid, 1e-300) / prior), 0.0), axis=1)
    J = verdict.draws.predict(grid).mean(axis=2) + kl
    at = np.abs(grid[:, 0] - verdict.mixture["a"]).argmin()
    spread = np.ptp(fit.problem.losses.mean(axis=1))
    assert told.mean == pytest.approx(np.mean(J[:, at] - J.min(axis=1)) / spread, rel=0.02)
    assert told.spread == pytest.approx(spread)


def test_change_is_the_cost_of_the_earlier_answer():
    verdict, fit, _ = line(0.02)
    same, near, far = (change(verdict, fit, Mixture.of({"a": a, "b": 1 - a})) for a in (verdict.mixture["a"], 0.6, 0.9))
    assert same == pytest.approx(0, abs=1e-9)
    assert 0 < near < far


def test_the_estimate_says_at_most(unstopped):
    result, _ = unstopped
    names = dict.fromkeys(NAMES, "x")
    content = {
        "model": "m",
        "domains": names,
        "budget": {"tokens": 20_000},
        "sequence_length": LENGTH,
        "proxies": {"eval_sequences": 16},
        "trainer": {"per_device_train_batch_size": BATCH},
        "old_mixture": {"web": 0.6, "code": 0.4},
    }
    old = Mixture.of({"web": 0.6, "code": 0.4})
    plain, most = (
        estimate_search(
            parse_config({**content, "probes": {"steps": STEPS, "adaptive": adaptive, "first_look": 1}}), old
        )
        for adaptive in (False, True)
    )
    assert plain.probe_tokens == most.probe_tokens == result.ledger.total("tokens", ["probes"])
    assert plain.proxy_tokens < result.ledger.total("tokens", ["proxies"]) <= most.proxy_tokens


def test_repetition_is_told_where_probe_and_stage_differ():
    assert repetition("code", 0.2, 0.9) == []
    assert repetition("code", 3.0, 3.5) == []  # repeated, but as the stage will
    assert "2.0 times over, the stage would read it 0.5 times" in repetition("code", 2.0, 0.5)[0]
    assert "the stage would read code 8.0 times over" in repetition("code", 0.5, 8.0)[0]


def test_every_probe_starts_where_the_others_do(unstopped):
    """Matched steps: the first part of each probe has seen as many tokens as that of any other."""
    _, folder = unstopped
    for steps in (1, 2):
        records = [json.loads(f.read_text())["result"] for f in (folder / "steps").glob(f"probe-*-at-{steps}.json")]
        assert [r["row_tokens"] for r in records] == [steps * BATCH * LENGTH] * 3
