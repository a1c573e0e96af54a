"""Threads of a launch that are at the same instruction: their registers, and what their instructions use besides."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx.memory import WARP, Access, Fault, distinct

if TYPE_CHECKING:
    from tests.ptx.machine import Machine

SHARED_WINDOW = 1 << 60
"""Where shared memory lies in the generic address space."""
REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum}
REDUCTIONS |= {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}


class Group:
    """`registers` holds those that this group has used or written, an element a lane; others lie in the machine.

    What a guard (`@p`) keeps from executing takes no part in an access.
    """

    def __init__(self, machine: Machine, lanes: np.ndarray, registers: list | None = None) -> None:
        self.machine, self.lanes = machine, lanes
        self.registers = registers if registers is not None else [None] * machine.program.registers
        self.dirty = 0
        """Registers that were written and have not been left in the machine, as bits."""
        self.whole = len(lanes) == len(machine.lanes)
        self.warps = machine.warps if self.whole else len(distinct(lanes // WARP))

    @property
    def positions(self) -> np.ndarray:
        """Indices of this group's lanes in the machine's registers."""
        return self.machine.position[self.lanes]

    def fetch(self, numbers: Iterable[int]) -> None:
        """Takes registers from the machine that are not here yet; one that was never written is 0."""
        for number in numbers:
            if self.registers[number] is None:
                value = self.machine.registers[number]
                if value is None:
                    value = np.zeros(1, self.machine.program.kinds[number])
                elif len(value) != 1 and not self.whole:
                    value = value[self.positions]
                self.registers[number] = value

    def flush(self, live: int) -> None:
        """Leaves live registers in the machine, for groups made of this one's lanes."""
        kept, size = self.machine.registers, len(self.machine.lanes)
        for number in bits(self.dirty & live):
            value = self.registers[number]
            if not self.whole:
                old = kept[number] if kept[number] is not None else np.zeros(1, value.dtype)
                whole = np.repeat(old, size) if len(old) == 1 else old.copy()
                whole[self.positions] = value
                value = whole
            kept[number] = value
        self.dirty = 0

    def spread(self, value: np.ndarray) -> np.ndarray:
        """A value of all lanes as an array of them."""
        return np.broadcast_to(value, len(self.lanes))

    # ---- registers of the machine and parameters

    def special(self, name: str) -> np.ndarray:
        value = self.machine.special(name)
        return value if len(value) == 1 or self.whole else value[self.positions]

    def parameter(self, address: np.ndarray, width: int, count: int) -> list[np.ndarray]:
        if (address == address[0]).all():
            address = address[:1]
        return [self.machine.launch.arguments[width][address // width + i] for i in range(count)]

    # ---- memory

    def load(
        self, site: int, space: str, address: np.ndarray, width: int, count: int, guard: np.ndarray | None
    ) -> list[np.ndarray]:
        space, address = self._resolved(site, space, address)
        access, guard = self._access(site, address, width, count, guard)
        if access is None:
            return [np.zeros(1, f"u{width}")] * count
        values = self._memory(space, access, store=False).load(access)
        if guard is None:
            return values
        whole = [np.zeros(len(self.lanes), value.dtype) for value in values]
        for array, value in zip(whole, values, strict=True):
            array[guard] = value
        return whole

    def store(
        self, site: int, space: str, address: np.ndarray, width: int, values: tuple, guard: np.ndarray | None
    ) -> None:
        space, address = self._resolved(site, space, address)
        access, guard = self._access(site, address, width, len(values), guard)
        if access is not None:
            chosen = values if guard is None else [self.spread(value)[guard] for value in values]
            access.address = np.broadcast_to(access.address, len(access.lanes))
            self._memory(space, access, store=True).store(access, chosen)

    def _resolved(self, site: int, space: str, address: np.ndarray) -> tuple[str, np.ndarray]:
        """The memory that a generic address means."""
        if space != "generic":
            return space, address
        if address.max() < SHARED_WINDOW:
            return "global", address
        if address.min() < SHARED_WINDOW:
            raise Fault(f"{self.machine.what(site)}: accesses shared and global memory at once")
        return "shared", address - SHARED_WINDOW

    def _access(
        self, site: int, address: np.ndarray, width: int, count: int, guard: np.ndarray | None
    ) -> tuple[Access | None, np.ndarray | None]:
        """An access by the lanes for which the guard holds (None: by no lane), and the guard unless all of them do."""
        lanes = self.lanes
        if guard is not None and not guard.all():
            if not guard.any():
                return None, guard
            lanes, address = lanes[guard], address if len(address) == 1 else address[guard]
        else:
            guard = None
        machine = self.machine
        return Access(
            site, machine.what(site), address, width, count, lanes, machine.block_of(lanes), machine.thread[lanes]
        ), guard

    def _memory(self, space: str, access: Access, store: bool):
        launch = self.machine.launch
        if launch.counts is not None:
            launch.counts.add(space, access, store, self.machine)
        return launch.memory if space == "global" else self.machine.shared

    # ---- warps

    def active_mask(self) -> np.ndarray:
        return self._ballot(np.ones(1, np.bool_))

    def _ballot(self, value: np.ndarray) -> np.ndarray:
        """The lanes of its warp for which a value holds, for each lane."""
        bit = np.where(value, np.uint32(1) << (self.lanes % WARP).astype(np.uint32), np.uint32(0))
        _, first, where = np.unique(self.lanes // WARP, return_index=True, return_inverse=True)
        return np.bitwise_or.reduceat(bit, first, dtype=np.uint32)[where]

    def vote(self, mode: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
        ballot = self._ballot(value) & mask
        if mode == "ballot":
            return ballot
        every, none = ballot == mask, ballot == 0
        return {"all": every, "any": ~none, "uni": every | none}[mode]

    def reduce(self, mode: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """redux.sync over the lanes of each warp, which all take part."""
        _, first, where = np.unique(self.lanes // WARP, return_index=True, return_inverse=True)
        return REDUCTIONS[mode].reduceat(self.spread(value), first, dtype=value.dtype)[where]

    def shuffle(
        self, site: int, mode: str, value: np.ndarray, b: np.ndarray, clamp: np.ndarray, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """shfl.sync: each lane's value from the lane that `mode` and `b` name within its segment, and whether it is
        there."""
        lane = self.lanes % WARP
        b, clamp = b.astype(np.int64) & 31, clamp.astype(np.int64)
        segment, limit = (clamp >> 8) & 31, clamp & 31
        last = (lane & segment) | (limit & ~segment & 31)
        named = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": (lane & segment) | (b & ~segment & 31)}
        source = named[mode]
        valid = source >= last if mode == "up" else source <= last
        source = np.where(valid, source, lane)
        held = np.full(self.machine.warps * WARP, -1)
        held[self.lanes] = np.arange(len(self.lanes))
        index = held[self.lanes - lane + source]
        if (index < 0).any():
            raise Fault(f"{self.machine.what(site)}: shuffles from a lane that takes no part")
        return self.spread(value)[index], self.spread(valid)

    def warp_barrier(self) -> None:
        if self.machine.shared is not None:
            self.machine.shared.warp_barrier(self.lanes)


def bits(number: int) -> Iterator[int]:
    """Positions of the ones."""
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest
