"""Block formats: elements that share a scale."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

from lptensor.base import CARRIER_MAX, CARRIER_MIN_EXPONENT, CARRIER_PRECISION, check_carried, no_format, set_int
from lptensor.codebooks import single
from lptensor.formats import (
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    E8M0,
    FP32,
    OCP_MX,
    FixedPoint,
    FloatingPoint,
    Format,
    Grid,
    Overflow,
    ScalarFormat,
)
from lptensor.layout import Layout
from lptensor.names import row
from lptensor.ranges import Ranges, ranges_of
from lptensor.scaling import (
    INFINITE,
    PER_TENSOR,
    SCALE_RULES,
    Channel,
    CurrentMaximum,
    CurrentRange,
    DelayedMaximum,
    PowerOfTwo,
    Scaling,
    Tile,
    check_one_of,
)


class Blocks(NamedTuple):
    """What a kernel gets where scales are powers of two; ``struct lpt_blocks`` in csrc/block.h.

    The grid of ``element`` is shifted by exponent(m) - emax, m being the largest magnitude of the
    block, one more where the significand of m exceeds ``bump``, and held to low .. high.
    """

    element: Grid
    emax: int
    low: int
    high: int
    bump: float = 2.0
    saturate: bool = False

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_blocks"


class ScaledBlocks(NamedTuple):
    """What a kernel gets where scales are any number; ``struct lpt_scaled`` in csrc/block.h.

    The fields are those of ``CurrentMaximum``; ``top`` divides a block's largest magnitude and
    ``whole`` the tensor's, 0 where the tensor has no scale of its own. Numbers are fp32's.
    """

    element: Grid
    scale: Grid
    top: float
    whole: float
    floor: float
    ceiling: float
    reciprocal: bool = False
    saturate: bool = False

    @property
    def loop(self) -> str:
        """What rounds to it: a function of this name in reference.py and in the kernels of a device."""
        return "round_scaled"


class BlockFormat(Format):
    """A format whose elements share one scale per block; ``element`` is what they are before they are scaled.

    A kind of its own says its ``tile``, its ``lowered`` and, to stand in a ``Gemm``, its ``tiled``.
    """

    element: ScalarFormat
    kind = "block"

    @property
    def tile(self) -> Tile:
        """Which elements share a scale."""
        raise NotImplementedError(f"{type(self).__name__} does not say which elements share a scale: give it a tile")

    def tiled(self, tile: Tile) -> BlockFormat:
        """The same format with other blocks.

        Raises:
            ValueError: blocks that the format cannot have.
            NotImplementedError: a kind of format that has no other blocks.

        >>> MXFP4.tiled(Tile((16, 16)))
        MX(element=E2M1, block_size=(16, 16))
        """
        raise NotImplementedError(
            f"{type(self).__name__} does not say what it is with blocks of {tile!r}: give it a method tiled(tile)"
        )

    @property
    def scale(self) -> ScalarFormat | None:
        """The format of its scales; None if they are powers of two that nothing bounds."""
        return None

    @property
    def offset(self) -> ScalarFormat | None:
        """The format of what each block has beside its scale, a zero point or its smallest value; None without one."""
        return None

    @property
    def lowered(self) -> Blocks | ScaledBlocks | Ranges:
        """The plain numbers that a kernel gets of the format."""
        raise NotImplementedError

    def has(self, x: float) -> bool:
        return x == 0  # what else a block has is its scale's to say

    def contains(self, other: Format) -> bool:
        raise TypeError(f"the values of {self!r} depend on its scales; ask its element")

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How wide a block is along each axis of a tensor of this shape.

        >>> MXFP4.block_shape((4, 64)), NVFP4.block_shape((4, 64))
        ((1, 32), (1, 16))
        """
        return self.tile.block_shape(shape)


