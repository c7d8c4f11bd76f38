"""The model that a life starts from as its configuration alone describes it: sizes and names, no weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from opmix.lifecycle.loading import LifecycleConfig
from opmix.models.files import load_model_config, located
from opmix.models.from_scratch import model_config
from opmix.models.load import empty_model

_VOCABULARY = 32_000
"""Assumed where the tokenizer is not made yet."""


def start_config(life: LifecycleConfig, base: Path) -> Any:
    """The transformers configuration of the first model.

    Raises:
        ConfigError: An architecture that cannot be built.
        ModelError: No checkpoint there, or none of a causal LM.
    """
    if life.architecture is not None:
        size = (life.tokenizer and life.tokenizer.vocab_size) or _VOCABULARY
        return model_config(life.architecture, {"vocab_size": size})
    assert life.model is not None
    name, told = located(life.model.name, base), life.model
    return load_model_config(name, revision=told.revision, trust_remote_code=told.trust_remote_code)


def start_likeness(life: LifecycleConfig, base: Path) -> Any:
    """The first model on the meta device.

    Raises:
        ConfigError: See `start_config`.
        ModelError: See `start_config`; or a configuration that no model can have.
    """
    remote = life.model is not None and life.model.trust_remote_code
    return empty_model(start_config(life, base), trust_remote_code=remote)
