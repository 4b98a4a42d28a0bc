"""Rounding to a grid as a chain of operations on bits, which a compiler fuses into its neighbours.

The same steps as csrc/grid.h, and as csrc/lean.h where a format is away from the carrier's ends, for the
deterministic modes. The formula is written once, over an algebra of operations: torch's own give it
tensors, inductor's give it the code of a loop. What depends on the grid alone is worked out here, so that
a graph holds only the steps that its format needs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from lptensor.carriers import CARRIERS, Carrier
from lptensor.formats import Format, Grid, Overflow, Subnormals
from lptensor.rounding import Mode, Rounding


class Algebra(Protocol):
    """Operations on integers as wide as the carrier, beside + - & | << and comparisons."""

    def number(self, value: int) -> Any:
        """A constant."""

    def where(self, condition: Any, yes: Any, no: Any) -> Any: ...
    def least(self, a: Any, b: Any) -> Any: ...
    def greatest(self, a: Any, b: Any) -> Any: ...
    def right(self, a: Any, shift: Any) -> Any:
        """a >> shift, for a >= 0."""

    def converted(self, a: Any) -> Any:
        """The bits of the float that has the integer a for its value."""

    def plus(self, a: Any, b: Any) -> Any:
        """The bits of the sum of the floats that have the bits a and b."""

    def minus(self, a: Any, b: Any) -> Any: ...


def fusible(format: Format, rounding: Rounding) -> bool:
    """Whether ``rounded`` knows the way: to scalar formats that are not lists of values, without random words."""
    return isinstance(format.lowered, Grid) and not rounding.stochastic


def rounded(u: Any, grid: Grid, rounding: Rounding, carrier: Carrier, ops: Algebra) -> Any:
    """The bits of values rounded to a grid, from the bits of the values; ``lpt_round`` in csrc/grid.h."""
    number = ops.number
    infinity, sign = carrier.bits(float("inf")), number(-(2 ** (carrier.width - 1)))
    nan = number(infinity | 1 << carrier.mantissa - 1)
    negative = u < number(0)
    magnitude = u & number(2 ** (carrier.width - 1) - 1)

    # the ends of the format: what is cut off at its largest values before it is rounded needs no more; nan follows
    pairs = [_ends(side, grid, rounding, carrier) for side in (False, True)]
    limit, over, infinite = (
        number(p) if p == n else ops.where(negative, number(n), number(p)) for p, n in zip(*pairs, strict=True)
    )
    cut = all(side[0] == side[1] == side[2] for side in pairs)
    a = ops.least(magnitude, limit if cut else number(infinity))
    r = (_added if _adds(grid, carrier) else _shifted)(a, negative, grid, rounding.mode, carrier, ops)
    if not cut:
        r = ops.where(limit < r, over, r)
    if any(side[1] != side[2] for side in pairs):
        r = ops.where(a < number(infinity), r, infinite)
    if not grid.zero:
        r = ops.where(magnitude < number(1), nan, r)

    # the sign, and nan, which has none
    if grid.signed:
        signed = r | (u & sign)
        if not grid.negative_zero:
            signed = ops.where(r < number(1), r, signed)
        if grid.overflow is Overflow.NAN or not grid.zero:
            signed = ops.where(number(infinity) < r, r, signed)
    else:
        smallest = number(0 if grid.zero else carrier.bits(grid.smallest))
        lost = smallest if grid.saturates else nan
        signed = ops.where(negative & (number(0) < magnitude), lost, r)
    return ops.where(number(infinity) < magnitude, nan, signed)


def _adds(grid: Grid, carrier: Carrier) -> bool:
    """Whether the carrier's ends are so far away that ``_added`` rounds: a cell that is ``roomy`` in csrc/grid.h."""
    emin, emax, drop = grid.emin + carrier.bias, grid.emax + carrier.bias, carrier.mantissa + 1 - grid.precision
    usual = grid.signed and grid.zero and grid.subnormals is Subnormals.GRADUAL and not grid.ties_to_even_code
    low = drop >= 1 and emin - (grid.precision - 1) >= 33
    high = emin + carrier.mantissa <= 2 * carrier.bias and emax + drop <= 2 * carrier.bias
    return usual and low and high and max(grid.max, -grid.min) < float("inf")


