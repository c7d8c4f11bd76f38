"""FLOPs per token of training and evaluating a causal LM.

A multiply-add is two FLOPs. Per token, a weight of a matrix product costs 2 in the forward pass, 2 for the
gradient of its input and 2 for its own gradient: 6 N for full training (Kaplan et al., arXiv 2001.08361). LoRA needs no gradient
of frozen weights: 4 N for the base plus 6 for each adapter weight. Attention adds `2 * 2 * T * width` per layer and token
forward (scores and weighted values, T the sequence length, not halved for causality: that is what dense kernels and torch's counter do).
Embedding look-ups are free, the output head is not. Norms, activations and the softmax are left out (under 2 % from 512 wide).
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ModelShape:
    """What the FLOP count needs to know of a model."""

    matmul_parameters: int
    """Weights used in matrix products, output head included, input embedding not."""
    num_layers: int
    attention_width: int
    """Heads times head size."""

    def attention(self, sequence_length: int) -> float:
        """Forward FLOPs per token of attention itself."""
        return 4.0 * self.num_layers * self.attention_width * sequence_length

    def forward(self, sequence_length: int) -> float:
        """FLOPs per token of evaluating."""
        return 2.0 * self.matmul_parameters + self.attention(sequence_length)

    def train(self, sequence_length: int) -> float:
        """FLOPs per token of full training."""
        return 3.0 * self.forward(sequence_length)

    def train_lora(self, sequence_length: int, adapter_parameters: int) -> float:
        """FLOPs per token of training an adapter on frozen weights."""
        return 4.0 * self.matmul_parameters + 3.0 * self.attention(sequence_length) + 6.0 * adapter_parameters

    def slopes(self, sequence_length: int, adapter_parameters: int) -> float:
        """FLOPs per token of a loss and its slopes along all probes: forward, gradients of activations, two thin products a layer.

        `adapter_parameters` is the sum over the probes.
        """
        return 4.0 * self.matmul_parameters + 3.0 * self.attention(sequence_length) + 2.0 * adapter_parameters
