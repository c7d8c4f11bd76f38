"""What was found in a tracker: as a function, in TensorBoard's own files, and where a tracker fails."""

import numpy as np
import pytest
from comparison_sample import write_comparison
from life_sample import loss, stage

from opmix.errors import ConfigError
from opmix.fit import fit_runs
from opmix.results.comparison import CompareFile
from opmix.results.files import typed
from opmix.results.life import LifeFile, StageEntry
from opmix.trackers import check_trackers, log_decision
from opmix.trackers.told import of_comparison, of_life


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
    own = {"nested_run": True, "description": result.file().summary()}
    assert seen == [("mine", own), "start", ", ".join(result.table.points), "finish"]


def test_a_life_is_a_step_for_every_stage(tmp_path):
    stages = [
        [
            stage("base", seed, {"web": 1.0}, {"web": loss(5.0, 4.0 + seed)}, {}, False),
            stage(
                "more",
                seed,
                {"web": 0.5, "code": 0.5},
                {"web": loss(4, 4.5), "code": loss(None, 3.0)},
                {"web": 0.5},
                True,
            ),
        ]
        for seed in (0, 1)
    ]
    life = LifeFile.of(
        {i: [typed(StageEntry, s, tmp_path, nulls=True) for s in lived] for i, lived in enumerate(stages)}
    )
    base, more = of_life(life, "a life").rows
    assert base == {
        "share/web": 1.0,
        "loss/web": 4.5,
        "mean_loss": 4.5,
        "cost/search_share": 0.2,
        "sd/share/web": 0.0,
        "sd/loss/web": np.sqrt(0.5),
        "sd/mean_loss": np.sqrt(0.5),
        "sd/cost/search_share": 0.0,
    }
    assert (more["share/code"], more["loss/code"], more["forgetting/web"]) == (0.5, 3.0, 0.5)


def test_a_comparison_is_its_stages_and_then_its_table(tmp_path):
    comparison = CompareFile.read(write_comparison(tmp_path / "compared", seeds=1))
    stages, table = of_comparison(comparison, "a comparison").rows
    assert set(stages) == {f"stage_loss/{name}" for name in comparison.entrants}
    best = comparison.table[0]
    assert table[f"loss/{best.entrant}"] == best.mean_loss.mean
    assert "difference/op_mix" not in table  # the reference has none
    assert not any(name.startswith("sd/") for name in table)  # of one seed
