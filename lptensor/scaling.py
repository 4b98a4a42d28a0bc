"""How values are scaled before a format rounds them: nouns apart from the format."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from lptensor.base import check_bool, check_int, check_positive, no_format, set_int, set_number
from lptensor.formats import FP32, Grid, ScalarFormat
from lptensor.text import call, constant

# The significand of a block's maximum above which its exponent goes one up, by the grid of an element; none is above 2.
SCALE_RULES: dict[str, Callable[[Grid], float]] = {
    "floor": lambda element: 2.0,
    "ceil": lambda element: 1.0,
    "even": lambda element: math.nextafter(2.0 - 2.0**-element.precision, 0.0),  # from here on, rounding gives 2
    "rceil": lambda element: 2.0 * math.frexp(element.max)[0],
}
INFINITE = ("nan", "saturate")


def check_one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse a value that is not among the allowed ones, naming them."""
    if value not in list(allowed):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}")


@constant
@dataclass(frozen=True, repr=False)
class Tile:
    """Which elements share a scale: the widths of a tile along some axes.

    Args:
        widths: how many elements a tile takes along each of ``axes``; None is the whole axis. The
            last tile along an axis may be short.
        axes: the axes of ``widths``; the last ones by default.
        others: how wide a tile is along every other axis: 1, or None for the whole of it.

    A tensor that lacks one of the axes is one tile.

    Raises:
        TypeError: widths that are not a tuple of integers and None.
        ValueError: a width below 1, axes that repeat or are not one for each width, other ``others``; on use,
            axes that are one axis of the tensor.

    >>> Tile((1, 128)).block_shape((64, 512))
    (1, 128)
    >>> PER_TENSOR.block_shape((64, 512)), Channel(0).block_shape((64, 512))
    ((64, 512), (1, 512))
    """

    widths: tuple[int | None, ...]
    axes: tuple[int, ...] | None = None
    others: int | None = 1

    def __post_init__(self) -> None:
        if not isinstance(self.widths, (tuple, list, range)):
            raise TypeError(f"widths must be a tuple such as (1, 128), got {self.widths!r}")
        if not isinstance(self.axes, (tuple, list, range, type(None))):
            raise TypeError(f"axes must be a tuple such as (-2, -1), got {self.axes!r}")
        axes = range(-len(self.widths), 0) if self.axes is None else self.axes
        widths = (None if wide is None else check_int("block_size", wide, 1, 2**62) for wide in self.widths)
        object.__setattr__(self, "widths", tuple(widths))
        object.__setattr__(self, "axes", tuple(check_int("axis", axis, -16, 15) for axis in axes))
        if len(self.axes or ()) != len(self.widths) or len(set(self.axes or ())) != len(self.widths):
            raise ValueError(f"a tile needs one axis for each width {self.widths}, got axes {self.axes}")
        check_one_of("others", self.others, (1, None))

    def __repr__(self) -> str:
        if self.others is None and self.widths in ((), (1,)):
            return f"Channel({self.axes[0]})" if self.axes else "PER_TENSOR"
        last = self.axes == tuple(range(-len(self.widths), 0))
        shown = [f"{self.widths}", *([] if last else [f"axes={self.axes}"]), *([] if self.others else ["others=None"])]
        return f"Tile({', '.join(shown)})"

    def block_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """How wide a tile is along each axis of a tensor of this shape."""
        whole = [max(n, 1) for n in shape]
        block = [1] * len(whole) if self.others == 1 else list(whole)
        axes = self.axes or ()
        if any(not -len(whole) <= axis < len(whole) for axis in axes):
            return tuple(whole)
        if len({axis % len(whole) for axis in axes}) < len(axes):
            raise ValueError(f"the axes {axes} of a tile name one axis of a tensor of shape {tuple(shape)} twice")
        for wide, axis in zip(self.widths, axes, strict=True):
            block[axis] = whole[axis] if wide is None else wide
        return tuple(block)


PER_TENSOR = Tile((), others=None)


def Channel(axis: int = 0) -> Tile:
    """One scale for each index of an axis, as of the output channels of a weight; a ``Tile``.

    Args:
        axis: -16 to 15; a tensor that lacks it is one tile.

    Raises:
        TypeError, ValueError: an axis that is not an integer from -16 to 15.

    >>> Channel(0).block_shape((64, 512))
    (1, 512)
    """
    return Tile((1,), (axis,), others=None)


def _check_tile(tile: object) -> None:
    if not isinstance(tile, Tile):
        raise TypeError(f"tile must be a Tile such as Tile((1, 128)), Channel(0) or PER_TENSOR, got {tile!r}")


