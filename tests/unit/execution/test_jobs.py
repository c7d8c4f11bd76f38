"""Who does a task, who is slow, what settings are refused: nothing here starts a process."""

import re
import shlex
import subprocess
import time
from collections import deque
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from opmix.config import SearchConfig
from opmix.errors import ConfigError, TrainingError
from opmix.execution import on_ray, slurm
from opmix.execution.attempts import (
    WITHDRAWN,
    JobNote,
    end_when_withdrawn,
    note_of,
    noted,
    notes_in,
    withdraw,
    withdraw_all,
    write_note,
)
from opmix.execution.commands import Submitted, Waiting
from opmix.execution.engines import engine_of, gpus_of, task_command
from opmix.execution.jobs import EngineError, Job, JobExecutor, Over, job_environment
from opmix.execution.settings import ExecutorSettings, LaunchSettings, Resources, SlurmSettings
from opmix.execution.slurm import Slurm
from opmix.execution.stragglers import Stragglers
from opmix.execution.tasks import Task, failure_of, file_of, hand_out, last_words, say_failed
from opmix.execution.worker import do_alone
from opmix.mixture_search.hand_over import check_precision
from opmix.runs.store import RunStore, fingerprint
from opmix.settings.loading import validated

TASK = Task(name="square-1", key="k", kind="square", payload={"number": 1})
SEARCH = {"model": "m", "domains": {"a": "a", "b": "b"}, "budget": 100}


def executor_said(**said):
    return validated(SearchConfig, {**SEARCH, "executor": said}).executor


def test_a_new_attempt_replaces_the_former_and_what_is_not_wanted_ends(tmp_path):
    (tmp_path / "tasks").mkdir()
    first = noted(tmp_path, TASK, "slurm")
    assert note_of(tmp_path, TASK.name) == first
    ended = []

    def watch(attempt):
        end_when_withdrawn(tmp_path, TASK.name, attempt, every=0.01, end=ended.append)
        time.sleep(0.1)
        return list(ended)

    assert watch(first.attempt) == []
    second = noted(tmp_path, TASK, "slurm")
    assert second.attempt != first.attempt
    assert watch(second.attempt) == [WITHDRAWN]  # the first, not the second
    file_of(tmp_path, TASK.name, "job").write_text("{")  # a disk may show half of it, or nothing, for a moment
    assert note_of(tmp_path, TASK.name) is None
    write_note(tmp_path, TASK.name, second)
    assert notes_in(tmp_path) == {TASK.name: second}
    withdraw_all(tmp_path)
    assert watch("third") == [WITHDRAWN] * 3


@pytest.mark.parametrize("job", ["--user=me", "-n", "", 7])
def test_a_job_that_a_scheduler_would_take_for_an_option_is_none(tmp_path, job):
    (tmp_path / "tasks").mkdir()
    write_note(tmp_path, TASK.name, replace(noted(tmp_path, TASK, "slurm"), job=job))
    assert notes_in(tmp_path) == {}


def test_a_worker_that_cannot_load_says_so_to_whoever_waits(tmp_path):
    (tmp_path / "tasks").mkdir()
    hand_out(tmp_path, TASK)

    def nothing():
        raise ConfigError("model: 'm' is not here")

    with pytest.raises(ConfigError):
        do_alone(tmp_path, TASK.name, nothing)
    assert str(failure_of(tmp_path, TASK)) == "model: 'm' is not here"


def test_three_times_the_usual_is_slow_and_told_once():
    now = [0.0]
    watched = Stragglers(lambda: now[0])
    for name in "abcdef":
        watched.seen(name)
    now[0] = 20.0
    for name in "abc":
        watched.ended(name, well=True)
    watched.ended("d", well=False)  # it died: that says nothing of what is usual
    now[0] = 60.0
    assert list(watched.slow()) == []
    watched.seen("e")  # seen again
    now[0] = 61.0
    assert list(watched.slow()) == [("e", 61.0, 20.0), ("f", 61.0, 20.0)]
    assert list(watched.slow()) == []


def test_seconds_are_never_slow_and_one_alone_neither():
    now = [0.0]
    quick, alone = (Stragglers(lambda: now[0]) for _ in range(2))
    for name in "abcd":
        quick.seen(name)
    alone.seen("a")
    now[0] = 1.0
    for name in "abc":
        quick.ended(name, well=True)
    now[0] = 29.0
    assert list(quick.slow()) == []
    assert list(alone.slow()) == []


