"""The script that follows the README word for word: it knows every line of it, and stops where something deviates."""

import sys
from pathlib import Path
from types import SimpleNamespace

import newcomer
import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


def someone(tmp_path, said=""):
    """A newcomer for whom every command succeeds and says `said`; and what they called."""
    called = []

    def call(*words, **_):
        called.append(words)
        return said

    return SimpleNamespace(folder=tmp_path, opmix=call, call=call, make=lambda name: call(["make", name])), called


def test_every_block_of_the_readme_is_followed(monkeypatch, tmp_path):
    who, called = someone(tmp_path)
    monkeypatch.setattr(newcomer, "AFTER", {verb: lambda *_: None for verb in newcomer.AFTER})
    monkeypatch.setattr(newcomer, "MADE", {target: lambda *_: None for target in newcomer.MADE})
    monkeypatch.setattr(newcomer, "follow_python", lambda *_: called.append(("python",)))
    monkeypatch.setattr(newcomer, "links", lambda *_: None)
    monkeypatch.setattr(newcomer, "manners", lambda *_: called.append(("manners",)))
    who.clone = tmp_path
    newcomer.follow(who, README, "", make=list(newcomer.MADE))
    verbs = {words[0] for words in called if isinstance(words[0], str)}
    assert {
        "python",
        "manners",
        "init",
        "validate",
        "search",
        "run",
        "status",
        "verify",
        "export",
        "compare",
        "fit",
    } <= verbs
    assert [list(words[0])[-1] for words in called if isinstance(words[0], list)] == ["demo", "test"]


@pytest.mark.parametrize(
    "text", ["```\nopmix conjure my-data/\n```\n", "```rust\nfn main() {}\n```\n", "```\nmake tea\n```\n"]
)
def test_what_it_does_not_know_is_a_deviation(tmp_path, text):
    who, _ = someone(tmp_path)
    who.clone = tmp_path
    with pytest.raises(newcomer.Deviation, match="nothing here knows how to follow"):
        newcomer.follow(who, text, "")


def test_what_a_command_leaves_and_says_is_held_against_the_readme(tmp_path):
    who, _ = someone(tmp_path, "not much")
    for line in ("opmix validate search.yaml", "opmix compare compare.yaml"):
        with pytest.raises(newcomer.Deviation, match="was not"):
            newcomer.follow_console(who, line)


def test_a_demo_without_a_report_is_a_deviation(tmp_path):
    who, called = someone(tmp_path, "predicted and measured beside uniform")
    who.clone = tmp_path
    with pytest.raises(newcomer.Deviation, match=r"report\.html was not written"):
        newcomer.follow_make(who, "make demo\nmake test\n", ["demo"])
    assert called == [(["make", "demo"],)]


def test_another_exit_code_and_a_traceback_are_deviations(tmp_path):
    who = newcomer.Newcomer.__new__(newcomer.Newcomer)
    who.folder, who.environment = tmp_path, {}
    for script, code in (("raise SystemExit(3)", 0), ("print('Traceback')", 0), ("pass", 1)):
        with pytest.raises(newcomer.Deviation, match="exit code"):
            who.call([sys.executable, "-c", script], code=code)
    with pytest.raises(newcomer.Deviation, match="not over after"):
        who.call([sys.executable, "-c", "import time; time.sleep(60)"], within=0.5)


def test_links_lead_somewhere(tmp_path):
    with pytest.raises(newcomer.Deviation, match=r"docs/nowhere\.md"):
        newcomer.links(tmp_path, "[x](docs/nowhere.md)")
