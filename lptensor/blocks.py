"""Block formats: elements that share an exponent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lptensor.formats import Format, Grid, Overflow, check_int


class Blocks(NamedTuple):
    """What a kernel gets of a block format; ``struct lpt_blocks`` in csrc/block.h.

    The grid of ``element`` is shifted by exponent(max |x|) - emax, held to low .. high.
    """

    element: Grid
    emax: int
    low: int
    high: int


class BlockFormat(Format):
    """A format whose elements share one exponent per block."""

    @property
    def lowered(self) -> Blocks:
        raise NotImplementedError

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How wide a block is along each axis of a tensor of this shape."""
        raise NotImplementedError


@dataclass(frozen=True, repr=False)
class BlockFloatingPoint(BlockFormat):
    """Block floating point: ``wl``-bit sign-magnitude integers under one exponent per block.

    With E = floor(log2(max |x|)) of a block, its values are the multiples of 2**(E - wl + 2) up to
    (2 - 2**(2 - wl)) * 2**E in magnitude; what rounds beyond is held there. A block with NaN or an
    infinity becomes NaN, one of zeros stays zero, and -0 is kept.

    Args:
        wl: bits of an element with its sign, 2 to 24.
        dim: without block_size, -1 means one exponent for the whole tensor and d one for each
            index of axis d (as QPyTorch). With block_size it is the axis that blocks run along.
        block_size: elements per block along ``dim``; the last block may be short.

    A tensor that lacks the axis is one block.

    >>> BlockFloatingPoint(8, dim=0).block_shape((4, 6))
    (1, 6)
    >>> BlockFloatingPoint(8, dim=-1, block_size=4).block_shape((4, 6))
    (1, 4)
    """

    wl: int
    dim: int = -1
    block_size: int | None = None

    def __post_init__(self) -> None:
        check_int("wl", self.wl, 2, 24)
        check_int("dim", self.dim, -16 if self.block_size is not None else -1, 15)
        if self.block_size is not None:
            check_int("block_size", self.block_size, 1, 2**62)

    @cached_property
    def lowered(self) -> Blocks:
        top = 2.0 - 2.0 ** (2 - self.wl)
        element = Grid(self.wl - 1, emin=0, emax=0, max=top, min=-top, overflow=Overflow.SATURATE)
        return Blocks(element, emax=0, low=-(2**20), high=2**20)

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        whole = tuple(max(n, 1) for n in shape)
        axis = self.dim + len(shape) if self.dim < 0 and self.block_size is not None else self.dim
        if not 0 <= axis < len(shape):
            return whole
        if self.block_size is None:
            return (*whole[:axis], 1, *whole[axis + 1 :])
        return (*(1,) * axis, self.block_size, *(1,) * (len(shape) - axis - 1))
