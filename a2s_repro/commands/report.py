"""Write a run as one HTML page with attention to explore.

The page has curves, scores, confusions and pictures, and needs no network.
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import (
    add_device_option,
    add_ids_options,
    add_images_options,
    add_out_option,
    add_pad_to_option,
)

EXAMPLES = """\
  a2s report runs/a3
  a2s report runs/a3 --data-root data/voc12 --list data/voc12/list/val.txt --ids 2007_000033"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run: the --out of its training")
    add_out_option(parser, "an HTML file (default: report.html in RUN)", required=False, metavar="FILE")
    add_images_options(parser, data_root="the run's", list_file="the run's --val-list, else its recipe's")
    add_pad_to_option(parser, default=None)
    add_ids_options(parser, ids="to explore in any case", count="as many of the best and of the worst", default=6)
    add_device_option(parser)


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.analysis.report import write_report

    path = write_report(
        arguments.run,
        arguments.out,
        data_root=arguments.data_root,
        list_file=arguments.list,
        label_dir=arguments.label_dir,
        pad_to=arguments.pad_to,
        ids=arguments.ids,
        count=arguments.count,
        device=arguments.device,
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")