class Scripted:
    """An engine that does as a list says: a word for each submission, and how each job ends."""

    kind, outlives, poll_seconds = "scripted", True, 0.01

    def __init__(self, folder, script):
        self.folder, self.script, self.submitted, self.cancelled = folder, deque(script), [], []

    def submit(self, job):
        happens = self.script.popleft()
        if happens == "refused":
            raise EngineError("no room")
        self.submitted.append(job)
        return f"{len(self.submitted)}:{happens}"

    def over(self, jobs):
        if self.script and self.script[0] == "silent":
            self.script.popleft()
            raise EngineError("does not answer")
        over = {}
        for name, note in jobs.items():
            happens = note.job.partition(":")[2]
            if happens == "done":
                RunStore(self.folder).step(name, {"number": 1}, dict)
            if happens in ("done", "nothing", "fails"):
                over[name] = Over(error="it broke" if happens == "fails" else None)
        return over

    def cancel(self, jobs):
        self.cancelled += [note.job for note in jobs.values()]

    def close(self):
        pass


def ended(tmp_path, script, task=TASK, late=0.0):
    engine = Scripted(tmp_path, script)
    executor = JobExecutor(engine, 1, late=late, command=("do",))
    (tmp_path / "tasks").mkdir(exist_ok=True)
    with closing(executor.run(tmp_path, deque([task]))) as events:
        return engine, next(event for event in events if event is not None)


def test_a_job_is_told_folder_name_and_attempt_and_its_end_is_told_with_its_log(tmp_path):
    engine, event = ended(tmp_path, ["fails"])
    (job,) = engine.submitted
    assert job.command == ("do", str(tmp_path), TASK.name, "--attempt", job.attempt)
    assert event.error.startswith("it broke (nothing in ")
    assert event.place == "job 1:fails"
    job.log.write_text("one\n\ntwo\n")
    _, event = ended(tmp_path, ["nothing"])
    assert event.error == f"it ended without a record ({tmp_path}/logs/square-1.txt: one | two)"
    assert notes_in(tmp_path) == {}


def test_an_engine_may_be_silent_or_refuse_now_and_then_but_not_for_ever(tmp_path, caplog):
    task = Task(name=TASK.name, key=fingerprint({"number": 1}), kind="square", payload={})
    engine, event = ended(tmp_path, ["refused", "done", "silent"], task)
    assert (event.error, len(engine.submitted)) == (None, 1)
    assert "executor scripted: does not answer; asked again" in caplog.text
    with pytest.raises(TrainingError, match="no task could be started in 3 tries: no room; what is finished is kept"):
        ended(tmp_path, ["refused"] * 3)
    assert notes_in(tmp_path) == {}


def test_a_record_that_a_shared_disk_shows_late_is_waited_for(tmp_path):
    engine = Scripted(tmp_path, ["nothing"])
    executor = JobExecutor(engine, 1, late=60.0, command=("do",))
    (tmp_path / "tasks").mkdir()
    events = executor.run(tmp_path, deque([TASK]))
    assert [next(events) for _ in range(3)] == [None] * 3
    say_failed(tmp_path, TASK, TrainingError("it came late"))
    assert next(event for event in events if event is not None).error is None
    events.close()


def test_jobs_of_a_process_that_was_killed_are_adopted_or_stopped(tmp_path):
    (tmp_path / "tasks").mkdir()
    notes = {
        "square-1": JobNote(attempt="a", key="k", engine="scripted", job="9:nothing"),
        "square-2": JobNote(attempt="b", key="other", engine="scripted", job="8:runs"),
        "square-3": JobNote(attempt="c", key="k", engine="slurm", job="7:runs"),
        "square-4": JobNote(attempt="d", key="k", engine="scripted", job=None),
    }
    for name, note in notes.items():
        write_note(tmp_path, name, note)
    engine = Scripted(tmp_path, [])
    with closing(JobExecutor(engine, 1, late=0.0).run(tmp_path, deque([TASK]))) as events:
        event = next(event for event in events if event is not None)
    assert (event.place, engine.submitted, engine.cancelled) == ("job 9:nothing", [], ["8:runs"])
    assert notes_in(tmp_path) == {}


