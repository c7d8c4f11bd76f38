"""A model spread over ranks: what `trainer` may say of it, what transformers is told, what keys know of it, what is refused by name."""

import os

import pytest
from lives import content, facts, stage

from opmix.compute.budget import for_transformers, spread
from opmix.config import parse_config
from opmix.errors import ConfigError, ModelError, StoreError
from opmix.lifecycle.loading import LifecycleConfig
from opmix.lifecycle.steps import chain
from opmix.models.layers import model_fingerprint
from opmix.models.load import load_model
from opmix.models.sharded import (
    check_can_be_sharded,
    in_one_call,
    is_sharded,
    laid_out,
    loading_sharded,
    own_part,
    reshard,
    whole,
)
from opmix.probes.tasks import probe_arguments
from opmix.settings.loading import validated
from opmix.testing import tiny_model
from opmix.training.arguments import checked_arguments, typed_arguments
from opmix.training.factory import quiet
from opmix.training.sharding import accelerate_forgets, check_same_kind

TOLD = {"batch": 8, "fsdp": True, "fsdp_config": {"fsdp_reshard_after_forward": False}}


def test_ranks_are_told_and_one_process_holds_the_whole_model(monkeypatch):
    alone = for_transformers(TOLD)
    assert not spread(TOLD)
    assert not {"fsdp", "fsdp_config"} & alone.keys()
    assert checked_arguments(TOLD) == TOLD
    monkeypatch.setenv("WORLD_SIZE", "2")
    told = for_transformers(TOLD)
    assert spread(TOLD)
    assert told["fsdp"] is True
    assert told["fsdp_config"] == {
        "reshard_after_forward": False,
        "version": 2,
        "state_dict_type": "SHARDED_STATE_DICT",
    }
    assert not spread({"batch": 8})
    assert not {"fsdp", "fsdp_config"} & for_transformers({"batch": 8, "fsdp": False}).keys()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"fsdp": "full_shard auto_wrap"}, "trainer.fsdp: 'full_shard auto_wrap'; expected true or false"),
        ({"fsdp": True, "fsdp_config": "fsdp.json"}, "trainer.fsdp_config: 'fsdp.json'; expected keys and values"),
        ({"fsdp_config": {"version": 2}}, "trainer.fsdp_config: says how, but trainer.fsdp is not set"),
        ({"fsdp": True, "fsdp_config": {"version": 1}}, "trainer.fsdp_config.version: 1; expected 2, or leave it out"),
        ({"fsdp": True, "fsdp_config": {"cpu_offload": True}}, "trainer.fsdp_config.cpu_offload: not passed on"),
        ({"fsdp": True, "fsdp_config": {"state_dict_type": "FULL_STATE_DICT"}}, "expected SHARDED_STATE_DICT"),
        ({"deepspeed": "zero3.json"}, "trainer.deepspeed: opmix does not drive DeepSpeed; expected trainer.fsdp: true"),
    ],
)
def test_what_is_not_passed_on_is_said(arguments, said):
    with pytest.raises(ConfigError, match=said):
        typed_arguments(arguments)


def test_a_launcher_that_spreads_what_the_configuration_does_not_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"trainer.fsdp: the launcher asks for FSDP .* the configuration does not"):
        typed_arguments({"batch": 8})
    assert typed_arguments(TOLD) == TOLD


def test_probes_hear_nothing_of_it():
    assert quiet(TOLD) == {"batch": 8}
    settings = parse_config(search()).probe_settings
    assert probe_arguments(settings, TOLD) == probe_arguments(settings, {"batch": 8})


def search(**changes):
    domains = {"web": "web.jsonl", "code": "code.jsonl"}
    return {"model": "m", "domains": domains, "budget": 10_000, "trainer": {"fsdp": True}, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"probes": {"kind": "full"}}, "probes.kind: needs the whole model in a process"),
        ({"probes": {"modules_to_save": ["lm_head"]}}, "probes.modules_to_save: needs the whole model"),
        ({"executor": {"slots": 2}}, "executor: needs the whole model in a process"),
        ({"objective": "sdft"}, "objective: needs the whole model in a process"),
    ],
)
def test_a_search_says_what_needs_a_whole_model(changes, said):
    parse_config(search())
    parse_config(search(**changes) | {"trainer": {}})
    with pytest.raises(ConfigError, match=said):
        parse_config(search(**changes))


