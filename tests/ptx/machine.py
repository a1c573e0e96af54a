"""Warps and blocks: runs a translated kernel for all threads of many blocks at once.

Threads at the same instruction form a group. The group furthest back runs, until it catches up with another, with
which it merges, or splits at a branch that its threads answer differently. So threads meet again where branches do, as
on the hardware. A warp-level instruction waits until every lane of its member mask is there; a barrier until every
thread of the block is. What can never be complete is a fault.
"""

import bisect
from collections.abc import Iterable

import numpy as np

from tests.ptx.counts import Counts
from tests.ptx.memory import SHARED_WINDOW, WARP, Fault, GlobalMemory
from tests.ptx.shared import SharedMemory
from tests.ptx.translate import Program

MAX_STEPS = 20_000_000


class Launch:
    """One kernel, its grid, and the arguments' bytes."""

    def __init__(
        self,
        program: Program,
        grid: tuple[int, int, int],
        threads: tuple[int, int, int],
        dynamic_shared: int,
        arguments: bytes,
        memory: GlobalMemory,
        counts: Counts | None = None,
        checked: bool = True,
    ) -> None:
        self.program, self.grid, self.threads, self.memory = program, grid, threads, memory
        self.shared_bytes = program.kernel.shared_bytes + dynamic_shared
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


