"""Everything a report of one decision is made of, read from its run folder.

What is absent is left out of the report; what is present has to be well formed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
        proxies=ProxyTable.read(table) if table.is_file() else None,
        draws=LawDrawsFile.read(folder),
        comparison=DemoComparison.read(folder),
        verification=VerificationFile.read(folder),
        manifest=Manifest.find(folder),
        name=folder.resolve().name,
    )
