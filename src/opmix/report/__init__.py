"""One self-contained HTML file per run: what mixture, how sure, what it buys, what it cost, what if.

    from opmix.report import write_report
    write_report(Path("runs/search"))       # -> runs/search/report.html

Imports no torch.
"""

from opmix.report.document import ReportData, load_report_data
from opmix.report.page import build_report, write_report

__all__ = ["ReportData", "build_report", "load_report_data", "write_report"]
