"""What a launch costs: issued instructions, sectors of memory, bytes; and the time that these bound from below.

Everything is counted per warp, as the hardware issues. An instruction's weight is the number of machine instructions
that ptxas makes of it on sm_90, on average (`WEIGHTS`). A global access moves 32-byte sectors: each distinct sector of
a warp's access counts once. Loads that hit in L1 because their block loaded the sector before are counted apart.
"""

import functools
from dataclasses import dataclass

import numpy as np

from tests.ptx.translate import Program

SECTOR = 32

# Machine instructions per PTX instruction on sm_90; those that are not here become one.
WEIGHTS = {
    "mul.lo.s64": 4, "mul.lo.u64": 4, "mad.lo.s64": 4, "add.s64": 2, "sub.s64": 2, "neg.s64": 2, "setp.s64": 2,
    "setp.u64": 2, "shl.b64": 2, "shr.s64": 2, "shr.u64": 2, "and.b64": 1.5, "or.b64": 1.5, "selp.b64": 2,
    "selp.u64": 2, "min.s64": 4, "max.s64": 4, "div.u32": 16, "div.s32": 22, "rem.u32": 18, "rem.s32": 24,
    "div.s64": 90, "div.u64": 80, "cvt.u64.u32": 0.5, "cvt.u32.u64": 0, "cvta.to.global.u64": 0, "ld.param": 0.3,
    "mov": 0.4, "div.rn.f32": 12, "rcp.rn.f32": 6, "sqrt.rn.f32": 8, "div.rn.f64": 20, "rcp.rn.f64": 16, "ex2": 2,
    "bra.uni": 0.5,
}  # fmt: skip


@functools.cache
def weight(opcode: str) -> float:
    parts = opcode.split(".")
    for key in (opcode, f"{parts[0]}.{parts[1]}" if len(parts) > 1 else "", f"{parts[0]}.{parts[-1]}", parts[0]):
        if key in WEIGHTS:
            return WEIGHTS[key]
    return 1


@dataclass
class Access:
    """What the executions of one load or store came to."""

    width: int
    """Bytes per lane."""
    store: bool
    requests: int = 0
    """Executions by a warp."""
    sectors: int = 0
    bytes: int = 0


class Counts:
    """Of one launch, or of those of its blocks that were run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.visits = np.zeros(len(program.blocks), np.int64)
        """Warps that ran each basic block."""
        self.accesses: dict[int, Access] = {}
        """By the instruction's index."""
        self.shared_wavefronts = 0
        """Passes over the 32 banks of shared memory."""
        self._touched: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending = 0

    def on_global(self, site: int, address: np.ndarray, size: int, lanes: np.ndarray, machine, store: bool) -> None:
        access = self.accesses.setdefault(site, Access(size, store))
        warp = lanes // 32
        starts = np.flatnonzero(np.concatenate([[True], warp[1:] != warp[:-1]]))
        access.requests += len(starts)
        access.bytes += size * len(lanes)
        memory = machine.launch.memory
        if len(address) == 1:
            access.sectors += len(starts) * max(1, size // SECTOR)
            blocks = machine.ordinal_of(lanes[starts])
            position = np.repeat(memory.locate(address, size, "")[0], len(starts))
        else:
            blocks = machine.ordinal_of(lanes)
            position, _ = memory.locate(address, size, "")
            sector = position // SECTOR
            keys = warp << 40 | sector
            step = keys[1:] - keys[:-1]
            access.sectors += (int((step != 0).sum()) + 1 if (step >= 0).all() else len(np.unique(keys))) * max(
                1, size // SECTOR
            )
        used = (np.uint32(2 ** min(size, 32) - 1) << (position % SECTOR).astype(np.uint32)).astype(np.uint32)
        key = (blocks << 1 | int(store)) << 40 | position // SECTOR
        self._touched.append((key, used))
        self._pending += len(key)
        if self._pending > 1 << 21:
            self._compact()

    def _compact(self) -> None:
        if not self._touched:
            return
        key = np.concatenate([k for k, _ in self._touched])
        used = np.concatenate([u for _, u in self._touched])
        order = np.argsort(key, kind="stable")
        key, used = key[order], used[order]
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]]))
        self._touched = [(key[starts], np.bitwise_or.reduceat(used, starts))]
        self._pending = len(starts)

    def on_shared(self, site: int, address: np.ndarray, size: int, lanes: np.ndarray, store: bool) -> None:
        """32 banks of 4 bytes: a pass serves one word of each. Lanes that access 8 or 16 bytes take turns: half or a
        quarter of a warp at a time."""
        warp = lanes // 32
        access = self.accesses.setdefault(site, Access(size, store))
        access.requests += int((warp[1:] != warp[:-1]).sum()) + 1
        access.bytes += size * len(lanes)
        words = -(-size // 4)
        turn = np.repeat(lanes * words // 32, words)
        word = (address[:, None] // 4 + np.arange(words)).ravel()
        distinct = np.unique(turn << 32 | word)
        banks, words_of_bank = np.unique((distinct >> 32) * 32 + (distinct & 31), return_counts=True)
        turns = banks // 32
        firsts = np.flatnonzero(np.concatenate([[True], turns[1:] != turns[:-1]]))
        self.shared_wavefronts += int(np.maximum.reduceat(words_of_bank, firsts).sum())

    def by_opcode(self) -> dict[str, int]:
        """Warp instructions by opcode."""
        result: dict[str, int] = {}
        for block, visits in zip(self.program.blocks, self.visits, strict=True):
            if visits:
                for instruction in self.program.kernel.instructions[block.first : block.last]:
                    result[instruction.opcode] = result.get(instruction.opcode, 0) + int(visits)
        return result

    @property
    def issued(self) -> float:
        """Warp instructions of the machine, by `WEIGHTS`."""
        instructions = self.program.kernel.instructions
        return sum(
            int(visits) * sum(weight(i.opcode) for i in instructions[block.first : block.last])
            for block, visits in zip(self.program.blocks, self.visits, strict=True)
            if visits
        )

    def touched(self) -> "Touched":
        self._compact()
        key, used = self._touched[0] if self._touched else (np.zeros(0, np.int64), np.zeros(0, np.uint32))
        return Touched((key >> 40) & 1 == 1, key & ((1 << 40) - 1), np.bitwise_count(used).astype(np.int64))


@dataclass
class Touched:
    """Sectors of global memory that blocks touched, once for each block that did."""

    stored: np.ndarray
    """Whether by stores; else by loads."""
    sector: np.ndarray
    """Index among the marks of the call's memory."""
    bytes: np.ndarray
    """How many of its 32 bytes the block used."""
