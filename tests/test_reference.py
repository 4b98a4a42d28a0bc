"""Laws that every format obeys, over random formats: reference against exact rationals, kernels against reference."""

from __future__ import annotations

import itertools
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from hypothesis import given, settings, strategies as st

from lptensor.blocks import BlockFloatingPoint
from lptensor.formats import FixedPoint, FloatingPoint
from lptensor.rounding import Stochastic
from oracles import exact
from oracles.exact import MODES
from rounders import NATIVE_BUILDS, assert_same, assert_same_bits, judge, run
from strategies import fixed_parameters, float_parameters, numbers_near

ALL = ("reference", *NATIVE_BUILDS)
formats = st.one_of(
    float_parameters().map(lambda given: FloatingPoint(**given)),
    fixed_parameters().map(lambda given: FixedPoint(**given)),
)


@st.composite
def formats_and_numbers(draw: Any, size: int = 12) -> tuple[Any, torch.Tensor]:
    format = draw(formats)
    numbers = draw(st.lists(numbers_near(judge(format)), min_size=size, max_size=size))
    return format, torch.tensor(numbers, dtype=torch.float32)


@settings(max_examples=120)
@given(formats_and_numbers())
def test_every_implementation_rounds_as_exact_rationals(case: tuple[Any, torch.Tensor]) -> None:
    format, x = case
    values = judge(format)
    for mode in MODES:
        expected = np.array([exact.rounded(values, v, mode) for v in x.tolist()])
        with np.errstate(over="ignore"):
            expected = expected.astype(np.float32)  # an unclamped fixed point leaves the carrier at its end
        for rounder in ALL:
            assert_same(run(rounder, x, format, mode), expected, x, (rounder, format, mode))


@settings(max_examples=60)
@given(formats_and_numbers(), st.integers(-(2**63), 2**64 - 1), st.integers(1, 32))
def test_every_build_gives_the_bits_of_the_reference(case: tuple[Any, torch.Tensor], seed: int, bits: int) -> None:
    format, x = case
    rounding, key = Stochastic(bits), (seed % 2**63, seed % 1000003)
    for dtype in (torch.float32, torch.float64):
        for rule in (rounding, *MODES):
            reference = run("reference", x.to(dtype), format, rule, key)
            for build in NATIVE_BUILDS:
                assert_same_bits(run(build, x.to(dtype), format, rule, key), reference, (build, format, rule))


@settings(max_examples=70)
@given(formats_and_numbers(), st.sampled_from((*MODES, "stochastic")))
def test_a_rounded_value_never_moves_again(case: tuple[Any, torch.Tensor], mode: str) -> None:
    format, x = case
    once = run("reference", x, format, mode, (1, 2))
    finite = once[once.isfinite()]
    for again in (*MODES, "stochastic"):
        assert_same(run("reference", finite, format, again, (3, 4)), finite, finite, (format, again))


@settings(max_examples=70)
@given(formats_and_numbers(30), st.sampled_from(MODES))
def test_rounding_keeps_the_order(case: tuple[Any, torch.Tensor], mode: str) -> None:
    format, x = case
    y = run("reference", x.sort().values, format, mode)
    y = y[~y.isnan()]
    assert (y[1:] >= y[:-1]).all()


@settings(max_examples=70)
@given(formats_and_numbers(), st.sampled_from(MODES).filter(lambda mode: mode != "nearest_up"))  # no mode mirrors it
def test_a_symmetric_format_rounds_the_negative_to_the_negative(case: tuple[Any, torch.Tensor], mode: str) -> None:
    format, x = case
    grid = format.grid
    if grid.min != -grid.max:
        return
    mirrored = {"up": "down", "down": "up"}.get(mode, mode)
    a, b = run("reference", x, format, mode), run("reference", -x, format, mirrored)
    assert (a == -b)[~a.isnan()].all() and (a.isnan() == b.isnan()).all()


