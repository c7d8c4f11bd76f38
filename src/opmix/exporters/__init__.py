"""A run's mixture in the format of the trainer that is to use it. Loads no torch.

A new trainer is one file with a `MixtureExporter` and one row in `EXPORTERS`.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from opmix.errors import ConfigError
from opmix.exporters.axolotl import AxolotlExporter
from opmix.exporters.base import Export, MixtureExporter
from opmix.exporters.dataflex import DataFlexExporter
from opmix.exporters.interleave import InterleaveExporter
from opmix.exporters.litdata import LitDataExporter
from opmix.exporters.llamafactory import LlamaFactoryExporter
from opmix.exporters.megatron import MegatronExporter
from opmix.exporters.mosaic import LlmFoundryExporter, StreamingExporter
from opmix.exporters.ms_swift import MsSwiftExporter
from opmix.exporters.nanotron import NanotronExporter
from opmix.exporters.nemo import NemoExporter
from opmix.exporters.olmo_core import OlmoCoreExporter
from opmix.exporters.plan import DomainPlan, MixturePlan
from opmix.exporters.read import ExportOptions, read_plan
from opmix.exporters.torchtitan import TorchtitanExporter
from opmix.exporters.trl import TrlExporter
from opmix.exporters.verl import VerlExporter

_ALL: tuple[MixtureExporter, ...] = (
    InterleaveExporter(),
    TrlExporter(),
    AxolotlExporter(),
    LlamaFactoryExporter(),
    OlmoCoreExporter(),
    TorchtitanExporter(),
    MegatronExporter(),
    StreamingExporter(),
    LitDataExporter(),
    NanotronExporter(),
    LlmFoundryExporter(),
    MsSwiftExporter(),
    DataFlexExporter(),
    NemoExporter(),
    VerlExporter(),
)
EXPORTERS: dict[str, MixtureExporter] = {exporter.name: exporter for exporter in _ALL}
"""By the name that `--to` takes."""


def exporter_for(name: str) -> MixtureExporter:
    """The exporter of that name.

    Raises:
        ConfigError: There is none; suggests near names.
    """
    if name not in EXPORTERS:
        near = difflib.get_close_matches(name, EXPORTERS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"--to: unknown trainer {name!r}{hint}; expected one of {', '.join(EXPORTERS)}")
    return EXPORTERS[name]


def export_run(run: str | Path, to: str, options: ExportOptions | None = None) -> Export:
    """A run's mixture as the file that a trainer reads.

    Args:
        run: Folder written by `opmix search` or `opmix fit`, or a stage's search folder of `opmix run`.
        to: Name in `EXPORTERS`.
        options: What the folder does not say.

    Raises:
        StoreError: The folder is damaged or none.
        ConfigError: The format cannot express the mixture, or something that it needs is not known.
        DataError: A domain's source is of a kind that the trainer does not read.
    """
    return exporter_for(to).export(read_plan(Path(run), options))


__all__ = [
    "DomainPlan",
    "Export",
    "ExportOptions",
    "MixtureExporter",
    "MixturePlan",
    "export_run",
    "exporter_for",
    "read_plan",
]
