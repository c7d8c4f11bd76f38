"""What SECURITY.md excludes is not in the source."""

import ast
from pathlib import Path

import pytest

import opmix

SOURCE = sorted(Path(opmix.__file__).parent.rglob("*.py"))
FORBIDDEN = {
    "eval",
    "exec",
    "compile",
    "os.system",
    "os.popen",
    "pickle.load",
    "pickle.loads",
    "pickle.Unpickler",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
    "joblib.load",
    "marshal.loads",
    "shelve.open",
}


def name_of(function):
    if isinstance(function, ast.Name):
        return function.id
    if isinstance(function, ast.Attribute):
        inside = name_of(function.value)
        return None if inside is None else f"{inside}.{function.attr}"
    return None


def dangerous(text):
    """Calls that run code or read pickles, with their line."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        name = name_of(node.func) or ""
        given = {k.arg: k.value for k in node.keywords}
        loose = name == "torch.load" and not _is(given.get("weights_only"), True)
        pickles = name.endswith("np.load") and _is(given.get("allow_pickle"), True)
        shell = "shell" in given and not _is(given["shell"], False)
        if name in FORBIDDEN or loose or pickles or shell:
            yield f"{node.lineno}: {name}"


def _is(node, value):
    return isinstance(node, ast.Constant) and node.value is value


def test_no_code_is_run_and_no_pickle_read():
    assert len(SOURCE) > 200
    assert [f"{path.name}:{found}" for path in SOURCE for found in dangerous(path.read_text())] == []


@pytest.mark.parametrize(
    "line",
    [
        "eval('1')",
        "torch.load('x')",
        "torch.load('x', weights_only=False)",
        "np.load('x', allow_pickle=True)",
        "subprocess.run('ls', shell=True)",
        "pickle.load(file)",
        "yaml.load(text, Loader=yaml.Loader)",
    ],
)
def test_the_search_finds_what_it_looks_for(line):
    assert list(dangerous(line))
