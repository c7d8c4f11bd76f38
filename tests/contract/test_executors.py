"""What every executor owes: the same records, dead processes replaced, nothing left behind, and what runs taken over or ended."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import executors
import pytest
from engines import two_ray_nodes, two_slurm_nodes, why_no_ray, why_no_slurm
from executors import OUTLIVE, cancelled, executor_of, over, pid_of, task_of, wait_for

from opmix.errors import TrainingError
from opmix.execution.attempts import notes_in
from opmix.execution.fan_out import fan_out
from opmix.execution.tasks import Task
from opmix.progress import Silent
from opmix.runs.store import RunStore, fingerprint


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    if why := why_no_slurm():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch, two_slurm_nodes(tmp_path_factory.mktemp("slurm")) as found:
        for name, value in found.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="module")
def ray():
    if why := why_no_ray():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch, two_ray_nodes() as cluster:
        patch.setenv("TOY_RAY", cluster.address)
        yield


@pytest.fixture(
    params=[
        "local",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("launch", "submitted")),
        *(pytest.param(k, marks=[pytest.mark.cluster, pytest.mark.slow]) for k in ("slurm", "ray")),
    ],
    scope="module",
)
def kind(request):
    if request.param in ("slurm", "ray"):
        request.getfixturevalue(request.param)
    return request.param


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as held:
        yield held


@pytest.fixture
def executor(kind, store):
    made = executor_of(kind)
    store.before_release(made.close)
    return made


class Spoken(Silent):
    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def squares(results):
    return [result["square"] for result in results]


def test_results_in_order_and_processes_that_died_are_replaced(store, executor):
    progress = Spoken()
    results = fan_out(store, [task_of(3), task_of(1, dies="once"), task_of(2)], executor, progress=progress)
    assert squares(results) == [9, 1, 4]
    assert {result["OMP_NUM_THREADS"] for result in results} == {os.environ.get("OMP_NUM_THREADS", "1")}
    (note,) = progress.notes
    assert note.startswith("square-1 on ")
    assert "out of luck" in note
    assert note.endswith("it is begun again from its last checkpoint")
    assert notes_in(store.folder) == {}
    assert "this is for the log" in "".join(log.read_text() for log in (store.folder / "logs").iterdir())


def test_an_error_of_ours_passes_through_and_what_always_dies_is_given_up(store, executor):
    with pytest.raises(TrainingError, match=r"^square-1 diverged$"):
        fan_out(store, [task_of(1, fails=True)], executor, progress=Silent())
    with pytest.raises(TrainingError, match=r"square-2 on .*out of luck.*; that was try 2 of 2"):
        fan_out(store, [task_of(2, dies="always")], executor, progress=Silent(), tries=2)


def test_a_task_that_somebody_cancels_is_noticed_and_begun_again(kind, store, executor):
    progress, name = Spoken(), "square-1"
    first = []

    def cancel():
        first.append(wait_for(lambda: pid_of(store.folder, name)))
        cancelled(kind, store.folder, name)

    thread = threading.Thread(target=cancel)
    thread.start()
    (result,) = fan_out(store, [task_of(1, dawdles_once=60)], executor, progress=progress)
    thread.join()
    assert result["square"] == 1
    assert result["pid"] != first[0]
    assert [note.partition(" on ")[0] for note in progress.notes] == [name]


def test_whoever_stops_waiting_leaves_no_process_and_can_go_on(kind, store, executor):
    tasks = [task_of(n, dawdles_once=60) for n in (1, 2)]

    class StoppedError(Exception):
        pass

    def begun():
        return all(pid_of(store.folder, task.name) for task in tasks)

    class Impatient(Spoken):
        def note(self, text):
            raise StoppedError

    killer = threading.Thread(target=lambda: (wait_for(begun), cancelled(kind, store.folder, "square-1")))
    killer.start()
    with pytest.raises(StoppedError):
        fan_out(store, tasks, executor, progress=Impatient())
    killer.join()
    wait_for(lambda: all(over(pid_of(store.folder, task.name)) for task in tasks))
    assert notes_in(store.folder) == {}
    assert squares(fan_out(store, tasks, executor, progress=Silent())) == [1, 4]


def driver_environment():
    paths = [str(Path(executors.__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


@pytest.mark.slow
def test_who_is_killed_and_started_again_takes_over_what_runs_or_it_has_ended(kind, tmp_path):
    """A run's first process is killed hard in the middle of a task; the next one gets the task done once."""
    command = [sys.executable, executors.__file__, kind, str(tmp_path), "7", "3"]
    driver = subprocess.Popen(command, env=driver_environment())
    first = wait_for(lambda: pid_of(tmp_path, "square-7"), 60)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    if kind not in OUTLIVE:
        wait_for(lambda: over(first))
    with RunStore(tmp_path) as store, closing(executor_of(kind)) as executor:
        (result,) = fan_out(store, [task_of(7)], executor, progress=Silent())
        assert result["square"] == 49
        assert (result["pid"] == first) == (kind in OUTLIVE)
        assert squares(fan_out(store, [task_of(7)], executor, progress=Silent())) == [49]


@pytest.mark.slow
def test_what_runs_with_other_inputs_is_ended(kind, tmp_path):
    """Left by a process that was killed, under the name of a task that means something else by now."""
    if kind not in OUTLIVE:
        pytest.skip("jobs of this kind end with whoever started them")
    command = [sys.executable, executors.__file__, kind, str(tmp_path), "5", "60"]
    driver = subprocess.Popen(command, env=driver_environment())
    first = wait_for(lambda: pid_of(tmp_path, "square-5"), 60)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    now = Task(name="square-5", key=fingerprint({"number": 6}), kind="square", payload={"number": 6})
    with RunStore(tmp_path) as store, closing(executor_of(kind)) as executor:
        assert squares(fan_out(store, [now], executor, progress=Silent())) == [36]
    wait_for(lambda: over(first))
