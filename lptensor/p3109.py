"""The binary floating-point formats of IEEE P3109."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from lptensor.base import ScalarFormat, check_bool, check_carried, set_int
from lptensor.grid import Grid, Overflow
from lptensor.layout import Layout, value_of


@dataclass(frozen=True, repr=False)
class P3109(ScalarFormat):
    """A format of IEEE P3109 (interim report, 2025): ``k`` bits, of them ``p`` of precision.

    The exponent bias is 2**(k - p - 1), for unsigned formats 2**(k - p); there are subnormals, one zero
    and one NaN, whose code is that of -0 (signed) or all ones (unsigned). Extended formats give the
    largest code of each sign to an infinity. With p=1 a tie goes to the even code. NaN propagates. To odd,
    what lies beyond the largest value becomes that, as in all formats here; the standard has infinities for
    signed extended formats.

    Args:
        k: width in bits, 2 to 16, as far as fp32 holds the values.
        p: precision with the hidden bit, 1 to k; p = k of a signed format leaves evenly spaced values.
        signed: without a sign bit, negatives become NaN (zero if saturating).
        extended: with infinities.
        overflow: what rounds beyond the largest value: "saturate" becomes that value, infinities included
            (SatFinite there); "propagate" the same, but infinities stay, where extended (SatPropagate);
            "inf" an infinity, where extended (OvfInf, in later drafts SatNone); "nan" NaN. Default: "inf"
            where extended, else "nan".

    Raises:
        TypeError, ValueError: parameters out of range, or values that fp32 cannot carry.

    >>> P3109(8, 3).max, P3109(8, 3).grid.smallest == 2.0**-17
    (49152.0, True)
    >>> P3109(8, 4, extended=False)
    P3109(k=8, p=4, extended=False)
    """

    k: int
    p: int
    signed: bool = True
    extended: bool = True
    overflow: str | None = None
    kind, kind_source = "P3109", "IEEE P3109 interim report, 2025"

    def __post_init__(self) -> None:
        set_int(self, "k", 2, 16)
        set_int(self, "p", 1, self.k)
        check_bool("signed", self.signed)
        check_bool("extended", self.extended)
        allowed = ("inf", "nan", "saturate", "propagate") if self.extended else ("nan", "saturate")
        if self.overflow is not None and self.overflow not in allowed:
            raise ValueError(f"overflow of {self._bare()} must be {' or '.join(allowed)}, got {self.overflow!r}")
        if self.overflow == allowed[0]:  # said or not, it is the same format
            object.__setattr__(self, "overflow", None)
        if self.layout.top < 1:
            raise ValueError(f"{self._bare()} has no finite value but zero; use a larger k or extended=False")
        if self.bias > 128:
            raise ValueError(f"{self._bare()} has values from about 2**-{self.bias} to 2**{self.bias}, beyond fp32's")
        check_carried(self, self.grid)

    @property
    def bias(self) -> int:
        """The exponent field of 1.0."""
        return (1 << self.k - self.p) // (2 if self.signed else 1)

    def _bare(self) -> str:
        return f"P3109(k={self.k}, p={self.p}, signed={self.signed}, extended={self.extended})"

    @cached_property
    def layout(self) -> Layout:
        """Where the values lie among the codes."""
        ones = 2 ** (self.k - int(self.signed)) - 1
        nan, last = (ones + 1, ones) if self.signed else (ones, ones - 1)
        if self.extended:
            return Layout(self.k, top=last - 1, inf=last, nan=nan)
        return Layout(self.k, top=last, nan=nan)

    @cached_property
    def grid(self) -> Grid:
        """The values and what lies outside of them, as plain numbers."""
        bias = self.bias
        overflow = self.overflow or ("inf" if self.extended else "nan")
        grid = Grid(
            precision=self.p,
            emin=1 - bias,
            emax=max((self.layout.top >> self.p - 1) - bias, 1 - bias),
            max=0.0,
            min=0.0,
            overflow=Overflow[overflow.upper()],
            negative_zero=False,
            ties_to_even_code=self.p == 1,
        )
        top = value_of(self.layout.top, grid)
        return grid._replace(max=top, min=-top if self.signed else 0.0)
