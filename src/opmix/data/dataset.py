"""The training stream as a torch dataset: item i is index i of the plan."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch.utils.data import Dataset

from opmix.data.packing import PackedSequences
from opmix.data.sampler import MixturePlan


class MixtureDataset(Dataset[dict[str, torch.Tensor]]):
    """Map-style, so a Trainer reads it in order and resumes by index.

    Args:
        domains: Packed training sequences by domain.
        plan: What comes when.
        document_mask: Also give `position_ids` that restart at each document, which keeps attention inside documents.
    """

    def __init__(
        self, domains: Mapping[str, PackedSequences], plan: MixturePlan, *, document_mask: bool = False
    ) -> None:
        self._packed = [domains[name] for name in plan.names]
        self._plan = plan
        self._document_mask = document_mask

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        packed, row = self._packed[self._plan.domain[index]], int(self._plan.row[index])
        ids = torch.from_numpy(packed[row])
        item = {"input_ids": ids, "labels": ids.clone()}
        if self._document_mask:
            item["position_ids"] = torch.from_numpy(packed.position_ids(row))
        return item
