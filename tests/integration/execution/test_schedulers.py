"""Whole searches as jobs of real schedulers, in which everything is killed once: the bytes of one process."""

import os
import shlex
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import cluster
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.cluster]
ROOT = Path(cluster.__file__).parents[1]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """A search.yaml, and the folder of it done in one process."""
    folder = tmp_path_factory.mktemp("told")
    file = cluster.written(folder, steps=40)
    cluster.measured(cluster.WAYS["one"], cluster.Started(), file, folder / "one")
    return file, folder / "one"


@pytest.fixture
def engine(request, tmp_path):
    way = cluster.WAYS[request.param]
    if why := way.why_not():
        pytest.skip(why)
    with ExitStack() as stack:
        yield way, way.start(stack, tmp_path)


@pytest.mark.parametrize("engine", ["launch", "slurm", "ray"], indirect=True)
def test_everything_killed_once_and_the_same_bytes(engine, told, tmp_path):
    (way, started), (file, one) = engine, told
    done = cluster.killed(way, started, file, tmp_path / "run")
    assert done == list(way.kills)
    assert cluster.compared(tmp_path / "run", one)["same_bytes"]
    said = (tmp_path / "run" / "said.txt").read_text()
    assert "it is begun again from its last checkpoint" in said
    assert ("it was cancelled" in said) == ("job" in way.kills)


@pytest.mark.parametrize("engine", ["slurm", "ray"], indirect=True)
def test_the_page_s_command_and_the_example_and_what_validate_says(engine, told, tmp_path):
    (_, started), (file, one) = engine, told
    kind = next(setting.partition("=")[2] for setting in started.settings if setting.startswith("executor.kind="))
    page = (ROOT / "docs" / "cluster.md").read_text()
    command = next(line for line in page.splitlines() if line.startswith("opmix search") and f"kind={kind}" in line)
    place = [word for setting in started.settings[1:] for word in ("--set", setting)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, **started.environment, "OMP_NUM_THREADS": "1", "PATH": path}

    def run(*words):
        ended = subprocess.run(words, cwd=file.parent, capture_output=True, text=True, timeout=600, env=environment)
        assert ended.returncode == 0, ended.stderr[-4000:]
        return ended.stdout + ended.stderr

    out = tmp_path / "page"
    said = shlex.split(command.replace("runs/search", str(out)).replace("opmix", "-m opmix", 1))
    run(sys.executable, *said, *place)
    assert cluster.compared(out, one)["same_bytes"]
    example = ROOT / "examples" / "cluster" / "jobs.sh"
    run("bash", str(example), kind, str(file), str(out), *place)  # everything is found
    checked = run(sys.executable, "-m", "opmix", "validate", str(file), "--set", f"executor.kind={kind}", *place)
    assert "tasks at once" in " ".join(checked.split())
