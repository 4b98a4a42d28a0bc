"""Exact work on the bits of floating point tensors, whatever the machine does with subnormal numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from lptensor.carriers import CARRIERS


def bits(x: Tensor) -> Tensor:
    """The bits of float32 or float64 values, as int64."""
    return x.resolve_neg().view(CARRIERS[x.dtype].integer).long()


def exact(x: Tensor) -> Tensor:
    """The values as float64; subnormal inputs are read from their bits, since the machine may flush them."""
    if x.dtype == torch.float64:  # anything this small rounds as 2**-1000 does
        return torch.where(subnormal(x), torch.copysign(torch.full_like(x, 2.0**-1000), x), x)
    small = (bits(x) & 0x7FFFFF).double() * 2.0**-149
    return torch.where(bits(x) & 0x7F800000 == 0, torch.where(torch.signbit(x), -small, small), x.double())


def subnormal(x: Tensor) -> Tensor:
    """Which float64 values are subnormal."""
    u = bits(x)
    return (u & 0x7FF0000000000000 == 0) & (u & 0x000FFFFFFFFFFFFF != 0)


def raised(x: Tensor, lift: Tensor) -> Tensor:
    """x * 2**512 where ``lift`` says so, subnormal float64 values included; zeros stay as they are."""
    if x.dtype != torch.float64:
        return x
    small = torch.copysign((bits(x) & 0x000FFFFFFFFFFFFF).double() * 2.0 ** (512 - 1074), x)
    return torch.where(lift > 0, torch.where(subnormal(x), small, x * 2.0**512), x)


def lowered(r: Tensor, lift: Tensor) -> Tensor:
    """What ``raised`` lifted, brought back: exact, also into the subnormal float64 values."""
    if r.dtype != torch.float64:
        return r
    tiny = r.abs() < 2.0 ** (512 - 1022)
    u = torch.where(tiny, r.abs() * 2.0 ** (1074 - 512), 0.0).long()
    small = torch.where(torch.signbit(r), u + torch.iinfo(torch.int64).min, u).view(torch.float64)
    return torch.where(lift > 0, torch.where(tiny, small, r * 2.0**-512), r)


def exponent_of_bits(u: Tensor, dtype: torch.dtype) -> Tensor:
    """floor(log2) of the finite positive values with these bits."""
    mantissa, bias = CARRIERS[dtype].mantissa, CARRIERS[dtype].bias
    field = u >> mantissa
    return torch.where(field > 0, field - bias, exponent(u.double()) - bias - mantissa + 1)


def significand_of_bits(u: Tensor, dtype: torch.dtype) -> Tensor:
    """x / 2**floor(log2 x) of the finite positive values x with these bits, as float64."""
    mantissa = CARRIERS[dtype].mantissa
    normal = torch.where(u >> mantissa > 0, u << (52 - mantissa), u.double().view(torch.int64))
    return (normal & 0x000FFFFFFFFFFFFF | 1023 << 52).view(torch.float64)


def carried(r: Tensor, dtype: torch.dtype) -> Tensor:
    """float64 values that ``dtype`` holds exactly, in ``dtype``; those that are in it stay."""
    if r.dtype == dtype:
        return r
    bits = (r.abs() * 2.0**149).clamp(max=2.0**24).nan_to_num().to(torch.int32)
    bits = torch.where(torch.signbit(r), bits - 2**31, bits)
    return torch.where(r.abs() < 2.0**-126, bits.view(torch.float32), r.float())


def exponent(magnitude: Tensor) -> Tensor:
    """floor(log2), from the bits; zero counts as 2**-1023, infinity and NaN as 2**1024."""
    return (magnitude.view(torch.int64) >> 52).bitwise_and_(0x7FF).sub_(1023)


def power(exponent: Tensor) -> Tensor:
    """2.0**exponent, exact, for normal float64 results."""
    return (exponent.long() + 1023).bitwise_left_shift_(52).view(torch.float64)


def times_power(x: Tensor, exponent: Tensor) -> Tensor:
    """x * 2.0**exponent in two steps, so that no power leaves the range."""
    exponent = exponent.clamp(-2040, 2040)
    half = exponent // 2
    return x * power(half) * power(exponent - half)
