"""What a verb or function would have passed over, or have ended in without a word."""

from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from opmix import AskTell
from opmix.cli.app import app
from opmix.cli.values import _ALONE, _NOT_WITH, _ONLY_WITH
from opmix.errors import ConfigError, StoreError

runner = CliRunner()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eval m --domain a.jsonl --num-fewshot 3", "--num-fewshot: says nothing without --tasks"),
        ("eval m --domain a.jsonl --include-path .", "--include-path: says nothing without --tasks"),
        ("eval m --domain a.jsonl --chat-template", "--chat-template: says nothing without --tasks"),
        ("eval m --tasks arc --extractor exact", "--extractor: says nothing without --domain"),
        ("eval m --tasks arc --max-new-tokens 9", "--max-new-tokens: says nothing without --domain"),
        ("eval m --tasks arc --against-stage mid", "--against-stage: says nothing without --against"),
        ("export --to trl --list", "--to: would be passed over beside --list"),
        ("export r --to trl --tokenizer t", "--tokenizer: says nothing without --materialise"),
        ("export r --into t.yaml --out x", "--out: would be passed over beside --into"),
        ("fit t.csv --ratio-prefix r/", "--ratio-prefix: says nothing without --from"),
        ("fit t.csv --metric-prefix r/ --from table", "--metric-prefix: says nothing without --from"),
        ("verify r --max-rounds 2", "--max-rounds: says nothing without --refine"),
        ("discover c --domains 5 --most 9", "--most: would be passed over beside --domains"),
        ("init a b --from t.yaml", "PLACES: would be passed over beside --from"),
        ("init --from t.yaml --target t", "--target: would be passed over beside --from"),
        ("status r --watch --json", "--watch: would be passed over beside --json"),
    ],
)
def test_options_that_would_be_passed_over(line, said):
    with pytest.raises(ConfigError) as refused:
        runner.invoke(app, line.split(), catch_exceptions=False)
    assert said in str(refused.value)
    assert len(refused.value.problems) == 1


def test_all_problems_at_once():
    with pytest.raises(ConfigError) as refused:
        runner.invoke(
            app, ["eval", "m", "--domain", "a", "--num-fewshot", "3", "--against-stage", "x"], catch_exceptions=False
        )
    assert len(refused.value.problems) == 2


@pytest.mark.parametrize(
    "line",
    [
        "fit nowhere.csv --from wandb --ratio-prefix r/",
        "discover nowhere --domains auto --most 9",
        "status nowhere --json",
    ],
)
def test_options_in_good_company_are_let_through(line):
    with pytest.raises(Exception, match="nowhere"):  # refused for what they name, no sooner
        runner.invoke(app, line.split(), catch_exceptions=False)


def test_the_tables_name_verbs_and_options():
    from typer.main import get_command

    verbs = get_command(app).commands
    for verb, pairs in [*_ONLY_WITH.items(), *_NOT_WITH.items()]:
        assert {*pairs, *pairs.values()} <= {parameter.name for parameter in verbs[verb].params}
    for verb, alone in _ALONE.items():
        assert alone in {parameter.name for parameter in verbs[verb].params}


def test_no_tasks_there(tmp_path):
    with pytest.raises(StoreError, match="no tasks were handed out there"):
        runner.invoke(app, ["task", str(tmp_path / "nowhere")], catch_exceptions=False)


def test_names_of_tasks_are_waited_for_with_a_word_at_a_terminal(tmp_path, monkeypatch, capsys):
    from opmix.cli.task import task

    (tmp_path / "tasks").mkdir()
    monkeypatch.setattr("opmix.execution.worker.serve", lambda folder, make: None)
    for terminal, said in ((False, ""), (True, "waiting for names of tasks on standard input")):
        monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda terminal=terminal: terminal))
        task(tmp_path, None, None)
        assert capsys.readouterr().err.startswith(said)
        assert bool(said) == terminal


@pytest.mark.parametrize("argument", ["solve", "decision", "old_mixture"])
def test_settings_that_hold_themselves(tmp_path, argument):
    knot = {}
    knot["a"] = {"b": [knot]}
    with pytest.raises(ConfigError, match="holds itself"):
        AskTell(["a", "b"], budget=1000, out=tmp_path / "run", **{argument: knot})
    assert not (tmp_path / "run").exists()
