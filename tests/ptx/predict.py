"""A lower bound of the time that an operator's kernels take on an H200, from counts. It is no measurement.

For each launch the largest of four: bytes between DRAM and L2, sectors between L2 and the SMs, instructions issued, and
passes of the load-store units, each at its full rate and perfectly overlapped with the others. Latency, clocks under
load, what a launch costs and what the real machine code does are not in it; a kernel of low occupancy or long chains
of dependent loads takes longer. So it shows which kernel cannot be fast and why, and orders versions of one
kernel by what bounds them; the last word has a GPU. `floor` is what any kernel needs: every byte of the arguments read
once, every byte of the results written once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from tests.ptx.counts import SECTOR
from tests.ptx.device import Call, Device, Ran
from tests.ptx.memory import READABLE
from tests.ptx.ptxas import assembled, occupancy

SMS, SCHEDULERS, CLOCK = 132, 4, 1.755e9
DRAM, L2 = 4.3e12, 5.5e12
"""Bytes a second, for copies."""
SECTORS_PER_PASS = 4


@dataclass
class LaunchCost:
    kernel: str
    blocks: int
    threads: int
    sampled: int
    """Blocks that were run; the figures below are of the whole launch."""
    instructions: float
    """Warp instructions."""
    load_sectors: float
    """Sectors that warps asked for, L1 hits included."""
    fetched_sectors: float
    """Distinct sectors that each block loads: with L1 hits counted as such."""
    fetched_bytes: float
    """Bytes of them that the block uses."""
    store_sectors: float
    stored_bytes: float
    dram_bytes: float
    shared_wavefronts: float
    passes: float
    load_lanes: float
    """Lanes that loaded something, summed over loads."""
    loaded_bytes: float
    store_lanes: float
    shared_bytes: int
    registers: int
    stack: int
    occupancy: float
    ptxas_seconds: float

    @property
    def load_width(self) -> float:
        """Bytes that a lane loads at once, on average."""
        return self.loaded_bytes / max(1, self.load_lanes)

    @property
    def store_width(self) -> float:
        return self.stored_bytes / max(1, self.store_lanes)

    @property
    def crowding(self) -> float:
        """Blocks of the busiest SM over blocks per SM."""
        return -(-self.blocks // SMS) * SMS / self.blocks

    @property
    def terms(self) -> dict[str, float]:
        """Microseconds by bound."""
        return {
            "dram": self.dram_bytes / DRAM * 1e6,
            "issue": self.instructions * self.crowding / (SMS * SCHEDULERS * CLOCK) * 1e6,
            "load-store": self.passes * self.crowding / (SMS * CLOCK) * 1e6,
            "l2": (self.fetched_sectors + self.store_sectors) * SECTOR / L2 * 1e6,
        }

    @property
    def bound(self) -> str:
        return max(self.terms, key=self.terms.get)

    @property
    def microseconds(self) -> float:
        return self.terms[self.bound]


@dataclass
class Prediction:
    launches: list[LaunchCost]
    outputs: int
    """Elements of the results."""
    floor_bytes: int

    @property
    def floor_us(self) -> float:
        return self.floor_bytes / DRAM * 1e6

    @property
    def predicted_us(self) -> float:
        return sum(launch.microseconds for launch in self.launches)

    @property
    def instructions_per_output(self) -> float:
        """Thread instructions, as if all of a warp's lanes took part in each."""
        return 32 * sum(launch.instructions for launch in self.launches) / self.outputs

    @property
    def load_sectors_per_byte(self) -> float:
        """Bytes fetched into L1 over those of them that are used; 1 at best."""
        return (
            SECTOR * sum(x.fetched_sectors for x in self.launches) / max(1, sum(x.fetched_bytes for x in self.launches))
        )

    @property
    def store_sectors_per_byte(self) -> float:
        """Bytes of the sectors that warps write over the bytes that they store; 1 at best."""
        return SECTOR * sum(x.store_sectors for x in self.launches) / max(1, sum(x.stored_bytes for x in self.launches))

    @property
    def load_width(self) -> float:
        """Bytes that a lane loads at once, on average."""
        return sum(x.loaded_bytes for x in self.launches) / max(1, sum(x.load_lanes for x in self.launches))

    @property
    def store_width(self) -> float:
        return sum(x.stored_bytes for x in self.launches) / max(1, sum(x.store_lanes for x in self.launches))

    @property
    def occupancy(self) -> float:
        """Of the launch with the least."""
        return min((launch.occupancy for launch in self.launches), default=0.0)

    @property
    def share(self) -> float:
        """Of copy bandwidth, that the prediction allows."""
        return self.floor_us / self.predicted_us if self.launches else 1.0

    def summary(self) -> dict[str, Any]:
        names = ["floor_us", "predicted_us", "share", "instructions_per_output", "load_sectors_per_byte"]
        names += ["store_sectors_per_byte", "load_width", "store_width", "occupancy"]
        return {
            **{name: round(getattr(self, name), 3) for name in names},
            "launches": len(self.launches),
            "bounds": [launch.bound for launch in self.launches],
            "registers": [launch.registers for launch in self.launches],
            "spills": sum(launch.stack for launch in self.launches),
        }


