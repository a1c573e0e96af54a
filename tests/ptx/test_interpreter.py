"""The interpreter itself: what it computes is right to the bit, and it stops at every kind of fault."""

import ctypes
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.ptx.device import Device, pointer
from tests.ptx.memory import Fault


def launch(kernels: Device, name: str, inputs: Sequence[Tensor], results: Sequence[Tensor], *numbers: int) -> None:
    with kernels.calling(inputs, results):
        getattr(kernels.library, f"run_{name}")(*map(pointer, [*inputs, *results]), *map(ctypes.c_int, numbers))


def computed(kernels: Device, name: str, inputs: Sequence[Tensor], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    result = torch.empty(*shape, dtype=dtype)
    launch(kernels, name, inputs, [result], len(inputs[0]))
    return result


# ---- what it computes


def test_double_exp(kernels: Device) -> None:
    """CUDA's own bound is 1 unit in the last place."""
    x = torch.cat([torch.linspace(-745, 709, 1001), torch.randn(1000)]).double()
    given = computed(kernels, "double_exp", [x], x.shape, x.dtype)
    expected = x.exp()
    normal = expected > 1e-300
    assert ((given - expected).abs() / expected)[normal].max() < 2.5e-16


def test_float_exp(kernels: Device) -> None:
    x = torch.cat([torch.linspace(-87, 88, 1001), torch.randn(1000)])
    given = computed(kernels, "float_exp", [x], x.shape, x.dtype).double()
    expected = x.double().exp()
    assert ((given - expected).abs() / expected).max() < 2 * 2.0**-23


def rounded_to(value: Fraction, dtype: torch.dtype) -> float:
    """The nearest number of a dtype, ties to even, for normal results."""
    if value == 0:
        return 0.0
    bits = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}[dtype]
    exponent = int(np.floor(np.log2(abs(float(value)))))
    while abs(value) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    while abs(value) < Fraction(2) ** exponent:
        exponent -= 1
    unit = Fraction(2) ** (exponent - bits + 1)
    return float(round(value / unit) * unit)


