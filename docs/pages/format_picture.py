"""One picture for one format: its bits above its number line."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lptensor.extra import need
from lptensor.formats import Format
from lptensor.hifloat import HiFloat8
from lptensor.ops import round as round_to
from lptensor.posits import Posit
from lptensor.study.bit_layout import bit_layout, plot_bit_layout
from lptensor.study.format_table import element_of, format_table, shown
from lptensor.study.number_line import number_line, plot_number_line

_WIDTH = 7.2  # inches
_BITS, _LINE = 1.05, 0.8  # heights of a row of bits and of a number line
_LISTED_BITS = 8  # of wider formats the line shows binades, and what lies around 1
_LINEAR_BINADES = 40  # of a wider range a linear axis shows nothing but its ends
_FEW_BINADES = 8  # that a linear axis shows well, if there are few values
_EXAMPLE = 0.75
_TAPERED = {Posit: (0.75, 100.0, 2.0**-12), HiFloat8: (0.75, 100.0, 2.0**-12, 2.0**-20)}  # how the fields move


def save_picture(format: Format, path: Path) -> None:
    """Draw a format's bits and number lines into an SVG (or what the suffix says) of a few kilobytes.

    Formats of up to 8 bits have every value, on a linear axis, a log2 one, or both, as their range asks.
    Wider ones have their powers of two, and the values next to 1.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    rows = [*_bit_rows(format), *_line_rows(format)]
    matplotlib = need("matplotlib")
    same = {"svg.hashsalt": "lptensor", "svg.fonttype": "none", "path.simplify": False, "font.size": 8}
    same |= {"font.sans-serif": ["DejaVu Sans"], "font.monospace": ["DejaVu Sans Mono"]}  # they come with matplotlib
    with matplotlib.rc_context(same):  # the same bytes every time, and text that one can search
        heights = [height for height, _ in rows]
        figure = need("matplotlib.figure").Figure(figsize=(_WIDTH, sum(heights) + 0.35), layout="constrained")
        axes = figure.subplots(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
        for ax, (_, draw) in zip(axes, rows, strict=True):
            draw(ax)
        legend: dict[str, Any] = {}
        for ax in axes:
            handles, labels = ax.get_legend_handles_labels()
            legend |= dict(zip(labels, handles, strict=True))
        figure.legend(legend.values(), legend.keys(), loc="outside lower left", ncols=6, frameon=False)
        if path.suffix != ".svg":
            figure.savefig(path)
            return
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    path.write_text(re.sub(r"<[^>]*>", _trimmed, text.getvalue()), encoding="utf-8")


def _trimmed(tag: re.Match[str]) -> str:
    """An SVG tag with two decimals to a coordinate, and no blanks at the ends of its lines."""
    return re.sub(r"(\.\d\d)\d+| +$", r"\1", tag[0], flags=re.MULTILINE)


Row = tuple[float, Callable[[Any], None]]


def _bit_rows(format: Format) -> list[Row]:
    values = _TAPERED.get(type(format), (_EXAMPLE,))
    return [(_BITS, _bits_of(format, value)) for value in values]


def _bits_of(format: Format, value: float) -> Callable[[Any], None]:
    def draw(ax: Any) -> None:
        plot_bit_layout(bit_layout(format, value), ax)
        stands = round_to(torch.tensor([value], dtype=torch.float64), element_of(format)).item()
        end = max(patch.get_x() + patch.get_width() for patch in ax.patches)
        ax.text(end + 0.3, 0.48, f"= {shown(stands)}", ha="left", va="center", fontsize=9)
        ax.set_xlim(right=max(ax.get_xlim()[1], end + 2.5))

    return draw


def _line_rows(format: Format) -> list[Row]:
    element: Any = element_of(format)
    (limits,) = format_table([format])
    if element.bits > _LISTED_BITS:
        zoom = number_line(format, 1 - 4 * limits["eps"], 1 + 8 * limits["eps"])
        steps = {1 + k * limits["eps"]: f"1 {'-' if k < 0 else '+'} {abs(k)} eps" if k else "1" for k in (-4, 0, 4, 8)}
        return [
            (_LINE, _line(binades(format), "powers of two, log2 axis", log=True)),
            (_LINE, _line(zoom, "the values next to 1", ticks=steps)),
        ]
    rows = number_line(format)
    even = len({row["gap"] for row in rows[:-1]}) == 1
    wide = limits["binades"] or 0.0
    lines = [(_LINE, _line(rows, "all values"))] if wide <= _LINEAR_BINADES else []
    if limits["max"] > 0 and not even and (element.bits > 4 or wide > _FEW_BINADES):
        lines.append((_LINE, _line(rows, "positive values, log2 axis", log=True)))
    return lines


def _line(
    rows: Sequence[dict[str, Any]], title: str, log: bool = False, ticks: dict[float, str] | None = None
) -> Callable[[Any], None]:
    def draw(ax: Any) -> None:
        plot_number_line(rows, ax, log=log)
        if ticks:
            ax.set_xticks(list(ticks), labels=list(ticks.values()))
        ax.set_title(title, loc="left", fontsize=8)

    return draw


def binades(format: Format) -> list[dict[str, Any]]:
    """The powers of two among a format's positive values, and its largest value, as rows of ``number_line``.

    >>> from lptensor import FP32
    >>> rows = binades(FP32)
    >>> len(rows), rows[0]["value"] == 2.0**-149, rows[0]["kind"], rows[-1]["beyond"]
    (278, True, 'subnormal', 'inf')
    """
    (limits,) = format_table([format])
    top = limits["max"]
    if limits["bits"] <= 16:
        return [row for row in number_line(format, 0) if math.frexp(row["value"])[0] == 0.5 or row["value"] == top]
    low, high = (math.frexp(limits[key])[1] for key in ("smallest_subnormal", "max"))
    ends = [*(2.0**e for e in range(low - 1, high)), top]
    return [row for end in dict.fromkeys(ends) for row in number_line(format, end, end)]