STAGES = (stage("one", 10, domains=["alpha", "beta"], prefix=0.5), stage("two", 6, add=["gamma"]))


def life_of(*stages, **changes):
    return validated(LifecycleConfig, {**content(*stages), **changes})


def test_a_life_has_the_same_steps_however_its_model_is_held():
    trainer = content(*STAGES).get("trainer", {})
    one, two = life_of(*STAGES), life_of(*STAGES, trainer={**trainer, "fsdp": True, "fsdp_config": {"version": 2}})
    assert [s.key for s in chain(one, facts(), 0)] == [s.key for s in chain(two, facts(), 0)]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        ({"optimizer": "continued"}, "stages.1.optimizer: needs the whole model in a process"),
        ({"probes": {"kind": "full"}}, "stages.1.probes.kind: needs the whole model in a process"),
        ({"trainer": {"fsdp": False}}, "stages.1.trainer.fsdp: of a life all stages spread their model, or none"),
    ],
)
def test_a_life_says_what_needs_a_whole_model(second, said):
    trainer = content(*STAGES).get("trainer", {})
    stages = (STAGES[0], {**STAGES[1], **second})
    with pytest.raises(ConfigError, match=said):
        life_of(*stages, trainer={**trainer, "fsdp": True})


def _loads_in_parts() -> bool:
    try:
        loading_sharded()
    except ModelError:
        return False
    return True


@pytest.mark.skipif(_loads_in_parts(), reason="this transformers does")
def test_a_transformers_that_does_not_load_in_parts_is_told():
    with pytest.raises(ModelError, match=r"trainer\.fsdp: this transformers .* expected 5\.23 or newer"):
        check_can_be_sharded(tiny_model())


@pytest.mark.skipif(not _loads_in_parts(), reason="this transformers does not load models in parts")
def test_a_model_without_a_plan_or_with_packed_weights_cannot_be_spread(monkeypatch):
    model = tiny_model()
    check_can_be_sharded(model)
    with pytest.raises(ModelError, match="does not say how the layers of GPT2LMHeadModel are spread"):
        check_can_be_sharded(tiny_model("gpt2"))  # its plan names layers that it does not have
    monkeypatch.setattr(model, "_fsdp_plan", {})
    with pytest.raises(ModelError, match="does not say how the layers of LlamaForCausalLM are spread"):
        check_can_be_sharded(model)
    model.config.quantization_config = {"bits": 4}
    with pytest.raises(ModelError, match="the weights of this LlamaForCausalLM are quantised"):
        check_can_be_sharded(model)


def test_a_gguf_file_is_read_whole(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(ModelError, match=r"gguf|GGUF"):
        load_model(tmp_path / "model.gguf", sharded=True)


def test_of_a_whole_model_all_is_the_identity():
    model = tiny_model()
    weight = model.lm_head.weight
    assert not is_sharded(model)
    assert own_part(weight) is weight is whole(weight)
    factors = weight[:, :2], weight[:2]
    assert all(a is b for a, b in zip(laid_out(weight, *factors), factors, strict=True))
    before = model_fingerprint(model)
    reshard(model)
    assert in_one_call(model, lambda: 3) == 3
    assert model_fingerprint(model) == before


def test_what_a_trainer_tells_accelerate_is_forgotten(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    with accelerate_forgets():
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "ACCELERATE_USE_CPU": "true"}
    assert "ACCELERATE_USE_FSDP" not in os.environ
    assert "FSDP_VERSION" not in os.environ
    assert os.environ["ACCELERATE_USE_CPU"] == "false"


def test_a_stage_goes_on_as_it_was_begun(tmp_path):
    plain, parts = tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"
    plain.mkdir()
    (parts / "pytorch_model_fsdp_0").mkdir(parents=True)
    check_same_kind(plain, spread=False)
    check_same_kind(parts, spread=True)
    for folder, here, said in ((plain, True, "without"), (parts, False, "with")):
        with pytest.raises(StoreError, match=f"this stage was begun {said} a model spread over ranks"):
            check_same_kind(folder, spread=here)
