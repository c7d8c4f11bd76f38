"""The report of a search with the law in effective tokens: predictions, points, worths, candidates, the what-if view."""

import json
import shutil
import subprocess
from dataclasses import replace
from importlib import resources

import numpy as np
import pytest
import samples
from html_page import Page

from opmix.mixing.constraints import Constraints
from opmix.mixing.effective_tokens import EffectiveTokensLaw, Tokens
from opmix.mixing.problem import SolveSettings
from opmix.mixing.solver import solve
from opmix.mixing.table import ProxyTable
from opmix.report import build_report, load_report_data
from opmix.report.evidence import columns
from opmix.report.model import build_model
from opmix.report.whatif import whatif_data
from opmix.report.worth import relative_worth, worth_section
from opmix.results.draws import LawDrawsFile
from opmix.results.mixture import LawEntry

NODE = shutil.which("node")
ASK = """
const input = JSON.parse(require("fs").readFileSync(0));
const unpack = (text) => new Float32Array(Uint8Array.from(Buffer.from(text, "base64")).buffer);
const { data } = input, law = numerics.lawOf(data), draws = {};
for (const [name, value] of Object.entries(data.draws)) draws[name] = name === "count" ? value : unpack(value);
const at = input.mixtures.map((p) => ({ losses: [...law.losses(p)], drawn: [...law.drawn(draws, p)] }));
const base = { A: data.A, law, weights: data.weights, q: data.prior };
const solved = input.problems.map((problem) => numerics.solve({ ...base, ...problem }));
console.log(JSON.stringify({ at, solved }));
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return samples.write_trained(tmp_path_factory.mktemp("trained") / "run")


@pytest.fixture(scope="module")
def data(folder):
    return load_report_data(folder)


@pytest.fixture(scope="module")
def model(data):
    return build_model(data)


def in_node(data, model, mixtures, problems):
    script = (resources.files("opmix.report") / "numerics.js").read_text() + ASK
    content = {"data": whatif_data(data, model), "mixtures": mixtures.tolist(), "problems": problems}
    done = subprocess.run([NODE, "-e", script], input=json.dumps(content), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def problem(settings, ceilings):
    worst = settings.objective == "worst_case"
    reference = settings.reference.tolist() if worst else None
    return {"kl": settings.kl, "worst": worst, "reference": reference, "ceilings": ceilings}


def value(law, settings, p):
    losses = law.predict(p)[0]
    gain = (losses - settings.reference).max() if settings.objective == "worst_case" else losses.mean()
    return gain + settings.kl * float(np.sum(p * np.log(np.maximum(p, 1e-300) * len(p))))


def test_the_law_and_its_draws_are_read_as_they_were_written(folder, model):
    assert isinstance(model.law, EffectiveTokensLaw)
    assert np.isfinite(model.law.tokens.unique).sum() >= 1
    p = model.vector({"web": 0.1, "code": 0.2, "math": 0.7})
    written = json.loads((folder / "mixture.json").read_text())
    alternative = next(a for a in written["alternatives"] if a["name"] == "proposal")
    np.testing.assert_allclose(
        model.predict(model.vector(alternative["mixture"]))[0],
        list(alternative["predicted"].values()),
        atol=1e-9,
        rtol=0,
    )
    low, high = model.band(p)
    drawn = model.draws.predict(p)[:, 0]
    np.testing.assert_allclose([low[0], high[0]], np.quantile(drawn, [0.05, 0.95], axis=0), atol=1e-12, rtol=0)
    draws = LawDrawsFile.read(folder)
    assert len(draws.other["rho"]) == 20
    assert LawDrawsFile.of(model.draws).json()["worth"] == draws.json()["worth"]


def test_probes_are_held_against_the_law_at_their_own_length_and_looks_are_left_out(folder, data, model):
    everything = ProxyTable.read(folder / "tables" / "proxies.csv")
    assert everything.kinds.count("look") == len(data.proxies.points)  # each half-way
    assert set(data.proxies.kinds) == {"probe"}
    mixtures, losses, _ = columns(data.proxies, model)
    assert np.abs(model.at_points.predict(mixtures) - losses).max() < 0.02
    assert np.abs(model.predict(mixtures) - losses).mean() > 0.1  # the stage is five times as long


def test_a_page_has_every_section_and_says_what_was_measured(data):
    page = Page(build_report(data))
    assert {"curves", "worth", "agreement", "laws", "whatif"} <= set(page.ids)
    text = " ".join(page.text.split())
    assert "Gain against current" in text
    assert "between two probes" in text
    assert "by the law +" in text
    assert "Trained candidates" in text
    assert "trained probes against the law fitted to them" in text
    assert "+-" not in text


def test_the_recommended_row_is_bold_and_the_heading_agrees(data):
    candidates = data.document.evidence["candidates"]
    for chosen, heading in ((0, "Move to the proposed mixture"), (1, "Move half-way to the proposed mixture")):
        document = replace(data.document, mixture=candidates[chosen]["mixture"])
        page = build_report(replace(data, document=document))
        assert heading in page
        own = page.split('<tr class="own">')[1]
        assert own.startswith(f'<th scope="row">{candidates[chosen]["name"]}<')


def test_no_interval_stands_beside_a_share_that_is_not_its_own(data):
    assert "90\u202f% interval" in Page(build_report(data)).text
    decision = replace(data.document.decision, action="keep", direct_gain=-0.01)
    current = next(a.mixture for a in data.document.alternatives if a.name == "current")
    page = build_report(replace(data, document=replace(data.document, decision=decision, mixture=current)))
    table = page[page.index('class="mix"') : page.index("</table>", page.index('class="mix"'))]
    assert "interval" not in table
    assert "Keep the current mixture" in page
    assert '<tr class="own"><th scope="row">current' in page
    assert "\u22120.010" in page


@pytest.mark.parametrize("size", [2, 6, 17])
def test_the_heat_map_tells_the_worth_of_a_token_relative_to_the_own_domain(model, size):
    names = samples.PILE[:size]
    worth = np.full((size, size), 0.5) + np.eye(size) * 1.5
    ones = np.ones(size)
    law = EffectiveTokensLaw(names, names, ones, ones, worth, 0.5, Tokens(1.0, np.full(size, np.inf)))
    np.testing.assert_allclose(relative_worth(law)[0], [1.0, *[1 / 16] * (size - 1)])
    section = worth_section(replace(model, law=law, draws=None))
    page = Page(section)
    assert page.tags.count("td") == size * size
    assert page.tags.count("b") == size
    assert section.count('scope="col"') == size + 1
    assert section.count('scope="row"') == size
    assert ("upright" in section) == (size > 8)
    assert page.tags.count("caption") == 1


def test_a_target_is_told_by_its_best_domain(model):
    worth = np.array([[1.0, 4.0]])
    one = np.ones(1)
    law = EffectiveTokensLaw(("target",), ("a", "b"), one, one, worth, 1.0, Tokens(1.0, np.full(2, np.inf)))
    np.testing.assert_allclose(relative_worth(law), [[0.25, 1.0]])
    section = worth_section(replace(model, law=law, draws=None))
    assert "<b>100</b>" in section


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_view_predicts_and_solves_as_python_does(data, model):
    mixtures = np.vstack([np.random.default_rng(0).dirichlet(np.ones(3), 4), np.eye(3)])
    reference = model.predict(model.vector({"web": 1.0}))[0]
    asked = [
        (SolveSettings(objective="worst_case" if worst else "mean", reference=reference if worst else None, kl=kl), cap)
        for worst in (False, True)
        for kl in (0.0, 0.05)
        for cap in (1.0, 0.45)
    ]
    made = in_node(data, model, mixtures, [problem(s, [cap] * 3) for s, cap in asked])
    for p, at in zip(mixtures, made["at"], strict=True):
        np.testing.assert_allclose(at["losses"], model.predict(p)[0], atol=1e-12, rtol=0)
        drawn = np.array(at["drawn"]).reshape(len(model.draws), -1)
        np.testing.assert_allclose(drawn, model.draws.predict(p)[:, 0], atol=1e-5, rtol=0)  # draws travel as float32
    for (settings, cap), answer in zip(asked, made["solved"], strict=True):
        limits = Constraints(ceilings=dict.fromkeys(model.domains, cap))
        best = solve(model.law, settings=settings, constraints=limits).mixture
        x = np.array(answer["x"])
        assert x.sum() == pytest.approx(1)
        assert np.all(x <= cap + 1e-9)
        assert value(model.law, settings, x) <= value(model.law, settings, best.weights) + 1e-6


@pytest.mark.skipif(NODE is None, reason="node is not installed")
def test_the_view_of_log_linear_laws_predicts_and_solves_as_python_does(folders):
    data = load_report_data(folders["rebalancing"])
    model, world = build_model(data), samples.rebalancing_world()
    mixtures = np.random.default_rng(0).dirichlet(np.ones(6), 4)
    reference = world.losses(world.prior)[0]
    worst = {"kl": 0.05, "worst": True, "reference": reference.tolist(), "ceilings": [0.4] * 6}
    mean = {"kl": 0.05, "worst": False, "ceilings": [1.0] * 6}
    made = in_node(data, model, mixtures, [mean, worst])
    for p, at in zip(mixtures, made["at"], strict=True):
        np.testing.assert_allclose(at["losses"], model.predict(p)[0], atol=1e-12, rtol=0)
        drawn = np.array(at["drawn"]).reshape(len(model.draws), -1)
        np.testing.assert_allclose(drawn, model.draws.predict(p)[:, 0], atol=1e-5, rtol=0)
    for answer, oracle, target in (
        (made["solved"][0], world.solve(0.05), None),
        (made["solved"][1], world.solve(0.05, np.full(6, 0.4), reference), reference),
    ):
        x = np.array(answer["x"])
        assert world.objective(x, 0.05, target) <= world.objective(oracle, 0.05, target) + 1e-7


def test_a_law_of_an_unknown_kind_is_left_out(data):
    laws = {m: LawEntry(other={"kind": "something"}) for m in data.document.laws}
    page = Page(build_report(replace(data, document=replace(data.document, laws=laws))))
    assert "curves" not in page.ids
