"""Segment images, folders, videos and cameras.

Writes OUT/labels/NAME.png, class indices in VOC's palette (legend.png names the colours), and OUT/overlays/NAME.jpg or
.mp4. Photographs are turned upright by their EXIF orientation. OUT/sources.jsonl records the file, size and time of
change that each result was made of: results of an unchanged file are kept, so an interrupted run goes on where it was,
and all others are made again. Files that cannot be read are listed, all others are segmented, and the exit status is 3.
"""

import argparse
import sys

from a2s_repro.commands.options import (
    add_batch_size_option,
    add_classes_option,
    add_device_option,
    add_model_option,
    add_out_option,
    add_pad_to_option,
    add_precision_option,
    add_refining_options,
    add_scales_option,
    add_workers_option,
    positive,
)
from a2s_repro.commands.run import PARTLY_DONE
from a2s_repro.errors import printable

EXAMPLES = """\
  a2s segment photos/ street.mp4 --model runs/a3/final.pth --out segmented --attention
  a2s segment 'photos/**/*.jpg' --model runs/a3/final.pth --out segmented --crf voc12/largefov
  a2s segment 0 --max-frames 250 --model runs/a3/final.pth --out camera
  torchrun --nproc-per-node 4 -m a2s_repro segment photos/ --model runs/a3/final.pth --out segmented --device cuda"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="image, video, folder, pattern or number of a camera"
    )
    add_model_option(parser)
    add_scales_option(parser)
    add_out_option(parser, "a folder")
    parser.add_argument("--no-overlays", action="store_true", help="of images, write the labels alone")
    parser.add_argument("--attention", action="store_true", help="also draw the attention weights of each scale")
    parser.add_argument(
        "--save-scores", action="store_true", help="also write the maps as float32 arrays, to .npz files"
    )
    parser.add_argument("--frames", action="store_true", help="of videos, also write the files of every frame")
    parser.add_argument("--max-frames", type=positive, metavar="N", help="stop a video or camera after N frames")
    add_refining_options(parser)
    add_classes_option(parser)
    add_pad_to_option(parser)
    parser.add_argument(
        "--memory", type=float, default=4, metavar="GB", help="larger images run in tiles (default %(default)s)"
    )
    add_batch_size_option(parser)
    add_workers_option(parser, "threads that read, and as many that write", default=2, kind=positive)
    add_device_option(parser)
    add_precision_option(parser)


def main(arguments: argparse.Namespace) -> int:
    from collections import Counter
    from dataclasses import asdict, replace

    import torch

    import a2s_repro
    from a2s_repro.files import sha256_of
    from a2s_repro.inference.batch_job import Results, Work
    from a2s_repro.inference.crf import CRF
    from a2s_repro.inference.segmenter import class_names
    from a2s_repro.inference.sources import find_sources
    from a2s_repro.runtime import distributed

    crf = None if arguments.crf is None else CRF.parse(arguments.crf)
    left_out: Counter[str] = Counter()
    sources = find_sources(arguments.inputs, arguments.out, left_out)
    device = distributed.initialise(arguments.device)
    loaded = a2s_repro.load(arguments.model, device, arguments.scales)
    classes = class_names(loaded.model.num_classes, loaded.meta, arguments.classes)
    results = Results(
        arguments.out,
        overlays=not arguments.no_overlays,
        attention=arguments.attention,
        scores=arguments.save_scores,
        frames=arguments.frames,
    )
    segmenter = replace(
        loaded,
        classes=classes,
        pad_to=arguments.pad_to,
        short_sides=arguments.short_sides,
        factors=arguments.factors,
        memory=arguments.memory,
        precision=arguments.precision,
    )
    settings = {
        "model": sha256_of(loaded.file),
        "crop": arguments.pad_to,
        "short_sides": arguments.short_sides,
        "factors": arguments.factors,
        "memory": arguments.memory,
        "precision": segmenter.precision,
        "crf": crf and asdict(crf),
        **({"scales": arguments.scales} if arguments.scales else {}),
    }
    work = Work(segmenter, results, crf, arguments.batch_size, arguments.workers, arguments.max_frames)
    with distributed.using_alone(arguments.out), distributed.failing_together():
        results.claim(settings, classes)
        outcome = work.run(sources)

    for problem in outcome.problems:
        print(printable(problem), file=sys.stderr)
    counts = torch.tensor([outcome.done, outcome.skipped, len(outcome.problems), outcome.replaced])
    done, skipped, problems, replaced = distributed.sum_(counts).tolist()
    if distributed.is_main():
        print(f"{arguments.out}: {done} segmented, {skipped} already there, {problems} with problems.")
        if replaced:
            print(f"{replaced} had results of another file, or of another number of frames, which were made again.")
        if left_out:
            kinds = ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in sorted(left_out.items()))
            print(f"left out, no images or videos by their suffix: {kinds}.")
    return PARTLY_DONE if problems else 0
