"""The plain numbers that every scalar format comes down to."""

from __future__ import annotations

import enum
import math
from typing import NamedTuple


class Overflow(enum.IntEnum):
    """Where results beyond the largest value go, and infinities; the numbers are those of csrc/grid.h."""

    INF = 0
    SATURATE = 1
    NAN = 2
    PROPAGATE = 3  # finite ones to the largest value, while infinities stay: SatPropagate of IEEE P3109


class Subnormals(enum.IntEnum):
    """What lies below the smallest normal; the numbers are those of csrc/grid.h."""

    NONE = 0  # zero and the smallest normal are neighbours; their midpoint goes up (as chop does)
    GRADUAL = 1
    FLUSH = 2  # inputs below the smallest normal become zero


class Grid(NamedTuple):
    """The plain numbers that every scalar format comes down to: the C struct a kernel gets.

    A value x rounds to an integer multiple of 2**q, with
    q = clamp(exponent(x), emin, emax) - (precision - 1), and is then held between min and max.
    ``precision`` counts the hidden bit, here and everywhere.
    """

    precision: int
    emin: int
    emax: int
    max: float
    min: float
    overflow: Overflow = Overflow.INF
    subnormals: Subnormals = Subnormals.GRADUAL
    zero: bool = True
    negative_zero: bool = True
    ties_to_even_code: bool = False

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_grid"

    @property
    def signed(self) -> bool:
        return self.min < 0

    @property
    def saturates(self) -> bool:
        """Whether finite results beyond the largest value become that."""
        return self.overflow in (Overflow.SATURATE, Overflow.PROPAGATE)

    def quantum(self, exponent: int) -> int:
        """log2 of the spacing of the values whose exponent is ``exponent``."""
        if self.subnormals is not Subnormals.GRADUAL and exponent < self.emin:
            return self.emin
        return min(max(exponent, self.emin), self.emax) - (self.precision - 1)

    @property
    def smallest(self) -> float:
        """The smallest positive value."""
        if not self.zero or self.subnormals is not Subnormals.GRADUAL:
            return 2.0**self.emin
        return 2.0 ** self.quantum(self.emin)

    def has(self, x: float) -> bool:
        """Whether a finite number is one of this grid's."""
        if x == 0:
            return self.zero
        if not self.min <= x <= self.max:
            return False
        exponent = math.frexp(x)[1] - 1
        quantum = self.quantum(exponent)
        return exponent >= quantum and math.ldexp(x, -quantum).is_integer()  # of less ldexp may make 0

    def contains(self, other: Grid) -> bool:
        """Whether every finite value of ``other`` is one of this grid's."""
        if other.zero and not self.zero or other.max > self.max or other.min < self.min:
            return False
        if math.isinf(other.max):
            return self.quantum(other.emin) <= other.quantum(other.emin)
        largest = max(other.max, -other.min)
        for exponent in range(math.frexp(other.smallest)[1] - 1, math.frexp(largest)[1]):
            quantum = other.quantum(exponent)
            if 2.0**exponent + 2.0**quantum > largest:  # a lone power of two
                quantum = exponent
            if self.quantum(exponent) > quantum:
                return False
        return True
