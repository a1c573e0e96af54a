"""Global memory, and what stops a kernel there: misaligned, out-of-range and uninitialised accesses, and races.

It is the process's own memory. Every tensor of a call is registered with the bytes of its elements, so an access
between two rows of a slice is as much out of range as one past the end. Each byte carries marks: may be read, may be
written, holds a value, was written in this launch.
"""

import bisect
import ctypes
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WARP = 32
READABLE, WRITABLE, WRITTEN, THIS_LAUNCH = 1, 2, 4, 8
MOST_BYTES = 1 << 36
"""Of the tensors of a call."""
UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


class Fault(Exception):
    """What a kernel did wrong."""


REPEATED = {
    width: np.array([int.from_bytes(bytes([mark]) * width, "little") for mark in range(16)], kind)
    for width, kind in UNSIGNED.items()
}
"""Marks in each of 1, 2, 4 or 8 bytes."""


@dataclass
class Access:
    """One load or store, by `lanes` lanes of a machine: `count` values of `width` bytes from `address` on."""

    site: int
    """The instruction's index."""
    what: str
    """The kernel and the instruction, for a fault."""
    address: np.ndarray
    """Of each lane; one element where all lanes share it."""
    width: int
    count: int
    lanes: np.ndarray
    blocks: np.ndarray
    threads: np.ndarray
    """Number of each lane's thread in the launch."""

    @property
    def size(self) -> int:
        return self.width * self.count

    def fault(self, reason: str) -> Fault:
        return Fault(f"{self.what}: {reason}")

    def check_alignment(self) -> None:
        if np.bitwise_or.reduce(self.address) & (self.size - 1):
            bad = int(self.address[(self.address & (self.size - 1)) != 0][0])
            raise self.fault(f"misaligned: address {bad:#x} is no multiple of {self.size}")


