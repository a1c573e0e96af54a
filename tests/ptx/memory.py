"""The memory that a kernel may touch, and what stops it: the traps.

Global memory is the process's own. Every tensor of a call is registered with the bytes of its elements, so an access
between two rows of a slice is as much out of range as one past the end. Shared memory is an array per block.
Each byte carries marks: may be read, may be written, holds a value, was written in this launch.
"""

import bisect
import ctypes
import mmap
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WARP = 32
READABLE, WRITABLE, WRITTEN, THIS_LAUNCH = 1, 2, 4, 8
MOST_BYTES = 1 << 36
"""Of the tensors of a call."""
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
SHARED_WINDOW = 1 << 60
"""Where shared memory lies in the generic address space."""


class Fault(Exception):
    """What a kernel did wrong."""


def repeated(mark: int, width: int) -> np.unsignedinteger:
    """`mark` in each of `width` bytes."""
    return UNSIGNED[width](int.from_bytes(bytes([mark]) * width, "little"))


def lazy_zeros(size: int, kind: type) -> np.ndarray:
    """An array of which only what is written takes up memory."""
    no_reserve = 0x4000  # mmap.MAP_NORESERVE, which Python has from 3.13 on
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | no_reserve
    return np.frombuffer(mmap.mmap(-1, size * np.dtype(kind).itemsize, flags=flags), kind)


@dataclass
class Allocation:
    """A storage: its bytes [start, end), whose marks lie at `marks_at`."""

    start: int
    end: int
    marks_at: int
    name: str


