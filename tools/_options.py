"""Options that several command lines have in common."""

import argparse
import os
from pathlib import Path

import torch

from a2s_repro.bench.tables import write_docs, write_results
from a2s_repro.runtime.precision import PRECISIONS


def positive(text: str) -> int:
    """The type of options that count something: a whole number from 1 on."""
    if not text.strip().isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is no whole number from 1 on")
    return int(text)


def add_segmenting_options(parser: argparse.ArgumentParser) -> None:
    """What is segmented, by which net, and where."""
    parser.add_argument("--model", required=True, help="weights file of a complete net")
    parser.add_argument("--data-root", required=True, help="folder that holds JPEGImages")
    parser.add_argument("--list", required=True, help="list file, two columns or one id a line")
    parser.add_argument("--label-dir", help="label folder of an id list (default: SegmentationClassAug if present)")
    parser.add_argument("--classes", help="file of class names, one a line (default: those in the model file)")
    parser.add_argument("--crop", type=int, default=513, help="least side that images are padded to (default 513)")
    add_device_option(parser)


def add_device_option(parser: argparse._ActionsContainer) -> None:
    """Where a net runs: on a GPU if there is one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", default=device, help="cpu, cuda, cuda:1 ... (here by default %(default)s)")


def add_results_options(parser: argparse.ArgumentParser, kind: str) -> None:
    """What becomes of the figures of a benchmark."""
    parser.add_argument("--out", type=Path, help=f"folder for {kind}-DEVICE-DATE.json (default: not written)")
    parser.add_argument("--write-docs", action="store_true", help="put the newest results into the pages of the docs")


def keep_results(arguments: argparse.Namespace, kind: str, device: str, results: dict) -> None:
    """Does with the figures of a benchmark what `add_results_options` was asked for."""
    if arguments.out:
        print(write_results(arguments.out, kind, device, results))
    if arguments.write_docs:
        print(*write_docs(), sep="\n")


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """The arithmetic of a net that segments."""
    parser.add_argument(
        "--precision",
        choices=PRECISIONS,
        default="caffe",
        help="caffe: exact float32 (default); tf32, bf16: faster where the processor has it, with a few other labels",
    )


def add_deploy_size_option(parser: argparse.ArgumentParser, goes_with: str) -> None:
    """What images the deploy prototxt beside a .caffemodel takes."""
    parser.add_argument(
        "--deploy-size",
        type=int,
        nargs=2,
        default=(513, 513),
        metavar=("H", "W"),
        help=f"{goes_with}: size of the images that the _deploy.prototxt takes (default 513 513)",
    )


def add_refining_options(parser: argparse.ArgumentParser) -> None:
    """What is done to the scores of a net before labels are made of them."""
    parser.add_argument(
        "--crf", nargs="*", metavar="WORD", help="refine by a dense CRF: a recipe's name, values as bi_w=4, or neither"
    )
    parser.add_argument(
        "--short-sides",
        type=int,
        nargs="+",
        default=[],
        metavar="PIXELS",
        help="average over the image resized to these, as for ADE20K: 300 400 500 600",
    )


def add_preparing_options(parser: argparse.ArgumentParser, out: str) -> None:
    """Where a prepared data set goes, what is accepted, and how many processes work."""
    parser.add_argument("--out", default=out, help="data root to make (default %(default)s)")
    workers = min(os.cpu_count() or 1, 8)
    parser.add_argument("--workers", type=int, default=workers, help="processes (here by default %(default)s); 0: none")
    parser.add_argument(
        "--allow-other-counts", action="store_true", help="accept lists other than the published ones, as of a part"
    )