def fma_operands(dtype: torch.dtype, n: int = 600) -> list[Tensor]:
    """Many with products that nearly cancel, or lie next to a tie, where rounding twice goes wrong."""
    torch.manual_seed(0)
    a, b = torch.randn(2, n, dtype=torch.float64).to(dtype)
    c = torch.randn(n, dtype=torch.float64).to(dtype)
    c[: n // 3] = -(a.double() * b.double()).to(dtype)[: n // 3]
    c[n // 3 : n // 2] = (c.double() * 2.0**-30).to(dtype)[n // 3 : n // 2]
    return [a, b, c]


def exact_fma(a: Tensor, b: Tensor, c: Tensor) -> list[float]:
    return [
        rounded_to(Fraction(x) * Fraction(y) + Fraction(z), a.dtype)
        for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]


@pytest.mark.parametrize(("name", "dtype"), [("float_fma", torch.float32), ("double_fma", torch.float64)])
def test_multiply_adds_round_once(kernels: Device, name: str, dtype: torch.dtype) -> None:
    a, b, c = fma_operands(dtype)
    assert computed(kernels, name, [a, b, c], a.shape, dtype).tolist() == exact_fma(a, b, c)


def test_a_multiply_add_next_to_a_tie(kernels: Device) -> None:
    """1 + 2^-24 + 2^-60 lies above a tie of float32, which float64 cannot show."""
    a, b, c = (torch.tensor([x]) for x in (2.0**-30, 2.0**-30, 1 + 2.0**-23))
    a, b = torch.tensor([1 + 2.0**-12]), torch.tensor([2.0**-24])
    expected = exact_fma(a, b, c)
    assert computed(kernels, "float_fma", [a, b, c], a.shape, torch.float32).tolist() == expected


def test_half_precision_pairs(kernels: Device) -> None:
    a, b, c = (x.clamp(0.06, 4) for x in fma_operands(torch.float16, 512))
    given = torch.empty(256, 3, 2, dtype=torch.float16)
    launch(kernels, "half_pairs", [a, b, c], [given], 256)
    assert given[:, 0].flatten().tolist() == exact_fma(a, b, c)
    assert torch.equal(given[:, 1].flatten(), a + b)
    assert torch.equal(given[:, 2].flatten(), a * b)


def test_bfloat16_pairs(kernels: Device) -> None:
    a, b, c = fma_operands(torch.bfloat16, 512)
    given = torch.empty(512, dtype=torch.bfloat16)
    launch(kernels, "bfloat_pairs", [a, b, c], [given], 256)
    assert given.tolist() == exact_fma(a, b, c)


def test_conversions(kernels: Device) -> None:
    x = torch.cat([torch.randn(500) * 100, torch.tensor([65519.9, 65520.0, 3e38, -3e38, 0.0, -0.0, 1e-8, 2.5, 3.5])])
    n = len(x)
    results = [torch.empty(n, dtype=d) for d in (torch.float16, torch.bfloat16, torch.int32, torch.int64, torch.uint8)]
    launch(kernels, "conversions", [x], results, n)
    half, bfloat, i32, i64, u8 = results
    assert torch.equal(half, x.half())
    assert torch.equal(bfloat, x.bfloat16())
    clamped = x.double().trunc().clamp(-(2**31), 2**31 - 1).long()
    assert torch.equal(i32.long(), clamped)
    assert torch.equal(i64, x.double().floor().clamp(-(2.0**63), 2.0**63 - 1024).long().where(x.abs() < 1e18, i64))
    assert torch.equal(u8.long(), clamped & 255)


def test_integers(kernels: Device) -> None:
    torch.manual_seed(0)
    a = torch.randint(-(2**62), 2**62, (400,)) >> torch.randint(0, 60, (400,))
    b = torch.randint(-(2**62), 2**62, (400,)) >> torch.randint(0, 60, (400,))
    b[b == 0] = 3
    given = computed(kernels, "integers", [a, b], (400, 8), torch.int64)
    for x, y, row in zip(a.tolist(), b.tolist(), given.tolist(), strict=True):
        quotient = abs(x) // abs(y) * (1 if (x < 0) == (y < 0) else -1)
        low_x, low_y = x & 0xFFFFFFFF, y & 0xFFFFFFFF
        signed = low_x - 2**32 if low_x >> 31 else low_x
        wide = x & (2**64 - 1)
        assert row == [
            quotient,
            x - quotient * y,
            low_x // (low_y | 1),
            x * y >> 64,
            wide.bit_count(),
            64 - wide.bit_length(),
            signed >> (y & 31),
            (low_y << 7 | low_x >> 25) & 0xFFFFFFFF,
        ]


def test_shuffles_and_barriers(kernels: Device) -> None:
    x = torch.randint(-50, 50, (700,)).float()
    given = computed(kernels, "block_sum", [x], (3,), torch.float32)
    assert given.tolist() == [part.sum().item() for part in x.split(256)]


def test_votes(kernels: Device) -> None:
    x = torch.randint(-50, 50, (64,), dtype=torch.int32)
    given = torch.empty(64, 5, dtype=torch.int32)
    launch(kernels, "votes", [x], [given])
    for lane, row in enumerate(given.tolist()):
        warp = x.tolist()[lane // 32 * 32 : lane // 32 * 32 + 32]
        ballot = sum((value > 0) << i for i, value in enumerate(warp))
        before = x[lane - 1].item() if lane % 8 else x[lane].item()
        assert row[0] & 0xFFFFFFFF == ballot
        assert row[1:] == [any(v > 30 for v in warp), True, sum(warp), before]


def test_divergent_loops(kernels: Device) -> None:
    x = torch.randint(0, 40, (333,), dtype=torch.int32)
    given = computed(kernels, "divergence", [x], x.shape, torch.int32)

    def expected(i: int) -> int:
        total = 0
        for k in range(x[i].item()):
            if (k + i) % 3 == 0:
                total += sum(k >> s for s in range(k.bit_length()))
            elif k % 2:
                total -= k
        return total

    assert given.tolist() == [expected(i) for i in range(333)]


def test_a_warp_may_exchange_values_behind_a_barrier_of_its_own(kernels: Device) -> None:
    x = torch.arange(64, dtype=torch.int32) * 7
    given = torch.empty(3, 64, dtype=torch.int32)
    launch(kernels, "warp_exchange", [x], [given])
    assert torch.equal(given, torch.stack([x[torch.arange(64) ^ 5] + r for r in range(3)]).int())


def test_grids_and_blocks_of_several_dimensions_and_dynamic_shared_memory(kernels: Device) -> None:
    x = torch.randn(6, 12, 12)
    given = torch.empty_like(x)
    launch(kernels, "dynamic_transpose", [x], [given])
    assert torch.equal(given, x.transpose(1, 2))


# ---- faults


def stops(kernels: Device, name: str, reason: str, inputs: Sequence[Tensor], results: Sequence[Tensor], *numbers: int):
    with pytest.raises(Fault, match=reason):
        launch(kernels, name, inputs, results, *numbers)


def values(n: int = 64) -> Tensor:
    return torch.ones(n)


def room(n: int = 64) -> Tensor:
    return torch.empty(n)


def test_misaligned_accesses(kernels: Device) -> None:
    stops(kernels, "misaligned", "misaligned: address", [values()], [room()])
    stops(kernels, "misaligned_shared", r"ld\.volatile\.shared\.f64.*misaligned: address", [], [room()])


def test_more_shared_memory_than_a_block_may_have(kernels: Device) -> None:
    given, kib = torch.empty(32), 1024
    launch(kernels, "much_shared", [], [given], 48 * kib, 0)
    stops(kernels, "much_shared", "50176 bytes of shared memory, over 48 KiB", [], [given], 49 * kib, 0)
    launch(kernels, "much_shared", [], [given], 227 * kib, 227 * kib)
    assert given.tolist() == list(range(32))
    stops(kernels, "much_shared", "233472 bytes of shared memory, over 227 KiB", [], [given], 228 * kib, 228 * kib)


def test_reads_past_the_end(kernels: Device) -> None:
    launch(kernels, "copy", [values(40)], [room(40)], 40)
    stops(kernels, "copy", "out of range: .* 0 bytes past the end of argument 0", [values(40)], [room(41)], 41)


def test_reads_between_the_rows_of_a_slice(kernels: Device) -> None:
    """Mapped memory, even of the same storage, but none of the tensor's elements."""
    rows = torch.ones(4, 10)[:, :8]
    stops(kernels, "copy", "out of range of the tensor: byte 32 of argument 0", [rows], [room()], 32)


def test_writes_outside_of_the_results(kernels: Device) -> None:
    x = values(40)
    stops(kernels, "copy", "writes outside of the results: byte 0 of argument 1", [x, x.clone()], [], 40)
    rows = torch.ones(4, 10)[:, :8]
    stops(kernels, "copy", "writes outside of the results: byte 32 of result 0", [x], [rows], 40)
    stops(kernels, "copy", "out of range: .* past the end of result 0", [x], [room(39)], 40)


def test_accesses_beyond_shared_memory(kernels: Device) -> None:
    launch(kernels, "unwritten_shared", [], [room()], 32)
    stops(kernels, "beyond_shared", "out of range: byte 128 of 128 of shared memory", [], [room()], 1)
    stops(kernels, "beyond_shared", "out of range: byte -4 of 128", [], [room()], -1)


def test_uninitialised_memory(kernels: Device) -> None:
    stops(kernels, "unwritten_shared", "shared memory that was never written: byte 124", [], [room()], 31)
    stops(kernels, "reads_unwritten_result", "never written: byte 0 of result 0", [], [room()])


def test_races_in_shared_memory(kernels: Device) -> None:
    launch(kernels, "race_across_barriers", [values()], [room()], 1)
    stops(kernels, "race_across_barriers", "race: writes what another thread has just read", [values()], [room()], 2)
    stops(kernels, "race_in_phase", "race: reads what another thread has just written", [], [room()])
    stops(kernels, "two_writers_shared", "race: two threads write at once", [], [room()])


def test_races_in_global_memory(kernels: Device) -> None:
    stops(kernels, "two_writers", "race: two threads write byte 0 of result 0", [], [room()])
    stops(kernels, "reads_anothers_result", "race: reads what another thread of this launch writes", [], [room(128)])


@pytest.mark.parametrize("name", ["divergent_barrier", "two_barriers"])
def test_divergent_barriers(kernels: Device, name: str) -> None:
    stops(kernels, name, "divergent barrier: threads of block 0", [], [room()])


def test_shuffles_without_all_lanes(kernels: Device) -> None:
    stops(kernels, "incomplete_shuffle", "lanes of its member mask never come here", [values()], [room()])
    stops(kernels, "shuffle_from_nobody", "shuffles from a lane that takes no part", [values()], [room()])


def test_results_must_be_complete(kernels: Device) -> None:
    result = room(64)
    with kernels.calling([values(40)], [result]) as call:
        kernels.library.run_copy(pointer(values(40)), pointer(result), 0)
    with pytest.raises(Fault, match="64 elements of result 0 float32 64 were never written"):
        call.memory.check_complete(result, "copy")
