"""The limits of a number format, under the names of ``torch.finfo`` and ``numpy.finfo``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import torch

from lptensor.base import no_scalar
from lptensor.codebooks import TableFormat
from lptensor.formats import Format, ScalarFormat
from lptensor.posits import Posit


@dataclass(frozen=True)
class FormatInfo:
    """The limits of one format; ``finfo`` makes it. Precision counts the hidden bit, emin and emax are log2.

    ``u`` is None where the values are evenly spaced: such a format bounds the absolute error, not the
    relative one, and has no normals, so that ``smallest_normal`` is then the smallest positive value. So it
    is of posits and lists of values, in which None stands for ``precision``, ``emin``, ``emax`` and ``u``,
    and for what a list without 1 and a value above it, or without positive values, does not have.
    """

    bits: int  #: width of a code
    precision: int | None  #: significant bits p; bits of the magnitude where evenly spaced
    emin: int | None  #: exponent of the smallest normal
    emax: int | None  #: exponent of the largest value
    max: float  #: largest value
    min: float  #: most negative value
    smallest_normal: float | None  #: smallest with all of its digits
    smallest_subnormal: float | None  #: smallest positive value
    eps: float | None  #: spacing just above 1, 2**(1 - p); where evenly spaced the spacing
    u: float | None  #: largest relative error of rounding to nearest, 2**-p
    codes: int  #: 2**bits
    binades: float | None  #: log2(max / smallest positive value)
    decibels: float | None  #: 20 log10 of the same

    @property
    def tiny(self) -> float | None:
        """The same as ``smallest_normal``."""
        return self.smallest_normal


@singledispatch
def finfo(format: Format) -> FormatInfo:
    """The limits of ``format``: range, precision, smallest values, dynamic range.

    Of fixed point that nothing clamps ``max``, ``min``, ``binades`` and ``decibels`` are infinite.

    Args:
        format: any but a block format.

    Raises:
        TypeError: a format whose values depend on a block (ask its element), or none.

    >>> from lptensor import E4M3, FP16
    >>> finfo(FP16).eps, finfo(FP16).tiny == 2.0**-14, finfo(FP16).u == 2.0**-11
    (0.0009765625, True, True)
    >>> finfo(E4M3).max, finfo(E4M3).smallest_subnormal == 2.0**-9, round(finfo(E4M3).decibels, 1)
    (448.0, True, 107.2)
    >>> from lptensor import NF4, Posit
    >>> finfo(Posit(8)).max == 2.0**24, finfo(Posit(8)).eps, finfo(NF4).min
    (True, 0.125, -1.0)
    """
    raise TypeError(f"finfo() takes a format of single numbers, got {no_scalar(format)}")


@finfo.register
def _(format: ScalarFormat) -> FormatInfo:
    grid = format.grid
    even = grid.emin == grid.emax
    ratio = max(grid.max / grid.smallest, 1.0)  # FixedPoint(1, fl) has nothing above zero
    return FormatInfo(
        bits=format.bits,
        precision=grid.precision,
        emin=grid.emin,
        emax=math.frexp(format.max)[1] - 1 if 0 < format.max < math.inf else grid.emax,
        max=format.max,
        min=format.min,
        smallest_normal=grid.smallest if even else 2.0**grid.emin,
        smallest_subnormal=grid.smallest,
        eps=2.0 ** grid.quantum(grid.emin if even else 0),
        u=None if even else 2.0**-grid.precision,
        codes=2**format.bits,
        binades=math.log2(ratio),
        decibels=20 * math.log10(ratio),
    )


@finfo.register
def _(format: TableFormat) -> FormatInfo:
    values = format.values().tolist()
    positive, above = [v for v in values if v > 0], [v for v in values if v > 1]
    return _of_values(format, positive[0] if positive else None, above[0] - 1 if above and 1.0 in values else None)


@finfo.register
def _(format: Posit) -> FormatInfo:
    beside = 2 ** (format.nbits - 2) + 1  # the code after that of 1
    eps = format.values_of(torch.tensor(beside)).item() - 1 if format.nbits > 2 else None
    return _of_values(format, 1 / format.max, eps)


def _of_values(format: Any, smallest: float | None, eps: float | None) -> FormatInfo:
    ratio = None if smallest is None else format.max / smallest
    return FormatInfo(
        bits=format.bits,
        precision=None,
        emin=None,
        emax=None,
        max=format.max,
        min=format.min,
        smallest_normal=smallest,
        smallest_subnormal=smallest,
        eps=eps,
        u=None,
        codes=2**format.bits,
        binades=None if ratio is None else math.log2(ratio),
        decibels=None if ratio is None else 20 * math.log10(ratio),
    )
