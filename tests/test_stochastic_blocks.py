"""Stochastic rounding in blocks: the scale from exact rationals, and then each element by its own word and chance."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import test_mx
import test_nvfp4
from lptensor.blocks import MX, MXINT8, BlockFloatingPoint, BlockFormat, Scaled, ScaledBlockFormat, TwoLevel
from lptensor.formats import BF16, E2M1, E4M3, E5M2, E8M0, FP32, FixedPoint, FloatingPoint
from lptensor.ops import round as lp_round
from lptensor.scaling import Channel, CurrentMaximum, Tile
from oracles import exact, mx
from oracles.draws import goes_up
from oracles.philox import word_of_element
from rounders import NATIVE_BUILDS, VARIANTS, assert_same, judge, rule_of, run
from strategies import numbers_near

ROUNDERS = ["reference", *NATIVE_BUILDS]
KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
word = functools.cache(word_of_element)


def ways(shape: tuple[int, ...], bits: int, variant: str, key: tuple[int, int] = KEY) -> np.ndarray:
    """What the word of each element decides; elements count in contiguous order."""
    bits = 32 if variant == "equal" else bits

    def way(element: int) -> Callable[[Fraction], bool]:
        return lambda chance: goes_up(chance, word(element, *key), bits, variant)

    result = np.empty(shape, object)
    result.flat = [way(element) for element in range(result.size)]
    return result


def expected(x: torch.Tensor, format: BlockFormat, drawn: np.ndarray) -> np.ndarray:
    block = format.block_shape(x.shape)
    if isinstance(format, BlockFloatingPoint):
        result = np.zeros(tuple(x.shape))
        for group in test_mx.groups(tuple(x.shape), block):
            xs, taken = [x[i].item() for i in group], [drawn[i] for i in group]
            values = exact.rounded_block(xs, format.wl, taken, format.overflow, format.infinite)
            result[tuple(zip(*group, strict=True))] = [mx.carried(v, CARRIERS[x.dtype]) for v in values]
        return result
    assert isinstance(format, (MX, TwoLevel, ScaledBlockFormat))
    if format.scaling.powers:
        assert not isinstance(format, TwoLevel)
        return test_mx.expected(x, format, drawn, block)
    assert not isinstance(format, MX)
    return test_nvfp4.expected(x, format, drawn, block)


CARRIERS = {torch.float32: np.float32, torch.float64: np.float64}
UNSIGNED = FloatingPoint(2, 1, specials="none", signed=False)
GAPPED = FloatingPoint(2, 3, specials="none", subnormals=False)
FLUSHED = FloatingPoint(3, 2, specials="none", subnormals="flush")

# Every kind and option, along every axis, with blocks that end with the tensor and blocks that do not.
FORMATS: list[tuple[BlockFormat, tuple[int, ...]]] = [
    *((MX(element, scale_rule=rule), (3, 70)) for element in (E2M1, E4M3, MXINT8.element) for rule in mx.RULES),
    *((MX(element, 5), (3, 4, 9)) for element in (UNSIGNED, GAPPED, FLUSHED, FP32)),
    *((MX(E2M1, size, axis), (5, 7, 9)) for axis in (-3, 1, 2) for size in (1, 3, 16)),
    (MX(E5M2, 32, infinite="saturate"), (2, 70)),
    (MX(E4M3, (2, 5)), (5, 7, 9)),
    (MX(E4M3, (3, 100), scale_rule="rceil"), (5, 7, 9)),
    (MX(E2M1, 2, axis=5), (3, 70)),
    (Scaled(E4M3, CurrentMaximum(Channel(1), E8M0, "even", margin=1)), (5, 7, 9)),
    (Scaled(E2M1, CurrentMaximum(Tile((2, None), (0, 1)), E8M0, margin=-2)), (5, 7, 9)),
    *((BlockFloatingPoint(wl, overflow=over), (130,)) for wl in (2, 3, 8, 24) for over in ("clip", "bump")),
    *((BlockFloatingPoint(5, dim), (5, 7, 9)) for dim in (0, 1, 2, 3)),
    *((BlockFloatingPoint(4, axis, 3, "bump", "saturate"), (5, 7, 9)) for axis in (-3, 1, 2)),
    (BlockFloatingPoint(6, block_size=(3, 4)), (5, 7, 9)),
    *((TwoLevel(E2M1, **options), (3, 40)) for options in test_nvfp4.OPTIONS),
    *((TwoLevel(E2M1, size, axis), (5, 7, 9)) for axis in (-3, 1, 2) for size in (3, 16)),
    *((TwoLevel(element, 8, infinite="saturate"), (3, 20)) for element in (E4M3, UNSIGNED, FixedPoint(4, 0), BF16)),
    (TwoLevel(E2M1, (16, 16), reciprocal=True), (20, 18)),
    (TwoLevel(E2M1, (2, 3), scale=BF16, tensor_scale=False), (5, 7, 9)),
    *((Scaled(E4M3, scaling), (6, 40)) for scaling, _ in test_nvfp4.SCALED),
]


def samples(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Numbers over many binades, some on values and half way between them."""
    marks, others = test_mx.spread(shape, dtype), test_nvfp4.spread(shape, dtype)
    x = torch.where(torch.arange(marks.numel()).view(shape) % 3 == 0, marks, others)
    x.view(-1)[7] = -0.0
    return x


