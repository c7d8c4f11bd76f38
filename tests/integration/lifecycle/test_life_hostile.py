"""What goes wrong in the middle of a life: a clear error or a clean resume, and nothing lost."""

import json
import os
import shutil
import socket
import subprocess
import sys
import textwrap

import pytest
import yaml
from lives import content, done, fixed, outcome, same, weights

from opmix.errors import ConfigError, OpMixError, StoreError
from opmix.lifecycle.status import run_status
from opmix.runs.store import RunStore
from opmix.testing import tiny_model


class StopError(Exception):
    """Ends a life in the middle."""


@pytest.fixture(scope="module")
def stopped(toys, tmp_path_factory, finished):
    """The finished life once more, stopped before the second stage trains."""
    folder = tmp_path_factory.mktemp("stopped") / "life"
    with pytest.MonkeyPatch.context() as patch:
        real = RunStore.event

        def event(self, kind, **facts):
            real(self, kind, **facts)
            if kind == "begin" and facts["step"].endswith("02-two/train-4"):
                raise StopError

        patch.setattr(RunStore, "event", event)
        with pytest.raises(StopError):
            toys.live(finished[0], folder)
    return folder


@pytest.fixture
def half(stopped, tmp_path):
    """A copy of it."""
    shutil.copytree(stopped, tmp_path / "life")
    return tmp_path / "life"


def test_a_model_replaced_in_the_middle_of_a_life(half, toys, finished):
    config, _ = finished
    model, kept = half / "seed-0" / "01-one" / "model", half.parent / "kept"
    shutil.copytree(model, kept)
    before = done(half)
    tiny_model("gpt2", vocab_size=300, n_positions=32).save_pretrained(model)
    with pytest.raises(
        StoreError, match=r"holds a GPT2LMHeadModel of [\d,]+ weights that is not the model this run trained"
    ):
        toys.live(config, half)
    (model / "config.json").write_text("{}")
    with pytest.raises(OpMixError, match="model"):
        toys.live(config, half)
    shutil.rmtree(model)
    shutil.copytree(kept, model)
    toys.live(config, half)
    assert outcome(finished[1]) == json.loads((half / "life.json").read_text())
    assert done(half)[len(before) :] == ["seed-0/02-two/train-4", "seed-0/02-two/model", "seed-0/02-two/after"]


def test_a_model_that_is_gone_is_trained_again(half, toys, finished):
    shutil.rmtree(half / "seed-0" / "01-one" / "model")
    toys.live(finished[0], half)
    assert outcome(finished[1]) == json.loads((half / "life.json").read_text())


@pytest.fixture
def own(tmp_path, toys):
    """A finished life on data that may be changed."""
    shutil.copytree(toys.folder / "data", tmp_path / "data", ignore=shutil.ignore_patterns("cache"))

    def config(*stages, **changes):
        return toys.config(*stages, **{"cache_dir": str(tmp_path / "cache"), **changes})

    one, two = fixed("one", 2, domains=["alpha", "beta"]), fixed("two", 2, add=["gamma"])
    own = type(toys)(tmp_path)
    own.live(config(one, two), tmp_path / "life")
    return own, config, (one, two), tmp_path / "life"


def test_changed_data_under_finished_steps(own):
    folder, config, stages, out = own
    kept, models = (out / "life.json").read_bytes(), weights(out / "seed-0" / "02-two" / "model")
    with (folder.folder / "data" / "gamma.jsonl").open("a") as file:
        file.write(json.dumps({"text": "something else " * 50}) + "\n")
    assert run_status(out).changed == ("gamma",)
    with pytest.raises(StoreError) as error:
        folder.live(config(*stages), out)
    assert "seed-0/02-two/before: data of gamma changed" in str(error.value)
    assert "01-one" not in str(error.value)
    assert (out / "life.json").read_bytes() == kept
    assert same(weights(out / "seed-0" / "02-two" / "model"), models)
    assert run_status(out).changed == ("gamma",)  # a run that was refused has changed nothing
    before = done(out)
    folder.live(config(*stages), out, redo=True)
    assert [s.removeprefix("seed-0/02-two/") for s in done(out)[len(before) :]] == [
        "before",
        "train-2",
        "model",
        "after",
    ]
    assert run_status(out).changed == ()
    assert {s.state for s in run_status(out).steps} == {"done"}


def test_a_domain_renamed(own):
    folder, config, (one, two), out = own
    kept = (out / "life.json").read_bytes()
    domains = {
        n: {"train": f"data/{f}.jsonl", "holdout": 0.2}
        for n, f in {"alpha": "alpha", "beta": "beta", "omega": "gamma"}.items()
    }
    renamed = config(one, {**two, "add": ["omega"]}, domains=domains)
    with pytest.raises(StoreError) as error:
        folder.live(renamed, out)
    assert "seed-0/02-two/before: data of gamma is gone; data of omega is new" in str(error.value)
    assert "01-one" not in str(error.value)
    assert (out / "life.json").read_bytes() == kept
    assert {s.state for s in run_status(out).steps} == {"done"}
    folder.live(config(one, two), out)
    assert (out / "life.json").read_bytes() == kept
    with pytest.raises(ConfigError, match=r"stages\.1\.add\.gamma: unknown domain"):
        config(one, two, domains=domains)


