"""torchtitan: a module that registers the domains and has the data loader's configuration."""

from __future__ import annotations

from opmix.errors import ConfigError
from opmix.exporters.base import Export, assemble, check_unit, python_literal
from opmix.exporters.locations import held_out_warning, relative_note, row_location
from opmix.exporters.plan import MixturePlan, Unit

_BODY = '''
from datasets import load_dataset
from torchtitan.hf_datasets import DatasetConfig
from torchtitan.hf_datasets.text_datasets import DATASETS, HFDataSource, InterleavedHuggingFaceTextDataLoader

SOURCES = {sources}
FIELDS = {fields}
WEIGHTS = {weights}


def _register(name, arguments, field):
    DATASETS[name] = DatasetConfig(
        path=arguments["path"],
        loader=lambda path: load_dataset(**{{**arguments, "path": path}}),
        sample_processor=lambda sample: sample[field],
    )


for _name, _arguments in SOURCES.items():
    _register(_name, _arguments, FIELDS[_name])


def dataloader(seed={seed}):
    """For the `dataloader` of a `Trainer.Config`; every domain starts again when it is used up."""
    return InterleavedHuggingFaceTextDataLoader.Config(
        sources=[HFDataSource(dataset=name, weight=weight, infinite=True) for name, weight in WEIGHTS.items()],
        seed=seed,
    )
'''


class TorchtitanExporter:
    """`InterleavedHuggingFaceTextDataLoader`: each packed sequence is drawn from a domain at random."""

    name = "torchtitan"
    trainer = "torchtitan"
    unit: Unit = "sequences"
    suffix = ".py"
    limits = "draws are random; domain names are lower case; documents in the files' order in the first epoch"

    def export(self, plan: MixturePlan) -> Export:
        """See `MixtureExporter`."""
        check_unit(self, plan)
        lower = {name: name.lower() for name in plan.names}  # torchtitan looks names up in lower case
        if len(set(lower.values())) < len(lower):
            raise ConfigError(f"{self.trainer} lower-cases names, and {', '.join(plan.names)} are then not distinct")
        places = {lower[d.name]: row_location(d, self.trainer, whole_files=True) for d in plan.domains}
        weights = plan.shares
        warnings = held_out_warning(plan)
        body = _BODY.format(
            sources=python_literal({name: place.arguments() for name, place in places.items()}),
            fields=python_literal({name: place.field for name, place in places.items()}),
            weights=python_literal({lower[name]: weight for name, weight in weights.items()}),
            seed=plan.seed,
        )
        return assemble(self, plan, weights, body, warnings=warnings, notes=relative_note(places.values()))
