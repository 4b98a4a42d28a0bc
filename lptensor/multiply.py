"""One of a layer's three products on plain tensors: round both operands, then multiply."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from lptensor.operands import Gemm, Operand, Product

Seen = Callable[[Tensor, Any, Any, bool], None]  # is told every rounding


@dataclass(frozen=True)
class Multiply:
    """How products are formed, and which one this is.

    Args:
        gemm: what operands are rounded to.
        seen: is told of each rounded operand: the tensor, format, rounding, and whether it is a gradient.
        product: None for a product of none of the three kinds, whose operands are kept.
        gradient: the place of the gradient among the two operands.
    """

    gemm: Gemm | None
    seen: Seen
    product: Product | None = Product.FORWARD
    gradient: int = 0

    def of(self, product: Product | None, gradient: int = 0) -> Multiply:
        """The same for another product."""
        return replace(self, product=product, gradient=gradient)

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
        """Whether each element is rounded on its own, wherever it stands in a matrix."""
        if self.gemm is None or self.product is None:
            return True
        return self.gemm.transform_of(self.product) is None and all(p is None or p.elementwise for p in self.pair)

    def operands(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """``a`` (..., rows, k) and ``b`` (..., k, columns), transformed and rounded along k."""
        left, right = self.pair
        transform = None if self.gemm is None or self.product is None else self.gemm.transform_of(self.product)
        rows, columns = a, b.mT
        if transform is not None:
            signs = transform.draw(a)
            rows, columns = transform.apply(rows, signs), transform.apply(columns, signs)
        return self.round(rows, left, 0), self.round(columns, right, 1).mT

    def round(self, x: Tensor, operand: Operand | None, place: int) -> Tensor:
        """One operand, its contraction axis last."""
        if operand is None:
            return x
        rounded = operand.quantize(x)
        backward = self.product is not Product.FORWARD and self.gradient == place
        self.seen(rounded, operand.format, operand.rounding, backward)
        return rounded

    def matmul(self, a: Tensor, b: Tensor) -> Tensor:
        """``a @ b`` of rounded operands."""
        a, b = self.operands(a, b)
        return a @ b
