"""PTX text as nvcc writes it, read into kernels: parameters, registers, shared variables, instructions and labels."""

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2, "b32": 4, "u32": 4}
SIZES |= {"s32": 4, "f32": 4, "f16x2": 4, "bf16x2": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}

KERNEL = re.compile(r"\.entry\s+(?P<name>\w+)\s*(?:\((?P<params>[^)]*)\))?(?P<directives>[^{]*)\{", re.S)
PARAMETER = re.compile(
    r"\.param\s+(?:\.align\s+(\d+)\s+)?\.(\w+)\s+(?:\.ptr\S*\s+(?:\.\w+\s+)*(?:\.align\s+\d+\s+)?)?(\w+)(?:\[(\d+)\])?"
)
VARIABLE = re.compile(
    r"\.(?P<space>shared|local|const|global)\s+(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d*)\])?"
)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
STATEMENT = re.compile(r"\s*(\{|\}|[\w$]+:(?!:)|[^;{}]*(?:\{[^}]*\}[^;{}]*)*;)")
GUARD = re.compile(r"@(!?)(%?[\w$]+)\s+")


class UnknownInstruction(Exception):
    """PTX that this package does not know: add it to tests/ptx/instructions.py."""


@dataclass(frozen=True)
class Instruction:
    """`@!guard op.modifiers.type operands;`"""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None = None
    negated: bool = False

    @functools.cached_property
    def parts(self) -> list[str]:
        return self.opcode.replace("::", "_").split(".")

    @property
    def type(self) -> str:
        return self.parts[-1]

    def __str__(self) -> str:
        guard = f"@{'!' * self.negated}{self.guard} " if self.guard else ""
        return f"{guard}{self.opcode} {', '.join(self.operands)}"


@dataclass(frozen=True)
class Variable:
    """A variable in shared memory, at `offset` in its block's."""

    offset: int
    size: int


@dataclass
class Kernel:
    name: str
    parameters: dict[str, Variable] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)
    """Name of each register -> its type."""
    shared: dict[str, Variable] = field(default_factory=dict)
    shared_bytes: int = 0
    """Static shared memory, and so the offset of the dynamic one."""
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    """Label -> index of the instruction that follows it."""

    def label(self, name: str) -> int:
        """Instruction that a branch leads to; a label within inline assembly hides one outside."""
        return self.labels[name if name in self.labels else name.split("@")[0]]

    @property
    def parameter_bytes(self) -> int:
        return max((p.offset + p.size for p in self.parameters.values()), default=0)

    def add_shared(self, declaration: re.Match) -> None:
        align = int(declaration["align"] or SIZES[declaration["type"]])
        offset = -(-self.shared_bytes // align) * align
        size = SIZES[declaration["type"]] * int(declaration["count"] or ("0" if "[" in declaration[0] else "1"))
        self.shared[declaration["name"]] = Variable(offset, size)
        self.shared_bytes = offset + size


class Module:
    """Kernels of a PTX text, by their mangled names; each is read when it is first used."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"//[^\n]*|/\*.*?\*/", "", text, flags=re.S)
        self.shared, self.entries, self.kernels = [], {}, {}
        outside, end = [], 0
        for match in KERNEL.finditer(text):
            outside.append(text[end : match.start()])
            end = closing_brace(text, match.end())
            self.entries[match["name"]] = match["params"] or "", text[match.end() : end - 1]
        for declaration in VARIABLE.finditer("".join(outside)):
            if declaration["space"] == "shared":
                self.shared.append(declaration)

    def __contains__(self, name: str) -> bool:
        return name in self.entries

    def __getitem__(self, name: str) -> Kernel:
        if name not in self.kernels:
            parameters, body = self.entries[name]
            kernel = self.kernels[name] = kernel_of(name, parameters, body)
            for declaration in self.shared:  # those of the module that the kernel names
                if re.search(rf"[^\w$]{re.escape(declaration['name'])}[^\w$]", body):
                    kernel.add_shared(declaration)
        return self.kernels[name]


def closing_brace(text: str, start: int) -> int:
    depth = 1
    for brace in re.compile("[{}]").finditer(text, start):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return brace.end()
    raise ValueError("a kernel's closing brace is missing")


def kernel_of(name: str, parameters: str, body: str) -> Kernel:
    kernel = Kernel(name)
    offset = 0
    for declaration in PARAMETER.finditer(parameters):
        align, kind, parameter, count = declaration.groups()
        size = SIZES[kind] * int(count or 1)
        align = int(align or SIZES[kind])
        offset = -(-offset // align) * align
        kernel.parameters[parameter] = Variable(offset, size)
        offset += size
    for scope, statement in statements(body):
        if statement.endswith(":"):
            kernel.labels[statement[:-1] + scope] = len(kernel.instructions)
        elif statement.startswith(".reg"):
            declare_registers(kernel, statement, scope)
        elif declaration := VARIABLE.match(statement):
            if declaration["space"] != "shared":
                raise UnknownInstruction(f"{name}: {statement}")
            kernel.add_shared(declaration)
        elif not statement.startswith("."):
            kernel.instructions.append(instruction_of(kernel, statement, scope))
    return kernel


def statements(body: str) -> Iterator[tuple[str, str]]:
    """Each statement or `label:`, with a suffix for the names of the scope that it stands in (inline assembly)."""
    scopes, opened, position = [""], 0, 0
    while match := STATEMENT.match(body, position):
        position = match.end()
        statement = match[1]
        if statement == "{":
            opened += 1
            scopes.append(f"@{opened}")
        elif statement == "}":
            scopes.pop()
        elif statement != ";":
            yield scopes[-1], " ".join(statement.rstrip(";").split())
    if body[position:].strip():
        raise ValueError(f"unreadable PTX: {body[position : position + 80]!r}")


def declare_registers(kernel: Kernel, statement: str, scope: str) -> None:
    _, kind, *names = statement.replace(",", " ").split()
    for name in names:
        if numbered := re.fullmatch(r"(.+)<(\d+)>", name):
            for i in range(int(numbered[2])):
                kernel.registers[f"{numbered[1]}{i}"] = kind[1:]
        else:
            kernel.registers[name + scope] = kind[1:]


def instruction_of(kernel: Kernel, statement: str, scope: str) -> Instruction:
    def scoped(name: str) -> str:
        return name + scope if scope and name + scope in kernel.registers else name

    guard, negated = None, False
    if match := GUARD.match(statement):
        guard, negated = scoped(match[2]), match[1] == "!"
        statement = statement[match.end() :]
    opcode, _, rest = statement.partition(" ")
    operands = [re.sub(r"%?[\w$.]+", lambda name: scoped(name[0]), operand) for operand in OPERAND.findall(rest)]
    return Instruction(opcode, tuple(operands), guard, negated)
