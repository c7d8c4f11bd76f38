"""Answers by greedy generation, in batches of prompts of like length."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import GenerationConfig

from opmix.models.layers import base_model_of
from opmix.probes.token_losses import evaluating
from opmix.runs.ranks import ranks_here

Int64 = npt.NDArray[np.int64]


def greedy_answers(
    model: Any,
    prompts: Sequence[Int64],
    *,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    batch_size: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> list[Int64]:
    """What a model says to each prompt, most likely token by token, up to a stop, which is left out.

    Prompts are padded on the left and the padding is masked, so that an answer does not depend on the batch it is in. Several ranks share
    them, and all get every answer.

    Args:
        model: A causal LM, bare or with adapters; its modes come back as they were.
        prompts: Token ids, (t_i,) each.
        stop_ids: Tokens that end an answer.
        max_new_tokens: Most tokens of an answer.
        batch_size: Prompts at a time.
        progress: Told how many are done of how many.
    """
    device = next(base_model_of(model).get_input_embeddings().parameters()).device
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=stop_ids[0],
        use_cache=True,
    )
    ranks, answers = ranks_here(), dict[int, Int64]()
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))[ranks.rank :: ranks.size]
    with evaluating(model):
        for first in range(0, len(order), batch_size):
            chosen = order[first : first + batch_size]
            width = max(len(prompts[i]) for i in chosen)
            ids = np.stack([np.pad(prompts[i], (width - len(prompts[i]), 0)) for i in chosen])
            mask = np.stack([np.arange(width) >= width - len(prompts[i]) for i in chosen]).astype(np.int64)
            whole = model.generate(
                input_ids=torch.as_tensor(ids, device=device),
                attention_mask=torch.as_tensor(mask, device=device),
                generation_config=settings,
            )
            for i, row in zip(chosen, whole[:, width:].cpu().numpy(), strict=True):
                ends = np.flatnonzero(np.isin(row, list(stop_ids)))
                answers[i] = row[: ends[0]] if len(ends) else row
            if progress is not None:
                progress(first + len(chosen), len(order))
    of_all = {i: answer for own in ranks.collected(answers) for i, answer in own.items()}
    return [of_all[i] for i in range(len(prompts))]