@dataclass(frozen=True, repr=False)
class BlockFloatingPoint(BlockFormat):
    """Block floating point: ``wl``-bit sign-magnitude integers under one exponent per block.

    With E = floor(log2(max(abs(x)))) of a block, its values are the multiples of 2**(E - wl + 2) up to
    (2 - 2**(2 - wl)) * 2**E in magnitude. A block with NaN or an infinity becomes NaN, one of zeros
    stays zero, and -0 is kept.

    Args:
        wl: bits of an element with its sign, 2 to 24.
        dim: without block_size, -1 means one exponent for the whole tensor and d one for each
            index of axis d (as QPyTorch). With block_size it is the axis that blocks run along.
        block_size: elements per block along ``dim``, the last block may be short; or the sides of
            a tile over the last axes, such as (24, 24).
        overflow: a maximum that rounds up to 2**(E + 1), to nearest, is held at the largest value
            ("clip", as QPyTorch), or the exponent of its block goes one up ("bump").
        infinite: "saturate" leaves infinities out of the maximum and takes them to the largest value.

    A tensor that lacks the axis is one block.

    Raises:
        TypeError, ValueError: a wl, dim, block size, overflow or infinite outside of what is listed.

    >>> BlockFloatingPoint(8, dim=0).block_shape((4, 6))
    (1, 6)
    >>> BlockFloatingPoint(8, dim=-1, block_size=4).block_shape((4, 6))
    (1, 4)
    """

    wl: int
    dim: int = -1
    block_size: int | tuple[int, ...] | None = None
    overflow: str = "clip"
    infinite: str = "nan"
    kind_source = "QPyTorch, arXiv 1910.04540"

    def __post_init__(self) -> None:
        set_int(self, "wl", 2, 24)
        set_int(self, "dim", -16 if self.block_size is not None else -1, 15)
        if self.block_size is not None:
            _settle_size(self, _tile(self.block_size, self.dim))
        check_one_of("overflow", self.overflow, ("clip", "bump"))
        check_one_of("infinite", self.infinite, INFINITE)

    @cached_property
    def element(self) -> FloatingPoint:  # type: ignore[override]
        """Sign and magnitude, up to 2 - 2**(2 - wl): what the values of a block are over 2**E."""
        return FloatingPoint(1, self.wl - 2, bias=1, specials="none")

    @cached_property
    def lowered(self) -> Blocks:
        """The plain numbers that a kernel gets of the format."""
        element = self.element.grid
        bump = SCALE_RULES["even" if self.overflow == "bump" else "floor"](element)
        return Blocks(element, 0, -(2**20), 2**20, bump, saturate=self.infinite == "saturate")

    @cached_property
    def tile(self) -> Tile:
        """Which elements share an exponent."""
        if self.block_size is not None:
            return _tile(self.block_size, self.dim)
        return PER_TENSOR if self.dim < 0 else Channel(self.dim)

    def tiled(self, tile: Tile) -> BlockFloatingPoint:
        """The same format with other blocks; a whole axis is a block of 2**62."""
        if tile == PER_TENSOR:
            return replace(self, dim=-1, block_size=None)
        if tile.axes and tile.axes[0] >= 0 and tile == Channel(tile.axes[0]):
            return replace(self, dim=tile.axes[0], block_size=None)
        size, axis = _size_and_axis(self, tile)
        return replace(self, dim=axis, block_size=2**62 if size is None else size)


