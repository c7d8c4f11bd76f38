"""What somebody meets who has just installed opmix."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.cli.main import main

ROOT = Path(__file__).parents[2]
runner = CliRunner()


def opmix(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "opmix", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **environment},
    )


def test_no_arguments_show_where_to_start():
    shown = opmix()
    assert shown.returncode == 0
    for verb in ("demo", "init", "validate", "search"):
        assert f"opmix {verb}" in shown.stdout
    assert "docs/" in shown.stdout
    assert max(map(len, shown.stdout.splitlines())) <= 80
    assert len(shown.stdout.splitlines()) <= 14


@pytest.mark.parametrize(
    ("typed", "meant"), [("serach", "search"), ("vaildate", "validate"), ("docter", "doctor"), ("discovr", "discover")]
)
def test_a_mistyped_verb_gets_the_nearest_one(monkeypatch, capsys, typed, meant):
    monkeypatch.setattr(sys, "argv", ["opmix", typed])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert f"Did you mean '{meant}'" in said
    assert "Traceback" not in said


def test_every_verb_has_help_of_its_own():
    names = [command.name for command in app.registered_commands]
    assert {"init", "validate", "doctor", "discover"} <= set(names)
    for name in names:
        shown = runner.invoke(app, [name, "--help"])
        assert shown.exit_code == 0
        assert len(shown.output.splitlines()) > 5


HEAVY = {"torch", "transformers", "pydantic", "scipy", "sklearn", "pyarrow", "datasets", "matplotlib", "yaml"}


HELPED = f"""
import sys
from opmix.cli.app import app

for verb in ("", "init", "validate", "doctor", "discover", "search"):
    sys.argv = ["opmix", *verb.split(), "--help"]
    try:
        app()
    except SystemExit:
        pass
    # typer itself looks at a verb's parameters with pydantic; our own schema, which costs more, must stay out.
    found = ({HEAVY!r} - {{"pydantic"}} | {{"opmix.config"}} if verb else {HEAVY!r}) & sys.modules.keys()
    assert not found, (verb, found)
"""


def test_help_imports_nothing_heavy():
    subprocess.run([sys.executable, "-c", HELPED], check=True, stdout=subprocess.DEVNULL)


def complete(shell: str, *words: str) -> str:
    """What the shell would be offered for the last of the words; what follows asks through a real one."""
    asked = {
        "_OPMIX_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": " ".join(["opmix", *words]),
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_ARGS": " ".join(["opmix", *words]),
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    done = runner.invoke(app, [], env=asked, prog_name="opmix")
    assert done.exception is None
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_offers_verbs_options_and_choices(shell):
    assert "discover" in complete(shell, "dis")
    assert "search" not in complete(shell, "dis")
    assert "--index-only" in complete(shell, "discover", "--in")
    assert "auto" in complete(shell, "discover", "--domains", "a")
    assert "llamafactory" in complete(shell, "export", "r", "--to", "l")
    assert "number" in complete(shell, "eval", "m", "--extractor", "n")
    assert "mlflow" in complete(shell, "fit", "r.csv", "--from", "m")


@pytest.mark.slow
def test_completion_can_be_installed(tmp_path):
    shown = opmix("--show-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete -o default -F _opmix_completion opmix" in shown.stdout
    done = opmix("--install-completion", "bash", HOME=str(tmp_path), _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert done.returncode == 0, done.stderr
    script = tmp_path / ".bash_completions" / "opmix.sh"
    assert str(script) in (tmp_path / ".bashrc").read_text()
    words = "COMP_WORDS=(opmix val); COMP_CWORD=1; _opmix_completion opmix; echo ${COMPREPLY[@]}"
    shim = tmp_path / "bin" / "opmix"
    shim.parent.mkdir()
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m opmix "$@"\n')
    shim.chmod(0o755)
    path = {**os.environ, "PATH": f"{shim.parent}:{os.environ['PATH']}"}
    real = subprocess.run(
        ["bash", "-c", f"source {script}; {words}"], capture_output=True, text=True, check=True, env=path
    )
    assert real.stdout.strip() == "validate"


@pytest.mark.slow
def test_the_wheel_holds_everything_and_runs_elsewhere(tmp_path):
    pytest.importorskip("hatchling", reason="builds without a network need the build backend here")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "--quiet",
        "-w",
        str(tmp_path),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("opmix-*.whl")
    inside = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "src" / "opmix"
    for path in package.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            assert f"opmix/{path.relative_to(package).as_posix()}" in inside, path
    target = tmp_path / "site"
    install = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--target", str(target), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    where = "import opmix, sys; sys.stdout.write(opmix.__file__)"
    elsewhere = {**os.environ, "PYTHONPATH": f"{target}:{os.environ.get('PYTHONPATH', '').partition(':')[2]}"}
    loaded = subprocess.run(
        [sys.executable, "-c", where], capture_output=True, text=True, check=True, env=elsewhere, cwd=tmp_path
    )
    assert Path(loaded.stdout).is_relative_to(target)
    for command in ([sys.executable, "-m", "opmix"], [sys.executable, str(target / "bin" / "opmix")]):
        shown = subprocess.run(
            [*command, "--help"], capture_output=True, text=True, check=True, env=elsewhere, cwd=tmp_path
        )
        assert "discover" in shown.stdout


def test_extractors_that_are_completed_are_those_there_are():
    from opmix.scores.extract import EXTRACTORS

    (option,) = [p for c in app.registered_commands if c.name == "eval" for p in parameters(c) if p.name == "extractor"]
    assert set(completions(option)) == {*EXTRACTORS, "regex:"}


def parameters(command):
    import typer

    return typer.main.get_command_from_info(command, pretty_exceptions_short=False, rich_markup_mode=None).params


def completions(option):
    return [item.value for item in option.shell_complete(None, "")]


def test_init_says_first_that_the_folder_is_not_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "search.yaml").touch()
    said = runner.invoke(app, ["init", "/nonexistent"])
    assert "/nonexistent: no such folder" in str(said.exception)


def test_shipped_lives_need_no_file_of_ours():
    for file in ("examples/lifecycle.yaml", "examples/smoke/lifecycle.yaml"):
        text = (ROOT / file).read_text()
        assert "shared" not in text
        assert "package://" in text


@pytest.mark.slow
@pytest.mark.parametrize("file", ["examples/lifecycle.yaml", "examples/smoke/lifecycle.yaml"])
def test_shipped_lives_stand_on_what_is_installed(file):
    from opmix.preflight import validate

    assert [check.detail for check in validate(ROOT / file).checks if check.status == "fail"] == []


def test_the_lock_holds_the_versions_of_the_constraints():
    """constraints.lock is what .ci/lock made of constraints.txt; torch and what it needs for CUDA are in neither of them with a hash."""
    versions = dict(re.findall(r"^([A-Za-z0-9_.-]+)==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    pinned = {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in versions.items()}
    lock = (ROOT / "constraints.lock").read_text()
    locked = dict(re.findall(r"^([a-z0-9-]+)==([^\s;]+)", lock, re.MULTILINE))
    assert len(locked) > 100
    assert {n: v for n, v in locked.items() if pinned.get(n, v) != v} == {}
    assert len(re.findall(r"--hash=sha256:[0-9a-f]{64}\b", lock)) >= len(locked)
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [
        x
        for extra in ("demo", "dev", "discover", "gguf", "tensorboard")
        for x in declared["optional-dependencies"][extra]
    ]
    needed = {
        re.match(r"[A-Za-z0-9_.-]+", text)[0].lower().replace("_", "-") for text in [*declared["dependencies"], *extras]
    }
    assert needed - set(locked) == {"torch"}
