"""Architectures x {text search, packed conversations, document mask}: works, or what opmix says instead.

    python benchmarks/architectures.py [--only llama,opt] [--write docs/models.md]

Every model is made on the spot from its architecture's own configuration, shrunk to two layers of 32; a text search is a real one of one
step. Packed conversations and document masks stand and fall with the same trial (`opmix.training.isolation`), which runs before training.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"

NAMES = """llama mistral mixtral qwen2 qwen2_moe qwen3 qwen3_moe qwen3_next gemma gemma2 gemma3_text phi phi3 olmo olmo2 olmo3 olmoe
deepseek_v2 deepseek_v3 granite granitemoe granitemoehybrid cohere cohere2 glm glm4 glm4_moe gpt2 gptj gpt_neo gpt_neox gpt_bigcode gpt_oss
starcoder2 stablelm smollm3 falcon mpt bloom opt xglm openai-gpt codegen biogpt ctrl nemotron ernie4_5 exaone4 hunyuan_v1_dense seed_oss
arcee apertus helium jamba bamba zamba2 mamba mamba2 falcon_mamba falcon_h1 rwkv recurrent_gemma xlstm lfm2 minimax dots1"""
"""Model types of transformers whose causal LMs people train."""

SIZES: dict[str, Any] = {
    **dict.fromkeys(
        ("hidden_size", "n_embd", "d_model", "word_embed_proj_dim", "embed_dim", "attention_hidden_size"), 32
    ),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "n_inner", "dff", "d_ff", "ffn_hidden_size", "inner_dim"), 64),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "sliding_window"), 256),
    **dict.fromkeys(
        ("head_dim", "rotary_dim", "qk_rope_head_dim", "v_head_dim", "qk_nope_head_dim", "kv_lora_rank"), 8
    ),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("q_lora_rank", "state_size", "mamba_d_state", "ssm_state_size", "lru_width"), 16),
    **dict.fromkeys(("mamba_d_ssm", "linear_num_value_heads", "linear_num_key_heads", "linear_key_head_dim"), 32),
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "time_step_rank": 4,
    "hidden_size_per_layer_input": 8,
}
OWN: dict[str, dict[str, Any]] = {
    "lfm2": {"block_auto_adjust_ff_dim": False},
    "qwen3_next": {
        "linear_num_value_heads": 4,
        "linear_num_key_heads": 2,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 2, "chunk_size": 16},
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 2,
        "mamba_chunk_size": 16,
    },
    "bamba": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 2,
        "mamba_chunk_size": 16,
        "attn_layer_indices": [1],
    },
    "granitemoehybrid": {
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_n_groups": 2,
        "layer_types": ["mamba", "attention"],
    },
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "deepseek_v2": {"num_key_value_heads": 4},
    "deepseek_v3": {"num_key_value_heads": 4},
    "gptj": {"rotary_dim": 4},
    "codegen": {"rotary_dim": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"], "attention_window_size": 64},
    "xlstm": {"num_heads": 4},
    "gemma3_text": {"layer_types": ["sliding_attention", "full_attention"]},
}


def tiny(kind: str, vocabulary: int) -> Any:
    """A two-layer model of an architecture."""
    from transformers import AutoConfig, AutoModelForCausalLM

    plain = AutoConfig.for_model(kind)
    names = {**getattr(plain, "attribute_map", {})}
    sizes = {key: size for key, size in SIZES.items() if hasattr(plain, key) and getattr(plain, key) is not None}
    sizes = {key: size for key, size in sizes.items() if names.get(key, key) == key or names[key] not in sizes}
    for key in ("layer_types", "layers_block_type", "mlp_layer_types", "no_rope_layers"):
        own = not isinstance(getattr(type(plain), key, None), property)
        if own and isinstance(listed := getattr(plain, key, None), list):
            sizes[key] = listed[:2]
    ends = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1, "vocab_size": vocabulary}
    config = AutoConfig.for_model(kind, **{**sizes, **ends, **OWN.get(kind, {})})
    return AutoModelForCausalLM.from_config(config).eval()


def told(error: BaseException) -> str:
    """One sentence of an error."""
    return re.sub(r"\s+", " ", str(error)).strip()[:180]


def tried(action: Any) -> str:
    """`works`, or what is said instead; a traceback where it is no error of opmix."""
    from opmix.errors import OpMixError

    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            action()
    except OpMixError as error:
        return told(error)
    except Exception as error:
        return f"TRACEBACK {type(error).__name__}: {told(error)}"
    return "works"


def rows(names: list[str], folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Architecture, and how the three things end."""
    import opmix
    from opmix.testing import tiny_tokenizer, write_toy_domains
    from opmix.training.isolation import check_isolation

    tokenizer = tiny_tokenizer()
    write_toy_domains(folder, ["web", "code"], 60)
    domains = {name: {"train": folder / f"{name}.jsonl", "holdout": 0.2} for name in ("web", "code")}
    few = {"sequence_length": 32, "probes": {"steps": 1, "rank": 2}, "proxies": {"eval_sequences": 2}}
    few |= {"decision": {"draws": 5, "verify": False}, "cache_dir": folder / "cache", "law": "log_linear"}
    trainer = {"learning_rate": 1e-3, "per_device_train_batch_size": 2, "use_cpu": True}
    for name in names:
        try:
            model = tiny(name, len(tokenizer))
        except Exception as error:
            yield name, f"not built: {type(error).__name__}: {told(error)}", "", ""
            continue
        search = tried(
            lambda model=model: opmix.search(
                model, tokenizer, domains, budget=5000, trainer=trainer, progress=None, **few
            )
        )
        packed = tried(lambda model=model: check_isolation(model))
        yield name, search, packed, packed


def short(said: str) -> str:
    """A cell of the table."""
    if said == "works":
        return said
    if "lets the conversations" in said:
        return "refused: they would see each other; `packing: false`"
    if "cannot be tried on a packed row" in said:
        return "refused: takes no positions; `packing: false`"
    return said.replace("|", "/")


def table(found: list[tuple[str, str, str, str]]) -> str:
    """Markdown."""
    lines = ["| model type | text search | packed conversations | `document_mask` |", "|---|---|---|---|"]
    for name, *cells in found:
        lines.append(f"| {name} | " + " | ".join(map(short, cells)) + " |")
    return "\n".join(lines)


BEGIN, END = "<!-- architectures -->", "<!-- /architectures -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="model types, separated by commas")
    parser.add_argument("--write", type=Path, help="page whose table is replaced")
    chosen = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    found = []
    with tempfile.TemporaryDirectory() as place:
        for row in rows(chosen.only.split(",") if chosen.only else NAMES.split(), Path(place)):
            print(json.dumps(row), flush=True)
            found.append(row)
    built = [row for row in found if not row[1].startswith("not built")]
    print(table(built))
    if chosen.write is not None:
        text = chosen.write.read_text()
        before, _, rest = text.partition(BEGIN)
        chosen.write.write_text(f"{before}{BEGIN}\n\n{table(built)}\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
