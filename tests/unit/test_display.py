"""`progress="auto"`: something where somebody looks, nothing elsewhere."""

import pytest

from opmix.errors import ConfigError
from opmix.progress import Silent
from opmix.progress.display import Display, shown, table, tell, terminal


@pytest.mark.parametrize("stderr", [True, False])
def test_what_commands_a_terminal_is_written_out(capsys, stderr):
    """Names in somebody's run folder may clear the screen, set the window's title or type for the reader."""
    console = terminal(stderr=stderr)
    shown = table("name")
    shown.add_row("a\x1b]0;title\x07b\x9b2J")
    console.print(shown)
    console.print("whole\x1b[2J\ttext", style="bold red")
    told = "".join(capsys.readouterr())
    assert "a\\x1b]0;title" in told
    assert "whole\\x1b[2J" in told
    console.print("\udcff")  # of a file whose name is no UTF-8
    assert "\\udcff" in "".join(capsys.readouterr())
    assert not set(told) & set("\x1b\x07\x9b")


def test_auto_is_silent_where_nobody_looks(capsys):
    with shown("auto") as progress:
        assert isinstance(progress, Display)
        progress.note("not said")
        with progress.task("work", 2) as advance:
            advance(1, 2)
    assert capsys.readouterr() == ("", "")


def test_auto_speaks_on_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    with shown("auto") as progress:
        progress.note("said")
    assert "said" in capsys.readouterr().err


def test_a_given_display_and_none_are_left_alone():
    mine = Silent()
    with shown(mine) as progress:
        assert progress is mine
    with shown(None) as progress:
        assert progress is None


def test_another_word_is_refused():
    with pytest.raises(ConfigError, match="expected 'auto'"), shown("loud"):
        pass


def test_tables_have_one_style_and_sentences_break_between_words(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    sentence = "a sentence of several words that is longer than the terminal is wide"
    console = terminal()
    tell(console, sentence)
    assert capsys.readouterr().out == sentence + "\n"
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    tell(console, sentence)
    lines = capsys.readouterr().out.splitlines()
    assert [word for line in lines for word in line.split()] == sentence.split()
    assert max(map(len, lines)) <= 40
    shown = table("domain", "share", title="Shares")
    shown.add_row("web", "0.5")
    console.print(shown)
    drawn = capsys.readouterr().out
    assert not set(drawn) & set("│┃|┏└")
    assert all(len(line) <= 40 for line in drawn.splitlines())


def test_bars_of_finished_tasks_go_away_and_leave_no_count_running(monkeypatch):
    monkeypatch.setattr("rich.console.Console.is_terminal", property(lambda self: True))
    with Display() as display:
        with display.task("tokenise [en]", 0) as advance:
            advance(0, 0)
            assert display._bars is not None
            assert [task.description for task in display._bars.tasks] == ["tokenise [en]"]
        with pytest.raises(KeyError), display.task("fails", 1):
            raise KeyError
        assert display._bars.tasks == []
