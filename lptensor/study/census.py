"""Counts what roundings did to values: one pass over each tensor, and nothing kept but the counts."""

from __future__ import annotations

import ctypes
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lptensor import _native
from lptensor._bits import exact, exponent
from lptensor.blocks import BlockFormat
from lptensor.formats import Format, ScalarFormat

LOWEST, HIGHEST = -150, 128  # binades, as in csrc/census.cpp
_SHARES = ("zero", "underflow", "subnormal", "saturated", "overflow", "nonfinite")
_Counts, _Sums = ctypes.c_int64 * len(_SHARES), ctypes.c_double * 2
_Binades = ctypes.c_int64 * (HIGHEST - LOWEST + 1)


class Range(NamedTuple):
    """Where a format ends: the largest value, minus the smallest, the smallest normal (0 without one)."""

    highest: float
    lowest: float
    tiny: float


def range_of(format: Format) -> Range:
    """The ends of a format; a block format moves its own with each block, and has none.

    >>> from lptensor.formats import E4M3
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


class Census:
    """What became of the values that were rounded to one format.

    Of ``values`` rounded: zero (the result is zero), underflow (a nonzero value became zero),
    subnormal (a nonzero result below the smallest normal), saturated (a finite value beyond the
    largest came out finite), overflow (a finite one came out infinite or NaN), nonfinite (NaN and
    infinities that came in). ``binades`` counts finite nonzero values before rounding by
    floor(log2 |x|), from -150 to 128; ``snr`` is in dB over what is finite on both sides. Block
    formats have no range of their own: nothing is subnormal or saturated there.

    >>> from lptensor.formats import E4M3
    >>> census = Census(E4M3)
    >>> x = torch.tensor([0.0, 1e-5, 0.01, 1.0, 500.0])
    >>> census.add(x, torch.tensor([0.0, 0.0, 0.009765625, 1.0, 448.0]))
    >>> census.row()["underflow"], census.row()["saturated"], census.histogram()
    (0.2, 0.2, {-17: 1, -7: 1, 0: 1, 8: 1})
    """

    def __init__(self, format: Format) -> None:
        self.format = format
        self.range = range_of(format)
        self.events = self.values = 0
        self._limits = (ctypes.c_double * 3)(*self.range)
        self._counts, self._sums, self._binades = _Counts(), _Sums(), _Binades()

    def add(self, before: Tensor, after: Tensor) -> None:
        """Count one tensor and what it was rounded to; of one shape and dtype, float32 or float64."""
        self.events += 1
        self.values += before.numel()
        if before.device.type == "cpu" and _native.library() is not None:
            if before.stride() != after.stride() or not before.is_contiguous():
                before, after = before.contiguous(), after.contiguous()
            if before.is_neg() or after.is_neg():
                before, after = before.resolve_neg(), after.resolve_neg()
            _native.census(before, after, self._limits, self._counts, self._sums, self._binades)
        else:
            self._add_with_torch(before, after)

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
        for i, count in enumerate(torch.stack([mask.sum() for mask in masks]).tolist()):
            self._counts[i] += count
        both = torch.where(finite & kept, x, 0.0), torch.where(finite & kept, x - y, 0.0)
        for i, total in enumerate(torch.stack([part.square().sum() for part in both]).tolist()):
            self._sums[i] += total
        at = exponent(x[finite & (x != 0)].abs()).clamp(LOWEST, HIGHEST) - LOWEST
        found = torch.bincount(at.reshape(-1), minlength=HIGHEST - LOWEST + 1)
        for i in found.nonzero().flatten().tolist():
            self._binades[i] += int(found[i])

    def merge(self, other: Census) -> None:
        """Count what another one counted too."""
        self.events, self.values = self.events + other.events, self.values + other.values
        for mine, more in (
            (self._counts, other._counts),
            (self._sums, other._sums),
            (self._binades, other._binades),
        ):
            for i, count in enumerate(more):
                mine[i] += count

    @property
    def snr(self) -> float | None:
        """Signal to noise in dB; infinite where nothing moved, None without a signal."""
        signal, noise = self._sums
        if not signal > 0:
            return None
        return math.inf if noise == 0 else 10 * math.log10(signal / noise)

    def histogram(self) -> dict[int, int]:
        """How many values had which exponent before rounding."""
        return {i + LOWEST: count for i, count in enumerate(self._binades) if count}

    def row(self) -> dict[str, Any]:
        """Shares of the values, and the rest."""
        shares = {name: count / max(self.values, 1) for name, count in zip(_SHARES, self._counts, strict=True)}
        return {"roundings": self.events, "values": self.values, **shares, "snr": self.snr}
