"""A run folder on a URL: files before the records that vouch for them, one holder, gone on with elsewhere, never half."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from consumers import real

from opmix.cli.values import Verb
from opmix.config import parse_config
from opmix.errors import ConfigError, StoreError
from opmix.mixture_search.hand_over import elsewhere
from opmix.runs import remote, remote_lock
from opmix.runs.ranks import Ranks
from opmix.runs.remote import RemoteFolder, url_of
from opmix.runs.remote_lock import LockLostError, RemoteLock
from opmix.runs.run_folder import copy_of, keep, kept_at, place_of, refresh, run_folder
from opmix.runs.store import RunStore
from opmix.training.checkpoints import mark_checkpoint, whole_checkpoints
from opmix.training.objectives import Usage


@pytest.fixture(scope="session")
def s3():
    """Moto's server, where it is installed; its bucket."""
    s3fs = real("s3fs")
    server = real("moto.server").ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    told = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    patch = pytest.MonkeyPatch()
    for name, value in {**told, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}.items():
        patch.setenv(name, value)
    s3fs.S3FileSystem().mkdir("runs")
    yield "s3://runs"
    patch.undo()
    server.stop()


@pytest.fixture(params=["file", "memory", pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.consumer])])
def url(request, tmp_path, monkeypatch):
    """An empty folder of a store; this process works in a cache of its own, and waits for nothing."""
    at(monkeypatch, tmp_path / "here")
    monkeypatch.setattr(remote.time, "sleep", lambda seconds: None)
    home = {"file": f"file://{tmp_path}/store", "memory": f"memory://{tmp_path.name}"}
    return f"{home.get(request.param) or request.getfixturevalue('s3')}/{tmp_path.name}/run"


