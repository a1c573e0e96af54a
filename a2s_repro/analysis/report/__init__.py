"""Report of a run as one HTML file: curves, scores, confusions, and images with attention explorable by pixel."""

from a2s_repro.analysis.report.report import write_report

__all__ = ["write_report"]
