"""`opmix eval`: harness tasks offline, own scores, two models on the same items."""

import importlib.util
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from life_sample import loss, stage
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.data.choice.question import question_of
from opmix.errors import ConfigError, DataError, ModelError
from opmix.lifecycle.evaluation import Wanted, find_model
from opmix.models.load import load_model, load_tokenizer
from opmix.results.files import typed
from opmix.results.life import LifeFile, StageEntry
from opmix.scores.harness import harness_scores
from opmix.scores.paired import TaskScore, bonett_price, paired_difference
from opmix.testing import tiny_chat_tokenizer, tiny_model

runner = CliRunner()
HAS_HARNESS = importlib.util.find_spec("lm_eval") is not None
needs_harness = pytest.mark.skipif(not HAS_HARNESS, reason="lm_eval is not installed")


def score(items, metric="acc"):
    return TaskScore(
        task="t",
        metric=metric,
        value=0.0,
        stderr=None,
        interval=None,
        total=len(items),
        higher_is_better=True,
        details={},
        items=items,
    )


class TestPaired:
    def test_the_interval_covers(self):
        rng = np.random.default_rng(0)
        cells = rng.multinomial(40, [0.15, 0.05, 0.8], 2000)
        bounds = np.array([bonett_price(int(a), int(b), 40) for a, b, _ in cells])
        assert 0.93 < np.mean((bounds[:, 0] <= 0.1) & (bounds[:, 1] >= 0.1)) < 0.99

    def test_only_common_items_count(self):
        found = paired_difference(score({0: 1.0, 1: 1.0, 2: 0.0, 9: 1.0}), score({0: 0.0, 1: 1.0, 2: 0.0}))
        assert (found.total, found.p_value) == (3, 1.0)
        assert found.difference == pytest.approx(1 / 3)
        with pytest.raises(DataError, match="share no item"):
            paired_difference(score({0: 1.0}), score({1: 1.0}))

    def test_values_get_a_t_interval(self):
        found = paired_difference(score({0: 0.5, 1: 2.5, 2: 1.5}), score({0: 0.0, 1: 1.0, 2: 1.0}))
        assert found.p_value is None
        assert found.interval[0] < found.difference < found.interval[1]
        assert found.interval[1] - found.difference == pytest.approx(4.3027 * (1 / 3) ** 0.5 / 3**0.5, rel=1e-4)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run folder with two stages, the last of them in life.json."""
    folder, tokenizer = tmp_path_factory.mktemp("run"), tiny_chat_tokenizer()
    for number, name in enumerate(("base", "mid")):
        path = folder / "seed-0" / f"{number:02d}-{name}" / "model"
        tiny_model(vocab_size=len(tokenizer), seed=number).save_pretrained(path)
        tokenizer.save_pretrained(path)
    lived = [stage(name, 0, {"web": 1.0}, {"web": loss(5.0, 4.0)}, {}, False) for name in ("base", "mid")]
    entries = [typed(StageEntry, entry, folder, nulls=True) for entry in lived]
    LifeFile.of({0: [replace(e, folder=f"seed-0/{i:02d}-{e.name}") for i, e in enumerate(entries)]}).write(folder)
    return folder


@pytest.fixture
def chats(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "chats.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"up {i}", "completion": "down"}) + "\n" for i in range(9)))
    return path


class TestModels:
    def test_of_a_run(self, model, tmp_path):
        assert find_model(str(model)).endswith("01-mid/model")
        assert find_model(str(model), stage="base", seed=0).endswith("00-base/model")
        assert find_model("some/name") == "some/name"
        with pytest.raises(ConfigError, match="those that have one: base, mid"):
            find_model(str(model), stage="late")
        with pytest.raises(ConfigError, match="seed 3"):
            find_model(str(model), seed=3)
        with pytest.raises(ConfigError, match="no run folder"):
            find_model(str(tmp_path), stage="base")

    def test_bad_wishes(self, tmp_path):
        with pytest.raises(ConfigError, match="nothing to ask"):
            Wanted()
        with pytest.raises(ConfigError, match="2 problems"):
            Wanted(domain=tmp_path / "no.jsonl", limit=0)


def test_own_scores_of_two_models(model, chats, tmp_path):
    out = tmp_path / "scores.json"
    arguments = ["eval", str(model), "--domain", str(chats), "--max-new-tokens", "4", "--out", str(out)]
    result = runner.invoke(
        app, [*arguments, "--against", str(model), "--against-stage", "base", "--limit", "5", "--json"]
    )
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    assert content == json.loads(out.read_text())
    assert [m["model"].split("/")[-2] for m in content["models"]] == ["01-mid", "00-base"]
    assert content["models"][0]["scores"][0]["total"] == 5
    (difference,) = content["differences"]
    assert difference["interval"][0] < 0 < difference["interval"][1]
    table = runner.invoke(app, arguments)
    assert "chats" in table.stdout
    assert "9" in table.stdout


@pytest.mark.skipif(HAS_HARNESS, reason="lm_eval is installed")
def test_without_the_package():
    with pytest.raises(ModelError, match="pip install lm_eval"):
        harness_scores(tiny_model(), None, ["arc_easy"])


MC = """
task: toy_mc
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/mc.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list: [{{metric: acc}}]
"""
GEN = """
task: toy_gen
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/gen.jsonl}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


