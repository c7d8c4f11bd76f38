"""What a search for targets leaves and the page shows: who gains, who pays, each target's own mixture, what tokens are worth."""

from dataclasses import replace

import numpy as np
import pytest
from html_page import Page
from target_samples import aimed, write_aimed

from opmix.mixing.effective_tokens import EffectiveTokensLaw
from opmix.mixture_search.payoff import payoff_of
from opmix.report import build_report, load_report_data
from opmix.report.model import build_model
from opmix.report.page import whatif_data
from opmix.report.worth import worth_section
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
        losses = dict(zip(proposal.fit.law.metrics, proposal.fit.law.predict(np.array(list(alone.mixture.values())))[0],
                          strict=True))  # fmt: skip
        assert all(losses[d] <= limit + 1e-5 for d, limit in limits.items())


@pytest.mark.parametrize("num_domains", [2, 6, 17])
@pytest.mark.parametrize("num_targets", [1, 5, 52])
def test_pages_of_all_sizes(tmp_path, num_domains, num_targets):
    folder = write_aimed(tmp_path / "run", num_domains, num_targets, silent=num_targets > 1)
    data = load_report_data(folder)
    page = Page(build_report(data))
    section = page.text_of("targets") if hasattr(page, "text_of") else build_report(data)
    for name in (f"target_{num_targets - 1}", f"domain_{num_domains - 1}", "What every set gains or pays"):
        assert name in section
    assert ("Without a say" in section) == (num_targets > 1)
    sliders = whatif_data(data, build_model(data))["aims"]
    assert [s["name"] for s in sliders] == [f"target_{i}" for i in range(num_targets)]
    assert sum(s["weight"] for s in sliders) == pytest.approx(1)


@pytest.mark.parametrize("num_domains", [2, 6, 17])
@pytest.mark.parametrize("num_targets", [1, 5, 52])
def test_worths_of_all_sizes(num_domains, num_targets):
    pass
