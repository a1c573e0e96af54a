"""Counts what an operator's CUDA kernels do, in the PTX interpreter of tests/ptx, and predicts their time from below.

    python tools/dev/ptx_report.py --op scale_merge --maps 8x150x65 8x150x49 8x150x33 --dtype bfloat16 \
        --layout channels_last --backward
    python tools/dev/ptx_report.py --op interp --maps 8x21x65 --size 513 513 --json

Needs nvcc, no GPU. A large launch is run on a sample of its blocks, one from each of `--blocks` equal parts of the
grid, and its counts are scaled. The prediction is a bound, no measurement: tests/ptx/predict.py says of what. The
floor beside it is the time to read every argument and write every result once.
"""

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from tests.ptx import build, cases, device
from tests.ptx.counts import weight
from tests.ptx.predict import Prediction, predict, spread_sample

DTYPES = {name: getattr(torch, name) for name in ("float32", "float64", "float16", "bfloat16")}


def map_size(text: str) -> tuple[int, int, int, int]:
    """NxCxS or NxCxHxW."""
    sides = [int(side) for side in text.split("x")]
    if len(sides) not in (3, 4) or min(sides) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no map: write it NxCxS or NxCxHxW")
    return (*sides, sides[-1]) if len(sides) == 3 else tuple(sides)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", required=True, choices=cases.OPERATORS)
    parser.add_argument("--maps", required=True, nargs="+", type=map_size, metavar="NxCxS", help="inputs; or NxCxHxW")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("H", "W"), help="of the result (default: the first map's)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--layout", choices=cases.LAYOUTS, default="nchw")
    parser.add_argument("--backward", action="store_true", help="the adjoint instead")
    parser.add_argument("--recalibrated", action="store_true", help="scale_merge with a recalibration")
    parser.add_argument("--weights-size", nargs=2, type=int, metavar=("H", "W"), help="grid of scale_merge's logits")
    parser.add_argument("--blocks", type=int, default=96, help="run at most so many blocks of a launch (default: 96)")
    parser.add_argument("--opcodes", type=int, default=0, metavar="N", help="also print the N costliest opcodes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    options = parser.parse_args()
    if build.nvcc() is None:
        parser.error("nvcc was not found: put it on PATH or set CUDA_HOME.")

    start = time.perf_counter()
    name, arguments = cases.arguments(
        options.op,
        options.maps,
        tuple(options.size) if options.size else None,
        DTYPES[options.dtype],
        options.layout,
        options.backward,
        options.recalibrated,
        tuple(options.weights_size) if options.weights_size else None,
    )
    runner = device.operators(name)
    compiled = time.perf_counter()
    runner.counting, runner.checked, runner.sample = True, False, spread_sample(options.blocks)
    result = runner.operator(name, *arguments)
    prediction = predict(runner, runner.last, device.tensors_of(arguments), device.tensors_of(result))
    show(name, prediction)
    if options.opcodes:
        show_opcodes(runner, prediction.outputs, options.opcodes)
    print(f"compiled in {compiled - start:.0f} s, run in {time.perf_counter() - compiled:.0f} s")
    if options.json:
        print(json.dumps(summary(name, prediction)))
    return 0


def show(name: str, prediction: Prediction) -> None:
    for x in prediction.launches:
        print(device.demangled(x.kernel))
        print(
            f"  blocks {x.blocks} of {x.threads} threads ({x.sampled} run); registers {x.registers}, "
            f"occupancy {x.occupancy:.0%}" + (f", STACK OR SPILLS {x.stack} bytes" if x.stack else "")
        )
        print(
            f"  loads of {x.load_widths} bytes a lane: {x.load_sectors:.4g} sectors asked for, "
            f"{x.fetched_sectors:.4g} fetched; "
            f"stores of {x.store_widths}: {x.store_sectors:.4g} sectors; shared {x.shared_wavefronts:.4g} passes"
        )
        print("  us at least: " + ", ".join(f"{term} {us:.2f}" for term, us in x.terms.items()) + f" -> {x.bound}")
    print(
        f"{name}: {prediction.instructions_per_output:.1f} instructions an output; sectors a useful byte: loads "
        f"{prediction.load_sectors_per_byte:.2f}, stores {prediction.store_sectors_per_byte:.2f}; "
        f"occupancy {prediction.occupancy:.0%}"
    )
    share = prediction.floor_us / prediction.predicted_us if prediction.predicted_us else 0
    print(
        f"floor {prediction.floor_us:.2f} us, predicted at least {prediction.predicted_us:.2f} us: "
        f"{share:.0%} of copy bandwidth"
    )


def show_opcodes(runner: device.Device, outputs: int, number: int) -> None:
    for ran in runner.last.launches:
        scale = 32 * ran.launch.blocks / (len(ran.blocks) if ran.blocks is not None else ran.launch.blocks) / outputs
        counted = [
            (visits * weight(opcode) * scale, visits * scale, opcode)
            for opcode, visits in ran.launch.counts.by_opcode().items()
        ]
        print(f"  instructions an output, weighted (executed): {ran.program.kernel.name[:60]}")
        for weighted, executed, opcode in sorted(counted, reverse=True)[:number]:
            print(f"    {opcode:24} {weighted:7.2f} ({executed:.2f})")


def summary(name: str, prediction: Prediction) -> dict:
    rounded = {
        "floor_us": prediction.floor_us,
        "predicted_us": prediction.predicted_us,
        "share": prediction.floor_us / prediction.predicted_us if prediction.predicted_us else 0,
        "instructions_per_output": prediction.instructions_per_output,
        "load_sectors_per_byte": prediction.load_sectors_per_byte,
        "store_sectors_per_byte": prediction.store_sectors_per_byte,
        "occupancy": prediction.occupancy,
    }
    return {
        "op": name,
        **{key: round(value, 3) for key, value in rounded.items()},
        "launches": len(prediction.launches),
        "bound": [launch.bound for launch in prediction.launches],
        "registers": [launch.registers for launch in prediction.launches],
        "spills": sum(launch.stack for launch in prediction.launches),
    }


if __name__ == "__main__":
    sys.exit(main())
