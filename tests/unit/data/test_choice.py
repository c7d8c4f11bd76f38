"""Questions with options: read as benchmarks write them, tokenised, and compared as one loss each."""

import json

import numpy as np
import pytest
import torch

from opmix.data import prepare_domain
from opmix.data.choice import ChoiceRows, iter_questions, target_kind
from opmix.data.choice.question import question_of
from opmix.domain import Domain, Source
from opmix.errors import DataError
from opmix.probes.evaluation import evaluate
from opmix.probes.held_out import held_out
from opmix.testing import tiny_model, tiny_tokenizer
from opmix.training.signals import Gradients

MMLU = {"question": "What is two and two?", "subject": "sums", "choices": ["three", "four", "five"], "answer": 1}


@pytest.mark.parametrize(
    ("row", "context", "options", "answer"),
    [
        (MMLU, "Question: What is two and two?\nAnswer:", [" three", " four", " five"], 1),
        ({**MMLU, "answer": "C"}, "Question: What is two and two?\nAnswer:", [" three", " four", " five"], 2),
        ({**MMLU, "answer": "four"}, "Question: What is two and two?\nAnswer:", [" three", " four", " five"], 1),
        (
            {"question": "Q", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "1"},
            "Question: Q\nAnswer:",
            [" x", " y"],
            0,
        ),
        ({"ctx": "She opened ", "endings": ["the door", "and"], "label": "1"}, "She opened", [" the door", " and"], 1),
        ({"options": [["a", " b"], ["", "c"]], "answer": 0}, "a", [" b", "c"], 0),
        (
            {"context": "Ann is ill.", "question": "Who?", "choices": ["Ann", "Bo"], "gold": 0},
            "Ann is ill.\nQuestion: Who?\nAnswer:",
            [" Ann", " Bo"],
            0,
        ),
    ],
)
def test_the_usual_ways_to_write_a_question(row, context, options, answer):
    found = question_of(row, "here")
    assert found.options[0][0] == context
    assert [option for _, option in found.options] == options
    assert found.answer == answer


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "Q", "choices": ["x", "y"]}, "answer: none; expected which of the 2 options"),
        ({"question": "Q", "choices": ["x", "y"], "answer": 2}, "answer: 2; expected"),
        ({"question": "Q", "choices": ["x", "y"], "answer": "D"}, "answer: 'D'"),
        ({"question": "Q", "choices": ["x", "y"], "answer": ""}, "answer: none"),
        ({"question": "Q", "choices": ["x"], "answer": 0}, "options: 1; expected a list of at least two"),
        ({"question": "Q", "answer": 0}, "options: none"),
        ({"text": "Q", "choices": ["x", "y"], "answer": 0}, "no question"),
        ({"question": "Q", "choices": ["x", ""], "answer": 0}, "an option is empty"),
        (["x"], "a JSON list"),
    ],
)
def test_a_row_that_is_no_question_is_told_with_its_place(tmp_path, row, said):
    path = tmp_path / "exam.jsonl"
    path.write_text(json.dumps(MMLU) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(DataError, match=f"exam.jsonl:2: .*{said}|exam.jsonl:2: {said}"):
        list(iter_questions(Source(paths=(str(path),)), domain="exam"))


@pytest.fixture(scope="module")
def exam(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exam")
    rows = [
        {
            "question": f"What is {a} and {b}?",
            "choices": [str(a + b), str(a * b + 1), "nothing at all"][: 2 + b % 2],
            "answer": 0,
        }
        for a in range(8)
        for b in range(4)
    ]
    path = folder / "exam.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer = tiny_tokenizer()
    domain = Domain(name="exam", train=Source(paths=(str(path),)), valid=Source(paths=(str(path),)), holdout=0.3)
    assert target_kind(domain) == "choice"
    made = prepare_domain(
        Domain(name="exam", train=domain.train, valid=domain.valid, holdout=0.3, kind="choice"),
        tokenizer,
        cache_dir=folder / "cache",
    )
    return rows, made, tokenizer


def test_a_question_stays_whole_and_its_right_option_comes_first(exam):
    rows, made, tokenizer = exam
    assert made.train.num_documents + made.test.num_documents == len(rows)
    assert made.test.num_documents > 2
    choices = ChoiceRows(made.valid, 64)
    assert len(choices) == len(rows)
    for index, row in enumerate(rows):
        options = choices.options(index)
        assert len(options) == len(row["choices"])
        ids, labels = options[0]
        assert tokenizer.decode(ids[labels != -100]) == " " + row["choices"][row["answer"]]
        assert tokenizer.decode(ids).endswith("Answer: " + row["choices"][0])
    with pytest.raises(DataError, match="none of 32 questions"):
        ChoiceRows(made.valid, 1)
    short = ChoiceRows(made.valid, 12).options(0)[0]
    assert len(short[0]) == 12  # the start of the context is cut, the option is not
    assert tokenizer.decode(short[0][short[1] != -100]) == " " + rows[0]["choices"][0]


def test_the_loss_of_a_question_is_minus_the_log_softmax_over_its_options(exam):
    rows, made, tokenizer = exam
    model = tiny_model(vocab_size=len(tokenizer))
    chosen = held_out("exam", ChoiceRows(made.valid, 64), num=len(rows), seed=0)
    found = evaluate(model, [chosen], batch_tokens=256)
    choices, wanted = ChoiceRows(made.valid, 64), []
    for index in range(len(rows)):
        sums = []
        for ids, labels in choices.options(index):
            with torch.no_grad():
                logits = model(torch.tensor(ids[None])).logits.log_softmax(-1)[0]
            sums.append(sum(float(logits[t - 1, ids[t]]) for t in range(1, len(ids)) if labels[t] != -100))
        wanted.append(float(np.logaddexp.reduce(sums)) - sums[0])
    np.testing.assert_allclose(found.nll[0][0], wanted, rtol=1e-4)
    assert found.tokens[0].tolist() == [1.0] * len(rows)
    assert found.losses[0, 0] == pytest.approx(np.mean(wanted), rel=1e-4)
    assert np.isnan(found.bits_per_byte).all()  # not known, and so not shown as a number


@pytest.mark.slow
def test_the_gradient_of_questions_is_that_of_their_loss(exam):
    """Along any direction, by what the loss that models are compared by rises there."""
    rows, made, tokenizer = exam
    model, choices = tiny_model(vocab_size=len(tokenizer)).double(), ChoiceRows(made.valid, 64)
    charged = []
    told = Gradients(
        train={"exam": choices},
        held_out={"exam": choices},
        num_rows=len(rows),
        batch_rows=4,
        seed=0,
        document_mask=False,
        charge=charged.append,
    )
    products, norms = told.measure(model, 0)
    assert products[0, 0] == pytest.approx(norms[0] ** 2, rel=1e-5)
    assert sum(charged) > 2 * sum(choices.lengths)
    found = told._gradient(model, choices, "exam", 0)
    held, step = held_out("exam", choices, num=len(rows), seed=0), 1e-4
    ends = []
    for sign in (1, -1, -1):
        with torch.no_grad():
            for weight, slope in zip(model.parameters(), found, strict=True):
                weight += sign * step * slope.double()
        ends.append(float(evaluate(model, [held]).losses[0, 0]))
    assert (ends[0] - ends[2]) / (2 * step) == pytest.approx(norms[0] ** 2, rel=1e-2)


def test_fewer_questions_are_whole_questions(exam):
    rows, made, tokenizer = exam
    chosen = held_out("exam", ChoiceRows(made.valid, 64), num=len(rows), seed=0)
    model = tiny_model(vocab_size=len(tokenizer))
    whole = evaluate(model, [chosen]).nll[0][0]
    np.testing.assert_allclose(evaluate(model, [chosen.first(5)]).nll[0][0], whole[:5], rtol=1e-5)
    np.testing.assert_allclose(evaluate(model, [chosen.thinned(3)]).nll[0][0], whole[::3], rtol=1e-5)
    assert len(chosen.first(5)) == 5


def test_answers_without_alternatives_are_scored_by_their_own_tokens(exam, tmp_path):
    _, _, tokenizer = exam
    path = tmp_path / "gold.jsonl"
    rows = [{"options": [[f"Say {i}.", f" It is {i}."]], "answer": 0} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(paths=(str(path),))
    made = prepare_domain(
        Domain(name="gold", train=source, valid=source, holdout=0.3, kind="choice"), tokenizer, cache_dir=tmp_path
    )
    choices = ChoiceRows(made.valid, 64)
    chosen = held_out("gold", choices, num=20, seed=0)
    found = evaluate(tiny_model(vocab_size=len(tokenizer)), [chosen])
    assert found.tokens[0].sum() == sum((choices.labels(i) != -100).sum() for i in range(20))
    assert found.num_bytes[0].sum() == sum(len(row["options"][0][1]) for row in rows)
    mixed = tmp_path / "mixed.jsonl"
    mixed.write_text(path.read_text() + json.dumps(MMLU) + "\n")
    source = Source(paths=(str(mixed),))
    made = prepare_domain(
        Domain(name="mixed", train=source, valid=source, holdout=0.3, kind="choice"), tokenizer, cache_dir=tmp_path
    )
    with pytest.raises(DataError, match="has one option, others have several"):
        held_out("mixed", ChoiceRows(made.valid, 64), num=21, seed=0)
