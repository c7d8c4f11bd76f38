"""What a comparison says to do: the same sentence in terminal, notebook, page and list of runs."""

import html
import re
from dataclasses import replace

import pytest
from comparison_sample import write_comparison

from opmix.cli.compare import show
from opmix.comparison.run import CompareResult
from opmix.report import write_report
from opmix.results.comparison import CompareFile
from opmix.results.comparison_verdict import LEVEL, comparison_verdict, paired_gain
from opmix.results.life import Spread
from opmix.view.runs import find_runs


def compared(folder, losses, search):
    """A comparison of the methods in `losses` (mean test loss by seed), best first, and the FLOPs of their searches."""
    content = CompareFile.read(write_comparison(folder))
    (life, *_), rows = content.lives("op_mix"), {row.entrant: row for row in content.table}
    entrants = {
        name: replace(content.entrants["op_mix"], seeds={s: replace(life, mean_loss=x) for s, x in by_seed.items()})
        for name, by_seed in losses.items()
    }
    table = [
        replace(
            rows["uniform"],
            entrant=name,
            seeds=len(by_seed),
            mean_loss=Spread.of(list(by_seed.values())),
            search_flops=Spread.of([search[name]] * len(by_seed)),
        )
        for name, by_seed in losses.items()
    ]
    return replace(content, entrants=entrants, table=table, reference=next(iter(losses)))


SEARCH = {"a": 5e11, "b": 0.0, "c": 1e12}  # beside 1e12 of training


@pytest.mark.parametrize(
    ("losses", "use", "parts"),
    [
        # One seed: by how much, and that nothing is known of how sure.
        (
            {"a": {"0": 2.0}, "b": {"0": 2.1}},
            "a",
            ["2.0000 nats", "0.1000 below b's (9.5% lower", "at 1.5 times its FLOPs", "one seed cannot say"],
        ),
        # Every seed agrees about the gain.
        (
            {"a": {"0": 2.0, "1": 3.0, "2": 4.0}, "b": {"0": 2.1, "1": 3.1, "2": 4.11}},
            "a",
            ["is the lowest, 0.1033 below b's", "90% interval of the gain 0.0936 to 0.1131 over 3 seeds"],
        ),
        # The seeds contradict each other: the cheaper of the two.
        (
            {"a": {"0": 2.0, "1": 3.1}, "b": {"0": 2.2, "1": 3.0}},
            "b",
            [
                "of two methods that the seeds cannot tell apart it costs least",
                "lowest mean test loss is a's",
                "at 1.5 times its FLOPs",
            ],
        ),
        # The same, but the best is the cheapest.
        (
            {"a": {"0": 2.0, "1": 3.1}, "c": {"0": 2.2, "1": 3.0}},
            "a",
            ["though not surely", "none that is level with it costs less", "at 0.75 times its FLOPs"],
        ),
        # The second is surely worse, the third perhaps not: it is the third that is beside the best.
        (
            {"a": {"0": 2.0, "1": 3.0}, "c": {"0": 2.1, "1": 3.1}, "b": {"0": 2.0, "1": 3.4}},
            "b",
            ["of two methods", "0.2000 below b's"],
        ),
        ({"a": {"0": 2.0}, "b": {"1": 2.1}}, "a", ["shares no seed with b", "different seeds cannot say"]),
        ({"a": {"0": 2.0}}, "a", ["no other was run"]),
        ({"a": {"0": 2.0}, "b": {"0": float("nan")}}, "a", ["no other ended with a finite test loss"]),
        ({"a": {"0": float("nan")}, "b": {"0": float("nan")}}, "none of them", ["no method ended"]),
    ],
)
def test_which_by_how_much_how_sure_at_what_cost(tmp_path, losses, use, parts):
    said = comparison_verdict(compared(tmp_path, losses, SEARCH))
    assert said.startswith(f"Use {use}: ")
    assert [part for part in parts if part not in said] == [], said


def test_the_interval_is_student_s(tmp_path):
    from scipy.stats import ttest_rel

    losses = {"a": {"0": 2.0, "1": 3.1, "2": 2.6, "3": 1.0}, "b": {"0": 2.2, "1": 3.0, "2": 2.9, "3": 1.0, "4": 9.0}}
    found = paired_gain(compared(tmp_path, losses, SEARCH), "a", "b")
    told = ttest_rel([2.2, 3.0, 2.9, 1.0], [2.0, 3.1, 2.6, 1.0]).confidence_interval(LEVEL)
    assert found.interval == pytest.approx((told.low, told.high))
    assert found.seeds == 4


def test_terminal_notebook_page_and_list_say_the_same_words(tmp_path, capsys):
    folder = write_comparison(tmp_path / "run")
    content = CompareFile.read(folder)
    said = comparison_verdict(content)
    show(content, folder)
    assert said in " ".join(capsys.readouterr().out.split())
    shown = CompareResult(folder=folder, comparison=content)
    assert said in repr(shown)
    (line,) = find_runs(tmp_path)
    assert line.told == said
    as_text = said.replace(" -", " −")
    assert as_text in html.unescape(shown._repr_html_())
    page = html.unescape(write_report(folder).read_text())
    heading, lead = re.findall(r'<h1>(.*?)</h1><p class="lead">(.*?)</p>', page)[0]
    assert f"{heading}: {lead[:1].lower()}{lead[1:]}" == as_text
