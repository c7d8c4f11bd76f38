"""Text, then a skill by SFT, then one by self-distillation, in one life; and a stage's decision verified."""

import importlib.util
import json

import pytest
from lives import ARCHITECTURE, content
from transformers import AutoModelForCausalLM, AutoTokenizer

from opmix.errors import ConfigError, ModelError
from opmix.lifecycle.life import run_life
from opmix.lifecycle.loading import LifecycleConfig
from opmix.mixture_search.verify import verify_run
from opmix.settings.loading import validated
from opmix.testing import CHATML, write_toy_chats, write_toy_domains


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("skills")
    write_toy_domains(folder, ["web"], 80)
    write_toy_chats(folder, {"terse": 1, "wordy": 2}, 60)
    return folder


def life(folder, **changes):
    stages = (
        {"name": "text", "domains": ["web"], "tokens": 2000, "mixture": "uniform"},
        {"name": "terse", "add": ["terse"], "tokens": 600},
        {"name": "wordy", "add": ["wordy"], "tokens": 400, "objective": "sdft"},
    )
    settings = {
        "architecture": {**ARCHITECTURE, "max_position_embeddings": 400},
        "sequence_length": 160,
        "chat_template": CHATML,
        "tokenizer": {"vocab_size": 320, "documents": 30, "special_tokens": ["<|im_start|>", "<|im_end|>"]},
        "domains": {n: {"train": str(folder / f"{n}.jsonl"), "holdout": 0.2} for n in ("web", "terse", "wordy")},
        "evaluation": {"sequences": 4, "tasks": {"terse": {"items": 3, "max_new_tokens": 4}}},
        "cache_dir": str(folder / "cache"),
        "sdft": {"max_new_tokens": 4, "skip_tokens": 0},
    }
    return validated(LifecycleConfig, content(*stages, **{**settings, **changes}))


@pytest.fixture(scope="module")
def lived(folder):
    return run_life(life(folder), out=folder / "run", base=folder)


def test_every_stage_has_the_objective_that_fits_it(lived):
    stages = lived.content["seeds"]["0"]["stages"]
    assert [s["objective"] for s in stages] == ["causal_lm", "sft", "sdft"]
    assert list(stages[2]["mixture"]) == ["web", "terse", "wordy"]
    assert set(stages[2]["forgetting"]) == {"web", "terse"}


def test_budgets_and_shares_are_of_supervised_tokens(lived):
    for stage, wanted in zip(lived.content["seeds"]["0"]["stages"], (2000, 600, 400), strict=True):
        part = stage["parts"][-1]
        assert part["tokens"] == pytest.approx(wanted, rel=0.5)
        assert stage["tokens"] == pytest.approx(wanted, rel=0.5)
    file = next((lived.folder / "steps/seed-0/02-terse").glob("train-*.json"))
    record = json.loads(file.read_text())["result"]
    assert sum(record["shares"].values()) == pytest.approx(1)
    # Rows of conversations hold questions too: more tokens are read than are supervised.
    assert record["amounts"]["tokens"]["training"] > record["supervised_tokens"]


def test_probes_of_a_stage_have_its_objective(lived):
    told = {}
    for stage in ("02-terse", "03-wordy"):
        folder = lived.folder / "seed-0" / stage / "search-0" / "steps"
        told[stage] = json.loads(next(folder.glob("probe-00-*.json")).read_text())["inputs"]["objective"][0]
    assert told == {"02-terse": "sft", "03-wordy": "sdft"}


def test_task_scores_are_beside_the_losses(lived):
    stages = lived.content["seeds"]["0"]["stages"]
    assert stages[0]["scores"] == {}
    score = stages[2]["scores"]["terse"]
    assert score["before"]["total"] == score["after"]["total"] == 3
    low, high = score["after"]["interval"]
    assert 0 <= low <= score["after"]["share"] <= high <= 1


def test_the_model_talks_with_its_own_template(lived):
    tokenizer = AutoTokenizer.from_pretrained(lived.model())
    model = AutoModelForCausalLM.from_pretrained(lived.model())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1
    assert model.config.vocab_size == len(tokenizer)


def test_living_it_again_does_nothing(lived, folder):
    before = (lived.folder / "events.jsonl").read_text().count('"begin"')
    again = run_life(life(folder), out=lived.folder, base=folder)
    assert again.content == lived.content
    assert (lived.folder / "events.jsonl").read_text().count('"begin"') == before


def test_a_decision_can_be_verified_afterwards(lived, folder):
    made = verify_run(lived.folder / "seed-0" / "02-terse" / "search-0", base=folder)
    assert set(made.metrics) == {"web", "terse"}
    assert (lived.folder / "seed-0/02-terse/search-0/verification.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages": [{"name": "a", "domains": ["web", "terse"], "tokens": 500, "objective": "causal_lm"}]},
            "'terse' holds conversations",
        ),
        (
            {"stages": [{"name": "a", "domains": ["web"], "tokens": 500, "mixture": "uniform", "objective": "sft"}]},
            "no domain holds conv",
        ),
        ({"evaluation": {"tasks": {"terse": "no-such"}}}, "extractor 'no-such'"),
        ({"evaluation": {"sequences": 4, "tasks": {"web": "exact"}}}, r"evaluation\.tasks\.web: the domain holds text"),
        ({"chat_template": "missing.jinja"}, r"chat_template: 'missing\.jinja' cannot be read"),
    ],
)
def test_what_cannot_be_is_said(folder, tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        run_life(life(folder, **changes), out=tmp_path / "run", base=folder)


def test_harness_tasks_need_the_package_before_anything_is_trained(folder, tmp_path):
    if importlib.util.find_spec("lm_eval") is not None:
        pytest.skip("lm_eval is installed")
    with pytest.raises(ModelError, match="pip install lm_eval"):
        run_life(life(folder, evaluation={"harness": ["arc_easy"]}), out=tmp_path / "run", base=folder)


def test_harness_tasks_are_scored_after_every_stage(folder, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    rows = [{"question": f"up {i}", "choices": ["down", "left"], "answer": i % 2} for i in range(6)]
    (tmp_path / "mc.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "mc.yaml").write_text(
        f"task: toy_mc\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/mc.jsonl}}}}\n"
        'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\n'
        'doc_to_target: "{{answer}}"\nmetric_list: [{metric: acc}]\n'
    )
    evaluation = {"sequences": 4, "harness": {"tasks": ["toy_mc"], "include_path": str(tmp_path)}}
    stages = [{"name": "text", "domains": ["web"], "tokens": 500, "mixture": "uniform"}]
    lived = run_life(life(folder, evaluation=evaluation, stages=stages), out=tmp_path / "run", base=folder)
    (score,) = lived.content["seeds"]["0"]["stages"][0]["tasks"]
    assert (score["task"], score["metric"], score["total"]) == ("toy_mc", "acc", 6)
    assert 0 <= score["value"] <= 1
