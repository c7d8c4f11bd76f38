"""What a comparison may hold, and what is said of what it may not."""

import pytest
from contests import STEP, contest

from opmix.comparison.steps import entrant_chain
from opmix.errors import ConfigError
from opmix.lifecycle.steps import DataFacts


def facts():
    names = ("alpha", "beta", "gamma")
    return DataFacts(tokenizer="t", fingerprints={n: n for n in names}, rows=dict.fromkeys(names, 100))


def test_methods_are_a_list_of_names_or_settings_by_name():
    plain = contest(["uniform", "op_mix"])
    assert list(plain.methods) == ["uniform", "op_mix"]
    assert plain.first == "uniform"
    config = contest({"big": {"method": "full_retraining", "mixture": "size"}, "op_mix": None}, reference="op_mix")
    assert config.method("big").mixture == "size"
    assert config.first == "op_mix"


def test_stage_settings_are_one_entrants_own():
    config = contest({"op_mix": {}, "wide": {"method": "op_mix", "stage": {"probes": {"rank": 8}}}})
    base, contested = config.life_of("wide").stages
    assert (base.probes, contested.probes) == ({}, {"rank": 8})
    assert config.life_of("op_mix").stages[1].probes == {}
    assert config.life_of("wide").stages[1].tokens == config.life.stages[1].tokens


def test_full_retraining_has_the_tokens_of_all_stages():
    config = contest(["full_retraining"])
    assert [s.tokens for s in config.life_of("full_retraining").stages] == [6 * STEP, 10 * STEP]


@pytest.mark.parametrize(
    ("methods", "changes", "said"),
    [
        (["unifrom"], {}, "methods.unifrom: 'unifrom' is no method; did you mean 'uniform'?"),
        ({"op_mix": {"rank": 8}}, {}, "methods.op_mix.rank: no such setting; what a search does is set by `stage:"),
        ({"full_retraining": {"mixtur": 1}}, {}, "full_retraining.mixtur: no such setting; did you mean 'mixture'?"),
        ({"uniform": {"stage": {"tokens": 5}}}, {}, "methods.uniform.stage.tokens: is the same for all methods"),
        ({"uniform": {"stage": {"probs": {}}}}, {}, "methods.uniform.stage.probs: unknown key; did you mean 'probes'?"),
        ({"op_mix": {"stage": {"probes": {"steps": -1}}}}, {}, "methods.op_mix.stage.probes.steps: "),
        (["uniform"], {"reference": "op_mix"}, "reference: unknown entrant"),
        ([], {}, "methods"),
        (
            ["uniform"],
            {"stages": [{"name": "a", "domains": ["alpha", "beta"], "tokens": 5}]},
            "stages.0.mixture: 'search' on a model",
        ),
        (
            ["uniform"],
            {"stages": [{"name": "a", "domains": ["alpha"], "mixture": "uniform", "tokens": 5}]},
            "nothing to decide",
        ),
    ],
)
def test_what_cannot_be_is_said(methods, changes, said):
    with pytest.raises(ConfigError) as caught:
        contest(methods, **changes)
    assert said in str(caught.value)


def test_shared_steps_are_the_same_for_all_and_contested_ones_are_not():
    config = contest(["op_mix", "uniform"])
    chains = [entrant_chain(config, name, facts(), 0) for name in config.methods]
    keys = [{s.name: s.key for s in chain} for chain in chains]
    shared = {n for n in keys[0] if n in keys[1]}
    assert shared == {n for n in keys[0] if "/01-base/" in n or n.endswith("/start")}
    assert all(keys[0][n] == keys[1][n] for n in shared)
    assert {n.split("/")[1] for n in keys[0] if n not in shared} == {"op_mix"}


def test_only_a_searchs_own_results_become_stale_by_its_settings():
    def key(name, **changes):
        return entrant_chain(contest([name], **changes), name, facts(), 0)[-1].key

    longer = {"probes": {"steps": 3, "rank": 2}}
    assert key("op_mix") != key("op_mix", **longer)
    assert key("uniform") == key("uniform", **longer)
    assert key("uniform") != key("uniform", proxies={"eval_sequences": 5})
