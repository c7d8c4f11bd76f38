"""A decision in a tracker: as a function, in TensorBoard's own files, and where a tracker fails."""

import numpy as np
import pytest

from opmix.errors import ConfigError
from opmix.fit import fit_runs
from opmix.trackers import check_trackers, log_decision


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    shares = np.linspace(0.1, 0.9, 9)
    lines = [f"{i},{p:.3f},{1 - p:.3f},{3 + np.exp(-p)},{2 + np.exp(p - 1)}" for i, p in enumerate(shares)]
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    path.write_text("run,ratio_web,ratio_code,loss_web,loss_code\n" + "\n".join(lines) + "\n")
    return fit_runs(path)


def test_a_function_gets_every_point_and_then_the_decision(result):
    told = []
    result.log_to(told.append)
    assert len(told) == len(result.table.points) + 1
    assert told[3]["share/web"] == result.table.mixtures[3, 0]
    assert told[3]["loss/loss_code"] == result.table.losses[3, 1]
    decision = result.verdict.decision
    assert told[-1]["decision/gain"] == decision.gain
    assert told[-1]["decision/move"] == (decision.action == "move")
    assert {k: v for k, v in told[-1].items() if k.startswith("mixture/")} == {
        f"mixture/{d}": x for d, x in result.mixture.items()
    }


def test_tensorboard_s_own_reader_finds_it(result, tmp_path):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result.log_to("tensorboard", project="mix", folder=tmp_path)
    found = accumulators.EventAccumulator(str(tmp_path / "mix"))
    found.Reload()
    losses = [event.value for event in found.Scalars("loss/loss_web")]
    assert losses == pytest.approx(result.table.losses[:, 0])
    assert found.Scalars("decision/gain")[0].value == pytest.approx(result.verdict.decision.gain)
    assert "summary/text_summary" in found.Tags()["tensors"]


def test_names_are_checked_before_anything_is_started():
    assert check_trackers(None) == check_trackers("none") == check_trackers([]) == []
    with pytest.raises(ConfigError, match="did you mean 'wandb'"):
        check_trackers("wandbb")
    assert check_trackers("azure_ml", strict=False) == []


def test_one_that_is_not_installed_is_told(result, monkeypatch):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["tensorboard"])
    with pytest.raises(ConfigError, match="pip install wandb"):
        result.log_to(["tensorboard", "wandb"])


def test_a_tracker_is_closed_even_where_it_fails(result, monkeypatch):
    seen = []

    class Failing:
        requires_logging_directory = False

        def __init__(self, name, **own):
            seen.append((name, own))

        def start(self):
            seen.append("start")

        def store_init_configuration(self, values):
            seen.append(values["points"])

        def log(self, values, step):
            raise OSError("no connection")

        def finish(self):
            seen.append("finish")

    monkeypatch.setattr("accelerate.tracking.LOGGER_TYPE_TO_CLASS", {"mlflow": Failing})
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", lambda: ["mlflow"])
    with pytest.raises(OSError, match="no connection"):
        log_decision(result.file(), result.table, "mlflow", project="mine")
    assert seen == [("mine", {"nested_run": True}), "start", ", ".join(result.table.points), "finish"]
