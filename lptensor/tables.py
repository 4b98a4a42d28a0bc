"""Lowering of codebooks: where, on a carrier, each rounding mode steps from one value to the next.

Rounding to a finite set in a deterministic mode is a monotone step function. So all that a kernel
needs of values and mode is, for each pair of neighbours, the first float that rounds to the upper
one. Floats are counted by keys here: their bits as integers in the order of the values, -magnitude
below zero and 0 for both zeros. Everything is integer arithmetic, exact by construction.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lptensor._bits import exponent
from lptensor.carriers import CARRIERS
from lptensor.rounding import Beyond, Mode


class Ends(NamedTuple):
    """What lies beyond the largest value of a list, and beyond the most negative one."""

    place: float  # the number that would come next; what rounds to it is beyond the end
    infinite: float  # what infinities become, and what is beyond the end: an infinity, or NaN
    saturates: bool = False  # but finite numbers become the largest value


@dataclass(frozen=True, eq=False)
class Table:
    """What a kernel gets of a codebook: what each of its codes stands for; compared by identity.

    The values are distinct numbers that fp32 holds, in any order; NaN and both infinities may be among them.
    ``geometric`` takes the point where "nearest" changes between two values of one sign to be their
    geometric mean, the midpoint of the logarithms, instead of the arithmetic one. Without ``ends`` what lies
    beyond the largest value saturates, infinities included.
    """

    listed: tuple[float, ...]
    geometric: bool = False
    ends: Ends | None = None

    def __post_init__(self) -> None:
        finite = [v for v in self.listed if math.isfinite(v)]
        beside = [] if self.ends is None else [self.ends.place, (self.ends.place + max(finite)) / 2]
        for v in [*finite, *beside]:
            significand, exponent = math.frexp(v)
            if math.ldexp(significand, min(24, exponent + 149)) % 1 != 0 or exponent > 128:
                raise ValueError(f"values of a list are fp32 numbers, got {v!r}; round it to one first")
        if not finite or len(set(finite)) < len(finite) or (math.inf in self.listed) is not (-math.inf in self.listed):
            raise ValueError("a list has distinct values, and both infinities or none")
        if self.ends is not None and not -min(finite) == max(finite) < self.ends.place:
            raise ValueError(f"a list with ends reaches as far below zero as above, got {min(finite)} to {max(finite)}")

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The finite values, ascending."""
        return tuple(sorted(v for v in self.listed if math.isfinite(v)))

    @cached_property
    def codes(self) -> tuple[int, ...]:
        """The codes of these."""
        of = {v: code for code, v in enumerate(self.listed)}
        return tuple(of[v] for v in self.values)

    @cached_property
    def _specials(self) -> tuple[float, ...]:
        return tuple(v for v in self.listed if not math.isfinite(v))

    def has(self, x: float) -> bool:
        """Whether a number is in the list."""
        if math.isnan(x):
            return any(map(math.isnan, self._specials))
        return x in (self._specials if math.isinf(x) else self.listed)

    def places(self, beyond: Beyond = Beyond.OVERFLOW) -> tuple[float, ...]:
        """The numbers that are rounded to: the values, and what comes next to either side where that is anything."""
        if self.ends is None:
            return self.values
        last, place = self.values[-1], self.ends.place
        end = (last + place) / 2 if beyond is Beyond.PROBABILITY else place
        return (-end, *self.values, end)

    @property
    def saturates(self) -> bool:
        """Whether finite numbers beyond the ends become the last value there."""
        return self.ends is None or self.ends.saturates

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_table"


table_of = functools.lru_cache(maxsize=256)(Table)  # one object for equal values: what is derived is kept by identity


@functools.lru_cache(maxsize=256)
def keys(table: Table, dtype: torch.dtype, beyond: Beyond = Beyond.OVERFLOW) -> Tensor:
    """The keys of the places, int64.

    >>> keys(Table((-1.0, 0.0, 1.0)), torch.float32).tolist() == [-0x3F800000, 0, 0x3F800000]
    True
    """
    units = _units(table.places(beyond))
    return torch.tensor([_key(v * v, v < 0, dtype)[0] for v in units], dtype=torch.int64, device="cpu")


@functools.lru_cache(maxsize=256)
def steps(table: Table, mode: Mode, dtype: torch.dtype, beyond: Beyond = Beyond.OVERFLOW) -> Tensor:
    """The key of the first float that rounds to place i + 1 rather than to place i, for each i.

    "even" and "odd" are those of the values' codes; of two values whose codes are both even, or both odd, that
    nearer to zero counts as even. What is beyond an end counts as the code after the last value's.
    Stochastic rounding starts from the lower neighbour, so its steps are those of rounding down. Toward zero and
    away from it, a number between the two values around a missing zero keeps its sign.
    """
    at, values = keys(table, dtype, beyond), torch.tensor(table.places(beyond), dtype=torch.float64, device="cpu")
    low, high = values[:-1], values[1:]
    reached, passed = at[1:], at[:-1] + 1  # x >= high; x > low
    parity = torch.tensor(table.codes, device="cpu") % 2 == 1
    if table.ends is not None:
        parity = torch.cat([~parity[:1], parity, ~parity[-1:]])
    odd = torch.where(parity[:-1] == parity[1:], low.abs() > high.abs(), parity[:-1])
    upward = {  # whether the upper one is taken
        "zero": -low >= high,
        "away": -low <= high,
        "even": odd,
        "odd": ~odd,
        "down": torch.zeros_like(odd),
        "up": torch.ones_like(odd),
        "drawn": torch.zeros_like(odd),
    }
    if mode.toward == "nearer":
        middle, tie = _midpoints(table, dtype)
        step = middle + (tie & ~upward[mode.tie])
    else:
        step = torch.where(upward[mode.toward], passed, reached)
        if mode.toward in ("zero", "away"):
            step = torch.where((low < 0) & (high > 0), 0, step)
    if table.ends is not None and mode.toward != "drawn":  # where nothing else goes, infinities do
        infinite = CARRIERS[dtype].bits(math.inf)
        if table.ends.saturates or mode.leads_back(True):
            step[0] = 1 - infinite
        if table.ends.saturates or mode.leads_back(False):
            step[-1] = infinite
    return step


