"""Kernels translated to Python: a function for each basic block."""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ptx import arithmetic
from tests.ptx.instructions import Writer, held
from tests.ptx.parse import SIZES, Instruction, Kernel


@dataclass
class Block:
    """Instructions [first, last) of a kernel that run one after the other."""

    first: int
    last: int
    ends: str
    """How: "fall", "jump", "branch", "exit" or "barrier"."""
    target: int
    """Block to which it jumps or branches; -1: out of the kernel."""
    reads: tuple[int, ...]
    """Registers that must be there before."""
    writes: int
    """Set of registers, as bits."""
    mask_reads: tuple[int, ...]
    run: Callable | None = None
    """(registers, group) -> the branch's condition, where it has one."""
    member_mask: Callable | None = None
    """Of a block that begins with a warp-level instruction: (registers, group) -> the lanes that must take part. It
    reads `mask_reads`."""
    live: int = 0
    """Registers that this block or a later one reads before it writes them."""


@dataclass
class Program:
    kernel: Kernel
    blocks: list[Block]
    kinds: list[str]
    """numpy type of each register."""
    source: str
    """The functions' text."""

    @property
    def registers(self) -> int:
        return len(self.kinds)

    @functools.cached_property
    def shared_grain(self) -> int:
        """Bytes of the narrowest access to shared memory, at most 4."""
        accesses = [i for i in self.kernel.instructions if i.parts[0] in ("ld", "st")]
        return min(4, *(SIZES[i.type] for i in accesses if not {"param", "global"} & set(i.parts)), 4)


def translate(kernel: Kernel) -> Program:
    writer, instructions = Writer(kernel), kernel.instructions
    starts = {0, *kernel.labels.values()}
    for i, instruction in enumerate(instructions):
        if instruction.parts[0] in ("bra", "ret", "exit") or is_barrier(instruction):
            starts.add(i + 1)
        if is_warp_level(instruction):
            starts.add(i)
    ordered = [*sorted(start for start in starts if start < len(instructions)), len(instructions)]
    index = {start: i for i, start in enumerate(ordered)}
    blocks, texts = [], []
    for number, (first, last) in enumerate(itertools.pairwise(ordered)):
        block, text = write_block(writer, number, first, last, index)
        blocks.append(block)
        texts.append(text)
    source = "\n".join(texts)
    names = {"np": np, "A": arithmetic, **writer.constants}
    exec(compile(source, f"<{kernel.name}>", "exec"), names)
    for number, block in enumerate(blocks):
        block.run, block.member_mask = names[f"block_{number}"], names.get(f"mask_{number}")
    find_live(blocks)
    return Program(kernel, blocks, [held(kind) for kind in kernel.registers.values()], source)


def write_block(writer: Writer, number: int, first: int, last: int, index: dict[int, int]) -> tuple[Block, str]:
    """Instructions [first, last) as the function `block_<number>`; `index`: block that begins at an instruction."""
    kernel = writer.kernel
    writer.begin_block()
    mask_text, mask_reads, ends, target, condition = "", (), "fall", -1, "None"
    if is_warp_level(kernel.instructions[first]):
        mask = writer.operand(kernel.instructions[first].operands[-1], "u32")
        mask_reads = tuple(writer.read)
        loads = "".join(f"    r{i} = R[{i}]\n" for i in mask_reads)
        mask_text = f"def mask_{number}(R, g):\n{loads}    return {mask}\n"
    for i in range(first, last):
        instruction = kernel.instructions[i]
        name = instruction.parts[0]
        if name in ("bra", "ret", "exit"):
            ends = "jump" if name == "bra" else "exit"
            target = index[kernel.label(instruction.operands[0])] if name == "bra" else -1
            if instruction.guard:
                ends, condition = "branch", writer.guard(instruction)
        elif is_barrier(instruction):
            if instruction.guard or len(instruction.operands) != 1:
                raise writer.unknown(instruction)
            ends = "barrier"
        else:
            writer.instruction(i, instruction)
    if last == len(kernel.instructions) and ends == "fall":
        ends = "exit"
    loads = "; ".join(f"r{i} = R[{i}]" for i in sorted(writer.read))
    stores = "; ".join(f"R[{i}] = r{i}" for i in sorted(writer.written))
    body = [line for line in (loads, *writer.lines, stores, f"return {condition}") if line]
    text = f"{mask_text}def block_{number}(R, g):\n" + "".join(f"    {line}\n" for line in body)
    writes = sum(1 << i for i in writer.written)
    return Block(first, last, ends, target, tuple(sorted(writer.read)), writes, mask_reads), text


def is_barrier(instruction: Instruction) -> bool:
    """Of a block: __syncthreads()."""
    parts = instruction.parts
    return parts[0] in ("bar", "barrier") and parts[1] in ("sync", "cta")


def is_warp_level(instruction: Instruction) -> bool:
    parts = instruction.parts
    return (parts[0] in ("shfl", "vote", "redux", "match") and "sync" in parts) or parts[:2] == ["bar", "warp"]


def find_live(blocks: list[Block]) -> None:
    reads = [sum(1 << i for i in {*block.reads, *block.mask_reads}) for block in blocks]
    changed = True
    while changed:
        changed = False
        for i in range(len(blocks) - 1, -1, -1):
            block = blocks[i]
            after = 0
            if block.ends in ("fall", "branch", "barrier") and i + 1 < len(blocks):
                after |= blocks[i + 1].live
            if block.ends in ("jump", "branch") and block.target >= 0:
                after |= blocks[block.target].live
            live = reads[i] | (after & ~block.writes)
            if live != block.live:
                block.live, changed = live, True
