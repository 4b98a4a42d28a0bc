"""Sums that lie where the way they are rounded turns, or so close beside that fp32 cannot tell."""

from __future__ import annotations

import pytest
import torch

from lptensor.accumulator import Accumulator
from lptensor.formats import BF16, E4M3, FP16, FP32, FixedPoint, FloatingPoint, ScalarFormat
from oracles.exact import MODES
from oracles.philox import philox
from rounders import NATIVE_BUILDS
from test_gemm import IMPLEMENTATIONS, expected, product

# An output whose second word is all ones, which takes up whatever is 2**-32 of the way: one in 2**32 is.
ONES, AT = (0, 1030746), 1458


@pytest.mark.parametrize("sum", [FP16, BF16, E4M3, FloatingPoint(8, 19), FixedPoint(16, 8)], ids=repr)
def test_the_largest_word_lifts_no_sum_that_is_a_value(sum: ScalarFormat) -> None:
    assert philox((AT, 0, ONES[1], 0), (0, 0))[1] == 2**32 - 1
    spacing = 2.0 ** sum.grid.quantum(0)
    for implementation in IMPLEMENTATIONS:
        for term, moved in ((0.0, 0.0), (spacing * 2.0**-33, 0.0), (spacing * 2.0**-32, spacing)):
            for sign in (1.0, -1.0):
                b, c = torch.full((1, 1, AT + 1), sign * term), torch.full((1, 1, AT + 1), sign)
                acc = Accumulator(sum, rounding="stochastic")
                got = product(implementation, torch.ones(1, 1, 1), b, acc, c, ONES)[0, 0, AT]
                assert got == sign * (1 + moved), (implementation, term)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "sum",
    [
        FP32,
        FP16,
        BF16,
        *(FloatingPoint(e, 7, subnormals=subnormals) for e in (5, 8) for subnormals in (False, "flush")),
    ],
    ids=repr,
)
def test_what_lies_close_beside_a_border_is_rounded_from_there(sum: FloatingPoint, mode: str) -> None:
    """A value, or one and a half spacing, and next to nothing: less than what fp32 has there, or than it has at all."""
    smallest, cases = 2.0**sum.grid.emin, []
    for value in (0.0, smallest, 1.5 * smallest, 1.0, 1.5, 1 + 2.0**-sum.man):
        spacing = (1 if value >= 1 else smallest) * 2.0**-sum.man
        for part in (0.0, spacing / 2, spacing, smallest / 2, smallest):
            cases += [(value, part * (1 + tiny)) for tiny in (-(2.0**-23), 0.0, 2.0**-23)]
        cases += [(value, tiny) for tiny in (2.0**-45 * spacing, -(2.0**-45) * spacing, 2.0**-149)]
    start, term = (torch.tensor([column]) for column in zip(*cases, strict=True))
    acc, least = Accumulator(sum, rounding=mode), 2.0**-100
    for a, b, c in (
        (1.0, term, start),
        (1.0, term, -start),
        (least, torch.full_like(term, least), start),  # a product that fp32 has no digit of
        (least, -least * term.sign(), start),
    ):
        row = torch.full((1, 1), a)
        wanted = expected(row, b, acc, c)
        for build in NATIVE_BUILDS:
            for k in range(len(cases)):  # tiles of each alone: one in doubt makes a kernel look at all of a tile
                alone, begun = b[None, :, k : k + 1].expand(1, 1, 32), c[None, :, k : k + 1].expand(1, 8, 32)
                got = product(build, row[None].expand(1, 8, 1), alone, acc, begun)
                assert (got == wanted[0, k]).all(), (build, c[0, k], b[0, k], got, wanted[0, k])
