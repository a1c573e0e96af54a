"""What each PTX instruction does, written as Python on numpy arrays with an element a lane.

A register is an array of the lanes of a group, or of length 1 where all lanes share its value. What needs more than
arithmetic (memory, shuffles, special registers) is a method of the group, `g`: see group.py.
"""

import functools
import re

import numpy as np

from tests.ptx.group import SHARED_WINDOW
from tests.ptx.parse import SIZES, Instruction, Kernel, UnknownInstruction

HELD = {"pred": "bool_", "f32": "float32", "f64": "float64"}
SEEN = {"pred": "bool_", "u8": "uint8", "s8": "int8", "b8": "uint8", "u16": "uint16", "s16": "int16", "b16": "uint16"}
SEEN |= {"u32": "uint32", "s32": "int32", "b32": "uint32", "u64": "uint64", "s64": "int64", "b64": "uint64"}
SEEN |= {"f32": "float32", "f64": "float64", "f16": "uint16", "bf16": "uint16", "f16x2": "uint32", "bf16x2": "uint32"}
"""numpy type of an instruction's operands."""

COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
COMPARISONS |= {"lo": "<", "ls": "<=", "hi": ">", "hs": ">="}
OPPOSITE = {"eq": "!=", "ne": "==", "lt": ">=", "le": ">", "gt": "<=", "ge": "<"}
INFIX = {"add": "+", "sub": "-", "mul": "*", "and": "&", "or": "|", "xor": "^"}
TEMPLATES = {
    "mad": "({a} * {b} + {c})",
    "rem": "A.remainder({a}, {b})",
    "neg": "(-{a})",
    "not": "(~{a})",
    "cnot": "({a} == 0).astype(np.{type})",
    "abs": "np.abs({a})",
    "copysign": "np.copysign({b}, {a})",
    "lg2": "np.log2({a})",
    "rcp": "(np.{type}(1) / {a})",
    "sqrt": "np.sqrt({a})",
    "rsqrt": "(np.{type}(1) / np.sqrt({a}))",
    "popc": "A.bit_count({a})",
    "clz": "A.leading_zeros({a})",
    "prmt": "A.permute_bytes({a}, {b}, {c})",
}
MODIFIERS = {"lo", "hi", "wide", "rn", "rm", "approx", "full", "ftz", "sat", "NaN", "l", "r", "wrap", "clamp"}
ROUNDINGS = {"rni": "np.rint", "rzi": "np.trunc", "rmi": "np.floor", "rpi": "np.ceil"}


def held(kind: str) -> str:
    """numpy type in which a register of a type is held."""
    return HELD.get(kind) or f"uint{8 * max(SIZES[kind], 2)}"


