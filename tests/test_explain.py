"""Why a value rounds as it does, against the types of ml_dtypes."""

from __future__ import annotations

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st

from lptensor.blocks import BlockFloatingPoint
from lptensor.cli.explain import Choice, explain
from lptensor.cli.names import named_formats, parse_format
from lptensor.formats import E4M3, E5M2, E8M0, INT8, FloatingPoint, Format
from lptensor.posits import Posit
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic

# Rows with a type of the same name, overflow included; E4M3 is apart, since the row saturates.
ORACLES: dict[str, type] = {
    "BF16": ml_dtypes.bfloat16,
    "FP16": np.float16,
    "E5M2": ml_dtypes.float8_e5m2,
    "E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "E4M3B11FNUZ": ml_dtypes.float8_e4m3b11fnuz,
    "E3M4": ml_dtypes.float8_e3m4,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E2M1": ml_dtypes.float4_e2m1fn,
}


ROUNDINGS = [
    Stochastic(),
    Stochastic(2),
    Stochastic(2, "half_offset", beyond="probability"),
    Stochastic(3, "pre_rounded"),
    Stochastic(beyond="saturate"),
    Rounding(Mode.STOCHASTIC_EQUAL),
    Rounding(Mode.STOCHASTIC_EQUAL, beyond=Beyond.PROBABILITY),
]


def finite_values(dtype: type) -> np.ndarray:
    """All finite values of a type of up to 8 bits, ascending, zero once."""
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    return np.unique(np.abs(values[np.isfinite(values)]) * np.sign(values[np.isfinite(values)]))


