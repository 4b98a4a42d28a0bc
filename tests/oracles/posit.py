"""Posits by exact rationals, from the bit strings of the Standard for Posit Arithmetic (2022).

Section 3.3 gives the value of a bit string, section 4.1 the rounding: the border between two posits of
n bits is the posit of n + 1 bits whose string is that of the lower one with a 1 appended.
"""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction
from functools import cached_property, lru_cache

MODES = ("nearest", "nearest_away", "nearest_up", "toward_zero", "down", "up", "odd")


@lru_cache(maxsize=2**16)
def value(code: int, n: int, es: int) -> Fraction | None:
    """The number that a bit pattern stands for; None for NaR."""
    if code == 0:
        return Fraction(0)
    if code == 1 << (n - 1):
        return None
    if code >> (n - 1):
        opposite = value((1 << n) - code, n, es)
        assert opposite is not None
        return -opposite
    string = format(code, f"0{n}b")[1:]
    run = len(string) - len(string.lstrip(string[0]))
    regime = run - 1 if string[0] == "1" else -run
    rest = string[run + 1 :]
    exponent, fraction = rest[:es].ljust(es, "0"), rest[es:]
    power = regime * 2**es + int(exponent or "0", 2)
    return Fraction(2) ** power * (1 + Fraction(int(fraction or "0", 2), 2 ** len(fraction)))


class Posits:
    """The posits of n bits; what is said of magnitudes holds for negatives mirrored."""

    def __init__(self, n: int, es: int) -> None:
        self.n, self.es = n, es

    @cached_property
    def positive(self) -> list[Fraction]:
        return [self.at(code) for code in range(1, 2 ** (self.n - 1))]

    def at(self, code: int) -> Fraction:
        found = value(code, self.n, self.es)
        assert found is not None
        return found

    def border(self, code: int) -> Fraction:
        """Where rounding to nearest changes from a positive code to the next."""
        found = value(2 * code + 1, self.n + 1, self.es)
        assert found is not None
        return found

    def code_below(self, x: Fraction) -> int:
        """The largest code whose value is at most x; zero is code 0."""
        if self.n <= 12:
            return bisect_right(self.positive, x)
        low, high = 0, 2 ** (self.n - 1) - 1
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.at(middle) <= x else (low, middle - 1)
        return low

    def round(self, x: Fraction, mode: str) -> Fraction:
        """One number rounded."""
        size, top = abs(x), 2 ** (self.n - 1) - 1
        code = self.code_below(size)
        if code == top or size == self.at(code):
            chosen = code
        else:
            chosen = code + self.upward(code, size, x < 0, mode)
        return self.at(chosen) * (-1 if x < 0 else 1)

    def upward(self, code: int, size: Fraction, negative: bool, mode: str) -> bool:
        """Whether a magnitude strictly between two neighbours takes the upper one."""
        if mode.startswith("nearest"):
            if code == 0:
                return True
            border = self.border(code)
            ties = {"nearest": code % 2 == 1, "nearest_away": True, "nearest_up": not negative}
            return size > border or size == border and ties[mode]
        return {"toward_zero": False, "down": negative, "up": not negative, "odd": code % 2 == 0}[mode]

    def chance(self, x: Fraction) -> Fraction:
        """The probability that stochastic rounding takes x away from zero."""
        size = abs(x)
        code = self.code_below(size)
        if code == 2 ** (self.n - 1) - 1:
            return Fraction(0)
        return (size - self.at(code)) / (self.at(code + 1) - self.at(code))
