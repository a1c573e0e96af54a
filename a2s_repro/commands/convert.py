"""Convert Caffe weights to PyTorch and back.

Reads .caffemodel files of every version, torchvision's VGG-16 and, with --to-caffe, our weights and snapshots.
--inspect prints the layers of a Caffe file. Caffe's files have no checksum: the sha256 of the input is printed and kept
in the output, so that a later copy can be compared with it. --check runs the Caffe file in OpenCV's importer, too.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from a2s_repro.commands.options import add_deploy_size_option
from a2s_repro.commands.run import FAILED
from a2s_repro.errors import InputError

if TYPE_CHECKING:
    from a2s_repro.checkpoint.weights import Weights

EXAMPLES = """\
  a2s convert train_iter_6000.caffemodel --inspect
  a2s convert train_iter_6000.caffemodel model.pth --check street.jpg
  a2s convert train_iter_6000.caffemodel trunk.pth --skip fc8
  a2s convert VGG_ILSVRC_16_layers.caffemodel init.safetensors --subsample
  a2s convert vgg16-397923af.pth init.pth --subsample
  a2s convert model.pth model.caffemodel --to-caffe
  a2s convert runs/a3/snapshot_iter_2000.pth train_iter_2000.caffemodel --to-caffe"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input",
        type=Path,
        metavar="INPUT",
        help=".caffemodel, or torchvision's VGG-16 .pth; with --to-caffe our .pth, .safetensors, snapshot or run",
    )
    parser.add_argument(
        "output", type=Path, nargs="?", metavar="OUTPUT", help=".pth or .safetensors; with --to-caffe .caffemodel"
    )
    way = parser.add_mutually_exclusive_group()
    way.add_argument(
        "--inspect",
        action="store_true",
        help="print the layers of a .caffemodel or .solverstate with their sums, and the sha256 of the file, and stop",
    )
    way.add_argument(
        "--to-caffe",
        action="store_true",
        help="write our weights as a .caffemodel and a _deploy.prototxt, and of a snapshot a .solverstate",
    )
    add_deploy_size_option(parser, "--to-caffe")
    parser.add_argument(
        "--check",
        type=Path,
        metavar="PICTURE",
        help="run the .caffemodel on a picture in OpenCV 4 and here, and print by how much the scores differ",
    )
    parser.add_argument("--v1", action="store_true", help="with --to-caffe: write the V1 layers of 2014")
    parser.add_argument(
        "--num-classes", type=int, metavar="N", help="number of classes: fail unless the classifier has N outputs"
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="LAYER",
        help="leave out a layer (repeatable); fc8: the classifier",
    )
    parser.add_argument("--subsample", action="store_true", help="reduce fc6 and fc7 of the plain VGG-16 to LargeFOV's")
    parser.add_argument("--allow-missing", action="store_true", help="accept a file that lacks layers of the net")
    parser.add_argument("--allow-unmatched", action="store_true", help="drop layers that the net does not know")


def main(arguments: argparse.Namespace) -> int | None:
    if arguments.inspect:
        from a2s_repro.files import sha256_of
        from caffe_weights import net_table, read_caffemodel, read_solverstate, solverstate_table

        if arguments.input.suffix == ".solverstate":
            print(solverstate_table(read_solverstate(arguments.input)))
        else:
            print(net_table(read_caffemodel(arguments.input)))
        print(f"sha256 {sha256_of(arguments.input)}")
        return None

    if arguments.output is None:
        raise InputError("an output is needed: .pth or .safetensors, or .caffemodel with --to-caffe.")
    if arguments.to_caffe and arguments.output.suffix != ".caffemodel":
        raise InputError(f"{arguments.output}: with --to-caffe the output ends in .caffemodel.")
    if arguments.v1 and not arguments.to_caffe:
        raise InputError("--v1 goes with --to-caffe: it is a form of .caffemodel.")
    if arguments.to_caffe:
        from a2s_repro.caffe.export import export_caffemodel

        size = tuple(arguments.deploy_size)
        written = export_caffemodel(arguments.input, arguments.output, v1=arguments.v1, deploy_size=size)
        print("\n".join(f"wrote {path}" for path in written))
        if arguments.check is None:
            return None
        from a2s_repro.checkpoint.trained import load_trained

        return _check(arguments.output, load_trained(arguments.input).weights, arguments.check)

    from a2s_repro.caffe.conversion import convert_file
    from a2s_repro.checkpoint.weights import save_weights, weights_suffix

    weights_suffix(arguments.output)
    conversion = convert_file(
        arguments.input,
        skip=arguments.skip,
        num_classes=arguments.num_classes,
        subsample=arguments.subsample,
        allow_missing=arguments.allow_missing,
        allow_unmatched=arguments.allow_unmatched,
    )
    save_weights(arguments.output, conversion.weights.state_dict, conversion.weights.meta)
    print(conversion.summary())
    print(f"wrote {arguments.output}")
    return None if arguments.check is None else _check(arguments.input, conversion.weights, arguments.check)


def _check(caffemodel: Path, weights: "Weights", picture: Path) -> int | None:
    from a2s_repro.caffe.check import TOLERANCE, check_in_opencv

    check = check_in_opencv(caffemodel, weights, picture)
    print(check)
    return None if check.deviation <= TOLERANCE else FAILED
