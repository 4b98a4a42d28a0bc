"""The values around a number: ``next`` and ``ulp``."""

from __future__ import annotations

import torch
from torch import Tensor

from lptensor import _compat, _native, reference
from lptensor._bits import carried, exact, exponent, power
from lptensor.base import check_bool, no_scalar
from lptensor.formats import Format, ScalarFormat
from lptensor.grid import Subnormals
from lptensor.ops import check_roundable
from lptensor.rounding import Mode, Rounding


def next(x: Tensor, format: Format, up: bool = True) -> Tensor:
    """The smallest value of ``format`` above each ``x``, or with ``up=False`` the largest below.

    ``x`` need not be a value of the format. As IEEE 754-2019 5.3.1 (nextUp, nextDown): past the largest
    value comes what overflow gives (infinity, NaN, or the largest value again where the format
    saturates), below an infinity the largest value, and the neighbour of the smallest negative value is
    -0 where there is one. Past the ends of posits and of lists comes the end. NaN stays NaN. Same shape and
    dtype as ``x``.

    Args:
        x: float32 or float64, any shape.
        format: any but a block format.
        up: False for the value below.

    Raises:
        TypeError: x is no float32 or float64 tensor, format a block format or none, up neither True nor False.
        ValueError: a format that the dtype does not hold, a posit of more than 16 bits.

    >>> from lptensor import BF16, E4M3
    >>> next(torch.tensor([1.0, 448.0, -0.1]), E4M3).tolist()
    [1.125, 448.0, -0.09375]
    """
    check_roundable(x, format)
    check_bool("up", up)
    if not isinstance(format, ScalarFormat):
        return carried(_listed(exact(x.detach()), format, up), x.dtype)
    toward, rounding = (torch.inf, Rounding(Mode.UP)) if up else (-torch.inf, Rounding(Mode.DOWN))
    # Anything strictly between x and its neighbour in float64 rounds to the neighbour in the format.
    beside = exact(x.detach()).nextafter(torch.tensor(toward, dtype=torch.float64, device=x.device))
    grid = format.grid
    if not grid.signed and up:  # what lies above a negative number is the format's least value
        beside = torch.where(beside < format.min, format.min, beside)
    if grid.signed and not grid.zero:  # nothing lies between the smallest numbers of either sign
        beside = torch.where(beside.abs() < grid.smallest, grid.smallest if up else -grid.smallest, beside)
    if grid.subnormals is Subnormals.FLUSH:  # the same values, but none that rounding steps over
        grid = grid._replace(subnormals=Subnormals.NONE)
    in_memory = beside.is_cpu and type(beside) is Tensor and not _compat.traced() and not _compat.transforming()
    if in_memory and _native.library() is not None:
        _native.round_grid(beside, beside, grid, rounding, None)  # new, and without gaps
        return carried(beside, x.dtype)
    return carried(reference.round_grid(beside, grid, rounding), x.dtype)


def _listed(x: Tensor, format: Format, up: bool) -> Tensor:
    """The same of float64 numbers, among the values of a format that lists them."""
    if not hasattr(format, "values"):
        raise TypeError(f"next() goes to the next value of a format of single numbers, got {no_scalar(format)}")
    values: Tensor = format.values().to(x.device)
    above = torch.searchsorted(values, x.contiguous(), right=up)  # of -0 as of 0
    found = values[(above if up else above - 1).clamp(0, len(values) - 1)]
    return torch.where(x.isnan(), x, found)


def ulp(x: Tensor, format: ScalarFormat) -> Tensor:
    """The spacing of the format's values in the binade of each ``x``; below the normals, theirs.

    2**max(floor(log2(abs(x))) - precision + 1, spacing of the subnormals); of a power of two it is the
    spacing above. Beyond the largest value it is that of the topmost binade. NaN and infinities give
    NaN and infinity. Same shape and dtype as ``x``.

    Args:
        x: float32 or float64, any shape.
        format: a scalar format.

    Raises:
        TypeError: x is no float32 or float64 tensor, format none of a constant precision in a binade.
        ValueError: a format that the dtype does not hold.

    >>> from lptensor import E4M3
    >>> ulp(torch.tensor([1.0, 300.0, 0.0]), E4M3)
    tensor([1.2500e-01, 3.2000e+01, 1.9531e-03])
    """
    check_roundable(x, format)
    if not isinstance(format, ScalarFormat):
        raise TypeError(f"expected a scalar format, got {no_scalar(format)}")
    grid, magnitude = format.grid, exact(x.detach()).abs()
    binade = exponent(magnitude)
    spacing = power(binade.clamp(grid.emin, grid.emax) - (grid.precision - 1))
    if grid.quantum(grid.emin - 1) > grid.quantum(grid.emin):  # nothing between zero and the normals
        spacing = torch.where(binade < grid.emin, 2.0**grid.emin, spacing)
    return carried(torch.where(magnitude.isfinite(), spacing, magnitude), x.dtype)
