"""The report of a comparison, from a compare.json as `opmix compare` writes it."""

import json

import pytest
from comparison_sample import NAMES, write_comparison

from opmix.errors import StoreError
from opmix.report import write_report
from opmix.report.compare_figures import Spent, forgetting_panel, frontier, pareto_panel
from opmix.results.comparison import CompareFile


def test_a_comparison_becomes_one_page_with_every_entrant(tmp_path):
    page = write_report(write_comparison(tmp_path)).read_text()
    for section in ("summary", "domains", "forgetting", "mixtures", "cost", "configuration"):
        assert f'id="{section}"' in page
        assert f'href="#{section}"' in page
    for name in NAMES:
        assert page.count(f'<th scope="row">{name}</th>') == 5
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "mean ± standard deviation over 2 seeds, differences paired by seed" in page
    assert "1\u202fmin 5\u202fs" in page  # seconds of search and training
    assert len(page) < 500_000


def test_without_clock_or_spread_the_page_says_less(tmp_path):
    write_comparison(tmp_path, seeds=1)
    (tmp_path / "spent.json").unlink()
    page = write_report(tmp_path).read_text()
    assert "one seed" in page
    assert " ± " not in page


def test_what_is_read_is_what_is_written(tmp_path):
    read = CompareFile.read(write_comparison(tmp_path / "sample"))
    read.write(tmp_path)
    assert CompareFile.read(tmp_path) == read
    for name in ("compare.json", "spent.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((tmp_path / "sample" / name).read_text())


@pytest.mark.parametrize("key", ["mean_loss", "stages", "cost"])
def test_a_life_that_lost_something_is_named(tmp_path, key):
    path = write_comparison(tmp_path) / "compare.json"
    content = json.loads(path.read_text())
    del content["entrants"]["uniform"]["seeds"]["1"][key]
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf"compare\.json: damaged: entrants\.uniform\.seeds\.1\.{key}: "):
        write_report(tmp_path)


@pytest.mark.parametrize("text", ["{", "{}", json.dumps({"schema": 2, "table": [1]})])
def test_a_damaged_file_is_named(tmp_path, text):
    (tmp_path / "compare.json").write_text(text)
    with pytest.raises(StoreError, match=r"compare\.json: (cannot be read|schema|damaged)"):
        write_report(tmp_path)


def test_every_point_of_a_few_has_its_name():
    points = [Spent(f"method_{i}", 1e12 * (1 + i % 3), 3 + i / 50) for i in range(8)]
    drawn = pareto_panel(points, "method_3")
    assert all(f"{point.name}<" in drawn or f"{point.name} -->" in drawn for point in points)
    beside = forgetting_panel([(p.name, p.loss, i / 10) for i, p in enumerate(points)], "method_3")
    assert all(f"{point.name}<" in beside for point in points)


def test_the_frontier_is_what_no_other_beats():
    points = [Spent("dear", 3.0, 1.0), Spent("cheap", 1.0, 2.0), Spent("worse", 2.0, 2.0), Spent("same", 1.0, 2.5)]
    assert [p.name for p in frontier(points)] == ["cheap", "dear"]
