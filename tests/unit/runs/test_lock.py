import json
import os
import select
import socket
import subprocess
import sys
import threading
import time

import pytest

from opmix.errors import StoreError
from opmix.runs import lock
from opmix.runs.lock import LEASE, FolderLock, alone_in, lock_holder
from opmix.runs.store import RunStore


def test_locks(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    file = tmp_path / "lock"
    file.write_text(json.dumps({"pid": child.pid, "host": socket.gethostname()}))
    try:
        with pytest.raises(StoreError, match=f"held by process {child.pid} on"), RunStore(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with RunStore(tmp_path):  # its holder is gone
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert not file.exists()
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(StoreError, match="elsewhere"), RunStore(tmp_path):
        pass


def test_a_lock_of_another_machine_is_broken_once_its_lease_is_over(tmp_path, caplog):
    file = tmp_path / "lock"
    file.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    old = file.stat().st_mtime - LEASE - 60
    os.utime(file, (old, old))
    with RunStore(tmp_path):
        assert json.loads(file.read_text())["pid"] == os.getpid()
    assert "process 1 on elsewhere has not been heard of for 11 minutes" in caplog.text


def test_a_held_lock_is_touched_while_work_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "LEASE", 0.2)
    with RunStore(tmp_path):
        old = (tmp_path / "lock").stat().st_mtime - 100
        os.utime(tmp_path / "lock", (old, old))
        deadline = time.monotonic() + 20
        while (tmp_path / "lock").stat().st_mtime < old + 50 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (tmp_path / "lock").stat().st_mtime > old + 50


def test_a_process_whose_lock_was_taken_over_writes_no_step_and_leaves_that_lock(tmp_path):
    file = tmp_path / "lock"
    with RunStore(tmp_path) as store:
        file.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
        with pytest.raises(StoreError, match="process 7 on elsewhere holds the lock"):
            store.step("a", {}, lambda: {"x": 1})
    assert json.loads(file.read_text())["pid"] == 7


@pytest.mark.parametrize(
    "content", ['{"pid": 1e999, "host": "a"}', '{"pid": 5000000000, "host": "a"}', "[]", "", '{"pid": {}}']
)
def test_a_damaged_lock_is_waited_for_and_then_replaced(tmp_path, monkeypatch, content):
    """Such as a power failure leaves: the name, and nothing in it."""
    monkeypatch.setattr(lock, "UNWRITTEN", 0.05)
    (tmp_path / "lock").write_text(content)
    with RunStore(tmp_path):
        assert json.loads((tmp_path / "lock").read_text())["pid"] == os.getpid()


def test_a_folder_in_the_place_of_the_lock_is_told(tmp_path):
    (tmp_path / "lock").mkdir()
    os.utime(tmp_path / "lock", (0, 0))
    with pytest.raises(StoreError, match="lock: no file that can be replaced"), RunStore(tmp_path):
        pass


OTHER = """
import sys
from pathlib import Path
from opmix.errors import StoreError
from opmix.runs.store import RunStore
print("begins", flush=True)
try:
    with RunStore(Path(sys.argv[1])):
        print("held", flush=True)
        sys.stdin.read()
except StoreError:
    print("refused", flush=True)
"""


def test_two_that_find_the_same_dead_holder_do_not_both_hold(tmp_path, monkeypatch):
    """Another process starts between this one's look at a dead holder's lock and its removal."""
    (tmp_path / "lock").write_text(json.dumps({"pid": 2**22 - 7, "host": socket.gethostname()}))
    command = [sys.executable, "-c", OTHER, str(tmp_path)]
    others = []

    def looked(folder):
        found = lock_holder(folder)
        if not others:
            others.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            assert others[0].stdout.readline() == "begins\n"
            select.select([others[0].stdout], [], [], 0.5)
        return found

    monkeypatch.setattr(lock, "lock_holder", looked)
    try:
        with RunStore(tmp_path):
            assert others[0].stdout.readline() == "refused\n"
    finally:
        others[0].communicate()


def test_a_folder_is_held_once_in_a_process_and_again_after_a_release(tmp_path):
    first = FolderLock(tmp_path)
    for _ in range(2):
        first.take()
        with pytest.raises(StoreError, match=f"held by process {os.getpid()}"):
            FolderLock(tmp_path / ".." / tmp_path.name).take()
        first.release()
        assert not first.held
        assert list(tmp_path.iterdir()) == []


def test_a_lock_of_this_process_s_number_from_before_a_restart_is_broken(tmp_path):
    (tmp_path / "lock").write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
    with RunStore(tmp_path) as store:
        assert store.held


def test_waiting_for_others_has_an_end(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.05)
    entered, leave = threading.Event(), threading.Event()

    def frozen():
        with alone_in(tmp_path):
            entered.set()
            leave.wait(20)

    thread = threading.Thread(target=frozen)
    thread.start()
    entered.wait(20)
    try:
        with pytest.raises(StoreError, match="at the same time; try again"), RunStore(tmp_path):
            pass
    finally:
        leave.set()
        thread.join()
    with RunStore(tmp_path) as store:
        assert store.held


def test_file_systems_without_such_locks_or_links_are_written_as_well(tmp_path, monkeypatch):
    def missing(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(lock.fcntl, "flock", missing)
    monkeypatch.setattr(os, "link", missing)
    with RunStore(tmp_path):
        assert lock_holder(tmp_path) == (os.getpid(), socket.gethostname())
    assert not (tmp_path / "lock").exists()
