"""Loading, LoRA targets, counts and fingerprints, on real two-layer models."""

import socket
import time

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, BertConfig, BertForMaskedLM, LlamaModel

from opmix.errors import ModelError
from opmix.models import files as model_files
from opmix.models import layers
from opmix.models import load as models
from opmix.probes.settings import reach_notes
from opmix.testing import ARCHITECTURES, tiny_adapter, tiny_model, tiny_tokenizer

IDS = torch.arange(2, 66)[None]


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("arch", ["llama", "gpt2", "qwen2"])
def test_a_saved_model_loads_with_the_same_logits(arch, tmp_path):
    saved = tiny_model(arch)
    saved.save_pretrained(tmp_path)
    loaded = models.load_model(tmp_path, device="cpu")
    assert loaded.dtype == torch.float32
    assert not loaded.training
    assert torch.equal(logits(loaded), logits(saved))
    assert layers.model_fingerprint(loaded) == layers.model_fingerprint(saved)


def test_dtype_is_as_asked(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    assert models.load_model(tmp_path, dtype="bfloat16", device="cpu").dtype == torch.bfloat16
    with pytest.raises(ModelError, match="float16"):
        models.load_model(tmp_path, dtype="float16", device="cpu")


def test_a_tokenizer_loads_and_gets_a_pad_token(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    loaded = models.load_tokenizer(tmp_path)
    assert loaded.pad_token_id == loaded.eos_token_id == 0
    assert loaded.encode("Grüße") == tokenizer.encode("Grüße")


def test_refusals_say_what_to_do(tmp_path):
    with pytest.raises(ModelError, match="does not exist"):
        models.load_model(tmp_path / "nowhere")
    with pytest.raises(ModelError, match=r"no config\.json"):
        models.load_model(tmp_path)
    (tmp_path / "weights.pt").write_bytes(b"x")
    with pytest.raises(ModelError, match="expected a folder"):
        models.load_model(tmp_path / "weights.pt")
    tiny_adapter(tiny_model(), "a").save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="adapter; expected a whole model"):
        models.load_model(tmp_path / "a")


def test_a_masked_language_model_is_refused(tmp_path):
    small = BertConfig(
        vocab_size=64,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        is_decoder=True,
    )
    BertForMaskedLM(small).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="BertForMaskedLM; expected a causal"):
        models.load_model(tmp_path, device="cpu")


def test_a_checkpoint_without_its_head_is_refused(tmp_path):
    LlamaModel(tiny_model().config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"lm_head\.weight"):
        models.load_model(tmp_path, device="cpu")


def test_a_hub_whose_address_nobody_knows_is_not_waited_for(monkeypatch):
    def unknown(*_, **__):
        raise socket.gaierror("Name or service not known")

    def waits(seconds):
        pytest.fail(f"waited {seconds} s")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(model_files, "getproxies", dict)
    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    monkeypatch.setattr(time, "sleep", waits)
    for load in (model_files.load_model_config, models.load_tokenizer, models.load_model):
        with pytest.raises(ModelError, match="neither a folder here nor reachable on the model hub"):
            load("nobody/no-such-model-7")


def test_an_unreachable_hub_name_is_explained(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*_, **__):
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(models.AutoModelForCausalLM, "from_pretrained", offline)
    with pytest.raises(ModelError, match="nor reachable on the model hub"):
        models.load_model("someone/some-model")


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_lora_targets_are_all_linear_layers_but_the_head(arch, tied):
    model = tiny_model(arch, tie_word_embeddings=tied)
    targets = layers.lora_targets(model)
    adapted = {
        name.rpartition(".lora_A")[0].removeprefix("base_model.model.")
        for name, _ in tiny_adapter(model, "a", target_modules=targets).named_parameters()
        if ".lora_A.a." in name
    }
    expected = {
        name
        for name, module in layers.base_modules(model)
        if isinstance(module, torch.nn.Linear | layers.Conv1D) and not name.endswith(("_head", "embed_out"))
    }
    if arch == "qwen2_moe":  # one linear layer with one output that weighs the shared expert: a gate
        expected = {name for name in expected if not name.endswith("shared_expert_gate")}
    assert adapted == expected


def test_ambiguous_short_names_become_full_names():
    model = tiny_model()
    model.model.q_proj = torch.nn.Embedding(3, 4)  # same last name, not to be adapted
    targets = layers.lora_targets(model)
    assert "q_proj" not in targets
    assert "model.layers.1.self_attn.q_proj" in targets
    assert "k_proj" in targets


def test_a_model_without_linear_layers_is_refused():
    model = tiny_model()
    model.model.layers = torch.nn.ModuleList()
    with pytest.raises(ModelError, match="no linear layer"):
        layers.lora_targets(model)


