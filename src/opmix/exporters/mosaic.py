"""MosaicML: `streaming` in Python, and llm-foundry's YAML for the same streams."""

from __future__ import annotations

from typing import Any

from opmix.exporters.base import Export, assemble, python_literal, sample_unit, yaml_text
from opmix.exporters.locations import tokenised_paths
from opmix.exporters.plan import MixturePlan, Unit

_BODY = '''
from streaming import Stream, StreamingDataset

STREAMS = {streams}
EPOCH_SIZE = {size}  # samples in the budget; None: as many as there are


def build(batch_size, **options):
    """The mixture; domains shorter than their part are repeated."""
    streams = [Stream(**arguments) for arguments in STREAMS.values()]
    return StreamingDataset(
        streams=streams, epoch_size=EPOCH_SIZE, batch_size=batch_size, shuffle=True, shuffle_seed={seed}, **options
    )
'''


class StreamingExporter:
    """`Stream(proportion=...)`: samples, exactly as many as `epoch_size` times the proportion."""

    name = "streaming"
    trainer = "MosaicML streaming"
    unit: Unit = "sequences"
    suffix = ".py"
    limits = "nothing of a static mixture, given data in MDS; say whether a sample is a sequence or a document (--unit)"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        unit, weights, size = sample_unit(self, plan)
        streams, assumed = _streams(plan, weights)
        notes = (*assumed, *_size_note(plan, size))
        body = _BODY.format(streams=python_literal(streams), size=size, seed=plan.seed)
        return assemble(self, plan, weights, body, unit=unit, notes=notes)


class LlmFoundryExporter:
    """`train_loader` with `streams`; every entry is the arguments of a `Stream`."""

    name = "llm-foundry"
    trainer = "llm-foundry"
    unit: Unit = "sequences"
    suffix = ".yaml"
    limits = StreamingExporter.limits

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        unit, weights, size = sample_unit(self, plan)
        streams, assumed = _streams(plan, weights)
        dataset: dict[str, Any] = {"streams": streams, "shuffle": True, "shuffle_seed": plan.seed}
        if size is not None:
            dataset["epoch_size"] = size
        if plan.sequence_length is not None:
            dataset["max_seq_len"] = plan.sequence_length
        notes = (*assumed, *_size_note(plan, size))
        content = {"train_loader": {"name": "text", "dataset": dataset, "drop_last": True}}
        return assemble(self, plan, weights, yaml_text(content), unit=unit, notes=notes)


def _streams(plan: MixturePlan, weights: dict[str, float]) -> tuple[dict[str, dict[str, Any]], tuple[str, ...]]:
    places, assumed = tokenised_paths(plan, "{domain}")
    return {
        name: {"remote" if "://" in places[name][0] else "local": places[name][0], "proportion": weight}
        for name, weight in weights.items()
    }, assumed


def _size_note(plan: MixturePlan, size: int | None) -> tuple[str, ...]:
    if size is not None:
        return ()
    what = "--tokens" if plan.budget is None else "--sequence-length"
    return (f"no {what}, so epoch_size is left out: an epoch is then as many samples as there are",)
