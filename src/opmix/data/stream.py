"""A training stream whose mixture can change while a Trainer reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from torch.utils.data import Dataset, get_worker_info

from opmix.data.cache import TokenizedDomain
from opmix.data.packing import PackedSequences
from opmix.data.prepare import prepare_domain
from opmix.data.sampler import MixturePlan, plan_mixture
from opmix.domain import Domain, Source, user_path
from opmix.errors import ConfigError, DataError
from opmix.mixing.mixture import Mixture
from opmix.settings import Bounds, Count, Positive, settings
from opmix.settings.loading import nearest, validated

_MAX_WORKERS = 256


@settings
class _Given:
    """What a stream is given beside its data, checked as the settings of a file are."""

    num_sequences: Count
    sequence_length: Count
    seed: Annotated[int, Bounds(ge=0)]
    max_epochs: dict[str, Positive]


class MixtureStream(Dataset[dict[str, torch.Tensor]]):
    """Packed sequences of several domains in the order of a plan; `train_dataset` of a Trainer that reads in order.

    The plan lies in shared memory, so a switch reaches the data loader's workers too. Rows keep their places: index i is the i-th
    sequence of the run, before and after a switch, and resuming at a step needs nothing but the plan.

    Args:
        data: Tokenised domains; those that are to come in later have share 0 at first.
        tokenizer: That made them.
        mixture: To begin with.
        num_sequences: Length of the whole run: steps times rows of a step.
        sequence_length: Tokens of a sequence.
        seed: Of the domains' permutations.
        max_epochs: How often a domain may be used over the whole run; absent: no limit.
        document_mask: Also give `position_ids` that restart at each document.

    Raises:
        ConfigError: Values of another kind, or a limit of a domain that is not there.
        DataError: A domain with a share has too few tokens.
    """

    def __init__(
        self,
        data: Mapping[str, TokenizedDomain],
        tokenizer: Any,
        mixture: Mixture | Mapping[str, float],
        *,
        num_sequences: int,
        sequence_length: int,
        seed: int = 0,
        max_epochs: Mapping[str, float] | None = None,
        document_mask: bool = False,
    ) -> None:
        numbers = {"num_sequences": num_sequences, "sequence_length": sequence_length, "seed": seed}
        given = validated(_Given, {**numbers, "max_epochs": {} if max_epochs is None else max_epochs})
        if unknown := [
            f"max_epochs.{n}: unknown domain{nearest(n, list(data))}" for n in given.max_epochs if n not in data
        ]:
            raise ConfigError(unknown)
        self.data, self.tokenizer, self.sequence_length = dict(data), tokenizer, given.sequence_length
        self.seed, self.max_epochs, self.document_mask = given.seed, given.max_epochs, document_mask
        self.packed = {n: PackedSequences(d.train, given.sequence_length) for n, d in self.data.items()}
        self.mixture = Mixture.of(mixture).on(tuple(self.data))
        self._rows = {n: len(p) for n, p in self.packed.items()}
        self._served = torch.full((_MAX_WORKERS + 1,), -1, dtype=torch.int64).share_memory_()
        self._show(plan_mixture(self.mixture, given.num_sequences, self._rows, seed=seed, max_epochs=self.max_epochs))

    @classmethod
    def open(
        cls,
        domains: Mapping[str, str | Domain],
        tokenizer: Any,
        mixture: Mapping[str, float],
        *,
        cache_dir: str | Path,
        **settings: Any,
    ) -> MixtureStream:
        """Read and tokenise the domains first; a plain string is a path or glob of training text.

        Raises:
            ConfigError: No mapping of domains, or no tokenizer.
            DataError: A domain cannot be read or is empty.
        """
        if not isinstance(domains, Mapping):
            raise ConfigError(f"domains: a {type(domains).__name__}; expected names with their text")
        named = {
            n: d if isinstance(d, Domain) else Domain(name=n, train=Source(paths=(str(d),))) for n, d in domains.items()
        }
        data = {n: prepare_domain(d, tokenizer, cache_dir=user_path(cache_dir)) for n, d in named.items()}
        return cls(data, tokenizer, mixture, **settings)

    def _show(self, plan: MixturePlan) -> None:
        self.plan = plan
        self._names = plan.names
        self._domain = torch.from_numpy(plan.domain.copy()).share_memory_()
        self._row = torch.from_numpy(plan.row.copy()).share_memory_()

    def as_dataset(self) -> Any:
        """A `datasets.Dataset` whose rows are read from the stream when they are asked for, for trainers that take nothing else (TRL).

        TRL's `SFTConfig` then needs `dataset_kwargs={"skip_prepare_dataset": True}`, `remove_unused_columns=False`, `max_length=None` and
        `train_sampling_strategy="sequential"`.
        """
        from datasets import Dataset as Table

        def rows(batch: dict[str, list[int]]) -> dict[str, list[Any]]:
            items = [self[index] for index in batch["index"]]
            if "position_ids" not in items[0]:  # TRL counts tokens by one of the two
                items = [{**item, "attention_mask": torch.ones_like(item["input_ids"])} for item in items]
            return {key: [item[key] for item in items] for key in items[0]}

        return Table.from_dict({"index": list(range(len(self)))}).with_transform(rows)

    def __len__(self) -> int:
        return len(self._domain)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        worker = get_worker_info()
        slot = 0 if worker is None else 1 + worker.id % _MAX_WORKERS
        self._served[slot] = max(int(self._served[slot]), index)
        packed, row = self.packed[self._names[int(self._domain[index])]], int(self._row[index])
        ids = torch.from_numpy(packed[row])
        item = {"input_ids": ids, "labels": ids.clone()}
        if self.document_mask:
            item["position_ids"] = torch.from_numpy(packed.position_ids(row))
        return item

    @property
    def served(self) -> int:
        """Sequences handed out so far, those that a loader holds in advance included."""
        return int(self._served.max()) + 1

    def switch(self, index: int, mixture: Mixture | Mapping[str, float], *, check: bool = True) -> None:
        """Train on another mixture from a sequence on; where each domain's text stands is kept.

        Args:
            index: First sequence of the new mixture.
            mixture: Over domains of the stream.
            check: Refuse where a loader already holds sequences from there on (they would be of the old mixture).

        Raises:
            DataError: It comes too late, there is no such sequence, or a share asks for more than `max_epochs` allows.
        """
        if not isinstance(index, int) or not 0 <= index <= len(self):
            raise DataError(f"the mixture cannot change at sequence {index!r}; expected one of 0 to {len(self)}")
        mixture = Mixture.of(mixture).on(self._names)
        if check and index < self.served:
            raise DataError(
                f"the mixture cannot change at sequence {index}: {self.served} have been handed out; expected a later "
                "one "
                "(fewer dataloader workers or a smaller prefetch factor read less in advance)"
            )
        plan = plan_mixture(
            mixture,
            len(self) - index,
            self._rows,
            seed=self.seed,
            max_epochs=self.max_epochs,
            previous=self.plan[:index],
            sequence_length=self.sequence_length,
        )
        self.plan, self.mixture = plan, mixture
        self._domain.copy_(torch.from_numpy(plan.domain))
        self._row.copy_(torch.from_numpy(plan.row))
