"""Project of the IEEE P3109 interim report by exact rationals: RoundToPrecision, then Saturate, clause by clause."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

# RoundAway: whether a number goes to the neighbour of larger magnitude. nu is the fraction of the spacing it lies above
# the other, `even` whether the code of that is even, n the random bits, r their value.
ROUND_AWAY: dict[str, Callable[[Fraction, bool, bool, int, int], bool]] = {
    "NearestTiesToEven": lambda nu, even, negative, n, r: nu > Fraction(1, 2) or nu == Fraction(1, 2) and not even,
    "NearestTiesToAway": lambda nu, even, negative, n, r: nu >= Fraction(1, 2),
    "TowardZero": lambda nu, even, negative, n, r: False,
    "TowardPositive": lambda nu, even, negative, n, r: nu > 0 and not negative,
    "TowardNegative": lambda nu, even, negative, n, r: nu > 0 and negative,
    "ToOdd": lambda nu, even, negative, n, r: nu > 0 and even,
    "StochasticA": lambda nu, even, negative, n, r: math.floor(nu * 2**n) + r >= 2**n,
    "StochasticB": lambda nu, even, negative, n, r: math.floor(nu * 2 ** (n + 1)) + 2 * r + 1 >= 2 ** (n + 1),
    "StochasticC": lambda nu, even, negative, n, r: round(nu * 2**n) + r >= 2**n,
}


@dataclass(frozen=True)
class Projection:
    """A format of the report, by its parameters and its largest value, and a projection to it."""

    k: int
    p: int
    signed: bool
    extended: bool
    largest: Fraction
    saturation: str

    def __call__(self, x: float, rounding: str, bits: int = 0, word: int = 0) -> float:
        """What x becomes; infinities of an unsigned format are asked for where it saturates alone."""
        rounded = x if math.isinf(x) else self.to_precision(Fraction(x), ROUND_AWAY[rounding], bits, word)
        return self.saturated(rounded, rounding)

    def to_precision(self, x: Fraction, away: Callable[..., bool], bits: int, word: int) -> Fraction:
        """RoundToPrecision: to p digits, the exponent bounded below alone."""
        if x == 0:
            return x
        bias = 2 ** (self.k - self.p) // (2 if self.signed else 1)
        exponent = abs(x).numerator.bit_length() - abs(x).denominator.bit_length()
        exponent -= Fraction(2) ** exponent > abs(x)  # floor(log2(abs(x)))
        q = max(exponent, 1 - bias) - self.p + 1
        units = abs(x) / Fraction(2) ** q
        whole = math.floor(units)
        even = whole % 2 == 0 if self.p > 1 else whole == 0 or (q + bias) % 2 == 0
        made = (whole + away(units - whole, even, x < 0, bits, word)) * Fraction(2) ** q
        return -made if x < 0 else made

    def saturated(self, x: Fraction | float, rounding: str) -> float:
        """Saturate, but for ToOdd, which leads back to the largest value of every format here."""
        low = -self.largest if self.signed else Fraction(0)
        if low <= x <= self.largest:
            return float(x)
        end, infinity = (float(self.largest), math.inf) if x > 0 else (float(low), -math.inf)
        has_infinity = self.extended and (self.signed or x > 0)
        if self.saturation == "SatFinite" or not has_infinity:
            return end
        if self.saturation == "SatPropagate":
            return infinity if math.isinf(x) else end
        inward = {"TowardZero", "ToOdd", "TowardNegative" if x > 0 else "TowardPositive"}
        return end if not math.isinf(x) and rounding in inward else infinity
