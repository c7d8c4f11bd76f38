"""Whole searches with processes of their own: the bytes of one process, also where a worker or the driver is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import opmix
from opmix.runs.files import alive
from opmix.testing import tiny_model, tiny_tokenizer, write_toy_domains

pytestmark = pytest.mark.slow
NAMES = ["web", "code", "math"]
STEPS = 30


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A search.yaml."""
    folder = tmp_path_factory.mktemp("told")
    paths, tokenizer = write_toy_domains(folder, NAMES, num_documents=120, seed=0), tiny_tokenizer()
    for part in (tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer):
        part.save_pretrained(folder / "model")
    content = {
        "model": "model",
        "domains": {n: str(p) for n, p in paths.items()},
        "budget": 60_000,
        "sequence_length": 32,
        "trainer": {"learning_rate": 1e-2, "per_device_train_batch_size": 4},
        "probes": {"steps": STEPS, "rank": 4},
        "proxies": {"eval_sequences": 8},
        "decision": {"draws": 30},
        "cache_dir": str(folder / "cache"),
    }
    file = folder / "search.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def expected(told):
    """What it comes to in one process."""
    ended = subprocess.run(command(told, told.with_name("one")), capture_output=True, text=True, env=environment())
    assert ended.returncode == 0, ended.stderr
    return told.with_name("one").joinpath("mixture.json").read_bytes()


def environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}


def command(file, out, *settings):
    more = [word for setting in settings for word in ("--set", setting)]
    return [sys.executable, "-m", "opmix", "search", str(file), "--out", str(out), *more]


def begun(file, out):
    settings = ("executor.kind=local", "executor.slots=2", "executor.save_every=5")
    return subprocess.Popen(command(file, out, *settings), stderr=subprocess.PIPE, text=True, env=environment())


def wait_for(found, driver=None, seconds=240):
    before = time.monotonic()
    while not (result := found()):
        assert time.monotonic() - before < seconds
        assert driver is None or driver.poll() is None, driver.stderr.read()
        time.sleep(0.05)
    return result


def workers_of(driver):
    """Processes whose parent is the driver."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            _, _, rest = stat.read_text().rpartition(")")
        except OSError:
            continue
        if int(rest.split()[1]) == driver.pid:
            found.append(int(stat.parent.name))
    return found


def checkpoint(out):
    return lambda: next(out.glob("probes/*-parts/checkpoint-*/complete.json"), None)


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="processes are found in /proc")


@pytest.mark.cluster
@needs_proc
def test_a_killed_worker_goes_on_from_its_checkpoint_to_the_same_bytes(told, expected, tmp_path):
    driver = begun(told, tmp_path)
    wait_for(checkpoint(tmp_path), driver)
    os.kill(workers_of(driver)[0], signal.SIGKILL)
    _, said = driver.communicate(timeout=400)
    assert driver.returncode == 0, said
    assert "was killed by signal 9" in said
    assert "begun again from its last checkpoint" in said
    assert (tmp_path / "mixture.json").read_bytes() == expected


@pytest.mark.cluster
@needs_proc
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_or_killed_driver_leaves_no_process_and_the_same_command_goes_on(told, expected, tmp_path, number):
    driver = begun(told, tmp_path)
    wait_for(checkpoint(tmp_path), driver)
    workers = workers_of(driver)
    driver.send_signal(number)
    driver.communicate(timeout=60)
    assert driver.returncode == (143 if number == signal.SIGTERM else -9)
    wait_for(lambda: not any(alive(pid) and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" for pid in workers))
    assert (tmp_path / "lock").exists() == (number == signal.SIGKILL)
    again = begun(told, tmp_path)
    _, said = again.communicate(timeout=400)
    assert again.returncode == 0, said
    assert (tmp_path / "mixture.json").read_bytes() == expected


def test_objects_of_the_library_are_searched_elsewhere_alike(told, tmp_path):
    content = yaml.safe_load(told.read_text())
    content.update(probes={"steps": 4, "rank": 4}, old_mixture={"web": 0.6, "code": 0.4})
    found = []
    for slots in (1, 2):
        tokenizer = tiny_tokenizer()
        content.update(model=tiny_model(vocab_size=len(tokenizer), max_position_embeddings=64), tokenizer=tokenizer)
        out = tmp_path / str(slots)
        opmix.search(**content, executor={"slots": slots}, out=out)
        found.append((out / "mixture.json").read_bytes())
    assert found[0] == found[1]
    assert not (tmp_path / "2" / "tasks" / "copy").exists()
