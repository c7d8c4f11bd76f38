"""Causal language models and tokenizers, loaded as opmix uses them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from opmix.errors import ModelError
from opmix.models.device import DtypeName, device_named, resolve_dtype
from opmix.models.files import explain, forget_gguf, locate, reading
from opmix.models.layers import base_model_of
from opmix.models.sharded import check_can_be_sharded, loading_sharded
from opmix.runs.trace import span


def load_model(
    name_or_path: str | Path,
    *,
    dtype: DtypeName = "auto",
    device: str | torch.device | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    attn_implementation: str | None = None,
    sharded: bool = False,
) -> PreTrainedModel:
    """Load a causal language model that can be trained and saved.

    Args:
        name_or_path: Folder of a saved model, a `.gguf` file, a folder with one, or a hub name.
        dtype: `"auto"` is bfloat16 on a GPU that supports it and float32 elsewhere.
        device: None: `default_device()`.
        revision: Commit, branch or tag of a hub name.
        trust_remote_code: Let the hub repository's own code run.
        attn_implementation: `"sdpa"`, `"eager"`, `"flash_attention_2"`...; None: transformers' choice.
        sharded: Every rank reads its part only (FSDP2), onto the device of its own; all ranks call.

    Returns:
        The model on `device`, in eval mode.

    Raises:
        ModelError: Nothing there, not a causal LM, an adapter instead of a model, weights missing from the
            checkpoint, or a GGUF file without the `gguf` package.
    """
    target = device_named(device)
    source, gguf_file = locate(name_or_path)
    given = reading(
        source,
        dtype=resolve_dtype(dtype, target),
        revision=revision,
        trust_remote_code=trust_remote_code,
        attn_implementation=attn_implementation,
        gguf_file=gguf_file,
    )
    if "local_files_only" in given:  # looking for an adapter has arguments of its own
        given["adapter_kwargs"] = {"local_files_only": True}
    if sharded:
        given |= loading_sharded(gguf_file)
    try:
        with span("load a model", "loading"):
            model, report = AutoModelForCausalLM.from_pretrained(source, output_loading_info=True, **given)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # whatever safetensors, torch and transformers raise for damaged files
        raise explain(source, error, "model") from error
    _check_loaded(source, model, report.get("missing_keys") or ())
    if gguf_file is not None:
        forget_gguf(model)
    if sharded:
        return check_can_be_sharded(model).eval()
    return model.to(target).eval()


def load_tokenizer(
    name_or_path: str | Path, *, revision: str | None = None, trust_remote_code: bool = False
) -> PreTrainedTokenizerBase:
    """Load the tokenizer that belongs to `load_model(name_or_path)`, or one saved alone; a missing PAD token becomes EOS.

    Raises:
        ModelError: Nothing there, or no tokenizer among the files.
    """
    source, gguf_file = locate(name_or_path, tokenizer=True)
    given = reading(source, revision=revision, gguf_file=gguf_file, trust_remote_code=trust_remote_code)
    try:
        with span("load a tokenizer", "loading"):
            tokenizer = AutoTokenizer.from_pretrained(source, **given)
    except Exception as error:  # the tokenizers library raises bare ones
        raise explain(source, error, "tokenizer") from error
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


MOST_LAYERS = 10_000


def empty_model(
    config: PreTrainedConfig, *, trust_remote_code: bool = False, attn_implementation: str | None = None
) -> PreTrainedModel:
    """The causal LM of a configuration on the meta device: shapes and names, no numbers, hardly any memory.

    Raises:
        ModelError: The configuration is not that of a causal LM, or has layers without end; or there is no such attention here.
    """
    name = str(config.name_or_path or config.model_type)
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    if isinstance(layers, int) and layers > MOST_LAYERS:  # built one by one, even without weights
        raise ModelError(f"model {name!r} has {layers} layers; expected at most {MOST_LAYERS}; check its config.json")
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    except Exception as error:  # sizes of a configuration that no model can have
        raise explain(name, error, "model") from error
    if attn_implementation is not None:
        try:
            model.set_attn_implementation(attn_implementation)
        except Exception as error:  # unknown, not of this model, or its package is missing: each raises another kind
            said = " ".join(str(error).split())[:200]
            raise ModelError(
                f"model.attn_implementation: {attn_implementation!r} cannot be had ({said}); expected 'sdpa', 'eager' "
                "or one that is installed; leave it out"
            ) from error
    _check_loaded(name, model, ())
    return model


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """Refuse a tokenizer whose ids the model's embedding does not have.

    Raises:
        ModelError: The tokenizer is not this model's.
    """
    rows = int(base_model_of(model).get_input_embeddings().weight.shape[0])
    highest = max(tokenizer.get_vocab().values(), default=-1)
    if highest >= rows:
        raise ModelError(
            f"the tokenizer's ids go up to {highest}, the model's embedding has {rows} rows; expected the "
            "tokenizer that the model was trained with (or resize the model's embedding first)"
        )


def _check_loaded(source: str, model: PreTrainedModel, missing: Any) -> None:
    architectures = getattr(model.config, "architectures", None) or ()
    masked = [name for name in architectures if name.endswith("ForMaskedLM")]
    if masked or getattr(model.config, "is_encoder_decoder", False):
        kind = masked[0] if masked else type(model).__name__
        raise ModelError(f"model {source!r} is a {kind}; expected a causal (decoder-only) language model")
    if missing:
        names = sorted(missing)
        raise ModelError(
            f"model {source!r}: {len(names)} weights are not in the checkpoint, among them {names[0]!r}; "
            "expected a complete causal language model (the missing ones would start at random)"
        )