class Scaling:
    """What a format's values are multiplied by; ``Scaled(format, scaling)`` puts the two together.

    All but ``CurrentRange`` are told by their scale s: x rounds to s * R(x / s), R being the format's rounding.
    """

    def __repr__(self) -> str:
        return call(self)


@constant
@dataclass(frozen=True, repr=False)
class PowerOfTwo(Scaling):
    """A fixed scale 2**exponent: the grid of the format moves, element by element, nothing else changes.

    NaN, infinities, -0 and overflow are those of the format.

    Args:
        exponent: log2 of the scale, -300 to 300.

    Raises:
        TypeError, ValueError: an exponent that is not such an integer; from ``Scaled``, values that fp32 does not hold.

    >>> from lptensor import E4M3, Scaled
    >>> Scaled(E4M3, PowerOfTwo(-3)).max
    56.0
    """

    exponent: int = 0

    def __post_init__(self) -> None:
        set_int(self, "exponent", -300, 300)


@constant
@dataclass(frozen=True, repr=False)
class CurrentMaximum(Scaling):
    """Scales made from the largest magnitude of what is being rounded, a tensor or each tile of it.

    With ``scale`` a format of powers of two (E8M0) the exponent follows ``rule``; with max the
    largest value of the element, and all of it exact on the bits of the maximum m:

    - "floor": 2**(exponent(m) - exponent(max)), OCP MX v1.0 section 6.3; may clip.
    - "ceil": the smallest power of two at or above m, over 2**exponent(max).
    - "even": as floor, after m is rounded to nearest with the element's precision.
    - "rceil": the smallest power of two at or above m / max, so that nothing is clipped.

    With any other ``scale`` max is ``top``, if that is given, and the arithmetic fp32, each operation rounded
    to nearest even:
    g = m_tensor / (max * scale.max) if ``tensor_scale`` (at least 2**-149; it and that product are held
    to the largest fp32), else 1;
    s = R_scale(clamp(m_tile / max / g, floor, scale.max)); t = s * g; and x becomes t * R(x / t),
    or, with ``reciprocal``, t * R(x * (1 / g / s)); t and the reciprocal held to the largest fp32. The
    quotient and the products of elements are taken in the dtype of x; the maximum of a float64
    tensor is rounded to fp32, and a float64 quotient too small to hold still is no zero. m_tensor
    passes over NaN and infinities. Where a scale underflows to zero, so do its values; where an element times its
    scale is beyond the dtype of x, as 127 times the scale of the largest fp32 number is in INT8, it is infinite.

    NaN makes its tile NaN; an infinity too, or with infinite="saturate" it takes no part in the
    maximum and becomes the largest value of its tile. The element saturates. A zero tile stays
    zero; -0 is kept if the element has it.

    Args:
        tile: which elements share a scale.
        scale: the format of the scales; FP32 keeps what the division gives.
        rule: of powers of two only.
        margin: powers of two to leave free above the maximum (or to clip, if negative).
        tensor_scale, floor, reciprocal: of other scales only.
        top: of other scales only, what a maximum becomes before it is rounded, if not the element's largest
            value; 7.5 of INT4 is the choice of torchao, compressed-tensors and qwix. What is too large saturates.

    Raises:
        TypeError: a tile, a scale, a switch or a number that is not one.
        ValueError: an unknown rule or infinite, a margin outside -64 to 64, an argument for scales of the other
            kind, a floor beyond the largest scale, a top that is not positive and finite.

    >>> import torch, lptensor
    >>> from lptensor import INT8
    >>> per_row = lptensor.Scaled(INT8, CurrentMaximum(Channel(0), scale=FP32))
    >>> lptensor.round(torch.tensor([[127.0, 0.6], [1.27, 0.006]]), per_row)
    tensor([[1.2700e+02, 1.0000e+00],
            [1.2700e+00, 1.0000e-02]])
    """

    tile: Tile = PER_TENSOR
    scale: ScalarFormat = FP32
    rule: str = "floor"
    margin: int = 0
    tensor_scale: bool = False
    floor: float = 0.0
    reciprocal: bool = False
    infinite: str = "nan"
    top: float | None = None

    def __post_init__(self) -> None:
        _check_tile(self.tile)
        if not isinstance(self.scale, ScalarFormat):
            raise TypeError(f"scale must be a scalar format such as E8M0, E4M3 or FP32, got {no_format(self.scale)}")
        check_one_of("rule", self.rule, SCALE_RULES)
        check_one_of("infinite", self.infinite, INFINITE)
        set_int(self, "margin", -64, 64)
        check_bool("tensor_scale", self.tensor_scale)
        check_bool("reciprocal", self.reciprocal)
        set_number(self, "floor")
        if self.top is not None:
            object.__setattr__(self, "top", check_positive("top", self.top))
        grid = self.scale.grid
        if self.powers and (self.tensor_scale or self.floor or self.reciprocal or self.top):
            raise ValueError(
                f"tensor_scale, floor, reciprocal and top are for scales with a significand, {self.scale!r} has none"
            )
        if not self.powers and self.rule != "floor":
            raise ValueError(
                f"the rule {self.rule!r} is for scales that are powers of two, {self.scale!r} is another format"
            )
        if not 0 < grid.max < float("inf"):
            raise ValueError(f"the scale's format needs a largest value, {self.scale!r} has none")
        if not 0 <= self.floor <= grid.max:
            raise ValueError(f"floor must be from 0 to {grid.max:g}, the largest scale, got {self.floor!r}")

    @property
    def powers(self) -> bool:
        """Whether the scales are powers of two."""
        return self.scale.grid.precision == 1


