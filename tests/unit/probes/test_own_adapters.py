"""Adapters that somebody trained: in the weights while a search runs, and back bit for bit."""

import warnings

import pytest
import torch
from consumers import real
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from opmix.errors import ModelError
from opmix.probes.own_adapters import adapters_in_base
from opmix.probes.preserve_state import plain_model
from opmix.testing import tiny_adapter, tiny_model

IDS = torch.arange(2, 34)[None]
KINDS = {
    "lora": {},
    "rslora": {"use_rslora": True},
    "dora": {"use_dora": True},
    "bias": {"bias": "lora_only"},
    "in full": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "q_proj"]},
}


def logits(model):
    with torch.no_grad():
        return model.eval()(input_ids=IDS).logits


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def the_same(one, other):
    return list(one) == list(other) and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)])
def test_inside_it_is_the_merged_model_and_afterwards_the_old_one(kind, dtype):
    model = tiny_adapter(tiny_model(tie_word_embeddings=False).to(dtype), "mine", **KINDS[kind])
    before, told, flags = state(model), logits(model), [p.requires_grad for p in model.parameters()]
    merged = tiny_adapter(tiny_model(tie_word_embeddings=False).to(dtype), "mine", **KINDS[kind]).merge_and_unload()
    with adapters_in_base(model) as plain:
        assert plain_model(plain) is plain
        assert torch.equal(logits(plain), logits(merged))
        assert not torch.equal(logits(plain), logits(tiny_model(tie_word_embeddings=False).to(dtype)))
    assert the_same(state(model), before)
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(logits(model), told)


def test_other_architectures_and_injected_adapters():
    for wanted in (tiny_adapter(tiny_model("gpt2"), "mine"), tiny_adapter(tiny_model(), "mine").get_base_model()):
        before, told = state(wanted), logits(wanted)
        with adapters_in_base(wanted) as plain:
            assert plain_model(plain) is plain
        assert the_same(state(wanted), before)
        assert torch.equal(logits(wanted), told)


def test_it_comes_back_after_an_error_and_after_training_inside():
    model = tiny_adapter(tiny_model(), "mine")
    before = state(model)

    def stopped():
        with adapters_in_base(model) as plain:
            tiny_adapter(plain, "probe")(input_ids=IDS, labels=IDS).loss.backward()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stopped()
    assert the_same(state(model), before)
    assert all(p.grad is None for p in model.parameters())


def test_disabled_and_merged_adapters_are_taken_as_they_act():
    model = tiny_adapter(tiny_model(), "mine")
    with model.disable_adapter(), adapters_in_base(model) as plain:
        assert torch.equal(logits(plain), logits(tiny_model()))
    model.merge_adapter()
    before, told = state(model), logits(model)
    with adapters_in_base(model) as plain:
        assert torch.equal(logits(plain), told)
    assert the_same(state(model), before)


def test_a_model_without_adapters_is_itself():
    model = tiny_model()
    with adapters_in_base(model) as plain:
        assert plain is model


def test_what_cannot_be_in_the_weights_is_refused():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prompts = get_peft_model(tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    with pytest.raises(ModelError, match="PROMPT_TUNING, which change no weights"), adapters_in_base(prompts):
        pass
    quantised = get_peft_model(tiny_model(), LoraConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"))
    layer = next(m for n, m in quantised.named_modules() if n.endswith("q_proj"))
    layer.base_layer.weight = torch.nn.Parameter(layer.base_layer.weight.to(torch.uint8), requires_grad=False)
    with pytest.raises(ModelError, match="quantised weights"), adapters_in_base(quantised):
        pass


@pytest.mark.consumer
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("bits", [4, 8])
def test_a_quantised_base_is_unpacked_meanwhile_and_not_touched(tmp_path, bits):
    real("bitsandbytes")
    tiny_model(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path)
    packing = BitsAndBytesConfig(load_in_4bit=bits == 4, load_in_8bit=bits == 8, bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=packing)
    offered = packed_anew(base, False)  # by what this test itself evaluates
    bare = logits(base)
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM", r=4))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.5)
    before, said = state(model), logits(model)
    kinds = {name: type(module) for name, module in model.named_modules()}
    packed_anew(base, offered)
    with adapters_in_base(model) as plain:
        assert not any("lora" in name for name, _ in plain.named_modules())
        inside = (logits(plain) - said).norm()
        # 8-bit products round their input too: what is unpacked need not, so the two differ by that and no more.
        assert inside < (0.01 if bits == 4 else 0.2) * (said - bare).norm()
        assert plain_model(plain) is plain
    assert packed_anew(base, False) == offered
    assert the_same(state(model), before)
    assert {name: type(module) for name, module in model.named_modules()} == kinds
    assert torch.equal(logits(model), said)
    if bits == 4:
        layer = next(module for name, module in base.named_modules() if name.endswith("q_proj.base_layer"))
        layer.weight.quant_state.packing_format_for_cpu = True
        with pytest.raises(ModelError, match="packed its weights anew"), adapters_in_base(model):
            pass


def packed_anew(model, wanted):
    """Whether bitsandbytes may pack 4-bit weights anew where they are evaluated, as it does on processors with AVX512-BF16; sets it."""
    layers = [module for module in model.modules() if "support_avx512bf16_for_cpu" in vars(module)]
    before = any(layer.support_avx512bf16_for_cpu for layer in layers)
    for layer in layers:
        layer.support_avx512bf16_for_cpu = wanted
    return before


@pytest.mark.consumer
@pytest.mark.filterwarnings("default")
def test_what_a_quantised_base_carries_beside_products_is_refused(tmp_path):
    real("bitsandbytes")
    tiny_model().save_pretrained(tmp_path)
    base = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True))
    model = get_peft_model(base, LoraConfig(target_modules=["q_proj"], use_dora=True, task_type="CAUSAL_LM"))
    with pytest.raises(ModelError, match="more than products"), adapters_in_base(model):
        pass
