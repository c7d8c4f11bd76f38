"""Scores: what is compared, how sure it is, and answers that do not depend on the batch."""

import json

import numpy as np
import pytest
import torch

from opmix.data import ChatRows, prepare_domain
from opmix.domain import ChatOptions, Domain, Source
from opmix.errors import ConfigError, DataError
from opmix.mixing.mixture import Mixture
from opmix.scores import EXTRACTORS, extractor_of, score_split, wilson
from opmix.scores.generate import greedy_answers
from opmix.testing import tiny_adapter, tiny_chat_tokenizer, tiny_model
from opmix.training.factory import TrainSpec, default_trainer, run_training
from opmix.training.objectives import SFT
from opmix.training.plan import plan_training

STOP = (0, 513)


class TestExtractors:
    @pytest.mark.parametrize(
        ("name", "answer", "found"),
        [
            ("exact", "  a b \n", "a b"),
            ("exact", " ", None),
            ("number", "5 + 5\n#### 10", "10"),
            ("number", "#### $1,234.50 dollars", "1234.5"),
            ("number", "I say 3, then 4.", "4"),
            ("number", "####\nnothing", None),
            ("number", "It is 18.\n#### 18\n\nQuestion: next one ...\n#### 7", "18"),
            ("number", "\N{MINUS SIGN}3", "-3"),
            ("number", "9007199254740993", "9007199254740993"),
            ("number", "0.10", "0.1"),
            ("number", ".5", "0.5"),
            ("number", "1" * 400, "1" * 400),
            ("first_word", "\n**Maybe**: it", "maybe"),
            ("first_word", "123", None),
            ("json", 'call {"a": [1, {"b": null}]} now', '{"a": [1, {"b": null}]}'),
            ("json", "[1, 2", None),
            ("json", "[see] {}", "{}"),
            (r"regex:\((\w)\)", "(A) no (B)", "B"),
            ("regex:yes|no", "no, yes", "yes"),
            ("regex:x", "y", None),
        ],
    )
    def test_what_counts(self, name, answer, found):
        assert extractor_of(name)(answer) == found

    def test_unknown_ones_are_refused(self):
        with pytest.raises(ConfigError, match=r"extractor 'numbr'.*did you mean 'number'"):
            extractor_of("numbr")
        with pytest.raises(ConfigError, match="no valid regular expression"):
            extractor_of("regex:(")
        assert set(EXTRACTORS) == {"exact", "number", "first_word", "json"}


def test_wilson_covers():
    """At its worst near the ends, where the plain interval fails."""
    rng = np.random.default_rng(0)
    for share in (0.03, 0.5, 0.9):
        draws = rng.binomial(60, share, 2000)
        bounds = np.array([wilson(int(d), 60, level=0.9) for d in range(61)])
        covered = (bounds[draws, 0] <= share) & (share <= bounds[draws, 1])
        assert covered.mean() > 0.86
    assert wilson(0, 20)[0] == 0.0
    assert wilson(20, 20)[1] == pytest.approx(1.0)


@pytest.mark.parametrize("arch", ["llama", *(pytest.param(a, marks=pytest.mark.slow) for a in ("gpt2", "qwen3"))])
def test_an_answer_does_not_depend_on_the_batch_it_is_in(arch):
    model = tiny_model(arch, vocab_size=514).train()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(2, 500, size=n) for n in (3, 30, 11, 7, 19)]
    alone = [greedy_answers(model, [p], stop_ids=STOP, max_new_tokens=8)[0].tolist() for p in prompts]
    for size in (2, 5):
        together = greedy_answers(model, prompts, stop_ids=STOP, max_new_tokens=8, batch_size=size)
        assert [a.tolist() for a in together] == alone
    assert model.training
    with torch.no_grad():
        ids = list(prompts[0])
        for token in alone[0]:
            assert model.eval()(torch.tensor([ids])).logits[0, -1].argmax().item() == token
            ids.append(token)


def test_answers_through_an_adapter():
    model = tiny_adapter(tiny_model(vocab_size=514), "a")
    (answer,) = greedy_answers(model, [np.array([5, 6, 7])], stop_ids=STOP, max_new_tokens=4)
    assert len(answer) <= 4


class TestScoring:
    @pytest.fixture(scope="class")
    def task(self, tmp_path_factory):
        """Four questions with one answer each, over and over."""
        folder, tokenizer = tmp_path_factory.mktemp("task"), tiny_chat_tokenizer()
        rows = [
            {"prompt": f"{q} {i}", "completion": a} for i in range(40) for q, a in (("up", "down"), ("left", "right"))
        ]
        path = folder / "d.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows))
        domain = Domain(name="d", train=Source(paths=(str(path),)), holdout=0.2)
        return prepare_domain(domain, tokenizer, cache_dir=folder / "cache"), tokenizer

    @pytest.mark.slow
    def test_a_model_that_learned_the_task_scores(self, task, tmp_path):
        data, tokenizer = task
        model = tiny_model(vocab_size=len(tokenizer))
        before = score_split(model, tokenizer, data.valid, extractor_of("first_word"), stop_ids=STOP, max_new_tokens=6)
        rows = {"d": ChatRows(data.train, 64, ChatOptions())}
        plan = plan_training(
            rows,
            Mixture.of({"d": 1.0}),
            steps=60,
            seed=0,
            objective=SFT,
            arguments={"per_device_train_batch_size": 8, "learning_rate": 1e-2},
        )
        spec = TrainSpec(
            model=model, dataset=plan.dataset, output_dir=tmp_path, steps=60, seed=0, arguments=plan.arguments
        )
        run_training(default_trainer, spec)
        after = score_split(model, tokenizer, data.valid, extractor_of("first_word"), stop_ids=STOP, max_new_tokens=6)
        assert before.right == 0
        assert after.share > 0.9
        assert after.interval[0] < after.share <= after.interval[1] + 1e-9
        assert after.json()["share"] == after.share
        some = score_split(model, tokenizer, data.valid, extractor_of("exact"), stop_ids=STOP, max_new_tokens=6, num=3)
        assert some.total == 3

    def test_bad_tasks(self, task):
        data, tokenizer = task
        model = tiny_model(vocab_size=len(tokenizer))
        with pytest.raises(DataError, match=r"finds nothing in the reference '(down|right)'"):
            score_split(model, tokenizer, data.valid, extractor_of("number"), stop_ids=STOP, max_new_tokens=6)
        with pytest.raises(DataError, match="leaves room for 300 tokens"):
            score_split(model, tokenizer, data.valid, extractor_of("exact"), stop_ids=STOP, max_new_tokens=300)