def check(x: torch.Tensor, format: BlockFormat, bits: int, variant: str, beyond: str = "overflow") -> None:
    wanted = expected(x, format, ways(tuple(x.shape), bits, variant))
    for rounder in ROUNDERS:
        assert_same(run(rounder, x, format, rule_of(bits, variant, beyond), KEY), wanted, x, (rounder, format, bits))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("format", "shape"), FORMATS, ids=str)
def test_each_element_goes_where_its_word_and_its_chance_say(
    format: BlockFormat, shape: tuple[int, ...], variant: str
) -> None:
    check(samples(shape, torch.float32), format, 31, variant)
    check(samples(shape, torch.float64), format, 5, variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_zeros_nan_and_infinities_move_no_other_word(variant: str) -> None:
    for format, shape in FORMATS[::3]:
        x = samples(shape, torch.float32)
        flat = x.view(-1)
        flat[len(flat) // 2], flat[-1] = torch.inf, torch.nan
        flat[8:24] = 0
        check(x, format, 1, variant)


ENDS = [
    MX(E4M3, 9),
    MX(E2M1, 9, scale_rule="rceil"),
    MX(MXINT8.element, 9),
    MX(GAPPED, 9),
    BlockFloatingPoint(5, block_size=9),
    BlockFloatingPoint(24, block_size=9, overflow="bump"),
    TwoLevel(E2M1, 9),
    TwoLevel(E2M1, 9, scale=FP32, tensor_scale=False),
    TwoLevel(E2M1, 9, reciprocal=True, floor=2.0**-6),
]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("format", ENDS, ids=repr)
def test_the_ends_of_scales_and_carriers_leave_the_chances_alone(format: BlockFormat, variant: str) -> None:
    for dtype, powers in ((torch.float32, (-149, -140, -127, 117)), (torch.float64, (-1068, -700, -140, 130, 1013))):
        for at in powers:
            check(test_nvfp4.spread((2, 9), dtype, binades=3, at=at), format, 4, variant)


@pytest.mark.parametrize("beyond", ["saturate", "probability"])
def test_nothing_lies_beyond_elements_that_saturate(beyond: str) -> None:
    for format in (MX(E2M1), MX(E4M3), BlockFloatingPoint(3), TwoLevel(E2M1, infinite="saturate")):
        x = samples((3, 70), torch.float32)
        x[0, 5] = torch.inf
        for variant in VARIANTS:
            check(x, format, 3, variant, beyond)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "format",
    [MX(E2M1, 3, 1), MX(E4M3, (2, 2)), BlockFloatingPoint(4, 1), BlockFloatingPoint(4), TwoLevel(E2M1, 3, 2)],
    ids=repr,
)
def test_elements_count_in_contiguous_order_however_they_lie(format: BlockFormat, variant: str) -> None:
    x = samples((2, 6, 5, 4), torch.float32)
    layouts = [
        x,
        x.to(memory_format=torch.channels_last),
        x.transpose(0, 3).contiguous().transpose(0, 3),
        torch.stack([x, x + 1], dim=-1)[..., 0],
        torch.cat([x[:1], x])[1:],
    ]
    key = torch.empty(2, dtype=torch.int64).random_(generator=torch.Generator().manual_seed(5)).tolist()
    wanted = expected(x, format, ways(tuple(x.shape), 4, variant, tuple(k % 2**64 for k in key)))
    for y in layouts:
        got = lp_round(y, format, rule_of(4, variant), generator=torch.Generator().manual_seed(5))
        assert_same(got, wanted, x, (format, y.stride()))


@given(element=test_mx.elements_of_blocks(), data=st.data())
def test_random_elements_numbers_and_draws_round_as_exact_rationals(element: Any, data: st.DataObject) -> None:
    xs = data.draw(st.lists(numbers_near(judge(element)), min_size=1, max_size=6))
    scale, infinite = data.draw(st.sampled_from(mx.RULES)), data.draw(st.sampled_from(("nan", "saturate")))
    bits, variant = data.draw(st.integers(1, 32)), data.draw(st.sampled_from(VARIANTS))
    check(torch.tensor(xs), MX(element, len(xs), scale_rule=scale, infinite=infinite), bits, variant)
