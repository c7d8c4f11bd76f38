"""What a search for targets leaves and the page shows: who gains, who pays, each target's own mixture, what tokens are worth."""

from types import SimpleNamespace

import numpy as np
import pytest
from html_page import Page
from target_samples import aimed, write_aimed

from opmix.mixing.effective_tokens import EffectiveTokensDraws, EffectiveTokensLaw, Tokens
from opmix.mixture_search.payoff import payoff_of
from opmix.report import build_report, load_report_data
from opmix.report.model import build_model
from opmix.report.whatif import whatif_data
from opmix.report.worth import above_average, worth_section
from opmix.results.loss_limits import KEY as LIMITS
from opmix.results.loss_limits import read_limits
from opmix.results.mixture import MixtureFile
from opmix.results.payoff import KEY, Payoff


def test_what_each_target_alone_would_want_costs_the_others():
    proposal, targets = aimed(4, 3)
    told = payoff_of(proposal, targets, {})
    assert list(told.changes) == list(proposal.fit.law.metrics)
    for target, alone in told.alone.items():
        assert alone.changes[target] <= told.changes[target].nats + 1e-6  # nobody is better off than alone
        own = [point[1] for point in alone.frontier]
        rest = [point[2] for point in alone.frontier]
        assert np.all(np.diff(own) <= 1e-6)  # more weight, more gain,
        assert np.all(np.diff(rest) >= -1e-6)  # at the others' cost
        assert sum(alone.mixture.values()) == pytest.approx(1)
    gain = sum(told.weights[t] * told.changes[t].nats for t in targets)
    assert gain == pytest.approx(-proposal.verdict.decision.gain, abs=1e-6)


def test_the_structure_is_kept_and_read_back(tmp_path):
    proposal, targets = aimed(2, 1)
    told = payoff_of(proposal, targets, {})
    folder = write_aimed(tmp_path / "run", 2, 1)
    read = Payoff.read(MixtureFile.read(folder).evidence)
    assert read == told
    assert Payoff.read({KEY: {"changes": {}}}) is None
    (line, paid) = told.sentences()
    assert line.startswith("targets, nats against current: target_0 -")
    assert paid.startswith("paid by: domain_1 +")


def test_the_limits_of_the_search_hold_for_each_targets_own_mixture():
    proposal, targets = aimed(4, 3, limited=True)
    limits = proposal.verdict.constraints.max_loss
    for alone in payoff_of(proposal, targets, {}).alone.values():
        losses = dict(
            zip(
                proposal.fit.law.metrics,
                proposal.fit.law.predict(np.array(list(alone.mixture.values())))[0],
                strict=True,
            )
        )
        assert all(losses[d] <= limit + 1e-5 for d, limit in limits.items())


def test_which_limits_bind_is_kept_and_shown(tmp_path):
    folder = write_aimed(tmp_path / "run", 4, 3, limited=True)
    document = MixtureFile.read(folder)
    told = read_limits(document.evidence)
    assert set(told) == {f"domain_{i}" for i in range(4)}
    bound = [d for d, e in told.items() if e.binds]
    assert bound
    assert all(e.kept and e.interval[1] <= e.limit + 0.1 for e in told.values())
    assert all(told[d].limit == pytest.approx(2.0) for d in told)
    (line,) = [x for x in document.summary().splitlines() if x.startswith("limits that bind")]
    assert bound[0] in line
    page = Page(build_report(load_report_data(folder)))
    assert page.text.count("binds") == len(bound)
    assert read_limits({LIMITS: {"web": {"limit": 1.0}}}) == {}


SIZES = [
    (2, 1),
    (6, 5),
    *(
        pytest.param(d, t, marks=pytest.mark.slow)
        for d in (2, 6, 17)
        for t in (1, 5, 52)
        if (d, t) not in ((2, 1), (6, 5))
    ),
]


@pytest.mark.parametrize(("num_domains", "num_targets"), SIZES)
def test_pages_of_all_sizes(tmp_path, num_domains, num_targets):
    folder = write_aimed(tmp_path / "run", num_domains, num_targets, silent=num_targets > 1)
    data = load_report_data(folder)
    page = Page(build_report(data))
    assert "targets" in page.ids
    for name in (f"target_{num_targets - 1}", f"domain_{num_domains - 1}", "What every set gains or pays"):
        assert name in page.text
    assert ("Without a say" in page.text) == (num_targets > 1)
    sliders = whatif_data(data, build_model(data))["aims"]
    assert [s["name"] for s in sliders] == [f"target_{i}" for i in range(num_targets)]
    assert sum(s["weight"] for s in sliders) == pytest.approx(1)


@pytest.mark.parametrize("num_domains", [2, 6, 17])
@pytest.mark.parametrize("num_targets", [1, 5, 52])
def test_worths_of_all_sizes_and_which_of_them_are_sure(num_domains, num_targets):
    rng = np.random.default_rng(0)
    domains = tuple(f"domain_{i}" for i in range(num_domains))
    metrics = (*domains, *(f"target_{i}" for i in range(num_targets)))
    worth = rng.uniform(0.5, 1.0, (len(metrics), num_domains))
    worth[-1] = 0.01
    worth[-1, 0] = 3.0
    drawn = np.stack([worth * rng.lognormal(0, 0.1, worth.shape) for _ in range(40)])
    drawn[::2, -2] = drawn[::2, -2, ::-1] * 4  # of this set nothing is sure
    tokens = Tokens(1000.0, np.full(num_domains, 1e6), 15.0)
    law = EffectiveTokensLaw(metrics, domains, np.full(len(metrics), 4.0), np.ones(len(metrics)), worth, 0.7, tokens)
    draws = EffectiveTokensDraws(
        metrics,
        domains,
        np.full((40, len(metrics)), 4.0),
        np.ones((40, len(metrics))),
        drawn,
        np.full(40, 0.7),
        tokens,
        np.ones(40),
    )
    sure = above_average(draws) >= 0.95
    assert sure[-1].tolist() == [True] + [False] * (num_domains - 1)
    model = SimpleNamespace(law=law, draws=draws)
    page = Page(str(worth_section(model)))
    assert page.text.index(f"target_{num_targets - 1}") < page.text.index("domain_0 ", page.text.index("target_0"))
    assert page.tags.count("tr") == 1 + len(metrics[:64])
    assert page.text.count(" ·") == sure[[*range(num_domains, len(metrics)), *range(num_domains)][:64]].sum()
