"""The names of formats that have one."""

from __future__ import annotations

from lptensor import blocks, codebooks, formats as scalars, p3109, posits
from lptensor.formats import Format


def named_formats() -> dict[str, Format]:
    """Every format that the package has a name for, in the order in which they are written down.

    >>> named_formats()["FP16"]
    FloatingPoint(exp=5, man=10)
    """
    homes = (scalars, p3109, posits, codebooks, blocks)
    return {
        name: row
        for home in homes
        for name, row in vars(home).items()
        if name.isupper() and not name.startswith("_") and isinstance(row, Format)
    }


def name_of(format: Format) -> str:
    """The name of the row that equals the format; else its repr().

    >>> name_of(scalars.FloatingPoint(8)), name_of(posits.Posit(8))
    ('E5M2', 'Posit(nbits=8)')
    """
    return next((name for name, row in named_formats().items() if row == format), repr(format))
