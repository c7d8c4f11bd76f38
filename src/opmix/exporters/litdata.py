"""litdata: a module with `build()`, made of `CombinedStreamingDataset`."""

from __future__ import annotations

from opmix.exporters.base import Export, assemble, python_literal, repetition_warning, sample_unit
from opmix.exporters.locations import tokenised_paths
from opmix.exporters.plan import MixturePlan, Unit

_BODY = '''
from litdata import CombinedStreamingDataset, StreamingDataset{imports}

FOLDERS = {folders}
WEIGHTS = {weights}
SAMPLES = {size}  # in the budget; None: not known


def build(seed={seed}, **options):
    """The mixture; the pass ends when the first domain does."""
    return CombinedStreamingDataset(
        datasets=[StreamingDataset(input_dir=folder, shuffle=True{loader}, **options) for folder in FOLDERS.values()],
        weights=list(WEIGHTS.values()),
        iterate_over_all=False,
        seed=seed,
    )
'''


class LitDataExporter:
    """`CombinedStreamingDataset(weights=..., iterate_over_all=False)`: each sample is drawn at random."""

    name = "litdata"
    trainer = "litdata"
    unit: Unit = "sequences"
    suffix = ".py"
    limits = "no domain is repeated inside a pass, which ends with the first domain; draws are random; say --unit"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        unit, weights, size = sample_unit(self, plan)
        places, assumed = tokenised_paths(plan, "{domain}")
        warnings = repetition_warning(plan, f"train {_passes(plan)} passes, each ends with the first domain")
        # Sequences are cut from a domain's stream of tokens by the loader; documents are the samples as written.
        cut = unit == "sequences" and plan.sequence_length is not None
        body = _BODY.format(
            folders=python_literal({name: places[name][0] for name in plan.names}),
            weights=python_literal(weights),
            size=size,
            seed=plan.seed,
            imports=", TokensLoader" if cut else "",
            loader=f", item_loader=TokensLoader(block_size={plan.sequence_length})" if cut else "",
        )
        return assemble(self, plan, weights, body, unit=unit, warnings=warnings, notes=assumed)


def _passes(plan: MixturePlan) -> str:
    return f"{max(plan.known_epochs().values(), default=1.0):.3g}"
