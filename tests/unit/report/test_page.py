"""The page: what it says, that it is one well-formed closed file, and that names cannot break out of it."""

import base64
import hashlib
import json
import re
import shutil

import numpy as np
import pytest
import samples
from html_page import Page

from opmix.errors import StoreError
from opmix.report import build_report, load_report_data, write_report
from opmix.report.figures import Curve, profile_panel
from opmix.report.model import build_model
from opmix.report.templates import fill
from opmix.report.whatif import whatif_data

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&$x^2$ @css@ \u2028"


@pytest.fixture(scope="module")
def pages(folders):
    return {name: build_report(load_report_data(folder)) for name, folder in folders.items()}


@pytest.mark.parametrize("name", ["continual", "rebalancing", "swarm"])
def test_a_page_is_well_formed_and_closed(pages, name):
    page = Page(pages[name])
    assert len(page.ids) == len(set(page.ids))
    assert all(address.startswith("#") for address in page.addresses)
    assert set(page.addresses) - {"#main"} <= {f"#{i}" for i in page.ids}
    assert not {"link", "iframe", "object", "base", "form", "img"} & set(page.tags)
    assert re.findall(r"https?://(?!www\.w3\.org/(?:2000/svg|1999/xlink))", pages[name]) == []
    assert "@import" not in pages[name]
    assert "url(" not in re.sub(r"url\(#[\w-]+\)", "", pages[name])


def test_the_policy_names_exactly_the_script_there_is(pages):
    page = pages["rebalancing"]
    scripts = re.findall(r"<script>(.*?)</script>", page, re.S)
    assert len(scripts) == 1
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}';" in page


def test_the_first_screen_answers_the_four_questions(pages):
    text = Page(pages["rebalancing"]).text
    opening = text[: text.index("What if?", text.index("Move to the proposed mixture"))]
    for words in (
        "Move to the proposed mixture",
        "The proposal lowers the mean held-out loss",
        "28.8\u202f%",
        "+20.8",
        "97\u202f%",
        "Predicted gain against current",
        "lower perplexity",
        "Cost of the search",
        "9.5\u202f% of the stage",
        "2\u202fmin 18\u202fs wall time",
        "After proposal",
        "Alternatives",
    ):
        assert words in opening, words


def test_sections_follow_the_data(pages):
    assert "measured" in Page(pages["rebalancing"]).ids
    assert "measured" not in Page(pages["continual"]).ids
    assert {"check", "solver", "curves", "agreement"} <= set(Page(pages["continual"]).ids)
    assert "check" not in Page(pages["swarm"]).ids
    assert pages["continual"].count('class="panel" viewBox') == 4 + 4 + 1  # laws, agreement, live curve
    assert pages["swarm"].count('class="panel" viewBox') == 12 + 12 + 1
    assert "5 more domains, 6.0\u202f% together" in Page(pages["swarm"]).text
    assert "Rank correlation left out" in Page(pages["swarm"]).text


def test_a_page_is_the_same_every_time(folders, pages):
    assert build_report(load_report_data(folders["continual"])) == pages["continual"]


def test_the_least_there_can_be_still_makes_a_page(tmp_path):
    least = {"kind": "fit", "mixture": {"a": 0.25, "b": 0.75}, "laws": {"m": {"c": 1.0, "t": {"a": -1.0, "b": 0.5}}}}
    (tmp_path / "mixture.json").write_text(json.dumps(least))
    page = Page(write_report(tmp_path).read_text())
    assert "75.0\u202f%" in page.text
    assert "whatif" in page.ids
    (tmp_path / "mixture.json").write_text(json.dumps(least | {"laws": {}}))
    page = Page(write_report(tmp_path).read_text())
    assert "whatif" not in page.ids
    (tmp_path / "mixture.json").write_text(json.dumps({"kind": "fit", "mixture": {"a": 1.0}, "laws": least["laws"]}))
    with_one = json.loads((tmp_path / "mixture.json").read_text())
    with_one["laws"]["m"]["t"] = {"a": -1.0}
    (tmp_path / "mixture.json").write_text(json.dumps(with_one))
    page = Page(write_report(tmp_path).read_text())
    assert "whatif" not in page.ids


def test_numbers_that_are_not_finite_are_dashes(edited):
    def spoil(document):
        document["decision"] |= {"gain": float("nan"), "gain_interval": [float("-inf"), float("inf")]}
        document["laws"]["web"]["loo_rmse"] = float("nan")
        document["baseline"]["web"] = float("nan")
        document["interval"]["web"] = [float("nan"), 1.0]

    assert "nan" not in Page(build_report(load_report_data(edited(spoil)))).text.split()


