"""What ptxas makes of a kernel on sm_90: registers, spills, size, and the occupancy that follows."""

import json
import re
import struct
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tests.ptx.build import ARCHITECTURE, digest, nvcc, run

REGISTERS_PER_SM, WARPS_PER_SM, BLOCKS_PER_SM, SHARED_PER_SM = 65536, 64, 32, 228 * 1024
NOP = 0x918
USED = re.compile(r"Used (\d+) registers")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")


@dataclass(frozen=True)
class Assembled:
    registers: int
    stack: int
    """Bytes of stack frame and of spills."""
    instructions: int
    """Of the machine, in the kernel's code."""
    seconds: float
    """CPU time that ptxas took."""


def assembled(ptx: Path, kernel: str) -> Assembled:
    """Runs ptxas on one kernel of a PTX file; the answer is kept beside the file."""
    kept = ptx.parent / f"ptxas-{digest(kernel)}.json"
    if not kept.exists():
        with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
            ptxas = str(Path(nvcc()).with_name("ptxas"))
            command = [ptxas, "-v", f"-arch=sm_{ARCHITECTURE}", "-O3", "-e", kernel, str(ptx), "-o", cubin.name]
            text, seconds = run(command)
            instructions = machine_instructions(Path(cubin.name).read_bytes(), kernel)
        stack = max(sum(map(int, frame)) for frame in FRAME.findall(text))
        facts = Assembled(int(USED.search(text)[1]), stack, instructions, round(seconds, 2))
        kept.write_text(json.dumps(asdict(facts)))
    return Assembled(**json.loads(kept.read_text()))


def machine_instructions(cubin: bytes, kernel: str) -> int:
    """Instructions of 16 bytes in a kernel's section of an ELF file, without the NOPs that fill it up."""
    (sections,) = struct.unpack_from("<Q", cubin, 40)
    size, count, names = struct.unpack_from("<HHH", cubin, 58)
    headers = [struct.unpack_from("<IIQQQQ", cubin, sections + i * size) for i in range(count)]
    for name, _, _, _, offset, length in headers:
        start = headers[names][4] + name
        if cubin[start : cubin.index(b"\0", start)] == f".text.{kernel}".encode():
            opcodes = [struct.unpack_from("<H", cubin, offset + i)[0] & 0xFFF for i in range(0, length, 16)]
            return sum(opcode != NOP for opcode in opcodes)
    raise ValueError(f"{kernel} is not in the cubin")


def occupancy(registers: int, threads: int, shared_bytes: int) -> float:
    """Share of an SM's 64 warps that are resident, by registers (256 at a time a warp), shared memory, blocks."""
    warps = -(-threads // 32)
    per_warp = -(-registers * 32 // 256) * 256
    by_registers = REGISTERS_PER_SM // per_warp // 4 * 4 // warps  # each of 4 schedulers has its own registers
    by_shared = SHARED_PER_SM // (shared_bytes + 1024)
    return min(by_registers, by_shared, BLOCKS_PER_SM, WARPS_PER_SM // warps) * warps / WARPS_PER_SM
