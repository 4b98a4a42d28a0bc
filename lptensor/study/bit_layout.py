"""The bits of a format's codes: which field each belongs to, as pictures in textbooks show them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from lptensor.base import check_number
from lptensor.blocks import BlockFormat
from lptensor.codes import encode
from lptensor.extra import need
from lptensor.formats import Format, ScalarFormat
from lptensor.hifloat import HiFloat8, fields as hifloat_fields
from lptensor.posits import Posit
from lptensor.study.format_table import element_of
from lptensor.study.palette import BLACK
from lptensor.study.rows import Rows, drawable


def bit_layout(format: Format, value: float = 1.0) -> Rows:
    """The fields of the code of ``value``, rounded to nearest, from the highest bit down.

    field ("sign", "exponent", "mantissa"; "magnitude", "integer", "fraction", "regime", "dot", "index"), bits
    (its width), code (its bits as text) and shared. A block format's elements come after the scale of
    their block, and its zero point, rows with ``shared`` True and no code; a width is None where nothing bounds it.
    The fields of posits and of HiF8 depend on the value, those of other formats do not; fields of no bits
    are left out.

    Args:
        format: any.
        value: a number; what becomes of infinities, -0 and overflow is the format's to say.

    Raises:
        ValueError: NaN, in a format without a code for it.
        TypeError: no format, or no number.

    >>> from lptensor import E4M3
    >>> [(row["field"], row["bits"], row["code"]) for row in bit_layout(E4M3, 0.75)]
    [('sign', 1, '0'), ('exponent', 4, '0110'), ('mantissa', 3, '100')]
    """
    element: Any = element_of(format)
    number = (
        encode(torch.tensor([check_number("value", value)], dtype=torch.float64), element).long().item()
        & (1 << element.bits) - 1
    )
    code, rows = f"{number:0{element.bits}b}", _scale(format)
    for field, bits in _fields(element, code):
        if bits:
            rows.append({"field": field, "bits": bits, "code": code[:bits], "shared": False})
        code = code[bits:]
    return Rows(rows, plot_bit_layout)


def _scale(format: Format) -> list[dict[str, Any]]:
    if not isinstance(format, BlockFormat):
        return []
    scale = format.scale
    name = "shared exponent" if scale is None or scale.grid.precision == 1 else "shared scale"
    shared = [(name, None if scale is None else scale.bits)]
    if format.offset is not None:
        shared.append(("zero point" if format.has(0.0) else "smallest value", format.offset.bits))
    return [{"field": field, "bits": bits, "code": None, "shared": True} for field, bits in shared]


def _fields(format: Any, code: str) -> list[tuple[str, int]]:
    """Names and widths; a width may be 0."""
    if isinstance(format, Posit):
        return _posit_fields(format, code)
    if isinstance(format, HiFloat8):
        return hifloat_fields(code)
    if not isinstance(format, ScalarFormat):
        return [("index", format.bits)]
    grid, sign = format.grid, int(format.grid.signed)
    if format.layout.twos_complement:
        magnitude = format.bits - sign
        fraction = min(max(-grid.quantum(grid.emin), 0), magnitude)
        return [("sign", sign), ("integer", magnitude - fraction), ("fraction", fraction)]
    if grid.emin == grid.emax:
        return [("sign", sign), ("magnitude", format.bits - sign)]
    mantissa = grid.precision - 1
    return [("sign", sign), ("exponent", format.bits - sign - mantissa), ("mantissa", mantissa)]


def _posit_fields(format: Posit, code: str) -> list[tuple[str, int]]:
    """Standard for Posit Arithmetic (2022), section 3.3: the regime is a run of equal bits and the bit that ends it.

    Of a negative posit the fields are those of its two's complement; 0 and NaR have a regime alone.
    """
    if code[0] == "1":
        code = f"{-int(code, 2) % 2**format.bits:0{format.bits}b}"
    body = code[1:]
    regime = min(len(body) - len(body.lstrip(body[0])) + 1, len(body))
    exponent = min(format.es, len(body) - regime)
    return [("sign", 1), ("regime", regime), ("exponent", exponent), ("fraction", len(body) - regime - exponent)]


# Tints of the palette that black digits stand on; a field is named in words as well.
_TINTS = {
    "sign": "#F6C9A8",
    "exponent": "#A9DCC9",
    "regime": "#F3D9A0",
    "dot": "#F3D9A0",
    "mantissa": "#A8CCE6",
    "fraction": "#A8CCE6",
    "magnitude": "#A8CCE6",
    "integer": "#A9DCC9",
    "index": "#A8CCE6",
    "shared exponent": "#E6C3D6",
    "shared scale": "#E6C3D6",
}
_WIDEST = 16  # boxes that fill the axes; wider formats have narrower ones


def plot_bit_layout(rows: Iterable[dict[str, Any]], ax: Any = None) -> Any:
    """Draw the rows of ``bit_layout``: a box for each bit, named and coloured by field; returns the axes.

    Args:
        rows: of ``bit_layout``.
        ax: matplotlib axes, about ten times as wide as high; by default pyplot's current ones.

    Raises:
        MissingExtra: matplotlib is not installed.
        TypeError: rows without the columns it shows, or no axes.
        ValueError: no rows.

    >>> from lptensor import E4M3
    >>> axes = need("matplotlib.figure").Figure().subplots()
    >>> len(plot_bit_layout(bit_layout(E4M3), axes).patches)
    8
    """
    rows, ax = drawable(rows, ax, "field", "bits", "code", "shared")
    box = need("matplotlib.patches").Rectangle
    at = 0.0
    for row in rows:
        bits = row["bits"]
        for i, digit in enumerate(row["code"] or " " * (bits or 4)):
            whole = bits is None and 4  # nothing bounds it: one box without divisions
            if not whole or i == 0:
                look = dict(facecolor=_TINTS[row["field"]], edgecolor=BLACK, linewidth=0.8)
                ax.add_patch(box((at + i, 0), whole or 1, 1, **look))
            ax.text(at + i + 0.5, 0.48, digit, ha="center", va="center", fontsize=9, family="monospace")
        width = bits or 4
        count = "" if bits is None else f"{bits} bit" + "s" * (bits > 1)
        ax.text(at + width / 2, 1.15, row["field"], ha="center", va="bottom", fontsize=7.5)
        ax.text(at + width / 2, -0.15, count, ha="center", va="top", fontsize=7.5)
        at += width + 0.6 * row["shared"]
    ax.set_xlim(-0.1, max(at, _WIDEST) + 0.1)
    ax.set_ylim(-0.65, 1.65)
    ax.set_aspect("equal", anchor="W")
    ax.set_axis_off()
    return ax
