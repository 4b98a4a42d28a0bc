"""HiFloat8, whose fields have widths that a prefix code says."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

from lptensor.codebooks import TableFormat
from lptensor.names import row
from lptensor.tables import Ends, Table

# By the bits of the dot field, how many bits the exponent has. What is left of seven is the mantissa.
_DOTS = {"11": 4, "10": 3, "01": 2, "001": 1, "0001": 0}
_DENORMAL = "0000"
_INFINITE = "1101111"  # the largest magnitude, that of 1.5 * 2**15


def fields(code: str) -> list[tuple[str, int]]:
    """Names and widths of the fields of a code, given as eight binary digits.

    >>> fields("01110110")
    [('sign', 1), ('dot', 2), ('exponent', 4), ('mantissa', 1)]
    """
    dot = next((dot for dot in _DOTS if code[1:].startswith(dot)), _DENORMAL)
    exponent = _DOTS.get(dot, 0)
    return [("sign", 1), ("dot", len(dot)), ("exponent", exponent), ("mantissa", 7 - len(dot) - exponent)]


def _value(number: int) -> float:
    """What a code stands for."""
    code, at, parts = f"{number:08b}", 0, {}
    for name, width in fields(code):
        parts[name], at = code[at : at + width], at + width
    sign, mantissa = (-1.0) ** int(parts["sign"]), int(parts["mantissa"], 2)
    if parts["dot"] == _DENORMAL:
        if mantissa == 0:
            return math.nan if sign < 0 else 0.0
        return math.ldexp(sign, mantissa - 23)
    if code[1:] == _INFINITE:
        return sign * math.inf
    magnitude = int("1" + parts["exponent"][1:], 2) if parts["exponent"] else 0  # its first bit is not written
    exponent = -magnitude if parts["exponent"].startswith("1") else magnitude
    return math.ldexp(sign * (1 + mantissa / 2 ** len(parts["mantissa"])), exponent)


_LISTED = tuple(map(_value, range(2**8)))
_NEXT = math.ldexp(1.5, 15)  # the number whose code the infinity of its sign has
_TABLES = {
    "inf": Table(_LISTED, ends=Ends(_NEXT, math.inf)),
    "saturate": Table(_LISTED),
    "propagate": Table(_LISTED, ends=Ends(_NEXT, math.inf, saturates=True)),
    "nan": Table(_LISTED, ends=Ends(_NEXT, math.nan)),
}


@dataclass(frozen=True, repr=False)
class HiFloat8(TableFormat):
    """HiF8, the 8-bit format of Ascend processors, whose precision tapers away from 1 (arXiv 2409.16626).

    A code is a sign, a dot field that says how wide the exponent is, the exponent in sign and magnitude
    without the leading bit of this, and a mantissa in what is left: 3 bits with exponents from -3 to 3, 2 to
    +-7, 1 to +-15. Below them come the powers of two from 2**-16 to 2**-22. There are one zero, one NaN (0x80)
    and both infinities (0x6F, 0xEF), which have the place of +-1.5 * 2**15; the largest value is 2**15.

    The paper rounds to nearest with ties away from zero, TA: that is the rounding "nearest_away", which gives the
    codes of the package en_dtypes for every float32. As in all formats here "nearest" takes a tie to the even
    code: of two neighbours, 2**15 and infinity among them, always one is even. So 1.25 * 2**15 overflows in TA
    and not to the even code, and 2**-23 becomes 2**-22 in TA, else 0. ``encode`` rounds to "nearest": for the
    codes of TA round first. NaN stays NaN, also where Ascend's saturating conversions make 0 of it.

    Args:
        overflow: "inf", "nan" or "saturate" for what rounds beyond the largest value, infinities included, and
            "propagate" which saturates too, but leaves infinities as they are: as of ``FloatingPoint``.

    Raises:
        ValueError: another overflow.

    >>> import torch, lptensor
    >>> HiFloat8()
    HIF8
    >>> lptensor.round(torch.tensor([0.3, 17.0, 18.0, 40960.0]), HiFloat8(), "nearest_away").tolist()
    [0.3125, 16.0, 20.0, inf]
    >>> lptensor.encode(torch.tensor([1.0, -1.0, torch.inf, torch.nan]), HiFloat8()).tolist()
    [8, 136, 111, 128]
    """

    overflow: str = "inf"
    kind, kind_source = "HiF8", "arXiv 2409.16626"

    def __post_init__(self) -> None:
        if self.overflow not in _TABLES:
            raise ValueError(f"overflow of HiFloat8 must be {' or '.join(_TABLES)}, got {self.overflow!r}")

    @cached_property
    def table(self) -> Table:
        """What each code stands for, and what lies beyond."""
        return _TABLES[self.overflow]

    @property
    def bits(self) -> int:
        """Width of one code."""
        return 8


HIF8 = row(
    "HIF8",
    HiFloat8(),
    "arXiv 2409.16626",
    "One format for weights, activations and gradients: the precision of E4M3 next to 1, and 38 binades.",
)
