"""The specification of sums of products, in plain torch operations: any device, the same bits as the kernels.

Numbers are carried in float64. A product of two fp32 numbers is one; that of two float64 numbers is
the sum of two (Dekker 1971). A sum that is to be rounded is first rounded to odd: to the neighbour
whose last bit is one, wherever it is inexact. Two bits more than a format keeps then decide every
rounding as the exact sum would (Boldo and Melquiond, "Emulation of FMA and correctly rounded sums:
proved algorithms using rounding to odd", IEEE TC 57, 2008).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lptensor._bits import carried, exact, exponent, times_power
from lptensor.accumulator import Accumulator
from lptensor.formats import FP32, Grid, Overflow
from lptensor.reference import Key, philox, round_grid
from lptensor.rounding import Rounding

Term = tuple[Tensor, Tensor | None]  # a number as the exact sum of one or two float64 ones

TINY, HUGE = 2.0**-900, 2.0**900  # float64 products are held between them: no format tells them apart beyond
LIMB, BOTTOM, LIMBS = 32, 1088, 68  # an exact sum: base 2**32 digits, the lowest worth 2**-1088


def gemm(a: Tensor, b: Tensor, acc: Accumulator, c: Tensor | None, key: Key | None) -> Tensor:
    """a[batch, m, k] times b[batch, k, n], plus c[batch, m, n]; see ``lptensor.gemm.gemm``."""
    return _given(_Sums(a, b, key).run(acc, c), a.dtype)


def cumulate(x: Tensor, acc: Accumulator, key: Key | None) -> Tensor:
    """The running sums along the middle axis of x[outer, k, inner]."""
    ones = torch.ones(x.shape[0], 1, x.shape[1], dtype=x.dtype, device=x.device)
    sums = _Sums(ones, x, key)
    return _given(torch.cat([x.new_empty(x.shape[0], 0, x.shape[2]).double(), *sums.running(acc)], 1), x.dtype)


def _given(sums: Tensor, dtype: torch.dtype) -> Tensor:
    return carried(torch.where(sums.isnan(), torch.nan, sums), dtype)  # a NaN has neither sign nor payload


class _Sums:
    """The sums of one call, all elements at once; the same rounding of each is one event."""

    def __init__(self, a: Tensor, b: Tensor, key: Key | None) -> None:
        self.a, self.b, self.key, self.event = a, b, key, 0
        self.shape = (a.shape[0], a.shape[1], b.shape[2])
        self.words: dict[int, tuple[Tensor, ...]] = {}

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, dtype=torch.float64, device=self.a.device)

    def run(self, acc: Accumulator, c: Tensor | None) -> Tensor:
        start = None if c is None else exact(c).contiguous()  # as a product lies
        if start is not None and acc.order != "exact":
            start = self.rounded(start, acc)
        self.event = 1  # the first is the rounding of the addend, whether there is one or not
        return self.total(acc, 0, self.a.shape[2], start)

    def running(self, acc: Accumulator) -> Iterator[Tensor]:
        self.event, s = 1, self.zeros()
        for k in range(self.a.shape[2]):
            s = self.rounded(self.added(s, self.product(k), acc), acc)
            yield s

    def total(self, acc: Accumulator, first: int, last: int, s: Tensor | None) -> Tensor:
        """The sum of the terms first .. last, and of s where that is not None."""
        if acc.order == "pairwise":
            return self.pairwise(acc, first, last, s)
        if acc.order == "exact":
            return self.exactly(acc, first, last, s)
        s = self.zeros() if s is None else s
        if acc.order == "aligned":
            for k in range(first, last, acc.chunk):
                s = self.rounded(self.aligned(acc, s, range(k, min(k + acc.chunk, last))), acc)
        elif acc.order == "kahan":
            error = self.zeros()
            for term in self.terms(acc, first, last):
                y = self.rounded(self.added(-error, term, acc), acc)
                t = self.rounded(self.added(s, (y, None), acc), acc)
                grown = self.rounded(self.added(t, (-s, None), acc), acc)
                error = self.rounded(self.added(grown, (-y, None), acc), acc)
                s = t
        elif acc.order == "sequential":
            for term in self.terms(acc, first, last):
                s = self.rounded(self.added(s, term, acc), acc)
        else:
            raise NotImplementedError(f"nothing here adds up in the order {acc.order!r}")
        return s

    def pairwise(self, acc: Accumulator, first: int, last: int, s: Tensor | None) -> Tensor:
        """Sums of 1, 2, 4 ... terms wait on a stack until there are two of a size."""
        waiting: list[tuple[int, Tensor]] = []
        for term in self.terms(acc, first, last):
            size, sum = 1, self.rounded(self.value(term, acc), acc)
            while waiting and waiting[-1][0] == size:
                sum = self.rounded(self.added(waiting.pop()[1], (sum, None), acc), acc)
                size *= 2
            waiting.append((size, sum))
        while len(waiting) > 1:
            (_, right), (size, left) = waiting.pop(), waiting.pop()
            waiting.append((size, self.rounded(self.added(left, (right, None), acc), acc)))
        if not waiting:
            return self.zeros() if s is None else s
        return waiting[0][1] if s is None else self.rounded(self.added(s, (waiting[0][1], None), acc), acc)

    def exactly(self, acc: Accumulator, first: int, last: int, s: Tensor | None) -> Tensor:
        start = [] if s is None else [(s, None)]
        return self.rounded(self.exact_sum([*start, *self.terms(acc, first, last)]), acc)

    def exact_sum(self, terms: Sequence[Term]) -> Tensor:
        sum = _Exact(self.zeros())
        for term in terms:
            for part in term:
                if part is not None:
                    sum.add(part)
        return sum.value()

    def aligned(self, acc: Accumulator, s: Tensor, ks: range) -> Tensor:
        products = [self.product(k) for k in ks]
        if acc.whole:
            return self.exact_sum([(s, None), *products])
        least, least_a, least_b = acc.least_exponents  # which subnormal numbers have
        top = torch.where(s == 0, -(2**20), exponent(s.abs()).clamp(min=least))
        for k, (p, _) in zip(ks, products, strict=True):
            of_a = exponent(exact(self.a[:, :, k, None]).abs()).clamp(min=least_a)
            factors = of_a + exponent(exact(self.b[:, None, k]).abs()).clamp(min=least_b)
            top = torch.maximum(top, torch.where(p == 0, -(2**20), factors.clamp(-900, 900)))
        unit = (top - acc.places).clamp(min=-1000)
        units, special = self.zeros(), self.zeros()
        for p, rest in ((s, None), *products):
            finite = p.isfinite()
            special = special + torch.where(finite, 0.0, p)
            p = times_power(torch.where(finite, p, 0.0), -unit)
            units = units + (p if rest is None else odd_sum(p, times_power(rest, -unit))).trunc()
        return torch.where(special == 0, times_power(units, unit), special)

    def terms(self, acc: Accumulator, first: int, last: int) -> Iterator[Term]:
        """Products, each rounded where it has a format, or the sums of chunks."""
        if acc.nested:
            for k in range(first, last, acc.chunk):
                yield self.total(acc.inside, k, min(k + acc.chunk, last), None), None
        elif acc.product is None:
            yield from map(self.product, range(first, last))
        else:
            for k in range(first, last):
                yield self.draw(self.value(self.product(k), acc), acc.product.grid, acc.rounding), None

    def product(self, k: int) -> Term:
        a, b = exact(self.a[:, :, k, None]), exact(self.b[:, None, k])
        return (a * b, None) if self.a.dtype == torch.float32 else two_product(*torch.broadcast_tensors(a, b))

    def value(self, term: Term, acc: Accumulator) -> Tensor:
        high, low = term
        r = high if low is None else odd_sum(high, low)
        return r if acc.compute == "exact" else _single(r)

    def added(self, s: Tensor, term: Term, acc: Accumulator) -> Tensor:
        """s + term, rounded to odd or to fp32."""
        high, low = term
        if low is None:
            r = odd_sum(s, high)
        else:
            lower, lower_rest = _two_sum(s, low)
            upper, upper_rest = _two_sum(high, lower)
            rest = odd_sum(lower_rest, upper_rest)
            r = torch.where((rest == 0) | ~upper.isfinite(), upper, odd_sum(upper, rest))
        return r if acc.compute == "exact" else _single(r)

    def rounded(self, x: Tensor, acc: Accumulator) -> Tensor:
        """x rounded to the format of the sum."""
        grid = acc.sum.grid
        if not acc.wrap:
            return self.draw(x, grid, acc.rounding)
        top = grid.emax + 1
        open_end = grid._replace(max=torch.inf, min=-torch.inf, overflow=Overflow.INF)
        turns = self.draw(x, open_end, acc.rounding) * 2.0 ** -(top + 1)
        turns = turns - turns.floor()
        return torch.where(turns >= 0.5, turns - 1, turns) * 2.0 ** (top + 1)

    def draw(self, x: Tensor, grid: Grid, rounding: Rounding) -> Tensor:
        """x rounded; the n-th event of element e of E takes word n % 4 of the counter n // 4 * E + e."""
        group, word = divmod(self.event, 4)
        self.event += 1
        words = None
        if rounding.stochastic and self.key is not None:
            if group not in self.words:
                n = x.numel()
                self.words = {group: philox(torch.arange(n, device=x.device) + group * n, self.key)}
            words = self.words[group][word]
        return round_grid(x, grid, rounding, words)


