"""Text of targets that is trained on too is found and told with its share."""

import json
from dataclasses import replace

import pytest

from opmix.data import overlap, prepare_domain
from opmix.data.overlap import TELLING, overlaps, token_overlaps
from opmix.domain import Domain, Source
from opmix.testing import tiny_tokenizer, toy_documents


def domain(folder, name, rows):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row if isinstance(row, dict) else {"text": row}) + "\n" for row in rows))
    source = Source(paths=(str(path),))
    return Domain(name=name, train=source, valid=source)


@pytest.fixture
def texts():
    return [list(toy_documents(name, 30, seed=1)) for name in ("alpha", "beta")]


def test_the_share_of_a_target_that_is_trained_on(tmp_path, texts):
    alpha, beta = texts
    trained = {"web": domain(tmp_path, "web", [*beta, *(f"An opening. {text.upper()}" for text in alpha[:10])])}
    dev = domain(tmp_path, "dev", alpha)
    (found,) = overlaps(trained, {"dev": dev, "other": domain(tmp_path, "other", toy_documents("gamma", 20))})
    assert (found.target, found.domain) == ("dev", "web")
    assert found.share == pytest.approx(len("".join(alpha[:10])) / len("".join(alpha)), abs=0.08)
    assert "target 'dev': at least" in str(found)
    assert "domain 'web'" in str(found)


def test_a_few_words_in_common_are_no_overlap(tmp_path, texts):
    alpha, beta = texts
    assert overlaps({"web": domain(tmp_path, "web", alpha)}, {"dev": domain(tmp_path, "dev", beta)}) == []
    assert 0 < TELLING < 0.05


def test_questions_and_conversations_are_looked_for_too(tmp_path):
    question = "Which of these towns lies on the river that runs past the old mill and down to the sea"
    exam = domain(tmp_path, "exam", [{"question": question, "choices": ["Aldham", "Brey"], "answer": 1}])
    chat = [{"messages": [{"role": "user", "content": question + "?"}, {"role": "assistant", "content": "Brey"}]}]
    (found,) = overlaps({"forum": domain(tmp_path, "forum", chat)}, {"exam": exam})
    assert found.share > 0.5


def test_a_large_domain_is_sampled(tmp_path, texts, monkeypatch):
    alpha, _ = texts
    late = domain(tmp_path, "late", [*toy_documents("beta", 60), *alpha])
    assert overlaps({"late": late}, {"dev": domain(tmp_path, "dev", alpha)})[0].share == pytest.approx(1)
    monkeypatch.setattr(overlap, "_DOMAIN_CHARACTERS", 1000)  # its start alone
    assert overlaps({"late": late}, {"dev": domain(tmp_path, "dev", alpha)}) == []


def test_the_same_is_told_from_tokens_alone(tmp_path, texts):
    """A stream may have no files: documents are read back."""
    alpha, beta = texts
    tokenizer = tiny_tokenizer([*alpha, *beta])
    told = {
        "web": domain(tmp_path, "web", [*beta, *alpha[:10]]),
        "other": domain(tmp_path, "other", beta),
        "dev": domain(tmp_path, "dev", alpha),
    }
    made = {
        n: prepare_domain(replace(d, valid=None, holdout=0.2), tokenizer, cache_dir=tmp_path) for n, d in told.items()
    }
    aim = made.pop("dev")
    dev = {"dev": replace(aim, valid=aim.train)}  # as targets are: all of the file chooses
    (found,) = token_overlaps(made, dev, tokenizer)
    assert (found.target, found.domain) == ("dev", "web")
    assert 0 < found.share < 1
    assert token_overlaps({"other": made["other"]}, dev, tokenizer) == []
