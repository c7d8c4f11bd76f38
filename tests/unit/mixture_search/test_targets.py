"""Targets: metrics without a domain, in the settings, the objective, the data and a whole small search."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import opmix
from opmix.cli.search import show_search
from opmix.config import parse_config
from opmix.errors import ConfigError, InfeasibleError
from opmix.methods.op_mix import method_of
from opmix.mixing.attainable import attainable_limits
from opmix.mixing.constraints import Constraints
from opmix.mixing.log_linear import LogLinearLaw
from opmix.mixing.mixture import InterpolationWeights
from opmix.mixing.paired import objective_values
from opmix.mixing.problem import Coordinates, SolveSettings
from opmix.mixing.solver import solve
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.feasible import problem_of
from opmix.mixture_search.payoff import CHANCE, silent_targets
from opmix.progress import Silent
from opmix.protocols.mixing_method import Fidelity
from opmix.runs.store import RunStore
from opmix.target import objective_weights
from opmix.testing import tiny_chat_tokenizer, tiny_model, tiny_tokenizer, write_toy_chats, write_toy_domains
from opmix.training.settings import DistillationSettings
from opmix.training.stage_data import prepare_data


def config_of(**more):
    content = {"model": "m", "domains": {"web": "web.jsonl", "code": "code.jsonl"}, "budget": 1000, **more}
    return parse_config(content)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"targets": {"web": "dev.jsonl"}}, "targets.web: is a domain's name too"),
        ({"targets": {"a dev set": "dev.jsonl"}}, "expected 1-80 letters"),
        ({"targets": {"dev": {"valid": "dev.jsonl", "weight": 0}}}, "all weights are 0"),
        ({"targets": {"dev": {"valid": "dev.jsonl", "kind": "exam"}}}, "targets.dev.kind"),
        ({"targets": {"dev": {"kind": "choice"}}}, "expected either valid"),
        ({"targets": {"dev": {"task": "arc_easy", "valid": "a.jsonl"}}}, "expected either valid"),
        ({"targets": {"dev": {"task": "arc_easy", "kind": "choice"}}}, "a task has its own"),
        ({"targets": {"dev": {"valid": "a.jsonl", "limit": 3}}}, "of a task alone"),
        (
            {"domains": {"web": {"train": "w.jsonl", "kind": "choice"}, "b": "b.jsonl"}},
            "web.kind: 'choice' is of targets",
        ),
        ({"targets": {"dev": {"valid": "a.jsonl", "test": "a.jsonl"}}}, "targets.dev.test: the same text as valid"),
        (
            {"targets": {"dev": "d.jsonl"}, "solve": {"weights": {"devv": 1}}},
            "solve.weights.devv: unknown domain or target",
        ),
        ({"targets": {"dev": "d.jsonl"}, "solve": {"floors": {"dev": 0.1}}}, "solve.floors.dev: unknown domain"),
    ],
)
def test_what_is_wrong_with_targets_is_said_before_anything_is_read(more, said):
    with pytest.raises(ConfigError, match=said):
        config_of(**more)


def test_a_family_counts_as_one_target_and_a_domain_only_where_it_is_named():
    targets = {
        "a": _target(family="exams"),
        "b": _target(family="exams"),
        "c": _target(weight=2.0),
    }
    weights = objective_weights(targets, {"web": 0.2}, ["web", "code", "a", "b", "c"])
    np.testing.assert_allclose(weights, [0.2, 0.0, 0.5, 0.5, 2.0])


def _target(**more):
    return config_of(targets={"x": {"valid": "x.jsonl", **more}}).targets["x"]


def test_for_targets_a_gain_that_is_likelier_than_not_is_enough_unless_more_is_asked():
    aimed = {"targets": {"dev": "dev.jsonl"}}
    told = [
        config_of(),
        config_of(**aimed),
        config_of(**aimed, decision={"confidence": 0.8}),
        config_of(decision={"confidence": 0.8}),
    ]
    assert [config.rule.asked for config in told] == [0.9, 0.5, 0.8, 0.8]
    assert config_of(seed=7).rule.seed == 7


@pytest.mark.parametrize("law", ["log_linear", "effective_tokens"])
def test_a_move_is_tried_on_trained_probes_unless_that_is_switched_off(law):
    assert method_of(config_of(law=law)).verify
    assert not method_of(config_of(law=law, decision={"verify": False})).verify


def test_with_targets_every_training_domain_is_limited_unless_that_is_lifted():
    aimed = {"targets": {"dev": "dev.jsonl"}}
    baseline = {"web": 3.0, "code": 2.0, "dev": 4.0}
    config = config_of(**aimed, solve={"loss_limits": {"web": 1, "dev": 0}})
    assert config.default_limits == ("code",)
    assert config.constraints(baseline=baseline).max_loss == pytest.approx({"web": 3.03, "dev": 4.0, "code": 2.1})
    assert config_of(**aimed, solve={"loss_limits": "none"}).constraints(baseline=baseline).max_loss == {}
    assert config_of().constraints(baseline=baseline).max_loss == {}
    assert config.chosen_law == "effective_tokens"


def law_of(t, c=None):
    names = ("web", "code")
    t = np.array(t)
    metrics = ("web", "code", "dev")[: len(t)]
    return LogLinearLaw(metrics, names, np.array(c or [2.0] * len(t)), t, np.zeros(len(t)), 9)


def test_the_worst_case_is_taken_over_the_counted_sets_alone():
    law = law_of([[0.0, 1.0], [1.0, 0.0], [-0.5, 0.8]])
    reference = np.array([np.inf, np.inf, 1.0])
    found = solve(law, settings=SolveSettings(objective="worst_case", reference=reference, kl=0.0))
    assert found.mixture["web"] == pytest.approx(1.0, abs=1e-6)  # the only counted set wants nothing but web


def test_limits_that_no_mixture_meets_are_named_with_the_smallest_that_can_be_met():
    law = law_of([[0.0, 1.0], [1.0, 0.0]])
    current = {"web": 3.2, "code": 3.2}
    limited = Constraints(max_loss={m: x * 1.05 for m, x in current.items()}, current_loss=current)
    coordinates = Coordinates.identity(law.domains)
    with pytest.raises(InfeasibleError):
        solve(law, constraints=limited)
    (sentence,) = attainable_limits(law, coordinates, limited)
    percent = np.ceil(((2.0 + np.exp(0.5)) / 3.2 - 1) * 1000) / 10
    assert f"web {percent:.1f} %, code {percent:.1f} %" in sentence
    wider = Constraints(max_loss={m: x * (1 + (percent + 0.1) / 100) for m, x in current.items()})
    assert solve(law, constraints=wider).max_violation < 1e-6


def test_a_chat_target_is_scored_on_its_answers_in_a_stage_that_trains_on_text(tmp_path):
    text = write_toy_domains(tmp_path, ["web", "code"], 100)
    chats = write_toy_chats(tmp_path, {"support": 2}, 60)
    config = config_of(domains={n: str(f) for n, f in text.items()}, targets={"support": str(chats["support"])})
    data = prepare_data(
        config.domains,
        tiny_chat_tokenizer(),
        targets={"support": config.targets["support"].domain("support", tmp_path)},
        objective="causal_lm",
        sdft=DistillationSettings(),
        sequence_length=96,
        cache_dir=tmp_path / "cache",
        num_proc=1,
        progress=Silent(),
    )
    assert list(data.train) == ["web", "code"]
    rows = data.evaluated("valid")["support"]
    labels = rows.labels(0)
    assert 0 < (labels == -100).sum() < len(labels)
    valid, test = (data.counts("support", split)["documents"] for split in ("valid", "test"))
    assert valid + test == 60
    assert test > 5
    without = data.only(["web", "code"])
    assert without.targets == {}
    assert without.fingerprint != data.fingerprint


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("targets")
    domains = write_toy_domains(folder, ["alpha", "beta"], 160)
    lines = domains["alpha"].read_text().splitlines(keepends=True)
    domains["alpha"].write_text("".join(lines[:100]))
    dev = folder / "dev.jsonl"
    dev.write_text("".join(lines[100:]))
    tokenizer = tiny_tokenizer()
    return folder, {n: str(f) for n, f in domains.items()}, dev, tokenizer


def searched(toy, **more):
    folder, domains, _, tokenizer = toy
    settings = {
        "budget": 60_000,
        "sequence_length": 64,
        "trainer": {"learning_rate": 5e-3, "per_device_train_batch_size": 8},
        "probes": {"steps": 12, "rank": 4},
        "proxies": {"eval_sequences": 16},
        "decision": {"draws": 20},
        "cache_dir": str(folder / "cache"),
    }
    return opmix.search(tiny_model(vocab_size=len(tokenizer)), tokenizer, domains, **{**settings, **more})


@pytest.mark.slow
def test_a_search_for_a_target_takes_more_of_the_domain_that_is_like_it(toy, tmp_path, capsys):
    found = searched(toy, targets={"manual": str(toy[2])}, law="log_linear", out=tmp_path)
    assert found.table.metrics == ("alpha", "beta", "manual")
    assert found.table.domains == ("alpha", "beta")
    assert found.verdict.settings.omega.tolist() == [0, 0, 1]
    assert found.verdict.optimum.mixture["alpha"] > 0.55
    assert any("loss_limits: none" in note for note in found.notes)
    kept = json.loads((tmp_path / "mixture.json").read_text())
    assert set(kept["targets"]["manual"]) == {"valid", "test"}
    assert kept["baseline_bits_per_byte"]["manual"] > 0
    assert "manual" not in kept["mixture"]
    assert kept["payoff"]["weights"] == {"alpha": 0.0, "beta": 0.0, "manual": 1.0}
    assert kept["payoff"]["changes"]["manual"]["nats"] < 0 < kept["payoff"]["changes"]["beta"]["nats"]
    assert "targets, nats against current: manual -" in repr(found)
    show_search(found, tmp_path)
    printed = capsys.readouterr().out
    assert "Gain over" in printed
    assert printed.index("manual") < printed.rindex("alpha")
    assert "manual" in (tmp_path / "report.html").read_text()


def test_a_target_that_is_trained_on_is_refused_before_any_training(toy):
    with pytest.raises(ConfigError, match="is what domain 'beta' trains on"):
        searched(toy, targets={"manual": toy[1]["beta"]})


def simulated(spreads, noise=0.01, sequences=24, seed=0, probes=3):
    """Three probes and a mean of them; sets differ between the probes by so much, and sequences by noise."""
    rng = np.random.default_rng(seed)
    tokens = np.full(sequences, 50.0)
    nll = []
    for spread in spreads:
        means = 3.0 + spread * np.array([[-1.0], [0.0], [1.0], [0.0]])
        nll.append(tokens * (means + noise * rng.standard_normal((4, sequences))))
    losses = np.stack([n.sum(axis=1) / tokens.sum() for n in nll], axis=1)
    names = ("a", "b", "c")
    weights = [*np.eye(3)[:probes], *[np.full(3, 1 / 3)] * (4 - probes)]
    return SimpleNamespace(
        metrics=("web", "code", "dev", "far"),
        nll=nll,
        tokens=[tokens] * len(spreads),
        losses=losses,
        points=tuple(InterpolationWeights(names, row) for row in weights),
        fidelity=Fidelity(thinning=2),
    )


def test_a_target_that_the_probes_tell_nothing_of_has_no_say_unless_it_is_named():
    targets = {"dev": "dev.jsonl", "far": "far.jsonl"}
    world = simulated([0.0, 0.1, 0.1, 0.0])
    found = silent_targets(config_of(targets=targets), world)
    assert list(found) == ["far"]
    assert found["far"].spread < 2 * found["far"].noise
    assert silent_targets(config_of(targets=targets, solve={"weights": {"far": 1}}), world) == {}
    nothing = simulated([0.0, 0.1, 0.0, 0.0])
    assert silent_targets(config_of(targets=targets), nothing) == {}  # something must be minimised
    one = simulated([0.0, 0.1, 0.1, 0.0], probes=1)
    assert silent_targets(config_of(targets=targets), one) == {}  # averages tell nothing of the probes


def test_a_target_of_noise_alone_has_a_say_as_seldom_as_is_said():
    config = config_of(targets={"dev": "dev.jsonl", "far": "far.jsonl"})
    said = sum(not silent_targets(config, simulated([0.0, 0.1, 0.1, 0.0], seed=seed)) for seed in range(400))
    assert (
        400 * CHANCE * 0.4 < said < 400 * CHANCE * 2.5
    )  # 20 expected, standard deviation 4.4; heavier tails of few sequences


@pytest.mark.parametrize(("steps", "said"), [(None, ["far"]), (4, [])])
def test_what_has_no_say_is_told_of_whole_probes_however_thinned(steps, said, tmp_path):
    config = config_of(targets={"dev": "dev.jsonl", "far": "far.jsonl"})
    world = simulated([0.0, 0.1, 0.1, 0.0])
    world.fidelity = Fidelity(steps=steps, thinning=2)
    context = SearchContext(config, tmp_path, RunStore(tmp_path), Silent(), None)
    context.prepared = SimpleNamespace(bytes_per_token={})
    context.problem = problem_of(config, dict.fromkeys(config.domains, 10_000))
    settings = context.solve_settings(np.full(4, 3.0), world.metrics, simulated=world)
    assert list(context.silent) == said
    assert (settings.weights(4)[3] == 0) == bool(said)


def asked(config, bytes_per_token, tmp_path):
    """What a search with these bytes per token would minimise."""
    context = SearchContext(config, tmp_path, RunStore(tmp_path), Silent(), None)
    context.prepared = SimpleNamespace(bytes_per_token=bytes_per_token)
    context.problem = problem_of(config, dict.fromkeys(config.domains, 10_000))
    metrics = [*config.domains, *config.targets]
    return context.solve_settings(np.full(len(metrics), 3.0), metrics)


def test_a_mean_in_bits_per_byte_is_one_in_nats_with_other_weights(tmp_path):
    sizes = {"web": 4.0, "code": 2.0, "dev": 3.0}  # the exam's losses are of questions
    config = config_of(
        targets={"dev": "dev.jsonl", "exam": {"valid": "exam.jsonl", "kind": "choice", "weight": 2}},
        solve={"unit": "bpb", "weights": {"web": 0.2}},
    )
    settings = asked(config, sizes, tmp_path)
    assert settings.objective == "weighted"
    losses = np.array([[3.0, 2.0, 2.5, 1.1], [2.9, 2.2, 2.4, 1.0]])
    bits = losses / np.log(2) / np.array([4.0, 2.0, 3.0, 1.0])
    wanted = bits @ np.array([0.2, 0.0, 1.0, 2.0])
    told = objective_values(losses, settings)
    assert told[1] / told[0] == pytest.approx(wanted[1] / wanted[0])
    plain = asked(config_of(solve={"unit": "bpb"}), sizes, tmp_path)
    np.testing.assert_allclose(plain.weights(2), [1 / 3, 2 / 3])


def test_the_mean_perplexity_of_targets_is_minimised_where_that_is_asked(tmp_path):
    config = config_of(
        targets={"dev": "dev.jsonl", "manual": "m.jsonl"}, solve={"objective": "perplexity", "loss_limits": "none"}
    )
    settings = asked(config, {}, tmp_path)
    assert settings.objective == "perplexity"
    law = LogLinearLaw(
        ("web", "code", "dev", "manual"),
        ("web", "code"),
        np.full(4, 1.0),
        np.array([[0.0, 0.0], [0.0, 0.0], [-0.2, 0.6], [1.4, -0.1]]),
        np.zeros(4),
        9,
    )
    shares = np.linspace(0, 1, 2001)
    grid = np.stack([shares, 1 - shares], axis=1)
    perplexity = np.exp(law.predict(grid))[:, 2:].mean(axis=1)
    found = solve(law, settings=replace(settings, kl=0.0)).mixture
    assert found["web"] == pytest.approx(shares[perplexity.argmin()], abs=1e-3)
    mean = solve(law, settings=replace(settings, kl=0.0, objective="weighted")).mixture
    assert abs(mean["web"] - found["web"]) > 0.02  # the hard set counts more


@pytest.mark.parametrize("objective", ["worst_case", "perplexity"])
def test_bits_per_byte_are_refused_where_nats_are_compared(objective):
    with pytest.raises(ConfigError, match=f"solve.unit: 'bpb' with objective '{objective}'"):
        config_of(solve={"unit": "bpb", "objective": objective})
