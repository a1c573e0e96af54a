"""Shared memory, and what stops a kernel there: misaligned, out-of-range and uninitialised accesses, and races."""

import numpy as np

from tests.ptx.memory import UNSIGNED, WARP, Fault


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