class TestExplain:
    @pytest.mark.parametrize("name", [name for name in ORACLES if name not in ("BF16", "FP16")])
    def test_midpoints_round_as_the_type_of_the_same_name(self, name: str) -> None:
        values = finite_values(ORACLES[name])
        middles = (values[1:] + values[:-1]) / 2
        choices = explain(middles.tolist(), named_formats()[name])
        assert [choice.lower for choice in choices] == values[:-1].tolist()
        assert [choice.upper for choice in choices] == values[1:].tolist()
        assert [choice.result for choice in choices] == middles.astype(ORACLES[name]).astype(float).tolist()
        assert {choice.why for choice in choices} == {"tie: to even"}

    @pytest.mark.parametrize("name", [name for name in ORACLES if name not in ("BF16", "FP16")])
    def test_off_the_middle_the_nearer_neighbour_is_chosen(self, name: str) -> None:
        values = finite_values(ORACLES[name])
        points = values[:-1] + np.diff(values) * 0.375
        choices = explain(points.tolist(), named_formats()[name])
        assert [choice.result for choice in choices] == points.astype(ORACLES[name]).astype(float).tolist()
        assert {choice.why for choice in choices} == {"nearer"}
        assert {choice.result == choice.lower for choice in choices} == {True}

    @pytest.mark.parametrize("name", ["E5M2", "E5M2FNUZ", "E4M3FNUZ", "E4M3B11FNUZ", "E3M4"])
    def test_the_first_step_beyond_the_end_decides_what_overflows(self, name: str) -> None:
        top, below = finite_values(ORACLES[name])[[-1, -2]]
        step = top - below
        points = [top + step / 4, top + step / 2, top + step * 3 / 4, top + 2 * step]
        choices = explain(points, named_formats()[name])
        expected = np.array(points).astype(ORACLES[name]).astype(float)
        np.testing.assert_array_equal([choice.result for choice in choices], expected)
        assert [choice.beyond for choice in choices] == [top + step] * 3 + [None]
        for choice, result in zip(choices, expected, strict=True):
            assert ("overflow" in choice.why) != math.isfinite(result)

    @pytest.mark.parametrize(
        ("value", "format", "rounding", "result", "why"),
        [
            (math.nan, E4M3, "nearest", math.nan, "NaN stays NaN"),
            (math.inf, E5M2, "nearest", math.inf, "infinity stays"),
            (-math.inf, E4M3, "nearest", -448.0, "infinity saturates"),
            (math.inf, FloatingPoint(4, 3, specials="fnuz"), "nearest", math.nan, "no infinity: NaN"),
            (1.5, E4M3, "up", 1.5, "on the grid"),
            (-0.0, INT8, "nearest", 0.0, "the format has no -0"),
            (464.0, E4M3, "nearest", 448.0, "tie: to even"),
            (465.0, E4M3, "nearest", 448.0, "overflow: saturates at 448.0"),
            (449.0, E4M3, "nearest_away", 448.0, "nearer"),
            (61440.0, FloatingPoint(5, 2, overflow="saturate"), "nearest", 57344.0, "overflow: saturates at 57344.0"),
            (61440.0, FloatingPoint(5, 2, overflow="propagate"), "nearest", 57344.0, "overflow: saturates at 57344.0"),
            (math.inf, FloatingPoint(5, 2, overflow="propagate"), "nearest", math.inf, "infinity stays"),
            (464.0, E4M3, "nearest_away", 448.0, "overflow: saturates at 448.0"),
            (449.0, E4M3, "up", 448.0, "overflow: saturates at 448.0"),
            (460.0, E4M3, "stochastic", 448.0, "overflow: saturates at 448.0"),
            (1e9, E5M2, "down", 57344.0, "down"),
            (-1e9, E5M2, "down", -math.inf, "overflow: infinity"),
            (1e9, E5M2, "toward_zero", 57344.0, "toward zero"),
            (2.5, INT8, "nearest_away", 3.0, "tie: away from zero"),
            (2.5, INT8, "odd", 3.0, "inexact: to odd"),
            (-1.0, E8M0, "nearest", math.nan, "no negative numbers: nan"),
            (0.0, E8M0, "nearest", math.nan, "the format has no zero"),
            (1e-60, E8M0, "nearest", 2.0**-127, "below the smallest value"),
            (3.0, E8M0, "nearest", 4.0, "tie: away from zero"),
            (0.5, FloatingPoint(5, 2, subnormals="flush"), "nearest", 0.5, "on the grid"),
            (2.0**-15, FloatingPoint(5, 2, subnormals="flush"), "up", 0.0, "below the normals: flushed to zero"),
            (2.0**-15, FloatingPoint(5, 2, subnormals=False), "nearest", 2.0**-14, "tie: away from zero"),
            (20.0, Posit(6, 1), "nearest", 16.0, "nearer"),
            (0.75 * 2.0**-8, Posit(6, 1), "nearest", 2.0**-8, "nearer"),
            (0.25 * 2.0**-8, Posit(6, 1), "nearest", 2.0**-8, "nearer as the format measures"),
            (3.999, BlockFloatingPoint(4), "nearest", 3.5, "overflow: saturates at 3.5"),
        ],
    )
    def test_the_reason_is_said(self, value: float, format: Format, rounding: str, result: float, why: str) -> None:
        (choice,) = explain([value], format, rounding)
        assert choice.why == why
        np.testing.assert_array_equal(choice.result, result)
        assert math.copysign(1, choice.result) == math.copysign(1, result)

    @pytest.mark.parametrize("mode", ["nearest", "up", "stochastic"])
    def test_what_is_flushed_lies_between_zero_and_the_normals(self, mode: str) -> None:
        above, below = explain([2.0**-15, -(2.0**-15)], FloatingPoint(5, 2, subnormals="flush"), mode)
        assert (above.lower, above.upper, above.result, above.chance) == (0.0, 2.0**-14, 0.0, None)
        assert (below.lower, below.upper, below.result, below.chance) == (-(2.0**-14), 0.0, 0.0, None)

    def test_values_of_a_block_share_their_exponent(self) -> None:
        small, large = explain([0.1, 3.0], BlockFloatingPoint(8))
        assert (small.lower, small.upper) == (3 / 32, 4 / 32)  # 2**(1 - 8 + 2): the exponent of 3 is 1
        assert large.why == "on the grid"

    def test_a_block_with_nan_is_told_for_each_of_its_values(self) -> None:
        assert [choice.why for choice in explain([1.0, math.nan], BlockFloatingPoint(8))] == [
            "its block holds NaN or infinity",
            "NaN stays NaN",
        ]

    @settings(max_examples=400, deadline=None)
    @given(
        value=st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False) | st.floats(-500, 500),
        name=st.sampled_from([*named_formats(), "fixed(8, 4)", "bfp(6)", "FloatingPoint(4, 3, subnormals=False)"]),
        mode=st.sampled_from(Mode),
    )
    def test_the_story_is_consistent(self, value: float, name: str, mode: Mode) -> None:
        (choice,) = explain([value], parse_format(name), mode)
        inner = [n for n in (choice.lower, choice.upper) if n is not None and n != choice.beyond]
        assert choice.lower is None or choice.lower <= value
        assert choice.upper is None or choice.upper >= value
        if choice.why in ("nearer", "tie: to even", "tie: away from zero", "inexact: to odd", "toward zero", "drawn"):
            assert choice.result in inner
        distances = {n: choice.distance(n) for n in (choice.lower, choice.upper)}
        if choice.why == "nearer":
            assert distances[choice.result] == min(d for d in distances.values() if d is not None)
        if choice.why.startswith("tie"):
            assert len(set(distances.values())) == 1
        if choice.why == "toward zero":
            assert abs(choice.result) <= abs(value)

    def test_chances_are_exact_and_add_up(self) -> None:
        values = [17.0, 16.25, -0.1, 1e-9]
        for choice, value in zip(explain(values, E4M3, "stochastic"), values, strict=True):
            assert choice.lower is not None and choice.upper is not None and choice.chance is not None
            low, high, x = Fraction(choice.lower), Fraction(choice.upper), Fraction(value)
            assert abs(choice.chance - (x - low) / (high - low)) <= Fraction(1, 2**32)

    @pytest.mark.parametrize("rounding", ROUNDINGS, ids=repr)
    @pytest.mark.parametrize(
        "value", [60000.0, -60000.0, 63000.0, 0.3, -0.3, 2e-6, 1 + 2.0**-6]
    )  # a tie of three random bits
    def test_chances_are_those_of_the_draws(self, value: float, rounding: Rounding) -> None:
        torch.manual_seed(0)
        choices = explain([value] * 4000, E5M2, rounding)
        (chance,) = {choice.chance for choice in choices}
        assert chance is not None
        ups = sum(choice.result > value for choice in choices)
        assert abs(ups - 4000 * chance) <= 3 * math.sqrt(4000 * chance * (1 - chance))

    def test_no_distance_to_what_is_not_there(self) -> None:
        assert Choice(1.0, None, 2.0, 2.0, "").distance(None) is None
