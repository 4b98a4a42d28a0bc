"""Sums of products of elements, without their scales, which multiply what was added up: as hardware has them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.accumulator import Accumulator
from lptensor.base import Format
from lptensor.blocks import BlockFormat, Shifted
from lptensor.codes import scales
from lptensor.formats import FP32, FixedPoint, ScalarFormat
from lptensor.gemm import gemm
from lptensor.ops import round_fresh
from lptensor.ranges import Ranges
from lptensor.rounding import Rounding
from lptensor.text import read, write

_LIBRARY = torch.library.Library("lptensor", "FRAGMENT")
_LIBRARY.define("scales(Tensor x, str format) -> Tensor")  # what a graph has in place of a loop over blocks
_LIBRARY.impl("scales", lambda x, format: scales(x, read(format)), "CompositeExplicitAutograd")


def _fake(x: Tensor, format: str) -> Tensor:
    shape = read(format).block_shape(x.shape)
    return x.new_empty([-(-n // wide) for n, wide in zip(x.shape, shape, strict=True)], dtype=torch.float64)


torch.library.register_fake("lptensor::scales", _fake, lib=_LIBRARY)


class Factor(NamedTuple):
    """A rounded operand (..., rows, contraction): elements, and the scale of each ``width`` of them in a row."""

    elements: Tensor
    scales: Tensor | None = None
    width: int = 0


def element_of(format: Format) -> ScalarFormat | None:
    """What the factors of products are in: the format itself where it has no scales; None if it is no scalar format."""
    if isinstance(format, BlockFormat) and isinstance(format.lowered, Ranges):
        return _differences(format, format.lowered)
    if isinstance(format, (BlockFormat, Shifted)):
        format = format.element
    return format if isinstance(format, ScalarFormat) else None


def has_scales(format: Format) -> bool:
    """Whether values are elements times scales."""
    return isinstance(format, (BlockFormat, Shifted))


def _differences(format: BlockFormat, ranges: Ranges) -> FixedPoint:
    """What elements are in after their zero point was subtracted, which takes a bit more."""
    if not ranges.preserve_zero:
        raise ValueError(
            f"sums of elements need values that are an element times a scale, and those of {format!r} start at the "
            "smallest value of a block; say preserve_zero=True"
        )
    return FixedPoint(round(ranges.span / ranges.step).bit_length() + 1, -ranges.steps.quantum(ranges.steps.emin))


def take_apart(x: Tensor, rounded: Tensor, format: Format) -> Factor:
    """The factor that a tensor is after it was rounded to a format that is laid along the last axis.

    Raises:
        ValueError: elements of which values say too little.
    """
    if isinstance(format, Shifted):
        scale = x.new_full([1] * x.dim(), 2.0**format.exponent)
        return Factor(rounded * 2.0**-format.exponent, scale, x.shape[-1])
    if not isinstance(format, BlockFormat):
        return Factor(rounded)
    by_blocks, width = block_scales(x, format)
    of_each = spread(by_blocks, -1, x.shape[-1], width)
    # A value is its element times its scale, rounded to the carrier: the element lies next to the quotient.
    quotient = torch.where(of_each == 0, rounded.double(), rounded.double() / of_each)
    element, bits = element_of(format), round(-math.log2(torch.finfo(x.dtype).eps))
    if element is None or element.grid.precision > bits:
        raise ValueError(f"sums of {x.dtype} add elements of up to {bits} significant bits, got {format!r}")
    elements = round_fresh(quotient, element, Rounding()).to(x.dtype)
    return Factor(elements, by_blocks.to(x.dtype), width)


def block_scales(x: Tensor, format: BlockFormat) -> tuple[Tensor, int]:
    """The scales of (..., rows, blocks) and how many numbers each goes for, along the last axis; float64."""
    shape = format.block_shape(x.shape)
    by_blocks = torch.ops.lptensor.scales(x, write(format)) if _compat.traced() else scales(x, format)
    for axis, (n, wide) in enumerate(zip(x.shape[:-1], shape, strict=False)):
        by_blocks = spread(by_blocks, axis, n, wide)
    return by_blocks, shape[-1]


def spread(scales: Tensor, axis: int, n: int, wide: int) -> Tensor:
    """The scale of each element along an axis; one for all of them stays one."""
    return scales.repeat_interleave(wide, axis).narrow(axis, 0, n) if 1 < wide < n else scales


def add_up(a: Factor, b: Factor, acc: Accumulator, start: Tensor | None = None) -> Tensor:
    """``a @ b.mT + start``: what is unscaled in ``acc`` adds elements, and both scales multiply its sums."""
    dtype, k = a.elements.dtype, a.elements.shape[-1]
    inner = acc if acc.unscaled else acc.inner
    if inner is None or not inner.unscaled:
        raise ValueError(f"sums of elements are the outermost ones, or those of its chunks, got {acc!r}")
    left, right = (f.elements.to(torch.promote_types(dtype, inner.carrier)) for f in (a, b))
    if k == 0 or a.scales is None and b.scales is None:
        return gemm(left, right.mT, acc, None if start is None else start.to(left.dtype)).to(dtype)
    size, outer = (
        (k, Accumulator(FP32)) if acc.unscaled else (acc.chunk, replace(acc, product=None, chunk=1, inner=None))
    )
    _check(a, b, size, k, acc)
    firsts = range(0, k, size)
    if acc.unscaled and dtype == torch.float64:  # of which no sum has the precision
        sums = gemm(left, right.mT, acc) * _scales(a, b, firsts).squeeze(0)
        return sums if start is None else sums + start
    # The sums of chunks are terms of the outer one, for so many rows at a time as have room.
    many = max(1, _ROOM // max(1, math.prod(left.shape[:-2]) * right.shape[-2] * len(firsts)))
    parts = []
    for row in range(0, left.shape[-2], many):
        rows = left[..., row : row + many, :]
        terms = torch.stack([gemm(rows[..., k : k + size], right[..., k : k + size].mT, inner) for k in firsts])
        scales = _scales(a._replace(scales=_rows(a.scales, row, many)), b, firsts).to(terms.dtype)
        begun = _rows(start, row, many)
        begun = None if begun is None else begun.to(terms.dtype).expand_as(terms[0])
        parts.append(_add_scaled(terms, scales.expand_as(terms), outer, begun))
    return torch.cat(parts, -2).to(dtype) if parts else gemm(left, right.mT, inner).to(dtype)


_ROOM = 2**22


def _add_scaled(terms: Tensor, scales: Tensor, acc: Accumulator, start: Tensor | None) -> Tensor:
    """The sums of terms times their scales over the first axis, each product an exact term."""
    if terms.dtype == torch.float32 and acc.compute == "exact":
        # They are exact in float64, where kernels add up neighbouring columns.
        products = (terms.double() * scales.double()).flatten(1)
        begun = None if start is None else start.double().reshape(1, -1)
        ones = products.new_ones(()).expand(1, len(products))
        return gemm(ones, products, acc, begun).view(terms.shape[1:])
    begun = None if start is None else start[..., None, None]
    return gemm(terms.movedim(0, -1).unsqueeze(-2), scales.movedim(0, -1).unsqueeze(-1), acc, begun)[..., 0, 0]


def _rows(x: Tensor | None, first: int, count: int) -> Tensor | None:
    """Some rows, of which one may stand for all."""
    return x if x is None or x.shape[-2] == 1 else x[..., first : first + count, :]


def _scales(a: Factor, b: Factor, firsts: Sequence[int]) -> Tensor:
    """What multiplies sums that begin with these products: (sums, ..., rows, columns), each side 1 where all agree."""
    left, right = (_at(factor, firsts) for factor in (a, b))
    most = torch.finfo(a.elements.dtype).max
    return (left.unsqueeze(-1) * right.unsqueeze(-2)).clamp(max=most)


def _at(factor: Factor, firsts: Sequence[int]) -> Tensor:
    if factor.scales is None:
        return factor.elements.new_ones([1] * factor.elements.dim())
    return torch.stack([factor.scales[..., k // factor.width] for k in firsts])


def _check(a: Factor, b: Factor, size: int, k: int, acc: Accumulator) -> None:
    """Refuse sums of elements along which scales change."""
    for factor in (a, b):
        if factor.scales is not None and factor.width < k and factor.width % size:
            raise ValueError(
                f"the scales of an operand change every {factor.width} products, and {acc!r} adds the elements of "
                f"{size} before it multiplies; let it add chunks: Accumulator(FP32, chunk={factor.width}, inner=...)"
            )
