"""Asymmetric integers by exact rationals: each operation of the sentences of ``CurrentRange``, rounded on its own.

The zero point and the affine map are those of Jacob et al., arXiv 1712.05877, section 2.1; of Liu et al. (KIVI), arXiv
2402.02750, section 3.1, where zero is not preserved.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from oracles import exact
from oracles.exact import FP32_MAX, FP32_MIN, Fixed, Way, exponent_of, power


def nearest(x: Fraction, bits: int, smallest: int | None) -> Fraction:
    """To so many significant bits, ties to even, above 2**smallest; there is no largest number."""
    if x == 0:
        return x
    last = exponent_of(abs(x)) - bits + 1
    unit = power(last if smallest is None else max(last, smallest))
    return round(x / unit) * unit


def single(x: Fraction) -> Fraction:
    return nearest(x, 24, -149)


def held(x: Fraction, low: Fraction = -FP32_MAX, high: Fraction = FP32_MAX) -> Fraction:
    return min(max(x, low), high)


@dataclass(frozen=True)
class Tile:
    """What a tile of these numbers makes of its range; None for the scale of a tile that is lost."""

    scale: Fraction | None
    zero_point: Fraction
    start: Fraction
    low: Fraction
    high: Fraction


def tile(xs: Sequence[float], element: Fixed, preserve_zero: bool) -> Tile:
    integers, step = element.integers(), power(-element.fl)
    least, most = integers[0] * step, integers[-1] * step
    if not all(map(math.isfinite, xs)):
        return Tile(None, *[Fraction(0)] * 4)
    low, high = (held(single(Fraction(end(xs)))) for end in (min, max))
    if preserve_zero:
        low, high = min(low, Fraction(0)), max(high, Fraction(0))
    scale = held(single(single(high - low) / (most - least)), FP32_MIN)
    if not preserve_zero:
        return Tile(scale, Fraction(0), low, Fraction(0), most - least)
    zero = held(least - round(single(low / scale) / step) * step, least, most)
    return Tile(scale, zero, Fraction(0), least - zero, most - zero)


def rounded(
    xs: Sequence[float], element: Fixed, preserve_zero: bool, reciprocal: bool, ways: Way | Sequence[Way], wide: bool
) -> list[float]:
    """What the numbers of one tile become; ``wide`` numbers are float64, the others fp32."""
    known = tile(xs, element, preserve_zero)
    if known.scale is None:
        return [math.nan] * len(xs)
    bits, smallest, most = (53, -1074, Fraction(2**53 - 1) * power(971)) if wide else (24, -149, FP32_MAX)
    endless = Fixed(53, element.fl, clamp=False)
    results = []
    for i, x in enumerate(xs):
        way = ways if isinstance(ways, str) or callable(ways) else ways[i]
        moved = nearest(Fraction(x) - known.start, bits, smallest)
        quotient = moved * held(single(1 / known.scale)) if reciprocal else moved / known.scale
        steps = nearest(quotient, bits, None if wide else smallest)
        k = held(_to_steps(steps, endless, way), known.low, known.high)
        result = nearest(known.start + nearest(k * known.scale, 200 if wide else bits, smallest), bits, smallest)
        results.append(float(held(result, -most, most)))
    return results


def _to_steps(x: Fraction, endless: Fixed, way: Way) -> Fraction:
    gap = endless.gap(abs(x))
    if gap.low == abs(x):
        return x
    up = exact.goes_up(abs(x), gap, way, x < 0)
    return (gap.high if up else gap.low) * (-1 if x < 0 else 1)