@pytest.mark.parametrize("arch", ["llama", "gpt2", "mixtral", "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_counts(arch, tied):
    model = tiny_model(arch, tie_word_embeddings=tied)
    counts = layers.parameter_counts(model)
    assert counts.total == model.num_parameters()
    assert counts.head == 128 * 32
    assert counts.embedding >= 128 * 32
    rest = counts.total - counts.embedding - counts.linear - counts.experts - (0 if tied else counts.head)
    assert 0 < rest < 2000  # norms, biases, routers
    with_adapter = tiny_adapter(model, "a")
    assert layers.parameter_counts(with_adapter) == counts


def test_shape_gives_the_flops_that_torch_counts():
    model = tiny_model("llama", num_key_value_heads=4)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        logits(model)
    # Some transformers multiply positions by frequencies in a matmul, a table that no layer repeats.
    positions = 2 * IDS.shape[1] * model.config.head_dim // 2
    counted = counter.get_total_flops() - layers.model_shape(model).forward(IDS.shape[1]) * IDS.numel()
    assert counted in (0, positions)


def test_only_active_experts_cost():
    counts = layers.parameter_counts(tiny_model("mixtral"))
    assert counts.active_experts * 2 == counts.experts


def test_fingerprint_sees_one_bit_and_looks_through_adapters():
    model = tiny_model()
    before = layers.model_fingerprint(model)
    assert layers.model_fingerprint(tiny_model()) == before
    assert layers.model_fingerprint(tiny_model().to(torch.bfloat16)) != before
    wrapped = tiny_adapter(model, "a", modules_to_save=["lm_head"])
    assert layers.model_fingerprint(wrapped) == before
    with torch.no_grad():
        weight = wrapped.get_base_model().model.norm.weight
        weight[0] = torch.nextafter(weight[0], torch.tensor(2.0))
    assert layers.model_fingerprint(wrapped) != before


def test_fingerprint_does_not_depend_on_the_chunk(monkeypatch):
    before = layers.model_fingerprint(tiny_model())
    monkeypatch.setattr(layers, "_HASH_CHUNK", 7)
    assert layers.model_fingerprint(tiny_model()) == before


def test_vocabulary_must_fit():
    tokenizer = tiny_tokenizer()
    models.check_vocabulary(tokenizer, tiny_model(vocab_size=len(tokenizer)))
    with pytest.raises(ModelError, match="128 rows"):
        models.check_vocabulary(tokenizer, tiny_model(vocab_size=128))


def test_gguf_needs_its_package(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"")
    monkeypatch.setattr(model_files.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ModelError, match="gguf package"):
        models.load_model(tmp_path / "m.gguf")


def write_gguf(path, model):
    """A tiny llama as llama.cpp's converter lays it out: rotary halves of queries and keys interleaved."""
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_rope_freq_base(10000.0)
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(name[-13:-12])
        if heads and "_proj" in name:
            array = array.reshape(heads, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        short = name.removesuffix(".weight").replace("model.layers.", "blk.")
        for ours, theirs in names.items():
            if short == ours or short.endswith("." + ours):
                short = short.removesuffix(ours) + theirs
                break
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_model_can_be_trained_and_saved(tmp_path):
    model = tiny_model()
    write_gguf(tmp_path / "m.gguf", model)
    loaded = models.load_model(tmp_path, device="cpu")
    assert torch.equal(logits(loaded), logits(model))
    assert not getattr(loaded, "is_quantized", False)
    loaded.train()
    loaded(input_ids=IDS, labels=IDS).loss.backward()
    assert all(p.grad is not None for p in loaded.parameters())
    loaded.save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(models.load_model(tmp_path / "saved", device="cpu")), logits(loaded))


def test_several_gguf_files_are_listed(tmp_path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ModelError, match=r"a\.gguf, b\.gguf"):
        models.load_model(tmp_path)


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
WITHOUT_ATTENTION = {
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1},
    "falcon_mamba": {"state_size": 8},
    "rwkv": {"attention_hidden_size": 32},
}


@pytest.mark.parametrize("arch", WITHOUT_ATTENTION)
def test_models_without_attention_heads_have_a_shape_and_layers_that_peft_takes(arch):
    model = models.empty_model(AutoConfig.for_model(arch, **SMALL, **WITHOUT_ATTENTION[arch]))
    shape = layers.model_shape(model)
    assert (shape.attention_width, shape.num_layers) == (0, 2)
    assert shape.matmul_parameters > 0
    get_peft_model(model, LoraConfig(r=2, target_modules=layers.lora_targets(model), task_type="CAUSAL_LM"))


def test_layers_that_peft_would_trade_for_fused_experts_get_no_adapters():
    ranks = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "first_k_dense_replace": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "n_group": 1, "topk_group": 1}
    model = models.empty_model(AutoConfig.for_model("deepseek_v3", **SMALL, **heads, **experts, **ranks))
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=layers.lora_targets(model), task_type="CAUSAL_LM"))
    assert not wrapped.peft_config["default"].target_parameters
    assert "gate_proj" not in layers.lora_targets(model)


def test_the_share_of_weights_that_probes_reach():
    model = tiny_model("mixtral")
    attention = sum(p.numel() for n, p in model.named_parameters() if "self_attn" in n)
    total = sum(p.numel() for p in model.parameters())
    assert layers.reached_share(model) == pytest.approx(attention / total)
    embedding = model.get_input_embeddings().weight.numel()
    assert layers.reached_share(model, in_full=["embed_tokens"]) == pytest.approx((attention + embedding) / total)
    assert reach_notes(attention / total)[0].startswith("the short trainings change 10% of the weights")
    assert reach_notes(0.7) == []


@pytest.mark.parametrize("name", ["gpu", "~nosuchuser/x", "a\x00b", "", "cuda:x"])
def test_a_device_that_is_none_is_told(name):
    from opmix.models.device import device_named

    with pytest.raises(ModelError, match=r"model.device: .* is no device"):
        device_named(name)
