"""How the codes of a scalar format are laid out, and the arithmetic between codes and values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lptensor.carriers import CARRIERS, Carrier
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


def arithmetic(grid: Grid, layout: Layout) -> torch.dtype:
    """The dtype in which ``encode`` and ``decode`` are exact, also where a machine takes subnormal numbers for zero."""
    fp32, quantum = CARRIERS[torch.float32], grid.quantum(grid.emin)
    if grid.precision > fp32.precision:
        return torch.float64
    if _as_carried(grid, fp32) and not layout.twos_complement:
        return torch.float32
    return torch.float32 if fp32.emin <= quantum < fp32.emax and grid.emax < fp32.emax else torch.float64


def _as_carried(grid: Grid, carrier: Carrier) -> bool:
    """Whether exponents are the carrier's, so that codes are its bits, cut off."""
    return grid.zero and grid.emin == carrier.emin


def decode(codes: Tensor, grid: Grid, layout: Layout, dtype: torch.dtype = torch.float64) -> Tensor:
    """The values of int64 codes in 0 .. 2**bits - 1, in a dtype as wide as ``arithmetic`` says.

    Codes without a value of their own: the subnormal ones of a format without subnormals are zero, the
    most negative one of a symmetric fixed-point format is -max.
    """
    carrier = CARRIERS[dtype]
    if layout.twos_complement:
        negative = codes >> layout.bits - 1 if grid.signed else torch.zeros_like(codes)
        k = codes - (negative << layout.bits)
        return (k.to(dtype) * 2.0 ** grid.quantum(grid.emin)).clamp(min=grid.min)
    codes = codes.to(carrier.integer)
    width, shift = layout.bits - int(grid.signed), carrier.precision - grid.precision
    magnitude = codes & (1 << width) - 1
    if grid.zero and grid.subnormals is not Subnormals.GRADUAL:
        magnitude = torch.where(magnitude >> grid.precision - 1 == 0, 0, magnitude)
    if _as_carried(grid, carrier):
        value = (magnitude << shift).view(dtype)
    else:  # as encode() makes them of values, and back
        raised = ((magnitude << shift) + _start(grid, carrier)).view(dtype)
        value = raised - (raised / 2).clamp(min=2.0**grid.emin)
    if layout.top < (1 << width) - 1:
        value = torch.where(magnitude > layout.top, torch.nan, value)
    if layout.inf is not None:
        value = torch.where(magnitude == layout.inf, torch.inf, value)
    if grid.signed:
        sign = codes << carrier.width - layout.bits & torch.iinfo(carrier.integer).min
        value = (value.view(carrier.integer) | (sign if grid.negative_zero else sign * (magnitude != 0))).view(dtype)
    return torch.where(codes == layout.nan, torch.nan, value) if layout.nan == 1 << width else value


def encode(values: Tensor, grid: Grid, layout: Layout) -> Tensor:
    """The codes, integers as wide as the values, of values on the grid: -0, infinities and NaN only where it has them.

    Values are in a dtype as wide as ``arithmetic`` says. With c for the smallest normal number, |x| + max(|x|, c) is
    2|x| of the normal ones and lies in a single binade, at c + |x|, for the others: then codes are its bits, cut off.
    """
    carrier = CARRIERS[values.dtype]
    if layout.twos_complement:
        return (values * 2.0 ** -grid.quantum(grid.emin)).to(carrier.integer) & (1 << layout.bits) - 1
    magnitude, shift = values.abs(), carrier.precision - grid.precision
    if _as_carried(grid, carrier):
        codes = magnitude.view(carrier.integer) >> shift
    else:
        raised = magnitude + magnitude.clamp(min=2.0**grid.emin)
        codes = raised.view(carrier.integer) - _start(grid, carrier) >> shift
    if layout.inf is not None:
        codes = codes.clamp(max=layout.inf)
    if grid.signed:
        codes = codes - (values.view(carrier.integer) >> carrier.width - 1 << layout.bits - 1)
    return codes if layout.nan is None else torch.where(values.isnan(), layout.nan, codes)


def _start(grid: Grid, carrier: Carrier) -> int:
    """The bits of the code 0 among those of raised values."""
    return grid.emin + carrier.bias + int(not grid.zero) << carrier.mantissa
