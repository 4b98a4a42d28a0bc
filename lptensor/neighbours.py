"""The values around a number: ``next`` and ``ulp``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lptensor import _compat, _native, reference
from lptensor._bits import carried, exact
from lptensor.base import check_bool, no_scalar
from lptensor.codebooks import TableFormat
from lptensor.formats import Format, ScalarFormat
from lptensor.grid import Overflow, Subnormals
from lptensor.ops import check_roundable
from lptensor.posits import Posit
from lptensor.rounding import Mode, Rounding


def next(x: Tensor, format: Format, up: bool = True) -> Tensor:
    """The smallest value of ``format`` above each ``x``, or with ``up=False`` the largest below.

    ``x`` need not be a value of the format. As IEEE 754-2019 5.3.1 (nextUp, nextDown): past the largest
    value comes what overflow gives (infinity, NaN, or the largest value again where the format
    saturates), below an infinity the largest value, and the neighbour of the smallest negative value is
    -0 where there is one. Past the ends of posits comes the end; in fixed point that nothing clamps, where the
    dtype's numbers lie farther apart than its values, the next of those numbers. NaN stays NaN. Same shape and
    dtype as ``x``.

    Args:
        x: float32 or float64, any shape.
        format: any but a block format.
        up: False for the value below.

    Raises:
        TypeError: x is not a float32 or float64 tensor, format a block format or none, up neither True nor False.
        ValueError: a format that the dtype does not hold.

    >>> from lptensor import BF16, E4M3
    >>> next(torch.tensor([1.0, 448.0, -0.1]), E4M3).tolist()
    [1.125, 448.0, -0.09375]
    """
    check_roundable(x, format)
    check_bool("up", up)
    if not isinstance(format, ScalarFormat):
        if x.is_meta:
            return torch.empty_like(x)
        low, high, listed = _codes_beside(exact(x.detach()), format)
        found = listed.value(low + 1 if up else high - 1)
        if isinstance(format, TableFormat) and (ends := format.table.ends) is not None:
            last = exact(x.detach()) >= format.max if up else exact(x.detach()) <= format.min
            stays = x.isfinite() & ends.saturates
            found = torch.where(last & ~stays, ends.infinite if up else -ends.infinite, found)
        return carried(torch.where(x.isnan(), torch.nan, found), x.dtype)
    toward, rounding = (torch.inf, Rounding(Mode.UP)) if up else (-torch.inf, Rounding(Mode.DOWN))
    # Anything strictly between x and its neighbour in float64 rounds to the neighbour in the format.
    beside = exact(x.detach()).nextafter(torch.tensor(toward, dtype=torch.float64, device=x.device))
    grid = format.grid
    if grid.overflow is Overflow.PROPAGATE:  # an infinity stays, but is none where x is not
        most = torch.finfo(torch.float64).max
        beside = torch.where(x.detach().isinf(), beside, beside.clamp(-most, most))
    if not grid.signed and up:  # what lies above a negative number is the format's least value
        beside = torch.where(beside < format.min, format.min, beside)
    if grid.signed and not grid.zero:  # nothing lies between the smallest numbers of either sign
        beside = torch.where(beside.abs() < grid.smallest, grid.smallest if up else -grid.smallest, beside)
    if grid.subnormals is Subnormals.FLUSH:  # the same values, but none that rounding steps over
        grid = grid._replace(subnormals=Subnormals.NONE)
    in_memory = beside.is_cpu and type(beside) is Tensor and not _compat.traced() and not _compat.transforming()
    if in_memory and _native.library() is not None:
        _native.round_grid(beside, beside, grid, rounding, None)  # new, and without gaps
    else:
        beside = reference.round_grid(beside, grid, rounding)
    found = carried(beside, x.dtype)
    if math.isinf(grid.max):  # the dtype's own numbers may be farther apart than the format's
        found = torch.where(found == x, x.detach().nextafter(torch.full_like(x, toward)), found)
    return found


class _Listed(NamedTuple):
    """A format whose codes go up with the values."""

    first: int
    last: int
    values_of: Callable[[Tensor], Tensor]

    def value(self, codes: Tensor) -> Tensor:
        """The values of these codes; beyond the ends those of the ends."""
        return self.values_of(codes.clamp(self.first, self.last))


def _codes_beside(x: Tensor, format: Format) -> tuple[Tensor, Tensor, _Listed]:
    """The codes of the largest value that is at most x, and of the smallest that is at least x, float64 numbers.

    Beyond an end one of them is a step further than the end's.
    """
    if isinstance(format, Posit) and format.nbits > 16:  # too many to list; their codes are two's complement
        last = 2 ** (format.nbits - 1) - 1
        inside = x.nan_to_num(0.0).clamp(format.min, format.max)
        down, up = (
            format.codes_of(reference.round_posit(inside, format.lowered, Rounding(mode)))
            for mode in (Mode.DOWN, Mode.UP)
        )
        low, high = (torch.where(code > last, code - 2**format.nbits, code) for code in (down, up))
        low, high = torch.where(x < format.min, low - 1, low), torch.where(x > format.max, high + 1, high)
        return low, high, _Listed(-last, last, format.values_of)
    if not hasattr(format, "values"):
        raise TypeError(f"expected a format of single numbers, got {no_scalar(format)}")
    values: Tensor = format.values().to(x.device)
    low, high = (torch.searchsorted(values, x.contiguous(), right=right) for right in (True, False))  # of -0 as of 0
    return low - 1, high, _Listed(0, len(values) - 1, values.__getitem__)


def ulp(x: Tensor, format: Format) -> Tensor:
    """The spacing of the format's values in the binade of each ``x``; below the normals, theirs.

    2**max(floor(log2(abs(x))) - precision + 1, spacing of the subnormals); of a power of two it is the
    spacing above. Beyond the largest value it is that of the topmost binade. Of posits and lists of values
    it is the distance of the two values around x: of a value the one to the next away from zero, of zero to
    the next above, beyond the ends that of the last two; rounded to the dtype. NaN and infinities give
    NaN and infinity. Same shape and dtype as ``x``.

    Args:
        x: float32 or float64, any shape.
        format: any but a block format.

    Raises:
        TypeError: x is not a float32 or float64 tensor, format a block format or none.
        ValueError: a format that the dtype does not hold, a list of one value.

    >>> from lptensor import E4M3
    >>> ulp(torch.tensor([1.0, 300.0, 0.0]), E4M3)
    tensor([1.2500e-01, 3.2000e+01, 1.9531e-03])
    """
    check_roundable(x, format)
    if not isinstance(format, ScalarFormat):
        if x.is_meta:
            return torch.empty_like(x)
        values = exact(x.detach())
        low, high, listed = _codes_beside(values, format)
        if listed.first == listed.last:
            raise ValueError(f"{format!r} has one value, and no spacing")
        start = torch.where(values < 0, high - 1, low).clamp(listed.first, listed.last - 1)
        spacing = listed.value(start + 1) - listed.value(start)
        return carried(torch.where(values.isfinite(), spacing, values.abs()), x.dtype)
    grid, x = format.grid, x.detach()
    magnitude = (x if x.dtype == torch.float64 else exact(x)).abs()  # float64's subnormal numbers lie below all binades
    # Powers of two by their bits in float64: an integer for each, in their order.
    binade = magnitude.view(torch.int64) & _power_bits(1024)
    bottom, top = _power_bits(grid.emin), _power_bits(grid.emax)
    spacing = binade.clamp(bottom, top).sub_(grid.precision - 1 << 52).view(torch.float64)
    if grid.quantum(grid.emin - 1) > grid.quantum(grid.emin):  # nothing between zero and the normals
        spacing = torch.where(binade < bottom, 2.0**grid.emin, spacing)
    return carried(torch.where(binade == _power_bits(1024), magnitude, spacing), x.dtype)


def _power_bits(exponent: int) -> int:
    """The bits of 2.0**exponent; with 1024 those of infinity."""
    return exponent + 1023 << 52
