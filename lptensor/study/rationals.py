"""The basic operations exactly, in rationals and in float64 with its error: what roundings are judged by."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import torch
from torch import Tensor

from lptensor.accumulate import odd_sum
from lptensor.carriers import Carrier
from lptensor.formats import ScalarFormat
from lptensor.ops import round as round_to

OPS = {"add": 2, "sub": 2, "mul": 2, "div": 2, "sqrt": 1, "fma": 3}  # and how many operands they have

_ROOT_BITS = 300  # of a square root; more than any boundary between two roundings has


def apply(op: str, x: tuple[Fraction, ...]) -> Fraction | None:
    """The exact result; of an irrational root a rational that every rounding takes for it. None: no number.

    >>> apply("fma", (Fraction(1, 2), Fraction(1, 3), Fraction(1)))
    Fraction(7, 6)
    """
    if op == "div" and x[1] == 0 or op == "sqrt" and x[0] < 0:
        return None
    if op == "sqrt":
        shift = 2 * _ROOT_BITS
        scaled = (x[0].numerator << shift) // x[0].denominator
        root = math.isqrt(scaled)
        exact = root * root == scaled and x[0] == Fraction(scaled, 1 << shift)
        return Fraction(2 * root + (not exact), 2 << _ROOT_BITS)
    results: dict[str, Callable[..., Fraction]] = {
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "fma": lambda a, b, c: a * b + c,
    }
    return results[op](*x)


def to_odd(x: Fraction) -> float:
    """``x`` in float64, rounded to odd: rounded once more to p + 2 <= 53 bits it is ``x`` rounded once.

    Boldo and Melquiond, IEEE Transactions on Computers 57(4), 2008.

    >>> to_odd(Fraction(1, 2)), to_odd(Fraction(1) + Fraction(1, 2**80)) > 1
    (0.5, True)
    """
    if x == 0:
        return 0.0
    n, d = abs(x.numerator), x.denominator
    shift = max(n.bit_length() - d.bit_length() - 53, -1074)
    if shift >= 0:
        whole, rest = divmod(n, d << shift)
    else:
        whole, rest = divmod(n << -shift, d)
    if whole.bit_length() > 53:  # one bit more than wanted
        whole, rest, shift = whole >> 1, rest + (whole & 1), shift + 1
    whole |= rest != 0
    value = math.ldexp(whole, shift) if whole.bit_length() + shift <= 1024 else math.inf
    return -value if x < 0 else value


def to_carrier(x: Fraction, carrier: Carrier) -> float:
    """``x`` rounded to nearest in the carrier, as the processor rounds.

    >>> from lptensor.carriers import CARRIERS
    >>> to_carrier(Fraction(1, 3), CARRIERS[torch.float32]) == torch.tensor(1 / 3).item()
    True
    """
    if carrier.dtype == torch.float64:
        return float(x)  # what formats within fp32's range give lies within float64's
    return float(torch.tensor(to_odd(x), dtype=torch.float64).float())


def both_ways(op: str, x: tuple[Tensor, ...], carrier: Carrier) -> tuple[Tensor, Tensor]:
    """Results in float64 from which one more rounding is right, and those that the carrier has, all in float64.

    Sums and fused ones are rounded to odd by their exact error; quotients and roots of up to 25 bits need no
    more than float64, as they lie on a boundary of the second rounding or far from it.
    """
    if op in ("add", "sub"):
        right = odd_sum(x[0], x[1] if op == "add" else -x[1])
    elif op == "fma":
        right = odd_sum(x[0] * x[1], x[2])
    else:
        right = _plain(op, x)
    if op == "fma":
        twice = _nearest_sum(x[0] * x[1], x[2], carrier)
    else:
        twice = _plain(op, tuple(part.to(carrier.dtype) for part in x)).double()
    if op == "sqrt" and carrier.dtype == torch.float32:  # some vector units round it wrongly; lptensor does not
        twice = right.float().double()
    return right, twice


def _plain(op: str, x: tuple[Tensor, ...]) -> Tensor:
    functions: dict[str, Callable[..., Tensor]] = {
        "add": torch.add,
        "sub": torch.sub,
        "mul": torch.mul,
        "div": torch.div,
        "sqrt": torch.sqrt,
    }
    return functions[op](*x)


def _nearest_sum(a: Tensor, b: Tensor, carrier: Carrier) -> Tensor:
    if carrier.dtype == torch.float64:
        return a + b
    return odd_sum(a, b).float().double()  # 53 bits rounded to odd are enough for 24


# -- operands that are likely to differ ----------------------------------------------------------------


def drawn(format: ScalarFormat, op: str, count: int, generator: torch.Generator) -> tuple[Tensor, ...]:
    """Random operands: significands of all bits, exponents not far from each other, and half of the products and
    quotients where the format has its smallest numbers.
    """
    grid = format.grid
    p, low, high = grid.precision, grid.quantum(grid.emin), math.frexp(grid.max)[1] - 1

    def between(first: int, last: int) -> Tensor:
        return torch.randint(first, max(first, last) + 1, (count,), generator=generator)

    def number(e: Tensor) -> Tensor:
        m = between(2 ** (p - 1), 2**p - 1).double()
        sign = between(0, 1).double() * 2 - 1 if grid.signed else 1.0
        return round_to(sign * m * (e.clamp(low, high).double() - (p - 1)).exp2(), format, "toward_zero")

    if grid.emin == grid.emax:  # no exponents: numbers of every length
        return tuple(number(between(low, high)) for _ in range(OPS[op]))
    first = between(-1, 1)
    if op == "sqrt":
        return (number(between(low, high)).abs(),)
    if op in ("mul", "div"):
        near = between(low - 2, grid.emin + 1) - first
        near = near if op == "mul" else -near
        return number(first), number(torch.where(between(0, 1) == 0, near, between(-1, 1)))
    if op == "fma":
        return number(first), number(between(-1, 1)), number(between(-4 * p, 1))
    return number(first), number(between(-3 * p - 3, 1))


def constructed(format: ScalarFormat, op: str) -> Iterator[tuple[float, ...]]:
    """Operands whose results lie next to a boundary between two roundings, or beyond the carrier's range."""
    grid = format.grid
    p, low, high = grid.precision, grid.quantum(grid.emin), math.frexp(grid.max)[1] - 1
    e = 2.0 ** (1 - p)
    signs = (1.0, -1.0) if grid.signed else (1.0,)
    powers = [2.0**-k for k in range(1, min(-low, 4 * p + 60) + 1)] if low < 0 else []
    ends = [2.0**low, grid.max, 2.0**grid.emin]

    def held(*x: float) -> bool:
        values = torch.tensor(x, dtype=torch.float64)
        return bool((round_to(values, format) == values).all())

    def candidates() -> Iterator[tuple[float, ...]]:
        if op in ("add", "sub"):
            for a in (1.0, 1.0 + e, 1.0 + 2 * e, 2.0 - e):
                for b in powers:
                    for c in (b, b * (1 + e), b * (2 - e)):
                        for s in signs:
                            yield a, s * c
                            yield s * c, a
        elif op == "mul":
            for a in range(2 ** (p - 1), min(2**p, 2 ** (p - 1) + 4096)):  # just above half the smallest number
                b, split = -(-(2 ** (2 * p - 1)) // a), (low - 2 * p) // 2
                yield math.ldexp(a, split), math.ldexp(b, low - 2 * p - split)
        elif op == "fma":
            for c in (1.0, 1.0 + e):  # (1 + e) (1 - e) is just below a power of two
                for scale in (1.0, 2.0 ** (high - 1)):  # a narrow range holds the small product at its upper end
                    yield (1.0 + e) * 2.0**-p * scale, 1.0 - e, c * scale
                    yield 2.0**-p * scale, 1.0 - e / 2, c * scale
            for k in range(-(-(2**p) // 3) | 1, min(2 ** (p + 1) // 3, 2**p // 3 + 65), 2):  # 3 k is a midpoint
                for scale in (0, high - p - 2, low + p + 2):
                    for c in (*powers[-3:], *powers[::7]):
                        for s in signs:
                            yield 3.0 * 2.0**scale, k * 2.0**-p, s * c
        for a in ends:
            for b in ends:
                yield (a, b, ends[0])[: OPS[op]]
                if grid.signed:
                    yield (a, -b, ends[0])[: OPS[op]]
                if op == "fma":  # a product too small for the carrier beside a number, or too large for it
                    beside = (*ends, 2.0**high)  # of an odd significand, and of an even one
                    for c in (*beside, *(-c for c in beside if grid.signed)):
                        yield a, b, c
                        if grid.signed:
                            yield a, -b, c

    return (x for x in candidates() if held(*x))
