"""Replay a recorded Caffe run and compare every number.

The folder holds what a run of Caffe computed: docs/fidelity/recorded_runs.md has its layout. All blobs, gradients,
losses, weights and histories are compared and printed, the worst first; the exit status is 1 if one is beyond its gate.
With --record a run of ours writes such a folder. A record at full width holds no photographs: give them by --data-root;
the run takes minutes and 4 GB.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from a2s_repro.commands.options import (
    add_data_root_option,
    add_device_option,
    add_init_option,
    add_json_option,
    add_old_spelling,
    add_recipe_option,
    add_recipe_options,
    add_seed_option,
    add_train_list_option,
    print_results,
    recipe_changes,
)
from a2s_repro.commands.run import FAILED
from a2s_repro.errors import InputError

if TYPE_CHECKING:
    from a2s_repro.replay.gates import Report

EXAMPLES = """\
  a2s replay tests/golden/nets --case iv_att2_esupv
  a2s replay tests/golden/nets --case i_single --dtype float32 --json
  a2s replay fullwidth --data-root data/camvid --train-list data/camvid/ImageSets/Segmentation/train.txt
  a2s replay mine --record --case att3 --init init.pth --data-root data/voc12 --max-iter 4"""

CHANGES = ("max-iter", "num-classes", "width", "crop", "batch-size", "iter-size", "base-lr", "stepsize")


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="FOLDER", help="folder of the recorded run; with --record a new one"
    )
    parser.add_argument("--case", metavar="NAME", help="net of a folder that holds several (net_NAME.npz)")
    parser.add_argument(
        "--dtype", choices=("float64", "float32"), help="type of the numbers (default float64; at full width float32)"
    )
    parser.add_argument("--rtol", type=float, metavar="R", help="one relative gate in place of all others")
    add_json_option(parser)
    add_device_option(parser, default="cpu", note="; a GPU prints training runs without holding them to gates")

    pictures = parser.add_argument_group("pictures, for a record at full width and with --record")
    add_data_root_option(pictures, default="none")
    add_train_list_option(pictures)

    ours = parser.add_argument_group(
        "recording a run of ours", "--max-iter defaults to 20, all others to the recipe's."
    )
    ours.add_argument("--record", action="store_true", help="write the folder")
    add_recipe_option(ours)
    add_init_option(ours, "of the net")
    add_seed_option(ours, of="fillers, order of the images")
    max_iter, *_ = add_recipe_options(ours, *CHANGES)
    max_iter.default = 20
    add_old_spelling(ours, "--iterations", max_iter)


def main(arguments: argparse.Namespace) -> int:
    return _record(arguments) if arguments.record else _replay(arguments)


def _replay(arguments: argparse.Namespace) -> int:
    from a2s_repro.replay.full_width import is_full_width

    report = _at_full_width(arguments) if is_full_width(arguments.folder) else _of_a_thin_net(arguments)
    print_results(report.table(), report.plain(), arguments.json)
    return 0 if report.passed else FAILED


def _of_a_thin_net(arguments: argparse.Namespace) -> "Report":
    import torch

    from a2s_repro.replay.recording import read_recording
    from a2s_repro.replay.replay import replay
    from a2s_repro.runtime.devices import usable_device
    from a2s_repro.runtime.progress import Progress

    device, dtype = usable_device(arguments.device), getattr(torch, arguments.dtype or "float64")
    recording = read_recording(arguments.folder, arguments.case)
    steps = len(recording.runs) * recording.iterations
    with Progress(title=recording.name, total=steps) as bar:
        return replay(recording, dtype, device, arguments.rtol, bar.update)


def _at_full_width(arguments: argparse.Namespace) -> "Report":
    from a2s_repro.replay.full_width import read_full_width, replay_full_width
    from a2s_repro.runtime.devices import usable_device
    from a2s_repro.runtime.progress import Progress

    folder, data_root = arguments.folder, arguments.data_root
    if data_root is None:
        raise InputError(f"{folder} is a record at full width, whose photographs are elsewhere: give --data-root.")
    if arguments.dtype == "float64":
        raise InputError("a record at full width is replayed in float32: leave out --dtype.")
    device, record = usable_device(arguments.device), read_full_width(folder)
    with Progress(title=folder.name, total=record.recipe.max_iter) as bar:
        return replay_full_width(record, data_root, arguments.train_list, device, arguments.rtol, progress=bar.update)


def _record(arguments: argparse.Namespace) -> int:
    for name in ("case", "init", "data_root"):
        if getattr(arguments, name) is None:
            raise InputError(f"--record needs --{name.replace('_', '-')}: give it, too.")

    import torch

    from a2s_repro.checkpoint.initialisation import load_init
    from a2s_repro.data.lists import read_list
    from a2s_repro.recipes import find_recipe
    from a2s_repro.replay.recorder import record

    recipe = find_recipe(arguments.recipe).changed(dropout=0.0, **recipe_changes(arguments, *CHANGES))
    items = read_list(arguments.train_list or arguments.data_root / recipe.training_set, arguments.data_root)
    torch.manual_seed(arguments.seed)
    net = recipe.net()
    print(load_init(net, arguments.init, recipe.classifier))
    print(f"wrote {record(arguments.folder, arguments.case, net, recipe, items, arguments.seed)}")
    return 0
