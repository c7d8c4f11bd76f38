"""The loss of a batch without the logits of all its tokens: cross-entropy over chunks of them, each computed again in the backward pass.

Of 2,048 tokens and a vocabulary of 150,000 the logits, their float32 copy and their gradient take 1.2 GB each.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer

from opmix.models.heads import evaluating, separate_head
from opmix.models.layers import base_model_of

BOUND = 1 << 28
"""Tokens times vocabulary of a batch above which it is cut into chunks: 1 GB of logits in float32. Chunks cost time (their logits are
computed twice), so batches that fit are left alone."""
_CHUNK = 1 << 25
"""Logits that exist at once."""
_IGNORED = -100


def chunked_nll(head: nn.Module, states: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Summed nats of the supervised tokens, and how many these are.

    Args:
        head: From hidden states to logits.
        states: (b, T, H) hidden states.
        labels: (b, T); -100 is not supervised. As in transformers, position t predicts label t + 1.
    """
    states, targets = states[:, :-1].flatten(0, 1), labels[:, 1:].flatten().to(states.device)
    kept = targets != _IGNORED
    states, targets = states[kept], targets[kept]
    weight: Any = head.weight
    step, total = max(1, _CHUNK // weight.shape[0]), states.sum() * 0.0
    for start in range(0, len(targets), step):
        part = slice(start, start + step)
        total = total + checkpoint(_summed, head, states[part], targets[part], use_reentrant=False)
    return total, kept.sum()


def _summed(head: nn.Module, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(head(states).float(), targets, reduction="sum")


class ChunkedTrainer(Trainer):
    """`transformers.Trainer` whose training loss is chunked where the logits of a batch would be large.

    It is the model's own loss up to rounding. Whatever does more to logits or loss than a head and cross-entropy (soft caps, scales,
    smoothed labels, routers' losses, several processes, compiled models, Liger) keeps the model's own way.
    """

    _head: nn.Module | None = None
    _tried = False

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """See `Trainer`."""
        head = self._chunkable(model, inputs) if model.training and not return_outputs else None
        if head is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        rest = {name: value for name, value in inputs.items() if name != "labels"}
        inner: Any = base_model_of(self.accelerator.unwrap_model(model))
        with self.accelerator.autocast():
            states = inner.base_model(**rest, use_cache=False).last_hidden_state
            total, count = chunked_nll(head, states, inputs["labels"])
        given = num_items_in_batch if self.model_accepts_loss_kwargs else None
        return total / (count if given is None else given)

    def _chunkable(self, model: nn.Module, inputs: dict[str, Any]) -> nn.Module | None:
        """The model's head, where the batch is large and its loss is cross-entropy on what the head says."""
        labels, args = inputs.get("labels"), self.args
        plain = args.world_size == 1 and args.n_gpu <= 1 and not args.torch_compile and not args.use_liger_kernel
        if labels is None or not plain or self.label_smoother is not None or self.compute_loss_func is not None:
            return None
        inner: Any = base_model_of(self.accelerator.unwrap_model(model))
        config = inner.config.get_text_config()
        if labels.numel() * config.vocab_size <= BOUND:
            return None
        if not self._tried:
            self._tried = True
            own = getattr(inner.loss_function, "__name__", "") == "ForCausalLMLoss"
            if own and not getattr(config, "output_router_logits", False):
                with evaluating(inner):
                    self._head = separate_head(inner, inputs["input_ids"])
        return self._head
