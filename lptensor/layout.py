"""How the codes of a scalar format are laid out, and the arithmetic between codes and values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lptensor._bits import exponent, times_power
from lptensor.grid import Grid, Subnormals


class Layout(NamedTuple):
    """Where the values of a grid lie among its codes.

    A floating-point code is sign, exponent, mantissa; without the sign bit it counts up with the
    magnitude, so that the specials of a format are a few numbers: ``top`` is the code of the largest
    finite magnitude, ``inf`` that of infinity, ``nan`` the canonical NaN with its sign bit. Codes above
    ``top`` that are not ``inf`` are NaNs. A two's complement code is an integer multiple of the spacing.
    """

    bits: int
    top: int
    inf: int | None = None
    nan: int | None = None
    twos_complement: bool = False


def value_of(code: int, grid: Grid) -> float:
    """The value of a finite floating-point code without its sign."""
    mantissa = grid.precision - 1
    field, fraction = code >> mantissa, code & (1 << mantissa) - 1
    hidden = int(field > 0 or not grid.zero)
    return (fraction + (hidden << mantissa)) * 2.0 ** (grid.emin + max(field - int(grid.zero), 0) - mantissa)


def decode(codes: Tensor, grid: Grid, layout: Layout) -> Tensor:
    """The values of int64 codes in 0 .. 2**bits - 1, as float64.

    Codes without a value of their own: the subnormal ones of a format without subnormals are zero, the
    most negative one of a symmetric fixed-point format is -max.
    """
    if layout.twos_complement:
        negative = codes >> layout.bits - 1 if grid.signed else torch.zeros_like(codes)
        k = codes - (negative << layout.bits)
        return (k.double() * 2.0 ** grid.quantum(grid.emin)).clamp(min=grid.min)
    width, mantissa = layout.bits - int(grid.signed), grid.precision - 1
    magnitude = codes & (1 << width) - 1
    field = magnitude >> mantissa
    significand = magnitude & (1 << mantissa) - 1
    if grid.zero:
        significand = significand + ((field > 0).long() << mantissa)
        if grid.subnormals is not Subnormals.GRADUAL:
            significand = torch.where(field == 0, 0, significand)
    else:
        significand = significand + (1 << mantissa)
    binade = grid.emin + (field - int(grid.zero)).clamp(min=0)
    value = times_power(significand.double(), binade - mantissa)
    value = torch.where(magnitude > layout.top, torch.nan, value)
    if layout.inf is not None:
        value = torch.where(magnitude == layout.inf, torch.inf, value)
    negative = codes >> width == 1
    value = torch.where(negative & ((value != 0) | grid.negative_zero), -value, value)
    return value if layout.nan is None else torch.where(codes == layout.nan, torch.nan, value)


def encode(values: Tensor, grid: Grid, layout: Layout) -> Tensor:
    """The int64 codes of float64 values on the grid: -0, infinities and NaN only where the format has them."""
    if layout.twos_complement:
        return (values * 2.0 ** -grid.quantum(grid.emin)).long() & (1 << layout.bits) - 1
    mantissa = grid.precision - 1
    magnitude = torch.where(values.isfinite(), values.abs(), 0.0)
    binade = exponent(magnitude).clamp(min=grid.emin)
    significand = times_power(magnitude, mantissa - binade).long()
    codes = (binade - grid.emin << mantissa) + significand - (0 if grid.zero else 1 << mantissa)
    if layout.inf is not None:
        codes = torch.where(values.isinf(), layout.inf, codes)
    codes = codes + (torch.signbit(values).long() << layout.bits - 1)
    return codes if layout.nan is None else torch.where(values.isnan(), layout.nan, codes)
