"""Blocks under one scale by exact rationals: the scale from its definition, then a search for neighbours.

Sources: OCP Microscaling Formats v1.0 sections 5 and 6.3; for "ceil", "even" and "rceil" the words of
the torchao and cuBLAS manuals. Powers of two are found by comparison, never by bits or logarithms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from oracles import exact
from oracles.exact import Gap, Values, Way, exponent_of, power

RULES = ("floor", "ceil", "even", "rceil")
E8M0_ENDS = (-127, 127)
MOST = np.finfo(np.float32).max


@dataclass(frozen=True)
class Under:
    """The values of an element format times a scale; what lies beyond saturates."""

    element: Values
    scale: Fraction
    zero = True
    overflow = "saturate"

    @property
    def signed(self) -> bool:
        return self.element.signed

    @property
    def negative_zero(self) -> bool:
        return self.element.negative_zero

    def gap(self, x: Fraction) -> Gap:
        gap = self.element.gap(x / self.scale)
        return Gap(gap.low * self.scale, gap.high * self.scale, gap.low_is_odd, gap.tie_goes_up)

    def largest(self, negative: bool) -> Fraction | None:
        largest = self.element.largest(negative)
        assert largest is not None
        return largest * self.scale


def ceiling_power(x: Fraction) -> int:
    """The smallest e with x <= 2**e."""
    e = exponent_of(x)
    return e if x == power(e) else e + 1


def half_even(x: Fraction) -> int:
    return round(x)  # of a Fraction: to the nearest integer, ties to even


def scale_exponent(largest: Fraction, element: Values, precision: int, rule: str) -> int:
    """log2 of the scale of a block with this largest magnitude, before it is held to the scale's range."""
    top = element.largest(False)
    assert top is not None
    match rule:
        case "floor":
            return exponent_of(largest) - exponent_of(top)
        case "ceil":
            return ceiling_power(largest) - exponent_of(top)
        case "even":
            place = power(exponent_of(largest) - (precision - 1))
            return exponent_of(half_even(largest / place) * place) - exponent_of(top)
        case "rceil":
            return ceiling_power(largest / top)
    raise ValueError(rule)


def counted(xs: Sequence[float], infinite: str) -> Fraction | None:
    """The largest magnitude that makes the scale; None for a block that is lost."""
    if any(map(math.isnan, xs)) or infinite == "nan" and any(map(math.isinf, xs)):
        return None
    return max((abs(Fraction(x)) for x in xs if math.isfinite(x)), default=Fraction(0))


def block_of(
    xs: Sequence[float], element: Values, precision: int, rule: str = "floor", infinite: str = "nan", margin: int = 0
) -> Under | None:
    """The values open to the elements of one MX block; None if it is lost."""
    largest = counted(xs, infinite)
    if largest is None:
        return None
    low, high = E8M0_ENDS
    exponent = scale_exponent(largest, element, precision, rule) + margin if largest else 0
    return Under(element, power(min(max(exponent, low), high)))


def carried(x: float, carrier: type[np.floating]) -> float:
    """What the carrier makes of a result beyond its largest number."""
    return math.copysign(math.inf, x) if abs(x) > float(np.finfo(carrier).max) else x


def rounded_block(
    xs: Sequence[float],
    element: Values,
    precision: int,
    rule: str = "floor",
    mode: str | Sequence[Way] = "nearest",
    infinite: str = "nan",
    carrier: type[np.floating] = np.float32,
    margin: int = 0,
) -> list[float]:
    block = block_of(xs, element, precision, rule, infinite, margin)
    if block is None:
        return [math.nan] * len(xs)
    return [carried(exact.rounded(block, x, way), carrier) for x, way in zip(xs, exact.ways(mode, xs), strict=True)]


def tensor_scale(xs: Sequence[float], top: float, scale_top: float) -> np.float32:
    """The second-level scale of NVFP4: the largest finite magnitude over the largest that both levels reach."""
    largest = held(max((abs(x) for x in xs if math.isfinite(x)), default=0.0))
    with np.errstate(over="ignore"):
        return min(max(largest / held(top * scale_top), np.float32(2.0**-149)), MOST)


def held(x: float) -> np.float32:
    """A number rounded to fp32, at most the largest one."""
    return np.float32(min(x, float(MOST)))


def scaled_block(
    xs: Sequence[float],
    element: Values,
    scale_format: Values,
    whole: np.float32,
    floor: float = 0.0,
    reciprocal: bool = False,
    mode: str | Sequence[Way] = "nearest",
    infinite: str = "nan",
    carrier: type[np.floating] = np.float32,
    margin: int = 0,
) -> list[float]:
    """One block under a scale of any significand: numpy's fp32 for the arithmetic, rationals for the rounding."""
    largest, top, ceiling = counted(xs, infinite), element.largest(False), scale_format.largest(False)
    if largest is None:
        return [math.nan] * len(xs)
    assert top is not None and ceiling is not None
    with np.errstate(all="ignore"):
        s = held(float(largest)) / np.float32(float(top) / 2.0**margin) / whole
        s = np.float32(min(max(float(s), floor), float(ceiling)))
        s = np.float32(exact.rounded(scale_format, float(s), "nearest"))
        t = np.minimum(np.float32(s * whole), MOST)
        inverse = np.minimum(np.float32(1) / whole / s, MOST)
        results = []
        for x, way in zip(xs, exact.ways(mode, xs), strict=True):
            if t == 0:
                results.append(math.copysign(0.0, x) if element.negative_zero else 0.0)
                continue
            quotient = carrier(x) * carrier(inverse) if reciprocal else carrier(x) / carrier(t)
            if carrier is np.float64 and x != 0 and abs(quotient) < 2.0**-500:  # only its sign can matter
                quotient = np.copysign(2.0**-500, x)
            r = exact.rounded(Under(element, Fraction(1)), float(quotient), way)
            results.append(float(carrier(r) * carrier(t)))
    return results
