"""axolotl: `plugins: [opmix.plugins.axolotl.OpMixPlugin]` and a section `opmix` in its YAML; axolotl loads the rest."""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from opmix.data import MixtureStream
from opmix.errors import ConfigError
from opmix.plugins.section import RemixSection, section_of, whole_run
from opmix.training.factory import stack_rows

_ONE_ROW_EACH = ("sample_packing", "batch_flattening", "pretraining_dataset", "streaming", "group_by_length")
"""Ways of axolotl to lay out rows, which the stream has done already."""


class OpMixArgs(BaseModel):
    """What axolotl accepts beside its own keys."""

    opmix: dict[str, Any] | None = None


class StackRows:
    """Rows of the stream to a batch, as axolotl makes collators: from a tokenizer and keywords."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Rows of one length, to tensors."""
        return stack_rows(rows)


class OpMixPlugin(BasePlugin):
    """The training data are a stream of the section's domains, and a callback decides its mixture again on the way."""

    section: RemixSection | None = None
    stream: MixtureStream | None = None

    def get_input_args(self) -> str:
        """Name of the keys that this adds to axolotl's YAML."""
        return "opmix.plugins.axolotl.OpMixArgs"

    def load_datasets(self, cfg: Any, preprocess: bool = False) -> Any:
        """The stream, in place of axolotl's own data.

        Raises:
            ConfigError: The section, or settings beside it, cannot hold.
        """
        from axolotl.common.datasets import TrainDatasetMeta
        from axolotl.loaders import load_tokenizer

        self.section = section_of(cfg.get("opmix"), "axolotl's YAML")
        if taken := [key for key in _ONE_ROW_EACH if cfg.get(key)]:
            raise ConfigError(f"{taken[0]}: expected it off, for the rows of opmix' stream are whole; leave it out")
        steps = int(cfg.get("max_steps") or 0)
        rows = whole_run(steps, cfg.get("micro_batch_size") or 1, cfg.get("gradient_accumulation_steps") or 1)
        self.stream = self.section.stream(load_tokenizer(cfg), rows=rows, sequence_length=int(cfg["sequence_len"]))
        return TrainDatasetMeta(train_dataset=self.stream.as_dataset(), total_num_steps=steps)

    def get_training_args(self, cfg: Any) -> dict[str, Any]:
        """Read in the order of the stream, every column."""
        return {"train_sampling_strategy": "sequential", "remove_unused_columns": False}

    def get_collator_cls_and_kwargs(self, cfg: Any, is_eval: bool = False) -> tuple[type, dict[str, Any]]:
        """Rows need no padding."""
        return StackRows, {}

    def add_callbacks_post_trainer(self, cfg: Any, trainer: Any) -> list[Any]:
        """Decide again on the way."""
        if self.section is None or self.stream is None:
            raise ConfigError("axolotl has loaded no data through this plug-in; expected `plugins` in the YAML itself")
        return [self.section.callback(self.stream, cfg["output_dir"])]
