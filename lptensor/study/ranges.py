"""The ranges of formats beside each other."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lptensor.study.palette import BLUE, GREEN, framed
from lptensor.study.rows import drawable


def plot_ranges(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw the rows of ``format_table``: a bar from the smallest to the largest positive value, on a log2 axis.

    The part below the smallest normal is thinner and green. Returns the axes.

    Args:
        rows: of ``format_table``.
        ax: matplotlib axes; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> row = {"name": "E4M3", "smallest_subnormal": 2.0**-9, "smallest_normal": 2.0**-6, "max": 448.0}
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> [round(float(bar.get_width()), 1) for bar in plot_ranges([row], axes).patches]
    [14.8, 3.0]
    """
    rows, ax = drawable(rows, ax, "name", "max", "smallest_normal", "smallest_subnormal")
    for i, row in enumerate(rows):
        if row["smallest_subnormal"] is None:  # a codebook without positive values
            continue
        low = math.log2(row["smallest_subnormal"])
        # Without a limit values go as far as fp32's; FixedPoint(1, fl) has none above zero.
        high = math.log2(max(min(row["max"], 2.0**128), row["smallest_subnormal"]))
        normal = low if row["smallest_normal"] is None else math.log2(row["smallest_normal"])
        ax.barh(i, high - normal, left=normal, height=0.6, color=BLUE)
        if normal > low:
            ax.barh(i, normal - low, left=low, height=0.3, color=GREEN)
    ax.set_yticks(range(len(rows)), labels=[row["name"] for row in rows])
    ax.invert_yaxis()
    ax.set_xlabel("log2 of positive values (thin: subnormal)")
    return framed(ax, grid="x")
