"""next and ulp, against the sorted list of a format's values."""

from __future__ import annotations

import bisect
import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from compiling import since
from lptensor import _native
from lptensor.blocks import MXFP4, NVFP4, BlockFloatingPoint
from lptensor.codebooks import NF4, Codebook, LogNumber
from lptensor.codes import scales
from lptensor.formats import (
    BF16,
    E2M1,
    E4M3,
    E4M3FNUZ,
    E5M2,
    E8M0,
    FP16,
    FP32,
    FixedPoint,
    FloatingPoint,
    ScalarFormat,
)
from lptensor.neighbours import next, ulp
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from oracles import posit

FORMATS = [
    E4M3,
    E5M2,
    E4M3FNUZ,
    E2M1,
    E8M0,
    FloatingPoint(4, 3, subnormals=False),
    FloatingPoint(4, 3, subnormals="flush"),
    FloatingPoint(4, 3, signed=False),
    FloatingPoint(1, 4, specials="none"),
    FloatingPoint(3, 2, subnormals=False, zero=False),
    FixedPoint(8, 4),
    FixedPoint(6, -3, symmetric=True),
    FixedPoint(6, 2, signed=False),
    P3109(8, 1),
    P3109(8, 3, extended=False),
    P3109(6, 6),
]
every_format = pytest.mark.parametrize("format", FORMATS, ids=repr)
LISTS = [Posit(8), Posit(6, es=1), Posit(16), NF4, LogNumber(6), Codebook([-3.0, 0.5, 2.0])]  # whose ends saturate
every_list = pytest.mark.parametrize("format", FORMATS + LISTS, ids=repr)


def probes(values: list[float]) -> torch.Tensor:
    """Every value, its neighbours in float64, and points between."""
    v = torch.tensor(values, dtype=torch.float64)
    inf = torch.tensor(math.inf, dtype=torch.float64)
    return torch.cat([v, v.nextafter(inf), v.nextafter(-inf), (v[1:] + v[:-1]) / 2, torch.tensor([-1e300, 1e300])])


@every_list
def test_next_is_the_nearest_value_on_the_other_side(format: ScalarFormat) -> None:
    values = format.values().tolist()
    x = probes(values)
    x = x[(x < values[-1]) & (x > values[0])]
    above = [values[bisect.bisect_right(values, v)] for v in x.tolist()]
    below = [values[bisect.bisect_left(values, v) - 1] for v in x.tolist()]
    assert next(x, format).tolist() == above
    assert next(x, format, up=False).tolist() == below


@every_list
def test_next_walks_through_all_values(format: ScalarFormat) -> None:
    values = format.values()
    assert torch.equal(next(values[:-1], format), values[1:])
    assert torch.equal(next(values[1:], format, up=False), values[:-1])


@every_list
def test_from_beyond_the_ends_next_comes_to_the_end(format: ScalarFormat) -> None:
    values = format.values().tolist()
    low = torch.tensor([-math.inf, values[0] - (1e-9 * abs(values[0]) or 1)], dtype=torch.float64)
    high = torch.tensor([values[-1] * (1 + 1e-9)], dtype=torch.float64)
    assert next(low, format).tolist() == [values[0]] * 2
    assert next(high, format, up=False).tolist() == [values[-1]]


@pytest.mark.parametrize(
    "format", [P3109(8, 3, overflow="propagate"), FloatingPoint(5, 2, overflow="propagate")], ids=repr
)
def test_where_infinities_propagate_none_follows_the_largest_number_of_a_dtype(format: ScalarFormat) -> None:
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor([torch.finfo(dtype).max, math.inf], dtype=dtype)
        assert next(x, format).tolist() == [format.max, math.inf]
        assert next(-x, format, up=False).tolist() == [-format.max, -math.inf]


@pytest.mark.parametrize("format", LISTS, ids=repr)
def test_past_the_ends_of_posits_and_lists_comes_the_end(format: Any) -> None:
    low, high = format.values()[[0, -1]].tolist()
    x = torch.tensor([low, high, -math.inf, math.inf, math.nan])
    assert next(x, format).nan_to_num(7).tolist()[1::2] == [high, high]
    assert next(x, format, up=False).nan_to_num(7).tolist()[::2] == [low, low, 7]
    assert next(torch.tensor([[-0.0], [0.0]]), format).unique().numel() == 1


def test_past_the_largest_value_comes_what_overflow_gives() -> None:
    assert next(torch.tensor([57344.0]), E5M2).item() == math.inf
    assert next(torch.tensor([448.0]), E4M3).item() == 448
    assert next(torch.tensor([240.0]), E4M3FNUZ).isnan().all()
    assert next(torch.tensor([math.inf]), E5M2).item() == math.inf
    assert next(torch.tensor([math.inf]), E5M2, up=False).item() == 57344
    assert next(torch.tensor([-57344.0]), E5M2, up=False).item() == -math.inf


