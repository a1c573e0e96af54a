"""Segments images, folders, videos and cameras with a trained net: labels, overlays, attention, scores.

Writes OUT/labels/NAME.png, class indices in VOC's palette (legend.png names the colours), and OUT/overlays/NAME.jpg or
.mp4. What is there already is skipped, so that an interrupted run goes on where it was. Files that cannot be read are
listed, the others segmented, and the exit status is 3.
"""

from _run import run
from _options import add_device_option, add_precision_option, add_refining_options

import argparse
import hashlib
import sys
from dataclasses import asdict
from pathlib import Path

import torch

from a2s_repro.inference.batch_job import Results, Work
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.segmenter import Segmenter, class_names, load_model
from a2s_repro.inference.sources import find_sources
from a2s_repro.runtime import distributed

UNREADABLE = 3


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="examples:\n"
        "  python tools/segment.py photos/ street.mp4 --model runs/x/final.pth --out segmented --attention\n"
        "  python tools/segment.py 'photos/**/*.jpg' --model runs/x/final.pth --out segmented --crf voc12/largefov\n"
        "  python tools/segment.py 0 --max-frames 250 --model runs/x/final.pth --out camera\n"
        "  torchrun --nproc-per-node 4 tools/segment.py photos/ --model runs/x/final.pth --out segmented --device cuda",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, pattern or number of a camera"
    )
    parser.add_argument("--model", required=True, help="weights file of a complete net")
    parser.add_argument("--out", required=True, help="folder of the results")
    parser.add_argument("--no-overlays", action="store_true", help="of images, write the labels without overlays")
    parser.add_argument("--attention", action="store_true", help="also draw the attention weights of each scale")
    parser.add_argument(
        "--save-scores", action="store_true", help="also write the maps as float32 arrays, to .npz files"
    )
    parser.add_argument("--frames", action="store_true", help="of videos, also write the files of every frame")
    parser.add_argument("--max-frames", type=int, metavar="N", help="of a video or camera, no more than N frames")
    add_refining_options(parser)
    parser.add_argument("--classes", help="file of class names, one a line (default: those in the model file)")
    parser.add_argument("--crop", type=int, default=513, help="least side that images are padded to (default 513)")
    parser.add_argument(
        "--memory", type=float, default=4, metavar="GB", help="larger images run in tiles (default %(default)s)"
    )
    parser.add_argument("--batch-size", type=int, default=1, help="images that run together (default %(default)s)")
    parser.add_argument(
        "--workers", type=int, default=2, help="threads that read, and that write (default %(default)s)"
    )
    add_device_option(parser)
    add_precision_option(parser)
    arguments = parser.parse_args()
    if min(arguments.batch_size, arguments.workers, arguments.max_frames or 1) < 1:
        parser.error("--batch-size, --workers and --max-frames must be at least 1")

    crf = None if arguments.crf is None else CRF.parse(arguments.crf)
    sources = find_sources(arguments.inputs, arguments.out)
    model, meta = load_model(arguments.model, distributed.initialise(arguments.device))
    classes = class_names(model.num_classes, meta, arguments.classes)
    results = Results(
        Path(arguments.out),
        overlays=not arguments.no_overlays,
        attention=arguments.attention,
        scores=arguments.save_scores,
        frames=arguments.frames,
    )
    settings = {
        "model": hashlib.sha256(Path(arguments.model).read_bytes()).hexdigest(),
        "crop": arguments.crop,
        "short_sides": arguments.short_sides,
        "memory": arguments.memory,
        "precision": arguments.precision,
        "crf": crf and asdict(crf),
    }
    work = Work(
        Segmenter(model, classes, meta, arguments.crop, arguments.short_sides, arguments.memory, arguments.precision),
        results,
        crf,
        arguments.batch_size,
        arguments.workers,
        arguments.max_frames,
    )
    with distributed.failing_together():
        results.claim(settings, classes)
        outcome = work.run(sources)

    for problem in outcome.problems:
        print(problem, file=sys.stderr)
    counts = torch.tensor([outcome.done, outcome.skipped, len(outcome.problems)])
    done, skipped, problems = distributed.sum_(counts).tolist()
    if distributed.is_main():
        print(f"{arguments.out}: {done} segmented, {skipped} already there, {problems} with problems.")
    return UNREADABLE if problems else 0


if __name__ == "__main__":
    run(main)
