"""Kinds of floating point that people train with, and the identity that fp32 is."""

from __future__ import annotations

import math

import pytest
import torch

from lptensor.formats import FP32, FloatingPoint
from lptensor.ops import round as round_to
from lptensor.rounding import Mode


def test_the_float_of_fp32s_fields_is_the_identity() -> None:
    """QPyTorch rounds [3, 1, 2.5, -1.5] to [-3, -1, -2.5, 1.5] here."""
    bits = torch.randint(-(2**31), 2**31, (200000,)).to(torch.int32)
    x = torch.cat([bits.view(torch.float32), torch.tensor([3, 1, 2.5, -1.5, 0.0, -0.0, math.inf, -math.inf])])
    x = x[~x.isnan()]
    for mode in Mode:
        assert torch.equal(round_to(x, FloatingPoint(exp=8, man=23), mode).view(torch.int32), x.view(torch.int32))
    assert FloatingPoint(exp=8, man=23) == FP32


@pytest.mark.parametrize(
    ("format", "largest", "least_normal", "least"),
    [
        (FloatingPoint(6, 9), (2 - 2.0**-9) * 2.0**31, 2.0**-30, 2.0**-39),  # accumulators: Wang et al., NeurIPS 2018
        (FloatingPoint(4, 3, bias=4), 1.875 * 2.0**10, 2.0**-3, 2.0**-6),
        (FloatingPoint(4, 3, bias=11, specials="none"), 1.875 * 2.0**4, 2.0**-10, 2.0**-13),
        (FloatingPoint(5, 2, specials="none"), 1.75 * 2.0**16, 2.0**-14, 2.0**-16),
    ],
    ids=repr,
)
def test_any_fields_and_bias(format: FloatingPoint, largest: float, least_normal: float, least: float) -> None:
    assert format.max == largest
    assert (format.grid.emin, format.grid.smallest) == (math.log2(least_normal), least)
    x = torch.tensor([largest, least_normal, least, 1.5 * least, 0.25 * least])
    assert round_to(x, format).tolist() == [largest, least_normal, least, 2 * least, 0.0]


class TestQPyTorch:
    """QPyTorch's floats reserve no code for infinity and NaN, saturate, and round ties away from zero."""

    def test_half_has_one_binade_more_than_ieees(self) -> None:
        x = torch.tensor([65520.0, 70000.0, 1e6, math.inf, -math.inf])
        rounded = round_to(x, FloatingPoint(5, 10, specials="none"), "nearest_away")
        assert rounded.tolist() == [65536.0, 70016.0, 131008.0, 131008.0, -131008.0]

    def test_its_e4m3_reaches_480(self) -> None:
        assert FloatingPoint(4, 3, specials="none").max == 480

    def test_its_ties_go_away_from_zero(self) -> None:
        x = torch.tensor([1.00048828125, 2.0**-17])
        assert round_to(x[:1], FloatingPoint(5, 10, specials="none"), "nearest_away").tolist() == [1.0009765625]
        assert round_to(x[1:], FloatingPoint(5, 2, specials="none"), "nearest_away").tolist() == [2.0**-16]
        assert round_to(x[:1], FloatingPoint(5, 10)).tolist() == x[:1].half().tolist()

    def test_stochastic_rounding_saturates_as_its_does(self) -> None:
        x = torch.full((1000,), 500.0)
        assert round_to(x, FloatingPoint(4, 3, specials="none"), "stochastic").unique().tolist() == [480]
