import json
from pathlib import Path

import numpy as np
import pytest

from opmix.errors import ConfigError, DataError
from opmix.mixing.swarm import Directions, read_mixtures, read_prior, read_swarm

RATIOS = "run,name,index,web,code\nr1,x,0,0.5,0.5\nr2,y,1,0.25,0.75\n"
METRICS = "run,name,index,loss/web,loss/code\nr2,y,1,2.2,1.1\nr1,x,0,2.0,1.5\n"


def write(folder: Path, **files: str) -> list[Path]:
    paths = []
    for name, text in files.items():
        paths.append(folder / f"{name}.csv")
        paths[-1].write_text(text)
    return paths


def test_rows_are_joined_by_run_not_by_position(tmp_path):
    swarm = read_swarm(*write(tmp_path, ratios=RATIOS, metrics=METRICS))
    assert swarm.table.domains == ("web", "code")
    assert swarm.table.metrics == ("loss/web", "loss/code")
    assert swarm.table.points == ("r1", "r2")
    assert swarm.table.losses.tolist() == [[2.0, 1.5], [2.2, 1.1]]


def test_regmix_index_column_is_understood(tmp_path):
    files = write(tmp_path, ratios="index,a,b\n1,0.5,0.5\n2,0.1,0.9\n", metrics="index,x\n2.0,3.1\n1.0,3.0\n")
    assert read_swarm(*files).table.losses.ravel().tolist() == [3.0, 3.1]


def test_one_joined_table_with_rounded_ratios(tmp_path):
    (path,) = write(tmp_path, joined="index,ratio_a,ratio_b,loss_a\n1,0.333,0.666,3\n2,0.5,0.5,2\n")
    swarm = read_swarm(path)
    assert swarm.table.domains == ("a", "b")
    assert swarm.table.metrics == ("loss_a",)
    np.testing.assert_allclose(swarm.table.mixtures.sum(axis=1), 1, rtol=1e-5, atol=1e-8)
    assert "renormalised" in swarm.notes[0]
    assert "1 of 2" in swarm.notes[0]


@pytest.mark.parametrize(
    ("ratios", "metrics", "message"),
    [
        (RATIOS, METRICS.replace("r2", "r9"), "do not match on 'run'.*r2.*r9"),
        (RATIOS, METRICS + "r3,z,2,1,1\n", "r3"),
        (RATIOS.replace("r2", "r1"), METRICS, "'r1' appears twice"),
        (RATIOS.replace("0.75", "0.35"), METRICS, "'r2': ratios add up to 0.6"),
        (RATIOS.replace("0.5,0.5", "1.5,-0.5"), METRICS, "shares >= 0"),
        (RATIOS, METRICS.replace("2.2", "nan"), "'r2': loss/web is nan"),
        (RATIOS, METRICS.replace("2.2", "oops"), "'oops'; expected a number"),
        (RATIOS, METRICS.replace("run", "job"), "no column 'run'"),
        ("web,code\n0.5,0.5\n", METRICS, "no run id"),
        ("", METRICS, "no rows"),
    ],
)
def test_tables_that_cannot_be_trusted_are_refused(tmp_path, ratios, metrics, message):
    with pytest.raises(DataError, match=message):
        read_swarm(*write(tmp_path, ratios=ratios, metrics=metrics))


def test_prediction_tables_need_every_domain(tmp_path):
    (path,) = write(tmp_path, more="run,ratio_b,ratio_a,loss_a\n7,0.25,0.75,9\n")
    runs, mixtures, _ = read_mixtures(path, ("a", "b"))
    assert runs == ("7",)
    assert mixtures.tolist() == [[0.75, 0.25]]
    with pytest.raises(DataError, match="'c'"):
        read_mixtures(path, ("a", "c"))


def test_priors(tmp_path):
    path = tmp_path / "prior.json"
    path.write_text(json.dumps({"ratio_a": 3, "b": 1}))
    assert dict(read_prior(path, ("a", "b"))) == {"a": 0.75, "b": 0.25}
    path.write_text(json.dumps({"z": 1}))
    with pytest.raises(DataError, match="unknown domain 'z'"):
        read_prior(path, ("a", "b"))
    path.write_text("[1]")
    with pytest.raises(DataError, match="JSON object"):
        read_prior(path, ("a", "b"))


NOT_TABLES = {
    "a loss twice": ("run,ratio_a,ratio_b,loss_x,loss_x\n1,0.5,0.5,3,4\n2,0.4,0.6,3,4\n", "'loss_x' stands twice"),
    "a ratio twice": ("run,ratio_a,ratio_a,loss_x\n1,0.5,0.5,3\n", "'ratio_a' stands twice"),
    "decimal commas": ("run,ratio_a,ratio_b,loss_x\n1,0.5,0.5,3,14\n", r":2: 5 fields where the header has 4"),
    "a short row": ("run,ratio_a,ratio_b,loss_x\n1,0.5,0.5\n", r":2: 3 fields where the header has 4"),
    "a line break in a domain": ('run,"ratio_web\ntouch X",ratio_b,loss_x\n1,0.5,0.5,3\n', "without line breaks"),
    "an escape in a run": ("run,ratio_a,ratio_b,loss_x\n\x1b[31m,0.5,0.5,3\n", "without line breaks"),
    "a likelihood": ("run,ratio_a,ratio_b,loss_x\n1,0.5,0.5,-3\n2,0.4,0.6,-4\n", "negative in every run.*--maximize"),
    "a diverged run": ("run,ratio_a,ratio_b,loss_x\n1,0.5,0.5,3\nr7,0.4,0.6,1e30\n", "run 'r7': loss_x is 1e.30"),
    "semicolons": ("run;ratio_a;ratio_b;loss_x\n1;0.5;0.5;3\n", "parted by semicolons; expected commas"),
    "tabs": ("run\tratio_a\tratio_b\tloss_x\n1\t0.5\t0.5\t3\n", "parted by tabs; expected commas"),
    "a score": ("run,ratio_a,ratio_b,acc\n1,0.5,0.5,0.3\n", "needs ratio_\\* and loss_\\* columns"),
}


