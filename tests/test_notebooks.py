"""The notebooks run from top to bottom, show results, and are kept without outputs."""

import json
import os
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "notebooks"
NOTEBOOKS = sorted(path.name for path in FOLDER.glob("*.ipynb"))


def test_outputs_are_stripped():
    assert len(NOTEBOOKS) == 4
    for name in NOTEBOOKS:
        for cell in json.loads((FOLDER / name).read_text())["cells"]:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == [], name
                assert cell["execution_count"] is None, name


def test_the_first_cell_installs_a_wheel_where_opmix_is_missing(tmp_path, monkeypatch):
    cells = json.loads((FOLDER / "search.ipynb").read_text())["cells"]
    first = "".join(next(cell for cell in cells if cell["cell_type"] == "code")["source"])
    called = []
    monkeypatch.setattr("subprocess.run", lambda command, check: called.append(command))
    monkeypatch.chdir(tmp_path)
    exec(first, {})
    assert called == []  # opmix is here
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match="upload one"):
        exec(first, {})
    (tmp_path / "opmix-0.1.0-py3-none-any.whl").touch()
    exec(first, {})
    assert called == [[sys.executable, "-m", "pip", "install", "--quiet", "opmix-0.1.0-py3-none-any.whl"]]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebooks_run(name, tmp_path, monkeypatch):
    missing = "nbclient and ipykernel are in the extra `docs`; `make docs` installs it"
    pytest.importorskip("ipykernel", reason=missing)
    nbclient = pytest.importorskip("nbclient", reason=missing)
    import nbformat

    for key in ("XDG_CACHE_HOME", "IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        folder = tmp_path / key.lower()
        folder.mkdir()
        monkeypatch.setitem(os.environ, key, str(folder))
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(
        notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert not [output for output in shown if output.output_type == "error"]
    assert any("Token shares" in output.get("data", {}).get("text/html", "") for output in shown)
