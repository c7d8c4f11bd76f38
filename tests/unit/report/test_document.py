"""Reading a run folder: what is optional, what is damaged, and what the errors say."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opmix.errors import StoreError
from opmix.mixing.decided import Decision
from opmix.mixing.table import ProxyTable
from opmix.report import load_report_data, write_report
from opmix.results.draws import LawDrawsFile
from opmix.results.files import typed
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.results.timing import TimingFile

MINIMAL = {
    "kind": "fit",
    "mixture": {"a": 0.25, "b": 0.75},
    "laws": {"m": {"c": 1.0, "t": {"a": -1.0, "b": 0.5}}},
}
DECISION = Decision(
    action="move",
    reason="better",
    reference="current",
    gain=0.1,
    gain_interval=(0.05, 0.2),
    probability=0.9,
    confidence=0.9,
    noise=0.01,
    direct_gain=0.08,
    direct_error=0.02,
)


def test_a_sample_arrives_typed_and_in_order(folders):
    data = load_report_data(folders["rebalancing"])
    assert data.document.kind == "search"
    assert data.name == "rebalancing"
    assert list(data.document.mixture) == ["arxiv", "c4", "open_web_math", "reddit", "stackexchange", "code"]
    assert data.document.decision.gain_interval[0] < data.document.decision.gain
    assert data.proxies.mixtures.shape == (20, 6)
    assert data.proxies.losses.shape == data.proxies.standard_errors.shape == (20, 6)
    np.testing.assert_allclose(data.proxies.mixtures.sum(axis=1), 1, rtol=1e-5, atol=1e-8)
    assert len(data.draws.c) == 48
    assert data.comparison.arms["uniform"].measured.keys() == data.document.laws.keys()


def test_a_missing_result_says_which_folder_it_wants(tmp_path):
    with pytest.raises(StoreError, match=r"no mixture\.json; expected the --out folder of a finished `opmix search`"):
        load_report_data(tmp_path)


@pytest.mark.parametrize("content", ['{"kind": "fit", "mix', "", "\x00\x01"])
def test_a_half_written_result_is_named(tmp_path, content):
    (tmp_path / "mixture.json").write_text(content)
    with pytest.raises(StoreError, match=r"mixture\.json: cannot be read as JSON"):
        load_report_data(tmp_path)


def test_wrong_values_are_named_by_their_dotted_path(tmp_path):
    decision = vars(DECISION) | {"gain": "much"}
    broken = MINIMAL | {"decision": decision, "interval": {"a": [0.1]}}
    (tmp_path / "mixture.json").write_text(json.dumps(broken))
    with pytest.raises(StoreError, match=r"interval\.a.*decision\.gain|decision\.gain.*interval\.a"):
        load_report_data(tmp_path)


@pytest.mark.parametrize(("content", "words"), [([], "schema 'list'"), ({"schema": 9}, "schema 9")])
def test_another_schema_is_refused(tmp_path, content, words):
    (tmp_path / "mixture.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=words):
        load_report_data(tmp_path)


@settings(deadline=None)  # the first call builds the types
@given(
    st.sets(
        st.sampled_from(
            [
                "optimum",
                "interval",
                "decision",
                "alternatives",
                "solver",
                "settings",
                "coordinates",
                "check",
                "cost",
                "baseline",
                "units",
                "bytes_per_token",
                "notes",
                "epochs",
                "domains",
                "interval_level",
            ]
        )
    )
)
def test_null_means_absent(keys):
    with_nulls = typed(MixtureFile, MINIMAL | dict.fromkeys(keys), None)
    assert with_nulls == typed(MixtureFile, MINIMAL, None)


def test_draws_of_another_shape_are_damage(folders, tmp_path):
    shutil.copytree(folders["continual"], tmp_path, dirs_exist_ok=True)
    draws = json.loads((tmp_path / "law_draws.json").read_text())
    draws["t"][3] = draws["t"][3][:-1]
    (tmp_path / "law_draws.json").write_text(json.dumps(draws))
    with pytest.raises(StoreError, match=r"law_draws\.json: damaged: c and t are not 48 draws of 4 metrics"):
        load_report_data(tmp_path)


def test_the_proxy_table_may_have_gaps_but_not_words(folders, tmp_path):
    shutil.copytree(folders["continual"], tmp_path, dirs_exist_ok=True)
    table = tmp_path / "tables" / "proxies.csv"
    table.write_text("proxy,kind,ratio_math,loss_math,interference,fitted\np,probe,0.5,,0.3,0\nq,proxy,1,2.5,,1\n")
    read = load_report_data(tmp_path).proxies
    assert np.isnan(read.losses[0, 0])
    assert read.losses[1, 0] == 2.5
    assert read.interference.tolist() == [0.3, 0.0]
    assert read.fitted == (False, True)
    assert read.standard_errors is None
    table.write_text("proxy,ratio_math,loss_math\np,0.5,high\n")
    with pytest.raises(StoreError, match="loss_math is 'high'; expected a number"):
        load_report_data(tmp_path)
    table.write_text("proxy,math\np,0.5\n")
    with pytest.raises(StoreError, match="expected ratio_<domain> and loss_<metric> columns"):
        load_report_data(tmp_path)


def test_what_is_written_is_read_again(folders, tmp_path):
    for name in ("continual", "swarm"):
        found = replace(MixtureFile.read(folders[name]), decision=DECISION, evidence={"adaptive": {"steps": 3}})
        found.write(tmp_path)
        there = MixtureFile.read(tmp_path)
        # The clock's part is in timing.json, which is not copied here.
        assert there.json() == found.json()
        assert there.decision == DECISION
        assert there.evidence == found.evidence
        LawDrawsFile.read(folders[name]).write(tmp_path)
        assert LawDrawsFile.read(tmp_path) == LawDrawsFile.read(folders[name])
        TimingFile.read(folders[name]).write(tmp_path)
        assert MixtureFile.read(tmp_path).solver.seconds == 0.0061
        (tmp_path / "timing.json").unlink()
    table = ProxyTable.read(folders["continual"] / "tables" / "proxies.csv")
    table.write(tmp_path / "proxies.csv")
    again = ProxyTable.read(tmp_path / "proxies.csv")
    assert (again.points, again.kinds, again.metrics) == (table.points, table.kinds, table.metrics)
    assert np.array_equal(again.losses, table.losses)
    assert np.array_equal(again.weights, table.weights)


def test_what_was_measured_reaches_the_page_as_a_number(edited):
    def measured(document):
        document["decision"] |= {"direct_gain": 0.0123, "direct_error": 0.004}

    page = write_report(edited(measured)).read_text()
    assert "Measured gain against" in page
    assert "+0.012" in page
    assert "one probe trained on each, standard error 0.004" in page
    assert "predicted by the law: +" in page
    assert "measured on a probe" not in write_report(edited(lambda document: None)).read_text()


def test_a_result_is_about_five_lines(folders):
    text = MixtureFile.read(folders["rebalancing"]).summary()
    assert len(text.splitlines()) == 4
    assert "mixture (90% interval): " in text
    assert "probability that it is better 97%" in text
    assert "9.5% of the stage's training" in text


@pytest.mark.parametrize("read", [Manifest.read, Manifest.find, TimingFile.read, LawDrawsFile.read])
def test_a_damaged_file_is_named(tmp_path, read):
    for name in ("manifest.json", "timing.json", "law_draws.json"):
        (tmp_path / name).write_text("[1]")
    with pytest.raises(StoreError, match=r"\.json: damaged: .*run the command again"):
        read(tmp_path)
