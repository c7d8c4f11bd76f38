"""Reading a run folder: what is optional, what is damaged, and what the errors say."""

import json
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opmix.errors import StoreError
from opmix.report import load_report_data
from opmix.report.document import MixtureDocument, _typed

MINIMAL = {
    "kind": "fit", "mixture": {"a": 0.25, "b": 0.75}, "laws": {"m": {"c": 1.0, "t": {"a": -1.0, "b": 0.5}}},
}  # fmt: skip


def test_a_sample_arrives_typed_and_in_order(folders):
    data = load_report_data(folders["rebalancing"])
    assert data.document.kind == "search"
    assert data.name == "rebalancing"
    assert list(data.document.mixture) == ["arxiv", "c4", "open_web_math", "reddit", "stackexchange", "code"]
    assert data.document.decision.gain_interval[0] < data.document.decision.gain
    assert data.proxies.ratios.shape == (20, 6)
    assert data.proxies.losses.shape == data.proxies.errors.shape == (20, 6)
    assert np.allclose(data.proxies.ratios.sum(axis=1), 1)
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
    broken = MINIMAL | {"decision": {"gain": "much"}, "interval": {"a": [0.1]}}
    (tmp_path / "mixture.json").write_text(json.dumps(broken))
    with pytest.raises(StoreError, match=r"interval\.a.*decision\.gain|decision\.gain.*interval\.a"):
        load_report_data(tmp_path)


@pytest.mark.parametrize(("content", "words"), [([], "schema 'list'"), ({"schema": 9}, "schema 9")])
def test_another_schema_is_refused(tmp_path, content, words):
    (tmp_path / "mixture.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match=words):
        load_report_data(tmp_path)


@given(st.sets(st.sampled_from(
    ["optimum", "interval", "decision", "alternatives", "solver", "settings", "coordinates", "check", "cost",
     "baseline", "units", "bytes_per_token", "notes", "epochs", "created", "interval_level"]
)))  # fmt: skip
def test_null_means_absent(keys):
    with_nulls = _typed(MixtureDocument, MINIMAL | dict.fromkeys(keys), None)
    assert with_nulls == _typed(MixtureDocument, MINIMAL, None)


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
    assert read.fitted.tolist() == [False, True]
    assert np.isnan(read.errors).tolist() == [[True], [True]]
    table.write_text("proxy,ratio_math,loss_math\np,0.5,high\n")
    with pytest.raises(StoreError, match="loss_math is 'high'; expected a number"):
        load_report_data(tmp_path)
    table.write_text("proxy,math\np,0.5\n")
    with pytest.raises(StoreError, match="expected ratio_<domain> and loss_<metric> columns"):
        load_report_data(tmp_path)
