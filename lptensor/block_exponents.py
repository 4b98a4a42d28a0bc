"""Sums that cut off digits below the largest exponent, of operands whose blocks say what exponents elements have.

In hardware a subnormal element counts with the smallest exponent of its format, times its block's scale. A kernel knows
one smallest exponent of a whole operand, and what it cuts off depends on the largest exponent alone. So two products of
what the factors count as stand beside each product: they raise that exponent, and cancel.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lptensor.accumulator import LEAST_EXPONENT, Accumulator, least_exponent
from lptensor.base import Format
from lptensor.blocks import BlockFormat, Blocks
from lptensor.gemm import gemm
from lptensor.unscaled_sums import block_scales, element_of, spread

_MOST = 512 // 3  # products added at once, of which a kernel takes 512


def has_exponents(format: Format) -> bool:
    """Whether elements under powers of two, one for each block, have a smallest exponent."""
    by_powers = isinstance(format, BlockFormat) and isinstance(format.lowered, Blocks)
    return by_powers and least_exponent(element_of(format)) > LEAST_EXPONENT


def counted(x: Tensor, rounded: Tensor, format: BlockFormat) -> Tensor:
    """What each number counts as, after it was rounded to blocks that are laid along the last axis."""
    by_blocks, width = block_scales(x, format)
    smallest = spread(by_blocks, -1, x.shape[-1], width) * 2.0 ** least_exponent(element_of(format))
    raised = (rounded != 0) & (rounded.abs() < smallest)
    return finite(torch.where(raised, smallest.to(x.dtype), rounded))


def finite(x: Tensor) -> Tensor:
    """The same without infinities and NaN, which do not cancel."""
    return torch.where(x.isfinite(), x, 0.0)


Numbers = tuple[Tensor, Tensor]  # (..., rows, contraction), and what they count as


def add_counted(a: Numbers, b: Numbers, acc: Accumulator, start: Tensor | None = None) -> Tensor:
    """``a @ b.mT + start``.

    Raises:
        ValueError: more products at once than a kernel can add.
    """
    (rows, of_rows), (columns, of_columns) = a, b
    left = torch.stack([rows, of_rows, -of_rows], -1).flatten(-2)
    right = torch.stack([columns, of_columns, of_columns], -1).flatten(-2)
    return gemm(left, right.mT, _of_three(acc), start)


def _of_three(acc: Accumulator) -> Accumulator:
    """The same for three products in place of each."""
    if acc.order == "aligned" and acc.chunk > _MOST:
        raise ValueError(
            "of operands in blocks under powers of two, such as MX, an accumulator with an alignment adds up to "
            f"{_MOST} products at once, got chunk={acc.chunk}; give a smaller chunk, or leave the alignment out"
        )
    inner = acc.inner and _of_three(acc.inner)
    return replace(acc, chunk=min(3 * acc.chunk, 2**31 - 1), inner=inner)
