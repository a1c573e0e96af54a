"""Compare scored runs in tables.

The tables show settings, scores, losses, times and attention. Runs that differ only in their seed share a row, with
mean and deviation.
"""

import argparse
from pathlib import Path

EXAMPLES = """\
  a2s evaluate --model runs/a3/final.pth ... --attention-by-size --json runs/a3/sizes.json
  a2s compare-runs runs/* > comparison.md
  a2s compare-runs runs/* --format latex > comparison.tex
  a2s compare-runs runs/* --scores sizes.json
  a2s compare-runs runs/* --curves curves.png"""


FORMS = ("markdown", "latex", "csv")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "--scores",
        default="val.json",
        metavar="NAME",
        help="file of the scores in each folder, of a validation or of `a2s evaluate --json` (default %(default)s)",
    )
    parser.add_argument(
        "--format",
        choices=FORMS,
        default="markdown",
        help="form of the tables: latex needs the package booktabs, csv is one table (default %(default)s)",
    )
    parser.add_argument(
        "--curves",
        type=Path,
        metavar="FILE",
        help="also draw the losses and the validations; the suffix, as .png, .pdf or .svg, is the format",
    )


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.analysis.compare_runs import comparison, read_run

    runs = [read_run(folder, arguments.scores) for folder in arguments.runs]
    print(comparison(runs, arguments.format))
    if arguments.curves:
        from a2s_repro.analysis.figures import save_figure
        from a2s_repro.analysis.learning_curves import learning_curves

        save_figure(arguments.curves, learning_curves(runs))
