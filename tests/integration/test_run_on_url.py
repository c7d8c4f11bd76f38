"""`opmix search --out URL`: killed on one machine, gone on with on another, the bytes of a run that nobody killed."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from search_files import write_search

pytestmark = pytest.mark.cluster


def begun(words, machine):
    """The command on a machine, which is a cache folder of its own."""
    told = {**os.environ, "OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(machine)}
    return subprocess.Popen(
        [sys.executable, "-m", "opmix", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=told,
    )


def said(words, machine):
    process = begun(words, machine)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err[-3000:]
    return out + err


@pytest.fixture
def search(tmp_path):
    return write_search(tmp_path)


def times(folder):
    return {file.name: json.loads(file.read_text())["finished"] for file in (folder / "steps").glob("*.json")}


def test_a_search_on_a_url_is_gone_on_with_on_another_machine(search, tmp_path):
    store, url = tmp_path / "store" / "run", f"file://{tmp_path}/store/run"
    first = begun(("search", search, "--out", url), tmp_path / "one")
    end = time.monotonic() + 300
    while not list(store.glob("steps/probe-*.json")):
        assert first.poll() is None, first.communicate()[1][-3000:]
        assert time.monotonic() < end
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    done = times(store)
    told = said(("search", search, "--out", url), tmp_path / "two")
    assert f"kept at {url}" in told
    after = times(store)
    assert done
    assert {name: after[name] for name in done} == done  # nothing was trained twice
    assert len(after) > len(done)
    said(("search", search, "--out", tmp_path / "plain"), tmp_path / "two")
    assert (store / "mixture.json").read_bytes() == (tmp_path / "plain" / "mixture.json").read_bytes()
    assert "finished" in said(("ls", f"file://{tmp_path}/store"), tmp_path / "three")
    assert "code" in said(("export", url, "--to", "interleave"), tmp_path / "three")
    assert "done" in said(("status", url), tmp_path / "three")
