"""Microscaling formats against exact rationals, the published vectors of their scale rules, and ml_dtypes."""

from __future__ import annotations

import copy
import itertools
import pickle
from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import lptensor
from lptensor.blocks import (
    MX,
    MXFP4,
    MXFP8_E4M3,
    MXINT8,
    BlockFloatingPoint,
    Scaled,
    ScaledBlockFormat,
)
from lptensor.formats import E2M1, E4M3, E5M2, E8M0, FP16, FP32, FixedPoint, FloatingPoint, ScalarFormat
from lptensor.names import named_formats
from lptensor.ops import round as lp_round
from lptensor.scaling import SCALE_RULES, CurrentMaximum, Tile
from oracles import exact, mx
from oracles.exact import MODES
from rounders import NATIVE_BUILDS, assert_same, assert_same_bits, assert_threads_and_builds_change_no_bit, judge, run
from strategies import fixed_parameters, float_parameters, numbers_near

ROUNDERS = ["reference", *NATIVE_BUILDS]
ROWS = {name: row for name, row in named_formats().items() if isinstance(row, MX)}
TYPES = {
    "MXFP8_E4M3": ml_dtypes.float8_e4m3fn,
    "MXFP8_E5M2": ml_dtypes.float8_e5m2,
    "MXFP6_E3M2": ml_dtypes.float6_e3m2fn,
    "MXFP6_E2M3": ml_dtypes.float6_e2m3fn,
    "MXFP4": ml_dtypes.float4_e2m1fn,
}


def precision_of(element: ScalarFormat) -> int:
    if isinstance(element, FixedPoint):
        return element.wl - element.signed
    assert isinstance(element, FloatingPoint)
    return element.man + 1


