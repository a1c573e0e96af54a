"""What a launch costs: issued instructions, sectors of memory, bytes; and the time that these bound from below.

Everything is counted per warp, as the hardware issues. An instruction's weight is the number of machine instructions
that ptxas makes of it on sm_90, on average (`WEIGHTS`). A global access moves 32-byte sectors: each distinct sector of
a warp's access counts once. Loads that hit in L1 because their block loaded the sector before are counted apart.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx.memory import WARP, Access, distinct
from tests.ptx.program import Program

if TYPE_CHECKING:
    from tests.ptx.machine import Machine

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
class Use:
    """All executions of one load or store."""

    space: str
    store: bool
    width: int
    """Bytes per lane."""
    requests: int = 0
    """Executions by a warp."""
    sectors: int = 0
    """Of global memory."""
    bytes: int = 0


class Counts:
    """Of one launch, or of those of its blocks that were run."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.visits = np.zeros(len(program.blocks), np.int64)
        """Warps that ran each basic block."""
        self.uses: dict[int, Use] = {}
        """By the instruction's index."""
        self.shared_wavefronts = 0
        """Passes over the 32 banks of shared memory."""
        self._touched: list[tuple[np.ndarray, np.ndarray]] = []
        self._pending = 0

    def add(self, space: str, access: Access, store: bool, machine: Machine) -> None:
        """Counts one access by a group of lanes."""
        uses = self.uses.setdefault(access.site, Use(space, store, access.size))
        warps = access.lanes // WARP
        firsts = np.flatnonzero(np.concatenate([[True], warps[1:] != warps[:-1]]))
        uses.requests += len(firsts)
        uses.bytes += access.size * len(access.lanes)
        if space == "global":
            self._add_global(access, uses, warps, firsts, machine)
        else:
            self._add_shared(access)

    def _add_global(self, access: Access, use: Use, warps: np.ndarray, firsts: np.ndarray, machine: Machine) -> None:
        at, _ = machine.launch.memory.locate(access)
        blocks, sectors = machine.first + access.blocks, at // SECTOR
        if len(at) == 1:
            use.sectors += len(firsts)
            blocks = blocks[firsts]
        else:
            keys = warps << 40 | sectors
            steps = keys[1:] - keys[:-1]
            use.sectors += int((steps != 0).sum()) + 1 if (steps >= 0).all() else len(distinct(keys))
        bytes_used = np.uint32(2**access.size - 1) << (at % SECTOR).astype(np.uint32)
        touched = (blocks << 1 | int(use.store)) << 40 | sectors
        self._touched.append((touched, np.broadcast_to(bytes_used, len(touched))))
        self._pending += len(touched)
        if self._pending > 1 << 21:
            self._compact()

    def _add_shared(self, access: Access) -> None:
        """32 banks of 4 bytes: a pass serves one word of each. Lanes that access 8 or 16 bytes take turns: half or a
        quarter of a warp at a time."""
        words = -(-access.size // 4)
        turn = np.repeat(access.lanes * words // 32, words)
        address = np.broadcast_to(access.address, len(access.lanes))
        word = (address[:, None] // 4 + np.arange(words)).ravel()
        served = distinct(turn << 32 | word)
        banks, words_of_bank = np.unique((served >> 32) * 32 + (served & 31), return_counts=True)
        turns = banks // 32
        firsts = np.flatnonzero(np.concatenate([[True], turns[1:] != turns[:-1]]))
        self.shared_wavefronts += int(np.maximum.reduceat(words_of_bank, firsts).sum())

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

    def touched(self) -> Touched:
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
