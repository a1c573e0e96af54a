"""Benchmark tools for developers: paired timing, tables and charts of results, and provenance."""
