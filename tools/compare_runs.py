"""Sets trained and scored runs side by side, as Markdown: what they differ in, scores, losses, times, attention."""

from _run import run

import argparse
from pathlib import Path

from a2s_repro.analysis.compare_runs import comparison, read_run

EXAMPLE = """example:
  python tools/evaluate.py --model runs/x/final.pth ... --attention-by-size --json runs/x/val.json
  python tools/compare_runs.py runs/* > comparison.md

Runs that differ in their seed alone make one row, with their means."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--scores", default="val.json", help="in each, what evaluate.py --json wrote (default %(default)s)"
    )
    arguments = parser.parse_args()
    print(comparison([read_run(folder, arguments.scores) for folder in arguments.runs]))
    return 0


if __name__ == "__main__":
    run(main)