def test_just_outside_the_smallest_numbers_of_a_format_without_zero_lie_these() -> None:
    format = FloatingPoint(4, 3, subnormals=False, zero=False)
    smallest = torch.tensor([format.grid.smallest], dtype=torch.float64)
    outside = smallest.nextafter(2 * smallest)
    assert next(outside, format, up=False).item() == smallest.item() == -next(-outside, format).item()
    assert next(smallest, format, up=False).item() == -smallest.item()


def test_below_the_least_value_of_a_format_without_negatives_comes_what_rounding_gives() -> None:
    least = E8M0.min
    assert next(torch.tensor([least, least / 2]), E8M0, up=False).tolist() == [least, least]
    for format in (E8M0, FloatingPoint(4, 3, signed=False)):
        assert next(torch.tensor([-1.0, -math.inf]), format, up=False).isnan().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_ends_the_next_value_is_the_next_number_of_the_dtype_where_those_are_sparse(dtype: torch.dtype) -> None:
    format, sparse = FixedPoint(8, 0, clamp=False), 2 / torch.finfo(dtype).eps  # from here on
    x = torch.tensor([sparse, sparse + 2, 2.0**100, torch.finfo(dtype).max], dtype=dtype)
    x = torch.cat([x, -x, torch.tensor([math.inf, -math.inf], dtype=dtype)])
    inf = torch.tensor(math.inf, dtype=dtype)
    assert torch.equal(next(x, format), x.nextafter(inf))
    assert torch.equal(next(x, format, up=False), x.nextafter(-inf))
    assert next(torch.tensor([0.5, -0.5], dtype=dtype), format).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("format", [E4M3, NF4, Posit(8), Posit(28), LogNumber(6)], ids=repr)
def test_of_what_has_no_memory_there_is_the_form(format: Any) -> None:
    for ask in (next, ulp):
        there = ask(torch.empty(2, 3, device="meta"), format)
        assert there.is_meta and there.shape == (2, 3) and there.dtype == torch.float32


def test_next_to_zero_keeps_the_sign_where_there_is_a_negative_zero() -> None:
    assert math.copysign(1, next(torch.tensor([-(2.0**-9)]), E4M3).item()) == -1
    assert math.copysign(1, next(torch.tensor([-(2.0**-10)]), E4M3FNUZ).item()) == 1
    assert next(torch.tensor([0.0, -0.0]), E4M3).tolist() == [2.0**-9] * 2


@pytest.mark.parametrize(("format", "dtype"), [(FP32, torch.float32), (FP16, torch.float16), (BF16, torch.bfloat16)])
@pytest.mark.parametrize("up", [True, False])
def test_next_is_torchs_nextafter(format: ScalarFormat, dtype: torch.dtype, up: bool) -> None:
    bits = {2: torch.int16, 4: torch.int32}[dtype.itemsize]
    x = torch.randint(-(2**31), 2**31, (20000,)).to(bits).view(dtype)
    x = x[~x.isnan()]
    toward = torch.tensor(math.inf if up else -math.inf)
    if dtype != torch.float16:  # torch has none for half
        expected = x.nextafter(toward.to(dtype)).float()
    else:
        with np.errstate(over="ignore"):
            expected = torch.from_numpy(np.nextafter(x.numpy(), toward.half().numpy())).float()
    assert torch.equal(next(x.float(), format, up), expected)


@every_format
def test_ulp_is_the_distance_to_the_next_value_in_magnitude(format: ScalarFormat) -> None:
    values = [v for v in format.values().tolist() if v >= 0]
    for low, high in zip(values[:-1], values[1:], strict=True):
        inside = torch.tensor([low, low + (high - low) / 3], dtype=torch.float64)
        assert ulp(inside, format).tolist() == [high - low] * 2, (low, high)
        assert ulp(-inside, format).tolist() == [high - low] * 2


