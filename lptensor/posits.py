"""Posits: formats whose precision tapers away from one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from lptensor._bits import exponent
from lptensor.base import set_int
from lptensor.formats import Format


class PositBits(NamedTuple):
    """What a kernel gets of a posit format; ``struct lpt_posit`` in csrc/posit.h."""

    nbits: int
    es: int

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_posit"

    @property
    def scale(self) -> int:
        """log2 of the largest value, maxPos; minPos is its inverse."""
        return (self.nbits - 2) << self.es


@dataclass(frozen=True, repr=False)
class Posit(Format):
    """Posits (Standard for Posit Arithmetic, 2022): ``nbits`` wide, ``es`` exponent bits; es = 2 there.

    "nearest" is the standard's rounding (section 4.1): the bit string of x is rounded, ties to the
    even code. So the border between two posits is the posit with one more bit between them; where
    exponent bits are cut off, that is not the arithmetic mean. Beyond +-maxPos it saturates, and nothing
    but zero becomes zero. "nearest_away" and "nearest_up" do the same with ties away from zero and up.
    The directed modes, "odd" and "stochastic" saturate too, but numbers between 0 and minPos may become
    either of them, as the mode says. Stochastic rounding is linear in x, with
    the probability as in ``TableFormat``.

    NaN and infinities become NaN (NaR); there is one zero, and -0 becomes +0. Codes are the bit
    patterns, negatives in two's complement. fp32 tensors carry the formats whose values are all
    fp32 numbers (to 26 + es bits, Posit(28) for one); float64 tensors carry every one.

    Args:
        nbits: 2 to 32.
        es: 0 to 5.

    Raises:
        TypeError, ValueError: nbits or es that are not integers in that range; on use, an fp32 tensor for a posit of
            which it does not hold all values.

    >>> Posit(8).max == 2.0**24
    True
    >>> Posit(32)
    Posit(nbits=32)
    """

    nbits: int
    es: int = 2
    kind, kind_source = "posit", "Standard for Posit Arithmetic, 2022"

    def __post_init__(self) -> None:
        set_int(self, "nbits", 2, 32)
        set_int(self, "es", 0, 5)

    @cached_property
    def lowered(self) -> PositBits:
        """The plain numbers that a kernel gets of the format."""
        return PositBits(self.nbits, self.es)

    @property
    def bits(self) -> int:
        """Width of one code."""
        return self.nbits

    @property
    def max(self) -> float:
        """The largest value, maxPos."""
        return 2.0**self.lowered.scale

    @property
    def min(self) -> float:
        """The most negative value."""
        return -self.max

    @property
    def carrier(self) -> torch.dtype:
        """The dtype that holds every value: float64 beyond 26 + es bits, or where maxPos passes fp32."""
        fraction, scale = self.nbits - 3 - self.es, self.lowered.scale
        return torch.float64 if fraction > 23 or scale > 127 else torch.float32

    def check_carrier(self, dtype: torch.dtype) -> None:
        """Refuse a dtype that does not hold every value.

        Raises:
            ValueError: naming a value that does not fit, and the way out.
        """
        if dtype == torch.float32 and self.carrier != dtype:
            fraction, scale = self.nbits - 3 - self.es, self.lowered.scale
            lost = f"1 + 2**-{fraction}" if fraction > 23 else f"2**{scale}"
            raise ValueError(f"{self!r} has the value {lost}, which float32 does not hold; use a float64 tensor")

    def values(self) -> Tensor:
        """All values but NaR, ascending, float64.

        Raises:
            ValueError: more than 16 bits, which are too many to list; values_of() takes single codes.

        >>> Posit(3).values()
        tensor([-16.0000,  -1.0000,  -0.0625,   0.0000,   0.0625,   1.0000,  16.0000],
               dtype=torch.float64)
        """
        if self.nbits > 16:
            raise ValueError(f"{self!r} has 2**{self.nbits} values; values() lists up to 2**16, values_of(codes) any")
        return self.values_of(torch.arange(1 - 2 ** (self.nbits - 1), 2 ** (self.nbits - 1), device="cpu"))

    def values_of(self, codes: Tensor) -> Tensor:
        """The float64 values of bit patterns, any shape; NaR is NaN. Codes may be signed or unsigned.

        Raises:
            ValueError: a code wider than the format.
        """
        n, es = self.lowered
        codes = codes.long()
        wrong = (codes < -(2 ** (n - 1))) | (codes >= 2**n)
        if wrong.any():
            raise ValueError(f"{self!r} has codes of {n} bits, got {int(codes[wrong][0])}")
        signed = (codes + 2 ** (n - 1)) % 2**n - 2 ** (n - 1)
        body = signed.abs()
        ones = body >> (n - 2) & 1 == 1
        rest = torch.where(ones, 2 ** (n - 1) - 1 - body, body)  # the run is now leading zeros
        run = torch.where(rest == 0, n - 1, n - 2 - exponent(rest.double()))
        regime = torch.where(ones, run - 1, -run)
        room = (n - 2 - run).clamp(min=0)
        low = (body & (1 << room) - 1) << (es + 52 - room)
        bits = (regime << (es + 52)) + low + (1023 << 52)
        magnitude = torch.where(signed == 0, 0.0, bits.view(torch.float64))
        magnitude = torch.where(signed == -(2 ** (n - 1)), torch.nan, magnitude)
        return torch.where(signed < 0, -magnitude, magnitude)

    def codes_of(self, x: Tensor) -> Tensor:
        """The bit patterns, 0 to 2**nbits - 1, int64, of values that the format has; NaN is NaR.

        Raises:
            ValueError: a value that the format does not have.

        >>> Posit(8).codes_of(torch.tensor([0.0, 1.0, -1.0, torch.nan])).tolist()
        [0, 64, 192, 128]
        """
        codes = self._truncated(x)
        wrong = ~x.isnan() & (self.values_of(codes) != x)
        if wrong.any():
            raise ValueError(f"{x[wrong][0].item()!r} is not a value of {self!r}; round to the format first")
        return codes

    def has(self, x: float) -> bool:
        if x == 0 or not math.isfinite(x):
            return not math.isinf(x)
        (n, es), (significand, exponent) = self.lowered, math.frexp(abs(x))
        log = (exponent - 2 << 52) + int(significand * 2.0**53)  # as the bits of a float64 count, from 1 on
        regime = log >> es + 52
        room = max(n - 2 - (regime + 1 if regime >= 0 else -regime), 0)
        return abs(log) <= self.lowered.scale << 52 and log % (1 << max(es + 52 - room, 0)) == 0

    def contains(self, other: Format) -> bool:
        if isinstance(other, Posit) and other.es == self.es:
            return self.nbits >= other.nbits
        return super().contains(other)

    def _has_all(self, values: Tensor) -> bool:
        return bool((self.values_of(self._truncated(values)) == values).all())

    def _truncated(self, x: Tensor) -> Tensor:
        """The bit patterns of numbers, those that do not fit cut off."""
        n, es = self.lowered
        x, top = x.double(), self.lowered.scale << 52
        log = (x.abs().view(torch.int64) - (1023 << 52)).clamp(-top, top)
        regime = log >> es + 52
        run = torch.where(regime >= 0, regime + 1, -regime)
        room = (n - 2 - run).clamp(min=0)
        ones = ((1 << run) - 1) << (n - 1 - run)
        start = torch.where(regime >= 0, ones, 1 << room)
        body = start | (log & (1 << es + 52) - 1) >> es + 52 - room
        codes = torch.where(x == 0, 0, torch.where(x < 0, 2**n - body, body))
        return torch.where(x.isnan(), 2 ** (n - 1), codes)