def buckets(
    table: Table, mode: Mode, dtype: torch.dtype, beyond: Beyond = Beyond.OVERFLOW
) -> tuple[tuple[Tensor, ...], int]:
    """What a kernel searches: the tensors of ``struct lpt_table`` in csrc/table.h, and how deep a search goes.

    Each binade of keys is cut into equal buckets, about as narrow as the steps in it are close, but
    no more than a few per step; inside a bucket a kernel searches ``depth`` times.
    """
    mantissa, integer, exponents = CARRIERS[dtype].mantissa, CARRIERS[dtype].integer, 2 * CARRIERS[dtype].bias + 2
    at, step = keys(table, dtype, beyond), steps(table, mode, dtype, beyond)

    binade = (step >> mantissa) + exponents
    count = torch.bincount(binade, minlength=2 * exponents)
    closest = torch.full_like(count, 2**mantissa)
    gap = torch.where(binade[1:] == binade[:-1], step.diff(), 2**mantissa)
    closest.scatter_reduce_(0, binade[1:], gap, "amin")
    each = exponent(count.clamp(min=1).double())
    shift = torch.maximum(exponent(closest.double()), mantissa - 2 - each).clamp(max=mantissa)

    cuts = 2 ** (mantissa - shift)
    base = cuts.cumsum(0) - cuts
    owner = torch.arange(2 * exponents, device="cpu").repeat_interleave(cuts)
    start = ((owner - exponents) << mantissa) + ((torch.arange(len(owner), device="cpu") - base[owner]) << shift[owner])
    first = torch.searchsorted(step, start, right=True)
    inside = torch.searchsorted(step, start + (1 << shift[owner])) - first
    depth = int(inside.max()).bit_length()

    # Behind the last step come keys that only a NaN's reaches; the values go on as far.
    spare = 2**depth
    values = torch.tensor(table.places(beyond), dtype=torch.float64, device="cpu")
    bits = torch.where(at < 0, torch.iinfo(integer).min - at, at)
    limit = finite = infinite = CARRIERS[dtype].bits(math.inf)
    if table.ends is not None:
        limit, infinite = int(bits[-2]), CARRIERS[dtype].bits(table.ends.infinite)
        finite = limit if table.saturates or beyond is Beyond.SATURATE else infinite
        if mode.toward != "drawn":
            sign = 0 if math.isnan(table.ends.infinite) else torch.iinfo(integer).min
            bits[0], bits[-1] = infinite + sign, infinite
    held = (
        torch.stack((base, shift), 1).to(torch.int32),
        first.to(torch.int32),
        torch.cat((step, step.new_full((spare,), torch.iinfo(integer).max))).to(integer),
        torch.cat((bits, bits[-1:].expand(spare))).to(integer),
        torch.cat((values, values[-1:].expand(spare))),
        torch.tensor((limit, finite, infinite), dtype=integer, device="cpu"),
    )
    return held, depth


@functools.lru_cache(maxsize=64)
def _midpoints(table: Table, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each pair the first key at or above the midpoint, and whether that is the midpoint itself."""
    found, exact = [], []
    for low, high in itertools.pairwise(_units(table.places())):
        middle = low + high >> 1
        key, hit = _key(low * high if table.geometric and low * high > 0 else middle * middle, middle < 0, dtype)
        found.append(key + (not hit and middle > 0))
        exact.append(hit)
    return (
        torch.tensor(found, dtype=torch.int64, device="cpu"),
        torch.tensor(exact, dtype=torch.bool, device="cpu"),
    )


def _units(values: tuple[float, ...]) -> list[int]:
    """The values as even multiples of 2**-150, half the smallest fp32."""
    return [int(math.ldexp(v, 150)) for v in values]


def _key(square: int, negative: bool, dtype: torch.dtype) -> tuple[int, bool]:
    """The key of the float next to a root, on the side of zero, and whether it is the root.

    A number is given by its sign and its square in units of 2**-300, so that arithmetic and
    geometric means go one way.
    """
    if square == 0:
        return 0, True
    mantissa, emin = CARRIERS[dtype].mantissa, CARRIERS[dtype].emin
    exponent = (square.bit_length() - 1) // 2 - 150
    unit = max(exponent, emin) - mantissa  # the spacing of the floats there is 2**unit
    shift = 2 * (unit + 150)
    whole = math.isqrt(square >> shift if shift > 0 else square << -shift)
    magnitude = (unit - emin + mantissa << mantissa) + whole
    return -magnitude if negative else magnitude, whole * whole << max(shift, 0) == square << max(-shift, 0)
