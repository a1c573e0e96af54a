"""Scores a trained net on a list of images by the PASCAL VOC protocol, and writes its segmentations."""

from _run import run
from _options import add_precision_option, add_refining_options, add_segmenting_options

import argparse
import json
from pathlib import Path

from a2s_repro.data.lists import read_list
from a2s_repro.files import replacing
from a2s_repro.inference.crf import CRF
from a2s_repro.inference.evaluation import evaluate, server_folder
from a2s_repro.inference.segmenter import class_names, load_model
from a2s_repro.runtime import distributed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n"
        "  python tools/evaluate.py --model runs/x/final.pth --data-root data/VOC2012 \\\n"
        "      --list data/VOC2012/list/val.txt --json runs/x/val.json\n"
        "on four GPUs: torchrun --nproc-per-node 4 tools/evaluate.py --device cuda ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_segmenting_options(parser)
    add_precision_option(parser)
    parser.add_argument("--no-labels", action="store_true", help="only segment, as for VOC's test set; needs --out")
    parser.add_argument("--out", help="write palette PNGs to OUT/results/VOC2012/Segmentation/comp6_<list>_cls")
    parser.add_argument(
        "--attention-by-size", action="store_true", help="attention weights of each scale against the size of objects"
    )
    add_refining_options(parser)
    parser.add_argument("--json", help="write the scores, as fractions, to this file")
    arguments = parser.parse_args()
    if arguments.no_labels and not arguments.out:
        parser.error("--no-labels needs --out, for there is nothing to score")
    if arguments.no_labels and arguments.attention_by_size:
        parser.error("--attention-by-size needs labels, which tell the objects apart: leave out --no-labels")

    crf = None if arguments.crf is None else CRF.parse(arguments.crf)
    model, meta = load_model(arguments.model, distributed.initialise(arguments.device))
    classes = class_names(model.num_classes, meta, arguments.classes)
    items = read_list(
        arguments.list, arguments.data_root, label_dir=arguments.label_dir, labelled=not arguments.no_labels
    )
    folder = server_folder(arguments.out, Path(arguments.list).stem) if arguments.out else None
    result = evaluate(
        model,
        items,
        crop=arguments.crop,
        crf=crf,
        short_sides=arguments.short_sides,
        classes=classes,
        label_folder=folder,
        by_size=arguments.attention_by_size,
        precision=arguments.precision,
    )
    if not distributed.is_main():
        return

    if not arguments.no_labels:
        print(result.table(classes))
    if result.attention:
        print(result.attention_table())
    if folder:
        print(f"segmentations: {folder}")
    if arguments.json:
        with replacing(arguments.json) as temporary:
            temporary.write_text(json.dumps(result.summary(classes), indent=1) + "\n")
        print(f"scores: {arguments.json}")


if __name__ == "__main__":
    run(main)
