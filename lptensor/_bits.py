"""Exact work on the bits of floating point tensors, whatever the machine does with subnormal numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def exact(x: Tensor) -> Tensor:
    """The values as float64; subnormal inputs are read from their bits, since the machine may flush them."""
    if x.dtype == torch.float64:  # anything this small rounds as 2**-1000 does
        bits = x.view(torch.int64)
        subnormal = (bits & 0x7FF0000000000000 == 0) & (bits & 0x000FFFFFFFFFFFFF != 0)
        return torch.where(subnormal, 2.0**-1000, x.abs()).copysign(torch.where(torch.signbit(x), -1.0, 1.0))
    bits = x.view(torch.int32)
    small = (bits & 0x7FFFFF).double() * 2.0**-149
    small = torch.where(torch.signbit(x), -small, small)
    return torch.where(bits & 0x7F800000 == 0, small, x.double())


def carried(r: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 values that ``dtype`` holds exactly, in ``dtype``."""
    if dtype == torch.float64:
        return r
    bits = (r.abs() * 2.0**149).clamp(max=2.0**24).nan_to_num().to(torch.int32)
    bits = torch.where(torch.signbit(r), bits - 2**31, bits)
    return torch.where(r.abs() < 2.0**-126, bits.view(torch.float32), r.float())


def exponent(magnitude: Tensor) -> Tensor:
    """floor(log2), from the bits; zero counts as 2**-1023, infinity and NaN as 2**1024."""
    return (magnitude.view(torch.int64) >> 52 & 0x7FF) - 1023


def power(exponent: Tensor) -> Tensor:
    """2.0**exponent, exact, for normal float64 results."""
    return ((exponent.long() + 1023) << 52).view(torch.float64)


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x * 2.0**exponent in two steps, so that no power leaves the range."""
    exponent = exponent.clamp(-2040, 2040)
    half = exponent // 2
    return x * power(half) * power(exponent - half)
