"""Everything a report of one decision is made of, read from its run folder.

What is absent is left out of the report; what is present has to be well formed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from opmix.mixing.mixture import FloatArray
from opmix.mixing.table import ProxyTable
from opmix.results.demo import DemoComparison
from opmix.results.draws import LawDrawsFile
from opmix.results.manifest import Manifest
from opmix.results.mixture import MixtureFile
from opmix.results.verification import VerificationFile


@dataclass(frozen=True, kw_only=True, eq=False)
class ReportData:
    """The files of a run folder."""

    document: MixtureFile
    proxies: ProxyTable | None = None
    """Without looks at probes before their end, which a picture at one length has no place for."""
    draws: LawDrawsFile | None = None
    comparison: DemoComparison | None = None
    verification: VerificationFile | None = None
    manifest: Manifest | None = None
    name: str = ""


def load_report_data(folder: Path) -> ReportData:
    """Read a run folder.

    Args:
        folder: Holds `mixture.json` and, where the run made them, `timing.json`, `tables/proxies.csv`, `law_draws.json`,
            `comparison.json`, `verification.json` and `manifest.json`.

    Raises:
        StoreError: `mixture.json` is missing, or one of the files is damaged.
    """
    table = folder / "tables" / "proxies.csv"
    return ReportData(
        document=MixtureFile.read(folder),
        proxies=_ended(ProxyTable.read(table)) if table.is_file() else None,
        draws=LawDrawsFile.read(folder),
        comparison=DemoComparison.read(folder),
        verification=VerificationFile.read(folder),
        manifest=Manifest.find(folder),
        name=folder.resolve().name,
    )


def _ended(table: ProxyTable) -> ProxyTable:
    """The points without looks."""
    kept = [i for i, kind in enumerate(table.kinds) if kind != "look"]
    if len(kept) == len(table.kinds):
        return table

    def cut(block: FloatArray | None) -> FloatArray | None:
        return None if block is None else block[kept]

    return replace(
        table,
        points=tuple(table.points[i] for i in kept),
        kinds=tuple(table.kinds[i] for i in kept),
        mixtures=table.mixtures[kept],
        losses=table.losses[kept],
        fitted=None if table.fitted is None else tuple(table.fitted[i] for i in kept),
        standard_errors=cut(table.standard_errors),
        weights=cut(table.weights),
        interference=cut(table.interference),
    )
