"""The report of a run directory: results, causes of wrong answers, training curves, one self-contained page."""

from vlm.report.table import ResultRow
from vlm.report.write import ReportPaths, write_report

__all__ = ["ReportPaths", "ResultRow", "write_report"]
