"""What the operands of matrix products are rounded to, in each of the three products of a layer."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lptensor.base import Format, check_signed, no_format
from lptensor.block_exponents import counted, has_exponents
from lptensor.blocks import BlockFormat
from lptensor.hadamard import Hadamard
from lptensor.ops import round_fresh
from lptensor.rounding import Mode, Rounding, as_rounding, show_rounding
from lptensor.scaling import PER_TENSOR, Tile
from lptensor.text import constant
from lptensor.unscaled_sums import Factor, take_apart


class Product(enum.Enum):
    """The three products that a layer is made of: ``y = x w``, and the gradients of x and of w."""

    FORWARD = "forward"
    GRAD_INPUT = "grad_input"
    GRAD_WEIGHT = "grad_weight"


@constant
@dataclass(frozen=True)
class Operand:
    """How one operand of a product is rounded: a format and a rounding.

    A technique that a format cannot express is a frozen subclass with a ``quantize`` of its own.

    Args:
        format: any; a block format's blocks run along the contraction axis (see ``along_contraction``).
        rounding: a name, ``Mode`` or ``Rounding``.

    Raises:
        TypeError: no format.
        ValueError: an unknown rounding, or tiles over more than two axes.
        NotImplementedError: a block format of one's own whose blocks cannot be moved.

    >>> from lptensor import BF16
    >>> Operand(BF16, "stochastic")
    Operand(BF16, 'stochastic')
    """

    format: Format
    rounding: Rounding = field(default_factory=Rounding)
    _lowered: Format = field(init=False, compare=False, repr=False)

    def __init__(self, format: Format, rounding: Rounding | Mode | str = "nearest") -> None:
        if not isinstance(format, Format):
            raise TypeError(f"an operand is rounded to a number format such as MXFP8_E4M3, got {no_format(format)}")
        object.__setattr__(self, "format", format)
        object.__setattr__(self, "rounding", as_rounding(rounding))
        object.__setattr__(self, "_lowered", along_contraction(format))

    def __init_subclass__(cls) -> None:
        torch.serialization.add_safe_globals([cls])

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.format, self.rounding)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.format!r}, {show_rounding(self.rounding)})"

    @property
    def elementwise(self) -> bool:
        """Whether each element is rounded on its own, so that the order of axes does not matter.

        Not where a subclass rounds in a way of its own, of which nothing is known.
        """
        return type(self).quantize is Operand.quantize and not isinstance(self.format, BlockFormat)

    def apart(self, x: Tensor, rounded: Tensor) -> Factor:
        """What ``quantize`` made of a tensor, as elements and their scales.

        Raises:
            TypeError: a subclass that rounds in a way of its own.
        """
        if type(self).quantize is not Operand.quantize:
            raise TypeError(f"sums of elements need to know their scales, and {self!r} rounds in a way of its own")
        return take_apart(x, rounded, self._lowered)

    @property
    def has_exponents(self) -> bool:
        """Whether blocks say with what exponents subnormal numbers count, where digits are cut off."""
        return type(self).quantize is Operand.quantize and has_exponents(self.format)

    def counted(self, x: Tensor, rounded: Tensor) -> Tensor:
        """What each number that ``quantize`` made of a tensor counts as, where ``has_exponents``."""
        blocks: Any = self._lowered
        return counted(x, rounded, blocks)

    def quantize(self, x: Tensor) -> Tensor:
        """A rounded copy of a plain tensor (..., rows, contraction), fp32 or fp64; what the product gets.

        NaN, infinities, -0 and overflow are the format's affair.
        """
        return round_fresh(x, self._lowered, self.rounding)


Given = Operand | Format | None
Pair = tuple[Operand | None, Operand | None]


@constant
@dataclass(frozen=True)
class Gemm:
    """What the operands of each of a layer's three products are rounded to before they are multiplied.

    For a product ``first @ second``, such as ``x @ w.T`` of a linear layer, ``forward`` is the pair
    for (first, second), ``grad_input`` for the gradient of the first, (g, second), and
    ``grad_weight`` for the gradient of the second, (g, first). Each operand is rounded anew for each
    product, with its blocks along the axis that this product sums over: the same tensor is rounded
    twice, along two axes.

    Args:
        forward, grad_input, grad_weight: each a pair, or one for both, of formats or
            ``Operand`` values; None keeps an operand as it is.
        transform: a ``Hadamard``, applied to both operands along the contraction axis before they
            are rounded, in every product; or {"grad_weight": Hadamard(16)} for some of them.

    Raises:
        TypeError: what is not a format, operand or transform.
        ValueError: no pair, no such product.

    >>> from lptensor import MXFP8_E4M3, MXFP8_E5M2
    >>> gemm = Gemm(MXFP8_E4M3, (MXFP8_E5M2, MXFP8_E4M3), (MXFP8_E5M2, MXFP8_E4M3))
    >>> gemm.forward[0] == gemm.forward[1] == Operand(MXFP8_E4M3)
    True
    """

    forward: Pair
    grad_input: Pair
    grad_weight: Pair
    transform: tuple[Hadamard | None, Hadamard | None, Hadamard | None]

    def __init__(
        self,
        forward: Given | tuple[Given, Given] = None,
        grad_input: Given | tuple[Given, Given] = None,
        grad_weight: Given | tuple[Given, Given] = None,
        transform: Hadamard | Mapping[str, Hadamard | None] | tuple[Hadamard | None, ...] | None = None,
    ) -> None:
        for product, given in zip(Product, (forward, grad_input, grad_weight), strict=True):
            pair = _pair(product.value, given)
            if product is not Product.FORWARD and pair[0] is not None:
                check_signed(pair[0].format, f"{product.value} takes a pair, of which the first is the gradient's")
            object.__setattr__(self, product.value, pair)
        object.__setattr__(self, "transform", _transforms(transform))

    def __reduce__(self) -> tuple[Any, ...]:
        return Gemm, (self.forward, self.grad_input, self.grad_weight, self.transform)

    def __repr__(self) -> str:
        pairs = [(product.value, self.pair(product)) for product in Product]
        shown = [f"{name}={_show_pair(pair)}" for name, pair in pairs if pair != (None, None)]
        named = {p.value: self.transform_of(p) for p in Product if self.transform_of(p)}
        if len(named) == len(Product) and len(set(named.values())) == 1:
            shown.append(f"transform={self.transform[0]!r}")
        elif named:
            shown.append(f"transform={named!r}")
        return f"Gemm({', '.join(shown)})"

    def pair(self, product: Product) -> Pair:
        """The operands of a product: (first, second), (gradient, second) or (gradient, first)."""
        pair: Pair = getattr(self, product.value)
        return pair

    def transform_of(self, product: Product) -> Hadamard | None:
        """The transform of both operands of a product."""
        return self.transform[list(Product).index(product)]


def along_contraction(format: Format) -> Format:
    """A format for tensors (..., rows, contraction), whatever axes it was made for.

    Blocks of one size run along the contraction axis. Tiles of two sizes are (rows, contraction). One
    scale per channel (``Channel``, ``BlockFloatingPoint(8, dim=0)``) is one per row, and one for the
    tensor stays so. The axes that the format itself names count for nothing here.

    Raises:
        ValueError: other tiles.
        NotImplementedError: a format of one's own without ``tile``, or without ``tiled`` where its blocks must move.

    >>> from lptensor import E4M3, MX, MXFP8_E4M3
    >>> along_contraction(MX(E4M3, axis=0)) == MXFP8_E4M3
    True
    """
    if not isinstance(format, BlockFormat) or format.tile == PER_TENSOR:
        return format
    tile, widths = format.tile, format.tile.widths
    per_channel = tile.others is None and widths == (1,)
    if not per_channel and (tile.others is None or not widths):
        raise ValueError(f"an operand's tiles are blocks, (rows, contraction), Channel or PER_TENSOR, got {tile!r}")
    if len(widths) > 2:
        raise ValueError(f"the tiles of an operand have two sides, (rows, contraction), {format!r} has {len(widths)}")
    along = Tile((None,) if per_channel else widths)
    return format if tile == along else format.tiled(along)


def as_operand(name: str, given: object) -> Operand | None:
    """The operand that a format, or an ``Operand`` itself, stands for."""
    if given is None or isinstance(given, Operand):
        return given
    if isinstance(given, Format):
        return Operand(given)
    function = callable(given) and not isinstance(given, type)
    way = "; training.Technique(format, function) takes a function" if function else ""
    raise TypeError(
        f"{name} takes formats such as MXFP8_E4M3, Operand(format, rounding), or None to keep one, "
        f"got {no_format(given)}{way}"
    )


def _pair(name: str, given: object) -> Pair:
    if not isinstance(given, (tuple, list)):
        both = as_operand(name, given)
        return both, both
    if len(given) != 2:
        raise ValueError(f"{name} takes a pair, one for each operand of the product, got {given!r}")
    return as_operand(name, given[0]), as_operand(name, given[1])


def _transforms(given: object) -> tuple[Hadamard | None, Hadamard | None, Hadamard | None]:
    names = [product.value for product in Product]
    if isinstance(given, Mapping):
        for name in given:
            if name not in names:
                raise ValueError(f"a transform is for {', '.join(map(repr, names))}, got {name!r}")
        listed = [given.get(name) for name in names]
    elif isinstance(given, tuple):
        listed = list(given)
    else:
        listed = [given] * 3
    if len(listed) != len(names):
        raise ValueError(f"transform takes one, or one for each of {', '.join(names)}, got {given!r}")
    for transform in listed:
        if transform is not None and not isinstance(transform, Hadamard):
            raise TypeError(f"transform takes Hadamard(block_size, signs), or a dict of them, got {transform!r}")
    first, second, third = listed
    return first, second, third


def _show_pair(pair: Pair) -> str:
    shown = [repr(p.format) if p is not None and _is_plain(p) else repr(p) for p in pair]
    return shown[0] if shown[0] == shown[1] else f"({', '.join(shown)})"


def _is_plain(operand: Operand) -> bool:
    return type(operand) is Operand and operand.rounding == Rounding()


torch.serialization.add_safe_globals([Operand, Gemm, Hadamard])
