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

import torch
from torch import Tensor

from lptensor._bits import exponent
from lptensor.carriers import CARRIERS
from lptensor.rounding import Mode


@dataclass(frozen=True, eq=False)
class Table:
    """What a kernel gets of a codebook: ascending values that fp32 holds; compared by identity.

    ``geometric`` takes the point where "nearest" changes between two values of one sign to be their
    geometric mean, the midpoint of the logarithms, instead of the arithmetic one.
    """

    values: tuple[float, ...]
    geometric: bool = False

    def __post_init__(self) -> None:
        for v in self.values:
            significand, exponent = math.frexp(v)
            if math.ldexp(significand, min(24, exponent + 149)) % 1 != 0 or exponent > 128:
                raise ValueError(f"values of a list are fp32 numbers, got {v!r}; round it to one first")

    def has(self, x: float) -> bool:
        """Whether a number is in the list."""
        return x in self.values

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_table"


table_of = functools.lru_cache(maxsize=256)(Table)  # one object for equal values: what is derived is kept by identity


@functools.lru_cache(maxsize=256)
def keys(table: Table, dtype: torch.dtype) -> Tensor:
    """The keys of the values, int64.

    >>> keys(Table((-1.0, 0.0, 1.0)), torch.float32).tolist() == [-0x3F800000, 0, 0x3F800000]
    True
    """
    return torch.tensor([_key(v * v, v < 0, dtype)[0] for v in _units(table)], dtype=torch.int64, device="cpu")


@functools.lru_cache(maxsize=256)
def steps(table: Table, mode: Mode, dtype: torch.dtype) -> Tensor:
    """The key of the first float that rounds to value i + 1 rather than to value i, for each i.

    "even" and "odd" are the parity of i, the value's code. Stochastic rounding starts from the lower
    neighbour, so its steps are those of rounding down. Toward zero and away from it, a number between the two
    values around a missing zero keeps its sign.
    """
    at, values = keys(table, dtype), torch.tensor(table.values, dtype=torch.float64, device="cpu")
    low, high = values[:-1], values[1:]
    reached, passed = at[1:], at[:-1] + 1  # x >= high; x > low
    odd = torch.arange(len(low), device="cpu") % 2 == 1
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
        return middle + (tie & ~upward[mode.tie])
    step = torch.where(upward[mode.toward], passed, reached)
    return torch.where((low < 0) & (high > 0), 0, step) if mode.toward in ("zero", "away") else step


def buckets(table: Table, mode: Mode, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], int]:
    """What a kernel searches: the tensors of ``struct lpt_table`` in csrc/table.h, and how deep a search goes.

    Each binade of keys is cut into equal buckets, about as narrow as the steps in it are close, but
    no more than a few per step; inside a bucket a kernel searches ``depth`` times.
    """
    mantissa, integer, exponents = CARRIERS[dtype].mantissa, CARRIERS[dtype].integer, 2 * CARRIERS[dtype].bias + 2
    at, step = keys(table, dtype), steps(table, mode, dtype)

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
    values = torch.tensor(table.values, dtype=torch.float64, device="cpu")
    bits = torch.where(at < 0, torch.iinfo(integer).min - at, at)
    held = (
        torch.stack((base, shift), 1).to(torch.int32),
        first.to(torch.int32),
        torch.cat((step, step.new_full((spare,), torch.iinfo(integer).max))).to(integer),
        torch.cat((bits, bits[-1:].expand(spare))).to(integer),
        torch.cat((values, values[-1:].expand(spare))),
    )
    return held, depth


@functools.lru_cache(maxsize=64)
def _midpoints(table: Table, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """For each pair the first key at or above the midpoint, and whether that is the midpoint itself."""
    found, exact = [], []
    for low, high in itertools.pairwise(_units(table)):
        middle = low + high >> 1
        key, hit = _key(low * high if table.geometric and low * high > 0 else middle * middle, middle < 0, dtype)
        found.append(key + (not hit and middle > 0))
        exact.append(hit)
    return (
        torch.tensor(found, dtype=torch.int64, device="cpu"),
        torch.tensor(exact, dtype=torch.bool, device="cpu"),
    )


def _units(table: Table) -> list[int]:
    """The values as even multiples of 2**-150, half the smallest fp32."""
    return [int(math.ldexp(v, 150)) for v in table.values]


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