def predict(device: Device, call: Call, arguments: Sequence[Tensor], results: Sequence[Tensor]) -> Prediction:
    """From a call that was made with `counting`."""
    floor = sum(distinct_bytes(tensor) for tensor in [*arguments, *results])
    return Prediction([cost_of(device, ran) for ran in call.launches], sum(t.numel() for t in results), floor)


def distinct_bytes(tensor: Tensor) -> int:
    """Of its elements; an expanded axis counts once."""
    extent = [1 if stride == 0 else length for length, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return int(np.prod(extent)) * tensor.element_size()


def cost_of(device: Device, ran: Ran) -> LaunchCost:
    launch, counts, name = ran.launch, ran.launch.counts, ran.program.kernel.name
    sampled = launch.blocks if ran.blocks is None else len(ran.blocks)
    scale = launch.blocks / sampled
    touched = counts.touched()
    on_global = [use for use in counts.uses.values() if use.space == "global"]
    loads, stores = ([a for a in on_global if a.store == store] for store in (False, True))
    wavefronts = counts.shared_wavefronts * scale
    passes = sum(max(a.requests, a.sectors / SECTORS_PER_PASS) for a in on_global) * scale + wavefronts
    dram = 0.0
    for allocation in launch.memory.allocations:
        size = allocation.end - allocation.start
        first, last = allocation.marks_at // SECTOR, (allocation.marks_at + size - 1) // SECTOR
        inside = (touched.sector >= first) & (touched.sector <= last)
        usable = size
        if not allocation.marks & READABLE:
            usable = int(np.count_nonzero(launch.memory.marks[allocation.marks_at :][:size] & READABLE))
        for stored in (False, True):
            dram += min(usable, SECTOR * scale * int((inside & (touched.stored == stored)).sum()))
    made = assembled(
        next(path for path, module in zip(device.ptx, device.modules, strict=True) if name in module), name
    )
    return LaunchCost(
        kernel=name,
        blocks=launch.blocks,
        threads=launch.threads_per_block,
        sampled=sampled,
        instructions=counts.issued * scale,
        load_sectors=sum(a.sectors for a in loads) * scale,
        fetched_sectors=int((~touched.stored).sum()) * scale,
        fetched_bytes=int(touched.bytes[~touched.stored].sum()) * scale,
        store_sectors=sum(a.sectors for a in stores) * scale,
        stored_bytes=sum(a.bytes for a in stores) * scale,
        dram_bytes=dram,
        shared_wavefronts=wavefronts,
        passes=passes,
        load_lanes=sum(a.bytes / a.width for a in loads) * scale,
        loaded_bytes=sum(a.bytes for a in loads) * scale,
        store_lanes=sum(a.bytes / a.width for a in stores) * scale,
        shared_bytes=launch.shared_bytes,
        registers=made.registers,
        stack=made.stack,
        occupancy=occupancy(made.registers, launch.threads_per_block, launch.shared_bytes),
        ptxas_seconds=made.seconds,
    )


def spread_sample(blocks: int):
    """Chooses at most `blocks` of a launch: one at random from each of as many equal parts of the grid."""

    def sample(launch) -> np.ndarray | None:
        if launch.blocks <= blocks:
            return None
        edges = np.linspace(0, launch.blocks, blocks + 1)
        random = np.random.default_rng(0)
        return np.unique((edges[:-1] + random.random(blocks) * np.diff(edges)).astype(np.int64))

    return sample
