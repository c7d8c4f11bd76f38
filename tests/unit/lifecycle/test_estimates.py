"""What a search costs, known beforehand."""

from lives import NAMES

from opmix.config import parse_config
from opmix.lifecycle.estimates import estimate_search, eval_sequences
from opmix.mixing.mixture import Mixture


def search(old, new, **settings):
    names = [f"d{i}" for i in range(old + new)]
    mixture = Mixture.uniform(names[:old]) if old else None
    content = {
        "model": "m", "domains": dict.fromkeys(names, "x"), "old_mixture": mixture and dict(mixture), "budget": {"tokens": 10**6},
        "sequence_length": 32, "trainer": {"per_device_train_batch_size": 4}, "probes": {"steps": 10}, **settings,
    }  # fmt: skip
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
    config, old = search(len(NAMES), 0, proxies={"eval_sequences": 64})
    assert eval_sequences(config, old) == [64] * 4
