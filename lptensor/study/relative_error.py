"""How far rounding moves a number, all over the range of a format."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lptensor.base import check_int
from lptensor.blocks import BlockFormat
from lptensor.formats import Format, ScalarFormat
from lptensor.neighbours import ulp
from lptensor.ops import round as round_to
from lptensor.rounding import Mode, Rounding
from lptensor.study.format_table import format_table, smallest_magnitude
from lptensor.study.palette import BLUE, GREEN, VERMILLION, framed
from lptensor.study.places import numbers_of
from lptensor.study.rows import Rows, drawable


def relative_error(
    format: Format,
    x: Tensor | None = None,
    rounding: Rounding | Mode | str = "nearest",
    count: int = 2000,
) -> Rows:
    """|round(x) - x| / |x| over the range of a format: a row for each x.

    x, rounded, relative, ulps (|round(x) - x| in units in the last place; None in formats whose last place
    moves: posits and codebooks), region ("underflow" where x became zero, "subnormal", "normal",
    "overflow" beyond the largest or the most negative value; zeros, NaN and infinities are left out).

    Args:
        x: float64 (or float32) numbers; by default ``count`` of them, evenly spaced in log2, from a quarter
            of the smallest value to four times the largest (without a limit, to what the bits would hold);
            negative ones if the format has no positive value.

    Raises:
        TypeError: no format, a block format, whose range moves: ask its element, or x that is not a dense tensor of
            real numbers.
        ValueError: no x for a format of nothing but zero, a count below 1.

    >>> from lptensor import E4M3
    >>> rows = relative_error(E4M3, torch.tensor([1.0625, 3 * 2.0**-12]))
    >>> [(row["rounded"], row["ulps"], row["region"]) for row in rows]
    [(1.0, 0.5, 'normal'), (0.0, 0.375, 'underflow')]
    """
    if isinstance(format, BlockFormat):
        raise TypeError(f"the range of {format!r} moves with each block; ask its element")
    (ends,) = format_table([format])
    count = check_int("count", count, 1, 2**31 - 1)
    if x is None:
        most = max(ends["max"], -ends["min"])
        most = 2.0 ** (ends["emax"] + 1) if math.isinf(most) else most
        smallest = smallest_magnitude(format)
        if math.isinf(smallest):
            raise ValueError(f"{format!r} has no value but zero; say at which x=")
        low, high = math.log2(smallest) - 2, math.log2(most) + 2
        x = torch.linspace(low, high, count, dtype=torch.float64, device="cpu").exp2() * (1 if ends["max"] > 0 else -1)
    x = numbers_of(x).flatten().double()
    x = x[(x != 0) & x.isfinite()]
    y = round_to(x, format, rounding)
    gap = (y - x).abs()
    units = (gap / ulp(x, format)).tolist() if isinstance(format, ScalarFormat) else [None] * len(x)
    tiny = ends["smallest_normal"] or 0.0
    rows = [
        {
            "x": a,
            "rounded": b,
            "relative": g / abs(a),
            "ulps": u,
            "region": "overflow"
            if a > max(ends["max"], 0.0) or a < min(ends["min"], 0.0)
            else "underflow"
            if b == 0
            else "normal"
            if abs(a) >= tiny
            else "subnormal",
        }
        for a, b, g, u in zip(x.tolist(), y.tolist(), gap.tolist(), units, strict=True)
    ]
    return Rows(rows, plot_relative_error)


_COLOURS = {"underflow": VERMILLION, "subnormal": GREEN, "normal": BLUE, "overflow": VERMILLION}
_STYLES = {"underflow": ":", "subnormal": "--", "normal": "-", "overflow": "-."}


def plot_relative_error(rows: Iterable[dict[str, Any]], ax: Any = None, label: str | None = None) -> Any:
    """Draw relative errors over x, both on log2 axes; regions differ in colour and line; returns the axes.

    Args:
        rows: of ``relative_error``.
        ax: matplotlib axes; by default pyplot's current ones.
        label: a title.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows, or none with an error above zero.

    >>> from lptensor import E4M3
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> len(relative_error(E4M3).plot(axes).lines)  # one for each region
    4
    """
    rows, ax = drawable(rows, ax, "x", "relative", "region")
    if not any(0 < row["relative"] < math.inf for row in rows):
        raise ValueError("no row has an error that a logarithmic axis shows: all are zero or infinite")
    said = set()
    start = 0
    for i in range(1, len(rows) + 1):  # one line for each run of a region
        if i == len(rows) or rows[i]["region"] != rows[start]["region"]:
            run, region = rows[start:i], rows[start]["region"]
            values = [row["relative"] if 0 < row["relative"] < math.inf else math.nan for row in run]
            look = dict(color=_COLOURS[region], linestyle=_STYLES[region], linewidth=0.9)
            look |= {"marker": "."} if len(run) == 1 else {}  # a line of one point cannot be seen
            ax.plot([abs(row["x"]) for row in run], values, label=None if region in said else region, **look)
            said.add(region)
            start = i
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    ax.set_xlabel("x")
    ax.set_ylabel("relative error")
    if label is not None:
        ax.set_title(label, loc="left", fontsize=9)
    return framed(ax, grid="both", loc="lower left")
