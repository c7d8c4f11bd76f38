import os
import signal
import subprocess
import sys
import time

import pytest
from typer.testing import CliRunner

from opmix.cli import main
from opmix.cli.app import app
from opmix.cli.last_net import STOPPED, last_net
from opmix.errors import DataError
from opmix.runs.files import default_cache_dir


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_an_unforeseen_error_is_one_line_with_the_place_of_its_traceback(capsys):
    with pytest.raises(SystemExit) as stopped, last_net(debug=False):
        raise ZeroDivisionError("division by\nzero")
    said = capsys.readouterr().err
    log = default_cache_dir() / "last-error.log"
    assert stopped.value.code == 1
    assert said.count("\n") == 1
    assert said.startswith("error: ZeroDivisionError: division by zero; opmix did not foresee this.")
    assert str(log) in said
    assert "--debug" in said
    assert "Traceback" in log.read_text()


def test_debug_lets_the_traceback_pass():
    with pytest.raises(ZeroDivisionError), last_net(debug=True):
        raise ZeroDivisionError()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(28, "No space left on device"), "error: the disk is full"),
        (MemoryError(), "error: out of memory"),
        (OSError(36, "File name too long", "x" * 300), "File name too long; check the path"),
        (PermissionError(13, "Permission denied", "/somewhere"), "error: /somewhere: Permission denied"),
        (DataError("domain [red] is \ud800"), "error: domain [red] is \\ud800"),
        (ValueError("[/red] :smile: \ud800"), "ValueError: [/red] :smile: \\ud800"),
    ],
)
def test_known_kinds_of_errors_are_told_apart_and_printed_as_they_are(capsys, error, said):
    with pytest.raises(SystemExit) as stopped, last_net(debug=False):
        raise error
    assert stopped.value.code == 1
    assert said in capsys.readouterr().err


def test_the_flag_may_stand_anywhere_and_reaches_no_verb(monkeypatch):
    seen = []
    monkeypatch.setattr(main, "app_of", lambda verbs: lambda arguments, **_: seen.append(arguments))
    monkeypatch.setattr(sys, "argv", ["opmix", "report", "--debug", "x"])
    main.main()
    assert seen == [["report", "x"]]


HOLDING = """
import signal
import time
from pathlib import Path
from opmix.cli.last_net import last_net
from opmix.runs.store import RunStore

signal.signal(signal.SIGINT, signal.default_int_handler)  # a test run in the background ignores it
with last_net(debug=False), RunStore(Path("run")):
    Path("ready").write_text("")
    time.sleep(60)
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_stopped_verb_releases_its_lock_and_says_that_it_resumes(tmp_path, number, code):
    child = subprocess.Popen([sys.executable, "-c", HOLDING], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(child.pid, number)
    _, said = child.communicate(timeout=60)
    assert child.returncode == code
    assert said == f"{STOPPED}\n"
    assert not (tmp_path / "run" / "lock").exists()


def test_the_version_is_an_option():
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("opmix 0.")
