"""PTX arithmetic on numpy arrays, an element a lane, where numpy has no operation of the same meaning.

An array of length 1 is a value that all lanes share. Floating-point results are rounded once, as the hardware's are;
ex2.approx is the correctly computed 2^x, where the hardware may err by 2 units in the last place.
"""

import ctypes
from collections.abc import Callable

import numpy as np

_fused: dict[np.dtype, Callable] = {}


def use(library: ctypes.CDLL) -> None:
    """Takes fused multiply-adds from the library that build.py makes of native.cpp."""
    for kind, name in ((np.float32, "ptx_fma_f32"), (np.float64, "ptx_fma_f64")):
        function = getattr(library, name)
        function.argtypes = [ctypes.c_int64, *[ctypes.c_void_p, ctypes.c_int64] * 3, ctypes.c_void_p]
        function.restype = None
        _fused[np.dtype(kind)] = function


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    n = max(len(a), len(b), len(c))
    out = np.empty(n, a.dtype)
    arguments = []
    for x in (a, b, c):
        arguments += [x.__array_interface__["data"][0], len(x) != 1]
    _fused[a.dtype](n, *arguments, out.__array_interface__["data"][0])
    return out


def sum_to_odd(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b in float64, rounded to odd: a second rounding, to a shorter format, then gives the exact sum's."""
    total = a + b
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    bits = total.view(np.int64)
    move = (error != 0) & (bits & 1 == 0) & np.isfinite(total)
    return (bits + np.where(move, np.where((error > 0) == (total > 0), 1, -1), 0)).view(np.float64)


def fma_short(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c of float32 operands, in float64: exact once rounded to float32, float16 or bfloat16."""
    return sum_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64))


def fma_down(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """fma.rm.f32: rounded towards minus infinity."""
    exact = fma_short(a, b, c)
    rounded = exact.astype(np.float32)
    return np.where(rounded > exact, np.nextafter(rounded, np.float32(-np.inf)), rounded)


def from_bf16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_bf16(value: np.ndarray) -> np.ndarray:
    """float32, or float64 rounded to odd -> bits of the nearest bfloat16."""
    if value.dtype == np.float64:
        short = value.astype(np.float32)
        inexact = short != value
        bits = short.view(np.uint32)
        away = np.abs(short.astype(np.float64)) > np.abs(value)
        bits = np.where(inexact, np.where(away, bits - np.uint32(1), bits) | np.uint32(1), bits)
        value = bits.view(np.float32)
    bits = value.view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(value), np.uint16(0x7FFF), rounded.astype(np.uint16))


def from_f16(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float16).astype(np.float32)


def to_f16(value: np.ndarray) -> np.ndarray:
    return value.astype(np.float16).view(np.uint16)


def low_half(pair: np.ndarray) -> np.ndarray:
    return pair.astype(np.uint16)


def high_half(pair: np.ndarray) -> np.ndarray:
    return (pair >> np.uint32(16)).astype(np.uint16)


def pair_of(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    return low.astype(np.uint32) | (high.astype(np.uint32) << np.uint32(16))


def divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Integers, rounded towards zero."""
    if a.dtype.kind == "u":
        return a // b
    quotient = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -quotient, quotient)


def remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a - divide(a, b) * b


def multiply_high(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Upper half of a product of integers."""
    bits = a.dtype.itemsize * 8
    if bits == 32:
        wide = np.int64 if a.dtype.kind == "i" else np.uint64
        return (a.astype(wide) * b.astype(wide) >> wide(32)).astype(a.dtype)
    half, mask = np.uint64(32), np.uint64(0xFFFFFFFF)
    x, y = a.view(np.uint64), b.view(np.uint64)
    middle = (x & mask) * (y & mask) >> half
    left = (x >> half) * (y & mask) + middle
    right = (x & mask) * (y >> half) + (left & mask)
    high = (x >> half) * (y >> half) + (left >> half) + (right >> half)
    if a.dtype.kind == "i":
        high = high - np.where(a < 0, y, np.uint64(0)) - np.where(b < 0, x, np.uint64(0))
    return high.view(a.dtype)


def to_integer(value: np.ndarray, kind: type, rounding: Callable) -> np.ndarray:
    """A float as an integer: clamped to the type's range, NaN becomes 0."""
    limits = np.iinfo(kind)
    whole = rounding(value)
    inside = (whole >= float(limits.min)) & (whole < float(limits.max) + 1)
    result = np.where(inside, whole, value.dtype.type(0)).astype(kind)
    if inside.all():
        return result
    result = np.where(whole < float(limits.min), kind(limits.min), result)
    return np.where(whole >= float(limits.max) + 1, kind(limits.max), result)


def saturate(value: np.ndarray) -> np.ndarray:
    """Clamped to [0, 1]; NaN becomes 0."""
    return np.fmin(np.fmax(value, value.dtype.type(0)), value.dtype.type(1))


def flush(value: np.ndarray) -> np.ndarray:
    """Subnormal float32 values become zero."""
    return np.where(np.abs(value) < np.float32(2.0**-126), np.copysign(np.float32(0), value), value)


def bit_count(value: np.ndarray) -> np.ndarray:
    return np.bitwise_count(value).astype(np.uint32)


def leading_zeros(value: np.ndarray) -> np.ndarray:
    bits = value.dtype.itemsize * 8
    count = np.full(len(value), bits, np.uint32)
    for bit in range(bits):
        count = np.where(value >> value.dtype.type(bit) != 0, np.uint32(bits - 1 - bit), count)
    return count


def permute_bytes(a: np.ndarray, b: np.ndarray, selector: np.ndarray) -> np.ndarray:
    """prmt.b32: each nibble of the selector picks a byte of {b, a}; its top bit spreads that byte's sign."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    result = np.zeros(1, np.uint32)
    for i in range(4):
        nibble = (selector >> np.uint32(4 * i)) & np.uint32(15)
        byte = ((both >> ((nibble & np.uint32(7)).astype(np.uint64) * np.uint64(8))) & np.uint64(255)).astype(np.uint32)
        byte = np.where(nibble & np.uint32(8), np.where(byte & np.uint32(128), np.uint32(255), np.uint32(0)), byte)
        result = result | (byte << np.uint32(8 * i))
    return result


def logic3(a: np.ndarray, b: np.ndarray, c: np.ndarray, table: int) -> np.ndarray:
    """lop3: the truth table's bit (a, b, c)."""
    result = np.zeros(1, a.dtype)
    for i in range(8):
        if table >> i & 1:
            term = a if i & 4 else ~a
            term = term & (b if i & 2 else ~b)
            result = result | (term & (c if i & 1 else ~c))
    return result


def extract_bits(value: np.ndarray, first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfe of an unsigned or signed integer."""
    kind = value.dtype.type
    bits = value.dtype.itemsize * 8
    first, length = (first & np.uint32(255)).astype(np.int64), (length & np.uint32(255)).astype(np.int64)
    unsigned = np.dtype(f"u{bits // 8}").type
    mask = np.where(length >= bits, unsigned(2**bits - 1), (unsigned(1) << length.astype(unsigned)) - unsigned(1))
    field = (value >> first.astype(kind)).view(unsigned) & mask
    if value.dtype.kind == "u":
        return field
    top = np.minimum(first + length - 1, bits - 1)
    negative = (length > 0) & ((value >> top.astype(kind)) & kind(1) != 0)
    return np.where(negative, field | ~mask, field).view(kind)


def insert_bits(source: np.ndarray, into: np.ndarray, first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """bfi of unsigned integers."""
    kind = into.dtype.type
    bits = into.dtype.itemsize * 8
    shift, length = first.astype(kind), length.astype(kind)
    mask = np.where(length >= bits, kind(2**bits - 1), (kind(1) << length) - kind(1)) << shift
    return (into & ~mask) | ((source << shift) & mask)


def funnel_shift(low: np.ndarray, high: np.ndarray, amount: np.ndarray, left: bool, wrap: bool) -> np.ndarray:
    """shf of 32-bit words."""
    amount = amount & np.uint32(31) if wrap else np.minimum(amount, np.uint32(32))
    both = low.astype(np.uint64) | (high.astype(np.uint64) << np.uint64(32))
    if left:
        return (both << amount.astype(np.uint64) >> np.uint64(32)).astype(np.uint32)
    return (both >> amount.astype(np.uint64)).astype(np.uint32)