def at(monkeypatch, folder):
    """From now on this is another machine: its working folders are others."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def stepped(folder, name="a", text="what was learned"):
    """A step that leaves a file; whether it was found."""

    def work():
        (folder / "tables").mkdir(exist_ok=True)
        (folder / "tables" / f"{name}.csv").write_text(text)
        return {"said": text}

    with RunStore(folder) as store:
        return store.step(name, {"step": name}, work, intact=(folder / "tables" / f"{name}.csv").is_file)[1]


def worked(url, work):
    with run_folder(url) as folder:
        work(folder)


@pytest.mark.parametrize("given", ["runs/x", "C:/runs", "/tmp/run", "s3:", "~/s3"])
def test_a_path_is_no_address(given):
    assert url_of(given) is None
    assert url_of(Path(given)) is None


def test_a_store_keeps_objects_whole(url, tmp_path):
    store, file = RemoteFolder(url), tmp_path / "weights"
    file.write_bytes(b"0" * 5000)
    assert store.files() == {}
    assert store.read("a") is None
    first = store.write("steps/a.json", b"1")
    assert store.write("steps/a.json", b"22") != first
    assert (store.create("lock", b"me"), store.create("lock", b"you")) == (True, False)
    store.upload(file, "model/weights")
    assert {n: t for n, t in store.files().items() if n != "steps/a.json"}.keys() == {"lock", "model/weights"}
    assert (store.read("lock"), store.size("model/weights")) == (b"me", 5000)
    store.download("model/weights", tmp_path / "back" / "weights")
    assert (tmp_path / "back" / "weights").read_bytes() == file.read_bytes()
    assert store.age("lock") >= 0
    store.remove("lock")
    store.remove("lock")
    assert store.files().keys() == {"steps/a.json", "model/weights"}


@pytest.mark.parametrize("kind", ["file", pytest.param("s3", marks=[pytest.mark.slow, pytest.mark.consumer])])
def test_of_many_that_want_a_lock_one_gets_it(kind, tmp_path, request):
    folder = f"file://{tmp_path}/x" if kind == "file" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    locks, won = [RemoteLock(RemoteFolder(folder)) for _ in range(8)], []

    def race(lock):
        try:
            lock.take()
            won.append(lock)
        except StoreError:
            pass

    threads = [threading.Thread(target=race, args=(lock,)) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    won[0].check()


def test_what_one_machine_has_done_another_finds(url, tmp_path, monkeypatch):
    with run_folder(url) as folder:
        assert kept_at(folder / "tables") == url
        assert not stepped(folder)
        assert RemoteFolder(url).read("steps/a.json")  # as soon as the step is done
    assert "lock" not in RemoteFolder(url).files()
    assert kept_at(folder) is None
    at(monkeypatch, tmp_path / "there")
    with run_folder(url) as other:
        assert other != folder
        assert stepped(other)
        assert not stepped(other, "b")
    at(monkeypatch, tmp_path / "here")
    with run_folder(url) as folder:
        assert stepped(folder, "b")


def test_a_folder_of_this_machine_stays_what_it_is(tmp_path):
    with run_folder(tmp_path / "run") as folder:
        stepped(folder)
    assert folder == tmp_path / "run"
    assert copy_of(folder) == folder


def uploads(monkeypatch):
    """Names in the order in which they are put."""
    names = []
    for way in ("upload", "write"):
        real = getattr(RemoteFolder, way)
        place = 1 if way == "upload" else 0

        def put(self, *given, real=real, place=place):
            names.append(given[place])
            return real(self, *given)

        monkeypatch.setattr(RemoteFolder, way, put)
    return names


def checkpoint(folder, step):
    made = folder / "checkpoints" / f"checkpoint-{step}"
    (made / "optimizer_0").mkdir(parents=True)
    (made / "optimizer_0" / ".metadata").write_bytes(b"m")
    (made / "optimizer_0" / "__0_0.distcp").write_bytes(b"0" * 100)
    (made / ".being-written").write_bytes(b"?")
    mark_checkpoint(made, "k", step, Usage())
    return made


def test_markers_and_records_go_up_after_what_they_vouch_for(url, tmp_path, monkeypatch):
    with run_folder(url) as folder:
        names = uploads(monkeypatch)
        made = checkpoint(folder, 3)
        (made / ".being-written").unlink()
        mark_checkpoint(made, "k", 3, Usage())
        stepped(folder)
        put = [name for name in names if name != "lock"]
        marks = [put.index("checkpoints/checkpoint-3/complete.json"), put.index("steps/a.json")]
        assert min(marks) > max(n for n, name in enumerate(put) if n not in marks and not name.startswith("trace"))
        assert "checkpoints/checkpoint-3/optimizer_0/.metadata" in put
    at(monkeypatch, tmp_path / "there")
    with run_folder(url) as other:
        assert [step for step, _ in whole_checkpoints(other / "checkpoints", "k")] == [3]


def test_a_marker_that_comes_while_files_go_up_waits_for_the_next_time(url, monkeypatch):
    with run_folder(url) as folder:
        (folder / "large").write_bytes(b"0" * 10)
        real = RemoteFolder.upload

        def slow(self, file, name):
            if name == "large" and not (folder / "checkpoints").exists():
                checkpoint(folder, 3)
            return real(self, file, name)

        monkeypatch.setattr(RemoteFolder, "upload", slow)
        keep(folder)
        there = RemoteFolder(url).files()
        assert "large" in there
        assert not [name for name in there if name.startswith("checkpoints")]
        keep(folder)
        assert "checkpoints/checkpoint-3/complete.json" in RemoteFolder(url).files()


def test_an_upload_that_fails_leaves_no_record_and_the_run_goes_on(url, tmp_path, monkeypatch, caplog):
    real = RemoteFolder.upload

    def refused(self, file, name):
        if name == "tables/b.csv":
            raise StoreError("no network")
        return real(self, file, name)

    def work(folder):
        stepped(folder)
        monkeypatch.setattr(RemoteFolder, "upload", refused)
        assert not stepped(folder, "b")

    with pytest.raises(StoreError, match="no network; all of the run is in"):
        worked(url, work)
    assert "no network; the run goes on" in caplog.text
    there = RemoteFolder(url).files()
    assert "steps/a.json" in there
    assert "steps/b.json" not in there
    monkeypatch.setattr(RemoteFolder, "upload", real)
    RemoteFolder(url).remove("lock")  # what a process that dies leaves is broken after its time, see below
    at(monkeypatch, tmp_path / "there")
    with run_folder(url) as other:
        assert stepped(other)
        assert not (other / "steps" / "b.json").exists()
    at(monkeypatch, tmp_path / "here")
    with run_folder(url) as folder:  # nothing of it was lost where it was done
        assert stepped(folder, "b")
    assert "steps/b.json" in RemoteFolder(url).files()


def test_an_error_of_the_run_is_not_hidden_by_the_store(url, monkeypatch, caplog):
    def refused(self, file, name):
        raise StoreError("no network")

    def work(folder):
        (folder / "x").write_text("x")
        monkeypatch.setattr(RemoteFolder, "upload", refused)
        raise ValueError("of the run")

    with pytest.raises(ValueError, match="of the run"):
        worked(url, work)
    assert "no network" in caplog.text


def test_what_is_gone_or_new_on_either_side_is_so_on_both(url, tmp_path, monkeypatch):
    with run_folder(url) as folder:
        for name in ("old", "changed", "stays"):
            (folder / name).write_text(name)
        first = checkpoint(folder, 3)
        keep(folder)
        for path in sorted(first.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
    assert not [n for n in RemoteFolder(url).files() if n.startswith("checkpoints")]
    at(monkeypatch, tmp_path / "there")
    with run_folder(url) as other:
        (other / "old").unlink()
        (other / "changed").write_text("by another machine")
    at(monkeypatch, tmp_path / "here")
    (folder / "changed").write_text("and here, in vain")
    with run_folder(url) as folder:
        assert not (folder / "old").exists()
        assert (folder / "changed").read_text() == "by another machine"
        assert (folder / "stays").read_text() == "stays"


def held_by(url, pid, host):
    RemoteFolder(url).write("lock", json.dumps({"pid": pid, "host": host, "word": "w"}).encode())


def dead_pid():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_one_at_a_time(url, monkeypatch):
    with run_folder(url), pytest.raises(StoreError, match=f"held by process {os.getpid()} on"), run_folder(url):
        pass
    held_by(url, 1, "elsewhere")
    with pytest.raises(StoreError, match=r"held by process 1 on elsewhere; .* or delete .*/lock if"), run_folder(url):
        pass
    assert "lock" in RemoteFolder(url).files()
    monkeypatch.setattr(remote_lock, "LEASE", -1.0)  # nobody has touched it for longer than that
    with run_folder(url) as folder:
        stepped(folder)
    held_by(url, dead_pid(), socket.gethostname())
    monkeypatch.setattr(remote_lock, "LEASE", 600.0)
    with run_folder(url) as folder:
        assert stepped(folder)
    RemoteFolder(url).write("lock", b"{")
    monkeypatch.setattr(remote_lock, "UNWRITTEN", 0.0)
    with run_folder(url) as folder:
        assert stepped(folder)


def test_who_has_lost_the_folder_writes_nothing_more(url):
    def work(folder):
        held_by(url, 1, "elsewhere")
        stepped(folder)

    with pytest.raises(LockLostError, match="process 1 on elsewhere holds the lock"):
        worked(url, work)
    assert "steps/a.json" not in RemoteFolder(url).files()
    assert b"elsewhere" in RemoteFolder(url).read("lock")


def test_a_lock_is_renewed_and_checkpoints_go_up_between_records(url, monkeypatch):
    monkeypatch.setattr("opmix.runs.run_folder.EVERY", 0.01)
    seen = threading.Event()
    real = RemoteLock.renew
    monkeypatch.setattr(RemoteLock, "renew", lambda self: (real(self), seen.set()))
    with run_folder(url) as folder:
        checkpoint(folder, 3)
        assert seen.wait(10)
        store = RemoteFolder(url)
        for _ in range(400):
            if "checkpoints/checkpoint-3/complete.json" in store.files():
                break
            threading.Event().wait(0.02)
        assert "checkpoints/checkpoint-3/complete.json" in store.files()


def test_readers_get_what_they_need(url, monkeypatch):
    with run_folder(url) as folder:
        stepped(folder)
        checkpoint(folder, 3)
        (folder / "model").mkdir()
        (folder / "model" / "model.safetensors").write_bytes(b"0" * 100)
        keep(folder)
        copy = copy_of(url)
        assert copy == place_of(url, "read") != folder
        found = {p.relative_to(copy).as_posix() for p in copy.rglob("*") if p.is_file()}
        assert found >= {"steps/a.json", "tables/a.csv", "lock"}
        assert not [name for name in found if name.startswith(("model", "checkpoints"))]
        stepped(folder, "b")
        refresh(copy)
        assert (copy / "steps" / "b.json").is_file()
    refresh(copy)
    assert not (copy / "lock").exists()
    with pytest.raises(StoreError, match="nothing there; expected the address that a run was given as --out"):
        copy_of(f"{url}-of-nobody")


def test_what_cannot_be_is_said_before_anything_is_done(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"nowhere://x: .*expected s3://, gs:// or another address"):
        RemoteFolder("nowhere://x")
    monkeypatch.setattr("fsspec.core.url_to_fs", lambda url, **options: __import__("no_such_package"))
    with pytest.raises(ConfigError, match=r"needs a package that is not here; pip install 'opmix\[s3\]'"):
        RemoteFolder("s3://bucket/run")
    monkeypatch.setattr("opmix.runs.run_folder.ranks_here", lambda: Ranks(0, 4))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="ranks on several hosts need a folder that all of them see"):
        run_folder(f"file://{tmp_path}/run").__enter__()


def test_jobs_of_a_scheduler_see_no_url(tmp_path, monkeypatch):
    at(monkeypatch, tmp_path)
    content = {"model": "m", "domains": {"a": "a", "b": "b"}, "budget": 1000, "executor": {"kind": "slurm", "slots": 2}}
    with (
        run_folder(f"file://{tmp_path}/run") as folder,
        RunStore(folder) as store,
        pytest.raises(ConfigError, match=r"executor.kind: slurm; the run is kept at file://"),
    ):
        elsewhere(parse_config(content), tmp_path, store, model=None, given=(None, None), make_trainer=None)


@pytest.mark.parametrize("words", [["validate", "s3://bucket/search.yaml"], ["export", "run", "--out", "s3://b/x"]])
def test_only_run_folders_may_be_addresses(words):
    import typer.main

    from opmix.cli.app import app

    verb = typer.main.get_command(app).commands[words[0]]
    assert isinstance(verb, Verb)
    with pytest.raises(ConfigError, match="expected a path of this machine: only run folders may be addresses"):
        verb.make_context(words[0], words[1:])
