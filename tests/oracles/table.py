"""The same answers as ``exact`` for many values at once: a search in the list of all magnitudes.

Every magnitude, midpoint and input is a float64 without error, so comparisons are exact.
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray

from oracles.exact import Float

Array = NDArray[np.float64]


@functools.cache
def table_of(values: Float) -> Table:
    """The table of a format, made once."""
    return Table(values)


class Table:
    """All magnitudes of a small float format, and the one that would follow the largest."""

    def __init__(self, values: Float) -> None:
        codes = values.codes()
        self.values = values
        self.magnitudes = np.array([float(m) for m in values.magnitudes()])
        self.ladder = np.append(self.magnitudes, float(values.magnitude(values.top + 1)))
        odd = [code % 2 == 1 if values.man else code > 0 or not values.zero for code in codes]
        self.odd = np.array([*odd, False])
        self.middles = np.append((self.ladder[:-1] + self.ladder[1:]) / 2, np.inf)

    def round(self, x: Array, mode: str) -> Array:
        """x (float64, any values) rounded, in any of the deterministic modes."""
        v, a, negative = self.values, np.abs(x), np.signbit(x)
        at = np.searchsorted(self.ladder, np.where(np.isnan(a), 0, a), side="right") - 1
        smallest = at < 0  # only without zero
        at = np.maximum(at, 0)
        low, middle, odd = self.ladder[at], self.middles[at], self.odd[at]
        last = at == len(self.ladder) - 1
        high = np.where(last, np.inf, self.ladder[np.minimum(at + 1, len(self.ladder) - 1)])
        hole = (low == 0) & (v.subnormals is not True)
        up = {
            "nearest": (a > middle) | (a == middle) & (odd | hole),
            "nearest_away": a >= middle,
            "nearest_up": (a > middle) | (a == middle) & ~negative,
            "toward_zero": np.zeros_like(odd),
            "down": negative,
            "up": ~negative,
            "odd": ~odd,
        }[mode]
        r = np.where(up & (a > low) & ~smallest, high, low)
        if v.subnormals == "flush":
            r = np.where(hole, 0.0, r)
        inward = {"toward_zero": True, "odd": True, "up": negative, "down": ~negative}.get(mode, False)
        largest = self.magnitudes[-1]
        beyond = {"inf": np.inf, "nan": np.nan, "saturate": largest, "propagate": largest}[v.overflow]
        r = np.where(r > largest, np.where(inward & np.isfinite(a), largest, beyond), r)
        r = np.where(np.isinf(a) & (v.overflow == "propagate"), np.inf, r)
        r = np.where(np.isnan(x) | (a == 0 if not v.zero else False), np.nan, r)
        if not v.signed:
            saturates = v.overflow in ("saturate", "propagate")
            return np.where(negative & (a > 0), self.ladder[0] if saturates else np.nan, r)
        return np.where(negative & ((r != 0) | v.negative_zero), -r, r)

    def points(self, dtype: type = np.float32) -> NDArray[np.floating]:
        """Every value, every midpoint, their neighbours in the carrier, and the ends of the carrier."""
        info = np.finfo(dtype)
        marks = np.concatenate([self.ladder, self.middles[:-1], [self.ladder[-1] * 1.5, self.ladder[-1] * 2]])
        marks = marks[marks <= float(info.max)].astype(dtype)
        beside = [np.nextafter(marks, dtype(end)) for end in (-np.inf, np.inf)]
        ends = np.array([0, info.smallest_subnormal, info.tiny, info.max, np.inf, np.nan], dtype)
        points = np.unique(np.concatenate([marks, *beside, ends]))
        return np.concatenate([points, -points])
