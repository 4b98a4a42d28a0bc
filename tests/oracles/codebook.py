"""Rounding to any list of numbers by exact rationals: every distance is compared, nothing is scaled."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from fractions import Fraction

MODES = ("nearest", "nearest_away", "nearest_up", "toward_zero", "down", "up", "odd")


class Listed:
    """Ascending exact values; ``logarithmic`` measures the distance of numbers of one sign by their ratio."""

    def __init__(self, values: list[float], logarithmic: bool = False) -> None:
        self.values, self.logarithmic = [Fraction(v) for v in values], logarithmic

    def round(self, x: Fraction, mode: str) -> Fraction:
        return self.values[self.index(x, mode)]

    def index(self, x: Fraction, mode: str) -> int:
        low, high = self.around(x)
        if low == high:
            return low
        below, above = self.values[low], self.values[high]
        if mode in ("nearest", "nearest_away", "nearest_up"):
            nearer = self.nearer(x, below, above)
            if nearer:
                return low if nearer < 0 else high
            if mode == "nearest_away" and abs(below) != abs(above):
                return max(low, high, key=lambda i: abs(self.values[i]))
            return low + low % 2 if mode == "nearest" else high
        if mode == "odd":
            return low + (low + 1) % 2
        if mode == "toward_zero":
            if below < 0 < above:  # no zero between: the sign stays
                return low if x < 0 else high
            return low if x > 0 else high
        return low if mode == "down" else high

    def around(self, x: Fraction) -> tuple[int, int]:
        """The neighbours' indices; one and the same beyond the ends and on a value."""
        low, high = bisect_right(self.values, x) - 1, bisect_left(self.values, x)
        return max(low, 0), min(high, len(self.values) - 1)

    def nearer(self, x: Fraction, below: Fraction, above: Fraction) -> int:
        """-1 where the lower neighbour is nearer, 1 where the upper one is, 0 at the same distance."""
        if self.logarithmic and below * above > 0:
            left, right = x * x, below * above  # x / below against above / x
            if x < 0:
                left, right = right, left
        else:
            left, right = x - below, above - x
        return (left > right) - (left < right)

    def chance(self, x: Fraction) -> Fraction:
        """The probability that stochastic rounding takes the upper neighbour."""
        low, high = self.around(x)
        return Fraction(0) if low == high else (x - self.values[low]) / (self.values[high] - self.values[low])
