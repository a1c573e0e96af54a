"""What ptxas makes of a kernel on sm_90: registers, spills, size, and the occupancy that follows."""

import json
import re
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ptx.build import ARCHITECTURE, digest, nvcc

REGISTERS_PER_SM, WARPS_PER_SM, BLOCKS_PER_SM, SHARED_PER_SM = 65536, 64, 32, 228 * 1024
USED = re.compile(r"Used (\d+) registers")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Assembled:
    registers: int
    stack: int
    """Bytes of stack frame and of spills."""
    seconds: float
    """That ptxas took."""


def assembled(ptx: Path, kernel: str) -> Assembled:
    """Runs ptxas on one kernel of a PTX file; the answer is kept beside the file."""
    kept = ptx.parent / f"ptxas-{digest(kernel)}.json"
    if not kept.exists():
        ptxas = Path(nvcc()).with_name("ptxas")
        start = time.perf_counter()
        command = [str(ptxas), "-v", f"-arch=sm_{ARCHITECTURE}", "-O3", "-e", kernel, str(ptx), "-o", "/dev/null"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        seconds = time.perf_counter() - start
        frames = [sum(map(int, frame)) for frame in FRAME.findall(done.stderr)]
        kept.write_text(json.dumps(asdict(Assembled(int(USED.search(done.stderr)[1]), max(frames), round(seconds, 2)))))
    return Assembled(**json.loads(kept.read_text()))


def occupancy(registers: int, threads: int, shared_bytes: int) -> float:
    """Share of an SM's 64 warps that are resident, by registers (256 at a time a warp), shared memory, blocks."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS_PER_SM // per_warp // 4 * 4 // warps  # each of 4 schedulers has its own registers
    by_shared = SHARED_PER_SM // (shared_bytes + 1024)
    return min(by_registers, by_shared, BLOCKS_PER_SM, WARPS_PER_SM // warps) * warps / WARPS_PER_SM
