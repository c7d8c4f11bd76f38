"""`opmix status`: what is done, stale (and why), running or left, what it cost, and what is to come."""

import json
import os
import shutil
import socket
import subprocess
import sys

import pytest
import yaml
from lives import STEP, content, fixed, outcome, stage
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.cli.status import _account
from opmix.errors import StoreError
from opmix.lifecycle.run_status import status_now
from opmix.lifecycle.status import _running, run_status
from opmix.results.life import LifeFile

runner = CliRunner()


@pytest.fixture
def copied(finished, tmp_path):
    """The finished life, to be changed."""
    shutil.copytree(finished[1].folder, tmp_path / "life")
    return tmp_path / "life"


def states(found):
    return {s.name.removeprefix("seed-0/"): s.state for s in found.steps}


def undo(folder, *names):
    for name in names:
        (folder / "steps" / "seed-0" / f"{name}.json").unlink()


TWO = ("02-two/search-0", "02-two/train-4", "02-two/model", "02-two/after")


@pytest.mark.slow
def test_a_finished_life(finished):
    _, result = finished
    found = run_status(result.folder)
    assert set(states(found).values()) == {"done"}
    assert (found.holder, found.task, found.changed, found.flops_left, found.seconds_left) == (None, None, (), {}, 0.0)
    made = outcome(result)["seeds"]["0"]["stages"]
    for purpose in ("training", "probes", "proxies"):
        for kind in ("tokens", "flops"):
            assert getattr(found.spent, kind)[purpose] == pytest.approx(sum(s["cost"][kind][purpose] for s in made))
    assert found.spent.tokens["training"] == 12 * STEP
    assert found.spent.seconds["training"] > 0
    assert all(s.peak_memory for s in found.steps if s.kind in ("start", "search", "train"))
    assert all(s.finished for s in found.steps)


@pytest.mark.slow
def test_what_is_left_and_what_it_will_cost(copied):
    everything = run_status(copied).spent
    undo(copied, *TWO)
    found = run_status(copied)
    assert [n for n, s in states(found).items() if s == "left"] == list(TWO)
    for purpose in ("training", "proxies", "measuring"):
        spent = found.spent.flops[purpose]
        assert spent + found.flops_left[purpose] == pytest.approx(everything.flops[purpose], rel=0.01), purpose
    # The adapters' own weights are left out of the estimate, and weigh most in a model this small.
    assert found.flops_left["probes"] == pytest.approx(everything.flops["probes"] / 2, rel=0.25)
    assert found.seconds_left > 0


@pytest.mark.slow
def test_nothing_is_known_before_the_model_is(copied):
    undo(copied, "start", *TWO)
    found = run_status(copied)
    assert found.flops_left == {}
    (copied / "data.json").unlink()
    with pytest.raises(StoreError, match=r"no data\.json; expected the --out folder of `opmix run`"):
        run_status(copied)


@pytest.mark.slow
def test_the_running_step_and_its_process(copied):
    undo(copied, *TWO)
    (copied / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    (copied / "progress.json").write_text(json.dumps({"task": "probe gamma", "done": 3, "total": 9}))
    with (copied / "events.jsonl").open("a") as file:
        file.write(json.dumps({"event": "begin", "step": "seed-0/02-two/search-0"}) + "\n")
        file.write('{"event": "en')  # being written, or cut off
    found = run_status(copied)
    assert states(found)["02-two/search-0"] == "running"
    assert states(found)["02-two/train-4"] == "left"
    assert (found.holder, found.task["task"]) == (os.getpid(), "probe gamma")
    # Nobody holds it: nothing is running.
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    (copied / "lock").write_text(json.dumps({"pid": dead.pid, "host": socket.gethostname()}))
    found = run_status(copied)
    assert (found.holder, found.task, states(found)["02-two/search-0"]) == (None, None, "left")
    (copied / "lock").write_text('{"pi')
    assert run_status(copied).holder is None


def test_steps_that_other_processes_are_at_and_what_those_say(tmp_path):
    def said(*events):
        lines = [json.dumps({"event": kind, **facts}) for kind, facts in events]
        (tmp_path / "events.jsonl").write_text("\n".join(lines) + "\n")
        return _running(tmp_path, os.getpid())

    def begin(step):
        return "begin", {"step": step}

    def end(step):
        return "end", {"step": step}

    before, ours = (("handed_out", {"process": number}) for number in (1, os.getpid()))
    assert said(begin("a"), ours) == set()
    assert said(begin("z"), ours, begin("a"), begin("b"), end("a"), begin("c")) == {"b", "c"}
    assert said(ours, begin("a"), begin("b"), begin("a"), end("a")) == {"b"}  # begun again by another process
    assert said(before, begin("a"), begin("b")) == {"b"}  # somebody else's, who is gone: one step after another
    assert said(before, begin("a"), begin("b"), end("b")) == set()
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "life-seed-1.progress.json").write_text(json.dumps({"task": "train", "done": 3, "total": 9}))
    (tmp_path / "tasks" / "life-seed-2.progress.json").write_text('{"ta')
    now = status_now(tmp_path)
    assert now.tasks == {"life-seed-1": {"task": "train", "done": 3, "total": 9}}
    assert "life-seed-1: train 3/9" in [str(line) for line in _account(now)]
    (tmp_path / "lock").unlink()
    assert status_now(tmp_path).tasks == {}


