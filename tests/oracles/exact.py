"""Rounding by exact rationals: a value set is decoded code by code and searched for neighbours.

Sources: IEEE 754-2019 (3.3 formats, 4.3 rounding directions, 7.4 overflow), the OCP 8-bit floating
point specification for "fn" and saturation, the IEEE P3109 interim report for "propagate", its SatPropagate,
arXiv 2206.02915 for "fnuz". There is no scaling, no rounding to integer and no bit trick here, so that no idea
is shared with the code under test.
"""

from __future__ import annotations

import functools
import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

MODES = ("nearest", "nearest_away", "nearest_up", "toward_zero", "down", "up", "odd")
# A mode by its name, or what a random word decides, given how far a value lies between its two neighbours.
Way = str | Callable[[Fraction], bool]
FP32_MAX = Fraction(2**24 - 1) * 2**104
FP32_MIN = Fraction(1, 2**149)


@functools.cache
def power(exponent: int) -> Fraction:
    return Fraction(2) ** exponent


@dataclass(frozen=True)
class Gap:
    """Two neighbouring magnitudes, and whether the significand of the lower one ends in an odd digit."""

    low: Fraction
    high: Fraction
    low_is_odd: bool
    tie_goes_up: bool = False


class Values(Protocol):
    """What rounding needs to know of a set of values."""

    signed: bool
    negative_zero: bool
    overflow: str
    zero: bool

    def gap(self, x: Fraction) -> Gap:
        """The neighbours of a magnitude, as if there were no largest value."""

    def largest(self, negative: bool) -> Fraction | None:
        """The largest magnitude on one side; None if there is no end."""


@dataclass(frozen=True)
class Float:
    """A binary floating-point format, read off its codes (IEEE 754-2019 3.4)."""

    exp: int
    man: int
    bias: int
    subnormals: bool | str = True
    specials: str = "ieee"
    overflow: str = "inf"
    signed: bool = True
    zero: bool = True

    @property
    def negative_zero(self) -> bool:
        return self.signed and self.specials != "fnuz"

    @property
    def top(self) -> int:
        """The code of the largest finite magnitude."""
        taken = {"ieee": 2**self.man, "fn": 1, "fnuz": 0, "none": 0}[self.specials]
        return 2 ** (self.exp + self.man) - taken - 1

    @property
    def first_normal(self) -> int:
        return 2**self.man if self.zero else 0

    def magnitude(self, code: int) -> Fraction:
        """The magnitude a code stands for; the one after ``top`` is what would come next."""
        field, mantissa = divmod(code, 2**self.man)
        if field == 0 and self.zero:
            return mantissa * power(1 - self.bias - self.man)
        return (2**self.man + mantissa) * power(field - self.bias - self.man)

    def codes(self) -> list[int]:
        """Codes of all finite magnitudes, ascending."""
        normal = range(self.first_normal, self.top + 1)
        if not self.zero:
            return list(normal)
        return [*range(2**self.man if self.subnormals is True else 1), *normal]

    def magnitudes(self) -> list[Fraction]:
        return [self.magnitude(code) for code in self.codes()]

    def has_normals(self) -> bool:
        return self.top >= self.first_normal

    def fits_fp32(self) -> bool:
        """Whether every finite value, and the spacing at the bottom, is a binary32 number."""
        start = 1 if self.subnormals is True and self.zero and self.man else self.first_normal
        lowest = [self.magnitude(code) for code in (start, start + 1, self.first_normal)]
        return all((m / FP32_MIN).denominator == 1 for m in lowest) and self.magnitude(self.top) <= FP32_MAX

    @functools.lru_cache(2**14)  # noqa: B019 - tests ask for a number again in every mode
    def gap(self, x: Fraction) -> Gap:
        if self.zero and self.subnormals is not True and x < self.magnitude(self.first_normal):
            high = self.magnitude(self.first_normal) if self.subnormals is False else Fraction(0)
            return Gap(Fraction(0), high, low_is_odd=False, tie_goes_up=True)
        code = bisect_right(range(self.top + 2), x, key=self.magnitude) - 1
        if code < 0:  # below the smallest value of a format without zero
            return Gap(self.magnitude(0), self.magnitude(0), low_is_odd=False)
        # With no stored mantissa the last digit is the hidden 1 of every value but zero (4.3.1).
        odd = code % 2 == 1 if self.man else code > 0 or not self.zero
        return Gap(self.magnitude(code), self.magnitude(code + 1), odd)

    def largest(self, negative: bool) -> Fraction | None:
        return self.magnitude(self.top)


