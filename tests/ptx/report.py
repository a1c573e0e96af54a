"""The command line of tools/dev/ptx_report.py: counts of one case, or of all that have a budget."""

import argparse
import json
import time

from tests.ptx import budgets, build
from tests.ptx.cases import Case, add_options, case_of
from tests.ptx.counts import weight
from tests.ptx.device import Device, demangled, operators, tensors_of
from tests.ptx.predict import Prediction, predict, spread_sample

BLOCKS = 96
"""Run of each launch, unless told otherwise."""


def measure(device: Device, case: Case, blocks: int = BLOCKS) -> Prediction:
    """Runs a case on a sample of its blocks and predicts its time."""
    launches, outputs, floor = [], 0, 0
    for name, arguments in case.calls():
        with device.counted(spread_sample(blocks)):
            results = tensors_of(device.operator(name, *arguments))
        part = predict(device, device.last, tensors_of(arguments), results)
        launches, outputs, floor = launches + part.launches, outputs + part.outputs, floor + part.floor_bytes
    return Prediction(launches, outputs, floor)


def main(description: str) -> int:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument(
        "--blocks", type=int, default=BLOCKS, help=f"run at most so many of a launch (default: {BLOCKS})"
    )
    parser.add_argument("--opcodes", type=int, default=0, metavar="N", help="also print the N costliest opcodes")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--table", action="store_true", help="instead: every case of tests/ptx/budgets.csv")
    parser.add_argument("--update", action="store_true", help="with --table: write what is measured as the budgets")
    options = parser.parse_args()
    if missing := build.missing():
        parser.error(f"{missing}.")
    if options.table:
        return table(options.update)
    if not options.op or not options.maps:
        parser.error("--op and --maps are needed, or --table.")

    case = case_of(options)
    start = time.perf_counter()
    device = operators()
    compiled = time.perf_counter()
    prediction = measure(device, case, options.blocks)
    show(prediction)
    if options.opcodes:
        show_opcodes(device, prediction.outputs, options.opcodes)
    print(f"compiled in {compiled - start:.0f} s, run in {time.perf_counter() - compiled:.0f} s")
    if options.json:
        print(json.dumps(prediction.summary()))
    return 0


def show(prediction: Prediction) -> None:
    for x in prediction.launches:
        print(demangled(x.kernel))
        print(
            f"  blocks {x.blocks} of {x.threads} threads ({x.sampled} run); registers {x.registers}, shared memory "
            f"{x.shared_bytes} bytes, occupancy {x.occupancy:.0%}"
            + (f", STACK OR SPILLS {x.stack} bytes" if x.stack else "")
        )
        print(
            f"  loads of {x.load_width:.1f} bytes a lane: {x.load_sectors:.4g} sectors asked for, "
            f"{x.fetched_sectors:.4g} fetched; "
            f"stores of {x.store_width:.1f}: {x.store_sectors:.4g} sectors; shared {x.shared_wavefronts:.4g} passes"
        )
        print("  us at least: " + ", ".join(f"{term} {us:.2f}" for term, us in x.terms.items()) + f" -> {x.bound}")
    print(
        f"{prediction.instructions_per_output:.1f} instructions an output; sectors a useful byte: loads "
        f"{prediction.load_sectors_per_byte:.2f}, stores {prediction.store_sectors_per_byte:.2f}; "
        f"occupancy {prediction.occupancy:.0%}"
    )
    print(
        f"floor {prediction.floor_us:.2f} us, predicted at least {prediction.predicted_us:.2f} us: "
        f"{prediction.share:.0%} of copy bandwidth"
    )


def show_opcodes(device: Device, outputs: int, number: int) -> None:
    """Of the last call."""
    for ran in device.last.launches:
        print(f"  instructions an output, weighted (executed): {demangled(ran.program.kernel.name)[:80]}")
        scale = 32 * ran.launch.blocks / (len(ran.blocks) if ran.blocks is not None else ran.launch.blocks) / outputs
        executed = {opcode: visits * scale for opcode, visits in ran.launch.counts.by_opcode().items()}
        for opcode in sorted(executed, key=lambda name: -executed[name] * weight(name))[:number]:
            print(f"    {opcode:28} {executed[opcode] * weight(opcode):7.2f} ({executed[opcode]:.2f})")


def table(update: bool) -> int:
    device = operators()
    rows, exceeded = budgets.read(), 0
    for row in rows:
        prediction = measure(device, row.case, budgets.BLOCKS)
        given = budgets.measured(prediction)
        faults = row.exceeded_by(given)
        exceeded += bool(faults)
        print(f"{row.command}: {given}" + "".join(f"\n  {fault}" for fault in faults), flush=True)
        if update:
            row.limits, row.reason = given, budgets.reason(row.case, prediction)
            row.floor_us, row.predicted_us = round(prediction.floor_us, 2), round(prediction.predicted_us, 2)
            budgets.write(rows)
            budgets.write_page(rows)
    return 0 if update or not exceeded else 1
