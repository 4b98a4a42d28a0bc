"""Blocks under scales that are no powers of two: NVFP4 and its kin, against rationals and numpy's fp32."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import lptensor
from lptensor.blocks import MXFP4, NVFP4, Scaled, ScaledBlockFormat, TwoLevel
from lptensor.formats import BF16, E2M1, E4M3, E4M3FNUZ, E5M2, E8M0, FP32, FixedPoint, FloatingPoint, ScalarFormat
from lptensor.ops import round as lp_round
from lptensor.scaling import PER_TENSOR, Channel, CurrentMaximum, Tile
from oracles import mx
from oracles.exact import MODES
from rounders import NATIVE_BUILDS, assert_same, assert_same_bits, assert_threads_and_builds_change_no_bit, judge, run
from test_mx import groups

ROUNDERS = ["reference", *NATIVE_BUILDS]
UE5M3 = FloatingPoint(5, 3, signed=False, overflow="saturate")


def expected(x: torch.Tensor, format: TwoLevel | ScaledBlockFormat, mode: Any, block: tuple[int, ...]) -> np.ndarray:
    scaling, element, scale = format.scaling, judge(format.element), judge(format.scaling.scale)
    carrier = np.float32 if x.dtype == torch.float32 else np.float64
    top, scale_top = float(element.largest(False)), float(scale.largest(False))
    whole = mx.tensor_scale(x.flatten().tolist(), top, scale_top) if scaling.tensor_scale else np.float32(1)
    result = np.zeros(tuple(x.shape))
    for group in groups(tuple(x.shape), block):
        values = mx.scaled_block(
            [x[i].item() for i in group],
            element,
            scale,
            whole,
            scaling.floor,
            scaling.reciprocal,
            mode if isinstance(mode, str) else [mode[i] for i in group],
            scaling.infinite,
            carrier,
            scaling.margin,
        )
        for index, value in zip(group, values, strict=True):
            result[index] = value
    return result


def check(x: torch.Tensor, format: TwoLevel | ScaledBlockFormat, block: tuple[int, ...], modes: Any = MODES) -> None:
    for mode in modes:
        wanted = expected(x, format, mode, block)
        for rounder in ROUNDERS:
            assert_same(run(rounder, x, format, mode), wanted, x, (rounder, format, mode))


def spread(shape: tuple[int, ...], dtype: torch.dtype = torch.float32, binades: int = 4, at: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    powers = torch.randint(at - binades, at + binades + 1, shape, generator=generator).double()
    return (torch.randn(shape, generator=generator).double() * torch.exp2(powers)).to(dtype)


OPTIONS = [
    {},
    dict(floor=2.0**-6, reciprocal=True),
    dict(tensor_scale=False),
    dict(tensor_scale=False, floor=0.5),
    dict(scale=UE5M3, reciprocal=True),
    dict(scale=BF16, tensor_scale=False, infinite="saturate"),
    dict(scale=FP32, tensor_scale=False),
    dict(scale=FixedPoint(8, 2, signed=False)),
    dict(scale=FP32, reciprocal=True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_rounds_as_the_written_arithmetic(options: dict[str, Any], dtype: torch.dtype) -> None:
    for at in (0, -60, 60):
        check(spread((3, 40), dtype, at=at), TwoLevel(E2M1, **options), (1, 16))


@pytest.mark.parametrize(
    "element", [E4M3, FixedPoint(4, 0), FloatingPoint(2, 1, specials="none", signed=False)], ids=repr
)
def test_other_elements_round_as_the_written_arithmetic(element: ScalarFormat) -> None:
    check(spread((3, 20)), TwoLevel(element, 8), (1, 8))


@pytest.mark.parametrize("at", [-149, -146, -140, -128, -100, 100, 124])
@pytest.mark.parametrize("options", [*OPTIONS[:3], OPTIONS[6]], ids=str)
def test_both_ends_of_the_carrier_round_as_the_written_arithmetic(options: dict[str, Any], at: int) -> None:
    check(spread((2, 18), binades=1, at=at), TwoLevel(E2M1, 6, **options), (1, 6))
    mixed = torch.cat([spread((1, 18), at=at, binades=1), spread((1, 18))])
    check(mixed, TwoLevel(E2M1, 6, **options), (1, 6), ("nearest", "up"))


@pytest.mark.parametrize("at", [-1040, -800, -140, 130, 900])
def test_float64_beyond_fp32_rounds_as_the_written_arithmetic(at: int) -> None:
    x = torch.cat([spread((2, 18), torch.float64, at=at), spread((2, 18), torch.float64)])
    tiny = torch.tensor([2.0**100, -(2.0**-1060), 2.0**-1000, -(2.0**-790), 0.0, -0.0], dtype=torch.float64)
    x = torch.cat([x, tiny.repeat(3)[None]])
    for options in OPTIONS[:3]:
        check(x, TwoLevel(E2M1, 6, **options), (1, 6))


@pytest.mark.parametrize("scale", [E4M3, BF16, FP32], ids=repr)  # 6 times the largest of the last two is no fp32 number
def test_the_tensor_scale_takes_the_largest_to_the_end_of_both_levels(scale: ScalarFormat) -> None:
    """2509.25149: the largest of the tensor becomes 6 * 448 tensor scales."""
    x, format = torch.randn(64, 64), TwoLevel(E2M1, scale=scale)
    x[3, 5] = 11.0
    near = 2.0 ** -(22 if scale == E4M3 else scale.grid.precision - 1)
    for rounder in ROUNDERS:
        assert run(rounder, x, format).max() == pytest.approx(11.0, rel=near)
    scales = lptensor.scales(x, format)
    assert scales.shape == (64, 4) and scales.max().item() == pytest.approx(11.0 / 6, rel=near)


def test_dividing_and_multiplying_by_the_reciprocal_differ_at_ties() -> None:
    """A quotient that is a tie may not be one after multiplication by a rounded reciprocal."""
    scales = torch.tensor([float(m) for m in judge(E4M3).magnitudes() if m > 1])[:, None]
    x = scales * torch.tensor([6.0, 0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    format = TwoLevel(E2M1, 8, tensor_scale=False)
    ties = scales * torch.tensor([6.0, 0.0, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0])
    for rounder in ROUNDERS:
        assert_same(run(rounder, x, format), ties, x, rounder)
        assert (run(rounder, x, TwoLevel(E2M1, 8, tensor_scale=False, reciprocal=True)) != ties).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_scale_beyond_fp32_is_held_to_its_largest_number(dtype: torch.dtype) -> None:
    """Numbers over the largest value of the element, 0.4375, that no scale in fp32 reaches become that value."""
    x, format = torch.tensor([3e38, 1.0, -1e38, -0.0], dtype=dtype), TwoLevel(FixedPoint(4, 4), 4)
    most = torch.tensor(torch.finfo(torch.float32).max, dtype=dtype)
    assert lptensor.scales(x, format).tolist() == [most]
    for rounder in ROUNDERS:
        assert_same(
            run(rounder, x, format), torch.stack([0.4375 * most, 0 * most, -0.3125 * most, 0 * most]), x, rounder
        )


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("element", [E4M3, E4M3FNUZ, FixedPoint(4, 3)], ids=repr)
def test_under_a_scale_that_vanishes_zeros_have_the_signs_of_the_element(
    element: ScalarFormat, reciprocal: bool
) -> None:
    x = torch.tensor([1e30, 0.0, -(2.0**-28), 2.0**-28, -0.0, 0.0])
    minus = -0.0 if element.grid.negative_zero else 0.0
    for rounder in ROUNDERS:
        for mode in MODES:
            y = run(rounder, x, TwoLevel(element, 2, reciprocal=reciprocal), mode)
            assert_same(y[2:], [minus, 0.0, minus, 0.0], x[2:], (rounder, mode))


def test_the_scale_floor_decides_what_small_blocks_keep() -> None:
    """Beside 2688 the tensor scale is 1: 0.01 / 6 is the smallest E4M3 number, 0.005 / 6 is none."""
    x = torch.cat([torch.full((1, 16), v) for v in (2688.0, 0.01, 0.005)])
    for rounder in ROUNDERS:
        free, floored = (run(rounder, x, TwoLevel(E2M1, floor=floor))[1:, 0].tolist() for floor in (0.0, 2.0**-6))
        assert free == [6 * 2.0**-9, 0.0] and floored == [0.5 * 2.0**-6] * 2
        half_way = TwoLevel(E2M1, floor=(1.3125 + 2.0**-40) * 2.0**-6)  # as an fp32 number, between two of E4M3
        assert run(rounder, x, half_way)[2, 0] == 0.5 * 1.25 * 2.0**-6


def test_special_blocks_keep_to_themselves() -> None:
    nan, inf = torch.nan, torch.inf
    rows = [
        [0.0, -0.0, 0.0, -0.0],
        [1.0, nan, 2.0, -0.0],
        [inf, 1.0, -3.0, 0.0],
        [-inf, inf, 0.0, -0.0],
        [1.0, -0.0, 5.3, -1e-9],
        [1e-12, -1e-12, 0.0, -0.0],
    ]
    x = torch.tensor(rows)
    for element, infinite, options in itertools.product((E2M1, FixedPoint(4, 0)), ("nan", "saturate"), OPTIONS[:4]):
        check(x, TwoLevel(element, 4, infinite=infinite, **options), (1, 4))
        check(x.T.contiguous(), TwoLevel(element, 4, 0, infinite=infinite, **options), (4, 1))
    check(torch.zeros(2, 4), NVFP4, (1, 16))
    check(-torch.zeros(2, 4), TwoLevel(E2M1, floor=0.5), (1, 16))


@pytest.mark.parametrize("shape", [(70,), (1,), (5, 33), (4, 5, 6), (2, 3, 4, 5), (3, 40, 2)], ids=str)
def test_blocks_run_along_any_axis_and_the_last_may_be_short(shape: tuple[int, ...]) -> None:
    for axis, size in itertools.product(range(-len(shape), len(shape)), (1, 3, 16)):
        block = tuple(size if d == axis % len(shape) else 1 for d in range(len(shape)))
        check(spread(shape), TwoLevel(E2M1, size, axis), block, ("nearest",))


def test_square_blocks_of_weights_serve_both_products() -> None:
    """One rounding holds for a matrix and its transpose (2509.25149 section 4)."""
    x = spread((40, 56))
    format = TwoLevel(E2M1, (16, 16))
    check(x, format, (16, 16), ("nearest",))
    assert_same_bits(lp_round(x.T, format).T.contiguous(), lp_round(x, format))


SCALED = [
    (CurrentMaximum(), (6, 40)),
    (CurrentMaximum(margin=2), (6, 40)),
    (CurrentMaximum(Channel(0)), (1, 40)),
    (CurrentMaximum(Channel(1), reciprocal=True), (6, 1)),
    (CurrentMaximum(Tile((1, 8))), (1, 8)),
    (CurrentMaximum(Tile((4, 16))), (4, 16)),
    (CurrentMaximum(Tile((None,)), margin=-1), (1, 40)),
    (CurrentMaximum(Tile((1, 8)), scale=E4M3, tensor_scale=True), (1, 8)),
]


@pytest.mark.parametrize(("scaling", "block"), SCALED, ids=str)
def test_tiles_channels_and_tensors_round_as_the_written_arithmetic(
    scaling: CurrentMaximum, block: tuple[int, ...]
) -> None:
    for element in (E4M3, E5M2):
        format = Scaled(element, scaling)
        assert isinstance(format, ScaledBlockFormat)
        check(spread((6, 40)), format, block)


@pytest.mark.parametrize(
    ("shape", "format"),
    [
        ((300, 700), NVFP4),
        ((300, 701), TwoLevel(E2M1, 16, 0, reciprocal=True)),
        ((300, 701), TwoLevel(E2M1, (16, 16), infinite="saturate")),
        ((200_003,), Scaled(E4M3, CurrentMaximum(PER_TENSOR))),
        ((300, 701), Scaled(E4M3, CurrentMaximum(Tile((1, 128))))),
        ((3, 200, 301), Scaled(E4M3, CurrentMaximum(Channel(1)))),
        ((300, 701), Scaled(E4M3, CurrentMaximum(Channel(1)))),
        ((9_001, 7), NVFP4),
        ((1_501, 28), TwoLevel(E2M1, 16, reciprocal=True)),
        ((901, 56), TwoLevel(E2M1, 32, infinite="saturate")),
        ((41, 50, 3, 3), TwoLevel(E2M1, 16, 1)),
    ],
    ids=str,
)
def test_threads_and_builds_change_no_bit(shape: tuple[int, ...], format: Any) -> None:
    assert_threads_and_builds_change_no_bit(shape, format)


def test_a_machine_that_flushes_subnormals_changes_no_bit(flush_denormal: None) -> None:
    patterns = torch.tensor([[1, 5, 77, 1000, 0], [2**22, 2**22 + 12345, 3, 2**23 - 1, 9], [2**23, 1, 2**21, 7, 2**24]])
    x = torch.cat([patterns, patterns - 2**31]).to(torch.int32).view(torch.float32)
    cases = list(itertools.product(ROUNDERS, [TwoLevel(E2M1, 5, **options) for options in OPTIONS], MODES))
    results = [run(rounder, x, format, mode) for rounder, format, mode in cases]
    torch.set_flush_denormal(False)
    wanted = {(format, mode): expected(x, format, mode, (1, 5)) for _, format, mode in cases}
    for y, (rounder, format, mode) in zip(results, cases, strict=True):
        assert_same(y, wanted[format, mode], x, (rounder, format, mode))


def test_a_scalar_kernel_still_runs_under_the_arithmetic_of_the_program(flush_denormal: None) -> None:
    """The loops over blocks put the flags of the processor back."""
    lp_round(torch.randn(64, 64), NVFP4)
    lp_round(torch.randn(64, 64), MXFP4)
    tiny = torch.tensor(2.0**-126) * 0.5
    assert tiny.item() == 0


@pytest.mark.parametrize("format", [NVFP4, TwoLevel(E2M1, 4, 0), TwoLevel(E2M1, (2, 2))], ids=repr)
def test_rounding_in_place_gives_the_same_bits(format: TwoLevel) -> None:
    for rounding in ("nearest", "stochastic"):
        x = spread((9, 70))
        x[0, 0] = -torch.nan
        torch.manual_seed(1)
        fresh = lp_round(x, format, rounding)
        torch.manual_seed(1)
        assert_same_bits(lp_round(x, format, rounding, out=x), fresh)


@given(
    xs=st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=9),
    options=st.sampled_from(OPTIONS),
    mode=st.sampled_from(MODES),
)
def test_any_numbers_round_as_the_written_arithmetic(xs: list[float], options: dict[str, Any], mode: str) -> None:
    check(torch.tensor(xs), TwoLevel(E2M1, 3, **options), (3,), (mode,))


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (dict(element=E2M1, scale=E8M0), ValueError, "for scales with a significand"),
        (dict(element=E2M1, scale="e4m3"), TypeError, "scale must be a scalar format .* got 'e4m3'"),
        (dict(element=E2M1, scale=FixedPoint(8, 4, clamp=False)), ValueError, "needs a largest value"),
        (dict(element=E2M1, floor=-1.0), ValueError, "floor must be from 0 to 448, .* got -1.0"),
        (dict(element=E2M1, floor=500.0), ValueError, "got 500.0"),
        (dict(element=E2M1, floor=float("nan")), ValueError, "got nan"),
        (dict(element=E2M1, block_size=0), ValueError, "block_size must be from 1"),
        (dict(element=E2M1, scale=FixedPoint(30, 4)), ValueError, "29 significant bits, scales 24"),
        (dict(element=NVFP4), TypeError, "scalar format"),
    ],
    ids=str,
)
def test_bad_parameters_are_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        TwoLevel(**arguments)


@pytest.mark.parametrize(("element", "margin"), [(BF16, -1), (FloatingPoint(2, 23, bias=100), 60)], ids=repr)
def test_a_margin_leaves_the_largest_value_an_fp32_number(element: ScalarFormat, margin: int) -> None:
    with pytest.raises(ValueError, match=f"margin={margin} makes .*, no fp32 number"):
        Scaled(element, CurrentMaximum(margin=margin))


@pytest.mark.parametrize("format", [NVFP4, TwoLevel(E2M1, (16, 16), scale=UE5M3, reciprocal=True)], ids=repr)
def test_two_level_formats_are_values(format: TwoLevel) -> None:
    for other in (eval(repr(format), vars(lptensor)), pickle.loads(pickle.dumps(format)), copy.deepcopy(format)):
        assert other == format and hash(other) == hash(format) and other.lowered == format.lowered
    assert format != TwoLevel(E2M1, 1234)


@pytest.mark.parametrize("reciprocal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_scale_of_a_tensor_is_held_to_the_largest_number_too(dtype: torch.dtype, reciprocal: bool) -> None:
    """It would be 4.3e38 for an element and a scale whose largest values have a product below 1."""
    x, format = torch.full((2, 4), 3.3e38, dtype=dtype), TwoLevel(FixedPoint(4, 12), 4, reciprocal=reciprocal)
    x[1] = torch.tensor([1.0, -(2.0**100), 2.0**127, 0.0])
    check(x, format, (1, 4))
    for rounder in ROUNDERS:
        assert run(rounder, x, format).isfinite().all()