def test_data_that_moved_or_were_touched_are_the_same_data(own):
    folder, config, stages, out = own
    before = done(out)
    shutil.move(folder.folder / "data", folder.folder / "moved")
    for path in (folder.folder / "moved").iterdir():
        os.utime(path, (1, 1))
    domains = {n: {"train": f"moved/{n}.jsonl", "holdout": 0.2} for n in ("alpha", "beta", "gamma")}
    folder.live(config(*stages, domains=domains), out)
    assert done(out) == before


def test_left_over_temporary_files_are_in_nobodys_way(half, toys, finished):
    stage_folder = half / "seed-0" / "02-two"
    for folder in (half / "seed-0" / "01-one" / ".writing-abc", stage_folder / ".writing-def", stage_folder / "model"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model.safetensors").write_bytes(b"half")
    (half / "steps" / "seed-0" / "02-two" / ".train-4.json.xyz").write_text('{"na')
    (half / "steps" / "seed-0" / "02-two" / "train-4.json").write_text('{"na')
    (half / ".life.json.abc").write_text("{")
    with (half / "events.jsonl").open("a") as file:
        file.write('{"event": "beg')
    cut = stage_folder / "checkpoints" / "checkpoint-2"
    cut.mkdir(parents=True)
    (cut / "model.safetensors").write_bytes(b"half")
    toys.live(finished[0], half)
    assert outcome(finished[1]) == json.loads((half / "life.json").read_text())
    assert same(weights(stage_folder / "model"), weights(finished[1].model()))
    assert {s.state for s in run_status(half).steps} == {"done"}


def test_budgets_beyond_the_caps_are_refused_before_anything_is_trained(toys, tmp_path):
    domains = {n: {"train": f"data/{n}.jsonl", "holdout": 0.2, "max_epochs": 1} for n in ("alpha", "beta", "gamma")}
    config = toys.config(fixed("one", 2, domains=["alpha"]), fixed("two", 5000, add=["beta"]), domains=domains)
    with pytest.raises(ConfigError, match=r"stages\.1\.tokens: 640,000; its domains allow [\d,]+ at their max_epochs"):
        toys.live(config, tmp_path / "life")
    assert not (tmp_path / "life" / "seed-0").exists()


def test_reserved_and_unknown_trainer_arguments_are_refused_before_any_work(toys, tmp_path):
    for argument, message in ({"max_steps": 5}, "the token budget decides"), ({"learning_rat": 1}, "did you mean"):
        config = toys.config(fixed("one", 2, domains=["alpha"], trainer=argument))
        with pytest.raises(ConfigError, match=message):
            toys.live(config, tmp_path / "life")
    assert not (tmp_path / "life").exists()


def test_a_second_process_is_refused(toys, tmp_path):
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    (tmp_path / "lock").write_text(json.dumps({"pid": other.pid, "host": socket.gethostname()}))
    try:
        with pytest.raises(StoreError, match=f"held by process {other.pid} on"):
            toys.live(toys.config(fixed("one", 2, domains=["alpha"])), tmp_path)
    finally:
        other.kill()
        other.wait()
    assert {p.name for p in tmp_path.iterdir()} == {"lock"}


def test_ranks_are_told_to_say_the_rows_of_a_step(toys, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"trainer.batch: missing; with 2 ranks say the rows of an optimizer step"):
        toys.live(toys.config(fixed("one", 2, domains=["alpha"])), tmp_path / "life")


def test_too_little_room_is_said_before_a_stage_trains(toys, tmp_path, monkeypatch):
    free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    config = toys.config(fixed("one", 2, domains=["alpha"]))
    with pytest.raises(StoreError, match=r"stage 'one' needs about .* GB, 0\.00 GB are free; free space and run again"):
        toys.live(config, tmp_path / "life")
    monkeypatch.undo()
    toys.live(config, tmp_path / "life")


@pytest.mark.slow
@pytest.mark.parametrize("limit", [2_000, 20_000, 60_000])
def test_a_full_disk(toys, forked, tmp_path, finished, limit):
    """No file may grow beyond a limit, as on a disk that is full; with room again the life is the unbroken one."""
    out, file = tmp_path / "life", toys.folder / "full.yaml"
    file.write_text(yaml.safe_dump(content(cache_dir=str(toys.folder / "data" / "cache"))))
    code = textwrap.dedent(f"""
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
        from opmix.cli.main import main
        sys.argv = ["opmix", "run", {str(file)!r}, "--out", {str(out)!r}, "--json"]
        main()
    """)
    failed = subprocess.run(forked("-c", code), capture_output=True, text=True, check=False)
    assert failed.returncode == 1, failed.stderr[-2000:]
    assert "Traceback" not in failed.stderr
    assert "free space" in failed.stderr
    assert not list(out.rglob(".writing-*"))
    toys.live(finished[0], out)
    assert outcome(finished[1]) == json.loads((out / "life.json").read_text())
