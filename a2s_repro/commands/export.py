"""Write a net as torch.export program, ONNX or Caffe files.

The suffix of OUTPUT chooses the form:

  .pt2          a torch.export program: PyTorch alone runs it
  .onnx         ONNX: onnxruntime and others run it
  .caffemodel   Caffe's weights, with a _deploy.prototxt beside them: Caffe and OpenCV 4 run them
  .safetensors  the tensors, with class names and recipe in the file's metadata
"""

import argparse
from pathlib import Path

from a2s_repro.commands.options import TRAINED, add_deploy_size_option, add_device_option, add_scales_option

EXAMPLES = """\
  a2s export runs/a3/final.pth a3.onnx
  a2s export runs/a3/final.pth a3.pt2 --device cuda --native
  a2s export runs/a3/final.pth a3.caffemodel --deploy-size 513 513"""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "input", type=Path, metavar="INPUT", help=f"trained net: {TRAINED}"
    )
    parser.add_argument("output", type=Path, metavar="OUTPUT", help="file to write, with one of the suffixes above")
    add_scales_option(parser)
    add_device_option(parser, default="cpu", note="; of a .pt2 where it will run")
    parser.add_argument(
        "--native",
        action="store_true",
        help="keep the fused operators in a .pt2; a program that loads it must import a2s_repro.ops first",
    )
    add_deploy_size_option(parser, ".caffemodel")


def main(arguments: argparse.Namespace) -> None:
    from a2s_repro.export import export

    size = tuple(arguments.deploy_size)
    exported = export(
        arguments.input,
        arguments.output,
        device=arguments.device,
        native=arguments.native,
        deploy_size=size,
        scales=arguments.scales,
    )
    for path in exported.files:
        print(f"wrote {path}")
    if exported.deviation is not None:
        print(f"run on batches of three sizes: within {exported.deviation:.1e} of the net's largest score")
