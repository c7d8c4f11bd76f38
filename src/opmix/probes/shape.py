"""A model's shape for the FLOP account."""

from __future__ import annotations

from typing import Any

from opmix.compute.flops import ModelShape
from opmix.models import parameter_counts


def model_shape(model: Any) -> ModelShape:
    """Linear layers, the experts a token visits, and the output head, tied or not."""
    counts = parameter_counts(model)
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0) or 0
    size = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    return ModelShape(
        matmul_parameters=counts.linear + counts.active_experts + counts.head,
        num_layers=config.num_hidden_layers,
        attention_width=heads * size,
    )