@pytest.mark.slow
def test_changed_data_are_named(copied, finished, toys):
    path = toys.folder / "data" / "gamma.jsonl"
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    try:
        found = run_status(copied)
    finally:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found.changed == ("gamma",)
    stale = {s.name.removeprefix("seed-0/"): s.why for s in found.steps if s.state == "stale"}
    assert list(stale) == ["02-two/before", *TWO]
    assert stale["02-two/before"] == ("data of gamma changed",)
    assert stale["02-two/model"] == ("follows seed-0/02-two/train-4",)
    assert run_status(copied).changed == ()


@pytest.mark.slow
def test_against_another_configuration(copied, toys):
    config = toys.config(
        stage("one", 8, domains=["alpha", "beta"], prefix=0.5),
        stage("two", 4, add=["gamma"], probes={"steps": 3}),
        fixed("three", 2),
    )
    found = run_status(copied, config)
    assert {s for n, s in states(found).items() if n.startswith("01-")} == {"done"}
    assert {n for n, s in states(found).items() if s == "stale"} == set(TWO)
    assert {s for n, s in states(found).items() if n.startswith("03-")} == {"left"}
    why = {s.name: s.why for s in found.steps}
    assert why["seed-0/02-two/search-0"] == ("search.probes.steps: 2 -> 3",)
    # A domain that the run has not read yet.
    later = toys.config(
        stage("one", 8, domains=["alpha", "beta"], prefix=0.5),
        stage("two", 4, add=["gamma"]),
        fixed("three", 2, add=["delta"]),
    )
    found = run_status(copied, later)
    assert {n for n, s in states(found).items() if s != "done"} == {
        f"03-three/{n}" for n in ("before", "train-2", "model", "after")
    }


@pytest.mark.slow
def test_the_command(copied, toys):
    plain = runner.invoke(app, ["status", str(copied)])
    assert plain.exit_code == 0, plain.output
    for text in ("seed-0/02-two/train-4", "done", "training:", "peak memory", "finished"):
        assert text in plain.output
    found = json.loads(runner.invoke(app, ["status", str(copied), "--json"]).stdout)
    assert {s["state"] for s in found["steps"]} == {"done"}
    assert found["holder"] is None
    file = toys.folder / "changed.yaml"
    two = stage("one", 8, domains=["alpha", "beta"], prefix=0.5), stage("two", 4, add=["gamma"], solve={"kl": 0.3})
    file.write_text(yaml.safe_dump(content(*two)))
    changed = runner.invoke(app, ["status", str(copied), "--config", str(file)], env={"COLUMNS": "200"})
    assert "search.solve.kl: None -> 0.3" in changed.output
    assert "left: 4 steps" in changed.output
    assert isinstance(runner.invoke(app, ["status", str(copied / "seed-0")]).exception, StoreError)


@pytest.mark.slow
def test_status_loads_no_torch(copied):
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom opmix.cli.app import app\n"
        f"r = CliRunner().invoke(app, ['status', {str(copied)!r}])\n"
        "assert r.exit_code == 0, r.output\nassert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


@pytest.mark.slow
def test_a_life_is_shown_as_tables(finished):
    from opmix.cli.run import seeds_table, stage_sentences, stage_table

    made = finished[1].life
    one, two = made.lives[0]
    assert made.json() == outcome(finished[1])
    assert LifeFile.read(finished[1].folder).json() == made.json()
    assert (stage_table(1, one).row_count, stage_table(2, two).row_count) == (2, 3)
    assert any(line.startswith("  step 4: ") for line in stage_sentences(one))
    assert "% of training" in stage_sentences(two)[-1]
    assert seeds_table(made).row_count == 2


def test_watching_without_a_terminal_tells_every_step(tmp_path):
    from opmix.cli.status import _told_as_lines
    from opmix.lifecycle.run_status import RunStatus, StepStatus

    def status(done, running, holder=1):
        names = ("start", "train", "after")
        steps = tuple(
            StepStatus(name=n, kind=n, state="done" if i < done else "running" if n == running else "left")
            for i, n in enumerate(names)
        )
        return RunStatus(folder=tmp_path, steps=steps, holder=holder, task=None, changed=())

    seen = iter([status(0, "start"), status(1, "train"), status(1, "train"), status(2, "after"), status(3, None, None)])
    told = list(_told_as_lines(lambda: next(seen), next(seen), pause=0))
    assert told[1:-1] == ["1 of 3 steps done; train is running", "2 of 3 steps done; after is running"]
    assert len(told) == 4  # the state before and after
    finished = status(3, None, None)
    assert len(list(_told_as_lines(lambda: finished, finished, pause=0))) == 1
