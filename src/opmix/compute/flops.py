"""FLOPs per token of training and evaluating a causal LM.

A multiply-add is two FLOPs. Per token, a weight of a matrix product costs 2 in the forward pass, 2 for the
gradient of its input and 2 for its own gradient: 6 N for full training (Kaplan et al., arXiv 2001.08361). LoRA needs no gradient
of frozen weights: 4 N for the base plus 6 for each adapter weight. Attention adds `2 * 2 * T * width` per layer and token
forward (scores and weighted values, T the sequence length, not halved for causality: that is what dense kernels and torch's counter do).
Embedding look-ups are free, the output head is not. Norms, activations and the softmax are left out (under 2 % from 512 wide).
Self-distillation: see `ModelShape.distillation`.
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
    head_parameters: int = 0
    """Those of `matmul_parameters` that are the output head, which a pass may apply to some tokens only."""

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

    def distillation(
        self,
        *,
        rows: int,
        prompt: int,
        context: int,
        sampled: int,
        adapter_parameters: int | None = None,
        teacher: ModelShape | None = None,
    ) -> float:
        """FLOPs of one micro-batch of on-policy self-distillation, padding included: `writing`, `teaching` and `learning` of each row.

        Args:
            rows: Conversations.
            prompt: Tokens of the longest prompt.
            context: Tokens of the longest teacher's context.
            sampled: Tokens of the longest answer.
            adapter_parameters: Of the adapter that is trained; None: the whole model is.
            teacher: Of another model that teaches; None: the student's own weights do.
        """
        taught = (teacher or self).teaching(context, sampled, None if teacher else adapter_parameters)
        written = self.writing(prompt, sampled, adapter_parameters)
        return rows * (written + taught + self.learning(prompt, sampled, adapter_parameters))

    def writing(self, prompt: int, sampled: int, adapter_parameters: int | None = None) -> float:
        """FLOPs of a row whose student writes with a cache: (2N + 2a)(P + C - 1) + 2HC + 4Lw(P² + Σ_{j<C}(P + j)).

        N are weights outside the head, H in it, a in the adapter (which every pass applies), w the attention width of L layers, P the
        prompt's tokens and C those that are sampled.
        """
        growing = prompt**2 + (sampled - 1) * prompt + sampled * (sampled - 1) / 2
        applied = 2.0 * (self._body + (adapter_parameters or 0))
        return applied * (prompt + sampled - 1) + 2.0 * self.head_parameters * sampled + self._pairs * growing

    def teaching(self, context: int, sampled: int, adapter_parameters: int | None = None) -> float:
        """FLOPs of a row whose teacher, of this shape, reads context (Q) and answer: (2N + 2a)(Q + C) + 2H(C + 1) + 4Lw(Q + C)²."""
        read = context + sampled
        applied = 2.0 * (self._body + (adapter_parameters or 0))
        return applied * read + 2.0 * self.head_parameters * (sampled + 1) + self._pairs * read**2

    def learning(self, prompt: int, sampled: int, adapter_parameters: int | None = None) -> float:
        """FLOPs of a row whose student learns: 3 times reading P + C; with an adapter 4N + 6a for 6N, and 4H for 6H."""
        each, read = 6.0 if adapter_parameters is None else 4.0, prompt + sampled
        body = (each * self._body + 6.0 * (adapter_parameters or 0)) * read
        return body + each * self.head_parameters * (sampled + 1) + 3.0 * self._pairs * read**2

    @property
    def _body(self) -> int:
        return self.matmul_parameters - self.head_parameters

    @property
    def _pairs(self) -> float:
        return 4.0 * self.num_layers * self.attention_width