class _Scaled(BlockFormat):
    """What the formats that are an element and a scaling have in common."""

    scaling: CurrentMaximum | CurrentRange

    @cached_property
    def lowered(self) -> Blocks | ScaledBlocks | Ranges:
        """The plain numbers that a kernel gets of the format."""
        element, scaling = self.element, self.scaling
        if not isinstance(element, ScalarFormat):
            raise _no_element(element)
        if isinstance(scaling, CurrentRange):
            return ranges_of(element, scaling)
        grid = element.grid._replace(overflow=Overflow.SATURATE)
        if not 0 < grid.max < math.inf or not grid.zero:
            raise ValueError(f"elements of blocks need a zero and a largest value, which {element!r} lacks")
        if grid.precision > CARRIER_PRECISION:
            raise ValueError(f"{element!r} has {grid.precision} significant bits, blocks carry {CARRIER_PRECISION}")
        saturate, emax = scaling.infinite == "saturate", _exponent(grid.max)
        scale = scaling.scale.grid
        if scaling.powers:
            bump, high = SCALE_RULES[scaling.rule](grid), _exponent(scale.max)
            return Blocks(grid, emax - scaling.margin, scale.emin, high, bump, saturate)
        if scale.precision > CARRIER_PRECISION:
            raise ValueError(f"{scaling.scale!r} has {scale.precision} significant bits, scales {CARRIER_PRECISION}")
        top = math.ldexp(grid.max if scaling.top is None else single(scaling.top), -scaling.margin)
        if not 0 < top <= CARRIER_MAX or single(top) != top:
            of = f"{element!r}'s largest value" if scaling.top is None else f"top={scaling.top:g}"
            raise ValueError(f"margin={scaling.margin} makes {top:g}, no fp32 number, of {of}")
        whole = min(max(single(top * scale.max), 2.0**CARRIER_MIN_EXPONENT), CARRIER_MAX)
        floor = max(single(scaling.floor), 0.0 if scale.zero else scale.smallest)
        whole = whole if scaling.tensor_scale else 0.0
        return ScaledBlocks(grid, scale, top, whole, floor, scale.max, scaling.reciprocal, saturate)

    @property
    def tile(self) -> Tile:
        """Which elements share a scale: what the scaling says."""
        return self.scaling.tile

    @property
    def scale(self) -> ScalarFormat:
        """The format of its scales: what the scaling says."""
        return FP32 if isinstance(self.scaling, CurrentRange) else self.scaling.scale

    @property
    def offset(self) -> ScalarFormat | None:
        """The format of its zero points, or of the smallest values of its blocks; None under a maximum."""
        if not isinstance(self.scaling, CurrentRange):
            return None
        return self.element if self.scaling.preserve_zero else FP32

    def tiled(self: Any, tile: Tile) -> Any:
        """The same format with other blocks."""
        size, axis = _size_and_axis(self, tile)
        return replace(self, block_size=size, axis=axis)


@dataclass(frozen=True, repr=False)
class ScaledBlockFormat(_Scaled):
    """A scalar format under scales from current maxima or ranges; made by ``Scaled``."""

    element: ScalarFormat
    scaling: CurrentMaximum | CurrentRange

    def __post_init__(self) -> None:
        _ = self.lowered

    def has(self, x: float) -> bool:
        return super().has(x) and (not isinstance(self.scaling, CurrentRange) or self.scaling.preserve_zero)

    def tiled(self, tile: Tile) -> ScaledBlockFormat:
        """The same format with other blocks."""
        return replace(self, scaling=replace(self.scaling, tile=tile))

    def spelled(self) -> str:
        """The call that makes the format."""
        return f"Scaled({self.element!r}, {self.scaling!r})"


@dataclass(frozen=True, repr=False)
class MX(_Scaled):
    """Microscaling (OCP MX v1.0): scalar elements under one power of two, E8M0, for each block.

    The scale is 2**-127 to 2**127 and comes from the block's largest magnitude by ``scale_rule``
    (see ``CurrentMaximum``): "floor" is the standard's and may clip the largest, "rceil" is advised
    for training (2506.08027). Elements saturate, whatever their overflow is elsewhere. Values that
    the element's grid has but the carrier lacks, as under the largest scales, become infinite.

    A block with NaN or an infinity becomes NaN; infinite="saturate" leaves infinities out of the
    maximum and takes them to the largest value. A block of zeros stays zero, with its signs if the
    element has -0.

    Args:
        element: any float or fixed-point format with a zero and a largest value.
        block_size: elements per block along ``axis``, the last block may be short; or the sides of
            a tile over the last axes, such as (32, 32). A tensor without that axis is one block.
        axis: the axis that blocks run along, -16 to 15.
        scale_rule: "floor", "ceil", "even" or "rceil".
        infinite: "nan" or "saturate".

    Raises:
        TypeError: an element that is not a scalar format, an axis or a block size that is not an integer.
        ValueError: an element without a zero or a largest value, or with more than 24 significant bits; an unknown
            scale rule or infinite; a block size below 1; an axis out of range, or beside a tile.

    >>> import torch, lptensor
    >>> lptensor.round(torch.tensor([6.5, 7.0, 1.0]), MX(E2M1, scale_rule="rceil"))
    tensor([6., 8., 1.])
    """

    element: ScalarFormat
    block_size: int | tuple[int, ...] = 32
    axis: int = -1
    scale_rule: str = "floor"
    infinite: str = "nan"
    kind_source = OCP_MX

    def __post_init__(self) -> None:
        check_one_of("scale_rule", self.scale_rule, SCALE_RULES)
        set_int(self, "axis", -16, 15)
        _settle_size(self, self.scaling.tile)
        _ = self.lowered

    @cached_property
    def scaling(self) -> CurrentMaximum:  # type: ignore[override]
        """The scales, as ``Scaled`` takes them."""
        return CurrentMaximum(_tile(self.block_size, self.axis), E8M0, self.scale_rule, infinite=self.infinite)