class Writer:
    """Writes the instructions of a kernel, a block at a time, into `lines`."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.numbers = {name: i for i, name in enumerate(kernel.registers)}
        self.constants: dict[str, np.ndarray] = {}
        self.begin_block()

    def begin_block(self) -> None:
        self.lines, self.read, self.written = [], set(), set()

    # ---- operands

    def register(self, name: str) -> str:
        if name not in self.numbers:
            return special_register(name)
        number = self.numbers[name]
        if number not in self.written:
            self.read.add(number)
        return f"r{number}"

    def constant(self, value: np.generic) -> str:
        name = f"c_{value.dtype.name}_{value.tobytes().hex()}"
        self.constants[name] = np.array([value])
        return name

    def operand(self, text: str, kind: str) -> str:
        """An expression for an operand as an instruction of type `kind` sees it."""
        seen = SEEN[kind]
        if text.startswith(("0f", "0F")):
            return self.constant(np.array(int(text[2:], 16), np.uint32).view(np.float32)[()])
        if text.startswith(("0d", "0D")):
            return self.constant(np.array(int(text[2:], 16), np.uint64).view(np.float64)[()])
        if re.match(r"-?\d", text):
            bits = 8 * np.dtype(seen).itemsize
            value = int(text.rstrip("U"), 0)
            if kind == "pred":
                return self.constant(np.bool_(value))
            return self.constant(np.array(value & (2**bits - 1), f"uint{bits}").view(seen)[()])
        if text.startswith("!"):
            return f"(~{self.operand(text[1:], kind)})"
        if text in self.kernel.parameters:
            return self.constant(np.dtype(seen).type(self.kernel.parameters[text].offset))
        if text in self.kernel.shared:
            return self.constant(np.dtype(seen).type(self.kernel.shared[text].offset))
        is_held = held(self.kernel.registers[text]) if text in self.numbers else "uint32"
        return converted(self.register(text), is_held, seen)

    def address(self, text: str) -> str:
        """[register + offset] or [variable + offset] as int64."""
        base, _, offset = text[1:-1].replace(" ", "").partition("+")
        if base in self.numbers:
            name = self.register(base)
            wide = SIZES[self.kernel.registers[base]] == 8
            base = f"{name}.view(np.int64)" if wide else f"{name}.view(np.int32).astype(np.int64)"
        else:
            known = self.kernel.parameters.get(base) or self.kernel.shared.get(base)
            base = self.constant(np.int64(known.offset if known else int(base, 0)))
        return f"{base} + {int(offset, 0)}" if offset else base

    # ---- results

    def put(self, name: str, expression: str, seen: str, guard: str | None = None) -> None:
        """Writes an expression of type `seen` to a register, which keeps its value where the guard does not hold."""
        if name == "_":
            return
        is_held = held(self.kernel.registers[name])
        value = converted(expression, seen, is_held)
        number = self.numbers[name]
        if guard:
            value = f"np.where({guard}, {value}, {self.register(name)})"
        self.lines.append(f"r{number} = {value}")
        self.written.add(number)

    # ---- instructions

    def guard(self, instruction: Instruction) -> str:
        """Where a guarded instruction is executed."""
        return ("~" if instruction.negated else "") + self.register(instruction.guard)

    def unknown(self, instruction: Instruction) -> UnknownInstruction:
        return UnknownInstruction(f"{self.kernel.name}: {instruction}")

    def instruction(self, number: int, instruction: Instruction) -> None:
        guard = self.guard(instruction) if instruction.guard else None
        method = getattr(self, f"on_{instruction.parts[0]}", None)
        if method is not None:
            method(number, instruction, guard)
            return
        expression, seen = self.value(instruction)
        self.put(instruction.operands[0], expression, seen, guard)

    def value(self, instruction: Instruction) -> tuple[str, str]:
        """The expression of an instruction's result, and its numpy type."""
        parts, kind = instruction.parts, instruction.type
        name, sources, seen = parts[0], instruction.operands[1:], SEEN.get(kind)
        if kind in ("f16", "bf16", "f16x2", "bf16x2") and name != "selp":
            return self.half_value(instruction)
        if set(parts[1:-1]) - MODIFIERS:
            raise self.unknown(instruction)
        a, b, c = [*(self.operand(source, kind) for source in sources), "", "", ""][:3]
        floating = kind in ("f32", "f64")
        if name in ("mul", "mad") and "wide" in parts:
            wide = f"{kind[0]}{2 * int(kind[1:])}"
            product = f"{a}.astype(np.{SEEN[wide]}) * {b}.astype(np.{SEEN[wide]})"
            return (f"{product} + {self.operand(sources[2], wide)}" if name == "mad" else product), SEEN[wide]
        if name in ("mul", "mad") and "hi" in parts:
            return f"A.multiply_high({a}, {b})" + (f" + {c}" if name == "mad" else ""), seen
        if "rm" in parts and instruction.opcode != "fma.rm.f32":
            raise self.unknown(instruction)
        if name == "fma":
            result = f"A.fma_down({a}, {b}, {c})" if "rm" in parts else f"A.fma({a}, {b}, {c})"
        elif name in INFIX:
            result = f"({a} {INFIX[name]} {b})"
        elif name == "div":
            result = f"({a} / {b})" if floating else f"A.divide({a}, {b})"
        elif name in ("min", "max"):
            ignores_nan = floating and "NaN" not in parts
            result = f"np.f{name}({a}, {b})" if ignores_nan else f"np.{name}imum({a}, {b})"
        elif name in ("shl", "shr"):
            result = f"({a} {'<<' if name == 'shl' else '>>'} {self.operand(sources[1], 'u32')}.astype(np.{seen}))"
        elif name == "selp":
            result = f"np.where({self.operand(sources[2], 'pred')}, {a}, {b})"
        elif name == "ex2":
            result = f"np.exp2(A.flush({a}))" if "ftz" in parts else f"np.exp2({a})"
        elif name == "lop3":
            result = f"A.logic3({a}, {b}, {c}, {int(sources[3], 0)})"
        elif name == "bfe":
            result = f"A.extract_bits({a}, {self.operand(sources[1], 'u32')}, {self.operand(sources[2], 'u32')})"
        elif name == "bfi":
            where = f"{self.operand(sources[2], 'u32')}, {self.operand(sources[3], 'u32')}"
            result = f"A.insert_bits({a}, {b}, {where})"
        elif name == "shf":
            result = f"A.funnel_shift({a}, {b}, {c}, {'l' in parts}, {'wrap' in parts})"
        elif name in TEMPLATES:
            result = TEMPLATES[name].format(a=a, b=b, c=c, type=seen)
            seen = "uint32" if name in ("popc", "clz") else seen
        else:
            raise self.unknown(instruction)
        if "sat" in parts:
            if not floating:
                raise self.unknown(instruction)
            result = f"A.saturate({result})"
        return (f"A.flush({result})" if "ftz" in parts else result), seen

    def half_value(self, instruction: Instruction) -> tuple[str, str]:
        """Arithmetic of one or two half-precision numbers: in float64, which holds sums and products, rounded once."""
        name, *modifiers, kind = instruction.parts
        if set(modifiers) - {"rn", "relu", "approx", "ftz", "NaN"} or ("ftz" in modifiers and kind == "f16"):
            raise self.unknown(instruction)
        short = kind.removesuffix("x2")
        operands = [self.operand(source, kind) for source in instruction.operands[1:]]

        def compute(values: list[str]) -> str:
            a, b, c = [*values, "", "", ""][:3]
            a, b, c = (f"A.from_{short}({v})" if v else "" for v in (a, b, c))
            if name == "fma":
                exact = f"A.fma_short({a}, {b}, {c})"
                exact = f"np.maximum({exact}, 0)" if "relu" in modifiers else exact
            elif name in ("add", "sub"):
                sign = "-" if name == "sub" else ""
                exact = f"A.sum_to_odd({a}.astype(np.float64), ({sign}{b}).astype(np.float64))"
            elif name == "mul":
                exact = f"({a}.astype(np.float64) * {b})"
            elif name in ("min", "max"):
                exact = f"np.f{name}({a}, {b})"
            elif name in ("neg", "abs"):
                exact = f"(-{a})" if name == "neg" else f"np.abs({a})"
            elif name == "ex2":
                exact = f"np.exp2({a})"
            else:
                raise self.unknown(instruction)
            return f"A.to_{short}({exact})"

        if kind == short:
            return compute(operands), "uint16"
        low, high = (compute([f"A.{half}_half({v})" for v in operands]) for half in ("low", "high"))
        return f"A.pair_of({low}, {high})", "uint32"

    def on_mov(self, number: int, instruction: Instruction, guard: str | None) -> None:
        target, source = instruction.operands
        kind = instruction.type
        if target.startswith("{"):
            names = re.findall(r"[%\w$@]+", target)
            width = SIZES[kind] // len(names)
            whole = self.operand(source, kind)
            self.lines.append(f"whole = {whole}")
            for i, name in enumerate(names):
                shifted = f"(whole >> np.uint{8 * SIZES[kind]}({8 * width * i})).astype(np.uint{8 * width})"
                self.put(name, shifted, f"uint{8 * width}", guard)
        elif source.startswith("{"):
            names = re.findall(r"[%\w$@]+", source)
            width, bits = SIZES[kind] // len(names), 8 * SIZES[kind]
            parts = [
                f"({self.operand(name, f'b{8 * width}')}.astype(np.uint{bits}) << np.uint{bits}({8 * width * i}))"
                for i, name in enumerate(names)
            ]
            self.put(target, " | ".join(parts), f"uint{bits}", guard)
        else:
            self.put(target, self.operand(source, kind), SEEN[kind], guard)

    def on_cvta(self, number: int, instruction: Instruction, guard: str | None) -> None:
        target, source = instruction.operands
        value = self.operand(source, "u64")
        if "shared" in instruction.parts or "shared_cta" in instruction.parts:
            sign = "-" if "to" in instruction.parts else "+"
            value = f"({value} {sign} {self.constant(np.uint64(SHARED_WINDOW))})"
        self.put(target, value, "uint64", guard)

    def on_setp(self, number: int, instruction: Instruction, guard: str | None) -> None:
        parts, kind = instruction.parts, instruction.type
        target, *sources = instruction.operands
        a, b = (self.operand(s, kind) for s in sources[:2])
        comparison = parts[1]
        if kind in ("f16", "bf16"):
            a, b = f"A.from_{kind}({a})", f"A.from_{kind}({b})"
        floating = kind in ("f32", "f64", "f16", "bf16")
        if comparison in ("num", "nan"):
            value = f"(np.isnan({a}) | np.isnan({b}))"
            value = f"(~{value})" if comparison == "num" else value
        elif floating and comparison.endswith("u"):
            value = f"(~({a} {OPPOSITE[comparison[:-1]]} {b}))" if comparison != "neu" else f"({a} != {b})"
            if comparison == "equ":
                value = f"(({a} == {b}) | np.isnan({a}) | np.isnan({b}))"
        elif floating and comparison == "ne":
            value = f"(({a} < {b}) | ({a} > {b}))"
        else:
            value = f"({a} {COMPARISONS[comparison]} {b})"
        first, _, second = target.partition("|")
        with_third = {"and": "&", "or": "|", "xor": "^"}.get(parts[2]) if len(sources) > 2 else None
        values = [value, f"(~{value})"] if second else [value]
        for name, expression in zip((first, second), values, strict=False):
            if with_third:
                expression = f"({expression} {with_third} {self.operand(sources[2], 'pred')})"
            self.put(name, expression, "bool_", guard)

    def on_cvt(self, number: int, instruction: Instruction, guard: str | None) -> None:
        target, *sources = instruction.operands
        parts = instruction.parts
        to, source = parts[-2], parts[-1]
        if to in ("bf16x2", "f16x2"):
            high, low = (self.operand(s, source) for s in sources)
            short = to.removesuffix("x2")
            self.put(target, f"A.pair_of(A.to_{short}({low}), A.to_{short}({high}))", "uint32", guard)
            return
        if set(parts[1:-2]) - {"rn", "rzi", "rni", "rmi", "rpi", "sat", "ftz"}:
            raise self.unknown(instruction)
        value = self.operand(sources[0], source)
        if source in ("f16", "bf16"):
            value, source = f"A.from_{source}({value})", "f32"
        seen = SEEN[to]
        if to in ("f16", "bf16"):
            value = f"A.to_{to}({value}.astype(np.float32))" if source != "f64" else f"A.to_{to}({value})"
        elif source[0] == "f" and to[0] in "us":
            rounding = next(ROUNDINGS[p] for p in parts if p in ROUNDINGS)
            value = f"A.to_integer({value}, np.{seen}, {rounding})"
        elif source[0] == "f" and to[0] == "f":
            rounding = next((ROUNDINGS[p] for p in parts if p in ROUNDINGS), None)
            value = f"{rounding}({value})" if rounding else value
            value = f"{value}.astype(np.{seen})" if source != to else value
            value = f"A.saturate({value})" if "sat" in parts else value
        else:
            if "sat" in parts:
                raise self.unknown(instruction)
            value = f"{value}.astype(np.{seen})"
        self.put(target, value, seen, guard)

    def on_ld(self, number: int, instruction: Instruction, guard: str | None) -> None:
        space, kind, names = self.memory_operands(instruction, instruction.operands[0])
        width = SIZES[kind]
        address = self.address(instruction.operands[1])
        if space == "param":
            self.lines.append(f"loaded = g.parameter({address}, {width}, {len(names)})")
            guard = None
        else:
            self.lines.append(f"loaded = g.load({number}, {space!r}, {address}, {width}, {len(names)}, {guard})")
        for i, name in enumerate(names):
            raw = f"loaded[{i}]"
            seen = SEEN[kind]
            self.put(name, raw if seen == f"uint{8 * width}" else f"{raw}.view(np.{seen})", seen, guard)

    def on_ldu(self, number: int, instruction: Instruction, guard: str | None) -> None:
        self.on_ld(number, instruction, guard)

    def on_st(self, number: int, instruction: Instruction, guard: str | None) -> None:
        space, kind, names = self.memory_operands(instruction, instruction.operands[1])
        width = SIZES[kind]
        bits = {1: "u8", 2: "b16", 4: "b32", 8: "b64"}[width]
        values = []
        for name in names:
            if name.startswith(("0f", "0F", "0d", "0D")):
                values.append(f"{self.operand(name, kind)}.view(np.uint{8 * width})")
            else:
                values.append(self.operand(name, bits))
        address = self.address(instruction.operands[0])
        self.lines.append(f"g.store({number}, {space!r}, {address}, {width}, ({', '.join(values)},), {guard})")

    def memory_operands(self, instruction: Instruction, registers: str) -> tuple[str, str, list[str]]:
        """Address space, type, and the one to eight registers of an access."""
        parts = instruction.parts
        space = next(
            (p.split("_")[0] for p in parts[1:3] if p.split("_")[0] in ("global", "shared", "param", "local", "const")),
            "generic",
        )
        if space in ("local", "const") or {"acquire", "release", "sys", "gpu"} & set(parts):
            raise self.unknown(instruction)
        return space, instruction.type, re.findall(r"[%\w$@.\-]+", registers)

    def on_shfl(self, number: int, instruction: Instruction, guard: str | None) -> None:
        target, value, lane, clamp, mask = instruction.operands
        target, _, valid = target.partition("|")
        mode = instruction.parts[2]
        value, lane, clamp, mask = (self.operand(x, "u32") for x in (value, lane, clamp, mask))
        self.lines.append(f"shuffled, valid = g.shuffle({number}, {mode!r}, {value}, {lane}, {clamp}, {mask})")
        self.put(target, "shuffled", "uint32", guard)
        if valid:
            self.put(valid, "valid", "bool_", guard)

    def on_vote(self, number: int, instruction: Instruction, guard: str | None) -> None:
        target, value, mask = instruction.operands
        mode = instruction.parts[2]
        value, mask = self.operand(value, "pred"), self.operand(mask, "u32")
        self.put(target, f"g.vote({mode!r}, {value}, {mask})", "uint32" if mode == "ballot" else "bool_", guard)

    def on_redux(self, number: int, instruction: Instruction, guard: str | None) -> None:
        target, value, mask = instruction.operands
        mode, kind = instruction.parts[2], instruction.type
        value, mask = self.operand(value, kind), self.operand(mask, "u32")
        self.put(target, f"g.reduce({mode!r}, {value}, {mask})", SEEN[kind], guard)

    def on_activemask(self, number: int, instruction: Instruction, guard: str | None) -> None:
        self.put(instruction.operands[0], "g.active_mask()", "uint32", guard)

    def on_bar(self, number: int, instruction: Instruction, guard: str | None) -> None:
        if instruction.parts[1] != "warp":
            raise self.unknown(instruction)
        self.lines.append("g.warp_barrier()")

    def on_prefetch(self, number: int, instruction: Instruction, guard: str | None) -> None:
        pass

    def on_fence(self, number: int, instruction: Instruction, guard: str | None) -> None:
        pass

    on_membar = on_fence


def converted(expression: str, source: str, target: str) -> str:
    """An expression of one numpy type as another: the same bits, or sign- or zero-extended, or cut off."""
    if source == target:
        return expression
    if np.dtype(source).itemsize == np.dtype(target).itemsize and "bool" not in source + target:
        return f"{expression if expression.isidentifier() else f'({expression})'}.view(np.{target})"
    return f"({expression}).astype(np.{target})"


@functools.cache
def special_register(name: str) -> str:
    if re.fullmatch(r"%(tid|ntid|ctaid|nctaid)\.[xyz]|%laneid|%warpid", name):
        return f"g.special({name!r})"
    raise UnknownInstruction(f"register {name}")
