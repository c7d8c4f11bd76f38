"""Tasks of lm-evaluation-harness as files of questions: converted from task objects, and from a task of one's own."""

import importlib.util
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from opmix.data.choice import iter_questions
from opmix.domain import Source
from opmix.errors import ConfigError, DataError, ModelError
from opmix.scores.task_questions import load_task, task_rows, without_tasks
from opmix.target import Target

HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval is not installed")

DOCS = [{"q": f"Is {i} even?", "options": ["yes", "no"], "right": i % 2} for i in range(6)]


@dataclass
class Config:
    task: str = "made"
    description: str = ""
    target_delimiter: str = " "


@dataclass
class Request:
    args: tuple[Any, ...]


@dataclass
class HandMade:
    """What the conversion asks of a task object, on items made by hand."""

    OUTPUT_TYPE: str = "multiple_choice"
    valid: list[dict[str, Any]] = field(default_factory=lambda: DOCS)
    test: list[dict[str, Any]] = field(default_factory=list)
    multiple_input: bool = False
    config: Config = field(default_factory=Config)

    def has_validation_docs(self):
        return bool(self.valid)

    def has_test_docs(self):
        return bool(self.test)

    def validation_docs(self):
        return self.valid

    def test_docs(self):
        return self.test

    def doc_to_text(self, doc):
        return doc["right"] if self.multiple_input else f"{doc['q']}\nAnswer:"

    def doc_to_choice(self, doc):
        return doc["options"]

    def doc_to_target(self, doc):
        return "so it is" if self.multiple_input else doc["right"]

    def construct_requests(self, doc, ctx):
        if self.multiple_input:
            return [Request((option, " so it is")) for option in doc["options"]]
        made = [Request((ctx, f" {option}")) for option in doc["options"]]
        return [*made, *(Request(("", f" {option}")) for option in doc["options"])]  # mutual information's own


def test_options_and_gold_answers_of_multiple_choice():
    rows = task_rows(HandMade(), 4)
    assert set(rows) == {"valid"}
    assert rows["valid"][1] == {
        "options": [["Is 1 even?\nAnswer:", " yes"], ["Is 1 even?\nAnswer:", " no"]],
        "answer": 1,
    }
    assert len(rows["valid"]) == 4
    described = task_rows(HandMade(config=Config(description="Say yes or no. ")), 1)
    assert described["valid"][0]["options"][0][0].startswith("Say yes or no. Is 0")


def test_contexts_as_options():
    row = task_rows(HandMade(multiple_input=True), 2)["valid"][1]
    assert row == {"options": [["yes", " so it is"], ["no", " so it is"]], "answer": 1}


def test_gold_answers_of_generation_and_test_answers_that_are_kept_secret():
    class Generates(HandMade):
        def doc_to_target(self, doc):
            return [doc["options"][doc["right"]]] if doc["right"] >= 0 else None

    made = Generates(OUTPUT_TYPE="generate_until", test=[{**DOCS[0], "right": -1}])
    rows = task_rows(made, None)
    assert set(rows) == {"valid"}
    assert rows["valid"][1] == {"options": [["Is 1 even?\nAnswer:", " no"]], "answer": 0}
    assert set(task_rows(HandMade(test=DOCS[:2]), None)) == {"valid", "test"}
    with pytest.raises(DataError, match="no item with a gold answer"):
        task_rows(HandMade(valid=[{**DOCS[0], "right": -1}]), None)


@pytest.fixture
def own(tmp_path):
    """A task of one's own, its items in a local file."""
    items = tmp_path / "items.jsonl"
    items.write_text("".join(json.dumps(doc) + "\n" for doc in DOCS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "even.yaml").write_text(
        "task: opmix_even\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{validation: {items}}}}}\n"
        "output_type: multiple_choice\nvalidation_split: validation\n"
        'doc_to_text: "{{q}}\\nAnswer:"\ndoc_to_choice: "{{options}}"\ndoc_to_target: right\n'
        "metric_list: [{metric: acc}]\n"
    )
    return tmp_path


@needs_harness
def test_a_local_task_becomes_a_file_that_is_made_once(own, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(own / "hf"))
    target = Target(task="opmix_even", limit=5, include_path="tasks")
    made = without_tasks({"even": target}, own, own / "cache")["even"]
    assert made.kind == "choice"
    assert made.task is made.limit is made.test is None
    questions = list(iter_questions(made.valid))
    assert [question.answer for question in questions] == [0, 1, 0, 1, 0]
    assert questions[1].options == (("Is 1 even?\nAnswer:", " yes"), ("Is 1 even?\nAnswer:", " no"))
    (own / "items.jsonl").unlink()  # found, not made again
    assert without_tasks({"even": target}, own, own / "cache")["even"] == made
    with pytest.raises(ConfigError, match=r"targets.even.task: task 'opmix_evn' is unknown .* did you mean"):
        without_tasks({"even": Target(task="opmix_evn", include_path="tasks")}, own, own / "cache")


@pytest.mark.skipif(HAS_HARNESS, reason="lm_eval is installed")
def test_without_the_package_the_remedy_is_said(tmp_path):
    with pytest.raises(ModelError, match="pip install lm_eval"):
        without_tasks({"arc": Target(task="arc_easy", limit=3)}, tmp_path, tmp_path)
    with pytest.raises(ModelError, match="pip install lm_eval"):
        load_task("arc_easy", None, where="targets.arc.task")


def test_text_stays_as_it_is(tmp_path):
    target = Target(valid=Source(paths=("dev.jsonl",)))
    assert without_tasks({"dev": target}, Path(), tmp_path) == {"dev": target}
    assert not list(tmp_path.iterdir())