def _two_sum(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """x + y as the nearest float64 and the exact rest (Knuth)."""
    t = x + y
    back = t - x
    return t, (x - (t - back)) + (y - back)


def odd_sum(x: Tensor, y: Tensor) -> Tensor:
    """x + y rounded to odd.

    >>> odd_sum(torch.tensor(1.0).double(), torch.tensor(2.0**-80).double()).item() == 1 + 2.0**-52
    True
    """
    t, rest = _two_sum(x, y)
    inexact = (rest != 0) & t.isfinite()
    past = inexact & (torch.signbit(rest) != torch.signbit(t))  # t is the neighbour away from zero
    return (t.view(torch.int64) - past.long() | inexact.long()).view(torch.float64)


def two_product(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """a * b as the nearest float64 and the exact rest, held between TINY and HUGE."""
    finite = a.isfinite() & b.isfinite()
    (x, i), (y, j) = (_mantissa(torch.where(finite, t, 0.0)) for t in (a, b))
    p = x * y
    (x_high, x_low), (y_high, y_low) = _halves(x), _halves(y)
    rest = x_low * y_low - (((p - x_high * y_high) - x_low * y_high) - x_high * y_low)
    scale = (i + j).clamp(-1000, 1000)
    p, rest = times_power(p, scale), times_power(rest, scale)
    beyond = (p != 0) & ((p.abs() < TINY) | (p.abs() >= HUGE))
    p = torch.where(beyond, p.abs().clamp(TINY, HUGE).copysign(p), p)
    return torch.where(finite, p, a * b), torch.where(finite & ~beyond & (p != 0), rest, -0.0)


def _mantissa(x: Tensor) -> tuple[Tensor, Tensor]:
    """Finite float64 numbers as mantissas of 1/2 to 1 and exponents; torch.frexp is beyond inductor on some CPUs."""
    small = x.abs() < 2.0**-1000
    normal = torch.where(small, x * 2.0**100, x)
    bits = normal.view(torch.int64) & ~(0x7FF << 52) | 1022 << 52
    return torch.where(x == 0, x, bits.view(torch.float64)), exponent(normal.abs()) + 1 - small.long() * 100


def _halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as two numbers of 26 bits (Veltkamp)."""
    scaled = x * (2.0**27 + 1)
    high = scaled - (scaled - x)
    return high, x - high


def _single(x: Tensor) -> Tensor:
    """x rounded to fp32, in float64."""
    return round_grid(x, FP32.grid, Rounding())


class _Exact:
    """A running exact sum: digits in base 2**32, lowest first, which may overlap until they are read."""

    def __init__(self, zeros: Tensor) -> None:
        self.digits = torch.zeros((LIMBS, *zeros.shape), dtype=torch.int64, device=zeros.device)
        self.special = zeros
        self.count = 0

    def add(self, x: Tensor) -> None:
        finite = x.isfinite()
        self.special = self.special + torch.where(finite, 0.0, x)
        bits = torch.where(finite, x, 0.0).view(torch.int64)
        field = bits >> 52 & 0x7FF
        significand = torch.where(field > 0, bits & (1 << 52) - 1 | 1 << 52, 0)  # smaller ones never come
        place = (field - 1075 + BOTTOM).clamp(min=0)
        limb, shift = place // LIMB, place % LIMB
        low, high = (significand & 0xFFFFFFFF) << shift, (significand >> 32) << shift
        sign = torch.where(bits < 0, -1, 1)
        for above, part in enumerate((low & 0xFFFFFFFF, (low >> 32) + (high & 0xFFFFFFFF), high >> 32)):
            self.digits.scatter_add_(0, (limb + above).unsqueeze(0), (sign * part).unsqueeze(0))
        self.count += 1
        if self.count % 2**28 == 0:
            self.carry()

    def carry(self) -> None:
        for i in range(LIMBS - 1):
            self.digits[i + 1] += self.digits[i] >> LIMB
            self.digits[i] &= 0xFFFFFFFF

    def value(self) -> Tensor:
        """The sum rounded to odd; zero is +0."""
        self.carry()
        negative = self.digits[-1] < 0
        self.digits = torch.where(negative, -self.digits, self.digits)
        self.carry()
        nonzero = self.digits != 0
        index = torch.arange(LIMBS, device=negative.device).reshape(-1, *[1] * negative.dim())
        top = torch.where(nonzero, index, 0).amax(0).clamp(min=2)
        below = (nonzero & (index < top - 2)).any(0)
        high, middle, low = (self.digits.gather(0, (top - i).unsqueeze(0)).squeeze(0) for i in range(3))
        lower = odd_sum(middle.double() * 2.0**32, (low | below.long()).double())
        r = times_power(odd_sum(high.double() * 2.0**64, lower), (top - 2) * LIMB - BOTTOM)
        r = torch.where(negative, -r, r)
        return torch.where(self.special == 0, r, self.special)