@dataclass(frozen=True)
class Fixed:
    """Two's complement integers times 2**-fl."""

    wl: int
    fl: int
    clamp: bool = True
    symmetric: bool = False
    signed: bool = True
    negative_zero = False
    zero = True

    @property
    def overflow(self) -> str:
        return "saturate" if self.clamp else "inf"

    def gap(self, x: Fraction) -> Gap:
        k = x // power(-self.fl)
        return Gap(k * power(-self.fl), (k + 1) * power(-self.fl), k % 2 == 1)

    def integers(self) -> range:
        """The integers k whose k * 2**-fl are the values."""
        if not self.signed:
            return range(2**self.wl)
        return range(-(2 ** (self.wl - 1)) + self.symmetric, 2 ** (self.wl - 1))

    def largest(self, negative: bool) -> Fraction | None:
        if not self.clamp:
            return None
        ends = self.integers()
        return abs(ends[0] if negative else ends[-1]) * power(-self.fl)


@dataclass(frozen=True)
class Block:
    """The values open to the elements of one block: wl-bit sign and magnitude under one exponent."""

    wl: int
    exponent: int
    signed = True
    negative_zero = True
    zero = True
    overflow = "saturate"

    def gap(self, x: Fraction) -> Gap:
        return Fixed(self.wl, self.wl - 2 - self.exponent).gap(x)

    def largest(self, negative: bool) -> Fraction | None:
        return (2 ** (self.wl - 1) - 1) * power(self.exponent - self.wl + 2)


def exponent_of(x: Fraction) -> int:
    """The e with 2**e <= x < 2**(e+1), by comparison."""
    e = x.numerator.bit_length() - x.denominator.bit_length()
    return e if power(e) <= x else e - 1


def goes_up(x: Fraction, gap: Gap, mode: Way, negative: bool) -> bool:
    """Whether the magnitude x between two neighbours takes the larger one."""
    if x == gap.low:
        return False
    if not isinstance(mode, str):
        return gap.high > gap.low and mode((x - gap.low) / (gap.high - gap.low))
    middle = (gap.low + gap.high) / 2
    match mode:
        case "nearest":
            return x > middle or x == middle and (gap.low_is_odd or gap.tie_goes_up)
        case "nearest_away":
            return x >= middle
        case "nearest_up":
            return x > middle or x == middle and not negative
        case "toward_zero":
            return False
        case "down":
            return negative
        case "up":
            return not negative
        case "odd":
            return not gap.low_is_odd
    raise ValueError(mode)


def points_inward(mode: Way, negative: bool) -> bool:
    """Whether a direction leads back from infinity to the finite values (IEEE 754-2019 7.4)."""
    return mode in ("toward_zero", "odd") or mode == ("up" if negative else "down")


def rounded(values: Values, x: float, mode: Way) -> float:
    """The value that x becomes; a nan or an infinity where the format's rules ask for it."""
    settled = _settled(values, x)
    if settled is not None:
        return settled
    magnitude, negative = abs(Fraction(x)), x < 0
    gap = values.gap(magnitude)
    return _finish(values, gap.high if goes_up(magnitude, gap, mode, negative) else gap.low, negative, mode)


def drawn(values: Values, x: float, way: Way, beyond: str = "overflow") -> float:
    """The same by a random word; between the largest value and overflow as ``beyond`` has it."""
    largest = None if x < 0 and not values.signed else values.largest(x < 0)
    if beyond == "overflow" or not math.isfinite(x) or largest is None or abs(Fraction(x)) <= largest:
        return rounded(values, x, way)
    gap = values.gap(largest)
    odds = (abs(Fraction(x)) - largest) / (gap.high - gap.low) * 2  # certain from half a spacing on
    assert not isinstance(way, str)
    over = beyond == "probability" and (odds >= 1 or way(odds))
    return _beyond(values, x < 0) if over else math.copysign(float(largest), x)


