import json
import os
import socket
import subprocess
import sys

import pytest

from opmix.errors import StoreError
from opmix.results.manifest import Manifest
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


def test_leftovers_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    host = socket.gethostname()
    dead, elsewhere = tmp_path / "steps" / f".writing-{child.pid}-{host}-a_b", tmp_path / ".writing-1-elsewhere-abc"
    living, old = tmp_path / f".writing-{os.getpid()}-{host}-abc", tmp_path / "deep" / ".writing-1-elsewhere-old"
    for folder in (dead, elsewhere, living, old):
        folder.mkdir(parents=True)
        (folder / "file").write_text("half")
    os.utime(old, (0, 0))
    with RunStore(tmp_path):
        assert [f.exists() for f in (dead, elsewhere, living, old)] == [False, True, True, False]


@pytest.mark.parametrize(
    "record", [[], {}, {"fingerprint": "f", "inputs": {}}, {"fingerprint": 1, "inputs": {}, "result": {}}]
)
def test_a_record_with_missing_keys_is_no_record(tmp_path, record):
    with RunStore(tmp_path) as store:
        store.step("a", {}, lambda: {"x": 1})
        (tmp_path / "steps" / "a.json").write_text(json.dumps(record))
        assert store.record("a") is None
        assert store.step("a", {}, lambda: {"x": 2}) == ({"x": 2}, False)


def test_a_full_disk_is_one_error_whoever_ran_into_it(tmp_path):
    for told in (OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")):
        with pytest.raises(StoreError, match=r"the disk is full.*run the same command again"), RunStore(tmp_path):
            raise told
        assert not (tmp_path / "lock").exists()
    with pytest.raises(ValueError, match="else"), RunStore(tmp_path):
        raise ValueError("something else")


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


def test_secrets_of_the_trainer_are_in_no_file_and_no_fingerprint(tmp_path):
    def inputs(token):
        trainer = {"hub_token": token, "accelerator_config": {"api_key": token}, "learning_rate": 1e-3}
        return {
            "trainer": trainer,
            "stages": [{"trainer": {"password": token}}],
            "eos_token": "</s>",
            "api_key": "a domain",
        }

    with RunStore(tmp_path) as store:
        store.step("a", inputs("hf_secret"), lambda: {"x": 1})
        assert store.step("a", inputs("another"), lambda: {"x": 2}) == ({"x": 1}, True)
        Manifest.write(tmp_path, "search", config=inputs("hf_secret"))
    for file in (tmp_path / "steps" / "a.json", tmp_path / "manifest.json"):
        assert "hf_secret" not in file.read_text()
    kept = Manifest.read(tmp_path).config
    assert kept["trainer"] == {"hub_token": "***", "accelerator_config": {"api_key": "***"}, "learning_rate": 1e-3}
    assert (kept["eos_token"], kept["api_key"]) == ("</s>", "a domain")


def test_a_lock_that_cannot_be_written_is_one_error_and_no_lock(tmp_path):
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from opmix.errors import StoreError\nfrom opmix.runs.store import RunStore\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\nresource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))\n"
        "try: RunStore(Path(sys.argv[1])).__enter__()\nexcept StoreError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "cannot be written (File too large); free space" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_without_links_a_lock_is_taken_all_the_same(tmp_path, monkeypatch):
    def refused(*_):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    with RunStore(tmp_path):
        assert json.loads((tmp_path / "lock").read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    assert not (tmp_path / "lock").exists()


def test_what_a_step_left_is_on_disk_before_its_record(tmp_path, monkeypatch):
    """Found by torture: tokenizer folders that libraries write unsynced, and a synced record that vouches for them."""
    synced, real = [], os.fsync

    def fsync(descriptor):
        real(descriptor)
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))  # noqa: PTH115, PTH119

    def work():
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "weights").write_text("x")
        return {}

    (tmp_path / "old").write_text("x")
    os.utime(tmp_path / "old")
    with RunStore(tmp_path) as kept:
        monkeypatch.setattr(os, "fsync", fsync)
        kept.step("a", {}, work)
    assert {"weights", "model"} <= set(synced)
    assert synced.index("weights") < next(i for i, name in enumerate(synced) if name.startswith(".writing-"))
