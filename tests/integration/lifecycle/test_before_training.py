"""What would stop a later stage is said before the first one is trained, by `opmix run` and by `opmix validate` alike."""

import json

import pytest
import yaml
from lives import content, done, stage

from opmix.errors import ConfigError, DataError
from opmix.lifecycle.life import run_life
from opmix.lifecycle.loading import LifecycleConfig
from opmix.preflight import validate
from opmix.settings.loading import validated
from opmix.testing import write_toy_chats

FIRST = stage("one", 8, domains=["alpha", "beta"], mixture="uniform")


def said(toys, out, *stages, **changes):
    """What `run` says, and that nothing was trained; what of it `validate` says."""
    told = content(*stages, cache_dir=str(toys.folder / "data" / "cache"), **changes)
    file = toys.folder / f"{out.name}.yaml"
    file.write_text(yaml.safe_dump(told))
    foretold = [check.detail for check in validate(file).checks if check.status == "fail"]
    with pytest.raises((ConfigError, DataError)) as error:
        run_life(validated(LifecycleConfig, told), out=out, base=toys.folder)
    trained = (
        [step for step in done(out) if "train" in step or "probe" in step] if (out / "events.jsonl").exists() else []
    )
    assert trained == []
    return str(error.value), " ".join(foretold)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({"solve": {"floors": {"alpha": 0.9, "gamma": 0.9}}}, "floor"),
        ({"solve": {"weights": {"alpha": -1, "gamma": 2}}}, "weights"),
        ({"solve": {"loss_limits": {"alpha": -200}}}, "loss_limits"),
        ({"solve": {"kl": float("inf")}}, "kl"),
        ({"trainer": {"learning_rate": "fast"}}, "learning_rate"),
        ({"trainer": {"optim": "nope"}}, "nope"),
        ({"probes": {"target_modules": ["nope"]}}, "'nope' matches no layer"),
        ({"probes": {"modules_to_save": ["nope"]}}, "'nope' matches no layer"),
        ({"solve": {"prior": "current"}}, "no mass on the new domain 'gamma'"),
        ({"solve": {"ceilings": {"gamma": 0.1}, "groups": {"g": {"domains": ["gamma"], "floor": 0.5}}}}, "gamma"),
    ],
)
def test_mistakes_of_the_second_stage(toys, tmp_path, second, words):
    run, foretold = said(toys, tmp_path / "life", FIRST, stage("two", 4, add=["gamma"], **second))
    assert words in run
    assert words in foretold
    assert "stages.1" in run


def test_a_floor_that_only_some_old_mixtures_can_meet_is_left_to_the_stage(toys, tmp_path):
    """What an earlier search will find is not known: alpha may well be most of it."""
    first, second = stage("one", 8, domains=["alpha", "beta"]), stage("two", 4, add=["gamma"])
    file = toys.folder / "floors.yaml"
    floors = {"solve": {"floors": {"alpha": 0.7}}}
    file.write_text(yaml.safe_dump(content(first, {**second, **floors})))
    assert [c.detail for c in validate(file).checks if c.status == "fail"] == []
    file.write_text(yaml.safe_dump(content(FIRST, {**second, **floors})))  # half and half: alpha is never above half
    assert any("alpha" in c.detail for c in validate(file).checks if c.status == "fail")


def test_conversations_that_fit_no_row_are_said_first(toys, tmp_path):
    """Training rows would do; it is the test split whose conversations are all too long."""
    chats = toys.folder / "data" / "chats"
    write_toy_chats(chats, {"talk": 1}, 60)
    rows = [json.loads(line) for line in (chats / "talk.jsonl").read_text().splitlines()]
    long = [{"messages": [{**m, "content": m["content"] * 40} for m in row["messages"]]} for row in rows[:8]]
    (chats / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in long))
    marks = ["<|user|>", "<|assistant|>"]
    template = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{{ eos_token }}{% endfor %}"
    template += "{% if add_generation_prompt %}<|assistant|>{% endif %}"
    domains = {
        **content()["domains"],
        "talk": {"train": str(chats / "talk.jsonl"), "test": str(chats / "long.jsonl"), "holdout": 0.2},
    }
    later = stage("two", 4, add=["talk"], mixture="uniform")
    run, _ = said(
        toys,
        tmp_path / "life",
        FIRST,
        later,
        domains=domains,
        chat_template=template,
        tokenizer={"vocab_size": 300, "documents": 30, "special_tokens": marks},
        sequence_length=128,
        architecture={**content()["architecture"], "max_position_embeddings": 128},
    )
    assert "domain 'talk' test: none of 8 conversations fits into sequence_length 128" in run
