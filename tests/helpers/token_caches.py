"""What lies in a token cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from opmix.data.cache import TokenSplit


def texts_of(split: TokenSplit, tokenizer: PreTrainedTokenizerFast) -> list[str]:
    bounds = zip(split.offsets[:-1], split.offsets[1:], strict=True)
    return [tokenizer.decode(np.asarray(split.tokens[a : b - 1]).tolist()) for a, b in bounds]


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]
