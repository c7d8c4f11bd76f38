"""Handing out tasks: found records are not made again, dead processes are replaced, errors that would come again are raised."""

import json
import os
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import toy_worker

from opmix.config import SearchConfig
from opmix.errors import InfeasibleError, SolverError, StoreError, TrainingError
from opmix.execution.fan_out import fan_out
from opmix.execution.local import LocalExecutor, environment
from opmix.execution.tasks import Ended, Task, failure_of, file_of, hand_out, read_task, say_failed
from opmix.execution.worker import do_one
from opmix.lifecycle.steps import _search_settings
from opmix.progress import Silent
from opmix.runs.store import RunStore, fingerprint
from opmix.settings.loading import validated

TOY = Path(toy_worker.__file__)


def task_of(number, **said):
    key = fingerprint({"number": number})
    return Task(name=f"square-{number}", key=key, kind="square", payload={"number": number, **said})


class Scripted:
    """Does tasks in this process as `script` says, by name: a list of what happens at each try."""

    slots = 2

    def __init__(self, store, script=None):
        self.store, self.script, self.begun, self.closed = store, script or {}, [], False

    def run(self, folder, waiting):
        try:
            while waiting:
                task = waiting.popleft()
                self.begun.append(task.name)
                yield None
                plan = self.script.get(task.name, [])
                happens = plan.pop(0) if plan else "done"
                if happens == "done":
                    number = read_task(folder, task.name).payload["number"]
                    self.store.step(task.name, {"number": number}, lambda n=number: {"square": n**2})
                elif isinstance(happens, Exception):
                    say_failed(folder, task, happens)
                yield Ended(task=task, error="it died" if happens == "dies" else None, place="slot 0")
        finally:
            self.closed = True


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as held:
        yield held


class Spoken(Silent):
    def __init__(self):
        self.notes, self.shown = [], {}

    def note(self, text):
        self.notes.append(text)

    @contextmanager
    def task(self, name, total):
        yield lambda done, of: self.shown.setdefault(name, []).append((done, of))


def squares(results):
    return [result["square"] for result in results]


def test_results_come_in_order_and_what_was_found_is_not_begun(store):
    store.step("square-2", {"number": 2}, lambda: {"square": 4})
    executor = Scripted(store)
    assert squares(fan_out(store, [task_of(n) for n in (3, 2, 1)], executor, progress=Silent())) == [9, 4, 1]
    assert executor.begun == ["square-3", "square-1"]
    again = Scripted(store)
    assert squares(fan_out(store, [task_of(n) for n in (3, 2, 1)], again, progress=Silent())) == [9, 4, 1]
    assert again.begun == []  # a driver that was started again adopts what is finished


def test_a_record_whose_files_are_damaged_is_made_again(store):
    store.step("square-2", {"number": 2}, lambda: {"square": 4})
    executor, looks = Scripted(store), iter([False, True])
    fan_out(store, [task_of(2)], executor, progress=Silent(), intact=lambda task: next(looks))
    assert executor.begun == ["square-2"]


def test_a_task_that_died_is_begun_again_at_once(store):
    executor, progress = Scripted(store, {"square-1": ["dies"]}), Spoken()
    assert squares(fan_out(store, [task_of(1), task_of(2)], executor, progress=progress)) == [1, 4]
    assert executor.begun == ["square-1", "square-2", "square-1"]
    assert progress.notes == ["square-1 on slot 0: it died; it is begun again from its last checkpoint"]
    assert progress.shown["2 tasks on 2 slots"] == [(1, 2), (2, 2)]


@pytest.mark.parametrize(("happens", "said"), [("dies", "it died"), ("nothing", "it ended without a record")])
def test_a_task_that_always_dies_ends_the_run_and_others_are_kept(store, happens, said):
    executor = Scripted(store, {"square-1": [happens] * 9})
    with pytest.raises(TrainingError, match=f"square-1 on slot 0: {said}; that was try 2 of 2"):
        fan_out(store, [task_of(1), task_of(2)], executor, progress=Silent(), tries=2)
    assert executor.closed
    assert store.found("square-2", task_of(2).key) == {"square": 4}


def test_an_error_that_would_come_again_is_raised_as_it_was_and_forgotten_with_the_next_try(store):
    executor = Scripted(store, {"square-1": [TrainingError("diverged at step 3")]})
    with pytest.raises(TrainingError, match=r"^diverged at step 3$"):
        fan_out(store, [task_of(1)], executor, progress=Silent())
    assert executor.begun == ["square-1"]
    assert squares(fan_out(store, [task_of(1)], Scripted(store), progress=Silent())) == [1]


