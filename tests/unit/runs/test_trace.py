"""`trace.jsonl`: spans of work, what they add up to, and Chrome's format."""

import json
import time

import pytest
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.runs import trace
from opmix.runs.store import RunStore
from opmix.runs.trace import FILE, Span, Spent, read_spans, span, traced, write_chrome


def test_a_run_folder_is_traced_by_its_outermost_store_and_by_nothing_outside_it(tmp_path):
    with span("nobody asks", "training"):
        pass
    with RunStore(tmp_path / "life") as outer:
        with RunStore(tmp_path / "life" / "search") as inner:
            inner.step("probe", {}, dict)
        outer.step("model", {}, dict)
        outer.step("model", {}, dict)  # found, so no work
    with span("too late", "training"):
        pass
    assert not (tmp_path / "life" / "search" / FILE).exists()
    spans = read_spans(tmp_path / "life")
    assert [s.name for s in spans if s.kind == "step"] == ["probe", "model"]
    assert [s.kind for s in spans].count("run") == 1
    assert len({s.session for s in spans}) == 1
    whole = next(s for s in spans if s.kind == "run")
    assert all(whole.start <= s.start and s.start + s.seconds <= whole.start + whole.seconds + 1e-4 for s in spans)


def test_time_inside_other_spans_counts_once_and_a_killed_session_as_far_as_it_is_known():
    spans = [
        Span("a", "save", "saving", 3.0, 1.0),
        Span("a", "train", "training", 2.0, 6.0),
        Span("a", "step", "step", 1.0, 8.0),
        Span("a", "run", "run", 0.0, 10.0),
        Span("b", "train", "training", 100.0, 4.0),
        Span("b", "load", "loading", 104.0, 1.0),  # its step and run never ended
    ]
    found = Spent.of(spans)
    assert found.seconds == pytest.approx({"training": 9, "saving": 1, "step": 2, "run": 2, "loading": 1})
    assert found.total == pytest.approx(15)
    assert found.waiting == pytest.approx(6 / 15)
    assert Spent.of([]).waiting == 0


def test_what_the_command_did_before_it_opened_the_folder_is_its_loading(tmp_path, monkeypatch):
    monkeypatch.setattr(trace, "_tracing", trace._Tracing())
    trace.command_began()
    time.sleep(0.01)
    for _ in ("first", "second"):  # a second run of the same process began with nothing
        with traced(tmp_path):
            pass
    assert [s.name for s in read_spans(tmp_path)] == ["start", "run", "run"]


def test_work_that_fails_is_traced_and_lines_cut_off_are_left_out(tmp_path):
    with pytest.raises(ZeroDivisionError), traced(tmp_path), span("divide", "deciding"):
        1 / 0  # noqa: B018
    whole = read_spans(tmp_path)
    assert [s.name for s in whole] == ["divide", "run"]
    line = (tmp_path / FILE).read_text().splitlines()[0]
    damaged = (line[:20], "[]", "null", line.replace("deciding", "dreaming"), line.replace('"session"', '"sess"'))
    with (tmp_path / FILE).open("a") as file:
        file.write("\n".join(damaged))
    assert read_spans(tmp_path) == whole


def test_a_folder_that_cannot_be_written_to_fails_no_run(tmp_path):
    (tmp_path / FILE).mkdir()
    with traced(tmp_path), span("work", "training"):
        pass
    assert read_spans(tmp_path) == []


def test_chrome_trace_has_a_row_for_each_session_and_microseconds_from_the_first(tmp_path):
    spans = [Span("a", "train", "training", 50.0, 2.0), Span("b", "load", "loading", 51.5, 0.25)]
    events = json.loads(write_chrome(spans, tmp_path / "t.json").read_text())["traceEvents"]
    done = [e for e in events if e["ph"] == "X"]
    assert [(e["name"], e["cat"], e["ts"], e["dur"]) for e in done] == [
        ("train", "training", 0, 2_000_000),
        ("load", "loading", 1_500_000, 250_000),
    ]
    assert done[0]["pid"] != done[1]["pid"]
    assert {e["args"]["name"] for e in events if e["ph"] == "M"} == {"opmix a", "opmix b"}


def test_status_says_the_share_that_is_waiting_and_writes_the_trace(tmp_path):
    run = tmp_path / "run"
    with RunStore(run, "search") as store:
        store.step("probe-00", {}, dict)
    lines = [Span("x", "train", "training", 0.0, 30.0), Span("x", "tokenise", "tokenising", 30.0, 10.0)]
    (run / FILE).write_text("".join(json.dumps(vars(s)) + "\n" for s in lines))
    told = CliRunner().invoke(app, ["status", str(run), "--trace", str(tmp_path / "t.json")])
    assert told.exit_code == 0, told.output
    assert "waiting 25.0% of 40 s: tokenising 25.0%" in told.output
    assert "traceEvents" in json.loads((tmp_path / "t.json").read_text())
    asked = json.loads(CliRunner().invoke(app, ["status", str(run), "--json"]).stdout)
    assert asked["waiting"] == pytest.approx(0.25)
    assert asked["seconds_by_kind"] == {"training": 30.0, "tokenising": 10.0}
    (run / FILE).unlink()
    none = CliRunner().invoke(app, ["status", str(run), "--trace", str(tmp_path / "u.json")])
    assert none.exit_code != 0
    assert not (tmp_path / "u.json").exists()
    assert json.loads(CliRunner().invoke(app, ["status", str(run), "--json"]).stdout)["waiting"] is None
