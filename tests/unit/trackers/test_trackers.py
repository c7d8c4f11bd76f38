"""The same runs out of every tracker's files give the same swarm as out of two tables."""

import csv
import importlib.machinery
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing

import numpy as np
import pytest
import yaml
from consumers import skip_without
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.errors import ConfigError, DataError
from opmix.fit import fit_runs
from opmix.mixing.swarm import read_swarm
from opmix.trackers import read_tracked
from opmix.trackers.runs import numbers

DOMAINS = ("web", "code", "math")
LOSSES = ("eval/web_loss", "eval/code_loss")


@pytest.fixture(scope="module")
def runs():
    """Twelve runs: shares by domain and losses by name, which follow a law."""
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 12)
    losses = 2 + np.exp(shares @ np.array([[-2.0, 0.3], [0.5, -1.0], [0.1, 0.4]]))
    return [
        (f"run{i:02d}", dict(zip(DOMAINS, map(float, p), strict=True)), dict(zip(LOSSES, map(float, y), strict=True)))
        for i, (p, y) in enumerate(zip(shares, losses, strict=True))
    ]


@pytest.fixture
def expected(runs, tmp_path):
    ratios, metrics = tmp_path / "ratios.csv", tmp_path / "metrics.csv"
    write_csv(ratios, [{"run": name, **shares} for name, shares, _ in runs])
    write_csv(metrics, [{"run": name, **losses} for name, _, losses in runs])
    return read_swarm(ratios, metrics).table


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path


def same(table, expected):
    order = [table.domains.index(d) for d in expected.domains]
    metric = [table.metrics.index(m) for m in expected.metrics]
    rows = [table.points.index(p) for p in expected.points]
    np.testing.assert_allclose(table.mixtures[rows][:, order], expected.mixtures, atol=1e-6, rtol=1e-5)
    np.testing.assert_allclose(table.losses[rows][:, metric], expected.losses, atol=1e-6, rtol=1e-5)
    assert set(table.metrics) == set(expected.metrics)


def prefixed(shares, prefix="ratio/"):
    return {f"{prefix}{name}": share for name, share in shares.items()}


# -- W&B ------------------------------------------------------------------------------------------------------------


def wandb_page(runs, folder):
    """The runs table of a project's page, exported as CSV."""
    rows = [
        {
            "Name": f"display {name}",
            "ID": name,
            "State": "finished",
            "Runtime": 12,
            "optimizer": "adamw",
            **prefixed(p),
            **y,
        }
        for name, p, y in runs
    ]
    return write_csv(folder / "wandb_export.csv", rows)


def wandb_api(runs, folder):
    """The example in W&B's documentation: three columns, two of them printed mappings."""
    rows = [{"summary": str({**y, "_step": float("nan")}), "config": str(prefixed(p)), "name": n} for n, p, y in runs]
    return write_csv(folder / "project.csv", rows)


def wandb_json(runs, folder):
    path = folder / "runs.json"
    path.write_text(
        json.dumps([{"id": n, "config": {"ratio": p}, "summary": y, "state": "finished"} for n, p, y in runs])
    )
    return path


def wandb_lines(runs, folder):
    path = folder / "runs.jsonl"
    entries = [{"name": n, "config": json.dumps(prefixed(p)), "summary_metrics": json.dumps(y)} for n, p, y in runs]
    path.write_text("\n".join(map(json.dumps, entries)))
    return path


def wandb_folder(runs, folder):
    """What `wandb/` keeps of runs that were online."""
    for name, shares, losses in runs:
        files = folder / "wandb" / name / "files"
        files.mkdir(parents=True)
        config = {key: {"desc": None, "value": value} for key, value in prefixed(shares).items()}
        (files / "config.yaml").write_text(
            yaml.safe_dump({"wandb_version": 1, "_wandb": {"value": {"t": {}}}, **config})
        )
        (files / "wandb-summary.json").write_text(json.dumps({**losses, "_wandb": {"runtime": 3}, "_step": 9}))
    (folder / "wandb" / "latest-run").symlink_to(runs[-1][0])
    return folder / "wandb"


# -- MLflow ---------------------------------------------------------------------------------------------------------


def mlflow_folder(runs, folder):
    """The layout of MLflow's file store."""
    for name, shares, losses in runs:
        run = folder / "mlruns" / "0" / name
        for key, value in prefixed(shares).items():
            (run / "params" / key).parent.mkdir(parents=True, exist_ok=True)
            (run / "params" / key).write_text(str(value))
        (run / "params" / "optimizer").write_text("adamw")
        for key, value in losses.items():
            (run / "metrics" / key).parent.mkdir(parents=True, exist_ok=True)
            (run / "metrics" / key).write_text(
                f"1700000000001 {value + 1} 0\n1700000000003 {value} 20\n1700000000002 9 10\n"
            )
        (run / "meta.yaml").write_text(yaml.safe_dump({"run_id": name, "status": 3, "lifecycle_stage": "active"}))
    (folder / "mlruns" / "0" / "meta.yaml").write_text("experiment_id: '0'\n")
    (folder / "mlruns" / "0" / "models" / "m-1" / "metrics").mkdir(parents=True)
    (folder / "mlruns" / "0" / "models" / "m-1" / "meta.yaml").write_text("model_id: m-1\n")
    return folder / "mlruns"