@dataclass(frozen=True, repr=False)
class TwoLevel(_Scaled):
    """Elements under a small-float scale for each block, and that under an fp32 scale for the tensor.

    NVFP4 (2509.25149) is E2M1 in blocks of 16 under E4M3. The arithmetic, its order and what NaN,
    infinities, -0 and zero blocks become is written at ``CurrentMaximum``.

    Args:
        element, infinite: as for ``MX``.
        block_size, axis: as for ``MX``; (16, 16) are the square blocks of NVFP4 weights.
        scale: format of the block scales, no power of two.
        tensor_scale: False for a single level.
        floor: the smallest block scale: 2**-6 is torchao's, 0 leaves all of E4M3.
        reciprocal: multiply by the scale's reciprocal, as torchao does, instead of dividing.

    Raises:
        TypeError: an element or a scale that is not a scalar format, a switch, number or axis that is not one.
        ValueError: a scale without a largest value, or that is a power of two and has a tensor scale or a floor
            beside it; a floor beyond the largest scale, an element as MX refuses it, a block size below 1.

    >>> import torch, lptensor
    >>> lptensor.round(torch.tensor([2688.0, 100.0, 1000.0]), TwoLevel(E2M1))
    tensor([2688.,    0.,  896.])
    """

    element: ScalarFormat
    block_size: int | tuple[int, ...] = 16
    axis: int = -1
    scale: ScalarFormat = E4M3
    tensor_scale: bool = True
    floor: float = 0.0
    reciprocal: bool = False
    infinite: str = "nan"
    kind_source = "arXiv 2509.25149"

    def __post_init__(self) -> None:
        set_int(self, "axis", -16, 15)
        _settle_size(self, self.scaling.tile)
        _ = self.lowered
        object.__setattr__(self, "floor", self.scaling.floor)  # an int or numpy's float becomes a float

    @cached_property
    def scaling(self) -> CurrentMaximum:  # type: ignore[override]
        """The scales, as ``Scaled`` takes them."""
        return CurrentMaximum(
            _tile(self.block_size, self.axis),
            self.scale,
            tensor_scale=self.tensor_scale,
            floor=self.floor,
            reciprocal=self.reciprocal,
            infinite=self.infinite,
        )


@dataclass(frozen=True, repr=False)
class Shifted(ScalarFormat):
    """A scalar format times 2**exponent, specials and all; made by ``Scaled``."""

    element: ScalarFormat
    exponent: int
    kind = "scaled"

    def __post_init__(self) -> None:
        if not isinstance(self.element, ScalarFormat):
            raise TypeError(f"expected a scalar format such as E4M3, got {no_format(self.element)}")
        check_carried(self, self.grid, precision=53)

    def spelled(self) -> str:
        """The call that makes the format."""
        return f"Scaled({self.element!r}, PowerOfTwo({self.exponent}))"

    @cached_property
    def grid(self) -> Grid:
        """The values and what lies outside of them, as plain numbers."""
        g, k = self.element.grid, self.exponent
        top, bottom = math.ldexp(g.max, k), math.ldexp(g.min, k)
        return g._replace(emin=g.emin + k, emax=g.emax + k, max=top, min=bottom)

    @property
    def layout(self) -> Layout:
        """Where the values lie among the codes."""
        return self.element.layout


