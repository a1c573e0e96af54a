"""Options that several commands share. An option of one name means the same in all of them.

A help text begins with that meaning, up to the first of `:;(`; what it is in the command follows. Choices are written
out, because the rooms that define them import torch; a test compares them.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

Options = argparse._ActionsContainer
"""A parser, or a group of its options."""

PRECISIONS = ("fp32", "tf32", "bf16", "auto")

RECIPE_OPTIONS: dict[str, dict[str, Any]] = {
    "num-classes": {"type": int, "metavar": "N", "help": "number of classes: of the data set, with the background"},
    "width": {"type": float, "metavar": "F", "help": "factor on all layers' widths"},
    "crop": {"type": int, "metavar": "PIXELS", "help": "side of the training crops: 32k + 1"},
    "test-crop": {"type": int, "metavar": "PIXELS", "help": "least side that images are padded to in evaluation"},
    "max-iter": {"type": int, "metavar": "N", "help": "iterations of the training, each an update of the weights"},
    "batch-size": {"type": int, "metavar": "N", "help": "images that pass the net together"},
    "iter-size": {"type": int, "metavar": "N", "help": "passes whose gradients make one update"},
    "base-lr": {"type": float, "metavar": "RATE", "help": "learning rate at the start"},
    "stepsize": {"type": int, "metavar": "N", "help": "iterations between two drops of the learning rate: policy step"},
}
"""Options that replace a value of the recipe, by their names."""


def positive(text: str) -> int:
    """The type of an option that counts something."""
    if not text.strip().isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def add_batch_size_option(parser: Options) -> None:
    parser.add_argument(
        "--batch-size",
        type=positive,
        default=1,
        metavar="N",
        help="images that pass the net together (default %(default)s)",
    )


def add_together_option(parser: Options) -> None:
    parser.add_argument(
        "--together",
        type=_together,
        metavar="N|auto",
        help="passes of an update that run as one batch, with losses and masks of their own (default: auto, as many as "
        "fit into a GPU's memory, 1 on a CPU)",
    )


def _together(text: str) -> int | None:
    return None if text == "auto" else positive(text)


def add_old_spelling(parser: Options, old: str, option: argparse.Action) -> None:
    """Accepts `old` in place of `option`, without showing it."""
    parser.add_argument(
        old,
        dest=option.dest,
        type=option.type,
        nargs=option.nargs,
        default=argparse.SUPPRESS,
        help=argparse.SUPPRESS,
    )


def add_recipe_options(parser: Options, *names: str) -> list[argparse.Action]:
    """Options of RECIPE_OPTIONS; None stands for the recipe's value."""
    return [parser.add_argument(f"--{name}", **RECIPE_OPTIONS[name]) for name in names]


def add_stem_option(parser: Options) -> None:
    parser.add_argument(
        "--stem",
        choices=("deep64", "deep128", "plain"),
        help="first layers of the ResNet: three 3x3 convolutions, as CSAILVision's of 2017 or of 2018, or one 7x7",
    )


