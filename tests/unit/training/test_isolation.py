"""Packed documents do not see each other, or the model is refused before it is trained."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from opmix.errors import ConfigError
from opmix.testing import tiny_model
from opmix.training.isolation import LEAK_EXACT, check_isolation, leak

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
LEAKS = {
    "jamba": {
        **SMALL,
        "num_key_value_heads": 2,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
    },
    "opt": {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    },
    "gpt_oss": {**SMALL, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4},
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "time_step_rank": 4},
}


def other(kind: str):
    torch.manual_seed(0)
    extra = {
        "vocab_size": 128,
        "bos_token_id": None,
        "eos_token_id": 0,
        "pad_token_id": 1,
        "max_position_embeddings": 64,
    }
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **extra, **LEAKS[kind]))


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_models_that_heed_restarting_positions_pass(kind):
    model = tiny_model(kind).train()
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    state = torch.random.get_rng_state()
    assert leak(model) <= LEAK_EXACT
    check_isolation(model)
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(before[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("kind", LEAKS)
def test_models_that_do_not_are_refused_with_the_remedy(kind):
    with pytest.raises(ConfigError, match="packing: false"):
        check_isolation(other(kind))


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "mamba"])
def test_the_table_of_the_docs_says_what_is_tried(kind):
    """`benchmarks/architectures.py` writes it; a few of its rows are made again here."""
    root = Path(__file__).parents[3]
    spec = importlib.util.spec_from_file_location("architectures", root / "benchmarks" / "architectures.py")
    table = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(table)
    (row,) = [line for line in (root / "docs" / "models.md").read_text().splitlines() if line.startswith(f"| {kind} |")]
    torch.manual_seed(0)
    said = table.short(table.tried(lambda: check_isolation(table.tiny(kind, 128))))
    assert row.split(" | ")[2] == said
