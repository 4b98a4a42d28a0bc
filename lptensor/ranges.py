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

    ``steps`` is the grid of the element without its ends, which are ``min`` and ``max``.
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
    steps = grid._replace(max=math.inf, min=-math.inf, overflow=Overflow.INF, negative_zero=False)
    ranges = Ranges(steps, element.min, element.max, scaling.preserve_zero, scaling.reciprocal)
    if single(ranges.span) != ranges.span:
        raise ValueError(f"ranges take elements of up to 24 bits, which {element!r} is not")
    return ranges