class GlobalMemory:
    """The storages of a call's tensors. `allow` comes before the launches that use them. `races`: also remember which
    thread wrote each byte."""

    def __init__(self, races: bool = True) -> None:
        self.races = races
        self.allocations: list[Allocation] = []
        self.starts: list[int] = []
        self.marks = lazy_zeros(MOST_BYTES, np.uint8)
        self.writer = lazy_zeros(MOST_BYTES, np.int32)
        self._end = 0
        self._fresh: list[tuple[np.ndarray, int]] = []  # where this launch has written, and how wide
        self._tensors: list[Tensor] = []  # kept alive, so that no address is used twice
        self._window(1 << 12, 1 << 47)

    def _window(self, start: int, end: int) -> None:
        """Views of the process's memory as arrays of 1, 2, 4 and 8 bytes."""
        data = np.frombuffer((ctypes.c_uint8 * (end - start)).from_address(start), np.uint8)
        self.origin = start
        self.words = {width: data.view(kind) for width, kind in UNSIGNED.items()}

    def read(self, addresses: np.ndarray, width: int) -> np.ndarray:
        return self.words[width][(addresses - self.origin) // width]

    def write(self, addresses: np.ndarray, width: int, values: np.ndarray) -> None:
        self.words[width][(addresses - self.origin) // width] = values

    def allow(self, tensor: Tensor, name: str, marks: int) -> None:
        """Gives the bytes of the tensor's elements `marks`, besides those they have."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return
        self._tensors.append(tensor)
        allocation = self._find(storage.data_ptr())
        if allocation is None:
            allocation = self._add(storage.data_ptr(), storage.nbytes(), name)
        size = allocation.end - allocation.start
        shadow = torch.from_numpy(self.marks[allocation.marks_at : allocation.marks_at + size])
        width = tensor.element_size()
        # An expanded axis is one element long; what overlaps otherwise is marked more than once.
        extent = [1 if stride == 0 else length for length, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        if tensor.numel():
            strides = [stride * width for stride in tensor.stride()] + [1]
            view = shadow.as_strided([*extent, width], strides, tensor.storage_offset() * width)
            view.copy_(view | marks)

    def _find(self, start: int) -> Allocation | None:
        i = bisect.bisect_right(self.starts, start) - 1
        return self.allocations[i] if i >= 0 and self.allocations[i].end > start else None

    def _add(self, start: int, size: int, name: str) -> Allocation:
        at = -(-self._end // 64) * 64 + start % 64  # marks are aligned as the memory is
        self._end = at + size
        allocation = Allocation(start, start + size, at, name)
        i = bisect.bisect(self.starts, start)
        self.starts.insert(i, start)
        self.allocations.insert(i, allocation)
        return allocation

    def check_complete(self, tensor: Tensor, what: str) -> None:
        """Every element of a result must have been written."""
        if tensor.numel() == 0:
            return
        storage = tensor.untyped_storage()
        allocation = self._find(storage.data_ptr())
        marks = torch.from_numpy(self.marks[allocation.marks_at : allocation.marks_at + storage.nbytes()])
        width = tensor.element_size()
        strides = [stride * width for stride in tensor.stride()]
        missing = (marks.as_strided(tensor.shape, strides, tensor.storage_offset() * width) & WRITTEN) == 0
        if missing.any():
            first = tuple(missing.nonzero()[0].tolist())
            raise Fault(
                f"{what}: {int(missing.sum())} elements of {allocation.name} were never written, the first at {first}"
            )

    def begin_launch(self) -> None:
        for at, width in self._fresh:
            self.marks.view(UNSIGNED[width])[at // width] &= ~repeated(THIS_LAUNCH, width)
        self._fresh = []

    def locate(self, addresses: np.ndarray, size: int, what: str) -> np.ndarray:
        """Where the marks of each address lie.

        Raises:
            Fault: an access of `size` bytes is misaligned or lies outside of every tensor's storage.
        """
        if np.bitwise_or.reduce(addresses) & (size - 1):
            bad = addresses[(addresses & (size - 1)) != 0][0]
            raise Fault(f"{what}: misaligned: address {bad:#x} is no multiple of {size}")
        low, high = int(addresses.min()), int(addresses.max())
        allocation = self._find(low)
        if allocation is not None and high + size <= allocation.end:
            return addresses + (allocation.marks_at - allocation.start)
        starts = np.array(self.starts, np.int64)
        ends = np.array([a.end for a in self.allocations], np.int64)
        shift = np.array([a.marks_at - a.start for a in self.allocations], np.int64)
        i = np.searchsorted(starts, addresses, "right") - 1
        outside = (i < 0) | (addresses + size > ends[i]) if len(starts) else np.ones(len(addresses), bool)
        if outside.any():
            raise Fault(
                f"{what}: out of range: {int(outside.sum())} lanes, the first at {self.describe(addresses[outside][0])}"
            )
        return addresses + shift[i]

    def describe(self, address: int) -> str:
        """An address by the tensors around it."""
        address = int(address)
        nearest = min(self.allocations, key=lambda a: min(abs(address - a.start), abs(address - a.end)), default=None)
        if nearest is None:
            return f"{address:#x}, and the call has no tensors"
        if nearest.start <= address < nearest.end:
            return f"byte {address - nearest.start} of {nearest.name} (of {nearest.end - nearest.start} bytes)"
        side = (
            f"{address - nearest.end} bytes past the end"
            if address >= nearest.end
            else f"{nearest.start - address} bytes before the start"
        )
        return f"{side} of {nearest.name}"

    def check_read(self, at: np.ndarray, width: int, lanes: np.ndarray, what: str, addresses: np.ndarray) -> None:
        marks = self.marks.view(UNSIGNED[width])[at // width]
        wanted = repeated(READABLE | WRITTEN, width)
        if ((marks & wanted) != wanted).any():
            bad = (marks & wanted) != wanted
            readable = repeated(READABLE, width)
            reason = "out of range of the tensor" if ((marks[bad] & readable) != readable).any() else "never written"
            raise Fault(f"{what}: reads memory that is {reason}: {self.describe(addresses[bad][0])}")
        if not self.races:
            return
        fresh = (marks & repeated(THIS_LAUNCH, width)) != 0
        if fresh.any() and (self.writer[at[fresh]] != lanes[fresh]).any():
            other = self.writer[at] != lanes
            where = self.describe(addresses[fresh & other][0])
            raise Fault(f"{what}: race: reads what another thread of this launch writes: {where}")

    def check_write(self, at: np.ndarray, width: int, lanes: np.ndarray, what: str, addresses: np.ndarray) -> None:
        words = self.marks.view(UNSIGNED[width])
        marks = words[at // width]
        wanted = repeated(WRITABLE, width)
        if ((marks & wanted) != wanted).any():
            bad = addresses[(marks & wanted) != wanted][0]
            raise Fault(f"{what}: writes outside of the results: {self.describe(bad)}")
        words[at // width] = marks | repeated(WRITTEN | THIS_LAUNCH, width)
        if not self.races:
            return
        self._fresh.append((at, width))
        again = (marks & repeated(THIS_LAUNCH, width)) != 0
        if again.any() and (self.writer[at[again]] != lanes[again]).any():
            other = again & (self.writer[at] != lanes)
            raise Fault(f"{what}: race: two threads of this launch write {self.describe(addresses[other][0])}")
        for byte in range(width):
            self.writer[at + byte] = lanes
        if (self.writer[at] != lanes).any():
            raise Fault(
                f"{what}: race: two threads write {self.describe(addresses[self.writer[at] != lanes][0])} at once"
            )


class SharedMemory:
    """Of `blocks` blocks at once; `size` bytes each. Marks are kept for every `grain` bytes, the narrowest access.

    An access races with one by another thread unless a barrier of the block, or of the warp that both are of, lies
    between them.
    """

    NOBODY, SEVERAL = -1, -2
    OF_WARP = -3
    """Several lanes of warp w: OF_WARP - w."""

    def __init__(self, blocks: int, size: int, grain: int, warps: int) -> None:
        self.size, self.grain = size, grain
        self.stride = -(-size // 16) * 16
        data = np.zeros(blocks * self.stride, np.uint8)
        self.words = {width: data.view(kind) for width, kind in UNSIGNED.items()}
        cells = blocks * self.stride // grain
        self.written = np.zeros(cells, bool)
        self.writer = np.full(cells, self.NOBODY, np.int32)
        self.reader = np.full(cells, self.NOBODY, np.int32)
        self.epoch = np.zeros(warps, np.int32)
        """Barriers that each warp has passed alone."""
        self.write_epoch = np.zeros(cells, np.int32)
        self.read_epoch = np.zeros(cells, np.int32)

    def barrier(self, blocks: np.ndarray) -> None:
        """What the threads of these blocks wrote and read lies behind a barrier."""
        for who in (self.writer, self.reader):
            who.reshape(-1, self.stride // self.grain)[blocks] = self.NOBODY

    def warp_barrier(self, lanes: np.ndarray) -> None:
        """The same for threads of one warp among each other."""
        self.epoch[np.unique(lanes // WARP)] += 1

    def locate(self, addresses: np.ndarray, size: int, blocks: np.ndarray, what: str) -> np.ndarray:
        """Where the bytes of each lane's access begin.

        Raises:
            Fault: one is misaligned or does not lie in its block's memory.
        """
        if np.bitwise_or.reduce(addresses) & (size - 1):
            bad = addresses[(addresses & (size - 1)) != 0][0]
            raise Fault(f"{what}: misaligned: shared address {int(bad)} is no multiple of {size}")
        if addresses.min() < 0 or addresses.max() + size > self.size:
            bad = addresses[(addresses < 0) | (addresses + size > self.size)][0]
            raise Fault(f"{what}: out of range: byte {int(bad)} of {self.size} of shared memory")
        return blocks * self.stride + addresses

    def check_read(self, at: np.ndarray, width: int, lanes: np.ndarray, what: str) -> None:
        warps = lanes // WARP
        for byte in range(0, width, self.grain):
            i = (at + byte) // self.grain
            if not self.written[i].all():
                raise Fault(f"{what}: reads shared memory that was never written: {self._byte(i, ~self.written[i])}")
            racing = self._races(self.writer[i], self.write_epoch[i], lanes, warps)
            if racing.any():
                raise Fault(f"{what}: race: reads what another thread has just written: {self._byte(i, racing)}")
            before = self.reader[i]
            same_warp = np.where(before >= 0, before // WARP, self.OF_WARP - before) == warps
            alone = (before == self.NOBODY) | (before == lanes)
            self.reader[i] = np.where(alone, lanes, np.where(same_warp, self.OF_WARP - warps, self.SEVERAL))
            self.read_epoch[i] = self.epoch[warps]
            # Lanes of this very access that share a cell: one of them was kept.
            kept = self.reader[i]
            together = (kept >= 0) & (kept != lanes)
            if together.any():
                of_warp = kept[together] // WARP == warps[together]
                self.reader[i[together]] = np.where(of_warp, self.OF_WARP - warps[together], self.SEVERAL)

    def check_write(self, at: np.ndarray, width: int, lanes: np.ndarray, what: str) -> None:
        warps = lanes // WARP
        for byte in range(0, width, self.grain):
            i = (at + byte) // self.grain
            for who, epoch, did in (
                (self.writer, self.write_epoch, "written"),
                (self.reader, self.read_epoch, "read"),
            ):
                racing = self._races(who[i], epoch[i], lanes, warps)
                if racing.any():
                    raise Fault(f"{what}: race: writes what another thread has just {did}: {self._byte(i, racing)}")
            self.writer[i] = lanes
            self.write_epoch[i] = self.epoch[warps]
            if (self.writer[i] != lanes).any():
                raise Fault(f"{what}: race: two threads write at once: {self._byte(i, self.writer[i] != lanes)}")
            self.written[i] = True

    def _races(self, who: np.ndarray, epoch: np.ndarray, lanes: np.ndarray, warps: np.ndarray) -> np.ndarray:
        """Where an access by `lanes` is not ordered after the one by `who`."""
        same_warp = np.where(who >= 0, who // WARP, self.OF_WARP - who) == warps
        ordered = same_warp & (epoch < self.epoch[warps])
        return (who != self.NOBODY) & (who != lanes) & ~ordered

    def _byte(self, cells: np.ndarray, where: np.ndarray) -> str:
        return f"byte {int(cells[where][0] * self.grain % self.stride)}"
