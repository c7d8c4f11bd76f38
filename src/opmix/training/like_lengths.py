"""Prompts of a batch that begin at different places, and how to read those of like length together.

What pads a batch is work for nothing: `python benchmarks/distil_speed.py MODEL CHATS --whole`, and without `--whole`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F  # noqa: N812  (torch's own idiom)

_EXTRA = {"cpu": 256}
"""Tokens in whose time a device does what it does for one pass more, whatever it reads."""
_EXTRA_ELSEWHERE = 4096
_LEARNING = 3
"""Passes that a pass with gradients is worth."""


def pad_left(rows: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows as (n, longest) ending together, and the mask of what is not padding."""
    width = max(len(row) for row in rows)
    ids = torch.stack([F.pad(row, (width - len(row), 0)) for row in rows])
    mask = torch.stack([F.pad(torch.ones_like(row), (width - len(row), 0)) for row in rows])
    return ids, mask


def groups_of_like_length(lengths: Sequence[int], *, extra: int) -> list[list[int]]:
    """Rows in groups, the longest first, such that what is read is least: rows times the longest of each group, and `extra` a group.

    Exact among groups of neighbours in length, in O(n²); rows of one length keep their order.
    """
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    least, begins = [0], [0]
    for end in range(1, len(order) + 1):
        cost, begin = min((least[b] + (end - b) * lengths[order[b]] + extra, b) for b in range(end))
        least.append(cost)
        begins.append(begin)
    groups, end = list[list[int]](), len(order)
    while end:
        groups.append(order[begins[end] : end])
        end = begins[end]
    return groups[::-1]


def answered_by_length(batch: Mapping[str, torch.Tensor], *, whole: bool) -> Iterator[dict[str, torch.Tensor]]:
    """A batch of answered prompts in groups of like length, each without the columns that are padding in all its rows.

    Args:
        batch: `prompt_ids`, `prompt_mask` (n, P) and `context_ids`, `context_mask` (n, Q), padded on the left; `answer_ids`,
            `answer_mask` (n, C), padded on the right.
        whole: As one group, as where ranks must make as many passes as each other.
    """
    if whole:
        yield dict(batch)
        return
    names = ("prompt", "context", "answer")
    counts = torch.stack([batch[f"{name}_mask"].sum(1) for name in names], dim=1)  # one wait for the device, not three
    lengths = [(int(p), int(q), int(c)) for p, q, c in counts.tolist()]
    read = [_LEARNING * (p + c) + q + c for p, q, c in lengths]
    extra = _EXTRA.get(batch["prompt_ids"].device.type, _EXTRA_ELSEWHERE) * (1 + _LEARNING)
    for rows in groups_of_like_length(read, extra=extra):
        p, q, c = (max(lengths[row][k] for row in rows) for k in range(len(names)))
        shown = {"prompt": slice(-p, None), "context": slice(-q, None), "answer": slice(c)}
        index = torch.tensor(rows, device=batch["prompt_ids"].device)
        yield {f"{n}_{kind}": batch[f"{n}_{kind}"][index][:, shown[n]] for n in names for kind in ("ids", "mask")}
