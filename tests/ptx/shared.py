"""Shared memory, and what stops a kernel there: misaligned, out-of-range and uninitialised accesses, and races."""

from collections.abc import Sequence

import numpy as np

from tests.ptx.memory import UNSIGNED, WARP, Access


class SharedMemory:
    """Of `blocks` blocks at once; `size` bytes each. Marks are kept for every `grain` bytes, the narrowest access.

    An access races with one by another thread unless a barrier of the block, or of the warp that both are of, lies
    between them. Unless `checked`, neither these nor uninitialised reads are looked for.
    """

    NOBODY, SEVERAL = -1, -2
    OF_WARP = -3
    """Several lanes of warp w: OF_WARP - w."""

    def __init__(self, blocks: int, size: int, grain: int, warps: int, checked: bool) -> None:
        self.size, self.grain, self.checked = size, grain, checked
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

    def load(self, access: Access) -> list[np.ndarray]:
        """The values of each lane, as unsigned integers.

        Raises:
            Fault: misaligned, out of range, uninitialised, or in a race.
        """
        at = self._locate(access)
        if self.checked:
            self._check_read(access, *self._cells(access, at))
        return [self.words[access.width][at // access.width + i] for i in range(access.count)]

    def store(self, access: Access, values: Sequence[np.ndarray]) -> None:
        """Writes the values of each lane. Raises as `load` does."""
        at = self._locate(access)
        if self.checked:
            self._check_write(access, *self._cells(access, at))
        for i, value in enumerate(values):
            self.words[access.width][at // access.width + i] = value

    def _locate(self, access: Access) -> np.ndarray:
        """Where the bytes of each lane's access begin."""
        access.check_alignment()
        address, end = access.address, self.size - access.size
        if address.min() < 0 or address.max() > end:
            bad = int(address[(address < 0) | (address > end)][0])
            raise access.fault(f"out of range: byte {bad} of {self.size} of shared memory")
        return access.blocks * self.stride + address

    def _cells(self, access: Access, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The marked cells that an access touches, and the lane that touches each."""
        cells = (at[:, None] + np.arange(0, access.size, self.grain)) // self.grain
        return cells.ravel(), np.repeat(access.lanes, cells.shape[1])

    def _check_read(self, access: Access, cells: np.ndarray, lanes: np.ndarray) -> None:
        warps = lanes // WARP
        if not self.written[cells].all():
            raise access.fault(f"reads shared memory that was never written: {self._byte(cells, ~self.written[cells])}")
        racing = self._races(self.writer[cells], self.write_epoch[cells], lanes, warps)
        if racing.any():
            raise access.fault(f"race: reads what another thread has just written: {self._byte(cells, racing)}")
        before = self.reader[cells]
        same_warp = np.where(before >= 0, before // WARP, self.OF_WARP - before) == warps
        alone = (before == self.NOBODY) | (before == lanes)
        self.reader[cells] = np.where(alone, lanes, np.where(same_warp, self.OF_WARP - warps, self.SEVERAL))
        self.read_epoch[cells] = self.epoch[warps]
        # Lanes of this very access that share a cell: one of them was kept.
        kept = self.reader[cells]
        together = (kept >= 0) & (kept != lanes)
        if together.any():
            of_warp = kept[together] // WARP == warps[together]
            self.reader[cells[together]] = np.where(of_warp, self.OF_WARP - warps[together], self.SEVERAL)

    def _check_write(self, access: Access, cells: np.ndarray, lanes: np.ndarray) -> None:
        warps = lanes // WARP
        for who, epoch, did in ((self.writer, self.write_epoch, "written"), (self.reader, self.read_epoch, "read")):
            racing = self._races(who[cells], epoch[cells], lanes, warps)
            if racing.any():
                raise access.fault(f"race: writes what another thread has just {did}: {self._byte(cells, racing)}")
        self.writer[cells] = lanes
        self.write_epoch[cells] = self.epoch[warps]
        overwritten = self.writer[cells] != lanes
        if overwritten.any():
            raise access.fault(f"race: two threads write at once: {self._byte(cells, overwritten)}")
        self.written[cells] = True

    def _races(self, who: np.ndarray, epoch: np.ndarray, lanes: np.ndarray, warps: np.ndarray) -> np.ndarray:
        """Where an access by `lanes` is not ordered after the one by `who`."""
        same_warp = np.where(who >= 0, who // WARP, self.OF_WARP - who) == warps
        ordered = same_warp & (epoch < self.epoch[warps])
        return (who != self.NOBODY) & (who != lanes) & ~ordered

    def _byte(self, cells: np.ndarray, where: np.ndarray) -> str:
        return f"byte {int(cells[where][0] * self.grain % self.stride)}"
