"""Options of the benchmarks."""

import argparse
from pathlib import Path

from a2s_repro.bench.tables import write_docs, write_results


def add_results_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """Where the figures of a benchmark go."""
    parser.add_argument("--out", type=Path, help=f"folder for {kind}-DEVICE-DATE.json (default: not written)")
    parser.add_argument("--write-docs", action="store_true", help="put the newest results into the pages of the docs")


def keep_results(arguments: argparse.Namespace, kind: str, device: str, results: dict) -> None:
    """Writes the figures of a benchmark as `add_results_options` has it."""
    if arguments.out:
        print(write_results(arguments.out, kind, device, results))
    if arguments.write_docs:
        print(*write_docs(), sep="\n")