def mlflow_csv(runs, folder):
    """`mlflow experiments csv`."""
    rows = [
        {
            "run_id": n,
            "status": "FINISHED",
            **prefixed(p, "params.ratio/"),
            **{f"metrics.{k}": v for k, v in y.items()},
            "tags.mlflow.runName": "x",
        }
        for n, p, y in runs
    ]
    return write_csv(folder / "mlflow.csv", rows)


def mlflow_database(runs, folder):
    with closing(sqlite3.connect(folder / "mlflow.db")) as database, database:
        database.execute("CREATE TABLE runs (run_uuid, status, lifecycle_stage, start_time)")
        database.execute("CREATE TABLE params (key, value, run_uuid)")
        database.execute("CREATE TABLE latest_metrics (key, value, timestamp, step, is_nan, run_uuid)")
        database.execute("INSERT INTO runs VALUES ('gone', 'FINISHED', 'deleted', 0)")
        for number, (name, shares, losses) in enumerate(runs):
            database.execute("INSERT INTO runs VALUES (?, 'FINISHED', 'active', ?)", (name, number))
            for key, value in prefixed(shares).items():
                database.execute("INSERT INTO params VALUES (?, ?, ?)", (key, str(value), name))
            for key, value in losses.items():
                database.execute("INSERT INTO latest_metrics VALUES (?, ?, 0, 9, 0, ?)", (key, value, name))
    return folder


@pytest.mark.parametrize(
    ("source", "write"),
    [
        ("wandb", wandb_page),
        ("wandb", wandb_api),
        ("wandb", wandb_json),
        ("wandb", wandb_lines),
        ("wandb", wandb_folder),
        ("mlflow", mlflow_folder),
        ("mlflow", mlflow_csv),
        ("mlflow", mlflow_database),
    ],
)
def test_every_layout_gives_the_same_swarm(runs, expected, tmp_path, source, write):
    swarm = read_tracked(write(runs, tmp_path), source)
    same(swarm.table, expected)
    assert swarm.notes == ()


# -- TensorBoard ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("apart", [False, True])  # hyperparameters in the run's folder, or below it as add_hparams does
def test_event_files_give_the_same_swarm(runs, expected, tmp_path, apart):
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from torch.utils.tensorboard import SummaryWriter

    for name, shares, losses in runs:
        with SummaryWriter(str(tmp_path / "logs" / name)) as writer:
            hparams = {**prefixed(shares), "optimizer": "adamw", "fp16": True}
            writer.add_hparams(hparams, {"hparam/best": 1.0}, run_name=None if apart else ".")
            for step in range(20):
                for key, value in losses.items():
                    writer.add_scalar(key, value + 19 - step, step)
    swarm = read_tracked(tmp_path / "logs", "tensorboard")
    same(swarm.table, expected)


def test_a_folder_without_event_files(tmp_path):
    with pytest.raises(DataError, match="no event files"):
        read_tracked(tmp_path, "tensorboard")


# -- What real projects look like -----------------------------------------------------------------------------------


def test_what_does_not_belong_is_left_out_and_told(runs, tmp_path):
    entries = [{"id": n, "config": prefixed(p), "summary": dict(y), "state": "finished"} for n, p, y in runs]
    for entry in entries:
        entry["summary"] |= {"eval/runtime": 3.0, "eval/accuracy": 0.5, "train/loss": 1.0}
    entries[0]["summary"]["eval/web_loss"] = "NaN"
    del entries[1]["summary"]["eval/code_loss"]
    entries[2]["state"] = "crashed"
    entries[3]["summary"]["eval/rare_loss"] = 1.0
    entries.append({"id": "other", "config": {"lr": 1}, "summary": {"eval/web_loss": 3.0}, "state": "finished"})
    (tmp_path / "runs.json").write_text(json.dumps({"runs": entries}))
    swarm = read_tracked(tmp_path / "runs.json", "wandb")
    assert set(swarm.table.points) == {f"run{i:02d}" for i in range(3, 12)}
    assert set(swarm.table.metrics) == set(LOSSES)
    notes = " ".join(swarm.notes)
    assert "not finished: run02" in notes
    assert "not finite: run00, run01" in notes
    assert "1 run(s) without ratio/DOMAIN" in notes
    assert "eval/accuracy, eval/rare_loss, eval/runtime" in notes


def test_a_domain_that_a_run_lacks_has_share_zero_and_names_need_not_be_unique(tmp_path):
    entries = [
        {"name": "a", "config": {"ratio": {"web": 1.0}}, "summary": {"eval/web": 2.0, "eval/samples_per_second": 9}},
        {"name": "a", "config": {"ratio": {"web": 0.4, "code": 0.6}}, "summary": {"eval/web": 3.0}},
    ]
    (tmp_path / "r.json").write_text(json.dumps(entries))
    table = read_tracked(tmp_path / "r.json", "wandb").table
    assert table.points == ("a", "a (1)")
    assert table.metrics == ("eval/web",)
    assert table.domains == ("code", "web")
    assert table.mixtures.tolist() == [[0.0, 1.0], [0.6, 0.4]]


