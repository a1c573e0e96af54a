"""Warps and blocks: runs a translated kernel for all threads of many blocks at once.

Threads at the same instruction form a group. The group furthest back runs, until it catches up with another, with
which it merges, or splits at a branch that its threads answer differently. So threads meet again where branches do, as
on the hardware. A warp-level instruction waits until every lane of its member mask is there; a barrier until every
thread of the block is. What can never be complete is a fault.
"""

import bisect
from collections.abc import Callable, Iterable

import numpy as np

from tests.ptx.counts import Counts
from tests.ptx.group import Group
from tests.ptx.memory import WARP, Fault, GlobalMemory
from tests.ptx.program import Block, Program
from tests.ptx.shared import SharedMemory

MAX_STEPS = 20_000_000
MAX_SHARED_BYTES, MAX_REQUESTED_BYTES = 48 * 1024, 227 * 1024
"""Shared memory of a block: without a request, and with one, on compute capability 9.0."""


class Launch:
    """One kernel, its grid, and the arguments' bytes."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        threads: tuple[int, int, int],
        dynamic_shared: tuple[int, int],
        arguments: bytes,
        memory: GlobalMemory,
        counts: Counts | None = None,
        checked: bool = True,
    ) -> None:
        self.program, self.grid, self.threads, self.memory = program, grid, threads, memory
        dynamic, requested = dynamic_shared
        self.shared_bytes = program.kernel.shared_bytes + dynamic
        limit = MAX_SHARED_BYTES if dynamic > requested else MAX_REQUESTED_BYTES
        if self.shared_bytes > limit:
            need = f"a block needs {self.shared_bytes} bytes of shared memory, over {limit >> 10} KiB"
            raise Fault(f"{program.kernel.name}: {need}")
        self.arguments = {
            width: np.frombuffer(arguments + bytes(-len(arguments) % 16), f"u{width}") for width in (1, 2, 4, 8)
        }
        self.counts, self.checked = counts, checked

    @property
    def blocks(self) -> int:
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def threads_per_block(self) -> int:
        return self.threads[0] * self.threads[1] * self.threads[2]

    def run(self, blocks: Iterable[int] | None = None, lanes_at_once: int = 1 << 15) -> None:
        """Runs all blocks, or those given."""
        chosen = np.arange(self.blocks) if blocks is None else np.array(list(blocks))
        step = max(1, lanes_at_once // self.threads_per_block)
        with np.errstate(all="ignore"):
            for first in range(0, len(chosen), step):
                Machine(self, chosen[first : first + step], first).run()


class Machine:
    """Runs some of a launch's blocks. Lanes are numbered by block and thread, each block's from a new warp on.

    `first`: blocks of the launch that were run before.
    """

    def __init__(self, launch: Launch, blocks: np.ndarray, first: int) -> None:
        self.launch, self.block_ids, self.first, self.program = launch, blocks, first, launch.program
        self.blocks = len(blocks)
        threads = launch.threads_per_block
        self.padded = -(-threads // WARP) * WARP
        lanes = np.arange(self.blocks * self.padded)
        self.position = lanes if threads == self.padded else np.cumsum(lanes % self.padded < threads) - 1
        self.lanes = lanes[lanes % self.padded < threads]
        self.thread = (blocks[lanes // self.padded] * self.padded + lanes % self.padded).astype(np.int32)
        """Numbers of the lanes' threads in the launch."""
        self.warps = self.blocks * self.padded // WARP
        self.registers: list[np.ndarray | None] = [None] * self.program.registers
        size = launch.shared_bytes
        self.shared = (
            SharedMemory(self.blocks, size, self.program.shared_grain, self.warps, launch.checked) if size else None
        )
        self._special: dict[str, np.ndarray] = {}

    def what(self, site: int) -> str:
        return f"{self.program.kernel.name}: {self.program.kernel.instructions[site]}"

    def block_of(self, lanes: np.ndarray) -> np.ndarray:
        return lanes // self.padded

    def special(self, name: str) -> np.ndarray:
        """The value of a special register, such as %tid.x, in each lane."""
        if name not in self._special:
            self._special[name] = self._special_value(name).astype(np.uint32)
        return self._special[name]

    def _special_value(self, name: str) -> np.ndarray:
        base, _, axis = name[1:].partition(".")
        thread, block = self.lanes % self.padded, self.block_ids[self.lanes // self.padded]
        if base == "laneid":
            return self.lanes % WARP
        if base == "warpid":
            return thread // WARP
        size = self.launch.threads if "tid" in base else self.launch.grid
        i = "xyz".index(axis)
        if base in ("ntid", "nctaid"):
            return np.array([size[i]])
        before = int(np.prod(size[:i]))
        value = (thread if base == "tid" else block) // before % size[i]
        return value[:1] if size[i] == 1 else value

    def run(self) -> None:
        blocks = self.program.blocks
        counts = self.launch.counts
        visits = counts.visits if counts is not None else [0] * len(blocks)
        ready: dict[int, list[Group]] = {0: [Group(self, self.lanes)]}
        order = [0]
        parked: dict[int, list[Group]] = {}
        waiting: list[tuple[int, Group]] = []
        steps = 0

        def enter(number: int, group: Group) -> None:
            if number in ready:
                ready[number].append(group)
            else:
                ready[number] = [group]
                bisect.insort(order, number)

        while order or waiting or parked:
            if not order:
                if parked:
                    number, groups = next(iter(parked.items()))
                    raise Fault(f"{self.what(blocks[number].first)}: lanes of its member mask never come here")
                self._release(waiting, enter)
                waiting = []
                continue
            number = order.pop(0)
            groups = ready.pop(number) + parked.pop(number, [])
            group = groups[0] if len(groups) == 1 else self._merged(groups, blocks[number].live)
            while True:
                block = blocks[number]
                if block.member_mask is not None:
                    group = self._complete(group, block, number, parked)
                    if group is None:
                        break
                group.fetch(block.reads)
                condition = block.run(group.registers, group)
                group.dirty |= block.writes
                visits[number] += group.warps
                steps += 1
                if steps > MAX_STEPS:
                    raise Fault(f"{self.program.kernel.name}: does not end")
                ends = block.ends
                if ends == "exit":
                    break
                if ends == "barrier":
                    waiting.append((number + 1, group))
                    break
                following = number + 1
                if ends == "jump":
                    following = block.target
                elif ends == "branch":
                    if len(condition) == 1 or condition.all() or not condition.any():
                        if condition[0]:
                            following = block.target
                    else:
                        group.flush(self._live(block.target) | self._live(number + 1))
                        taken, group = self._split(group, condition)
                        if block.target >= 0:
                            enter(block.target, taken)
                if following < 0:
                    break
                if order and following >= order[0]:
                    enter(following, group)
                    break
                if following in parked:
                    enter(following, group)
                    break
                number = following

    def _live(self, number: int) -> int:
        return self.program.blocks[number].live if number >= 0 else 0

    def _split(self, group: Group, condition: np.ndarray) -> tuple[Group, Group]:
        shared = [value if value is not None and len(value) == 1 else None for value in group.registers]
        return Group(self, group.lanes[condition], shared), Group(self, group.lanes[~condition], list(shared))

    def _merged(self, groups: list[Group], live: int) -> Group:
        for group in groups:
            group.flush(live)
        lanes = np.concatenate([group.lanes for group in groups])
        lanes.sort()
        return Group(self, lanes)

    def _complete(self, group: Group, block: Block, number: int, parked: dict[int, list[Group]]) -> Group | None:
        """The lanes of the group whose warp-level instruction has all its members; the rest is parked."""
        group.fetch(block.mask_reads)
        mask = np.broadcast_to(block.member_mask(group.registers, group), len(group.lanes))
        active = group.active_mask()
        complete = (mask & ~active) == 0
        if complete.all():
            return group
        group.flush(block.live)
        if not complete.any():
            parked.setdefault(number, []).append(group)
            return None
        whole, rest = self._split(group, complete)
        parked.setdefault(number, []).append(rest)
        return whole

    def _release(self, waiting: list[tuple[int, Group]], enter: Callable) -> None:
        """Lets the threads pass the barrier at which they wait, if it is one and all of a block's are there."""
        where = np.full(self.blocks * self.padded, -1)
        for number, group in waiting:
            where[group.lanes] = number
        where = where.reshape(self.blocks, self.padded)[:, : self.launch.threads_per_block]
        arrived = (where >= 0).any(1)
        apart = arrived & (where != where[:, :1]).any(1)
        if apart.any():
            at = sorted({int(n) for n in where[apart][0]})
            places = ", ".join(
                "elsewhere or gone" if n < 0 else f"instruction {self.program.blocks[n].first - 1}" for n in at
            )
            raise Fault(
                f"{self.program.kernel.name}: divergent barrier: threads of block "
                f"{int(self.block_ids[np.argmax(apart)])} wait at different places ({places})"
            )
        if self.shared is not None:
            self.shared.barrier(np.flatnonzero(arrived))
        for number, group in waiting:
            enter(number, group)
