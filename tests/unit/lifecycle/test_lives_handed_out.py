"""Lives as tasks: what is handed out and when, their keys, and what is refused before anything is started."""

import json
from collections import deque
from types import SimpleNamespace

import lives
import pytest

from opmix.errors import ConfigError, StoreError
from opmix.execution.attempts import JobNote, notes_in, write_note
from opmix.execution.context import FILE, Context
from opmix.execution.tasks import Ended, read_task, say_failed
from opmix.lifecycle import handed_out
from opmix.lifecycle.handed_out import Life, live_elsewhere, live_task
from opmix.lifecycle.steps import chain
from opmix.lifecycle.worker import life_worker
from opmix.preflight.checks import Findings
from opmix.preflight.plan import check_executor
from opmix.probes.handed_out import Elsewhere
from opmix.progress import Silent
from opmix.runs.lock import FolderLock
from opmix.runs.store import RunStore
from opmix.settings import as_json


def life_of(config, seed=0, home=None):
    return Life(home=home or f"seed-{seed}", seed=seed, steps=chain(config, lives.facts(), seed))


def finish(store, life):
    """Leave what a process leaves that has lived it."""
    for step in life.steps:
        store.step(step.name, step.inputs, dict)
    model = store.folder / life.home / life.steps[-1].stage.label / "model"
    model.mkdir(parents=True, exist_ok=True)
    (model / "config.json").write_text("{}")


class Living:
    """An executor that does in this process what a worker would."""

    slots = 2

    def __init__(self, store, lives, fails=()):
        self.store, self.lives, self.begun, self.fails = store, {life.name: life for life in lives}, [], list(fails)

    def run(self, folder, waiting: deque):
        while waiting:
            task = waiting.popleft()
            self.begun.append(task.name)
            yield None
            if self.fails:
                say_failed(folder, task, self.fails.pop())
            else:
                live_task(
                    SimpleRuntime(self.store),
                    read_task(folder, task.name),
                    life := self.lives[task.name],
                    Silent(),
                    lambda runtime, life=life: finish(runtime.store, life),
                )
            yield Ended(task=task)


class SimpleRuntime(SimpleNamespace):
    """As much of a runtime as handing out needs."""

    def __init__(self, store, life=None, **more):
        super().__init__(
            store=store, folder=store.folder, life=life, base=store.folder, progress=Silent(), make_trainer=None
        )
        self.__dict__.update(more)


@pytest.fixture
def store(tmp_path):
    with RunStore(tmp_path) as held:
        yield held


@pytest.fixture
def executor(monkeypatch):
    """Stands for whatever the settings ask for; what it was made with is kept."""
    monkeypatch.setattr(handed_out, "replace", lambda runtime, progress: runtime)
    made = SimpleNamespace(living=None, told=[], wanted=None)

    def others(wanted, store, *, device, prepare):
        prepare()
        made.told.append(json.loads((store.folder / FILE).read_text()))
        made.wanted = wanted
        return Elsewhere(executor=made.living, tries=2, save_every=1)

    monkeypatch.setattr(handed_out, "others", others)
    return made


def test_a_lifes_key_follows_from_all_its_steps():
    plain, other = (life_of(lives.life(**changes)) for changes in ({}, {"evaluation": {"sequences": 5}}))
    assert plain.name == "life-seed-0"
    assert life_of(lives.life(), home="seed-0/op_mix").name == "life-seed-0-op_mix"
    assert plain.handed_out() == life_of(lives.life()).handed_out()
    assert plain.handed_out().key != other.handed_out().key
    moved = life_of(lives.life(executor={"slots": 3}, num_proc=2))
    assert plain.handed_out().key == moved.handed_out().key  # where it is lived changes nothing
    assert plain.handed_out().payload == {"seed": 0, "entrant": None}


def test_what_is_left_is_handed_out_and_nothing_twice(store, executor):
    config = lives.life(seeds=[0, 1, 2], executor={"slots": 2})
    seeds = [life_of(config, seed) for seed in config.seeds]
    finish(store, seeds[1])
    executor.living = Living(store, seeds)
    live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)
    assert executor.living.begun == ["life-seed-0", "life-seed-2"]
    (told,) = executor.told
    assert told["worker"] == "life"
    assert told["config"]["executor"]["slots"] == 1  # what its searches do is not handed out again
    assert all(life.finished(store) for life in seeds)
    live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)
    assert len(executor.told) == 1
    # The model at the end is gone: whoever is asked for it makes it again, though all records are there.
    for seed in (0, 2):
        (store.folder / f"seed-{seed}/02-two/model/config.json").unlink()
    assert not seeds[0].finished(store)
    live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)
    assert executor.living.begun[2:] == ["life-seed-0", "life-seed-2"]
    assert seeds[0].finished(store)


def test_what_others_go_on_from_is_lived_first(store, executor):
    config = lives.life(executor={"slots": 2})
    base, *own = [life_of(config, home=home) for home in ("seed-0", "seed-0/a", "seed-0/b")]
    executor.living = Living(store, [base, *own])
    live_elsewhere(SimpleRuntime(store, config), own, "comparison", as_json, before=[base])
    events = [json.loads(line) for line in (store.folder / "events.jsonl").read_text().splitlines()]
    assert [e["tasks"] for e in events] == [["life-seed-0"], ["life-seed-0-a", "life-seed-0-b"]]


