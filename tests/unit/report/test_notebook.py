"""What a notebook shows of results: complete, escaped, no script."""

from dataclasses import replace
from pathlib import Path

import pytest
from life_sample import loss, stage

from opmix.lifecycle.life import LifeResult
from opmix.mixing.mixture import Mixture
from opmix.report.notebook import decision_html, life_html
from opmix.results.files import typed
from opmix.results.life import LifeFile, StageEntry
from opmix.results.mixture import MixtureFile

EVIL = "<script>alert(1)</script>"


def safe(text):
    assert "<script" not in text
    assert "&lt;script&gt;" in text


def test_a_decision_is_a_table_a_sentence_and_a_cost(folders):
    found = MixtureFile.read(folders["continual"])
    text = decision_html(found)
    assert all(f'<th scope="row">{domain}</th>' in text for domain in found.mixture)
    low, high = next(iter(found.interval.values()))
    assert f"{low:.3f} to {high:.3f}" in text
    assert "The search cost" in text
    assert "style" not in text
    evil = replace(found.decision, reason=f"move: {EVIL}")
    safe(
        decision_html(
            replace(found, mixture={EVIL: 1.0}, optimum={EVIL: 1.0}, interval={}, decision=evil, notes=(EVIL,))
        )
    )


def test_without_a_cost_nothing_is_said_of_it(folders):
    assert "cost" not in decision_html(replace(MixtureFile.read(folders["swarm"]), cost=None))


@pytest.fixture
def life():
    losses = {"web": loss(4.0, 4.25), EVIL: loss(None, 3.0)}
    made = stage(EVIL, 0, {"web": 0.2, EVIL: 0.8}, losses, {"web": 0.25}, True)
    made["parts"][0] |= {"steps": (20, 100), "reason": f"move: {EVIL}"}
    lived = typed(StageEntry, made, Path("life.json"), nulls=True)
    return LifeFile.of({0: [lived], 1: [lived]})


def test_a_life_is_a_table_a_stage(life, tmp_path):
    text = life_html(life)
    safe(text)
    assert text.count("<table") == 2
    for shown in ("seed 1", "0.100 to 0.300", "+0.250", "step 20: move", "4.250"):
        assert shown in text
    assert LifeResult(folder=tmp_path, life=life)._repr_html_() == text


def test_a_mixture_is_a_table():
    text = Mixture.of({EVIL: 0.75, "web": 0.25})._repr_html_()
    safe(text)
    assert "<caption>Mixture</caption>" in text
    assert "0.7500" in text


def test_print_of_a_life_or_comparison_is_a_few_lines(tmp_path):
    from comparison_sample import write_comparison

    from opmix.comparison.run import CompareResult
    from opmix.results.comparison import CompareFile

    mixture = {f"d{i}": 0.1 for i in range(10)}
    made = stage("s", 0, mixture, {"d1": loss(3.25, 3.5)}, {"d1": 0.25}, False)
    life = LifeFile.of({0: [typed(StageEntry, made, tmp_path, nulls=True)]})
    told = repr(LifeResult(folder=tmp_path, life=life)).splitlines()
    assert len(told) == 5
    assert "3.5000" in told[1]
    assert "and 2 smaller" in told[2]
    assert "+0.2500" in told[3]
    assert told[4].endswith("seed-0/01-s/model")
    comparison = CompareFile.read(write_comparison(tmp_path))
    told = repr(CompareResult(folder=tmp_path, comparison=comparison)).splitlines()
    assert len(told) == 3
    assert comparison.table[0].entrant in told[1]
    assert told[2].startswith("Use ")
