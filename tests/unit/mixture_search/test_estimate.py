"""What a search costs, known beforehand."""

from typing import get_args

import pytest

from opmix.compute.cost import Cost
from opmix.config import parse_config
from opmix.mixing.mixture import Mixture
from opmix.mixture_search.context import SearchContext
from opmix.mixture_search.estimate import estimate_search, eval_sequences
from opmix.probes.kinds import probe_weights
from opmix.probes.settings import MOST_STEPS, SEARCH_SHARE, ProbeKindName
from opmix.progress import Silent
from opmix.runs.store import RunStore
from opmix.testing import tiny_chat_tokenizer, tiny_model, write_toy_chats, write_toy_domains


def search(old, new, **settings):
    names = [f"d{i}" for i in range(old + new)]
    mixture = Mixture.uniform(names[:old]) if old else None
    content = {
        "model": "m",
        "domains": dict.fromkeys(names, "x"),
        "old_mixture": mixture and dict(mixture),
        "budget": {"tokens": 10**6},
        "sequence_length": 32,
        "trainer": {"per_device_train_batch_size": 4},
        "probes": {"steps": 10},
        **settings,
    }
    return parse_config(content), mixture


def cost(old, new):
    estimate = estimate_search(*search(old, new))
    return estimate.num_probes, estimate.num_points, estimate.probe_tokens, estimate.proxy_tokens


def test_a_search_costs_what_is_new_not_what_is_old():
    """2, then 3, ... then 12 domains over a life, one new at a time."""
    costs = [cost(old, 1) for old in range(2, 12)]
    assert len({(probes, points, tokens) for probes, points, tokens, _ in costs}) == 1
    proxies = [proxy for *_, proxy in costs]
    assert max(proxies) <= 1.1 * proxies[0]  # old domains share a number of held-out sequences, rounded up
    assert costs[0][0] == 3


def test_more_new_domains_cost_more():
    probes = [cost(4, new)[0] for new in (1, 2, 3)]
    assert probes == sorted(set(probes))
    several = [sum(cost(4, new)[2:]) for new in (1, 2, 4)]
    assert several[2] / several[0] < 8  # probes in proportion, points and rows each in proportion: at most its square


def test_old_domains_share_held_out_sequences():
    config, old = search(8, 1, proxies={"eval_sequences": 64})
    assert eval_sequences(config, old) == [16] * 8 + [64]
    config, old = search(2, 1, proxies={"eval_sequences": 64})
    assert eval_sequences(config, old) == [64] * 3
    config, old = search(4, 0, proxies={"eval_sequences": 64})
    assert eval_sequences(config, old) == [64] * 4


def test_probes_are_as_long_as_the_stage_pays_for():
    def steps(old, new, **settings):
        return search(old, new, **settings)[0].probe_settings.num_steps

    step = 4 * 32  # tokens
    lengths = [steps(6, 0, probes={}, budget={"tokens": n * step}) for n in (500, 5_000, 10**6)]
    assert lengths == sorted(set(lengths))
    runs, share = 10, lengths[1] / 5_000  # seven probes and three to compare, at 5/6 of a full step's price
    assert share * runs * 5 / 6 == pytest.approx(SEARCH_SHARE, rel=0.05)
    assert steps(6, 0, probes={"steps": 37}) == 37
    assert (
        steps(3, 1, probes={}, budget={"tokens": 500 * step}) == lengths[-1] == MOST_STEPS
    )  # the paper's law, adaptive


def searched(folder, files, tied=True, **settings):
    """A real search of a two-layer model; its estimate, cost by estimate (of trained candidates too), and ledger."""
    tokenizer = tiny_chat_tokenizer()
    content = {
        "model": "m",
        "domains": {n: str(path) for n, path in files.items()},
        "budget": {"tokens": 20_000},
        "sequence_length": 192,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 4},
        "probes": {"steps": 4, "rank": 2, "adaptive": False},
        "proxies": {"eval_sequences": 4},
        "decision": {"draws": 20, "verify": False},
        "cache_dir": str(folder / "cache"),
        **settings,
    }
    model = tiny_model(vocab_size=len(tokenizer), tie_word_embeddings=tied)
    with RunStore(folder / "run") as store:
        context = SearchContext(parse_config(content), folder, store, Silent(), None)
        context.prepare(model, tokenizer)
        context.note_estimate()
        context.method.propose(context)
    priced = probe_weights(context.config.probes, model).priced
    told = {"adapter_parameters": priced, "objective": context.prepared.objective}
    parts = [part for part in (context.estimate, context.estimate.confirming) if part is not None]
    cost = Cost.sum(part.cost(context.session.runtime.shape, content["sequence_length"], **told) for part in parts)
    return context.estimate, cost, context.ledger.cost


@pytest.mark.slow
def test_a_search_on_text_costs_what_was_estimated(tmp_path):
    files = write_toy_domains(tmp_path, ["web", "code", "math"], 120)
    estimate, told, booked = searched(tmp_path, files, old_mixture={"web": 0.6, "code": 0.4})
    assert told.tokens == booked.tokens
    assert told.flops == pytest.approx(booked.flops, rel=1e-12)
    assert estimate.confirming is None


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "tied"), [*((k, True) for k in get_args(ProbeKindName)), ("lora+embeddings", False)])
def test_every_kind_of_probe_costs_what_was_estimated(kind, tied, tmp_path):
    files = write_toy_domains(tmp_path, ["web", "code", "math"], 120)
    probes = {"steps": 8, "rank": 2, "kind": kind}
    small = {"sequence_length": 48, "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 2}}
    rule = {"draws": 20, "verify": True}  # without a KL the optimum moves, so candidates are trained
    _, told, booked = searched(tmp_path, files, tied, probes=probes, decision=rule, solve={"kl": 0.0}, **small)
    assert told.tokens == booked.tokens
    assert told.flops == pytest.approx(booked.flops, rel=1e-12)


@pytest.mark.slow
def test_a_search_on_conversations_costs_what_was_estimated(tmp_path):
    files = write_toy_chats(tmp_path, {"terse": 1, "wordy": 2}, 240) | write_toy_domains(tmp_path, ["web"], 120)
    _, told, booked = searched(tmp_path, files, objective="sft", old_mixture={"web": 0.5, "terse": 0.5})
    assert told.tokens["proxies"] == booked.tokens["proxies"]
    assert told.flops["proxies"] == pytest.approx(booked.flops["proxies"], rel=1e-12)
    # Which rows a probe draws is not known beforehand: their mean length is.
    assert told.tokens["probes"] == pytest.approx(booked.tokens["probes"], rel=0.1)
    assert told.flops["probes"] / told.tokens["probes"] == pytest.approx(
        booked.flops["probes"] / booked.tokens["probes"]
    )


def test_the_probe_that_tests_a_move_is_stated_apart():
    config, old = search(3, 1, decision={"verify": True})
    estimate = estimate_search(config, old)
    assert estimate.confirming.probe_tokens * estimate.num_probes == estimate.probe_tokens
    without = estimate_search(search(3, 1, decision={"verify": False})[0], old)
    assert without.confirming is None
    assert without.probe_tokens == estimate.probe_tokens
