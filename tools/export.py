"""Writes a trained net for other programs; the suffix of the output chooses the form.

.pt2          a torch.export program: PyTorch alone runs it
.onnx         ONNX: onnxruntime and others run it
.caffemodel   Caffe's weights, with a _deploy.prototxt beside them: Caffe and OpenCV 4 run them
.safetensors  the tensors, with class names and recipe in the file's metadata
"""

from _run import run
from _options import add_deploy_size_option

import argparse
from pathlib import Path

from a2s_repro.export import export

EXAMPLES = """examples:
  python tools/export.py runs/a3/final.pth a3.onnx
  python tools/export.py runs/a3/final.pth a3.pt2 --device cuda --native
  python tools/export.py runs/a3/final.pth a3.caffemodel --deploy-size 513 513"""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="weights file of a complete net, .pth or .safetensors")
    parser.add_argument("output", type=Path, help="the file to write, ending in one of the suffixes above")
    parser.add_argument("--device", default="cpu", help=".pt2: where it will run: cpu, cuda ... (default cpu)")
    parser.add_argument(
        "--native",
        action="store_true",
        help=".pt2: keep the fused operators; whoever loads the program must import a2s_repro.ops first",
    )
    add_deploy_size_option(parser, ".caffemodel")
    args = parser.parse_args()
    exported = export(
        args.model, args.output, device=args.device, native=args.native, deploy_size=tuple(args.deploy_size)
    )
    for path in exported.files:
        print(f"wrote {path}")
    if exported.deviation is not None:
        print(f"run on batches of three sizes: within {exported.deviation:.1e} of the net's largest score")
    return 0


if __name__ == "__main__":
    run(main)
