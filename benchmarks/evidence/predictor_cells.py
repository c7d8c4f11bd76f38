"""Cells of the race of predictors: a pool of domains, and a model of some size that knows them little (young) or well (grown)."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from predictor_texts import LENGTH, Pool, PoolText, name_of

from opmix.mixing.mixture import FloatArray, Mixture

BATCH = 8
POOLS = {
    name: Pool(name, p["use"], p["seed"], p["domains"], tuple(p["targets"]))
    for name, p in yaml.safe_load(Path(__file__).with_name("predictors.yaml").read_text()).items()
}


@dataclass(frozen=True)
class Size:
    """A model, and how long everything is trained at its size, in optimizer steps of 512 tokens."""

    hidden: int
    layers: int
    young: int
    grown: int
    stage: int
    probe: int
    test: int
    held_out: int

    @property
    def architecture(self) -> dict[str, Any]:
        """Settings of the model, but for its vocabulary."""
        width = {"hidden_size": self.hidden, "intermediate_size": 3 * self.hidden, "num_hidden_layers": self.layers}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": True}
        return {"model_type": "llama", **width, **heads, "max_position_embeddings": LENGTH}


SIZES = {"0.3M": Size(96, 2, 120, 500, 120, 32, 64, 32), "3M": Size(256, 4, 120, 300, 120, 32, 48, 24)}
TARGET_SIZES = {
    "0.3M": SIZES["0.3M"],
    "1.1M": Size(136, 4, 120, 300, 120, 32, 64, 32),
    "tiny": Size(16, 1, 8, 9, 8, 8, 8, 8),
}
"""Of the evidence for targets (target_cells.py); `tiny` is for trying the program."""


@dataclass(frozen=True)
class Cell:
    """One stage: a pool, a size and an age."""

    pool: Pool
    size: str
    age: str
    out: Path
    data: Path

    @property
    def name(self) -> str:
        return f"{self.pool.name}-{self.size}-{self.age}"

    @property
    def seed(self) -> int:
        return self.pool.seed

    @property
    def lengths(self) -> Size:
        return {**SIZES, **TARGET_SIZES}[self.size]

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(name_of(s) for s in self.pool.sources)

    @property
    def targets(self) -> tuple[str, ...]:
        return tuple(f"target_{t}" for t in self.pool.targets)

    @property
    def sets(self) -> tuple[str, ...]:
        """Everything that losses are read on."""
        return (*self.domains, *self.targets)

    @property
    def uniform(self) -> Mixture:
        """Of the prefix too: what "keep" means."""
        return Mixture.uniform(self.domains)

    @cached_property
    def text(self) -> PoolText:
        return PoolText(self.pool, self.out / "pools" / self.pool.name, self.data)

    def arms(self) -> dict[str, Mixture]:
        """Mixtures that every cell is fully trained on, none of them chosen by a predictor: size, two Dirichlet draws, three corners."""
        rng = np.random.default_rng(zlib.crc32(self.name.encode()))
        count = len(self.domains)
        made = {
            "uniform": self.uniform,
            "size": Mixture.normalised(dict(zip(self.domains, self.pool.sources.values(), strict=True))),
        }
        for i in range(2):
            made[f"random {i + 1}"] = Mixture(self.domains, rng.dirichlet(np.ones(count)))
        for i, d in enumerate(rng.permutation(count)[:3]):
            made[f"corner {i + 1}"] = Mixture(self.domains, leaning(count, int(d), 0.6))
        return made


def leaning(count: int, domain: int, share: float) -> FloatArray:
    """`share` on one domain, the rest even on the others, (count,)."""
    weights = np.full(count, (1 - share) / (count - 1))
    weights[domain] = share
    return weights
