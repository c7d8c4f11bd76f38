"""One frozen class is the Python API, the schema of a file and the record of a run; YAML without its traps."""

import sys

import pytest
import yaml

from opmix.comparison.config import CompareConfig
from opmix.config import SearchConfig, parse_config
from opmix.domain import Domain, Source
from opmix.errors import ConfigError
from opmix.lifecycle.config import StageConfig
from opmix.lifecycle.loading import LifecycleConfig, checked_trainers
from opmix.probes.settings import ProbeSettings
from opmix.settings import Given, as_json, changed, keys_of, overlaid
from opmix.settings.loading import validated
from opmix.settings.reading import apply_override, parsed_yaml, read_yaml
from opmix.training.arguments import checked_arguments, given_arguments, try_arguments, typed_arguments

SEARCH = {"model": "m", "domains": {"web": "w.txt", "code": {"train": ["a", "b"]}}, "budget": 1000}
STAGES = [
    {"name": "one", "domains": ["web", "code"], "tokens": 4000, "mixture": "uniform"},
    {"name": "two", "tokens": 4000},
]
LIFE = {"model": "m", "domains": {"web": "w.txt", "code": "c.txt"}, "old_mixture": {"web": 0.5, "code": 0.5}}


def life(**changes):
    return validated(LifecycleConfig, {**LIFE, "stages": STAGES, **changes})


def problems_of(kind, content):
    with pytest.raises(ConfigError) as caught:
        validated(kind, content)
    return list(caught.value.problems)


@pytest.mark.parametrize("kind", [SearchConfig, LifecycleConfig, CompareConfig])
def test_what_is_recorded_is_read_again_as_the_same_settings(kind):
    content = SEARCH if kind is SearchConfig else {**LIFE, "stages": STAGES}
    content = {**content, "methods": ["op_mix", "uniform"]} if kind is CompareConfig else content
    made = validated(kind, {**content, "probes": {"steps": 7}, "solve": {"groups": {"g": {"domains": ["web"]}}}})
    recorded = as_json(made)
    assert set(recorded) == set(keys_of(kind))
    assert recorded["probes"]["steps"] == 7
    assert validated(kind, recorded) == made


def test_a_domain_of_a_file_is_the_librarys_domain():
    config = parse_config(SEARCH)
    assert config.domains["web"] == Domain(name="web", train=Source(paths=("w.txt",)))
    assert config.domains["code"].train.paths == ("a", "b")
    assert "name" not in as_json(config)["domains"]["web"]
    given = validated(SearchConfig, {**SEARCH, "domains": config.domains})
    assert given == config


def test_what_only_code_sets_is_no_key_of_a_file():
    inside = {"train": "w.txt", "chat": {"template": "{{ x }}"}}
    assert problems_of(SearchConfig, {**SEARCH, "domains": {"web": inside, "code": "c"}}) == [
        "domains.web.chat.template: unknown key; did you mean 'truncate'?"
    ]


def test_all_problems_come_at_once_with_their_place():
    content = {**SEARCH, "probes": {"stps": 3, "rank": -1}, "sdft": {"demonstration": "hello"}, "buget": 3}
    content["domains"] = {**SEARCH["domains"], "no good": "x"}
    found = problems_of(SearchConfig, content)
    assert "probes.stps: unknown key; did you mean 'steps'?" in found
    assert "probes.rank: Input should be greater than 0 (got -1)" in found
    assert "sdft.demonstration: has no {prompt}; expected {prompt} and {demonstration}" in found
    assert "buget: unknown key; did you mean 'budget'?" in found
    assert any("domain name 'no good'" in problem for problem in found)


def test_domains_that_case_alone_tells_apart_are_an_error():
    domains = {"web": "a.jsonl", "Web": "b.jsonl", "code": "c.jsonl"}
    (problem,) = problems_of(SearchConfig, {**SEARCH, "domains": domains})
    assert problem.startswith("domains.Web: differs from 'web' by upper and lower case alone")


@pytest.mark.parametrize("text", ["500M", "5e8", 500_000_000, 5e8, "0.5B", "500_000k"])
def test_budgets_as_people_write_them(text):
    for budget in (text, {"tokens": text}):
        assert parse_config({**SEARCH, "budget": budget}).budget.tokens == 500_000_000


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value):
    assert problems_of(SearchConfig, {**SEARCH, "solve": {"kl": value}})[0].startswith("solve.kl: ")