@pytest.mark.parametrize("format", [*LISTS, Codebook([-7.0, -2.0]), Codebook([0.25, 4.0, 5.0])], ids=repr)
def test_ulp_of_a_list_is_the_distance_of_the_values_around(format: Any) -> None:
    values = [Fraction(v) for v in format.values().tolist()]
    x = probes(format.values().tolist()).clamp(-1e300, 1e300)
    x = x[:: 1 + len(x) // 3000]
    gaps = []
    for v in map(Fraction, x.tolist()):
        at = bisect.bisect_right(values, v) - 1 if v >= 0 else bisect.bisect_left(values, v) - 1
        at = min(max(at, 0), len(values) - 2)
        gaps.append(float(values[at + 1] - values[at]))
    assert ulp(x, format).tolist() == gaps
    assert ulp(torch.tensor([math.inf, -math.inf]), format).tolist() == [math.inf] * 2
    assert ulp(torch.tensor([math.nan]), format).isnan().all()


@pytest.mark.parametrize("format", [Posit(17), Posit(28), Posit(32), Posit(24, es=0), Posit(32, es=5)], ids=repr)
def test_posits_that_are_too_many_to_list_have_neighbours_too(format: Posit) -> None:
    last = 2 ** (format.nbits - 1) - 1
    codes = torch.randint(1 - last, last, (200,), generator=torch.Generator().manual_seed(0)).tolist()
    for code in (*codes, 1 - last, last - 1, -1, 0, 1, 2):
        below, here, above = (exact_posit(code + step, format) for step in (-1, 0, 1))
        x = torch.tensor([float(here), float((here + above) / 2), float((below + here) / 2)], dtype=torch.float64)
        assert next(x, format).tolist() == [above, above, here], code
        assert next(x, format, up=False).tolist() == [below, here, below], code
        outward = above - here if code >= 0 else here - below
        assert ulp(x, format).tolist() == [outward, above - here, here - below], code
    ends = torch.tensor([-math.inf, -1e300, format.min, format.max, 1e300, math.inf, math.nan], dtype=torch.float64)
    up, down = next(ends, format).tolist(), next(ends, format, up=False).tolist()
    second = exact_posit(last - 1, format)
    assert up[:6] == [format.min, format.min, -second, *[format.max] * 3] and math.isnan(up[6])
    assert down[:6] == [*[format.min] * 3, second, format.max, format.max] and math.isnan(down[6])


def exact_posit(code: int, format: Posit) -> Fraction:
    """The value of a code that counts from 0, up and down."""
    value = posit.value(code % 2**format.nbits, format.nbits, format.es)
    assert value is not None
    return value


def test_ulp_beyond_the_ends() -> None:
    assert ulp(torch.tensor([1e9, math.inf, -math.inf]), E4M3).tolist() == [32, math.inf, math.inf]
    assert ulp(torch.tensor([math.nan]), E4M3).isnan().all()
    assert ulp(torch.tensor([0.0, 2.0**-140]), FP32).tolist() == [2.0**-149] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_are_kept(dtype: torch.dtype) -> None:
    x = torch.randn(3, 4, dtype=dtype).t()
    for y in (next(x, E4M3), ulp(x, E4M3)):
        assert y.shape == x.shape and y.dtype == dtype
    assert next(torch.tensor(math.nan, dtype=dtype), E4M3).isnan()


def test_bad_input_is_named() -> None:
    with pytest.raises(TypeError, match="expected a tensor, got float"):
        next(1.0, E4M3)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="of single numbers, got BlockFloatingPoint"):
        ulp(torch.ones(2), BlockFloatingPoint(8))
    with pytest.raises(TypeError, match="of single numbers, got MXFP4; ask its element"):
        next(torch.ones(2), MXFP4)
    with pytest.raises(ValueError, match="has one value, and no spacing"):
        ulp(torch.ones(2), Codebook([1.0]))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_views_that_say_they_are_negative_have_neighbours_and_scales(dtype: torch.dtype) -> None:
    x = torch.randn(4, 32, dtype=dtype).conj().imag
    assert x.is_neg()
    for ask, formats in ((next, (E4M3, BF16)), (ulp, (E4M3, BF16)), (scales, (MXFP4, NVFP4))):
        for format in formats:
            assert torch.equal(ask(x, format), ask(x.resolve_neg(), format))


@pytest.mark.parametrize("format", [E4M3, FixedPoint(8, 4), FloatingPoint(4, 3, subnormals=False), E8M0], ids=repr)
def test_compiled_and_torchs_neighbours_are_the_same_in_every_layout(format: ScalarFormat, monkeypatch: Any) -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * 8
    layouts = [x, x.T, x[::2, 1::3], x[0].expand(4, 10), x[:0], x[0, 0], x.double()]
    compiled = [next(t, format, up) for t in layouts for up in (True, False)]
    monkeypatch.setattr(_native, "library", lambda: None)
    for got, wanted in zip(compiled, (next(t, format, up) for t in layouts for up in (True, False)), strict=True):
        assert torch.equal(got.isnan(), wanted.isnan()) and torch.equal(got.nan_to_num(7), wanted.nan_to_num(7))


@since("2.13", "vmap knows no view of a tensor's bits")
def test_neighbours_are_mapped() -> None:
    x = torch.randn(6, 10, generator=torch.Generator().manual_seed(0)) * 8
    assert torch.equal(torch.func.vmap(lambda t: next(t, E4M3))(x), next(x, E4M3))