def test_a_job_sees_threads_for_its_cores_and_no_secrets():
    inherited = {"HF_TOKEN": "secret", "HF_HOME": "/hf", "PYTHONPATH": "p", "HOME": "/root"}
    seen = {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "4", "HF_HOME": "/hf", "PYTHONPATH": "p"}
    assert job_environment(4, 0, inherited) == seen
    assert job_environment(4, 0, {"OMP_NUM_THREADS": "2"})["OMP_NUM_THREADS"] == "2"
    assert "OMP_NUM_THREADS" not in job_environment(4, 1, {})


def test_the_end_of_a_log_is_told(tmp_path):
    log = tmp_path / "log.txt"
    assert last_words(log) == f" (nothing in {log})"
    log.write_text("before\n" + "".join(f"{n}\n" for n in range(6)))
    assert last_words(log) == f" ({log}: 2 | 3 | 4 | 5)"
    assert last_words(log, log.stat().st_size - 2) == f" ({log}: 5)"


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({"kind": "launch"}, 'executor.launch: expected the command that starts a task, such as "srun {command}"'),
        ({"kind": "launch", "launch": {}}, "executor.launch.run: expected either run"),
        ({"kind": "launch", "launch": {"submit": "s {command}"}}, "executor.launch.poll: expected with submit"),
        (
            {"kind": "launch", "launch": {"run": "{command}", "cancel": "c"}},
            "executor.launch.cancel: expected with submit only",
        ),
        (
            {"kind": "launch", "launch": "srun {comand}"},
            "executor.launch.run: {comand} is not known; expected {attempt}, {command}",
        ),
        ({"kind": "launch", "launch": "srun true"}, "executor.launch.run: 'srun true' does not say what to do"),
        ({"kind": "launch", "launch": "srun {command"}, "executor.launch.run: 'srun {command' cannot be read"),
        (
            {"kind": "ray", "slurm": {"partition": "p"}},
            "executor.slurm: given, but kind is ray; expected it with kind slurm only",
        ),
        (
            {"resources": {"gpus": 1}},
            "executor.resources: given, but kind is local; expected it with kind slurm or ray",
        ),
        ({"kind": "slurm", "resources": {"gpus": 65}}, "executor.resources.gpus: "),
        (
            {"kind": "launch", "launch": "{command}", "resources": {"minutes": 3}},
            "executor.resources.minutes: opmix cannot ask launch for it",
        ),
        ({"kind": "dask"}, "executor.kind: "),
    ],
)
def test_settings_that_cannot_be_are_refused(said, problem):
    with pytest.raises(ConfigError) as raised:
        executor_said(**said)
    assert problem in str(raised.value)


def test_a_command_alone_waits_and_braces_are_written_twice():
    wanted = executor_said(kind="launch", launch="sh -c 'echo ${{HOME}}; {command}'")
    assert wanted.elsewhere
    engine = engine_of(wanted, "cpu")
    assert isinstance(engine, Waiting)
    assert engine.check() == f"each by the command {wanted.launch.run!r}"
    submitting = LaunchSettings(submit="s {command}", poll="p {job}", poll_seconds=3)
    engine = engine_of(ExecutorSettings(kind="launch", launch=submitting), "cpu")
    assert isinstance(engine, Submitted)
    assert engine.poll_seconds == 3
    engine.check()


def test_what_the_page_shows_can_be_started():
    page = (Path(__file__).parents[3] / "docs" / "cluster.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(executor:.*?)```", page, re.DOTALL)]
    wanted = [executor_said(**block["executor"]) for block in blocks]
    assert [one.kind for one in wanted] == ["slurm", "ray", "launch", "launch"]
    for one in wanted[2:]:
        assert engine_of(one, "cpu").check()


@pytest.mark.parametrize("template", ["srun '{command}", "if {command}"])
def test_what_no_shell_can_read_is_refused_before_anything_is_started(template):
    with pytest.raises(ConfigError, match=r"executor.launch.run: .* is no command of a shell"):
        engine_of(ExecutorSettings(kind="launch", launch=LaunchSettings(run=template)), "cpu").check()


def test_gpus_of_a_task_are_asked_for_where_the_model_is_on_one():
    assert [gpus_of(ExecutorSettings(kind="slurm"), device) for device in ("cpu", "cuda", "mps")] == [0, 1, 0]
    on_gpus = ExecutorSettings(kind="slurm", resources=Resources(gpus=1))
    check_precision(on_gpus, "bfloat16", "cpu")
    check_precision(on_gpus, "auto", "cuda")
    with pytest.raises(ConfigError, match=r"model.dtype: auto; it is bfloat16 on the GPUs"):
        check_precision(on_gpus, "auto", "cpu")