def Scaled(element: ScalarFormat, scaling: Scaling | None) -> Format:
    """The format of values s * v: ``element``'s values v under the scales s that ``scaling`` chooses.

    What NaN, infinities, -0 and overflow become is told by the scaling.

    Args:
        element: a float or fixed-point format; under a maximum one with a zero and a largest value, under a range one
            with equal steps.
        scaling: ``PowerOfTwo``, ``CurrentMaximum``, ``CurrentRange``, or None, which scales nothing.

    Raises:
        TypeError: no scalar format, no scaling, or one with a state (``DelayedMaximum``), which a format cannot hold.
        ValueError: an element that blocks do not take (see ``MX``), a range that fp32 does not hold.

    >>> Scaled(E4M3, CurrentMaximum(Tile((1, 128)))).block_shape((4, 512))
    (1, 128)
    """
    if not isinstance(element, ScalarFormat):
        raise _no_element(element)
    if scaling is None:
        return element
    if isinstance(scaling, PowerOfTwo):
        return Shifted(element, scaling.exponent)
    if isinstance(scaling, (CurrentMaximum, CurrentRange)):
        return ScaledBlockFormat(element, scaling)
    way = "; say CurrentMaximum of it" if isinstance(scaling, Tile) else ""
    if isinstance(scaling, DelayedMaximum):
        way = "; it has a state, for which DelayedScaling is a module"
    raise TypeError(f"scaling must be a CurrentMaximum, a CurrentRange, a PowerOfTwo or None, got {scaling!r}{way}")


def _tile(block_size: int | tuple[int, ...], axis: int) -> Tile:
    if not isinstance(block_size, (tuple, list)):
        return Tile((block_size,), (axis,))
    if axis != -1:
        raise ValueError(
            f"a tile {block_size} lies on the last axes, got axis {axis}; runs along an axis have one size"
        )
    return Tile(block_size)


def _size_and_axis(format: BlockFormat, tile: Tile) -> tuple[Any, int]:
    """The block size and the axis that make a tile; a size of None is the whole axis."""
    one = len(tile.widths) == 1
    size: Any = tile.widths[0] if one else tile.widths
    axis = (tile.axes or ())[0] if one else -1
    if not tile.widths or tile != _tile(size, axis):
        kind = type(format).__name__
        raise ValueError(f"{kind} has blocks along one axis, or tiles over the last axes, which {tile!r} is not")
    return size, axis


def _settle_size(format: Any, tile: Tile) -> None:
    """The block size of a format as its tile has it, in Python's own integers."""
    size = tile.widths if isinstance(format.block_size, (tuple, list)) else tile.widths[0]
    object.__setattr__(format, "block_size", size)


def _exponent(value: float) -> int:
    return math.frexp(value)[1] - 1


def _no_element(given: object) -> TypeError:
    way = "; lptensor.training.Blockwise scales lists of values" if hasattr(given, "table") else ""
    return TypeError(
        f"the element must be a scalar format such as E4M3 or FixedPoint(8, 6), got {no_format(given)}{way}"
    )


MXINT = row(
    "MXINT",
    FixedPoint(8, 6, symmetric=True),  # section 5.3.4: two's complement with -2 unused
    OCP_MX,
    "The element of MXINT8, from -127/64 to 127/64: one bit before the point, six behind.",
)
MXFP8_E4M3 = row("MXFP8_E4M3", MX(E4M3), OCP_MX, "The range of E4M3 inside a block.")
MXFP8_E5M2 = row("MXFP8_E5M2", MX(E5M2), OCP_MX, "The range of E5M2 inside a block.")
MXFP6_E3M2 = row("MXFP6_E3M2", MX(E3M2), OCP_MX, "The wider six-bit format of MX.")
MXFP6_E2M3 = row("MXFP6_E2M3", MX(E2M3), OCP_MX, "The finer six-bit format of MX.")
MXFP4 = row("MXFP4", MX(E2M1), OCP_MX, "E2M1 under powers of two.")
MXINT8 = row("MXINT8", MX(MXINT), OCP_MX, "Eight-bit integers under powers of two.")
NVFP4 = row(
    "NVFP4",
    TwoLevel(E2M1),
    "arXiv 2509.25149",
    "E2M1 under scales with a significand, and all of those under one fp32 scale for the tensor.",
)