@settings(max_examples=70)
@given(formats_and_numbers(), st.sampled_from((*MODES, "stochastic")))
def test_the_result_is_within_one_spacing_or_half_of_it_to_nearest(case: tuple[Any, torch.Tensor], mode: str) -> None:
    format, x = case
    values, y = judge(format), run("reference", x, format, mode, (5, 6))
    for before, after in zip(x.tolist(), y.tolist(), strict=True):
        end = values.largest(before < 0)
        if not np.isfinite(before) or not np.isfinite(after) or end is not None and abs(after) == end:
            continue
        if before < 0 and not values.signed or getattr(values, "subnormals", True) == "flush" and after == 0:
            continue
        gap = values.gap(abs(Fraction(before)))
        error, spacing = abs(Fraction(after) - Fraction(before)), gap.high - gap.low
        if spacing:  # below the smallest value of a format without zero there is none
            assert error * (2 if mode.startswith("nearest") else 1) <= spacing


@settings(max_examples=70)
@given(st.data())
def test_blocks_round_as_exact_rationals(data: Any) -> None:
    wl, size = data.draw(st.integers(2, 24)), data.draw(st.integers(1, 9))
    common = st.integers(-149, 127).flatmap(
        lambda e: st.integers(-(2**24) + 1, 2**24 - 1).map(lambda m: float(np.float32(np.ldexp(m / 2**23, e))))
    )
    row = st.lists(st.one_of(numbers_near(None), common), min_size=size, max_size=size)
    x = torch.tensor([data.draw(row), data.draw(row)], dtype=torch.float32)
    for mode in MODES:
        expected = [exact.rounded_block(row, wl, mode) for row in x.tolist()]
        for rounder in ALL:
            assert_same(run(rounder, x, BlockFloatingPoint(wl, dim=0), mode), expected, x, (rounder, wl, mode))
            assert_same(run(rounder, x, BlockFloatingPoint(wl, 1, size), mode), expected, x, (rounder, wl, mode))


def test_fixed_point_of_every_small_width_rounds_as_exact_rationals() -> None:
    for wl, fl in itertools.product(range(1, 4), (-3, 0, 2, 60, 149)):
        halves = torch.arange(-(2 ** (wl + 2)), 2 ** (wl + 2) + 1, dtype=torch.float64) / 2
        marks = (halves * 2.0**-fl).float()
        beside = [torch.nextafter(marks, torch.full_like(marks, end)) for end in (-torch.inf, torch.inf)]
        x = torch.cat([marks, *beside, torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, -0.0])])
        for clamp, symmetric, signed in itertools.product((True, False), repeat=3):
            if signed and symmetric and wl == 1:
                continue
            format = FixedPoint(wl, fl, clamp=clamp, symmetric=symmetric, signed=signed)
            for mode in MODES:
                expected = [exact.rounded(judge(format), v, mode) for v in x.tolist()]
                for rounder in ALL:
                    assert_same(run(rounder, x, format, mode), expected, x, (rounder, format, mode))


def test_fixed_point_to_53_bits_rounds_as_exact_rationals_on_float64(rounder: str) -> None:
    generator = np.random.default_rng(1)
    for wl, fl in [(25, 10), (32, 0), (40, -7), (53, 0), (53, 20), (53, 149), (53, -70), (52, 60)]:
        for signed, clamp in ((True, True), (True, False), (False, True)):
            format = FixedPoint(wl, fl, clamp=clamp, signed=signed)
            k = generator.integers(-(2**wl), 2**wl, 40).astype(object)
            eighths = generator.choice([0, 1, 4, 7], 40)
            x = [float(Fraction(int(a) * 8 + int(b), 8) / Fraction(2) ** fl) for a, b in zip(k, eighths, strict=True)]
            x += [v / 2.0**s for v, s in zip(x, range(40), strict=True)]
            x += [1e300, -1e300, 1e-300, -1e-300, 2.0**wl * 2.0**-fl, -(2.0 ** (wl - 1)) * 2.0**-fl]
            for mode in MODES:
                expected = [exact.rounded(judge(format), v, mode) for v in x]
                assert_same(
                    run(rounder, torch.tensor(x, dtype=torch.float64), format, mode), expected, x, (format, mode)
                )


def test_where_every_fp32_is_on_the_grid_nothing_moves(rounder: str) -> None:
    x = torch.tensor([2.0**24 + 2, 1e20, -3e38, 2.0**127, -(2.0**23) - 1])
    for mode in (*MODES, "stochastic"):
        assert_same(run(rounder, x, FixedPoint(8, 0, clamp=False), mode, (1, 2)), x, x, mode)
