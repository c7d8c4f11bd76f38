"""Run folders as 0.1.0 (commit d824eca) wrote them are read; those of a later opmix are refused, in one sentence.

`tests/data/runs-0.1.0.tar.gz` holds a search (verified), a life, a comparison and a fit, without weights, tokenizers and reports.
"""

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.lifecycle.data_file import DataFile
from opmix.results.manifest import Manifest
from opmix.view import find_runs
from opmix.view.pages import compared, history, index

KEPT = Path(__file__).parents[1] / "data" / "runs-0.1.0.tar.gz"
RUNS = ("search", "life", "compare", "fit")
NO_MIXTURE = "no mixture.json; expected the --out folder of a finished `opmix search` or `opmix fit`"
NO_SEARCH = "expected a finished `opmix search`"
SAYS = {
    ("search", "status"): "probe-02-beta       done",
    ("life", "status"): "data of alpha changed",
    ("compare", "status"): "seed-0/op_mix/02-two/search-0",
    ("fit", "status"): "decision",
    **{(run, "report"): f"{run}/report.html" for run in RUNS},
    ("search", "card"): "Decision: keep the current mixture: predicted gain +0.0193 nats",
    ("life", "card"): "| gamma | 0.9429 | 0.744 to 0.974 |",
    ("fit", "card"): "Decision: keep the prior mixture: predicted gain +0.0179 nats",
    ("search", "export --to interleave"): "interleave_datasets",
    ("search", "export --to axolotl"): "datasets:",
}
REFUSES = {
    ("compare", "card"): "neither mixture.json nor life.json",
    ("fit", "export --to axolotl"): "the run does not say where its text is",
    **{(run, "export --to axolotl"): NO_MIXTURE for run in ("life", "compare")},
    **{(run, "verify"): NO_SEARCH for run in ("life", "compare", "fit")},
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("old")
    with tarfile.open(KEPT) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def runs(kept, tmp_path, monkeypatch):
    shutil.copytree(kept, tmp_path / "runs")
    monkeypatch.chdir(tmp_path / "runs")
    return tmp_path / "runs"


def called(command):
    """Exit code and what was said, on one line."""
    ended = CliRunner().invoke(app, command)
    return ended.exit_code, " ".join(f"{ended.output} {ended.exception or ''}".split())


@pytest.mark.parametrize(("run", "verb"), SAYS)
def test_a_folder_of_0_1_0_is_read(runs, run, verb):
    verb, *options = verb.split()
    code, said = called([verb, run, *options])
    assert (code, " ".join(SAYS[run, " ".join([verb, *options])].split()) in said) == (0, True), said


@pytest.mark.parametrize(("run", "verb"), REFUSES)
def test_what_a_folder_of_0_1_0_does_not_hold_is_said(runs, run, verb):
    verb, *options = verb.split()
    code, said = called([verb, run, *options])
    assert (code, REFUSES[run, " ".join([verb, *options])] in said) == (1, True), said


def test_all_of_them_are_listed_and_shown(runs):
    lines = find_runs(runs)
    assert {line.path for line in lines} == set(RUNS)
    assert {line.state for line in lines} == {"finished"}
    page = index(runs, lines)
    assert all(run in page for run in RUNS)
    assert "+0.0193" in compared(runs, ["search", "fit"])
    assert "gamma" in history(runs, "life")
    code, said = called(["ls", "."])
    assert (code, all(run in said for run in RUNS)) == (0, True)


def test_a_card_names_the_program_that_decided(runs):
    """Not the one that reads the run: 0.1.0 kept no commit."""
    assert "Found by opmix 0.1.0 (OP-Mix" in called(["card", "search"])[1]
    manifest = json.loads((runs / "search" / "manifest.json").read_text())
    for commit, told in (("d824eca0", ", commit `d824eca0`"), ("`; rm -rf <b>", ""), (7, "")):
        (runs / "search" / "manifest.json").write_text(json.dumps({**manifest, "commit": commit}))
        assert f"Found by opmix 0.1.0{told} (OP-Mix" in called(["card", "search"])[1]
    (runs / "search" / "manifest.json").write_text(json.dumps({**manifest, "versions": [1]}))
    assert "Found by opmix from source (OP-Mix" in called(["card", "search"])[1]


@pytest.mark.parametrize(
    ("run", "file", "verb"),
    [
        ("search", "mixture.json", "report"),
        ("search", "manifest.json", "export --to interleave"),
        ("search", "timing.json", "card"),
        ("search", "verification.json", "report"),
        ("life", "life.json", "card"),
        ("life", "data.json", "status"),
        ("compare", "compare.json", "report"),
    ],
)
def test_files_of_a_later_opmix_are_refused(runs, run, file, verb):
    place = runs / run / file
    place.write_text(json.dumps({**json.loads(place.read_text()), "schema": 2}))
    verb, *options = verb.split()
    code, said = called([verb, run, *options])
    assert code == 1
    assert f"{file}: schema 2; this version of opmix reads schema 1; use the one that wrote it" in said


def test_manifests_and_data_files_say_their_schema(runs, tmp_path):
    Manifest.write(tmp_path, "search")
    DataFile.read(runs / "life").write(tmp_path)
    for name in ("manifest.json", "data.json"):
        assert list(json.loads((tmp_path / name).read_text()).items())[-1] == ("schema", 1)
    assert DataFile.read(tmp_path) == DataFile.read(runs / "life")