def test_a_typo_in_life_wide_settings_is_an_error():
    assert problems_of(LifecycleConfig, {**LIFE, "stages": STAGES, "solve": {"floors": {"wbe": 0.5}}}) == [
        "solve.floors.wbe: unknown domain; did you mean 'web'?"
    ]
    assert problems_of(LifecycleConfig, {**LIFE, "stages": STAGES, "search": {}}) == [
        f"search: unknown key; expected one of {sorted(keys_of(LifecycleConfig))}"
    ]


def test_a_stages_own_settings_are_checked_when_the_file_is_read():
    stages = [STAGES[0], {**STAGES[1], "probes": {"stps": 5}, "solve": {"kl": -1}, "decision": {"draws": 2.5}}]
    found = problems_of(LifecycleConfig, {**LIFE, "stages": stages})
    assert "stages.1.probes.stps: unknown key; did you mean 'steps'?" in found
    assert any(problem.startswith("stages.1.solve.kl: ") for problem in found)
    assert any(problem.startswith("stages.1.decision.draws: ") for problem in found)


def test_a_stages_own_settings_lie_over_the_lifes():
    config = life(probes={"steps": 9, "rank": 4}, trainer={"learning_rate": 1e-3, "weight_decay": 0.1})
    two = changed(config.stages[1], probes=Given(rank=2), trainer=Given(learning_rate=2e-3))
    told = config.settings_of(two, ("web", "code"))
    assert (told.probes.steps, told.probes.rank) == (9, 2)
    assert told.trainer == {"learning_rate": 2e-3, "weight_decay": 0.1}
    assert overlaid(two, {"probes": Given(steps=3)}).probes == {"rank": 2, "steps": 3}
    assert overlaid(StageConfig(name="a", tokens=1), {"schedule": Given(kind="linear")}).schedule.kind == "linear"
    assert overlaid(ProbeSettings(steps=3), Given(rank=2)) == ProbeSettings(steps=3, rank=2)


# -- YAML ----------------------------------------------------------------------------------------------------------


def test_numbers_with_an_exponent_are_numbers():
    text = "a: 1e-3\nb: 3e6\nc: 1.0e3\nd: -2.5E+4\ne: .5e1\nf: e3\ng: '1e3'\nh: 1_000"
    assert parsed_yaml(text) == {
        "a": 1e-3,
        "b": 3e6,
        "c": 1e3,
        "d": -2.5e4,
        "e": 5.0,
        "f": "e3",
        "g": "1e3",
        "h": 1000,
    }
    content = {"trainer": {}}
    apply_override(content, "trainer.weight_decay=1e-2")
    assert content == {"trainer": {"weight_decay": 0.01}}


def test_keys_given_twice_are_named_with_both_lines(tmp_path):
    file = tmp_path / "s.yaml"
    file.write_text("probes: {steps: 7}\nmodel: m\nprobes: {rank: 8}\ndomains:\n  web: a\n  web: b\n")
    with pytest.raises(ConfigError) as caught:
        read_yaml(file, expected="model")
    assert list(caught.value.problems) == [
        "probes: given twice, in line 1 and in line 3; keep one of them",
        "domains.web: given twice, in line 5 and in line 6; keep one of them",
    ]


def test_aliases_and_levels_have_an_end():
    levels = [f"{c}: &{c} [{', '.join([f'*{b}'] * 10)}]" for b, c in zip("abcdef", "bcdefg", strict=True)]
    bomb = "\n".join(["a: &a [1, 1, 1, 1]", *levels])
    with pytest.raises(ConfigError, match="more than 100,000 values with its aliases written out"):
        parsed_yaml(bomb)
    for text in ("[" * 100 + "]" * 100, "[" * (sys.getrecursionlimit() + 10), "a: &x [*x]"):
        with pytest.raises(ConfigError, match="nested too deeply; expected at most 40 levels"):
            parsed_yaml(text)
    assert parsed_yaml("a: " + "[" * 30 + "1" + "]" * 30)["a"] == parsed_yaml("[" * 30 + "1" + "]" * 30)
    fetched = []
    with pytest.MonkeyPatch.context() as patch:
        whole = yaml.scanner.Scanner.fetch_flow_collection_start
        patch.setattr(
            yaml.scanner.Scanner, "fetch_flow_collection_start", lambda *given: fetched.append(0) or whole(*given)
        )
        with pytest.raises(ConfigError, match="nested too deeply"):
            parsed_yaml("a: " + "[" * 900)
    assert len(fetched) < 60  # not all of them, whose scanning takes the square of their number
    assert parsed_yaml("a: &x {steps: 3}\nb: *x\nc: {<<: *x, rank: 2}")["c"] == {"steps": 3, "rank": 2}