def test_a_task_of_several_gpus_is_done_by_as_many_ranks():
    assert task_command(1)[1:] == ("-m", "opmix", "task")
    assert task_command(4)[1:3] == ("-m", "torch.distributed.run")
    assert task_command(4)[-3:] == task_command(1)[1:]
    assert "4" in task_command(4)
    asked = [ExecutorSettings(kind="slurm", resources=Resources(gpus=gpus)).ranks for gpus in (None, 0, 1, 4)]
    assert asked == [1, 1, 1, 4]


def job_of(**said):
    given = {"name": "n", "attempt": "a1", "command": ("python", "it is"), "environment": {"A": "b c"}} | said
    return Job(**given)


def test_a_job_of_slurm_is_a_script_of_shell(tmp_path, monkeypatch):
    asked = []

    def answer(command, environment=None, *, told=None):
        asked.append((command, told))
        return subprocess.CompletedProcess(command, 0, "17;cluster\n", "")

    wanted = SlurmSettings(partition="gpu", account="us", options=("--qos=high",), prologue=("module load cuda",))
    engine = Slurm(wanted, Resources(cpus=8, memory_gb=1.5, minutes=30), 1)
    monkeypatch.setattr(slurm, "answer", answer)
    assert engine.submit(job_of(folder=tmp_path, log=tmp_path / "50%.txt")) == "17"
    ((command, script),) = asked
    assert shlex.join(command) == (
        f"sbatch --job-name=opmix-a1 --output={tmp_path}/50%%.txt --open-mode=append --requeue --parsable --nodes=1 --ntasks=1 "
        "--partition=gpu --account=us --cpus-per-task=8 --gres=gpu:1 --mem=1536M --time=30 --qos=high"
    )
    assert script == "#!/bin/bash\nexport A='b c'\nmodule load cuda\nexec python 'it is'\n"


@pytest.mark.parametrize(
    ("listed", "error"),
    [
        ("17|R|n1|None", "not over"),
        ("17|PD||Resources", "not over"),
        ("17|CG|n1|None", "not over"),
        ("17|CD|n1|None", None),
        ("18|R|n1|None", None),
        ("17|CA|n1|None", "it was cancelled"),
        ("17|TO|n1|TimeLimit", "its time limit was reached (executor.resources.minutes)"),
        ("17|NF|n1|NodeDown", "its node was lost (NodeDown)"),
        ("17|XX|n1|None", "it ended in state XX"),
        ("17|PD||launch failed requeued held", "Slurm will not start it (launch failed requeued held)"),
    ],
)
def test_how_a_job_of_slurm_ended(monkeypatch, listed, error):
    asked = []

    def answer(command, **more):
        asked.append(command[0])
        return subprocess.CompletedProcess(command, 0, f"16|F|n2|None\n{listed}\n", "")

    monkeypatch.setattr(slurm, "answer", answer)
    over = Slurm(SlurmSettings(), Resources(), 0).over({"n": JobNote(attempt="a", key="k", engine="slurm", job="17")})
    if error == "not over":
        assert over == {}
    elif error is None:
        assert over["n"].error is None
    else:
        assert over["n"].error.startswith(error)
    assert ("scancel" in asked) == ("held" in listed)


def test_an_engine_that_is_not_here_is_told_before_anything_is_started(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"executor.kind: slurm; sbatch, squeue, scancel not found on this machine; start"
    ):
        engine_of(ExecutorSettings(kind="slurm"), "cpu").check()
    monkeypatch.setattr(on_ray, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"executor.kind: ray; the package is not installed; install 'opmix\[ray\]'"):
        engine_of(ExecutorSettings(kind="ray"), "cpu").check()


def test_nobody_is_wanted_any_more_where_a_note_is_taken_away(tmp_path):
    (tmp_path / "tasks").mkdir()
    note, ended = noted(tmp_path, TASK, "launch"), []
    end_when_withdrawn(tmp_path, TASK.name, note.attempt, every=0.01, end=ended.append)
    withdraw(tmp_path, TASK.name)
    before = time.monotonic()
    while not ended and time.monotonic() - before < 10:
        time.sleep(0.01)
    assert ended[0] == WITHDRAWN
