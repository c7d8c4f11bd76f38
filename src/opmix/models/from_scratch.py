"""A model and a tokenizer from nothing: where a life that starts with pretraining begins."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from opmix.errors import ConfigError
from opmix.models.load import MOST_LAYERS
from opmix.runs.trace import span
from opmix.settings.loading import nearest

END = "<eos>"


@span("train a tokenizer", "tokenising")
def train_tokenizer(
    texts: Iterable[str], vocab_size: int, *, special_tokens: Sequence[str] = (), chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """A byte-level BPE: any text survives it; id 0 ends a document and pads.

    Args:
        texts: To learn merges from; order matters.
        vocab_size: Entries, at least 257 (every byte and the end) and one for each special token.
        special_tokens: Texts that are one token each, such as the marks of a chat template.
        chat_template: Jinja text, for conversations.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END, *special_tokens],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)
    if chat_template is not None:
        made.chat_template = chat_template
    return made


@span("new model", "loading")
def new_model(architecture: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> PreTrainedModel:
    """A randomly initialised causal LM, float32 on the CPU.

    Args:
        architecture: `model_type` (llama, olmo2, qwen3, ...) and any setting of its transformers config; the vocabulary's size and the
            special tokens come from the tokenizer unless given.
        tokenizer: What the model will read.
        seed: Of the weights; torch's global generator is left as it was.

    Raises:
        ConfigError: No such model type, or a setting that its config refuses.
    """
    # A padding id would freeze that row of the embedding; where padding shares the end's token it must learn.
    pad = None if tokenizer.pad_token_id == tokenizer.eos_token_id else tokenizer.pad_token_id
    config = model_config(
        architecture,
        {
            "vocab_size": len(tokenizer),
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": pad,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        except (
            ArithmeticError,
            ValueError,
            TypeError,
            RuntimeError,
            KeyError,
        ) as error:  # sizes that no model can have
            raise _refused(config.model_type, error) from error


def _refused(kind: Any, error: Exception) -> ConfigError:
    """An architecture that transformers cannot build, in its own words without their layout."""
    said = " ".join(str(error).split())[:200]
    return ConfigError(
        f"architecture: {kind!r} cannot be built ({said}); give model_type and the settings of a causal LM"
    )


def model_config(architecture: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    """The transformers config of an architecture; `defaults` (of the tokenizer) hold where it says nothing.

    Raises:
        ConfigError: No such model type, not a causal LM, or a setting that its config refuses.
    """
    settings = dict(architecture)
    kind = settings.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind, **{**defaults, **settings})
        AutoModelForCausalLM._model_mapping[type(config)]
    except Exception as error:  # whatever transformers and its checks of fields raise
        raise _refused(kind, error) from error
    # transformers takes any name; one that it does not know stays behind as an attribute (`rope_theta` and the like do not).
    plain = AutoConfig.for_model(kind)
    unknown = [name for name in settings if hasattr(config, name) and not hasattr(plain, name)]
    if unknown:
        known = list(plain.to_dict())
        raise ConfigError([f"architecture.{n}: {kind} has no such setting{nearest(n, known)}" for n in unknown])
    layers = getattr(config.get_text_config(), "num_hidden_layers", 0)
    too_large = [f"architecture.{n}: {v}; expected at most 2^31 - 1" for n, v in settings.items() if _is_huge(v)]
    if too_large or (isinstance(layers, int) and layers > MOST_LAYERS):  # built one by one, even without weights
        raise ConfigError(too_large or f"architecture: {layers} layers; expected at most {MOST_LAYERS}")
    return config


def _is_huge(value: Any) -> bool:
    return isinstance(value, int) and abs(value) >= 2**31