def test_keys_are_printable():
    with pytest.raises(ConfigError, match=r"line 1: key 'a\\x1bb' holds a control character"):
        parsed_yaml('"a\\eb": 1')


# -- trainer arguments -----------------------------------------------------------------------------------------------


def test_arguments_get_the_types_that_transformers_declares():
    given = {"save_steps": 1e3, "learning_rate": "1e-3", "gradient_checkpointing": "yes", "logging_steps": 0.5}
    given |= {"per_device_train_batch_size": 4.0, "run_name": 7, "weight_decay": 0, "lr_scheduler_type": "linear"}
    made = typed_arguments(given)
    assert (made["save_steps"], type(made["save_steps"])) == (1000, int)
    assert (made["learning_rate"], made["gradient_checkpointing"], made["logging_steps"]) == (1e-3, True, 0.5)
    assert (made["per_device_train_batch_size"], made["run_name"], made["weight_decay"]) == (4, "7", 0)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("learning_rate", float("nan"), "expected a number"),
        ("learning_rate", "fast", "expected a number"),
        ("learning_rate", -1, "expected above 0 and at most 100"),
        ("learning_rate", 0, "expected above 0 and at most 100"),
        ("learning_rate", 1e21, "expected above 0 and at most 100"),
        ("learning_rate", 10**400, "expected a number"),
        ("weight_decay", -0.1, "expected at least 0"),
        ("adam_beta1", 1, "expected at least 0 and below 1"),
        ("adam_beta2", 1.5, "expected at least 0 and below 1"),
        ("label_smoothing_factor", 2, "expected at least 0 and below 1"),
        ("max_grad_norm", -1, "expected at least 0"),
        ("logging_steps", 0, "expected above 0"),
        ("dataloader_num_workers", 10**6, "expected at least 0 and at most 1024"),
        ("per_device_train_batch_size", 0, "expected at least 1"),
        ("per_device_train_batch_size", 2.5, "expected a whole number"),
        ("per_device_train_batch_size", "four", "expected a whole number"),
        ("gradient_accumulation_steps", 0, "expected at least 1"),
        ("adam_epsilon", "x", "expected a number"),
        ("adam_epsilon", 0, "expected above 0 and at most 1"),
        ("gradient_checkpointing", "maybe", "expected true or false"),
    ],
)
def test_values_that_cannot_be_are_named(name, value, expected):
    with pytest.raises(ConfigError) as caught:
        typed_arguments({name: value}, "stages.1.trainer")
    assert list(caught.value.problems) == [f"stages.1.trainer.{name}: {value!r}; {expected}"]


@pytest.mark.parametrize(
    "key", ["num_proc", "executor.slots", "probes.rank", "probes.alpha", "solve.kl", "decision.draws"]
)
def test_counts_have_an_end(key):
    content = {"model": "m", "domains": {"a": "a.jsonl", "b": "b.jsonl"}, "budget": 1000}
    apply_override(content, f"{key}=10000000000")
    with pytest.raises(ConfigError, match=rf"{key}: Input should be less than or equal to"):
        parse_config(content)


def test_a_decay_that_leaves_nothing_of_the_weights_is_named():
    with pytest.raises(ConfigError) as caught:
        checked_arguments({"weight_decay": 10, "learning_rate": 0.2})
    assert list(caught.value.problems) == ["trainer.weight_decay: 10 at a learning rate of 0.2; expected less than 5"]
    assert checked_arguments({"weight_decay": 10, "learning_rate": 0.02})["weight_decay"] == 10
    apart = life(trainer={"weight_decay": 10}, stages=[STAGES[0], {**STAGES[1], "trainer": {"learning_rate": 0.2}}])
    with pytest.raises(ConfigError, match=r"^stages\.1\.trainer\.weight_decay: 10 at a learning rate of 0\.2"):
        checked_trainers(apart)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"optim": "nope"}, "nope"),
        ({"optim_args": "momentum"}, "not enough values"),
        ({"lr_scheduler_type": "cosine_with_min_lr"}, "min_lr"),
        ({"lr_scheduler_kwargs": {"no_such": 1}}, "no_such"),
        ({"dataloader_prefetch_factor": 2}, "dataloader_num_workers"),
    ],
)
def test_what_transformers_refuses_is_said_before_any_work(arguments, words):
    with pytest.raises(ConfigError, match=rf"^trainer: transformers refuses these arguments: .*{words}"):
        checked_arguments(arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"label_smoothing_factor": 0.1},
        {"neftune_noise_alpha": 5},
        {"gradient_checkpointing": True},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "adafactor"},
        {"eval_strategy": "steps", "eval_steps": 5, "load_best_model_at_end": True, "save_steps": 5},
        {"push_to_hub": True},
        {"max_grad_norm": 0},
    ],
    ids=lambda given: next(iter(given)),
)
def test_what_training_takes_is_taken(arguments):
    assert checked_arguments(arguments) == arguments


