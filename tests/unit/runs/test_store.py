import json
import os
import socket
import subprocess
import sys

import pytest

from opmix.errors import StoreError
from opmix.runs.files import write_json, write_text
from opmix.runs.store import RunStore, fingerprint


def test_a_step_is_done_once_per_fingerprint(tmp_path):
    done = []

    def work():
        done.append(1)
        return {"x": 1.5}

    with RunStore(tmp_path) as store:
        assert store.step("a", {"in": 1}, work) == ({"x": 1.5}, False)
        assert store.step("a", {"in": 1}, work) == ({"x": 1.5}, True)
        assert store.step("a", {"in": 2}, work)[1] is False
        assert store.step("a", {"in": 2}, work, intact=lambda: False)[1] is False
    assert len(done) == 3


def test_a_failing_or_damaged_step_is_no_record(tmp_path):
    with RunStore(tmp_path) as store:
        with pytest.raises(ZeroDivisionError):
            store.step("a", {}, lambda: {"x": 1 / 0})
        assert store.record("a") is None
        store.step("a", {}, lambda: {"x": 1})
        (tmp_path / "steps" / "a.json").write_text('{"fingerp')
        assert store.step("a", {}, lambda: {"x": 2}) == ({"x": 2}, False)


def test_locks(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    lock = tmp_path / "lock"
    lock.write_text(json.dumps({"pid": child.pid, "host": socket.gethostname()}))
    try:
        with pytest.raises(StoreError, match=f"held by process {child.pid} on"), RunStore(tmp_path):
            pass
    finally:
        child.kill()
        child.wait()
    with RunStore(tmp_path):  # its holder is gone
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()
    lock.write_text(json.dumps({"pid": 1, "host": "elsewhere"}))
    with pytest.raises(StoreError, match="elsewhere"), RunStore(tmp_path):
        pass


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": (1, 2)})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1, 2]}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left"):
        write_text(tmp_path / "a.json", "half")
    assert json.loads((tmp_path / "a.json").read_text())["y"] == [1, 2]
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_fingerprints_depend_on_content_not_order():
    assert fingerprint({"a": 1, "b": [1.0, 2]}) == fingerprint({"b": (1.0, 2), "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})
