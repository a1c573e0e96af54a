"""Writes a run as one HTML file: curves, scores, confusions, and pictures in which its attention can be explored."""

from _run import run
from _options import add_device_option

import argparse

from a2s_repro.analysis.report import write_report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/report.py runs/x --data-root data/VOC2012 --list data/VOC2012/list/val.txt --ids 2007_000033",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", help="folder of the run: the --out of its training")
    parser.add_argument("--out", help="HTML file to write (default: report.html in the run's folder)")
    parser.add_argument("--data-root", help="folder that holds JPEGImages (default: the run's)")
    parser.add_argument("--list", help="list file to score on (default: the run's --val-list, else its recipe's)")
    parser.add_argument("--label-dir", help="label folder of an id list (default: SegmentationClassAug if present)")
    parser.add_argument("--crop", type=int, help="least side that images are padded to (default: the recipe's)")
    parser.add_argument("--ids", nargs="+", default=(), metavar="ID", help="images of the list to explore in any case")
    parser.add_argument(
        "--count", type=int, default=6, help="best and worst images to explore (default %(default)s each)"
    )
    add_device_option(parser)
    arguments = parser.parse_args()
    path = write_report(
        arguments.run,
        arguments.out,
        data_root=arguments.data_root,
        list_file=arguments.list,
        label_dir=arguments.label_dir,
        crop=arguments.crop,
        ids=arguments.ids,
        count=arguments.count,
        device=arguments.device,
    )
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MB")


if __name__ == "__main__":
    run(main)
