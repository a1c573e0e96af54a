"""Replays a recorded training run and says how far every number of ours is from the recorded one.

The folder holds what a run of Caffe gave: docs/fidelity/recorded_runs.md has its layout. All blobs, gradients, losses,
weights and histories are compared, the worst first; the exit status is 1 if one is beyond its gate. --record writes
such a folder from a run of ours. Of a record at full width the folder holds no photographs: give them by --data-root;
the run takes minutes and 4 GB."""

from _run import run

import argparse
import json
from pathlib import Path

import torch
from tqdm import tqdm

from a2s_repro.checkpoint.initialisation import load_init
from a2s_repro.data.lists import read_list
from a2s_repro.errors import InputError
from a2s_repro.recipes import find_recipe
from a2s_repro.replay.full_width import is_full_width, read_full_width, replay_full_width
from a2s_repro.replay.gates import Report
from a2s_repro.replay.recorder import record
from a2s_repro.replay.recording import read_recording
from a2s_repro.replay.replay import replay
from a2s_repro.runtime.devices import usable_device

EXAMPLES = """examples:
  python tools/replay_caffe.py tests/golden/nets --case iv_att2_esupv
  python tools/replay_caffe.py tests/golden/nets --case i_single --dtype float32 --json
  python tools/replay_caffe.py tests/golden/e2e
  python tools/replay_caffe.py fullwidth --data-root camvid --train-list camvid/ImageSets/Segmentation/train.txt
  python tools/replay_caffe.py mine --record --case att3 --recipe voc12/attention3_esupv --init init.pth \\
      --data-root VOC2012 --iterations 4"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="folder of the recorded run; with --record a new one")
    parser.add_argument("--case", metavar="NAME", help="net of a folder that holds several (net_NAME.npz)")
    parser.add_argument("--dtype", choices=("float64", "float32"), help="default float64; at full width always float32")
    parser.add_argument("--rtol", type=float, help="one relative gate in place of all others")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    parser.add_argument("--device", default="cpu", help="default cpu; on a GPU training runs are shown only")
    pictures = parser.add_argument_group("pictures, for a record at full width and with --record")
    pictures.add_argument("--data-root", type=Path, help="folder of the data set")
    pictures.add_argument(
        "--train-list", type=Path, help="list file (default: the record's or the recipe's, in the data root)"
    )
    ours = parser.add_argument_group("recording a run of ours")
    ours.add_argument("--record", action="store_true", help="write the folder")
    ours.add_argument("--recipe", default="voc12/attention3_esupv", help="net and solver (default %(default)s)")
    ours.add_argument("--init", type=Path, help="weights file to start from")
    ours.add_argument("--iterations", type=int, default=20, dest="max_iter", help="default %(default)s")
    ours.add_argument("--seed", type=int, default=0, help="of the heads' fillers and the order (default 0)")
    for name in ("num-classes", "crop", "batch-size", "iter-size", "stepsize"):
        ours.add_argument(f"--{name}", type=int, help="in place of the recipe's")
    for name in ("width", "base-lr"):
        ours.add_argument(f"--{name}", type=float, help="in place of the recipe's")
    args = parser.parse_args()
    if args.record:
        return write(args)

    report = replayed_at_full_width(args) if is_full_width(args.folder) else replayed(args)
    print(json.dumps(report.plain(), indent=1) if args.json else report.table())
    return 0 if report.passed else 1


def replayed(args: argparse.Namespace) -> Report:
    device, dtype = usable_device(args.device), getattr(torch, args.dtype or "float64")
    recording = read_recording(args.folder, args.case)
    steps = len(recording.runs) * recording.iterations
    with tqdm(total=steps, unit="it", desc=recording.name) as bar:
        return replay(recording, dtype, device, args.rtol, bar.update)


def replayed_at_full_width(args: argparse.Namespace) -> Report:
    if args.data_root is None:
        raise InputError(f"{args.folder} is a record at full width, whose photographs are elsewhere: give --data-root.")
    if args.dtype == "float64":
        raise InputError("a record at full width is replayed in float32: leave out --dtype.")
    device, record = usable_device(args.device), read_full_width(args.folder)
    with tqdm(total=record.recipe.max_iter, unit="it", desc=args.folder.name) as bar:
        return replay_full_width(record, args.data_root, args.train_list, device, args.rtol, progress=bar.update)


def write(args: argparse.Namespace) -> int:
    for name in ("case", "init", "data_root"):
        if getattr(args, name) is None:
            raise InputError(f"--record takes --{name.replace('_', '-')}.")
    names = ("num_classes", "crop", "batch_size", "iter_size", "stepsize", "width", "base_lr", "max_iter")
    changes = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    recipe = find_recipe(args.recipe).changed(dropout=0.0, **changes)
    items = read_list(args.train_list or args.data_root / recipe.training_set, args.data_root)
    torch.manual_seed(args.seed)
    net = recipe.net()
    print(load_init(net, args.init, recipe.classifier))
    print(f"wrote {record(args.folder, args.case, net, recipe, items, args.seed)}")
    return 0


if __name__ == "__main__":
    run(main)