def _added(a: Any, negative: Any, grid: Grid, mode: Mode, carrier: Carrier, ops: Algebra) -> Any:
    """Magnitudes rounded by adding and taking away a power of two whose last place is the spacing there.

    That rounds to nearest even, and the other modes take the neighbour where they want it; ``lpt_round_roomy``
    in csrc/lean.h. No result is subnormal and a subnormal a has next to nothing of the spacing, so that a
    machine may take those for zero.
    """
    number, place = ops.number, carrier.mantissa
    low, high, drop = grid.emin + carrier.bias, grid.emax + carrier.bias, carrier.mantissa + 1 - grid.precision
    if low == high:
        power = number(low + drop << place)
    else:
        e = ops.greatest(a & number(2 * carrier.bias + 1 << place), number(low << place))
        power = ops.least(e, number(high << place)) + number(drop << place)
    total = ops.plus(a, power)
    r = ops.minus(total, power)
    nearest = mode.toward == "nearer"
    if nearest and mode.tie == "even":
        return r
    spacing = power - number(place << place)

    def apart(p: Any, q: Any) -> Any:
        """Whether p is above q, to nearest by half of the spacing, a tie."""
        return spacing - number((1 << place) + 1) < ops.minus(p, q) if nearest else q < p

    def lower() -> Any:
        return ops.where(apart(r, a), ops.minus(r, spacing), r)

    def upper(otherwise: Any = r) -> Any:
        return ops.where(apart(a, r), ops.plus(r, spacing), otherwise)

    if mode.tie in ("even", "odd"):  # the last place of the sum is that of r
        even, moved = total & number(1) < number(1), upper(lower())
        return ops.where(even, r, moved) if mode.tie == "even" else ops.where(even, moved, r)
    return _by_sign(mode, negative, lower, upper, ops)


def _by_sign(mode: Mode, negative: Any, lower: Callable[[], Any], upper: Callable[[], Any], ops: Algebra) -> Any:
    """What is made for the neighbour of smaller or of larger magnitude, by the way that a mode goes."""
    match mode.tie:
        case "zero":
            return lower()
        case "away":
            return upper()
        case "down":
            return ops.where(negative, upper(), lower())
        case "up":
            return ops.where(negative, lower(), upper())
    raise ValueError(f"no operations are known for {mode!r}")


