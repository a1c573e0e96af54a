"""What the interpreter counts, and the tool that prints it."""

import json
import subprocess
import sys

import pytest
import torch

from tests.ptx import build
from tests.ptx.cases import Case
from tests.ptx.counts import weight
from tests.ptx.device import Device, pointer
from tests.ptx.ptxas import assembled, occupancy
from tests.ptx.report import measure


def test_a_sample_of_blocks_counts_as_all_of_them(project: Device) -> None:
    """The figures of 32 blocks of some hundreds against those of all, within 5 %."""
    case = Case("interp", [(2, 21, 65, 65)], (129, 129))
    every, some = measure(project, case, 10**6), measure(project, case, 32)
    assert some.launches[0].sampled <= 32 < every.launches[0].sampled
    for name in ("instructions_per_output", "predicted_us", "load_sectors_per_byte", "store_sectors_per_byte"):
        assert getattr(some, name) == pytest.approx(getattr(every, name), rel=0.05)


def test_counts_of_a_copy(kernels: Device) -> None:
    """4096 floats by blocks of one warp: a sector of 32 bytes is loaded and stored once, 4 bytes a lane."""
    x, y = torch.ones(4096), torch.empty(4096)
    with kernels.counted(lambda launch: None), kernels.calling([x], [y]):
        kernels.library.run_copy(*[pointer(t) for t in (x, y)], 4096)
    counts = kernels.last.launches[0].launch.counts
    load, store = sorted(counts.uses.values(), key=lambda use: use.store)
    for access in (load, store):
        assert (access.width, access.requests, access.sectors, access.bytes) == (4, 128, 512, 16384)
    touched = counts.touched()
    assert touched.bytes.sum() == 2 * 16384 and len(touched.sector) == 1024


def test_a_misaligned_copy_touches_more_sectors(kernels: Device) -> None:
    x, y = torch.ones(4097)[1:], torch.empty(4096)
    with kernels.counted(lambda launch: None), kernels.calling([x], [y]):
        kernels.library.run_copy(*[pointer(t) for t in (x, y)], 4096)
    load, _ = sorted(kernels.last.launches[0].launch.counts.uses.values(), key=lambda use: use.store)
    assert load.sectors == 128 * 5


@pytest.mark.parametrize(("stride", "passes"), [(1, 1), (2, 2), (32, 32), (33, 1)])
def test_bank_conflicts(kernels: Device, stride: int, passes: int) -> None:
    y = torch.empty(32)
    with kernels.counted(lambda launch: None), kernels.calling([], [y]):
        kernels.library.run_strided_shared(pointer(y), stride)
    assert kernels.last.launches[0].launch.counts.shared_wavefronts == 2 * passes


@pytest.mark.parametrize(("stride", "passes"), [(1, 4), (2, 8), (3, 4)])
def test_bank_conflicts_of_packs(kernels: Device, stride: int, passes: int) -> None:
    """A quarter of a warp at a time: 128 bytes."""
    y = torch.empty(32, 4)
    with kernels.counted(lambda launch: None), kernels.calling([], [y]):
        kernels.library.run_strided_packs(pointer(y), stride)
    assert kernels.last.launches[0].launch.counts.shared_wavefronts == 2 * passes


@pytest.mark.parametrize(
    ("registers", "threads", "shared", "expected"),
    [(32, 256, 0, 1.0), (56, 256, 0, 0.5), (64, 256, 0, 0.5), (84, 256, 0, 0.25), (32, 128, 32 << 10, 0.375)],
)
def test_occupancy(registers: int, threads: int, shared: int, expected: float) -> None:
    """As NVIDIA's calculator gives it for compute capability 9.0."""
    assert occupancy(registers, threads, shared) == expected


@pytest.mark.slow
def test_weights_of_instructions_are_those_of_the_machine(project: Device) -> None:
    """The weighted PTX of each kernel that ran is as long as its machine code, within 15 %; loops count once."""
    for op in ("interp", "scale_average"):
        for backward in (False, True):
            measure(
                project, Case(op, [(1, 8, 9, 9), (1, 8, 5, 5)][: 1 if op == "interp" else 2], (9, 9), backward=backward)
            )
    for name, program in project.programs.items():
        ptx = next(path for path, module in zip(project.ptx, project.modules, strict=True) if name in module)
        weighted = sum(weight(instruction.opcode) for instruction in program.kernel.instructions)
        assert weighted == pytest.approx(assembled(ptx, name).instructions, rel=0.15), name


@pytest.mark.long
def test_the_tool_ends_with_a_line_of_json(project: Device) -> None:
    command = [sys.executable, "tools/dev/ptx_report.py", "--op", "interp", "--maps", "1x8x9", "--size", "17", "17"]
    command += ["--dtype", "bfloat16", "--layout", "channels_last", "--backward", "--json"]
    done = subprocess.run(command, cwd=build.ROOT, capture_output=True, text=True, check=True)
    line = json.loads(done.stdout.splitlines()[-1])
    wanted = ("floor_us", "predicted_us", "store_sectors_per_byte", "load_sectors_per_byte", "occupancy")
    assert all(line[name] > 0 for name in wanted)
    assert line["floor_us"] == pytest.approx(8 * (17 * 17 + 9 * 9) * 2 / 4.3e6, abs=1e-3)
