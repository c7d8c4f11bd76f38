"""Documents as the mean hidden state of a small Hugging Face model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from opmix.discovery.features import DIMENSIONS, Points, unit
from opmix.errors import ModelError
from opmix.models.device import default_device
from opmix.models.load import load_tokenizer

TOKENS = 256
"""Of a document that the model reads."""
_BATCH = 16


class ModelFeatures:
    """Last hidden states averaged over the first 256 tokens, centred, and compressed to 64 dimensions.

    Centring matters: the hidden states of language models share one large direction that says nothing about the text.
    """

    def __init__(self, name: str, seed: int) -> None:
        """Load a model.

        Args:
            name: Folder or hub name of any model that `AutoModel` loads, encoder or decoder.
            seed: Of the compression.

        Raises:
            ModelError: Nothing there, or no model with hidden states.
        """
        from transformers import AutoModel

        self._tokenizer = load_tokenizer(name)
        try:
            self._model = AutoModel.from_pretrained(name, dtype=torch.float32).to(default_device()).eval()
        except (OSError, ValueError, KeyError) as error:
            first = str(error).strip().partition("\n")[0]
            raise ModelError(
                f"--embed {name}: cannot be loaded ({first}); expected a model folder or hub name; check it"
            ) from error
        if self._tokenizer.pad_token_id is None:
            raise ModelError(
                f"--embed {name}: its tokenizer has no padding token; expected one, or an end-of-sequence token"
            )
        self._seed = seed
        self._mean: Any = None
        self._svd: Any = None

    def fit(self, texts: Sequence[str]) -> Points:
        """See `Features`."""
        from sklearn.decomposition import TruncatedSVD

        states = self._states(texts)
        self._mean = states.mean(axis=0)
        self._svd = TruncatedSVD(max(1, min(DIMENSIONS, min(states.shape) - 1)), random_state=self._seed)
        return unit(self._svd.fit_transform(states - self._mean))

    def transform(self, texts: Sequence[str]) -> Points:
        """See `Features`."""
        return unit(self._svd.transform(self._states(texts) - self._mean))

    def _states(self, texts: Sequence[str]) -> Points:
        longest = getattr(self._model.config.get_text_config(), "max_position_embeddings", None) or TOKENS
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
        states: list[Any] = [None] * len(texts)
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            batch = self._tokenizer(
                [texts[i] for i in chosen],
                truncation=True,
                max_length=min(TOKENS, longest),
                padding=True,
                padding_side="right",
                return_tensors="pt",
                return_token_type_ids=False,
            ).to(self._model.device)
            with torch.inference_mode():
                hidden = self._model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1)
            means = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1)
            for i, row in zip(chosen, means.cpu().numpy(), strict=True):
                states[i] = row
        return np.asarray(states, dtype=np.float64)