def groups(shape: tuple[int, ...], block: tuple[int, ...]) -> list[list[tuple[int, ...]]]:
    """The indices of the elements of each block."""
    found: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for index in itertools.product(*map(range, shape)):
        found.setdefault(tuple(i // wide for i, wide in zip(index, block, strict=True)), []).append(index)
    return list(found.values())


def expected(
    x: torch.Tensor, format: MX | ScaledBlockFormat, mode: Any = "nearest", block: tuple[int, ...] | None = None
) -> np.ndarray:
    """What the oracle makes of x, in blocks of 1 x ... x block_size by default; a mode's name, or a way for each."""
    block = block or (*(1,) * (x.ndim - 1), format.block_size)  # type: ignore[union-attr]
    carrier = np.float32 if x.dtype == torch.float32 else np.float64
    result = np.zeros(tuple(x.shape))
    for group in groups(tuple(x.shape), block):
        values = mx.rounded_block(
            [x[i].item() for i in group],
            judge(format.element),
            precision_of(format.element),
            format.scaling.rule,
            mode if isinstance(mode, str) else [mode[i] for i in group],
            format.scaling.infinite,
            carrier,
            format.scaling.margin,
        )
        for index, value in zip(group, values, strict=True):
            result[index] = value
    return result


def check(x: torch.Tensor, format: MX, mode: str = "nearest", block: tuple[int, ...] | None = None) -> None:
    wanted = expected(x, format, mode, block)
    for rounder in ROUNDERS:
        assert_same(run(rounder, x, format, mode), wanted, x, (rounder, format, mode))


def scale_codes(x: list[float], rule: str, element: ScalarFormat) -> list[int]:
    """The E8M0 codes of the scales of x, a single block."""
    format = MX(element, len(x), scale_rule=rule)
    scales = lptensor.scales(torch.tensor(x), format)
    return [int(np.log2(s)) + 127 for s in scales.numpy()]


def spread(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, binades: int = 8, at: int = 0) -> torch.Tensor:
    """Numbers over many binades, many of them on or half way between values of a grid."""
    generator = torch.Generator().manual_seed(0)
    integers = torch.randint(-300, 301, shape, generator=generator).double()
    powers = torch.randint(at - binades, at + binades + 1, shape, generator=generator).double()
    return (integers * torch.exp2(powers)).to(dtype)


# --- the four scale rules -------------------------------------------------------------------------

# Block maxima, element, and for each rule the code of the scale and the values; from the reports that
# numbers name: microxcaling issue 4, torchao issues 436 and 2035, OCP MX v1.0 section 6.3.
RULE_VECTORS: list[tuple[str, list[float], ScalarFormat, dict[str, tuple[int | None, dict[float, float]]]]] = [
    (
        "957 in a block of 960",
        [957.0, 960.0],
        E4M3,
        {r: (None, {957.0: 896.0 if r in ("floor", "even") else 960.0}) for r in mx.RULES},
    ),
    (
        "127.99999 among 1 to 31",
        [*map(float, range(1, 32)), 127.99999],
        E5M2,
        {r: ((118, {127.99999: 112.0}) if r == "floor" else (119, {127.99999: 128.0})) for r in mx.RULES},
    ),
    ("150", [150.0, 1.0], E4M3, {"rceil": (126, {}), "ceil": (127, {}), "floor": (126, {})}),
    (
        "6.5, 7, 1",
        [6.5, 7.0, 1.0],
        E2M1,
        {r: (None, {6.5: 6.0, 7.0: 6.0 if r == "floor" else 8.0, 1.0: 1.0}) for r in mx.RULES},
    ),
]


@pytest.mark.parametrize(
    ("block", "element", "wanted"), [v[1:] for v in RULE_VECTORS], ids=[v[0] for v in RULE_VECTORS]
)
def test_published_vectors_of_the_scale_rules(
    block: list[float], element: ScalarFormat, wanted: dict[str, Any]
) -> None:
    for rule, (code, values) in wanted.items():
        format = MX(element, len(block), scale_rule=rule)
        if code is not None:
            assert scale_codes(block, rule, element) == [code], rule
        for rounder in ROUNDERS:
            y = dict(zip(block, run(rounder, torch.tensor(block), format).tolist(), strict=True))
            assert {x: y[x] for x in values} == values, (rule, rounder)


@pytest.mark.parametrize("bits", [0x40600001, 0x43FFFFFF], ids=hex)
def test_the_maximum_keeps_all_of_its_bits(bits: int) -> None:
    """3.5 and an ulp, 512 less an ulp: a maximum rounded to bfloat16 first takes another scale (torchao PR 4725)."""
    largest = float(np.uint32(bits).view(np.float32))
    top = Fraction(448)
    code = scale_codes([largest], "rceil", E4M3)[0]
    assert Fraction(largest) <= top * exact.power(code - 127) and Fraction(largest) > top * exact.power(code - 128)
    assert scale_codes([largest], "floor", E4M3) == [127 + (1 if largest < 8 else 8) - 8]


@pytest.mark.parametrize("power", [-100, -14, 1, 16, 20, 100])
def test_exponents_come_from_bits_not_from_logarithms(power: int) -> None:
    """floor(log2(x)) in fp32 is one too high just below 2**16, for one."""
    below = float(np.nextafter(np.float32(2.0**power), np.float32(0)))
    assert scale_codes([below], "floor", E5M2) == [127 + power - 1 - 15]
    assert scale_codes([2.0**power], "floor", E5M2) == [127 + power - 15]


ELEMENTS = [
    E4M3,
    E5M2,
    E2M1,
    MXINT8.element,
    FixedPoint(8, 12),
    FixedPoint(3, 127),
    FixedPoint(4, 0, signed=False),
    FloatingPoint(3, 0, specials="none"),
    FloatingPoint(4, 3, specials="fnuz"),
    FP16,
    FP32,
]


@pytest.mark.parametrize("element", ELEMENTS, ids=repr)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_scales_turn_exactly_where_their_rule_says(element: ScalarFormat, dtype: torch.dtype) -> None:
    """Maxima at every place where a rule could turn, and their neighbours in the carrier."""
    carrier = np.float32 if dtype == torch.float32 else np.float64
    values, precision = judge(element), precision_of(element)
    significands = [1.0, 1.5, 2 - 2.0**-precision, 2 - 2.0 ** (1 - precision), float(values.largest(False))]
    products = [s * 2.0**e for s in significands for e in (-126, -120, -3, 0, 5, 100, 118)]
    marks = [carrier(product) for product in products if product <= float(np.finfo(carrier).max)]
    marks += [np.finfo(carrier).smallest_subnormal * carrier(k) for k in (1, 3, 7, 1023, 2**20 + 1, 2**22 - 1)]
    with np.errstate(over="ignore"):
        maxima = np.unique([np.nextafter(m, carrier(to)) for m in marks for to in (0, m, np.inf)])
    maxima = maxima[np.isfinite(maxima) & (maxima > 0)]
    for rule in mx.RULES:
        format = MX(element, 1, scale_rule=rule)
        scales = lptensor.scales(torch.tensor(maxima, dtype=dtype), format)
        for largest, scale in zip(maxima, scales.tolist(), strict=True):
            exponent = mx.scale_exponent(Fraction(float(largest)), values, precision, rule)
            assert Fraction(scale) == exact.power(min(max(exponent, -127), 127)), (rule, float(largest).hex())


@pytest.mark.parametrize("rule", mx.RULES)
def test_every_rule_lets_only_its_own_values_clip(rule: str) -> None:
    """floor may clip; even clips what rounds down; ceil and rceil never clip by more than rounding moves."""
    x = torch.linspace(1, 4, 4001)[:, None]
    y = lp_round(x, MX(E4M3, 1, scale_rule=rule))
    worst = float(((x - y) / x).max())
    assert (worst > 2.0**-4) == (rule in ("floor", "even"))


def test_a_rule_of_ones_own_is_a_threshold_by_the_grid_of_the_element(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SCALE_RULES, "low", lambda grid: 1.0 + 2.0**-grid.precision)
    x = torch.arange(1.0, 4.0, 2.0**-6)[:, None]
    for element in (E2M1, E4M3):
        above = x / torch.where(x < 2, 1, 2) > 1 + 2.0 ** -precision_of(element)
        exponents = (x >= 2).double() + above - np.floor(np.log2(element.max))
        for format in (
            MX(element, 1, scale_rule="low"),
            Scaled(element, CurrentMaximum(Tile((1,)), E8M0, "low")),
        ):
            assert torch.equal(lptensor.scales(x, format), exponents.exp2())
    with pytest.raises(ValueError, match="'rceil', 'low', got 'half'"):
        MX(E2M1, scale_rule="half")


# --- values ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ROWS)
def test_named_rows_round_as_exact_rationals(name: str, mode: str) -> None:
    for rule in mx.RULES:
        row = ROWS[name]
        check(spread((3, 70)), MX(row.element, row.block_size, row.axis, rule), mode)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("element", ELEMENTS, ids=repr)
def test_any_element_rounds_as_exact_rationals(element: ScalarFormat, dtype: torch.dtype) -> None:
    tiny = torch.finfo(dtype).smallest_normal * torch.tensor([1, -0.25, 2.0**-20, 0.0], dtype=dtype)
    for mode in MODES:
        check(spread((2, 24), dtype), MX(element, 8), mode)
        check(torch.cat([tiny, spread((4,), dtype)]), MX(element, 8, scale_rule="ceil"), mode)


@pytest.mark.parametrize("name", ROWS)
def test_every_value_and_midpoint_of_the_element_rounds_rightly_in_a_block(name: str) -> None:
    element = ROWS[name].element
    values = judge(element)
    top = values.largest(False)
    assert top is not None
    ladder = sorted({gap for x in np.linspace(0, float(top), 700) for gap in (values.gap(Fraction(float(x))).low,)})
    marks = np.array([float(m) for pair in itertools.pairwise(ladder) for m in (pair[0], sum(pair) / 2)], np.float32)
    marks = np.concatenate([marks, np.nextafter(marks, np.float32(0)), np.nextafter(marks, np.float32(np.inf))])
    for scale in (1.0, 2.0**-20, 2.0**90):
        x = torch.tensor(np.append(marks, np.float32(float(top))) * np.float32(scale))[None]
        for mode in ("nearest", "down", "odd"):
            check(torch.cat([x, -x]), MX(element, x.shape[1]), mode)


@pytest.mark.parametrize("name", TYPES)
def test_rounding_to_nearest_agrees_with_ml_dtypes(name: str) -> None:
    x = torch.randn(64, 32) * torch.exp2(torch.randint(-20, 20, (64, 1)))
    largest = float(ml_dtypes.finfo(TYPES[name]).max)
    for rule, e in (("floor", np.floor), ("ceil", np.ceil)):
        exponents = e(np.log2(x.abs().amax(1, keepdim=True).double().numpy())) - np.floor(np.log2(largest))
        scaled = np.clip(x.numpy() * np.exp2(-exponents), -largest, largest).astype(np.float32)
        wanted = scaled.astype(TYPES[name]).astype(np.float64) * np.exp2(exponents)
        for rounder in ROUNDERS:
            assert_same(run(rounder, x, MX(ROWS[name].element, scale_rule=rule)), wanted, x, (rounder, rule))


def test_mxint8_never_uses_its_lowest_code() -> None:
    """OCP MX v1.0 section 5.3.4: steps of 2**-6 up to 1.984375 on both sides."""
    x = torch.tensor([[1.999, -1.999, 0.01, -0.0]])
    for rounder in ROUNDERS:
        assert run(rounder, x, MXINT8).tolist() == [[1.984375, -1.984375, 0.015625, 0.0]]


# --- the ends of E8M0 and of the carrier ----------------------------------------------------------


@pytest.mark.parametrize("rule", mx.RULES)
@pytest.mark.parametrize("element", [E4M3, E5M2, E2M1, MXINT8.element, FP16, FixedPoint(8, 12)], ids=repr)
@pytest.mark.parametrize("at", [-149, -140, -127, 115, 118])
def test_both_ends_of_the_scale_round_as_exact_rationals(element: ScalarFormat, rule: str, at: int) -> None:
    x = spread((6, 9), binades=4 if at < 0 else 1, at=at)
    assert x.isfinite().all()
    for mode in MODES:
        check(x, MX(element, 3, scale_rule=rule), mode)


GAPPED = [
    FloatingPoint(2, 3, specials="none", subnormals=False),
    FloatingPoint(2, 7, specials="fnuz", subnormals=False),
    FloatingPoint(2, 10, specials="none", subnormals="flush"),
]


@pytest.mark.parametrize("element", GAPPED, ids=repr)
@pytest.mark.parametrize(("dtype", "top"), [(torch.float32, 127), (torch.float64, 130)], ids=str)
def test_elements_without_subnormal_numbers_reach_up_to_the_top(
    element: ScalarFormat, dtype: torch.dtype, top: int
) -> None:
    """What lies below the smallest normal number is rounded by a power of two far above it."""
    for at in range(top - 34, top - 10):
        x = spread((4, 9), dtype, binades=1, at=at)
        x[:, 1:] *= torch.tensor([1, 2.0**-4, 2.0**-14, -(2.0**-14), 2.0**-60, 0.0, 1.3, 0.26], dtype=dtype)
        for mode in MODES:
            check(x, MX(element, 9), mode)


@pytest.mark.parametrize("at", [-1040, -600, -127, 127, 600, 1012])
def test_float64_beyond_the_range_of_e8m0_is_held_by_the_scale(at: int) -> None:
    x = spread((4, 8), torch.float64, binades=3, at=at)
    for mode in MODES:
        check(x, MX(E4M3, 8), mode)


def test_values_beyond_the_carrier_become_infinite() -> None:
    """The element has 4 * 2**126, an fp32 number does not."""
    x = torch.tensor([[3.9 * 2.0**126, -3.9 * 2.0**126, 2.0**125]])
    for rounder in ROUNDERS:
        y = run(rounder, x, MX(E2M1, scale_rule="ceil"))
        assert y.tolist() == [[torch.inf, -torch.inf, 2.0**125]]


def test_subnormal_blocks_survive_a_machine_that_flushes_them(flush_denormal: None) -> None:
    patterns = torch.tensor([[1, 5, 77, 1000, 0], [2**22, 2**22 + 12345, 3, 2**23 - 1, 9], [2**23, 1, 2**21, 7, 2**24]])
    x = torch.cat([patterns, patterns - 2**31]).to(torch.int32).view(torch.float32)
    formats = [MX(element, 5, scale_rule=rule) for element in (E4M3, E5M2, MXINT8.element) for rule in mx.RULES]
    cases = list(itertools.product(ROUNDERS, formats, MODES))
    results = [run(rounder, x, format, mode) for rounder, format, mode in cases]
    torch.set_flush_denormal(False)
    wanted = {(format, mode): expected(x, format, mode) for _, format, mode in cases}
    for y, (rounder, format, mode) in zip(results, cases, strict=True):
        assert_same(y, wanted[format, mode], x, (rounder, format, mode))


# --- zeros, NaN, infinities -----------------------------------------------------------------------


def test_special_blocks_keep_to_themselves() -> None:
    nan, inf = torch.nan, torch.inf
    rows = [
        [0.0, -0.0, 0.0, -0.0],
        [1.0, nan, 2.0, -0.0],
        [inf, 1.0, -3.0, 0.0],
        [-inf, nan, 3.0, 1.0],
        [-inf, inf, 0.0, -0.0],
        [1.0, -0.0, 5.3, -1e-9],
    ]
    x = torch.tensor(rows)
    for element, infinite, axis in itertools.product((E4M3, E2M1, MXINT8.element), ("nan", "saturate"), (0, 1)):
        block = (4, 1) if axis == 0 else (1, 4)
        for mode in MODES:
            check(x, MX(element, 4, axis, infinite=infinite), mode, block)


def test_a_lost_block_of_ones_and_one_nan() -> None:
    """The NaN at the end of a block is not lost in its maximum (TransformerEngine issue 3550)."""
    x = torch.ones(1, 64)
    x[0, 31] = torch.nan
    for rounder in ROUNDERS:
        y = run(rounder, x, MXFP8_E4M3)
        assert y[0, :32].isnan().all() and (y[0, 32:] == 1).all()


def test_an_infinity_saturates_on_request_and_leaves_its_block_alone() -> None:
    x = torch.tensor([[torch.inf, 1.0, -torch.inf, 400.0]])
    for rounder in ROUNDERS:
        assert run(rounder, x, MX(E4M3, infinite="saturate")).tolist() == [[448.0, 1.0, -448.0, 384.0]]
        assert run(rounder, x, MXFP8_E4M3).isnan().all()


# --- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(70,), (1,), (5, 33), (4, 5, 6), (2, 1, 7), (2, 3, 4, 5), (3, 40, 2)], ids=str)
def test_blocks_run_along_any_axis_and_the_last_may_be_short(shape: tuple[int, ...]) -> None:
    x = spread(shape)
    for axis, size in itertools.product(range(-len(shape), len(shape)), (1, 2, 3, 4, 32)):
        block = tuple(size if d == axis % len(shape) else 1 for d in range(len(shape)))
        check(x, MX(E2M1, size, axis), block=block)


@pytest.mark.parametrize("tile", [(2, 3), (1, 4), (4, 1), (100, 2), (3, 100), (2, 2, 2), (1, 3, 1)], ids=str)
def test_tiles_lie_over_the_last_axes(tile: tuple[int, ...]) -> None:
    for shape in ((5, 7), (2, 5, 7), (2, 3, 4, 5)):
        if len(tile) <= len(shape):
            check(spread(shape), MX(E4M3, tile), block=(*(1,) * (len(shape) - len(tile)), *tile))


def test_a_tensor_that_lacks_the_axis_is_one_block() -> None:
    x = spread((7,))
    for format in (MX(E2M1, 2, axis=1), MX(E2M1, 2, axis=-2), MX(E2M1, (2, 2))):
        check(x, MX(E2M1, 7), block=(7,))
        for rounder in ROUNDERS:
            assert_same_bits(run(rounder, x, format), run(rounder, x, MX(E2M1, 7)))
    assert lp_round(torch.tensor(6.7), MXFP4).item() == 6.0


# --- one result, however it is computed -----------------------------------------------------------

SHAPES_AND_FORMATS: list[tuple[tuple[int, ...], Any]] = [
    ((300, 700), MX(E4M3)),
    ((300, 701), MX(E4M3, 32, 0)),
    ((300, 701), MX(MXINT8.element, (16, 128), infinite="saturate")),
    ((3, 200, 301), MX(E2M1, 7, 1)),
    ((200_003,), BlockFloatingPoint(8)),
    ((400, 503), BlockFloatingPoint(8, 1, overflow="bump")),
    ((2, 300, 400), BlockFloatingPoint(8, 1)),
    ((300, 701), BlockFloatingPoint(8, 1)),
    ((3, 500, 531), MX(E5M2, 250, 1)),
    ((130_000, 2), MX(E5M2, 100_000, 0, "rceil")),
    ((9_001, 7), MX(E4M3)),
    ((60_001, 1), BlockFloatingPoint(8, 1)),
    ((1_501, 28), MX(E2M1, 10)),
    ((901, 56), MX(E4M3, infinite="saturate")),
    ((41, 50, 3, 3), MX(E4M3, 32, 1)),
]


@pytest.mark.parametrize(("shape", "format"), SHAPES_AND_FORMATS, ids=str)
def test_threads_and_builds_change_no_bit(shape: tuple[int, ...], format: Any) -> None:
    assert_threads_and_builds_change_no_bit(shape, format)


@pytest.mark.parametrize("format", [MX(E4M3), MX(E4M3, 4, 0), MX(E2M1, (2, 2))], ids=repr)
def test_rounding_in_place_gives_the_same_bits(format: MX) -> None:
    for rounding in ("nearest", "stochastic"):
        x = spread((9, 70))
        torch.manual_seed(1)
        fresh = lp_round(x, format, rounding)
        torch.manual_seed(1)
        assert lp_round(x, format, rounding, out=x) is x
        assert_same_bits(x, fresh)


def test_the_gradient_passes_straight_through() -> None:
    x = torch.randn(4, 40, requires_grad=True)
    lp_round(x, MXFP4).backward(torch.full((4, 40), 3.0))
    assert x.grad is not None and (x.grad == 3).all()


# --- laws -----------------------------------------------------------------------------------------


@st.composite
def elements_of_blocks(draw: Any) -> ScalarFormat:
    if draw(st.booleans()):
        parameters = draw(float_parameters(max_exp=6, max_man=10).filter(lambda p: p["zero"]))
        return FloatingPoint(**parameters)
    return FixedPoint(**draw(fixed_parameters(max_wl=16).filter(lambda p: p["clamp"] and p["wl"] > p["signed"])))


@given(element=elements_of_blocks(), data=st.data())
def test_random_elements_and_numbers_round_as_exact_rationals(element: ScalarFormat, data: st.DataObject) -> None:
    xs = data.draw(st.lists(numbers_near(judge(element)), min_size=1, max_size=6))
    rule, mode = data.draw(st.sampled_from(mx.RULES)), data.draw(st.sampled_from(MODES))
    infinite = data.draw(st.sampled_from(("nan", "saturate")))
    check(torch.tensor(xs), MX(element, len(xs), scale_rule=rule, infinite=infinite), mode)


@given(
    rule=st.sampled_from(mx.RULES), element=st.sampled_from((E4M3, E2M1, MXINT8.element)), seed=st.integers(0, 2**32)
)
def test_rounding_twice_is_rounding_once(rule: str, element: ScalarFormat, seed: int) -> None:
    x = torch.randn(4, 33, generator=torch.Generator().manual_seed(seed))
    once = lp_round(x, MX(element, 8, scale_rule=rule))
    assert_same_bits(lp_round(once, MX(element, 8, scale_rule=rule)), once)


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (dict(element=E4M3, block_size=0), ValueError, "block_size must be from 1 to .*, got 0"),
        (dict(element=E4M3, block_size=-32), ValueError, "got -32"),
        (dict(element=E4M3, block_size=2.0), TypeError, "block_size must be an integer"),
        (dict(element=E4M3, block_size=(0, 4)), ValueError, "block_size must be from 1"),
        (dict(element=E4M3, axis=16), ValueError, "axis must be from -16 to 15, got 16"),
        (dict(element=E4M3, axis=0.5), TypeError, "axis must be an integer"),
        (dict(element=E4M3, scale_rule="round"), ValueError, "'floor', 'ceil', 'even', 'rceil', got 'round'"),
        (dict(element=E4M3, infinite="keep"), ValueError, "infinite must be one of 'nan', 'saturate', got 'keep'"),
        (dict(element="e4m3"), TypeError, "scalar format .* got 'e4m3'"),
        (dict(element=MXFP4), TypeError, "scalar format"),
        (dict(element=E8M0), ValueError, "a zero and a largest value"),
        (dict(element=FixedPoint(8, 4, clamp=False)), ValueError, "a zero and a largest value"),
        (dict(element=FixedPoint(1, 0)), ValueError, "a zero and a largest value"),
        (dict(element=FixedPoint(30, 4)), ValueError, "29 significant bits, blocks carry 24"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        MX(**arguments)


@pytest.mark.parametrize(
    "format", [*ROWS.values(), MX(E4M3, (2, 3)), MX(FixedPoint(8, 4), 7, 0, "even", "saturate")], ids=repr
)
def test_mx_formats_are_values(format: MX) -> None:
    for other in (eval(repr(format), vars(lptensor)), pickle.loads(pickle.dumps(format)), copy.deepcopy(format)):
        assert other == format and hash(other) == hash(format) and other.lowered == format.lowered
    assert format != MX(format.element, 1234)