@needs_harness
class TestHarness:
    @pytest.fixture
    def tasks(self, tmp_path, monkeypatch):
        import datasets

        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
        (tmp_path / "mc.yaml").write_text(MC.format(folder=tmp_path))
        (tmp_path / "gen.yaml").write_text(GEN.format(folder=tmp_path))
        choices = [{"question": f"up {i}", "choices": ["down", "left"], "answer": i % 2} for i in range(10)]
        (tmp_path / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in choices))
        asked = [{"question": f"up {i}", "answer": "down"} for i in range(10)]
        (tmp_path / "gen.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
        return tmp_path

    def test_local_tasks_offline(self, tasks):
        """A choice is the likelier continuation by our own forward pass; nothing global changes."""
        tokenizer = tiny_chat_tokenizer()
        lm = tiny_model(vocab_size=len(tokenizer)).train()
        before = random.getstate(), torch.get_rng_state()
        found = harness_scores(lm, tokenizer, ["toy_mc", "toy_gen"], include_path=tasks, batch_size=4)
        assert random.getstate() == before[0]
        assert torch.equal(torch.get_rng_state(), before[1])
        assert lm.training
        by_metric = {(s.task, s.metric): s for s in found}
        accuracy, exact = by_metric["toy_mc", "acc"], by_metric["toy_gen", "exact_match"]
        assert (exact.value, exact.total) == (0.0, 10)
        lm.eval()
        for i, value in accuracy.items.items():
            totals = [loglikelihood(lm, tokenizer, f"up {i}", f" {word}") for word in ("down", "left")]
            assert value == float(np.argmax(totals) == i % 2)
        assert accuracy.value == np.mean(list(accuracy.items.values()))
        assert accuracy.stderr == pytest.approx((accuracy.value * (1 - accuracy.value) / 9) ** 0.5)
        assert accuracy.interval[0] <= accuracy.value <= accuracy.interval[1]

    def test_from_the_command_line(self, tasks, model):
        arguments = ["eval", str(model), "--tasks", "toy_mc,toy_gen", "--include-path", str(tasks), "--limit", "4"]
        result = runner.invoke(app, [*arguments, "--against", str(model), "--against-stage", "base", "--json"])
        assert result.exit_code == 0, result.output
        content = json.loads(result.stdout)
        assert {(d["task"], d["total"]) for d in content["differences"]} == {("toy_mc", 4), ("toy_gen", 4)}

    def test_bad_tasks(self, tasks):
        tokenizer = tiny_chat_tokenizer()
        lm = tiny_model(vocab_size=len(tokenizer))
        with pytest.raises(ConfigError, match=r"'toy_mcc' is unknown.*did you mean 'toy_mc'"):
            harness_scores(lm, tokenizer, ["toy_mcc"], include_path=tasks)
        (tasks / "mc.jsonl").unlink()
        with pytest.raises(DataError, match="cannot be run"):
            harness_scores(lm, tokenizer, ["toy_mc"], include_path=tasks)


def loglikelihood(lm, tokenizer, question, answer):
    start, whole = tokenizer(question)["input_ids"], tokenizer(question + answer)["input_ids"]
    with torch.no_grad():
        logs = lm(torch.tensor([whole])).logits[0].log_softmax(-1)
    return sum(logs[i - 1, whole[i]].item() for i in range(len(start), len(whole)))


class TestQuestions:
    def test_the_preferred_option_and_its_loss_are_those_of_a_forward_pass(self, model, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        rng, words = random.Random(0), ["up", "down", "left", "right", "seven"]
        rows = [{"question": f"turn {i}?", "choices": rng.sample(words, 3 + i % 2), "answer": i % 3} for i in range(12)]
        exam = tmp_path / "exam.jsonl"
        exam.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = runner.invoke(app, ["eval", str(model), "--domain", str(exam), "--json"])
        assert found.exit_code == 0, found.output
        acc, loss_of = json.loads(found.stdout)["models"][0]["scores"]
        assert (acc["metric"], loss_of["metric"], acc["total"]) == ("acc", "choice loss", 12)
        folder = find_model(str(model))
        language, tokenizer = load_model(folder), load_tokenizer(folder)
        right, losses = [], []
        for row in [question_of(given, "exam") for given in rows]:
            sums = []
            for context, option in row.options:
                ids = torch.tensor([tokenizer(context + option, add_special_tokens=False)["input_ids"]])
                begin = len(tokenizer(context.rstrip(), add_special_tokens=False)["input_ids"])
                with torch.no_grad():
                    logs = torch.log_softmax(language(input_ids=ids).logits[0].double(), dim=-1)
                sums.append(float(sum(logs[i - 1, ids[0, i]] for i in range(begin, ids.shape[1]))))
            right.append(int(np.argmax(sums)) == row.answer)
            losses.append(float(np.logaddexp.reduce(sums) - sums[row.answer]))
        assert acc["value"] == pytest.approx(np.mean(right))
        assert loss_of["value"] == pytest.approx(np.mean(losses), rel=1e-4)
        low, high = acc["interval"]
        assert low <= acc["value"] <= high
