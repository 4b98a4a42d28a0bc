"""One of a layer's three products on plain tensors: round both operands, multiply, add up."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lptensor.accumulator import Accumulator
from lptensor.base import Format
from lptensor.block_exponents import Numbers, add_counted, finite
from lptensor.full_fp32 import in_full_fp32
from lptensor.gemm import gemm
from lptensor.hadamard import Hadamard
from lptensor.observe import saying
from lptensor.operands import Gemm, Operand, Product
from lptensor.sums import add
from lptensor.unscaled_sums import Factor, add_up, element_of, has_scales
from lptensor.watch import tell

Factors = tuple[Tensor | None, Tensor | None]


@dataclass(frozen=True)
class Multiply:
    """How products are formed, and which one this is.

    Args:
        gemm: what operands are rounded to.
        accumulator: what adds up the products; None for torch's own kernels.
        product: None for a product of none of the three kinds, whose operands are kept.
        gradient: the place of the gradient among the two operands.
        factors: the left and the right operand as they came to the op, None for what was made there.
    """

    gemm: Gemm | None
    accumulator: Accumulator | None
    product: Product | None = Product.FORWARD
    gradient: int = 0
    factors: Factors = (None, None)

    def of(self, product: Product | None, gradient: int = 0, factors: Factors = (None, None)) -> Multiply:
        """The same for another product."""
        return Multiply(self.gemm, self.accumulator, product, gradient, factors)

    @property
    def asks(self) -> bool:
        """Whether it matters which product this is."""
        return self.gemm is not None or self.accumulator is not None and self.accumulator.names_operands

    @property
    def pair(self) -> tuple[Operand | None, Operand | None]:
        """What the left and the right operand are rounded to."""
        if self.gemm is None or self.product is None:
            return None, None
        first, second = self.gemm.pair(self.product)
        swapped = self.product is not Product.FORWARD and self.gradient == 1
        return (second, first) if swapped else (first, second)

    @property
    def elementwise(self) -> bool:
        """Whether elements are rounded where they stand, whatever becomes of the tensors."""
        kept = [operand for operand in self.pair if operand is not None]
        if self.adds_elements and any(has_scales(operand.format) for operand in kept):
            return False  # scales go with their operand into the product
        return self.transform is None and all(operand.elementwise for operand in kept)

    @property
    def adds_elements(self) -> bool:
        """Whether the accumulator adds products of elements without their scales."""
        return self.accumulator is not None and self.accumulator.adds_elements

    @property
    def by_blocks(self) -> tuple[bool, bool]:
        """Whether it is the blocks of an operand that say what its exponents are, where digits are cut off."""
        acc = self.accumulator
        if acc is None or not acc.asks or acc.adds_elements:
            return False, False
        first, second = (operand is not None and operand.has_exponents for operand in self.pair)
        return first, second

    @property
    def rounded(self) -> Multiply:
        """The same product of operands that are rounded already."""
        return Multiply(None, self.adder)

    @property
    def adder(self) -> Accumulator | None:
        """The accumulator, which may ask what the operands are in.

        The formats that it names itself are those of an input and a weight; gradients are in none of them.
        """
        named = self.accumulator
        if named is None or not named.asks:
            return named
        if self.product is None:
            named = named.naming(False, False)
        elif self.product is not Product.FORWARD:
            place = 0 if self.product is Product.GRAD_INPUT else 1  # whose the gradient takes: g w' and x' g
            named = named.naming(place == 1, place == 0)
            named = named if self.gradient == place else named.turned
        first, second = self.by_blocks
        a, b = map(self._format, self.pair, self.factors)
        return named.naming(not first, not second).of_factors(a, b)

    def _format(self, operand: Operand | None, factor: Any) -> Format | None:
        """What a factor is in when it is multiplied; None where that is unknown, as of a plain one."""
        if operand is not None:
            known = operand.elementwise or self.adds_elements
            return (element_of(operand.format) if self.adds_elements else operand.format) if known else None
        if self.transform is not None or not hasattr(factor, "_arithmetic"):
            return None
        format: Format | None = factor._arithmetic.sides[factor._gradient][0]
        return format

    @property
    def transform(self) -> Hadamard | None:
        """What both operands go through before they are rounded."""
        return None if self.gemm is None or self.product is None else self.gemm.transform_of(self.product)

    @property
    def draws(self) -> bool:
        """Whether a repetition would draw other random bits."""
        random = self.transform is not None and self.transform.signs == "random"
        stochastic = any(operand is not None and operand.rounding.stochastic for operand in self.pair)
        return random or stochastic or self.accumulator is not None and self.accumulator.stochastic

    def operands(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """``a`` (..., rows, k) and ``b`` (..., k, columns), transformed and rounded along k."""
        rows, columns = self._transformed(a, b.mT)
        return self.round(rows, 0), self.round(columns, 1).mT

    def _transformed(self, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        if self.transform is None:
            return rows, columns
        signs = self.transform.draw(rows)
        return self.transform.apply(rows, signs), self.transform.apply(columns, signs)

    def round(self, x: Tensor, place: int) -> Tensor:
        """The left operand (0) or the right one (1), its contraction axis last."""
        operand = self.pair[place]
        if operand is None:
            return x
        gradient = self.product is not Product.FORWARD and place == self.gradient
        with nullcontext() if gradient else saying("operand", self.factors[place]):
            rounded = operand.quantize(x)
        tell(rounded, operand.format, operand.rounding)
        return rounded

    def factor(self, x: Tensor, place: int) -> Factor:
        """The same, as elements and their scales."""
        operand, rounded = self.pair[place], self.round(x, place)
        return Factor(x) if operand is None else operand.apart(x, rounded)

    def numbers(self, x: Tensor, place: int) -> Numbers:
        """The same, and what its numbers count as."""
        operand, rounded = self.pair[place], self.round(x, place)
        return rounded, operand.counted(x, rounded) if operand and self.by_blocks[place] else finite(rounded)

    def matmul(self, a: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
        """``a @ b`` of rounded operands; an accumulator begins its sums with ``start``."""
        adder = self.adder
        rows, columns = self._transformed(a, b.mT)
        if adder is not None and adder.adds_elements:
            return add_up(self.factor(rows, 0), self.factor(columns, 1), adder, start)
        if adder is not None and any(self.by_blocks):
            return add_counted(self.numbers(rows, 0), self.numbers(columns, 1), adder, start)
        a, b = self.round(rows, 0), self.round(columns, 1).mT
        if adder is None:
            product: Tensor = in_full_fp32(torch.matmul)(a, b)
            return product if start is None else product + start
        return gemm(a, b, adder, start)

    def sum(self, x: Tensor, dim: list[int] | int, keepdim: bool = False) -> Tensor:
        """A sum that belongs to the op, over axes."""
        if self.accumulator is None or self.adds_elements:
            return x.sum(dim, keepdim)
        return add(x, dim, self.accumulator, keepdim)
