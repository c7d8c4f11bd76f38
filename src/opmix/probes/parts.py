"""A probe's training run in parts: each goes on from the checkpoint in which the one before ended, as if it had never stopped.

The learning rate is constant and the order of the data is that of the whole run, so a run looked at after n steps has learned just what
the whole run had learned after n.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

from peft import PeftModel

from opmix.runs.ranks import ranks_here
from opmix.training.checkpoints import CompleteCheckpoints, StopAt, restore_usage, whole_checkpoints
from opmix.training.factory import TrainSpec
from opmix.training.objectives import Usage


def until(spec: TrainSpec, step: int, *, key: str, usage: Usage, save_every: int | None = None) -> TrainSpec:
    """The part of a run that ends at `step`: from the newest checkpoint before it, and with one at its end unless the run is over.

    Args:
        spec: The whole run; checkpoints lie in its `output_dir`.
        step: Where to stop.
        key: Of the run; checkpoints of another are not used.
        usage: Taken up from the checkpoint where there is one.
        save_every: Steps between further checkpoints; None: there are none.
    """
    ranks = ranks_here()
    before = [folder for reached, folder in whole_checkpoints(spec.output_dir, key) if reached < step]
    if (newest := ranks.shared(before[-1] if before else None)) is not None:
        restore_usage(newest, key, usage)
        spec = replace(spec, resume_from=newest)
    if step == spec.steps and save_every is None:
        return spec
    # Two are kept: one that was written just before the process died is not yet recorded, and is made again from the one before.
    keeper = CompleteCheckpoints(key, usage, keep=2)
    saving = {} if save_every is None else {"save_strategy": "steps", "save_steps": save_every}
    return replace(
        spec,
        stop_at=step,
        arguments={**spec.arguments, **saving},
        callbacks=[*spec.callbacks, *([StopAt(step)] if step < spec.steps else [])],
        last_callbacks=[*spec.last_callbacks, keeper],
    )


@contextmanager
def saving_only(model: PeftModel, adapter: str) -> Iterator[None]:
    """Let checkpoints hold one adapter: a checkpoint with the others in it would put these back too, to what they were then."""
    vars(model)["save_pretrained"] = partial(
        model.save_pretrained, selected_adapters=[adapter], save_embedding_layers=False
    )
    try:
        yield
    finally:
        del vars(model)["save_pretrained"]