def recipe_changes(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the recipe options that were given, as fields of a Recipe."""
    values = {name: getattr(arguments, name) for name in (name.replace("-", "_") for name in names)}
    return {name: value for name, value in values.items() if value is not None}


DEFAULT_RECIPE = "voc12/attention3_esupv"


def add_recipe_option(parser: Options, default: str = DEFAULT_RECIPE) -> None:
    """default: words for it, where it is not DEFAULT_RECIPE alone."""
    parser.add_argument(
        "--recipe",
        default=DEFAULT_RECIPE if default == DEFAULT_RECIPE else None,
        metavar="NAME",
        help=f"net, data and schedule: a name, or a .json file (default {default})",
    )


def add_init_option(parser: Options, kinds: str, default: str | None = None) -> None:
    note = " (default %(default)s)" if default else ""
    parser.add_argument(
        "--init", type=Path, default=default, metavar="FILE", help=f"weights file to start from: {kinds}{note}"
    )


TRAINED = "weights, a snapshot, a .caffemodel, or a run's folder, which stands for its best weights, else its newest"


def add_model_option(parser: Options) -> None:
    parser.add_argument(
        "--model", type=Path, required=True, metavar="PATH", help=f"trained net: {TRAINED}; or an exported net"
    )


def add_scales_option(parser: Options) -> None:
    parser.add_argument(
        "--scales",
        type=float,
        nargs="+",
        metavar="S",
        help="scales of the image: in place of those of the training, for nets that do not merge by attention over all "
        "of them (hierarchical, average, max)",
    )


def add_images_options(parser: Options, data_root: str = "", list_file: str = "") -> None:
    """The labelled images that a net is run on; both are required unless words for their defaults are given."""
    add_data_root_option(parser, data_root)
    note = f" (default: {list_file})" if list_file else ""
    parser.add_argument(
        "--list",
        type=Path,
        required=not list_file,
        metavar="FILE",
        help=f"list file of the images: two columns, or one id a line{note}",
    )
    parser.add_argument(
        "--label-dir",
        metavar="NAME",
        help="folder of the labels for lists of ids, in the data root (default: SegmentationClassAug if present)",
    )


def add_data_root_option(parser: Options, default: str = "") -> None:
    note = f" (default: {default})" if default else ""
    parser.add_argument(
        "--data-root",
        type=Path,
        required=not default,
        metavar="DIR",
        help=f"root of the data set, which holds JPEGImages{note}",
    )


def add_train_list_option(parser: Options) -> None:
    parser.add_argument(
        "--train-list",
        type=Path,
        metavar="FILE",
        help="list file of the training images (default: the recipe's, in the data root)",
    )


def add_classes_option(parser: Options, default: str = "those in the model file") -> None:
    parser.add_argument(
        "--classes", type=Path, metavar="FILE", help=f"file of class names, one a line (default: {default})"
    )


def add_ids_options(parser: Options, ids: str, count: str, default: int) -> None:
    parser.add_argument("--ids", nargs="+", default=[], metavar="ID", help=f"ids of images in the list: {ids}")
    parser.add_argument(
        "--count", type=int, default=default, metavar="N", help=f"number of images: {count} (default %(default)s)"
    )


def add_pad_to_option(parser: Options, default: int | None = 513) -> None:
    """default: None is the recipe's test_crop."""
    option = parser.add_argument(
        "--pad-to",
        type=int,
        default=default,
        metavar="PIXELS",
        help=f"least side that images are padded to (default {default or 'test_crop of the recipe'})",
    )
    add_old_spelling(parser, "--crop", option)


def add_refining_options(parser: Options) -> None:
    """What is done to the scores of a net before labels are made of them."""
    parser.add_argument(
        "--crf", nargs="*", metavar="WORD", help="refine by a dense CRF: a recipe's name, values as bi_w=4, or neither"
    )
    add_size_options(parser, default=[])


def add_size_options(parser: Options, default: list | None) -> None:
    """default: None is the recipe's."""
    parser.add_argument(
        "--short-sides",
        type=int,
        nargs="*",
        default=default,
        metavar="PIXELS",
        help="average the scores over images of these shorter sides, without padding: 300 400 500 600 for ADE20K",
    )
    parser.add_argument(
        "--factors",
        type=float,
        nargs="*",
        default=default,
        metavar="F",
        help="average the scores over images resized by these factors, without padding: 0.5 0.75 1 1.25 1.5 for ADE20K",
    )


def add_device_option(parser: Options, default: str = "auto", note: str = "") -> None:
    """default: "auto" is cuda where there is a GPU."""
    words = "cuda if there is a GPU, else cpu" if default == "auto" else default
    parser.add_argument(
        "--device",
        type=device_named,
        default=default,
        metavar="DEVICE",
        help=f"where the net runs: cpu, cuda, cuda:1 ... (default: {words}){note}",
    )


def device_named(name: str) -> str:
    """The device of that name; auto is cuda where there is a GPU."""
    if name != "auto":
        return name
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def add_precision_option(parser: Options) -> None:
    parser.add_argument(
        "--precision",
        type=_precision,
        choices=PRECISIONS,
        default="fp32",
        help="arithmetic of the net: fp32 is exact float32 (default); tf32 and bf16 take less time on processors with "
        "units for them, and change some results; auto is bf16 where the processor has units for it, else fp32",
    )


def _precision(name: str) -> str:
    """`caffe` is the old name of fp32."""
    return "fp32" if name == "caffe" else name


def add_seed_option(parser: Options, of: str, default: int = 0) -> None:
    parser.add_argument(
        "--seed", type=int, default=default, metavar="N", help=f"seed of all random draws: {of} (default %(default)s)"
    )


def add_workers_option(parser: Options, of: str, default: int | None, kind: type = int) -> None:
    """default: None is `pools.usual_workers`."""
    words = "by cores and device" if default is None else default
    parser.add_argument(
        "--workers", type=kind, default=default, metavar="N", help=f"number of workers: {of} (default: {words})"
    )


def add_out_option(
    parser: Options, results: str, default: str | None = None, required: bool = True, metavar: str = "DIR"
) -> None:
    note = " (default %(default)s)" if default else ""
    parser.add_argument(
        "--out",
        type=Path,
        default=default,
        required=required and default is None,
        metavar=metavar,
        help=f"where the results go: {results}{note}",
    )


def add_json_option(parser: Options) -> None:
    parser.add_argument(
        "--json",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the results as JSON: to FILE, else to stdout in place of the table",
    )


def print_results(table: str, results: dict[str, Any], json_file: str | None) -> None:
    """Prints the table and writes the results where `--json` wants them."""
    from a2s_repro.files import replacing

    content = json.dumps(results, indent=1)
    print(content if json_file == "-" else table)
    if json_file not in (None, "-"):
        with replacing(json_file) as temporary:
            temporary.write_text(content + "\n")
        print(f"wrote {json_file}")


def add_deploy_size_option(parser: Options, goes_with: str) -> None:
    parser.add_argument(
        "--deploy-size",
        type=int,
        nargs=2,
        default=(513, 513),
        metavar=("H", "W"),
        help=f"size of the images that the _deploy.prototxt takes; goes with {goes_with} (default 513 513)",
    )


def add_archive_option(parser: Options, name: str, what: str, required: bool = True) -> None:
    optional = "" if required else " (optional)"
    parser.add_argument(
        name, type=Path, required=required, metavar="PATH", help=f"{what}: an archive, or its folder{optional}"
    )


def add_preparing_options(parser: Options, out: str) -> None:
    """Where a prepared data set goes, how many processes make it, and whether a part of it is accepted."""
    add_out_option(parser, "the root of the data set", default=out)
    add_workers_option(parser, of="processes that convert labels, 0 for none", default=min(os.cpu_count() or 1, 8))
    parser.add_argument(
        "--allow-other-counts", action="store_true", help="accept lists of other lengths than the published ones"
    )