def distinct(values: np.ndarray) -> np.ndarray:
    """Sorted, each once. np.unique hashes, and addresses at equal steps collide."""
    ordered = np.sort(values)
    return ordered[np.concatenate([[True], ordered[1:] != ordered[:-1]])]


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
    marks: int = 0
    """Marks that all of its bytes have, besides their own."""


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

    def allow(self, tensor: Tensor, name: str, marks: int) -> None:
        """Gives the bytes of the tensor's elements `marks`, besides those they have."""
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return
        self._tensors.append(tensor)
        allocation = self._find(storage.data_ptr())
        if allocation is None:
            allocation = self._add(storage.data_ptr(), storage.nbytes(), name)
        if tensor.numel() * tensor.element_size() == storage.nbytes() and 0 not in tensor.stride():
            allocation.marks |= marks
        elif tensor.numel():
            view = self._marks_of(tensor, allocation)
            view.copy_(view | marks)

    def _marks_of(self, tensor: Tensor, allocation: Allocation) -> Tensor:
        """Marks of the bytes of a tensor's elements; an expanded axis is one element long."""
        marks = torch.from_numpy(self.marks[allocation.marks_at :][: allocation.end - allocation.start])
        width = tensor.element_size()
        extent = [1 if stride == 0 else length for length, stride in zip(tensor.shape, tensor.stride(), strict=True)]
        strides = [stride * width for stride in tensor.stride()]
        return marks.as_strided([*extent, width], [*strides, 1], tensor.storage_offset() * width)

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
        allocation = self._find(tensor.untyped_storage().data_ptr())
        missing = ((self._marks_of(tensor, allocation)[..., 0] | allocation.marks) & WRITTEN) == 0
        if missing.any():
            first = tuple(missing.nonzero()[0].tolist())
            raise Fault(
                f"{what}: {int(missing.sum())} elements of {allocation.name} were never written, the first at {first}"
            )

    def begin_launch(self) -> None:
        for at, width in self._fresh:
            self.marks.view(UNSIGNED[width])[at // width] &= ~REPEATED[width][THIS_LAUNCH]
        self._fresh = []

    def assume_written(self) -> None:
        """Takes all results as written, after a launch of which only some blocks were run."""
        for allocation in self.allocations:
            if allocation.marks & WRITABLE:
                allocation.marks |= WRITTEN

    def load(self, access: Access) -> list[np.ndarray]:
        """The values of each lane, as unsigned integers.

        Raises:
            Fault: misaligned, out of range of the tensors, uninitialised, or written by another thread.
        """
        at, given = self.locate(access)
        for i in range(access.count):
            self._check_read(access, i, at, given)
        words, index = self.words[access.width], (access.address - self.origin) // access.width
        return [words[index + i] for i in range(access.count)]

    def store(self, access: Access, values: Sequence[np.ndarray]) -> None:
        """Writes the values of each lane.

        Raises:
            Fault: misaligned, outside of the results, or written by another thread.
        """
        at, given = self.locate(access)
        words, index = self.words[access.width], (access.address - self.origin) // access.width
        for i, value in enumerate(values):
            self._check_write(access, i, at, given)
            words[index + i] = value

    def locate(self, access: Access) -> tuple[np.ndarray, np.ndarray]:
        """Where the marks of each address lie, and the marks that its allocation has as a whole.

        Raises:
            Fault: an address is misaligned or lies outside of every tensor's storage.
        """
        access.check_alignment()
        address, size = access.address, access.size
        low, high = int(address.min()), int(address.max())
        allocation = self._find(low)
        if allocation is not None and high + size <= allocation.end:
            return address + (allocation.marks_at - allocation.start), np.array([allocation.marks])
        starts = np.array(self.starts, np.int64)
        ends = np.array([a.end for a in self.allocations], np.int64)
        shift = np.array([a.marks_at - a.start for a in self.allocations], np.int64)
        i = np.searchsorted(starts, address, "right") - 1
        outside = (i < 0) | (address + size > ends[i]) if len(starts) else np.ones(len(address), bool)
        if outside.any():
            lanes, first = int(outside.sum()), self.describe(address[outside][0])
            raise access.fault(f"out of range: {lanes} lanes, the first at {first}")
        return address + shift[i], np.array([a.marks for a in self.allocations])[i]

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

    def _check_read(self, access: Access, i: int, at: np.ndarray, given: np.ndarray) -> None:
        """Of the i-th value of each lane."""
        width, at = access.width, at + i * access.width
        marks = self.marks.view(UNSIGNED[width])[at // width]
        wanted = REPEATED[width][(READABLE | WRITTEN) & ~given]
        bad = (marks & wanted) != wanted
        if bad.any():
            readable = REPEATED[width][READABLE & ~given]
            reason = "out of range of the tensor" if ((marks & readable) != readable).any() else "never written"
            raise access.fault(f"reads memory that is {reason}: {self._place(access, i, bad)}")
        fresh = (marks & REPEATED[width][THIS_LAUNCH]) != 0
        if self.races and fresh.any():
            others = fresh & (self.writer[at] != (access.threads if len(at) > 1 else access.threads[:1]))
            if others.any():
                place = self._place(access, i, others)
                raise access.fault(f"race: reads what another thread of this launch writes: {place}")

    def _check_write(self, access: Access, i: int, at: np.ndarray, given: np.ndarray) -> None:
        """The same of a write, which is noted."""
        width, at = access.width, at + i * access.width
        words = self.marks.view(UNSIGNED[width])
        marks = words[at // width]
        wanted = REPEATED[width][WRITABLE & ~given]
        bad = (marks & wanted) != wanted
        if bad.any():
            raise access.fault(f"writes outside of the results: {self._place(access, i, bad)}")
        words[at // width] = marks | REPEATED[width][WRITTEN | THIS_LAUNCH]
        if not self.races:
            return
        self._fresh.append((at, width))
        again = (marks & REPEATED[width][THIS_LAUNCH]) != 0
        if again.any():
            others = again & (self.writer[at] != access.threads)
            if others.any():
                raise access.fault(f"race: two threads of this launch write {self._place(access, i, others)}")
        for byte in range(width):
            self.writer[at + byte] = access.threads
        overwritten = self.writer[at] != access.threads
        if overwritten.any():
            raise access.fault(f"race: two threads write {self._place(access, i, overwritten)} at once")

    def _place(self, access: Access, i: int, bad: np.ndarray) -> str:
        return self.describe(access.address[np.argmax(bad)] + i * access.width)

    def written_in_this_launch(self, tensor: Tensor) -> np.ndarray:
        """Sorted positions in the tensor's storage, in elements."""
        allocation = self._find(tensor.untyped_storage().data_ptr())
        at = np.concatenate([at for at, _ in self._fresh]) - allocation.marks_at
        return distinct(at[(at >= 0) & (at < allocation.end - allocation.start)] // tensor.element_size())
