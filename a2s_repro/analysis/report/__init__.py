"""A run as one HTML file: curves, scores, confusions, and images whose attention can be explored pixel by pixel."""

from a2s_repro.analysis.report.report import write_report

__all__ = ["write_report"]