def test_keeping_the_mixture_shows_what_the_proposal_would_have_bought(edited):
    def keep(document):
        document["mixture"] = {"medical": 0.5, "web": 0.3, "code": 0.2, "math": 0.0}
        document["decision"] |= {"action": "keep", "reason": "keep the current mixture: gain inside the noise"}

    def keep_prior(document):
        keep(document)
        reason = "keep the prior mixture: gain inside the noise"
        document["decision"] |= {"reference": "prior", "reason": reason}

    assert "Keep the prior mixture Gain inside" in " ".join(
        Page(build_report(load_report_data(edited(keep_prior)))).text.split()
    )
    text = Page(build_report(load_report_data(edited(keep)))).text
    assert "Keep the current mixture" in text
    assert "Gain inside the noise" in text
    assert "What the proposal would buy" in text
    assert "+0.136" in text  # math, at the proposal and not at the kept mixture


def test_what_if_begins_with_the_coordinate_that_changes_most(folders):
    data = load_report_data(folders["rebalancing"])
    model = build_model(data)
    shown = whatif_data(data, model)
    start, shares = np.array(shown["start"]), np.linspace(0, 1, 41)
    means = [model.predict(model.profile(start, k, shares)) @ model.weights for k in range(len(model.coordinates))]
    assert np.ptp(means[shown["coordinate"]]) > 0.99 * max(map(np.ptp, means))
    line = load_report_data(folders["continual"])
    assert whatif_data(line, build_model(line))["coordinate"] == 1  # of two, the new one


def test_curves_keep_both_ends_of_long_names():
    x = np.linspace(0, 1, 5)
    curves = [Curve(x, 3 - i * x, label=f"domain_with_a_long_name_{i}") for i in range(3)]
    drawn = profile_panel(curves, [0, 1, 2], 3.0, xlabel="share", label="curves")
    shown = set(re.findall(r">(domain[^<]*)<", drawn))
    assert len(shown) == 3
    assert {name[-1] for name in shown} == {"0", "1", "2"}


def test_hostile_names_stay_names(tmp_path):
    names = (HOSTILE, "b")
    world = samples.make_world(names, names, current={HOSTILE: 0.9, "b": 0.1})
    folder = samples.write_sample(tmp_path / "x", world, num_points=9)
    clean = samples.make_world(("a", "b"), ("a", "b"), current={"a": 0.9, "b": 0.1})
    reference = samples.write_sample(tmp_path / "y", clean, num_points=9)
    text = build_report(load_report_data(folder))
    page, expected = Page(text), Page(build_report(load_report_data(reference)))
    assert sorted(page.tags) == sorted(expected.tags)
    assert "</script><script>alert(1)</script><img" in page.text
    payload = json.loads(page.scripts[0])
    assert payload["domains"][0] == HOSTILE


def test_three_hostile_domains_pass_through_the_charts(tmp_path):
    names = (HOSTILE, "$\\frac{", "\u4f60\u597d")
    folder = samples.write_sample(tmp_path, samples.make_world(names, names), num_points=12)
    page = Page(build_report(load_report_data(folder)))
    assert page.tags.count("script") == 2
    assert "\u4f60\u597d" in page.text


def test_placeholders_in_the_data_are_not_filled():
    assert fill("@a@ @b@", {"a": "@b@", "b": "x"}) == "@b@ x"


def test_points_not_in_the_fit_are_hollow_and_said_so(folders, tmp_path):
    rows = (folders["continual"] / "tables" / "proxies.csv").read_text().splitlines()
    (tmp_path / "tables").mkdir()
    (tmp_path / "mixture.json").write_text((folders["continual"] / "mixture.json").read_text())
    edited_rows = [rows[0] + ",fitted", *(r + f",{int(i > 1)}" for i, r in enumerate(rows[1:]))]
    (tmp_path / "tables" / "proxies.csv").write_text("\n".join(edited_rows))
    assert "hollow: 2 not used in the fit" in Page(build_report(load_report_data(tmp_path))).text


def test_writing_is_whole_or_not_at_all(folders, tmp_path, monkeypatch):
    (tmp_path / "mixture.json").write_text((folders["continual"] / "mixture.json").read_text())
    (tmp_path / "report.html").write_text("before")

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(StoreError, match=r"report\.html: cannot be written .*No space left"):
            write_report(tmp_path)
    assert (tmp_path / "report.html").read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixture.json", "report.html"]
    assert write_report(tmp_path).read_text().startswith("<!doctype html>")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mixture.json", "report.html"]


@pytest.mark.slow
def test_64_domains_and_64_eval_sets_stay_under_six_megabytes(tmp_path):
    folder = samples.write_sample(tmp_path, samples.large_world(), num_points=256)
    page = write_report(folder)
    assert page.stat().st_size < 6e6
    Page(page.read_text())


def test_no_secret_is_in_the_page(folders, tmp_path):
    from opmix.results.manifest import Manifest

    shutil.copytree(folders["continual"], tmp_path / "run")
    trainer = {"hub_token": "hf_secret", "learning_rate": 1e-3, "accelerator_config": {"api_key": "hf_secret"}}
    Manifest.write(tmp_path / "run", "search", config={"trainer": trainer, "stages": [{"trainer": trainer}]})
    page = write_report(tmp_path / "run").read_text()
    assert "hub_token" in page
    assert "hf_secret" not in page
