import json
from pathlib import Path

import numpy as np
import pytest

from opmix.errors import DataError
from opmix.mixing.swarm import read_mixtures, read_prior, read_swarm

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
    assert np.allclose(swarm.table.mixtures.sum(axis=1), 1)
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
