"""Analysis of trained nets: figures, reports, comparison of runs, and CRF parameter search."""