@constant
@dataclass(frozen=True, repr=False)
class CurrentRange(Scaling):
    """Scales and zero points made from the smallest and the largest of what is being rounded, a tensor or each tile.

    Asymmetric, or affine, integers. The values of the element, q_min to q_max, lie at equal steps, as those of
    INT8 or ``FixedPoint(4, 0, signed=False)``, and a tile has all of them between its smallest number and its largest.
    The arithmetic is fp32, each operation to nearest even; with R the format's rounding to the element's steps:

    - With ``preserve_zero`` lo = min(smallest, 0), hi = max(largest, 0), s = (hi - lo) / (q_max - q_min), the zero
      point is z = clamp(q_min - nearest(lo / s), q_min, q_max), and x becomes
      s * clamp(R(x / s), q_min - z, q_max - z). Zero stays zero. Observers of PyTorch do so, and torchao.
    - Without it lo = smallest, hi = largest, s is as before, and x becomes
      lo + s * clamp(R((x - lo) / s), 0, q_max - q_min). A tile of one fp32 number keeps it. KIVI does so.

    With ``reciprocal`` elements are multiplied by 1 / s, held to the largest fp32 number, instead of divided by s.
    Nothing overflows on the way: hi - lo may be beyond the largest fp32 number, to which s is held, and results on
    fp32; s is at least 2**-149. What is done to each element is done in the dtype of x: lo and hi of a float64 tensor
    are rounded to fp32, held to its largest, and a float64 quotient too small to hold still is no zero.

    NaN or an infinity makes its tile NaN. There is no -0.

    Args:
        tile: which elements share a scale and a zero point.
        preserve_zero: whether zero is a value of every tile.
        reciprocal: multiply by the scale's reciprocal, as PyTorch's fake quantization and torchao do.

    Raises:
        TypeError: a tile or a switch that is not one.
        ValueError: from ``Scaled``, an element whose values are not at equal steps, have no ends or more than 24 bits.

    >>> import torch, lptensor
    >>> from lptensor import INT4
    >>> x = torch.tensor([-1.0, 0.1, 0.6, 2.0])
    >>> lptensor.round(x, lptensor.Scaled(INT4, CurrentRange()))
    tensor([-1.0000,  0.0000,  0.6000,  2.0000])
    """

    tile: Tile = PER_TENSOR
    preserve_zero: bool = True
    reciprocal: bool = False

    def __post_init__(self) -> None:
        _check_tile(self.tile)
        check_bool("preserve_zero", self.preserve_zero)
        check_bool("reciprocal", self.reciprocal)


@constant
@dataclass(frozen=True, repr=False)
class DelayedMaximum(Scaling):
    """One scale for a tensor, from the largest magnitudes of earlier ones (Micikevicius et al., 2209.05433).

    It has a state, the last magnitudes, and so belongs to a module: ``DelayedScaling(format, ...)``.

    Args:
        history: how many magnitudes are remembered, the current one included.
        margin: powers of two to leave free above the maximum.
        amax: "max" of the history, or the "most_recent".

    Raises:
        TypeError: a history or a margin that is not an integer.
        ValueError: a history outside 1 to 2**20, a margin outside -64 to 64, another amax.

    >>> from lptensor import DelayedScaling, E4M3
    >>> quantize = DelayedScaling(E4M3, DelayedMaximum(history=16, amax="most_recent"))
    >>> quantize(torch.tensor([7.0])).item(), quantize.scale.item()
    (7.0, 64.0)
    """

    history: int = 1024
    margin: int = 0
    amax: str = "max"

    def __post_init__(self) -> None:
        set_int(self, "history", 1, 2**20)
        set_int(self, "margin", -64, 64)
        check_one_of("amax", self.amax, ("max", "most_recent"))


# Formats hold them, and a checkpoint holds formats: torch.load(weights_only=True) makes them.
torch.serialization.add_safe_globals([Tile, PowerOfTwo, CurrentMaximum, CurrentRange, DelayedMaximum])
