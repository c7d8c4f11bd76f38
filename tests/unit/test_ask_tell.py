"""A search whose runs somebody else trains: what is asked, what is kept, and that it decides as a law on those runs does."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import opmix
from opmix.ask_tell import CURRENT, PROPOSAL
from opmix.errors import ConfigError, DataError, InfeasibleError, StoreError
from opmix.testing import log_linear_surface

FEW = {"decision": {"draws": 20}}
DOMAINS = ("web", "code", "math")
SURFACE = log_linear_surface([[-1.0, 0.1, 0.1], [0.2, -1.5, 0.1], [0.1, 0.0, -2.0]])


def losses(mixture, domains=DOMAINS):
    """What a cluster would measure; of the model as it is: dearer than any run."""
    if mixture is None:
        return dict.fromkeys(domains, 3.1)
    row = SURFACE(np.array([[mixture.get(d, 0.0) for d in DOMAINS]]))[0]
    return dict(zip(domains, map(float, row), strict=True))


def lived(search, told=losses):
    while runs := search.ask():
        for run in runs:
            search.tell({run.name: told(run.mixture)})
    return search.result()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "asked"


def test_it_finds_the_mixture_that_the_surface_is_best_at(out):
    search = opmix.AskTell(DOMAINS, budget="1M", **FEW, out=out, solve={"kl": 0.0})
    result = lived(search)
    grid = np.random.default_rng(0).dirichlet(np.ones(3), 20_000)
    best = SURFACE(grid).mean(axis=1).min()
    assert SURFACE(np.array([[result.mixture[d] for d in DOMAINS]])).mean() == pytest.approx(best, abs=1e-3)
    assert result.verdict.decision.direct_gain > 0  # the optimum was trained too, and held against the mixture in use
    assert [run.name for run in search.runs][-1] == PROPOSAL
    assert {path.name for path in out.iterdir()} >= {"asked.json", "mixture.json", "report.html", "manifest.json"}


@pytest.mark.slow
def test_a_new_domain_is_weighed_against_the_old_ones_as_one(out):
    search = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out, old_mixture={"web": 0.6, "code": 0.4})
    for run in search.ask():
        if run.mixture is not None:
            assert run.mixture["web"] * 0.4 == pytest.approx(run.mixture["code"] * 0.6)
    assert any("how much math the old domains bear" in note for note in lived(search).notes)


def test_every_answer_is_kept_at_once_and_the_same_call_goes_on(out):
    first = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    for run in first.ask()[:4]:
        first.tell({run.name: losses(run.mixture)})
    left = [run.name for run in first.ask()]
    again = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    assert [run.name for run in again.ask()] == left
    assert [run.name for run in opmix.AskTell.open(out).ask()] == left
    assert lived(again).json() == opmix.AskTell.open(out).result().json()
    with pytest.raises(StoreError, match="other settings \\(seed\\)"):
        opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out, seed=1)


def test_many_may_tell_at_once(out):
    search = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda run: opmix.AskTell.open(out).tell({run.name: losses(run.mixture)}), search.ask()))
    assert all(run.told for run in search.runs[:-1])


def test_a_failed_run_is_left_out_and_too_few_are_no_law(out):
    search = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    failed = search.ask()[-1].name
    search.tell({failed: None})
    result = lived(search)
    assert failed not in result.table.points
    assert any(failed in note for note in result.notes)
    search.tell({run.name: None for run in search.runs if run.name.startswith("mixture")}, again=True)
    search.tell({"probe web": None, "probe code": None}, again=True)
    with pytest.raises(opmix.LawError):
        search.result()


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"probe wbe": losses({"web": 1})}, "did you mean 'probe web'"),
        ({"probe web": {"web": 1.0}}, "no loss of 'code'"),
        ({"probe web": {**losses({"web": 1}), "cod": 1.0}}, "unknown set 'cod'"),
        ({"probe web": {**losses({"web": 1}), "code": float("nan")}}, "finite"),
        ({"probe web": {**losses({"web": 1}), "code": "2"}}, "finite"),
    ],
)
def test_a_wrong_answer_is_told_and_nothing_of_it_is_kept(out, told, said):
    search = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    before = (out / "asked.json").read_bytes()
    with pytest.raises(DataError, match=said):
        search.tell({"probe code": losses({"code": 1}), **told})
    assert (out / "asked.json").read_bytes() == before


def test_an_answer_is_not_replaced_by_mistake(out):
    search = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    search.tell({"probe web": losses({"web": 1})})
    search.tell({"probe web": losses({"web": 1})})  # the same again is no other answer
    with pytest.raises(DataError, match="again=True"):
        search.tell({"probe web": losses({"code": 1})})
    search.tell({"probe web": losses({"code": 1})}, again=True)
    assert next(run for run in search.runs if run.name == "probe web").losses == losses({"code": 1})


def test_a_result_says_what_is_missing(out):
    search = opmix.AskTell(DOMAINS, budget=10**6, **FEW, out=out)
    search.tell({search.ask()[1].name: losses({"web": 1})})
    with pytest.raises(DataError, match="runs are not told yet"):
        search.result()


@pytest.mark.slow
def test_targets_decide_and_domains_are_limited_against_the_model_as_it_is(out):
    search = opmix.AskTell(("web", "code"), budget=10**6, **FEW, out=out, targets=["math"], solve={"kl": 0.0})

    def told(mixture):
        return losses(mixture) if mixture is None else losses({**mixture, "math": 0.0})

    for run in search.ask():
        if run.name != CURRENT:
            search.tell({run.name: told(run.mixture)})
    search.tell({CURRENT: None})
    with pytest.raises(DataError, match="relative to them"):
        search.ask()
    search.tell({CURRENT: told(None)}, again=True)
    assert lived(search, told).fit.law.metrics == ("web", "code", "math")


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"domains": ("web",)}, ConfigError, "domains"),
        ({"domains": ("web", "web")}, ConfigError, "twice"),
        ({"available": {"wbe": 10}}, ConfigError, "did you mean 'web'"),
        ({"mixtures": -1}, ConfigError, "mixtures: .*got -1"),
        ({"solve": {"celings": {}}}, ConfigError, "ceilings"),
        ({"solve": {"unit": "bpb"}}, ConfigError, "bits per byte"),
        ({"solve": {"ceilings": {"web": 0.1, "code": 0.1, "math": 0.1}}}, InfeasibleError, "ceiling"),
    ],
)
def test_settings_are_checked_before_anything_is_written(out, changes, error, said):
    given = {"domains": DOMAINS, "budget": 10**6, **changes}
    with pytest.raises(error, match=said):
        opmix.AskTell(given.pop("domains"), **FEW, out=out, **given)
    assert not out.exists()


def test_a_folder_of_another_command_is_left_alone(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"command": "search"}))
    with pytest.raises(StoreError, match="opmix search"):
        opmix.AskTell(DOMAINS, budget=10**6, out=tmp_path)
    with pytest.raises(StoreError, match=r"asked\.json"):
        opmix.AskTell.open(tmp_path)