def test_errors_name_what_there_is_and_the_option(tmp_path):
    path = tmp_path / "r.json"
    path.write_text(json.dumps([{"name": "a", "config": {"mix.web": 1.0, "lr": 1}, "summary": {"val/web": 2.0}}]))
    with pytest.raises(DataError, match=r"they have lr, mix\.web, val/web; give --ratio-prefix"):
        read_tracked(path, "wandb")
    with pytest.raises(DataError, match=r"it has lr, val/web; give --metric-prefix"):
        read_tracked(path, "wandb", ratio_prefix="mix.")
    assert read_tracked(path, "wandb", ratio_prefix="mix.", metric_prefix="val/").table.losses.tolist() == [[2.0]]
    path.write_text(json.dumps([{"name": "a", "config": {"ratio/web": 0.7}, "summary": {"eval/web": 2.0}}]))
    with pytest.raises(DataError, match=r"add up to 0\.7"):
        read_tracked(path, "wandb")
    path.write_text("{")
    with pytest.raises(DataError, match="not JSON"):
        read_tracked(path, "wandb")
    with pytest.raises(ConfigError, match="expected table, wandb, mlflow, tensorboard"):
        fit_runs(path, source="neptune")
    with pytest.raises(ConfigError, match="leave it out"):
        fit_runs(path, path, source="wandb")


def test_a_cell_that_is_no_mapping_is_named(tmp_path):
    file = tmp_path / "runs.csv"  # as `benchmarks/torture` made it: a mapping that is a key
    file.write_text('name,config,summary\nr0,"{\'a\': 1}","{{}: 3}"\n')
    with pytest.raises(DataError, match=r"runs.csv.*summary.*expected a Python mapping"):
        read_tracked(file, "wandb")


def test_folders_without_runs(tmp_path):
    with pytest.raises(DataError, match="no run below it"):
        read_tracked(tmp_path, "mlflow")
    with pytest.raises(DataError, match=r"no wandb-summary\.json"):
        read_tracked(tmp_path, "wandb")
    (tmp_path / "offline-run-1").mkdir()
    (tmp_path / "offline-run-1" / "run-1.wandb").write_bytes(b":W&B")
    with pytest.raises(DataError, match="wandb sync"):
        read_tracked(tmp_path, "wandb")
    (tmp_path / "x.db").write_bytes(b"no database at all, although it is named like one")
    with pytest.raises(DataError, match="expected MLflow's database"):
        read_tracked(tmp_path / "x.db", "mlflow")


def test_numbers_are_told_from_other_values():
    assert numbers({"a": {"b": 1, "c": True, "d": None}, "e": [1], "f": "2"}) == {"a/b": 1.0, "f": 2.0}


def test_the_command_fits_a_trackers_runs(runs, tmp_path):
    path = mlflow_folder(runs, tmp_path)
    out = tmp_path / "fitted"
    done = CliRunner().invoke(app, ["fit", str(path), "--from", "mlflow", "--json", "--out", str(out)])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["laws"]) == set(LOSSES)
    exported = CliRunner().invoke(app, ["export", str(out), "--to", "megatron"])
    assert exported.exit_code == 0, exported.exception


@pytest.mark.slow
@pytest.mark.consumer
@pytest.mark.parametrize("store", ["mlruns", "mlflow.db"])
def test_what_mlflow_itself_writes(runs, expected, tmp_path, store):
    folders = [*sys.path, *filter(None, os.environ.get("OPMIX_TRAINERS", "").split(os.pathsep))]
    skip_without("mlflow", importlib.machinery.PathFinder.find_spec("mlflow", folders))
    place = tmp_path / store
    code = (
        f"import sys, json\nsys.path.extend({folders!r})\nimport mlflow\n"
        f"mlflow.set_tracking_uri({('sqlite:///' if store.endswith('db') else 'file://') + str(place)!r})\n"
        "for name, shares, losses in json.loads(sys.stdin.read()):\n"
        "    with mlflow.start_run(run_name=name):\n"
        "        mlflow.log_params({'ratio/' + k: v for k, v in shares.items()} | {'optimizer': 'adamw'})\n"
        "        for step in (0, 1):\n"
        "            mlflow.log_metrics({k: v + 1 - step for k, v in losses.items()}, step=step)\n"
    )
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        input=json.dumps(runs),
        text=True,
        check=True,
        capture_output=True,
        env={**os.environ, "MLFLOW_ALLOW_FILE_STORE": "true"},
        cwd=tmp_path,
    )
    table = read_tracked(place, "mlflow").table
    assert len(table.points) == len(runs)
    order = np.lexsort(expected.mixtures.T), np.lexsort(table.mixtures[:, [table.domains.index(d) for d in DOMAINS]].T)
    np.testing.assert_allclose(
        table.losses[order[1]][:, [table.metrics.index(m) for m in LOSSES]],
        expected.losses[order[0]],
        rtol=1e-5,
        atol=1e-8,
    )