@pytest.mark.parametrize("case", NOT_TABLES)
def test_a_table_that_could_be_misread_is_refused(tmp_path, case):
    text, message = NOT_TABLES[case]
    with pytest.raises(DataError, match=message):
        read_swarm(*write(tmp_path, joined=text))


def test_what_is_no_loss_is_passed_over_and_said(tmp_path):
    ratios = "Unnamed: 0,run,kind,web,code\n0,a,base,0.5,0.5\n1,b,base,0.2,0.8\n"
    metrics = "Unnamed: 0,run,x,train_runtime,state,eval/step\n0,a,3.0,100,ok,7\n1,b,3.1,110,ok,7\n"
    swarm = read_swarm(*write(tmp_path, ratios=ratios, metrics=metrics))
    assert swarm.table.domains == ("web", "code")
    assert swarm.table.metrics == ("x",)
    assert all(name in swarm.notes[0] for name in ("Unnamed: 0", "kind", "train_runtime", "state", "eval/step"))


def test_counters_are_no_losses_whatever_is_put_before_them(tmp_path):
    joined = "run,ratio_a,ratio_b,loss_x,loss_step,loss_train_runtime\na,0.5,0.5,3,1,9\nb,0.4,0.6,4,2,8\n"
    swarm = read_swarm(*write(tmp_path, joined=joined))
    assert swarm.table.metrics == ("loss_x",)
    assert "loss_step" in swarm.notes[0]
    both = "run,ratio_a,ratio_b,nll\na,0.5,0.5,-3\nb,0.4,0.6,-4\n"
    kept = read_swarm(*write(tmp_path, joined=both), None, Directions(maximize=("nll",)))
    assert kept.table.losses.ravel().tolist() == [3, 4]


def test_a_loss_with_one_cell_of_text_is_an_error_with_its_line(tmp_path):
    files = write(tmp_path, ratios=RATIOS, metrics=METRICS.replace("1.1", "n/a"))
    with pytest.raises(DataError, match=r"metrics.csv:2: column 'loss/code' is 'n/a'; expected a number"):
        read_swarm(*files)


@pytest.mark.parametrize("name", ["gsm8k_acc", "exact_match", "pass@1", "eval/f1", "auc"])
def test_a_score_needs_its_direction(tmp_path, name):
    files = write(tmp_path, ratios=RATIOS, metrics=METRICS.replace("loss/code", name))
    with pytest.raises(DataError, match=f"{name!r} reads like a score"):
        read_swarm(*files)
    assert read_swarm(*files, Directions(chosen=("loss/web",))).table.metrics == ("loss/web",)
    assert read_swarm(*files, Directions(minimize=(name,))).table.metrics == ("loss/web", name)


def test_a_maximised_score_becomes_what_is_missing_to_the_best(tmp_path):
    metrics = "run,acc,points,elo\nr1,0.25,40,-3\nr2,0.75,60,5\n"
    files = write(tmp_path, ratios=RATIOS, metrics=metrics)
    table = read_swarm(*files, Directions(maximize=("acc", "points", "elo"))).table
    assert table.metrics == ("1 - acc", "100 - points", "-elo")
    assert table.losses.tolist() == [[0.75, 60, 3], [0.25, 40, -5]]


def test_a_column_that_is_not_there_is_named(tmp_path):
    files = write(tmp_path, ratios=RATIOS, metrics=METRICS)
    with pytest.raises(ConfigError, match="--maximize: no column 'accc'"):
        read_swarm(*files, Directions(maximize=("accc",)))
    with pytest.raises(ConfigError, match="both name 'loss/web'"):
        read_swarm(*files, Directions(maximize=("loss/web",), minimize=("loss/web",)))


def test_ids_that_a_spreadsheet_would_run_are_said(tmp_path):
    (path,) = write(tmp_path, joined="run,ratio_a,ratio_b,loss_x\n=cmd,0.5,0.5,3\n-7,0.4,0.6,3\n")
    assert "'=cmd' as a formula" in read_swarm(path).notes[0]


@pytest.mark.parametrize("text", ['{"web": 1e400}', '{"web": true}', '{"web": -1}', "[" * 100_000, "9" * 400])
def test_a_prior_that_is_no_shares_is_one_clear_error(tmp_path, text):
    path = tmp_path / "prior.json"
    path.write_text(text if text[0] != "9" else f'{{"web": {text}}}')
    with pytest.raises(DataError, match="expected"):
        read_prior(path, ("web", "code"))
