"""The report of a whole life, from a life.json as `opmix run` writes it."""

import html
import json
import re
from io import StringIO

import pytest
from life_sample import loss, stage
from rich.console import Console

from opmix.cli.run import stage_sentences, stage_table
from opmix.errors import StoreError
from opmix.report import write_report
from opmix.report.life_figures import stream_panel
from opmix.results.life import LifeFile


@pytest.fixture
def folder(tmp_path):
    lives, names = {}, ("web", "<script>alert(1)</script>")
    for seed in (0, 1):
        first = stage("early", seed, {names[0]: 1.0}, {names[0]: loss(5.0, 4.0)}, {}, False)
        losses = {names[0]: loss(4.0, 4.1 + seed / 10), names[1]: loss(6.0, 3.0)}
        last = stage("late", seed, {names[0]: 0.4, names[1]: 0.6}, losses, {names[0]: 0.1 + seed / 10}, True)
        first["cost"]["tokens"]["probes"] = last["cost"]["tokens"]["probes"] = 1e5
        lives[str(seed)] = {"stages": [first, last], "model": f"seed-{seed}/02-late/model"}
    spread = {"mean": 0.15, "sd": 0.0707, "n": 2}
    over = [
        {
            "name": n,
            "n": 2,
            "mixture": {d: {**spread, "mean": 0.5} for d in s["mixture"]},
            "test_loss": dict.fromkeys(s["losses"]["test"], spread),
            "mean_test_loss": spread,
            "forgetting": dict.fromkeys(s["forgetting"], spread),
            "search_share": spread,
        }
        for n, s in zip(("early", "late"), lives["0"]["stages"], strict=True)
    ]
    content = {"schema": 1, "kind": "run", "units": "nats per token", "seeds": lives, "stages": over}
    (tmp_path / "life.json").write_text(json.dumps(content))
    (tmp_path / "manifest.json").write_text(json.dumps({"command": "run", "config": {"seeds": [0, 1]}}))
    return tmp_path


def test_a_life_becomes_one_page_with_every_section(folder):
    page = write_report(folder).read_text()
    for section in ("summary", "stages", "losses", "forgetting", "cost", "configuration"):
        assert f'id="{section}"' in page
        assert f'href="#{section}"' in page
    assert 'href="seed-0/01-late/search-0/report.html"' in page
    assert "+0.150 ± 0.071 (2 seeds)" in page
    assert page.count("<svg") == 3  # the stream, and a panel a domain
    assert len(page) < 500_000


def test_the_first_line_is_how_it_came_out(folder):
    page = write_report(folder).read_text()
    assert "<h1>Test loss fell from 5.000 to 4.150 over 2 stages</h1>" in page
    assert "Most was forgotten of web: +0.150 nats in one stage; 1 of 1 searches moved the mixture." in page
    content = json.loads((folder / "life.json").read_text())
    for life in content["seeds"].values():
        life["stages"][0]["old_mixture"] = {}
    (folder / "life.json").write_text(json.dumps(content))
    assert "<h1>From scratch to a test loss of 0.150 over 2 stages</h1>" in write_report(folder).read_text()


def test_a_share_that_is_not_the_optimum_has_no_interval_beside_it(folder):
    assert "0.30 to 0.50" in write_report(folder).read_text()
    content = json.loads((folder / "life.json").read_text())
    for life in content["seeds"].values():  # the mixture was kept: the interval is of what was not trained on
        part = life["stages"][1]["parts"][0]
        part |= {"action": "keep", "optimum": dict.fromkeys(part["optimum"], 0.5)}
    (folder / "life.json").write_text(json.dumps(content))
    assert "0.30 to 0.50" not in write_report(folder).read_text()
    shown = StringIO()
    Console(file=shown, width=150).print(stage_table(2, LifeFile.read(folder).lives[0][1]))
    assert "0.30-0.50" not in shown.getvalue()


def test_where_nothing_was_forgotten_no_domain_is_named_for_it(folder):
    content = json.loads((folder / "life.json").read_text())
    content["stages"][1]["forgetting"] = {"web": {"mean": -0.4, "sd": 0.0, "n": 2}}
    (folder / "life.json").write_text(json.dumps(content))
    card = write_report(folder).read_text().split("Most forgotten in a stage")[1].split("</dl>")[0]
    assert "nothing" in card
    assert "web" not in card


def test_the_stream_names_every_domain_however_short_its_stage():
    shares = [{"web": 1.0}, {"web": 0.5, "books": 0.5}, {"web": 0.2, "books": 0.3, "code": 0.5}]
    drawn = stream_panel(
        [10.0, 19.9, 20.0], shares, ["web", "books", "code"], [(0.0, "base"), (10.0, "mid"), (19.9, "end")]
    )
    words = re.sub(r"<title>.*?</title>|aria-label=\"[^\"]*\"", "", drawn)
    assert [name for name in ("web", "books", "code", "base", "mid", "end") if name not in words] == []


def test_tokens_of_the_ledger_are_told_from_those_of_the_stage(folder):
    cost = write_report(folder).read_text().split('id="cost"')[1]
    assert "only those of training are the stage's own" in html.unescape(cost)


def test_names_and_reasons_are_text_not_markup(folder):
    page = write_report(folder).read_text()
    assert "<script>alert(1)" not in page
    assert "<b>gain" not in page
    assert "a &lt;note&gt;" in page


def test_nothing_is_loaded_from_elsewhere(folder):
    page = write_report(folder).read_text()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


def test_what_is_read_is_what_is_written(folder):
    read, on_disk = LifeFile.read(folder), json.loads((folder / "life.json").read_text())
    read.write(folder)
    assert json.loads((folder / "life.json").read_text()) == on_disk
    assert LifeFile.read(folder) == read
    made = LifeFile.of({int(seed): lived.stages for seed, lived in read.seeds.items()})
    assert [seed["stages"] for seed in made.json()["seeds"].values()] == [
        seed["stages"] for seed in on_disk["seeds"].values()
    ]


@pytest.mark.parametrize("key", ["steps", "interval", "reason"])
def test_a_searched_segment_that_lost_something_is_not_taken_for_another(folder, key):
    content = json.loads((folder / "life.json").read_text())
    del content["seeds"]["0"]["stages"][1]["parts"][0][key]
    (folder / "life.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf"life\.json: damaged: seeds\.0\.stages\.1\.parts\.0\.\S*{key}"):
        write_report(folder)


@pytest.mark.parametrize("content", ["{", '{"schema": 2, "seeds": {"0": {}}}', '{"schema": 1, "seeds": {}}', "[]"])
def test_a_damaged_life_is_said(tmp_path, content):
    (tmp_path / "life.json").write_text(content)
    with pytest.raises(StoreError, match=r"life\.json"):
        write_report(tmp_path)


def test_a_stage_in_which_nothing_was_trained_has_no_share_of_a_search(folder):
    content = json.loads((folder / "life.json").read_text())
    for life in content["seeds"].values():
        life["stages"][1]["cost"]["search_share"] = None
    (folder / "life.json").write_text(json.dumps(content))
    assert "nan" not in write_report(folder).read_text().split("<body")[1].split("<script")[0]
    sentences = stage_sentences(LifeFile.read(folder).lives[0][1])
    assert not any("of training" in line or "None" in line for line in sentences)
