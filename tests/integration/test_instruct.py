"""One search on conversations: probes with the objective of the full run, matched, judged on answers."""

import json

import numpy as np
import pytest

import opmix
from opmix.config import parse_config
from opmix.errors import ConfigError, DataError
from opmix.models.layers import model_fingerprint
from opmix.probes import tasks
from opmix.testing import CHATML, tiny_chat_tokenizer, tiny_model, tiny_tokenizer, write_toy_chats, write_toy_domains

TRAINER = {"learning_rate": 1e-2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module")
def toys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toys")
    files = write_toy_chats(folder, {"terse": 1, "wordy": 2}, 240) | write_toy_domains(folder, ["web"], 120)
    return folder, {name: str(path) for name, path in files.items()}, tiny_chat_tokenizer()


def settings(toys, **changes):
    folder, paths, tokenizer = toys
    base = {
        "domains": paths,
        "budget": 20_000,
        "old_mixture": {"web": 0.5, "terse": 0.5},
        "sequence_length": 192,
        "trainer": TRAINER,
        "probes": {"steps": 4, "rank": 2},
        "proxies": {"eval_sequences": 4},
        "decision": {"draws": 20, "verify": False},
        "cache_dir": str(folder / "cache"),
        "model": tiny_model(vocab_size=len(tokenizer)),
        "tokenizer": tokenizer,
        "objective": "sft",
    }
    return {**base, **changes}


def steps_of(folder):
    return [json.loads(p.read_text())["result"] for p in sorted((folder / "steps").glob("probe-*.json"))]


@pytest.mark.parametrize("objective", ["sft", "sdft"])
def test_a_search_on_conversations_with_text_replayed(toys, tmp_path, monkeypatch, objective):
    chosen = settings(toys, objective=objective, sdft={"max_new_tokens": 6, "skip_tokens": 0})
    held = []
    real = tasks.evaluate
    monkeypatch.setattr(tasks, "evaluate", lambda model, sets, **k: held.append(sets) or real(model, sets, **k))
    before = model_fingerprint(chosen["model"])
    result = opmix.search(**chosen, out=tmp_path)
    assert sum(result.mixture.values()) == pytest.approx(1)
    assert model_fingerprint(chosen["model"]) == before
    # Losses are on answers only; of text, on everything.
    sets = {h.name: h for h in held[0]}
    assert sets["web"].labels is None
    for name in ("terse", "wordy"):
        answers = sets[name].labels != -100
        assert 0.1 < answers.mean() < 0.6
        assert (sets[name].labels[answers] == sets[name].input_ids[answers]).all()
    # Every probe saw the same steps and, within a few rows, the same supervised tokens.
    probes = steps_of(tmp_path)
    assert len(probes) == 3
    supervised = [p["supervised_tokens"] for p in probes]
    assert max(supervised) < 1.12 * min(supervised)
    assert all((p["sampled_tokens"] > 0) == (objective == "sdft") for p in probes)
    assert np.isclose(result.ledger.total("flops", ["probes"]), sum(p["flops"] for p in probes))
    counts = result.counts["terse"]["train"]
    assert result.problem.available_tokens["terse"] <= counts["supervised_tokens"] < counts["tokens"]
    assert result.problem.available_tokens["web"] == result.counts["web"]["train"]["tokens"] // 192 * 192
    # Nothing is done twice; another objective is other work.
    monkeypatch.setattr(tasks, "run_training", lambda *_: pytest.fail("trained again"))
    again = opmix.search(**{**chosen, "model": tiny_model(vocab_size=len(toys[2]))}, out=tmp_path)
    assert again.json()["optimum"] == result.json()["optimum"]
    with pytest.raises(pytest.fail.Exception):
        opmix.search(**{**chosen, "objective": "sdft" if objective == "sft" else "sft"}, out=tmp_path)


def test_what_was_cut_is_reported(toys, tmp_path):
    _, paths, _ = toys
    domains = {**paths, "wordy": {"train": paths["wordy"], "chat": {"truncate": "left"}}}
    result = opmix.search(**settings(toys, domains=domains, sequence_length=144), out=tmp_path)
    said = [n for n in result.notes if n.startswith("wordy: ")]
    assert any("are cut on the left" in n and "longer than 144 tokens" in n for n in said)


class TestBadInput:
    def test_conversations_need_an_objective_for_them(self, toys):
        with pytest.raises(
            ConfigError, match=r"'causal_lm', but domain 'terse' holds conversations; expected 'sft' or 'sdft'"
        ):
            opmix.search(**settings(toys, objective="causal_lm"))

    @pytest.mark.parametrize("objective", ["sft", "sdft"])
    def test_and_the_objective_conversations(self, toys, objective):
        folder, paths, _ = toys
        more = write_toy_domains(folder / "more", ["code"], 120)
        domains = {"web": paths["web"], "code": str(more["code"])}
        with pytest.raises(ConfigError, match="no domain holds conversations"):
            opmix.search(**settings(toys, objective=objective, domains=domains, old_mixture=None))

    def test_no_template(self, toys):
        tokenizer = tiny_tokenizer()
        with pytest.raises(DataError, match=r"has no chat template.*set `model.chat_template`"):
            opmix.search(**settings(toys, tokenizer=tokenizer))

    def test_a_template_from_a_file_or_a_string(self, tmp_path):
        (tmp_path / "chat.jinja").write_text(CHATML)
        for given in ("chat.jinja", CHATML):
            config = parse_config(self.config(chat_template=given))
            assert config.model.template(tmp_path) == CHATML
        with pytest.raises(ConfigError, match=r"model.chat_template: 'none.jinja' cannot be read"):
            parse_config(self.config(chat_template="none.jinja")).model.template(tmp_path)
        assert parse_config(self.config()).model.template(tmp_path) is None

    def test_a_demonstration_without_places(self):
        with pytest.raises(ConfigError, match=r"sdft.demonstration: has no \{demonstration\}"):
            parse_config({**self.config(), "sdft": {"demonstration": "{prompt}"}})

    def test_no_room_for_an_answer(self, toys):
        with pytest.raises(DataError, match=r"with sdft.max_new_tokens 250 is more than the model's 256 positions"):
            opmix.search(**settings(toys, objective="sdft", sdft={"max_new_tokens": 250}))

    def test_nothing_fits(self, toys):
        with pytest.raises(DataError, match=r"none of .* conversations fits into sequence_length 16"):
            opmix.search(**settings(toys, sequence_length=16))

    @staticmethod
    def config(**model):
        return {"model": {"name": "m", **model}, "domains": {"a": "a", "b": "b"}, "budget": {"tokens": 10}}
