"""LLaMA-Factory: `python -m opmix.plugins.llamafactory train.yaml`, where train.yaml has a section `opmix` beside its own keys.

LLaMA-Factory takes callbacks, but has no place for data of another kind: for the length of a run its `get_dataset` gives the stream.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from opmix.data import MixtureStream
from opmix.errors import ConfigError, OpMixError
from opmix.mixture_search.callback import RemixCallback
from opmix.plugins.section import section_of, whole_run

_WORKFLOWS = {"pt": "llamafactory.train.pt.workflow", "sft": "llamafactory.train.sft.workflow"}
_ONE_ROW_EACH = ("packing", "neat_packing", "streaming", "tokenized_path")
"""Ways of LLaMA-Factory to lay out rows, which the stream has done already."""


def run(settings: Mapping[str, Any]) -> RemixCallback:
    """Train with LLaMA-Factory on a mixture that is decided again on the way.

    Args:
        settings: Its YAML (`stage: pt` or `sft`, `max_steps`, `cutoff_len`), with a section `opmix`; `dataset` is not looked at.

    Returns:
        The callback, with its decisions.

    Raises:
        ConfigError: The section, or settings beside it, cannot hold.
    """
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer
    from llamafactory.train.tuner import run_exp

    own = {key: value for key, value in settings.items() if key != "opmix"}
    section = section_of(settings.get("opmix"), "LLaMA-Factory's YAML")
    if own.get("stage", "sft") not in _WORKFLOWS:
        raise ConfigError(f"stage: {own['stage']!r}; expected {' or '.join(_WORKFLOWS)}")
    if taken := [key for key in _ONE_ROW_EACH if own.get(key)]:
        raise ConfigError(f"{taken[0]}: expected it off, for the rows of opmix' stream are whole; leave it out")
    # Its own sampler in order, and the Trainer's word for it, which the callback looks at.
    own |= {"disable_shuffling": True, "train_sampling_strategy": "sequential", "remove_unused_columns": False}
    own.setdefault("dataset", "opmix")
    model_args, data_args, training_args, finetuning_args, _ = get_train_args(dict(own))
    rows = whole_run(training_args.max_steps, training_args.train_batch_size, training_args.gradient_accumulation_steps)
    tokenizer = load_tokenizer(model_args)["tokenizer"]
    stream = section.stream(tokenizer, rows=rows, sequence_length=data_args.cutoff_len)
    remix = section.callback(stream, training_args.output_dir)
    with _read_from(stream, _WORKFLOWS[finetuning_args.stage]):
        run_exp(dict(own), callbacks=[remix])
    return remix


@contextmanager
def _read_from(stream: MixtureStream, workflow: str) -> Iterator[None]:
    """LLaMA-Factory's workflow with the stream for its data."""
    module: Any = import_module(workflow)
    before = module.get_dataset
    module.get_dataset = lambda *args, **kwargs: {"train_dataset": stream.as_dataset()}
    try:
        yield
    finally:
        module.get_dataset = before


def main() -> int:
    """Run the YAML that the command names."""
    try:
        content = yaml.safe_load(Path(sys.argv[1]).read_text(encoding="utf-8")) if len(sys.argv) == 2 else None
        if not isinstance(content, Mapping):
            raise ConfigError("expected one argument, LLaMA-Factory's YAML with a section `opmix`")
        run(content)
    except (OpMixError, OSError, RecursionError, yaml.YAMLError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