class Group:
    """Threads at the same instruction. `registers` holds those that this group has used; others lie in the machine."""

    def __init__(self, machine: "Machine", lanes: np.ndarray, registers: list | None = None) -> None:
        self.machine, self.lanes = machine, lanes
        self.registers = registers if registers is not None else [None] * machine.program.registers
        self.dirty = 0
        self.whole = len(lanes) == len(machine.lanes)
        warps = machine.warp_of if self.whole else lanes // WARP
        self.warps = machine.warps if self.whole else int((warps[1:] != warps[:-1]).sum()) + 1

    def fetch(self, numbers: Iterable[int]) -> None:
        """Makes sure that the registers are here."""
        kept = self.machine.registers
        for number in numbers:
            if self.registers[number] is None:
                value = kept[number]
                if value is None:
                    value = np.zeros(1, self.machine.kinds[number])
                elif len(value) != 1 and not self.whole:
                    value = value[self.positions]
                self.registers[number] = value

    @property
    def positions(self) -> np.ndarray:
        """Indices of this group's lanes in the machine's arrays."""
        return self.machine.position[self.lanes]

    def flush(self, live: int) -> None:
        """Leaves live registers in the machine, for groups made of this one's lanes."""
        kept, number, changed = self.machine.registers, 0, self.dirty & live
        while changed:
            if changed & 1:
                value = self.registers[number]
                if self.whole:
                    kept[number] = value
                else:
                    n = len(self.machine.lanes)
                    old = kept[number]
                    new = (
                        np.zeros(n, value.dtype)
                        if old is None
                        else (np.repeat(old, n) if len(old) == 1 else old.copy())
                    )
                    new[self.positions] = value
                    kept[number] = new
            changed >>= 1
            number += 1
        self.dirty = 0

    # ---- what instructions use

    def special(self, name: str) -> np.ndarray:
        return self.machine.special(name, self)

    def active_mask(self) -> np.ndarray:
        bits = np.zeros(self.machine.blocks * self.machine.padded // WARP, np.uint32)
        np.bitwise_or.at(bits, self.lanes // WARP, np.uint32(1) << (self.lanes % WARP).astype(np.uint32))
        return bits[self.lanes // WARP]

    def parameter(self, address: np.ndarray, width: int, count: int) -> list[np.ndarray]:
        if (address == address[0]).all():
            address = address[:1]
        return [self.machine.launch.arguments[width][address // width + i] for i in range(count)]

    def load_global(self, site: int, address: np.ndarray, width: int, count: int, guard: np.ndarray | None) -> list:
        machine, lanes, size = self.machine, self.lanes, width * count
        lanes, address, guard = self._active(address, guard)
        if len(lanes) == 0:
            return [np.zeros(1, f"u{width}")] * count
        if machine.launch.counts is not None:
            machine.launch.counts.on_global(site, address, size, lanes, machine, store=False)
        what = machine.what(site)
        memory = machine.launch.memory
        checking = lanes[:1] if len(address) == 1 else lanes
        at, given = memory.locate(address, size, what)
        threads = machine.identities(checking)
        for i in range(count):
            memory.check_read(at + i * width, given, width, threads, what, address + i * width)
        values = [memory.read(address + i * width, width) for i in range(count)]
        return self._spread(values, guard)

    def store_global(self, site: int, address: np.ndarray, width: int, values: tuple, guard: np.ndarray | None) -> None:
        machine, size = self.machine, width * len(values)
        lanes, address, guard = self._active(address, guard)
        if len(lanes) == 0:
            return
        address = np.broadcast_to(address, len(lanes)) if len(address) == 1 else address
        if machine.launch.counts is not None:
            machine.launch.counts.on_global(site, address, size, lanes, machine, store=True)
        what, memory = machine.what(site), machine.launch.memory
        at, given = memory.locate(address, size, what)
        threads = machine.identities(lanes)
        for i, value in enumerate(values):
            memory.check_write(at + i * width, given, width, threads, what, address + i * width)
            memory.write(address + i * width, width, value[guard] if guard is not None and len(value) != 1 else value)

    def load_shared(self, site: int, address: np.ndarray, width: int, count: int, guard: np.ndarray | None) -> list:
        machine, size = self.machine, width * count
        lanes, address, guard = self._active(address, guard)
        if len(lanes) == 0:
            return [np.zeros(1, f"u{width}")] * count
        address = np.broadcast_to(address, len(lanes)) if len(address) == 1 else address
        if machine.launch.counts is not None:
            machine.launch.counts.on_shared(site, address, size, lanes, store=False)
        what, shared = machine.what(site), machine.shared
        at = shared.locate(address, size, machine.block_of(lanes), what)
        if machine.launch.checked:
            for i in range(count):
                shared.check_read(at + i * width, width, lanes, what)
        return self._spread([shared.words[width][at // width + i] for i in range(count)], guard)

    def store_shared(self, site: int, address: np.ndarray, width: int, values: tuple, guard: np.ndarray | None) -> None:
        machine, size = self.machine, width * len(values)
        lanes, address, guard = self._active(address, guard)
        if len(lanes) == 0:
            return
        address = np.broadcast_to(address, len(lanes)) if len(address) == 1 else address
        if machine.launch.counts is not None:
            machine.launch.counts.on_shared(site, address, size, lanes, store=True)
        what, shared = machine.what(site), machine.shared
        at = shared.locate(address, size, machine.block_of(lanes), what)
        for i, value in enumerate(values):
            if machine.launch.checked:
                shared.check_write(at + i * width, width, lanes, what)
            shared.words[width][at // width + i] = value[guard] if guard is not None and len(value) != 1 else value

    def load_generic(self, site: int, address: np.ndarray, width: int, count: int, guard: np.ndarray | None) -> list:
        if address.max() < SHARED_WINDOW:
            return self.load_global(site, address, width, count, guard)
        if address.min() < SHARED_WINDOW:
            raise Fault(f"{self.machine.what(site)}: lanes read shared and global memory in one access")
        return self.load_shared(site, address - SHARED_WINDOW, width, count, guard)

    def store_generic(
        self, site: int, address: np.ndarray, width: int, values: tuple, guard: np.ndarray | None
    ) -> None:
        if address.max() < SHARED_WINDOW:
            return self.store_global(site, address, width, values, guard)
        if address.min() < SHARED_WINDOW:
            raise Fault(f"{self.machine.what(site)}: lanes write shared and global memory in one access")
        return self.store_shared(site, address - SHARED_WINDOW, width, values, guard)

    def _active(self, address: np.ndarray, guard: np.ndarray | None) -> tuple:
        """Lanes and addresses of an access where its guard holds, and the guard unless it holds everywhere."""
        if guard is None or guard.all():
            return self.lanes, address, None
        if len(guard) == 1:
            return self.lanes[:0], address[:0], guard
        return self.lanes[guard], address if len(address) == 1 else address[guard], guard

    def _spread(self, values: list[np.ndarray], guard: np.ndarray | None) -> list[np.ndarray]:
        """Values of guarded lanes in arrays of all the group's lanes."""
        if guard is None:
            return values
        result = []
        for value in values:
            whole = np.zeros(len(self.lanes), value.dtype)
            whole[guard] = value
            result.append(whole)
        return result

    def shuffle(
        self, site: int, mode: str, value: np.ndarray, b: np.ndarray, clamp: np.ndarray, mask: np.ndarray
    ) -> tuple:
        """shfl.sync: each lane's value from the lane that `mode` and `b` name within its segment."""
        value = np.broadcast_to(value, len(self.lanes))
        lane = self.lanes % WARP
        b, clamp = b.astype(np.int64) & 31, clamp.astype(np.int64)
        segment, limit = (clamp >> 8) & 31, clamp & 31
        last = (lane & segment) | (limit & ~segment & 31)
        source = {
            "up": lane - b,
            "down": lane + b,
            "bfly": lane ^ b,
            "idx": (lane & segment) | (b & ~segment & 31),
        }[mode]
        valid = source >= last if mode == "up" else source <= last
        source = np.where(valid, source, lane)
        held = np.full(self.machine.blocks * self.machine.padded, -1, np.int64)
        held[self.lanes] = np.arange(len(self.lanes))
        index = held[self.lanes - lane + source]
        if (index < 0).any():
            raise Fault(f"{self.machine.what(site)}: shuffles from a lane that takes no part")
        return value[index], np.broadcast_to(valid, len(self.lanes)).copy()

    def vote(self, mode: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
        value = np.broadcast_to(value, len(self.lanes))
        bits = np.zeros(self.machine.blocks * self.machine.padded // WARP, np.uint32)
        np.bitwise_or.at(
            bits,
            self.lanes // WARP,
            np.where(value, np.uint32(1) << (self.lanes % WARP).astype(np.uint32), np.uint32(0)),
        )
        ballot = bits[self.lanes // WARP] & mask
        return {"ballot": ballot, "any": ballot != 0, "all": ballot == mask, "uni": (ballot == mask) | (ballot == 0)}[
            mode
        ]

    def reduce(self, mode: str, value: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """redux.sync over the warps' lanes, which all take part."""
        value = np.broadcast_to(value, len(self.lanes))
        operation = {
            "add": np.add,
            "min": np.minimum,
            "max": np.maximum,
            "and": np.bitwise_and,
            "or": np.bitwise_or,
            "xor": np.bitwise_xor,
        }[mode]
        _, first, where = np.unique(self.lanes // WARP, return_index=True, return_inverse=True)
        return operation.reduceat(value, first, dtype=value.dtype)[where]

    def warp_barrier(self) -> None:
        if self.machine.shared is not None:
            self.machine.shared.warp_barrier(self.lanes)


class Machine:
    def __init__(self, launch: Launch, blocks: np.ndarray, first: int) -> None:
        self.launch, self.block_ids, self.first, self.program = launch, blocks, first, launch.program
        self.blocks = len(blocks)
        threads = launch.threads_per_block
        self.padded = -(-threads // WARP) * WARP
        lanes = np.arange(self.blocks * self.padded)
        self.position = lanes if threads == self.padded else np.cumsum(lanes % self.padded < threads) - 1
        self.lanes = lanes[lanes % self.padded < threads]
        self.warp_of = self.lanes // WARP
        self.warps = self.blocks * self.padded // WARP
        self.registers: list[np.ndarray | None] = [None] * self.program.registers
        self.kinds = self.program.kinds
        size = launch.shared_bytes
        self.shared = SharedMemory(self.blocks, size, self.program.shared_grain, self.warps) if size else None
        self._special: dict[str, np.ndarray] = {}

    def what(self, site: int) -> str:
        return f"{self.program.kernel.name}: {self.program.kernel.instructions[site]}"

    def block_of(self, lanes: np.ndarray) -> np.ndarray:
        return lanes // self.padded

    def ordinal_of(self, lanes: np.ndarray) -> np.ndarray:
        """Numbers of the lanes' blocks among those of the launch that are run."""
        return self.first + lanes // self.padded

    def identities(self, lanes: np.ndarray) -> np.ndarray:
        """Numbers of threads in the whole launch."""
        return self.identity[lanes]

    @property
    def identity(self) -> np.ndarray:
        if "identity" not in self._special:
            lanes = np.arange(self.blocks * self.padded)
            numbers = self.block_ids[lanes // self.padded] * self.padded + lanes % self.padded
            self._special["identity"] = numbers.astype(np.int32)
        return self._special["identity"]

    def special(self, name: str, group: Group) -> np.ndarray:
        if name not in self._special:
            self._special[name] = self._special_value(name).astype(np.uint32)
        value = self._special[name]
        return value if len(value) == 1 or group.whole else value[group.positions]

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

    def _complete(self, group: Group, block, number: int, parked: dict[int, list[Group]]) -> Group | None:
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

    def _release(self, waiting: list[tuple[int, Group]], enter) -> None:
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
