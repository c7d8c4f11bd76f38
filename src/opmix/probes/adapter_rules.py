"""Which adapters can be interpolated exactly: plain LoRA, whose delta is linear in its weight."""

from __future__ import annotations

from typing import Any

from peft import LoraConfig
from torch import nn

from opmix.errors import AdapterError

_REFUSED = {
    "use_dora": "DoRA rescales columns by a norm of base plus delta",
    "lora_bias": "a bias per adapter",
    "target_parameters": "adapters on bare parameters, such as fused expert weights",
    "trainable_token_indices": "trained rows that are kept beside the factors",
    "alora_invocation_tokens": "the adapter acts from a token on, so it is no change of a weight",
    "use_qalora": "inputs are pooled before the factors",
    "use_bdlora": "block-diagonal factors",
    "arrow_config": "adapters chosen per token",
    "kasa_config": "singular values between the factors",
    "monteclora_config": "factors drawn at random",
    "layer_replication": "layers repeated, so that one weight has several deltas",
    "megatron_config": "layers of Megatron",
}
_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise that take the adapter's start out of the base weight: every adapter then has its own
base."""


def check_config(config: Any, name: str) -> None:
    """Refuse what is not linear in its weight, by name.

    Raises:
        AdapterError: The adapter is missing, of another tuner, or uses something that `sum_k w_k dW_k`
        cannot express.
    """
    if config is None:
        raise AdapterError(f"adapter {name!r} is not loaded in this model; load it first")
    if not isinstance(config, LoraConfig) or str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise AdapterError(
            f"adapter {name!r} is {type(config).__name__}; expected LoRA, whose delta is linear in its weight"
        )
    used = [f"{key} ({why})" for key, why in _REFUSED.items() if getattr(config, key, None)]
    if config.bias != "none":
        used.append(f"bias={config.bias!r} (trained biases)")
    start = config.init_lora_weights
    if isinstance(start, str) and start.lower().startswith(_MOVES_BASE):
        used.append(f"init_lora_weights={start!r} (it moves the base weights)")
    if used:
        raise AdapterError(
            f"adapter {name!r} uses {', '.join(used)}: it cannot be interpolated exactly; train probes without"
        )


def check_layer(module: Any, name: str, place: str) -> None:
    """Refuse layers whose forward pass is not `(W + s B A) x` for this adapter.

    Raises:
        AdapterError: A merged adapter, a LoRA variant, a bias, or a layer that is neither linear nor an
        embedding.
    """
    kind = type(module).__name__
    if name in module.merged_adapters:
        raise AdapterError(
            f"adapter {name!r} is merged into layer {place}; expected plain base weights; unmerge it first"
        )
    if name in module.lora_variant:
        variant = type(module.lora_variant[name]).__name__
        raise AdapterError(f"adapter {name!r}: layer {place} uses {variant}; expected plain LoRA")
    linear = name in module.lora_A and isinstance(module.lora_A[name], nn.Linear)
    if not (linear or name in module.lora_embedding_A) or kind in ("ParamWrapper", "MultiheadAttention"):
        raise AdapterError(f"adapter {name!r}: layer {place} is a {kind}; expected a linear layer or an embedding")
    if linear and module.lora_B[name].bias is not None:
        raise AdapterError(f"adapter {name!r}: layer {place} has a bias of its own; expected lora_bias=False")
