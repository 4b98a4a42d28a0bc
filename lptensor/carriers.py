"""The two dtypes that carry the values of all formats, and how numbers lie in their bits."""

from __future__ import annotations

import struct
from typing import NamedTuple

import torch


class Carrier(NamedTuple):
    """A binary format that computes; IEEE 754-2019, table 3.5."""

    dtype: torch.dtype
    integer: torch.dtype  # as wide
    width: int
    mantissa: int  # stored bits
    bias: int
    pack: str  # of the struct module

    @property
    def precision(self) -> int:
        """Significant bits, the hidden one included."""
        return self.mantissa + 1

    @property
    def emax(self) -> int:
        """The exponent of the largest value."""
        return self.bias

    @property
    def emin(self) -> int:
        """The exponent of the smallest normal value."""
        return 1 - self.bias

    @property
    def lowest(self) -> int:
        """The exponent of the smallest value."""
        return self.emin - self.mantissa

    def bits(self, value: float) -> int:
        """The bits of the magnitude of a value that the carrier has."""
        return int.from_bytes(struct.pack(self.pack, abs(value)), "little")


CARRIERS = {
    torch.float32: Carrier(torch.float32, torch.int32, 32, 23, 127, "<f"),
    torch.float64: Carrier(torch.float64, torch.int64, 64, 52, 1023, "<d"),
}
