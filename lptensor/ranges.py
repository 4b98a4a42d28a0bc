"""Blocks whose elements are spread from the smallest to the largest of what they hold."""

from __future__ import annotations

import math
from typing import NamedTuple

from lptensor.base import ScalarFormat
from lptensor.codebooks import single
from lptensor.grid import Grid, Overflow, Subnormals
from lptensor.scaling import CurrentRange


class Ranges(NamedTuple):
    """What a kernel gets where blocks have a scale and an offset; ``struct lpt_ranges`` in csrc/range.h.

    ``steps`` is a grid of steps as wide as the element's, from ``-span`` or below to ``span`` or above; the element's
    ends are ``min`` and ``max``.
    """

    steps: Grid
    min: float
    max: float
    preserve_zero: bool
    reciprocal: bool

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_ranges"

    @property
    def step(self) -> float:
        """How far apart the values of the element are."""
        return math.ldexp(1.0, self.steps.quantum(self.steps.emin))

    @property
    def span(self) -> float:
        """From the smallest value of the element to the largest."""
        return self.max - self.min


def ranges_of(element: ScalarFormat, scaling: CurrentRange) -> Ranges:
    """The plain numbers of an element under a range.

    Raises:
        ValueError: an element whose values are not equally far apart, have no ends or too many bits.
    """
    grid = element.grid
    even = grid.emin == grid.emax and grid.subnormals is Subnormals.GRADUAL
    if not even or math.isinf(grid.max):
        raise ValueError(
            f"a range is for elements at equal steps between two ends, such as INT8 or FixedPoint(4, 0, signed=False), "
            f"which {element!r} is not; CurrentMaximum takes any with a largest value"
        )
    span, quantum = element.max - element.min, grid.quantum(grid.emin)
    if single(span) != span:
        raise ValueError(f"ranges take elements of up to 24 bits, which {element!r} is not")
    # With a bit to spare, and within fp32, where that is enough: kernels are fastest there.
    precision = max(round(math.ldexp(span, -quantum)).bit_length(), min(23, 128 - quantum))
    top, most = quantum + precision - 1, math.ldexp(2**precision - 1, quantum)
    steps = Grid(precision, top, top, most, -most, Overflow.SATURATE, negative_zero=False)
    return Ranges(steps, element.min, element.max, scaling.preserve_zero, scaling.reciprocal)