def fraction_of(values: Values, x: float) -> Fraction:
    """Where a finite nonzero x lies between its neighbours: 0 at the lower, 1 at the higher magnitude."""
    gap = values.gap(abs(Fraction(x)))
    return (abs(Fraction(x)) - gap.low) / (gap.high - gap.low) if gap.high > gap.low else Fraction(0)


def outcomes(values: Values, x: float, bits: int = 32) -> tuple[float, float, Fraction]:
    """Both results of stochastic rounding with ``bits`` random bits, and the probability of the second."""
    settled = _settled(values, x)
    if settled is not None:
        return settled, settled, Fraction(0)
    gap = values.gap(abs(Fraction(x)))
    chance = Fraction(math.floor(fraction_of(values, x) * 2**bits), 2**bits)
    low, high = (_finish(values, end, x < 0, "stochastic") for end in (gap.low, gap.high))
    return low, high, chance


def stochastic(values: Values, x: float, word: int, bits: int = 32) -> float:
    """The result for one random 32-bit word, of which the leading ``bits`` are added to the fraction."""
    low, high, chance = outcomes(values, x, bits)
    return high if chance * 2**bits + (word >> (32 - bits)) >= 2**bits else low


def rounded_block(
    xs: Sequence[float], wl: int, mode: str | Sequence[Way], overflow: str = "clip", infinite: str = "nan"
) -> list[float]:
    """One block of block floating point: the exponent is that of the largest magnitude."""
    block = block_of(xs, wl, overflow, infinite)
    return [math.nan if block is None else rounded(block, x, way) for x, way in zip(xs, ways(mode, xs), strict=True)]


def ways(mode: str | Sequence[Way], xs: Sequence[float]) -> Sequence[Way]:
    """One way for each number: the same for all where it has a name."""
    return [mode] * len(xs) if isinstance(mode, str) else mode


def block_of(xs: Sequence[float], wl: int, overflow: str = "clip", infinite: str = "nan") -> Block | None:
    """The values open to the elements xs; None if one is no number, which spoils the block, or is infinite."""
    if any(map(math.isnan, xs)) or infinite == "nan" and any(map(math.isinf, xs)):
        return None
    largest = max((abs(Fraction(x)) for x in xs if math.isfinite(x)), default=Fraction(0))
    block = Block(wl, exponent_of(largest) if largest else 0)
    gap = block.gap(largest)
    rounds_up = gap.high > (block.largest(False) or 0) and goes_up(largest, gap, "nearest", False)
    return Block(wl, block.exponent + 1) if overflow == "bump" and rounds_up else block


def _settled(values: Values, x: float) -> float | None:
    """The result where no neighbours are needed: specials, zeros, and the wrong side of zero."""
    negative = math.copysign(1.0, x) < 0
    if math.isnan(x):
        return math.nan
    if x == 0:
        if not values.zero:
            return math.nan
        return -0.0 if negative and values.negative_zero else 0.0
    if negative and not values.signed:
        return float(values.gap(Fraction(0)).low) if values.overflow in ("saturate", "propagate") else math.nan
    if math.isinf(x):
        stays = values.overflow == "propagate" or values.largest(negative) is None
        return x if stays else _beyond(values, negative)
    return None


def _beyond(values: Values, negative: bool) -> float:
    sign = -1 if negative else 1
    if values.overflow in ("saturate", "propagate"):
        largest = values.largest(negative)
        assert largest is not None
        return sign * float(largest)
    return math.nan if values.overflow == "nan" else sign * math.inf


def _finish(values: Values, r: Fraction, negative: bool, mode: Way) -> float:
    """A magnitude with its sign, after the end of the format has had its say."""
    largest = values.largest(negative)
    if largest is not None and r > largest:
        if not points_inward(mode, negative):
            return _beyond(values, negative)
        r = largest
    if r == 0:
        return -0.0 if negative and values.negative_zero else 0.0
    return -float(r) if negative else float(r)