def test_trackers_are_looked_for_where_something_is_reported(monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)
    for check in (checked_arguments, try_arguments):  # a search logs its decision, a life its trainings too
        with pytest.raises(ConfigError, match="pip install wandb"):
            check({"report_to": "wandb"})
    assert checked_arguments({"report_to": "azure_ml"}) == {
        "report_to": "azure_ml"
    }  # transformers' own, of trainings alone


def test_a_trainingarguments_object_gives_what_is_not_its_default(tmp_path):
    from transformers import TrainingArguments

    given = TrainingArguments(output_dir=str(tmp_path), max_steps=7, learning_rate=3e-4, optim="sgd")
    assert given_arguments(given) == {"learning_rate": 3e-4, "optim": "sgd"}
    assert parse_config({**SEARCH, "trainer": given}).trainer == {"learning_rate": 3e-4, "optim": "sgd"}


def test_every_stages_arguments_are_checked_before_the_first_is_trained():
    wrong = life(trainer={"weight_decay": "x"}, stages=[STAGES[0], {**STAGES[1], "trainer": {"learning_rate": -1}}])
    with pytest.raises(ConfigError) as caught:
        checked_trainers(wrong)
    assert list(caught.value.problems) == [
        "trainer.weight_decay: 'x'; expected a number",
        "stages.1.trainer.learning_rate: -1; expected above 0 and at most 100",
    ]
    refused = life(stages=[STAGES[0], {**STAGES[1], "trainer": {"optim": "nope"}}])
    with pytest.raises(ConfigError, match=r"^stages\.1\.trainer: transformers refuses"):
        checked_trainers(refused)
    made = checked_trainers(life(trainer={"warmup_steps": 1e1}))
    assert made.search.trainer == {"warmup_steps": 10}


@pytest.mark.parametrize("value", [0, -1, 2.5, "four", "a\x00b", None, [1], 10**400, float("nan")])
@pytest.mark.parametrize("name", ["per_device_train_batch_size", "gradient_accumulation_steps"])
def test_rows_of_a_step_are_a_whole_number(name, value):
    from opmix.compute.budget import sequences_per_step

    with pytest.raises(ConfigError, match=rf"trainer.{name}: .*expected a whole number from 1"):
        sequences_per_step({name: value})
    assert sequences_per_step({name: 3}) == 3 * (8 if name.startswith("grad") else 1)


@pytest.mark.parametrize(
    "broken",
    [
        {"hidden_size": "big"},
        {"hidden_size": 33, "num_attention_heads": 4},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"num_hidden_layers": [2]},
        {"model_type": "nothing"},
        {"model_type": ["llama"]},
    ],
)
def test_an_architecture_that_cannot_be_is_told(broken):
    from opmix.models.from_scratch import new_model
    from opmix.testing import tiny_tokenizer

    sound = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1}
    with pytest.raises(ConfigError, match=r"architecture: .* cannot be built"):
        new_model({**sound, **broken}, tiny_tokenizer(), 0)


@pytest.mark.parametrize("methods", [[["uniform"]], [None], [{"uniform": {}}], {"uniform": {"settings": [], "x": 1}}])
def test_methods_of_odd_shapes_are_told(methods):
    from opmix.comparison.config import CompareConfig
    from opmix.settings.loading import validated

    life = {"model": "m", "domains": {"a": "a.jsonl", "b": "b.jsonl"}, "stages": [{"name": "one", "tokens": 100}]}
    with pytest.raises(ConfigError, match="methods"):
        validated(CompareConfig, {**life, "methods": methods})


@pytest.mark.parametrize("override", ["a.0.b=1", "a.0.0=1", "a.1.c.d=1", "a.²=1", "a.2=1", "a.-1=1"])
def test_overrides_into_lists_of_values_are_refused(override):
    """Found by fuzzing: an item of a list that is no mapping ended in a TypeError."""
    with pytest.raises(ConfigError, match="--set a"):
        apply_override({"a": [1, {"c": 2.5}]}, override)
