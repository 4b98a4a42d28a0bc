"""Sums of products in exact rationals: a scalar loop over k for one output, with its rounding handed in.

It is written from the sentences of the contract (docs/accumulators.md) and knows neither formats nor
tensors: a rounding is a function from a rational to a rational.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

Round = Callable[[Fraction], Fraction]


def untouched(x: Fraction) -> Fraction:
    return x


@dataclass
class Adder:
    """One level of an accumulator; ``step`` is what exact sums and products go through first, if anything."""

    sum: Round
    order: str = "sequential"
    product: Round | None = None
    chunk: int = 1
    inner: Adder | None = None
    step: Round = untouched
    alignment: int | None = None
    least: tuple[int | None, int | None, int | None] = (None, None, None)  # exponents of a, b and the sum; or no least

    def dot(self, a: Sequence[Fraction], b: Sequence[Fraction], c: Fraction | None) -> Fraction:
        start = Fraction(0)
        if c is not None:
            start = c if self.order == "exact" else self.sum(c)
        return self.total(a, b, start, c is not None)

    def total(self, a: Sequence[Fraction], b: Sequence[Fraction], s: Fraction, given: bool) -> Fraction:
        if self.order == "aligned":
            for first in range(0, len(a), self.chunk):
                s = self.sum(self.aligned(a[first : first + self.chunk], b[first : first + self.chunk], s))
            return s
        terms = self.terms(a, b)
        if self.order == "exact":
            return self.sum(sum(terms, s))
        if self.order == "pairwise":
            if not a:
                return s
            root = self.tree(terms, -(-len(a) // self.chunk))
            return self.add(s, root) if given else root
        error = Fraction(0)
        for term in terms:
            if self.order == "sequential":
                s = self.add(s, term)
            else:
                y = self.add(term, -error)
                t = self.add(s, y)
                error = self.add(self.add(t, -s), -y)
                s = t
        return s

    def tree(self, terms: Iterator[Fraction], count: int) -> Fraction:
        """Neighbours, then sums of neighbours, each as soon as both are there."""
        if count == 1:
            return self.sum(self.step(next(terms)))
        left = 1
        while 2 * left < count:
            left *= 2
        first = self.tree(terms, left)
        return self.add(first, self.tree(terms, count - left))

    def add(self, x: Fraction, y: Fraction) -> Fraction:
        return self.sum(self.step(x + y))

    def terms(self, a: Sequence[Fraction], b: Sequence[Fraction]) -> Iterator[Fraction]:
        if self.chunk > 1:
            assert self.inner is not None
            for i in range(0, len(a), self.chunk):
                yield self.inner.total(a[i : i + self.chunk], b[i : i + self.chunk], Fraction(0), False)
        else:
            for x, y in zip(a, b, strict=True):
                yield x * y if self.product is None else self.product(self.step(x * y))

    def aligned(self, a: Sequence[Fraction], b: Sequence[Fraction], s: Fraction) -> Fraction:
        terms = [s, *(x * y for x, y in zip(a, b, strict=True))]
        if self.alignment is None:
            return sum(terms, Fraction(0))
        of_a, of_b, of_s = self.least
        exponents = [exponent(x, of_a) + exponent(y, of_b) for x, y in zip(a, b, strict=True) if x and y]
        if s:
            exponents.append(exponent(s, of_s))
        if not exponents:
            return Fraction(0)
        unit = Fraction(2) ** (max(exponents) - self.alignment)
        return sum((int(t / unit) * unit for t in terms), Fraction(0))


def exponent(x: Fraction, least: int | None = None) -> int:
    """floor(log2 |x|), by comparison, or the smallest that there is."""
    e = 0
    while abs(x) >= Fraction(2) ** (e + 1):
        e += 1
    while abs(x) < Fraction(2) ** e:
        e -= 1
    return e if least is None else max(e, least)