def test_a_task_is_read_as_it_was_written_or_refused(tmp_path):
    hand_out(tmp_path, task_of(3, seconds=0.5))
    assert read_task(tmp_path, "square-3") == task_of(3, seconds=0.5)
    (tmp_path / "tasks" / "square-3.json").write_text('{"name": "squ')
    for name in ("square-3", "square-4"):
        with pytest.raises(StoreError, match=rf"tasks/{name}\.json: no task that can be read"):
            read_task(tmp_path, name)


def test_a_task_of_many_works_is_shown_at_the_one_it_is_at(store):
    told = [("a search", 1), ("a search", 2), ("a training", 3)]

    class Telling(Scripted):
        def run(self, folder, waiting):
            for what, done in told:
                file_of(folder, "square-1", "progress").write_text(json.dumps({"task": what, "done": done, "total": 4}))
                time.sleep(0.6)
                yield None
            yield from super().run(folder, waiting)

    progress = Spoken()
    fan_out(store, [task_of(1)], Telling(store), progress=progress)
    assert progress.shown == {"a search": [(1, 4), (2, 4)], "a training": [(3, 4)], "1 task": [(1, 1)]}


def test_what_a_task_notes_is_in_the_log_of_its_process(tmp_path, capsys):
    hand_out(tmp_path, task_of(1))
    do_one(tmp_path, "square-1", lambda task, progress: progress.note("half of it is done"))
    assert capsys.readouterr().err == "square-1: half of it is done\n"


def test_a_full_disk_is_an_error_for_whoever_waits_and_any_other_is_a_dead_process(tmp_path):
    def fails(error):
        def do(task, progress):
            raise error

        return do

    hand_out(tmp_path, task_of(1))
    with pytest.raises(StoreError, match="the disk is full"):
        do_one(tmp_path, "square-1", fails(OSError(28, "No space left on device")))
    assert "the disk is full" in str(failure_of(tmp_path, task_of(1)))
    hand_out(tmp_path, task_of(1))
    with pytest.raises(ZeroDivisionError):
        do_one(tmp_path, "square-1", fails(ZeroDivisionError()))
    assert failure_of(tmp_path, task_of(1)) is None


def test_an_error_with_a_list_in_it_comes_back_as_what_it_is_a_kind_of(store):
    error = InfeasibleError(["a needs more than there is"])
    with pytest.raises(SolverError, match="relax at least one of:\n  - a needs more than there is"):
        fan_out(store, [task_of(1)], Scripted(store, {"square-1": [error]}), progress=Silent())


def test_a_slot_has_one_thread_unless_said_otherwise_or_one_gpu():
    assert environment(None, {"PATH": "x"}) == {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1", "PATH": "x"}
    assert environment(None, {"OMP_NUM_THREADS": "4"})["OMP_NUM_THREADS"] == "4"
    on_gpu = environment("3", {"CUDA_VISIBLE_DEVICES": "0,3"})
    assert on_gpu == {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": "3"}


def test_where_a_search_runs_is_no_part_of_its_keys():
    content = {"model": "m", "domains": {"a": "a", "b": "b"}, "budget": 100}
    plain, elsewhere = (
        validated(SearchConfig, {**content, **more}) for more in ({}, {"executor": {"kind": "local", "slots": 4}})
    )
    assert elsewhere.executor.elsewhere
    assert not plain.executor.elsewhere
    assert validated(SearchConfig, {**content, "executor": "local"}).executor == plain.executor
    assert _search_settings(plain) == _search_settings(elsewhere)


@pytest.fixture
def executor(store):
    made = LocalExecutor(2, command=(sys.executable, str(TOY)))
    store.before_release(made.close)
    return made


@pytest.mark.slow
def test_processes_stay_for_the_next_task_are_replaced_when_they_die_and_show_how_far_they_are(store, executor):
    progress = Spoken()
    tasks = [task_of(1, seconds=1.5), task_of(2, dies="once"), task_of(3), task_of(4)]
    results = fan_out(store, tasks, executor, progress=progress)
    assert squares(results) == [1, 4, 9, 16]
    assert len({result["pid"] for result in results}) == 2
    (note,) = progress.notes
    assert "square-2 on slot 1: its process was killed by signal 9" in note
    assert "out of luck" in note
    assert progress.shown["square-1"] == [(1, 3)] * len(progress.shown["square-1"])
    assert results[0]["OMP_NUM_THREADS"] == os.environ.get("OMP_NUM_THREADS", "1")
    assert "this is for the log" in (store.folder / "logs" / "worker-0.txt").read_text()
    more = fan_out(store, [task_of(5)], executor, progress=progress)
    assert more[0]["pid"] in {result["pid"] for result in results}


def test_the_folder_is_released_after_its_processes_have_ended(tmp_path):
    order = []
    with RunStore(tmp_path) as store:
        store.before_release(lambda: order.append((tmp_path / "lock").exists()))
    assert order == [True]
