"""What every known format holds, as rows of plain values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from lptensor import codebooks, posits
from lptensor.base import wrong_format
from lptensor.blocks import BlockFormat
from lptensor.codebooks import TableFormat
from lptensor.finfo import finfo
from lptensor.formats import Format, ScalarFormat
from lptensor.grid import Subnormals
from lptensor.names import ROWS, named_formats
from lptensor.study.ranges import plot_ranges
from lptensor.study.rows import Rows

_MAIN = ("name", "bits", "precision", "max", "smallest_normal", "smallest_subnormal")


def format_table(formats: Mapping[str, Format] | Iterable[Format] | Format | None = None) -> Rows:
    """What each format holds: one row of plain values, None where a format has no such thing.

    name, kind, made (what makes the format), bits (of a code; of an element, in a block format),
    precision (significant bits, the hidden one included), emin and emax (log2 of the smallest normal
    and of the largest value's binade), max, min, smallest_normal (None where there are no normals),
    smallest_subnormal (the smallest positive value), eps (from 1 to the next value), codes, values
    (finite ones, zero once), binades and decibels (of max / smallest positive value), specials (what
    has a code beyond plain numbers, and which numbers have none), overflow, source
    (of a row; else of the kind, where all of it has one).
    A block format's numbers are those of its elements before they are scaled.

    Args:
        formats: some formats, or a dict from the names to show; by default all that have a name.

    Raises:
        TypeError: something that is not a format.
        ValueError: no formats.

    >>> from lptensor import FP16
    >>> (row,) = format_table([FP16])
    >>> row["name"], row["precision"], row["max"], row["smallest_subnormal"] == 2.0**-24, row["values"]
    ('FP16', 11, 65504.0, True, 63487)
    """
    named = by_name(named_formats() if formats is None else formats)
    return Rows((_row(name, format) for name, format in named.items()), plot_ranges, _MAIN)


def by_name(formats: Mapping[str, Format] | Iterable[Format] | Format) -> Mapping[str, Format]:
    """Some formats, or one, by the names to show.

    Raises:
        TypeError: something that is not a format.
        ValueError: none.

    >>> from lptensor import FP16
    >>> list(by_name(FP16)), list(by_name({"half": FP16}))
    (['FP16'], ['half'])
    """
    given = formats if isinstance(formats, Iterable) and not isinstance(formats, str) else [formats]
    named = given if isinstance(given, Mapping) else {repr(format): format for format in given}
    if not named:
        raise ValueError(f"expected at least one format, got {formats!r}")
    for format in named.values():
        if not isinstance(format, Format):
            raise wrong_format(format)
    return named


def element_of(format: Format) -> Format:
    """What a format's single numbers are: the elements of a block format before they are scaled.

    >>> from lptensor import BlockFloatingPoint
    >>> element_of(BlockFloatingPoint(8)).max
    1.984375
    """
    return format.element if isinstance(format, BlockFormat) else format


def _row(name: str, format: Format) -> dict[str, Any]:
    element, named = element_of(format), ROWS.get(name)
    row = {"name": name, "kind": format.kind or type(format).__name__, "made": _made(format)}
    row |= _of_numbers(element)
    if isinstance(format, BlockFormat):
        row["overflow"] = "saturate"
    return row | {"source": named.source if named and named.format == format else format.kind_source}


def _made(format: Format) -> str:
    """The constructor's call."""
    return f"Codebook({len(format.given)} values)" if isinstance(format, codebooks.Codebook) else format.spelled()


def _of_numbers(format: Any) -> dict[str, Any]:
    """Of a format of single numbers."""
    info, scalar = finfo(format), isinstance(format, ScalarFormat)
    return {
        "bits": info.bits,
        "precision": info.precision,
        "emin": info.emin,
        "emax": info.emax,
        "max": info.max,
        "min": info.min,
        "smallest_normal": None if info.u is None else info.smallest_normal,
        "smallest_subnormal": info.smallest_subnormal,
        "eps": info.eps if format.max > 1 and format.has(1.0) else None,
        "codes": info.codes,
        "values": count_values(format),
        "binades": info.binades,
        "decibels": info.decibels,
        "specials": _specials(format),
        "overflow": format.grid.overflow.name.lower() if scalar else getattr(format, "overflow", "saturate"),
    }


def smallest_magnitude(format: Format) -> float:
    """The smallest |value| that is not zero, infinite if there is none.

    >>> from lptensor import E4M3
    >>> smallest_magnitude(E4M3) == 2.0**-9, smallest_magnitude(codebooks.Codebook([-1.0, -0.5]))
    (True, 0.5)
    """
    (row,) = format_table([format])
    if row["smallest_subnormal"] is not None:
        return float(row["smallest_subnormal"])
    codebook: Any = element_of(format)
    return float(min((abs(value) for value in codebook.values().tolist() if value), default=math.inf))


def count_values(format: Any) -> int:
    """How many finite values there are, zero once: counted in the codes, not listed.

    >>> from lptensor import E4M3, E8M0
    >>> count_values(E4M3), count_values(E8M0)
    (253, 255)
    """
    if isinstance(format, TableFormat):
        return len(format.values())
    if isinstance(format, posits.Posit):
        return int(2**format.bits - 1)  # all but NaR
    scalar: ScalarFormat = format
    grid, layout = scalar.grid, scalar.layout
    if layout.twos_complement:
        return (1 << layout.bits) - int(grid.min == -grid.max)
    if not grid.zero:
        return (1 + int(grid.signed)) * (layout.top + 1)
    lost = 0 if grid.subnormals is Subnormals.GRADUAL else (1 << grid.precision - 1) - 1
    return (1 + int(grid.signed)) * (layout.top - lost) + 1


def _specials(format: Any) -> str:
    if not isinstance(format, ScalarFormat):
        codes = [name for name, special in (("inf", math.inf), ("NaN", math.nan)) if format.has(special)]
        return ", ".join([*codes, "no -0" if format.min < 0 else ">= 0"])
    grid, layout = format.grid, format.layout
    codes = ["inf"] * (layout.inf is not None) + ["NaN"] * (layout.nan is not None)
    if not grid.signed:
        return ", ".join([*codes, ">= 0" if grid.zero else "> 0"])
    return ", ".join(codes if grid.negative_zero else [*codes, "no -0"])


def shown(value: object, key: str = "") -> str:
    """A number in a table or picture: powers of two as such where four digits do not hold them.

    >>> shown(2.0**-149), shown(65504.0), shown(0.0795803), shown(None)
    ('2^-149', '65504', '0.07958', '-')
    """
    if value is None:
        return "-"
    if not isinstance(value, float):
        return str(value)
    if key in ("binades", "decibels"):
        return f"{value:.1f}"
    if value.is_integer() and abs(value) < 1e6:
        return f"{value:.0f}"
    mantissa, exponent = math.frexp(value)
    if mantissa == 0.5 and float(f"{value:.4g}") != value:
        return f"2^{exponent - 1}"
    return f"{value:.4g}"
