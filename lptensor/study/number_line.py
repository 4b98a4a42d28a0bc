"""The values of a format in a row: which code each has, and how far it is to the next."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lptensor.base import check_bool, check_number
from lptensor.codes import decode, encode
from lptensor.formats import Format
from lptensor.ops import round as round_to
from lptensor.study.format_table import element_of, format_table
from lptensor.study.palette import BLACK, BLUE, GREEN, VERMILLION
from lptensor.study.rows import Rows, drawable

_LISTED_BITS = 16  # wider formats show a part
_MOST_ROWS = 2**20


def number_line(format: Format, lo: float | None = None, hi: float | None = None) -> Rows:
    """The finite values of a format from ``lo`` to ``hi``, ascending, zero once: a row of plain values each.

    code (a whole number from 0, that of +0 for zero), value, gap (to the next row's value, None in the
    last row), kind ("zero", "subnormal", "normal"; "value" in formats without that distinction), beyond
    (at the largest and most negative value the format's overflow: "inf", "saturate", "propagate" or "nan"; else None).
    A block format shows its elements before they are scaled.

    Args:
        format: any with limits; one wider than 16 bits needs both ends.
        lo, hi: both ends belong to the line; by default those of the format.

    Raises:
        ValueError: a format of more than 16 bits without both ends, or with more than 2**20 values
            between them; ends that are NaN.
        TypeError: no format, or ends that are not numbers.

    >>> from lptensor import E2M1, FP32
    >>> [row["value"] for row in number_line(E2M1, lo=0)]
    [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    >>> [row["gap"] == 2.0**-23 for row in number_line(FP32, 1, 1 + 2**-22)]
    [True, True, False]
    """
    element: Any = element_of(format)
    lo, hi = (None if end is None else check_number("an end of a number line", end) for end in (lo, hi))
    if any(end != end for end in (lo, hi)):
        raise ValueError("the ends of a number line are numbers, got NaN")
    (limits,) = format_table({"": format})
    if element.bits <= _LISTED_BITS:
        values = element.values()
        values = values[(values >= (-math.inf if lo is None else lo)) & (values <= (math.inf if hi is None else hi))]
    elif lo is None or hi is None:
        raise ValueError(f"{format!r} has 2**{element.bits} codes; give both lo= and hi= to see a part of them")
    else:
        values = _between(element, lo, hi, limits["smallest_subnormal"])
    codes, numbers = encode(values, element).long() & (1 << element.bits) - 1, values.tolist()
    # Without a sign there is one end; but values may all be negative.
    ends = {limits["max"], min(limits["min"], -(limits["smallest_subnormal"] or 0.0))}
    found = [
        {
            "code": code,
            "value": value,
            "gap": None if after is None else after - value,
            "kind": _kind(value, limits["smallest_normal"]),
            "beyond": limits["overflow"] if value in ends else None,
        }
        for code, value, after in zip(codes.tolist(), numbers, [*numbers, None][1:], strict=True)
    ]
    return Rows(found, plot_number_line)


def _between(format: Any, lo: float, hi: float, smallest: float) -> Tensor:
    """The values of a wide format from lo to hi, through its codes: those of one sign are consecutive."""
    found = [torch.zeros(int(lo <= 0 <= hi), dtype=torch.float64)]
    for side in ((lo, min(hi, -smallest)), (max(lo, smallest), hi)):
        ends = torch.tensor(side, dtype=torch.float64).clamp(format.min, format.max)
        inner = torch.cat([round_to(ends[:1], format, "up"), round_to(ends[1:], format, "down")])
        there = side[0] <= format.max and side[1] >= format.min
        if there and side[0] <= side[1] and inner[0] <= inner[1]:
            first, last = sorted((encode(inner, format).long() & (1 << format.bits) - 1).tolist())
            if last - first >= _MOST_ROWS:
                raise ValueError(
                    f"{format!r} has {last - first + 1} values from {side[0]:g} to {side[1]:g}; take a part"
                )
            found.append(decode(torch.arange(first, last + 1), format).double())
    ascending: Tensor = torch.unique(torch.cat(found))
    return ascending


def _kind(value: float, smallest_normal: float | None) -> str:
    if value == 0:
        return "zero"
    if smallest_normal is None:
        return "value"
    return "normal" if abs(value) >= smallest_normal else "subnormal"


# Of each kind: the tick's ends, colour and width; subnormals hang below the line, so that form tells them too.
_TICKS = {
    "normal": (0.0, 1.0, BLUE, 1.0),
    "value": (0.0, 1.0, BLUE, 1.0),
    "subnormal": (-0.6, 0.0, VERMILLION, 1.0),
}
# What is drawn at an end, to the left and to the right, and what it says.
_ENDS = {
    "saturate": ("s", "s", "saturates beyond"),
    "propagate": ("s", "s", "saturates beyond, save infinities"),
    "inf": ("<", ">", "infinity beyond"),
    "nan": ("x", "x", "NaN beyond"),
}


def plot_number_line(rows: Iterable[dict[str, Any]], ax: Any = None, log: bool = False) -> Any:
    """Draw the rows of ``number_line`` as ticks on an axis; returns the axes.

    Normals are blue and stand on the line, subnormals are orange and hang below it, zero is a circle. At
    the ends a square says that the format saturates, a triangle that infinity follows, a cross NaN.

    Args:
        rows: of ``number_line``.
        ax: matplotlib axes; by default pyplot's current ones.
        log: the positive values alone, on a log2 axis.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows, or none that is positive on a log2 axis.

    >>> from lptensor import E2M1
    >>> from matplotlib.figure import Figure
    >>> axes = Figure().subplots()
    >>> plot_number_line(number_line(E2M1), axes) is axes
    True
    """
    rows, ax = drawable(rows, ax, "value", "kind", "beyond")
    rows = [row for row in rows if row["value"] > 0] if check_bool("log", log) else rows
    if not rows:
        raise ValueError("a number line on a log2 axis needs at least one value above zero")
    low, high = rows[0]["value"], rows[-1]["value"]
    if log:
        first, last = math.frexp(low)[1] - 1, math.frexp(high)[1]
        step = 2 ** math.ceil(math.log2(max(last - first, 9) / 9))
        powers = range(-(-first // step) * step, last + 1, step)
        ax.set_xscale("log", base=2)
        ax.set_xticks([2.0**k for k in powers], labels=[f"$2^{{{k}}}$" for k in powers])
        ax.minorticks_off()
    ax.plot([low, high], [0, 0], color=BLACK, linewidth=0.6, zorder=1)
    for kind, (bottom, top, colour, width) in _TICKS.items():
        at = [row["value"] for row in rows if row["kind"] == kind]
        if at:
            x, y = [x for v in at for x in (v, v, math.nan)], [bottom, top, math.nan] * len(at)
            ax.plot(x, y, color=colour, linewidth=width, label=kind + "s", zorder=2)  # one path: a small file
    if any(row["kind"] == "zero" for row in rows):
        look = dict(markerfacecolor="white", markeredgecolor=BLACK, markersize=5, linestyle="", zorder=3)
        ax.plot([0], [0], marker="o", label="zero", **look)
    labelled = set()
    for row in rows:
        if row["beyond"]:
            left, right, says = _ENDS[row["beyond"]]
            look = dict(marker=right if row["value"] > 0 else left, color=GREEN, markersize=6, linestyle="")
            ax.plot([row["value"]], [1.45], label=None if says in labelled else says, clip_on=False, **look)
            labelled.add(says)
    ax.set_ylim(-0.9, 1.7)
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=2)
    return ax
