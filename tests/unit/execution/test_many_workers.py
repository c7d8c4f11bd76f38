"""The benchmark of many workers, small: every task is done once, whatever dies."""

import scale

from opmix.runs.store import RunStore


def test_every_task_is_done_once_whatever_dies(tmp_path, monkeypatch):
    monkeypatch.setattr(scale.Engine, "dies", 0.2)
    monkeypatch.setattr(scale.Engine, "polls", 100.0)
    monkeypatch.setattr(scale.Engine, "lost_every", 2000.0)
    facts = scale.simulated(workers=16, tasks=32, seed=0, folder=tmp_path / "run")
    assert facts["done"] == 32
    assert facts["died"] > 0
    assert facts["nodes lost"] > 0
    assert facts["started"] == facts["done"] + facts["died"]
    assert facts["told"] == {"begun again": facts["died"]}
    assert facts["simulated_hours"] > facts["ideal_hours"]
    assert RunStore(tmp_path / "run").record("probe-00031")["result"] == {"flops": 1.0}
    assert not list((tmp_path / "run" / "tasks").glob("*.job.json"))
