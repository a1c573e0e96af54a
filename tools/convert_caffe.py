"""Converts Caffe's .caffemodel to .pth or .safetensors and back, or shows what a Caffe file holds."""

from _run import run
from _options import add_deploy_size_option

import argparse
from pathlib import Path

from a2s_repro.caffe.conversion import convert_file
from a2s_repro.caffe.export import export
from a2s_repro.checkpoint.weights import save_weights, weights_suffix
from caffe_weights import net_table, read_caffemodel, read_solverstate, solverstate_table

EXAMPLES = """examples:
  python tools/convert_caffe.py init.caffemodel init.pth
  python tools/convert_caffe.py VGG_ILSVRC_16_layers.caffemodel init.safetensors --subsample
  python tools/convert_caffe.py vgg16-397923af.pth init.pth --subsample
  python tools/convert_caffe.py train_iter_6000.caffemodel trunk.pth --skip fc8
  python tools/convert_caffe.py train_iter_6000.caffemodel --inspect
  python tools/convert_caffe.py trained.pth trained.caffemodel --to-caffe
  python tools/convert_caffe.py snapshot_iter_2000.pth train_iter_2000.caffemodel --to-caffe"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "input",
        type=Path,
        help=".caffemodel, or torchvision's VGG-16 .pth; with --to-caffe our .pth, .safetensors or snapshot",
    )
    parser.add_argument("output", type=Path, nargs="?", help=".pth or .safetensors; with --to-caffe .caffemodel")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--inspect", action="store_true", help="print a table of a .caffemodel or .solverstate and stop")
    way.add_argument(
        "--to-caffe",
        action="store_true",
        help="write our weights as a .caffemodel and a _deploy.prototxt; of a training snapshot also a .solverstate",
    )
    add_deploy_size_option(parser, "with --to-caffe")
    parser.add_argument("--v1", action="store_true", help="with --to-caffe: write the V1 container of 2014")
    parser.add_argument("--num-classes", type=int, metavar="N", help="refuse a classifier that has not N outputs")
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
    args = parser.parse_args()

    if args.inspect:
        if args.input.suffix == ".solverstate":
            print(solverstate_table(read_solverstate(args.input)))
        else:
            print(net_table(read_caffemodel(args.input)))
        return 0
    if args.output is None:
        parser.error("an output is needed: .pth or .safetensors, or .caffemodel with --to-caffe")
    if args.to_caffe:
        if args.output.suffix != ".caffemodel":
            parser.error(f"{args.output}: with --to-caffe the output ends in .caffemodel")
        written = export(args.input, args.output, v1=args.v1, deploy_size=tuple(args.deploy_size))
        print("\n".join(f"wrote {path}" for path in written))
        return 0
    if args.v1:
        parser.error("--v1 goes with --to-caffe")
    weights_suffix(args.output)
    conversion = convert_file(
        args.input,
        skip=args.skip,
        num_classes=args.num_classes,
        subsample=args.subsample,
        allow_missing=args.allow_missing,
        allow_unmatched=args.allow_unmatched,
    )
    save_weights(args.output, conversion.weights.state_dict, conversion.weights.meta)
    print(conversion.summary())
    print(f"wrote {args.output}")
    return 0


if __name__ == "__main__":
    run(main)
