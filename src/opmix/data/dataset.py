"""The training stream as a torch dataset: item i is index i of the plan, or the rows of micro-batch i."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from opmix.data.rows import Rows, pad_right
from opmix.data.sampler import Plan

Tensors = dict[str, torch.Tensor]


class MixtureDataset(Dataset[Tensors]):
    """Map-style, so a Trainer reads it in order and resumes by index.

    Items are `input_ids` (t,), `labels` (t,) with -100 where nothing is learned, and `position_ids` (t,) where a domain holds
    conversations or `document_mask` is set. Rows of text are equally long; rows of conversations need not be.

    Args:
        domains: Training rows by domain.
        plan: What comes when.
        document_mask: Positions of text restart at each document, which keeps attention inside documents.
    """

    def __init__(self, domains: Mapping[str, Rows], plan: Plan, *, document_mask: bool = False) -> None:
        self._rows = [domains[name] for name in plan.names]
        self._plan = plan
        self._document_mask = document_mask
        self._positions = document_mask or any(rows.conversations for rows in self._rows)

    @property
    def restarts(self) -> bool:
        """Whether positions restart inside rows, so that attention must heed them."""
        return self._document_mask or any(rows.restarts for rows in self._rows)

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Tensors:
        domain, row = map(int, self._plan.at(index))
        rows = self._rows[domain]
        ids = rows[row]
        item = {"input_ids": ids, "labels": rows.labels(row)}
        if self._positions:
            restart = rows.conversations or self._document_mask
            item["position_ids"] = rows.position_ids(row) if restart else np.arange(len(ids), dtype=np.int64)
        return {key: torch.from_numpy(value) for key, value in item.items()}


class GroupedDataset(Dataset[Any]):
    """A dataset's items in groups: item i is micro-batch i, collated.

    Rows of conversations differ in supervised tokens, so that micro-batches of equal numbers of rows would not be matched.

    Args:
        items: The rows, in order.
        ends: (groups,) index after each group's last row, rising.
        collate: Rows to a batch.
    """

    def __init__(
        self, items: Dataset[Any], ends: npt.NDArray[np.int64], collate: Callable[[Sequence[Any]], Any]
    ) -> None:
        self._items, self._ends, self._collate = items, ends, collate

    @property
    def restarts(self) -> bool:
        """That of the rows."""
        return bool(getattr(self._items, "restarts", False))

    def __len__(self) -> int:
        return len(self._ends)

    def __getitem__(self, index: int) -> Any:
        if not 0 <= index < len(self):
            raise IndexError(f"micro-batch {index} of {len(self)}")
        first = int(self._ends[index - 1]) if index else 0
        return self._collate([self._items[i] for i in range(first, int(self._ends[index]))])


def pad_rows(items: Sequence[Mapping[str, torch.Tensor]]) -> Tensors:
    """Rows to a batch (n, T), shorter ones padded on the right as a document of its own that nothing is learned from."""
    return {key: torch.from_numpy(pad_right([item[key].numpy() for item in items], key)) for key in items[0]}