def _shifted(a: Any, negative: Any, grid: Grid, mode: Mode, carrier: Carrier, ops: Algebra) -> Any:
    """Magnitudes rounded by moving what lies below the spacing out of them, in any grid."""
    mantissa, number = carrier.mantissa, ops.number
    emin, drop = grid.emin + carrier.bias, mantissa + 1 - grid.precision

    # 1. exponent and significand: a = significand * 2**(unit - bias - mantissa)
    unit = ops.greatest(ops.right(a, number(mantissa)), number(1))
    base = (unit - number(1)) << number(mantissa)
    significand = a - base
    e = unit
    gradual = grid.subnormals is Subnormals.GRADUAL
    if emin < 1 or emin == 1 and not gradual:  # the carrier's subnormal numbers, whose fields are all 0, are told apart
        exact = ops.right(ops.converted(significand), number(mantissa)) - number(carrier.bias + mantissa - 1)
        e = ops.where(a < number(1 << mantissa), exact, unit)

    # 2. how many low bits lie below the spacing of the grid here; beyond mantissa + 2 all are, and less than half
    below = e < number(emin)
    bounded = max(grid.max, -grid.min if grid.signed else 0.0) < 2.0 ** (grid.emax + 1)
    simple = bounded and emin >= 1  # then no spacing is below drop bits, and most are just that
    if simple and gradual:
        s = ops.greatest(number(emin + drop) - unit, number(drop)) if emin > 1 else number(drop)
    else:
        held = ops.greatest(e, number(emin))
        if not bounded:  # the spacing of the last binade holds for what is above it
            held = ops.least(held, number(grid.emax + carrier.bias))
        s = ops.greatest(held - unit + number(drop), number(0))
        if not gradual:
            s = ops.where(below, number(mantissa + emin) - unit, s)
    if emin != 1 or not gradual:
        s = ops.least(s, number(mantissa + 2))
    mask = (number(1) << s) - number(1)

    # 3. the significand in units of the spacing, to one of the two neighbours
    odd = ops.right(significand, s) & number(1)
    if grid.ties_to_even_code:
        odd = odd & (e - number(emin - 1))
    nearest = mode.toward == "nearer"

    def least() -> Any:  # added, it takes the fewest to the next multiple
        return ops.right(mask, number(1)) if nearest else number(0)

    def most() -> Any:
        return ops.right(mask + number(1), number(1)) if nearest else mask

    if mode.tie == "even" and grid.subnormals is Subnormals.NONE:
        odd = ops.where(below, number(1), odd)
    if nearest and mode.tie == "even":
        more = least() + (odd if simple and drop else odd & ops.least(s, number(1)))
    elif mode.tie == "even":
        more = ops.where(odd < number(1), least(), most())
    elif mode.tie == "odd":
        more = ops.where(odd < number(1), most(), least())
    else:
        more = _by_sign(mode, negative, least, most, ops)
    k = ops.right(significand + more, s)

    # 4. the multiple of the spacing, as bits: a carry moves on to the next binade by itself
    smallest = carrier.bits(grid.smallest)
    r = (k << s) + base
    if emin > 1 and gradual and mode.toward in ("nearer", "zero"):
        r = ops.where(number(0) < k, r, number(0))  # s = mantissa + 1 leads from base to one spacing
    elif not (emin == 1 and gradual):
        r = ops.where(number(mantissa) < s, ops.where(number(0) < k, number(smallest), number(0)), r)
    if grid.subnormals is Subnormals.FLUSH:
        r = ops.where(below, number(0), r)
    return r if grid.zero else ops.where(r < number(1), number(smallest), r)


def _ends(negative: bool, grid: Grid, rounding: Rounding, carrier: Carrier) -> tuple[int, int, int]:
    """On one side: the largest value, what results beyond it become, and infinity; as bits."""
    infinity = carrier.bits(float("inf"))
    largest = carrier.bits(grid.min if negative else grid.max) if grid.signed or not negative else 0
    nan = infinity | 1 << carrier.mantissa - 1
    beyond = largest if grid.saturates else nan if grid.overflow is Overflow.NAN else infinity
    over = largest if rounding.mode.leads_back(negative) else beyond
    return largest, over, infinity if grid.overflow is Overflow.PROPAGATE else beyond


class _Tensors:
    """The algebra of integer tensors."""

    def __init__(self, carrier: Carrier, device: torch.device) -> None:
        self.carrier, self.device = carrier, device

    def number(self, value: int) -> Tensor:
        return torch.tensor(value, dtype=self.carrier.integer, device=self.device)

    def where(self, condition: Tensor, yes: Tensor, no: Tensor) -> Tensor:
        return torch.where(condition, yes, no)

    def least(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.minimum(a, b)

    def greatest(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.maximum(a, b)

    def right(self, a: Tensor, shift: Tensor) -> Tensor:
        return a >> shift

    def converted(self, a: Tensor) -> Tensor:
        return a.to(self.carrier.dtype).view(self.carrier.integer)

    def plus(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.view(self.carrier.dtype) + b.view(self.carrier.dtype)).view(self.carrier.integer)

    def minus(self, a: Tensor, b: Tensor) -> Tensor:
        return (a.view(self.carrier.dtype) - b.view(self.carrier.dtype)).view(self.carrier.integer)


def round_tensor(x: Tensor, grid: Grid, rounding: Rounding) -> Tensor:
    """The formula on a tensor, step by step: what the compiled loop computes, without a compiler.

    >>> from lptensor import E4M3
    >>> round_tensor(torch.tensor([0.1, 1000.0]), E4M3.grid, Rounding()).tolist()
    [0.1015625, 448.0]
    """
    carrier = CARRIERS[x.dtype]
    bits = rounded(x.view(carrier.integer), grid, rounding, carrier, _Tensors(carrier, x.device))
    result: Tensor = bits.view(x.dtype)
    return result
