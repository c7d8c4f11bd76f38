"""The documentation's examples run.

Convention, invisible on the page: `<!-- run -->` above a fenced block runs it (`python`, in one namespace a page; `console`, lines
that begin with `opmix`, without a prompt, which would be copied with them), `<!-- file NAME -->` writes it. A page's blocks run in order
in an empty folder.
"""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from typer.testing import CliRunner

DOCS = Path(__file__).parents[1] / "docs"
_BLOCK = re.compile(r"^<!-- (run|file) ?(\S*) -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_MARK = re.compile(r"^<!-- (?:run|file)\b", re.MULTILINE)


class Block(NamedTuple):
    action: str
    name: str
    language: str
    text: str


def blocks(text: str) -> list[Block]:
    found = [Block(*match.groups()) for match in _BLOCK.finditer(text)]
    assert len(found) == len(_MARK.findall(text)), "a mark without a fenced block right below it"
    return found


def execute(block: Block, namespace: dict[str, Any], where: str) -> None:
    if block.action == "file":
        Path(block.name).write_text(block.text)
    elif block.language == "python":
        exec(compile(block.text, where, "exec"), namespace)
    elif block.language == "console":
        from opmix.cli.app import app

        for line in block.text.splitlines():
            program, *arguments = shlex.split(line)
            assert program == "opmix", f"{where}: {line!r}; expected a line that begins with `opmix`"
            result = CliRunner().invoke(app, arguments)
            assert result.exit_code == 0, f"{where}: {line}\n{result.output}\n{result.exception!r}"
    else:
        pytest.fail(f"{where}: a {block.language} block cannot be run")


PAGES = sorted(page.name for page in DOCS.glob("*.md") if _MARK.search(page.read_text()))


def test_there_are_pages_with_examples_that_run():
    assert {"quickstart.md", "forgetting.md", "small-data.md", "does-it-hold.md", "own-loop.md", "fit.md"} <= set(PAGES)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # a reader's session does not turn warnings into errors
@pytest.mark.parametrize("page", PAGES)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks((DOCS / page).read_text()), 1):
        execute(block, namespace, f"docs/{page}, runnable block {number}")


def test_a_broken_example_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    broken = "<!-- run -->\n```{}\n{}\n```\n"
    [wrong] = blocks(broken.format("python", "import opmix; opmix.nothing"))
    with pytest.raises(AttributeError):
        execute(wrong, {}, "here")
    [command] = blocks(broken.format("console", "opmix fit missing.csv"))
    with pytest.raises(AssertionError, match=r"missing\.csv"):
        execute(command, {}, "here")
    with pytest.raises(AssertionError, match="a mark without"):
        blocks("<!-- run -->\n\ntext")
