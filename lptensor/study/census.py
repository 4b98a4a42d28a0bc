"""Counts what roundings did to values: one pass over each tensor, and nothing kept but the counts."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lptensor import _native, _native_census
from lptensor._bits import exact, exponent
from lptensor._native_census import COUNTS, HIGHEST, LOWEST, CensusStruct, Rounder
from lptensor.blocks import BlockFormat
from lptensor.formats import Format, ScalarFormat
from lptensor.ops import check_format, draw_key, round_fresh
from lptensor.rounding import Rounding


class Range(NamedTuple):
    """Where a format ends: the largest value, minus the smallest, the smallest normal (0 without one)."""

    highest: float
    lowest: float
    tiny: float


def range_of(format: Format) -> Range:
    """The ends of a format; a block format moves its own with each block, and has none.

    >>> from lptensor import E4M3
    >>> range_of(E4M3)
    Range(highest=448.0, lowest=448.0, tiny=0.015625)
    """
    if isinstance(format, BlockFormat):
        return Range(math.inf, math.inf, 0.0)
    if isinstance(format, ScalarFormat):
        grid = format.grid
        return Range(grid.max, -grid.min if grid.signed else 0.0, 0.0 if grid.emin == grid.emax else 2.0**grid.emin)
    ends: Any = format
    return Range(ends.max, max(-ends.min, 0.0), 0.0)


def native(x: Tensor) -> bool:
    """Whether the compiled loops count this tensor."""
    return type(x) is Tensor and x.is_cpu and _native.library() is not None


def rounds(x: Tensor, format: Format) -> bool:
    """Whether the compiled loops round this tensor to the format and count on the way."""
    return native(x) and format.lowered.loop in _native.OF_ELEMENTS


def alike(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """The same tensors with their elements in one order of memory, without gaps.

    Raises:
        TypeError: neither float32 nor float64, or not all of one dtype.
        ValueError: not all of one shape.
    """
    tensors = (first, *others)
    if first.dtype not in (torch.float32, torch.float64) or any(x.dtype != first.dtype for x in others):
        dtypes = ", ".join(str(x.dtype) for x in tensors)
        raise TypeError(f"values before and after a rounding are all float32 or all float64, got {dtypes}")
    if any(x.shape != first.shape for x in others):
        shapes = ", ".join(str(tuple(x.shape)) for x in tensors)
        raise ValueError(f"values before and after a rounding have one shape, got {shapes}")
    for x in tensors:
        if x.is_neg() or not x.is_contiguous():
            return tuple(x.resolve_neg().contiguous() for x in tensors)
    return tensors


class Census:
    """What became of the values that were rounded to one format.

    Of ``values`` rounded: zero (the result is zero), underflow (a nonzero value became zero),
    subnormal (a nonzero result below the smallest normal), saturated (a finite value beyond the
    largest came out finite), overflow (a finite one came out infinite or NaN), nonfinite (NaN and
    infinities that came in). ``binades`` counts finite nonzero values before rounding by
    floor(log2 |x|), from -150 to 128; ``snr`` is in dB over what is finite on both sides. Block
    formats have no range of their own: nothing is subnormal or saturated there.

    >>> from lptensor import E4M3
    >>> census = Census(E4M3)
    >>> x = torch.tensor([0.0, 1e-5, 0.01, 1.0, 500.0])
    >>> census.add(x, torch.tensor([0.0, 0.0, 0.009765625, 1.0, 448.0]))
    >>> census.row()["underflow"], census.row()["saturated"], census.histogram()
    (0.2, 0.2, {-17: 1, -7: 1, 0: 1, 8: 1})
    """

    def __init__(self, format: Format) -> None:
        check_format(format, torch.float64)
        self.format = format
        self.range = range_of(format)
        self.events = self.values = 0
        self._found = CensusStruct(*self.range)
        self._rounder: Rounder | None = None

    def __getstate__(self) -> dict[str, Any]:  # what a kernel gets has no pickle, and is made again
        return self.__dict__ | {"_rounder": None}

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count one tensor and what it was rounded to; of one shape and dtype, float32 or float64."""
        before, after = alike(before, after)
        if native(before):
            _native_census.census(before, after, self._found)
        else:
            self._add_with_torch(before, after)
        self.events += 1
        self.values += before.numel()

    def ask(self, x: Tensor, rounding: Rounding, generator: torch.Generator | None = None) -> None:
        """Count what rounding a plain tensor would do to it, without making what it would become."""
        if rounds(x, self.format):
            self._round(alike(x)[0], None, rounding, generator)
        else:
            self.add(x, round_fresh(x, self.format, rounding, generator))

    def round(self, x: Tensor, y: Tensor, rounding: Rounding, generator: torch.Generator | None = None) -> bool:
        """Round ``x`` into ``y``, which may be ``x``, and count on the way; whether the compiled loops do that."""
        can = rounds(x, self.format) and x.is_contiguous() and y.is_contiguous() and not x.is_neg() and not y.is_neg()
        if can:
            self._round(x, y, rounding, generator)
        return can

    def _round(self, x: Tensor, y: Tensor | None, rounding: Rounding, generator: torch.Generator | None) -> None:
        if self._rounder is None or not self._rounder.fits(rounding, x.dtype):
            self._rounder = Rounder(self.format.lowered, rounding, x.dtype)
        self.events += 1
        self.values += x.numel()
        self._rounder.round(x, y, draw_key(generator) if rounding.stochastic else None, self._found)

    def _add_with_torch(self, before: Tensor, after: Tensor) -> None:
        """The same in torch, on any device."""
        x, y = exact(before.detach()), exact(after.detach())
        finite, kept = x.isfinite(), y.isfinite()
        outside = torch.where(x < 0, x.abs() > self.range.lowest, x > self.range.highest)
        masks = (
            y == 0,
            (y == 0) & (x != 0) & finite,
            (y != 0) & (y.abs() < self.range.tiny),
            finite & kept & outside,
            finite & ~kept,
            ~finite,
        )
        both = torch.where(finite & kept, x, 0.0), torch.where(finite & kept, x - y, 0.0)
        counts = torch.stack([mask.sum() for mask in masks]).tolist()
        sums = torch.stack([part.square().sum() for part in both]).tolist()
        at = exponent(x[finite & (x != 0)].abs()).clamp(LOWEST, HIGHEST) - LOWEST
        binades = torch.bincount(at.reshape(-1), minlength=HIGHEST - LOWEST + 1).tolist()
        found = CensusStruct(*self.range, *counts)
        found.sums[:], found.binades[:] = sums, binades
        _native_census.join(self._found, found)

    def merge(self, other: Census) -> None:
        """Count what another one counted too."""
        self.events, self.values = self.events + other.events, self.values + other.values
        _native_census.join(self._found, other._found)

    @property
    def snr(self) -> float | None:
        """Signal to noise in dB; infinite where nothing moved, None without a signal."""
        signal, noise = self._found.sums
        if not signal > 0:
            return None
        return math.inf if noise == 0 else 10 * math.log10(signal / noise)

    def histogram(self) -> dict[int, int]:
        """How many values had which exponent before rounding."""
        return {i + LOWEST: count for i, count in enumerate(self._found.binades) if count}

    def row(self) -> dict[str, Any]:
        """Shares of the values, and the rest."""
        shares = {name: getattr(self._found, name) / max(self.values, 1) for name in COUNTS}
        return {"roundings": self.events, "values": self.values, **shares, "snr": self.snr}
