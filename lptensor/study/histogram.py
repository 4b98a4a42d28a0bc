"""How many values have which exponent, beside the exponents that a format has."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lptensor.blocks import BlockFormat
from lptensor.formats import Format
from lptensor.ops import check_format, round as round_to
from lptensor.scaling import check_one_of
from lptensor.study.census import Census
from lptensor.study.format_table import format_table, smallest_magnitude
from lptensor.study.palette import BLACK, BLUE, GREEN, VERMILLION, framed
from lptensor.study.places import numbers_of
from lptensor.study.rows import Rows, drawable

REGIONS = ("underflow", "subnormal", "normal", "overflow")


class Histogram(Rows):
    """Rows of a histogram of exponents: binade (floor(log2 |x|)), count, share (of all values), region.

    The region is where the format has values of that binade, of either sign: "underflow" below the
    smallest, "subnormal", "normal", or "overflow" above the largest; "value" in formats that
    move their range from block to block. It is that of the binade, not of what becomes of each number: just below
    the smallest value they may round up to it, and beyond the largest one in its own binade they overflow;
    ``study.record`` counts what was lost. ``zeros`` counts zeros, NaN and infinities, which have none.

    >>> from lptensor import E4M3
    >>> found = exponent_histogram(torch.tensor([1.0, 1e-9, 0.0, torch.nan]), E4M3)
    >>> found.share("underflow"), found.zeros
    (0.25, 2)
    """

    def __init__(self, census: Census) -> None:
        ends = _ends(census.format)
        counts = census.histogram()
        super().__init__(
            (
                {"binade": e, "count": n, "share": n / census.values, "region": _region(e, ends)}
                for e, n in sorted(counts.items())
            ),
            plot_histogram,
        )
        self.format, self.ends = census.format, ends
        self.zeros = census.values - sum(counts.values())

    def share(self, region: str) -> float:
        """The share of the values in one region; a ValueError for a name that is not one."""
        check_one_of("region", region, (*REGIONS, "value"))
        return float(sum(row["share"] for row in self if row["region"] == region))


def exponent_histogram(x: Tensor, format: Format) -> Histogram:
    """The exponents of the values of ``x``, and where they lie in the range of ``format``.

    Args:
        x: float32 or float64, or an LPTensor; any shape. Zeros, NaN and infinities count as ``zeros``.

    Raises:
        TypeError: x is not such a tensor, or format not a format.

    >>> from lptensor import E4M3
    >>> found = exponent_histogram(torch.tensor([0.0, 1e-4, 0.01, 1.5, 1000.0]), E4M3)
    >>> [(row["binade"], row["region"]) for row in found]
    [(-14, 'underflow'), (-7, 'subnormal'), (0, 'normal'), (9, 'overflow')]
    """
    check_format(format, torch.float64)
    plain = numbers_of(x)
    census = Census(format)
    census.add(plain, round_to(plain, format))
    return Histogram(census)


def _ends(format: Format) -> tuple[float, float, float] | None:
    """The binades of the smallest value, the smallest normal and the largest, of either sign; infinite for none."""
    if isinstance(format, BlockFormat):
        return None
    (row,) = format_table([format])
    lowest, largest = smallest_magnitude(format), max(row["max"], -row["min"])
    if math.isinf(lowest):  # nothing but zero
        return math.inf, math.inf, math.inf
    low, tiny, high = (math.frexp(v)[1] - 1 for v in (lowest, row["smallest_normal"] or lowest, largest))
    return low, tiny, math.inf if math.isinf(largest) else high


def _region(binade: int, ends: tuple[float, float, float] | None) -> str:
    if ends is None:
        return "value"
    low, tiny, high = ends
    return REGIONS[(binade >= low) + (binade >= tiny) + (binade > high)]


_LOOKS = {
    "underflow": (VERMILLION, "//"),
    "subnormal": (GREEN, ".."),
    "normal": (BLUE, ""),
    "value": (BLUE, ""),
    "overflow": (VERMILLION, "xx"),
}


def plot_histogram(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw a histogram of exponents, with the format's range: bars hatched and coloured by region; returns the axes.

    Args:
        rows: of ``exponent_histogram`` or ``Log.histogram()``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> from lptensor import E4M3
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> len(exponent_histogram(torch.ones(3), E4M3).plot(axes).patches)
    1
    """
    rows, ax = drawable(rows, ax, "binade", "share", "region", empty=hasattr(rows, "ends"))
    for region, (colour, hatch) in _LOOKS.items():
        part = [row for row in rows if row["region"] == region]
        if part:
            look = dict(facecolor=colour, hatch=hatch, edgecolor="white", linewidth=0, label=region)
            ax.bar([row["binade"] for row in part], [100 * row["share"] for row in part], width=0.9, **look)
    ends = getattr(rows, "ends", None)
    top = max((100 * row["share"] for row in rows), default=1.0)
    named = zip(ends or (), ("smallest value", "smallest normal", "largest"), strict=False)
    for end, name in ((end, name) for end, name in named if math.isfinite(end)):
        edge = end + 0.5 if name == "largest" else end - 0.5
        ax.axvline(edge, color=BLACK, linewidth=0.8, linestyle=":" if name == "smallest normal" else "--")
        side = "right" if name == "largest" else "left"
        ax.annotate(name, (edge, top * 1.02), rotation=90, fontsize=7, ha=side, va="bottom", annotation_clip=False)
    ax.set_xlabel("exponent, floor(log2 |x|)")
    ax.set_ylabel("share of values (%)")
    return framed(ax)