@pytest.mark.parametrize("executor_settings", [{"slots": 1}, {"slots": 4}])
def test_one_life_or_one_slot_stays_here_and_jobs_of_schedulers_end(store, executor, executor_settings):
    config = lives.life(seeds=[0, 1], executor=executor_settings)
    seeds = [life_of(config, seed) for seed in config.seeds]
    if config.search.executor.elsewhere:
        finish(store, seeds[1])
    (store.folder / "tasks").mkdir()
    write_note(store.folder, "life-of-before", JobNote(attempt="a", key="k", engine="slurm", job="1"))
    live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)
    assert executor.told == []
    assert notes_in(store.folder) == {}


def test_a_job_that_outlived_its_driver_is_waited_for_though_nothing_else_is_left(store, executor):
    config = lives.life(seeds=[0, 1], executor={"kind": "slurm", "slots": 2})
    seeds = [life_of(config, seed) for seed in config.seeds]
    finish(store, seeds[1])
    (store.folder / "tasks").mkdir()
    write_note(
        store.folder, "life-seed-0", JobNote(attempt="a", key=seeds[0].handed_out().key, engine="slurm", job="1")
    )
    executor.living = Living(store, seeds)
    live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)
    assert executor.living.begun == ["life-seed-0"]


def test_what_other_processes_cannot_have_is_refused_or_said(store, monkeypatch):
    config = lives.life(seeds=[0, 1], executor={"slots": 2})
    seeds = [life_of(config, seed) for seed in config.seeds]
    with pytest.raises(ConfigError, match=r"executor.slots: 2; make_trainer is an object of this process"):
        live_elsewhere(SimpleRuntime(store, config, make_trainer=lambda spec: None), seeds, "life", as_json)
    with monkeypatch.context() as here:
        here.setenv("WORLD_SIZE", "2")
        with pytest.raises(ConfigError, match=r"executor.slots: 2; WORLD_SIZE is 2: expected one of both"):
            live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)
    notes = []
    shown = SimpleNamespace(note=notes.append)
    wide = lives.life(seeds=[0, 1], executor={"kind": "slurm", "slots": 2, "resources": {"gpus": 4}})
    live_elsewhere(SimpleRuntime(store, wide, progress=shown), seeds, "life", as_json)
    assert notes[0].startswith(
        "executor.resources.gpus: 4; a life that is a task has one GPU, so 2 lives come one after"
    )
    assert not (store.folder / "tasks").exists()


def test_an_error_of_a_life_is_raised_as_it_would_be_here(store, executor):
    config = lives.life(seeds=[0, 1], executor={"slots": 2})
    seeds = [life_of(config, seed) for seed in config.seeds]
    executor.living = Living(store, seeds, fails=[StoreError("no room")])
    with pytest.raises(StoreError, match=r"^no room$"):
        live_elsewhere(SimpleRuntime(store, config), seeds, "life", as_json)


def test_a_process_refuses_other_inputs_than_those_handed_out_and_breaks_what_a_former_one_held(tmp_path, monkeypatch):
    monkeypatch.setattr(handed_out, "replace", lambda runtime, progress: runtime)
    config, store = lives.life(), RunStore(tmp_path)
    life, other = life_of(config), life_of(lives.life(evaluation={"sequences": 5}))
    with pytest.raises(StoreError, match="life-seed-0: this process sees another model, other data or other settings"):
        live_task(SimpleRuntime(store), other.handed_out(), life, Silent(), lambda runtime: None)
    search = tmp_path / "seed-0" / "01-one" / "search-4"
    search.mkdir(parents=True)
    former = FolderLock(search)
    former.take()
    live_task(SimpleRuntime(store), life.handed_out(), life, Silent(), lambda runtime: None)
    assert store.found(life.name, life.handed_out().key) == {}
    with pytest.raises(StoreError, match="nobody holds the lock that this process took"):
        former.check()
    former.release()


def test_secrets_stay_where_they_are_and_a_damaged_context_is_said(tmp_path):
    told = as_json(lives.life(trainer={"learning_rate": 1e-2, "hub_token": "hf_secret"}))
    Context(worker="life", config=told, base=tmp_path).write(tmp_path)
    assert "hf_secret" not in (tmp_path / FILE).read_text()
    assert Context.read(tmp_path).config["trainer"] == {"learning_rate": 1e-2, "hub_token": "***"}
    for text in ("{", "[]", '{"worker": "cook", "config": {}, "base": ".", "frozen": []}'):
        (tmp_path / FILE).write_text(text)
        with pytest.raises(StoreError, match=r"tasks/context.json: cannot be read .* start that run"):
            life_worker(tmp_path)


def test_validate_says_what_would_be_started_for_a_life_too():
    findings = Findings([])
    check_executor(lives.life(executor={"slots": 3}).search.executor, None, "float32", findings)
    check_executor(lives.life().search.executor, None, "float32", findings)
    (check,) = findings.checks
    assert (check.name, check.status) == ("executor", "ok")
