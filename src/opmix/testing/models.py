"""Two-layer models of real architectures, a BPE tokenizer and adapters, made on the spot."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from opmix.models.layers import lora_targets
from opmix.testing.texts import toy_documents

_GROUPED: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_PLAIN = {key: value for key, value in _GROUPED.items() if key != "num_key_value_heads"}
_EXPERTS: dict[str, Any] = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": _GROUPED,
    "mistral": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": {**_GROUPED, "head_dim": 8},
    "olmo2": _GROUPED,
    "gemma2": {**_GROUPED, "head_dim": 8},
    "granite": {**_GROUPED, "logits_scaling": 4.0},
    "cohere": {**_GROUPED, "logit_scale": 0.25},
    "gpt_neox": _PLAIN,
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "mixtral": {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2_moe": {**_GROUPED, **_EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 32},
}
"""Settings of the tiny models, by transformers' model type."""


def tiny_model(arch: str = "llama", *, vocab_size: int = 128, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A randomly initialised causal LM with two layers, 32 wide, float32 on the CPU, in eval mode.

    Args:
        arch: One of `ARCHITECTURES`.
        vocab_size: Entries of the token embedding.
        seed: Of the weights; torch's global generator is left as it was.
        overrides: Any setting of that architecture's config, such as `tie_word_embeddings=True`.

    Raises:
        ValueError: Unknown architecture.
    """
    if arch not in ARCHITECTURES:
        raise ValueError(f"arch is {arch!r}; expected one of {', '.join(ARCHITECTURES)}")
    special = {"bos_token_id": None, "eos_token_id": 0, "pad_token_id": 1}
    config = AutoConfig.for_model(arch, **{"vocab_size": vocab_size, **special, **ARCHITECTURES[arch], **overrides})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for name, parameter in model.named_parameters():
            # transformers starts at 0.02: at this width the logits would hardly depend on the input.
            if parameter.ndim >= 2 and "norm" not in name:
                torch.nn.init.normal_(parameter, std=0.15)
    return model.eval()


def tiny_tokenizer(texts: Sequence[str] | None = None, *, vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on `texts` (None: toy text); id 0 is EOS, id 1 is PAD.

    Any text survives encoding and decoding: all 256 bytes are in the vocabulary (so 258 entries at least).
    """
    tokenizer = Tokenizer.from_str(_toy_bpe(vocab_size)) if texts is None else _trained_bpe(texts, vocab_size)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>", clean_up_tokenization_spaces=False
    )


@cache
def _toy_bpe(vocab_size: int) -> str:
    """As tests ask for it again and again: trained once a process, a copy for each."""
    texts = [text for name in ("alpha", "beta", "gamma") for text in toy_documents(name, 40)]
    return _trained_bpe(texts, vocab_size).to_str()


def _trained_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tiny_adapter(model: PreTrainedModel | PeftModel, name: str, seed: int = 0, **lora: Any) -> PeftModel:
    """Put one more LoRA adapter on a model, with *both* factors random: its delta is not zero.

    Args:
        model: A bare model, or one that carries adapters already.
        name: The adapter's name.
        seed: Of the factors; torch's global generator is left as it was.
        lora: Any setting of `LoraConfig`; by default `r` 4, `lora_alpha` 8, `lora_targets(model)`.

    Returns:
        The `PeftModel`; the new adapter is the active one.
    """
    convolution = any(type(module).__name__ == "Conv1D" for module in model.modules())
    settings = {"r": 4, "lora_alpha": 8, "fan_in_fan_out": convolution, "task_type": "CAUSAL_LM", **lora}
    settings.setdefault("target_modules", lora_targets(model))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's remarks on tied embeddings and Conv1D
        if isinstance(model, PeftModel):
            model.add_adapter(name, LoraConfig(**settings))
            model.set_adapter(name)
        else:
            model = get_peft_model(model, LoraConfig(**settings), adapter_name=name)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "lora_" in path and name in path.split("."):
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.copy_(0.1 * noise)
            elif f".modules_to_save.{name}." in path:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(0.05 * noise.to(parameter.dtype))
    return model.eval()


CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""A plain chat template; its two marks are tokens of `tiny_chat_tokenizer`."""


def tiny_chat_tokenizer(*, vocab_size: int = 512, template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """`tiny_tokenizer` with two tokens more, `<|im_start|>` and `<|im_end|>`, and a chat template."""
    tokenizer = tiny_tokenizer(vocab_size=vocab_size)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer
