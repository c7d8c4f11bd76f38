"""What the trackers' own packages keep of a decision, a life and a comparison, read back from their own files."""

import json
import struct
import time

import numpy as np
import pytest
from comparison_sample import write_comparison
from consumers import real
from life_sample import loss, stage

from opmix.comparison.run import CompareResult
from opmix.fit import fit_runs
from opmix.lifecycle.life import LifeResult
from opmix.results.comparison import CompareFile
from opmix.results.files import typed
from opmix.results.life import LifeFile, StageEntry
from opmix.trackers import log_decision
from opmix.trackers.mlflow import read_mlflow
from opmix.trackers.told import of_comparison, of_decision, of_life

pytestmark = [pytest.mark.slow, pytest.mark.consumer, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A decision, a life and a comparison, each with what a tracker is told of it."""
    folder = tmp_path_factory.mktemp("found")
    shares = np.linspace(0.1, 0.9, 9)
    lines = [f"{i},{p:.3f},{1 - p:.3f},{3 + np.exp(-p)},{2 + np.exp(p - 1)}" for i, p in enumerate(shares)]
    (folder / "runs.csv").write_text("run,ratio_web,ratio_code,loss_web,loss_code\n" + "\n".join(lines) + "\n")
    fit = fit_runs(folder / "runs.csv")
    stages = [stage("base", seed, {"web": 1.0}, {"web": loss(5.0, 4.0 + seed)}, {}, False) for seed in (0, 1)]
    file = LifeFile.of({seed: [typed(StageEntry, s, folder, nulls=True)] for seed, s in enumerate(stages)})
    life = LifeResult(folder=folder, life=file)
    compared = write_comparison(folder / "compared")
    comparison = CompareResult(folder=compared, comparison=CompareFile.read(compared))
    return [
        (fit, of_decision(fit.file(), fit.table)),
        (life, of_life(life.life, repr(life))),
        (comparison, of_comparison(comparison.comparison, repr(comparison))),
    ]


@pytest.fixture
def report(tmp_path):
    path = tmp_path / "run" / "report.html"
    path.parent.mkdir()
    path.write_text("<p>a report</p>")
    return path


def same(rows, told):
    assert len(rows) == len(told.rows)
    for row, wanted in zip(rows, told.rows, strict=True):
        assert {k: pytest.approx(v) for k, v in wanted.items()} == {k: row[k] for k in wanted}


def wandb_records(path):
    """Records of an offline run: a log of 32 kB blocks, each record in pieces behind 7 bytes of check sum, length and kind."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, piece = path.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 0 < (left := -place % 32768) < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, place)
        if place + 7 + length > len(content):  # being written
            return
        piece, place = piece + content[place + 7 : place + 7 + length], place + 7 + length
        if kind in (1, 4):  # whole, or the last piece
            record = Record()
            record.ParseFromString(piece)
            piece = b""
            yield record


def test_wandb_keeps_it_and_somebody_s_open_run(found, report, tmp_path, monkeypatch):
    wandb = real("wandb")
    for name, value in (("MODE", "offline"), ("SILENT", "true"), ("DIR", str(tmp_path))):
        monkeypatch.setenv(f"WANDB_{name}", value)
    own = wandb.init(project="own")
    own.log({"loss": 2.0})
    try:
        for result, told in found:
            before = set(tmp_path.rglob("*.wandb"))
            result.log_to("wandb", project="mix")
            (new,) = set(tmp_path.rglob("*.wandb")) - before
            records = finished(new)
            same([numbers(r.history.item) for r in records if r.WhichOneof("record_type") == "history"], told)
            run = next(r.run for r in records if r.WhichOneof("record_type") == "run")
            assert (run.project, run.notes) == ("mix", told.summary)
            kept = {item.key: json.loads(item.value_json) for item in run.config.update}
            assert {key: kept[key] for key in told.settings} == told.settings
        fit, told = found[0]
        log_decision(fit.file(), fit.table, "wandb", report=report)
        pages = [p for p in tmp_path.rglob("*.html") if p != report]
        assert ["a report" in p.read_text() for p in pages] == [True]
        assert wandb.run is own
        wandb.log({"loss": 1.0})
    finally:
        own.finish()


def finished(path):
    """All records, once the last is there: a process of wandb's own writes them, and not before `finish` returns."""
    end = time.monotonic() + 60
    while True:
        records = list(wandb_records(path))
        kinds = [record.WhichOneof("record_type") for record in records]
        if "exit" in kinds:
            return records
        assert time.monotonic() < end, kinds
        time.sleep(0.1)


def numbers(items):
    read = {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
    return {key: value for key, value in read.items() if isinstance(value, int | float)}


def test_trackio_keeps_it_and_somebody_s_open_run(found, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackio = real("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    monkeypatch.setattr("trackio.utils.TRACKIO_DIR", tmp_path)
    monkeypatch.setattr("trackio.sqlite_storage.TRACKIO_DIR", tmp_path)
    own = trackio.init(project="own")
    for i, (result, told) in enumerate(found):
        result.log_to("trackio", project=f"mix-{i}")
        (name,) = SQLiteStorage.get_runs(f"mix-{i}")
        same(SQLiteStorage.get_logs(f"mix-{i}", name), told)
    assert trackio.context_vars.current_run.get() is own
    trackio.log({"loss": 1.0})
    trackio.finish()


@pytest.fixture
def mlflow(tmp_path, monkeypatch):
    package = real("mlflow")
    monkeypatch.chdir(tmp_path)  # artifacts lie beside
    package.set_tracking_uri(f"sqlite:///{tmp_path / 'mlflow.db'}")
    yield package
    package.set_tracking_uri(None)


def test_mlflow_keeps_it_and_somebody_s_open_run(found, report, mlflow, tmp_path):
    client = mlflow.MlflowClient()
    with mlflow.start_run() as own:
        for i, (result, told) in enumerate(found):
            result.log_to("mlflow", project=f"mix-{i}")
            run = newest(client, f"mix-{i}")
            history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
            rows = [{n: m.value for n, ms in history.items() for m in ms if m.step == s} for s in range(len(told.rows))]
            same(rows, told)
            assert run.data.params == {k: str(v) for k, v in told.settings.items()}
            assert run.data.tags["mlflow.note.content"] == told.summary
            assert run.info.status == "FINISHED"
        fit, _ = found[0]
        log_decision(fit.file(), fit.table, "mlflow", project="mix-0", report=report)
        assert [a.path for a in client.list_artifacts(newest(client, "mix-0").info.run_id)] == ["report.html"]
        assert mlflow.active_run().info.run_id == own.info.run_id
    logged = [run for run in read_mlflow(tmp_path / "mlflow.db") if "decision/gain" in run.metrics]
    assert len(logged) == 2  # `opmix fit --from mlflow` reads what opmix logs


def newest(client, experiment):
    place = client.get_experiment_by_name(experiment).experiment_id
    return client.search_runs([place], order_by=["attributes.start_time DESC"])[0]
