"""Score a net by the PASCAL VOC protocol.

Prints the scores on a list of images; --out writes the segmentations, --json the scores.
"""

import argparse

from a2s_repro.commands.options import (
    add_batch_size_option,
    add_classes_option,
    add_device_option,
    add_images_options,
    add_json_option,
    add_model_option,
    add_out_option,
    add_pad_to_option,
    add_precision_option,
    add_refining_options,
    add_scales_option,
    print_results,
)
from a2s_repro.errors import InputError

EXAMPLES = """\
  a2s evaluate --model runs/a3/final.pth --data-root data/voc12 --list data/voc12/list/val.txt --json runs/a3/val.json
  torchrun --nproc-per-node 4 -m a2s_repro evaluate --device cuda ...      on four GPUs"""


def add_options(parser: argparse.ArgumentParser) -> None:
    add_model_option(parser)
    add_scales_option(parser)
    add_images_options(parser)
    add_classes_option(parser)
    add_pad_to_option(parser)
    add_refining_options(parser)
    parser.add_argument("--no-labels", action="store_true", help="only segment, as for VOC's test set; needs --out")
    parser.add_argument(
        "--attention-by-size",
        action="store_true",
        help="attention weights of each scale against the size of objects and the depth of pixels inside them",
    )
    add_out_option(parser, "palette PNGs in OUT/results/VOC2012/Segmentation/comp6_LIST_cls", required=False)
    parser.add_argument(
        "--first-label",
        type=int,
        default=0,
        metavar="N",
        help="value of the first class in the PNGs: 1 for ADE20K's server, whose classes are 1 to 150 (default 0)",
    )
    add_json_option(parser)
    add_batch_size_option(parser)
    add_device_option(parser)
    add_precision_option(parser)


def main(arguments: argparse.Namespace) -> None:
    if arguments.no_labels and not arguments.out:
        raise InputError("--no-labels gives no scores: give --out, a folder for the segmentations.")
    if arguments.no_labels and arguments.attention_by_size:
        raise InputError("--attention-by-size measures objects by their labels: leave out --no-labels.")

    import a2s_repro
    from a2s_repro.data.lists import read_list
    from a2s_repro.inference.crf import CRF
    from a2s_repro.inference.evaluation import evaluate, server_folder
    from a2s_repro.inference.segmenter import class_names
    from a2s_repro.runtime import distributed

    crf = None if arguments.crf is None else CRF.parse(arguments.crf)
    segmenter = a2s_repro.load(arguments.model, distributed.initialise(arguments.device), arguments.scales)
    classes = class_names(segmenter.model.num_classes, segmenter.meta, arguments.classes)
    labelled = not arguments.no_labels
    items = read_list(arguments.list, arguments.data_root, label_dir=arguments.label_dir, labelled=labelled)
    folder = server_folder(arguments.out, arguments.list.stem) if arguments.out else None
    result = evaluate(
        segmenter.model,
        items,
        pad_to=arguments.pad_to,
        crf=crf,
        short_sides=arguments.short_sides,
        factors=arguments.factors,
        classes=classes,
        label_folder=folder,
        first_label=arguments.first_label,
        by_size=arguments.attention_by_size,
        precision=arguments.precision,
        batch_size=arguments.batch_size,
    )
    if distributed.is_main():
        parts = (
            labelled and result.table(classes),
            result.attention_table(),
            folder and f"segmentations: {folder}",
        )
        print_results("\n".join(filter(None, parts)), result.summary(classes), arguments.json)
