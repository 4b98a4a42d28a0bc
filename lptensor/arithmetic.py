"""What an LPTensor carries: the formats of its values and gradients, and how operations compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lptensor import _compat, ops
from lptensor.accumulator import Accumulator
from lptensor.base import check_signed, no_format
from lptensor.blocks import BlockFormat
from lptensor.formats import FP32, Format
from lptensor.grid import Grid
from lptensor.operands import Gemm
from lptensor.rounding import Mode, Rounding, as_rounding, show_rounding
from lptensor.text import constant


@constant
@dataclass(frozen=True)
class Arithmetic:
    """The number formats in which an operation's results are kept.

    ``gradient_format`` and ``gradient_rounding`` are those of gradients: the backward ones, or else the forward ones.

    Args:
        forward: format of results computed in the forward direction; None keeps them in fp32.
        backward: format of gradients; None for the forward one. ``FP32`` leaves them unrounded.
        rounding: a name, ``Mode`` or ``Rounding`` for the forward direction.
        backward_rounding: the same for gradients; None for ``rounding``.
        operands: a ``Gemm``: what the operands of matrix products and convolutions are rounded to.
        accumulator: an ``Accumulator``: what adds up in matrix products, convolutions, sums, means,
            variances, norms and softmax. Any other operation that adds up raises.
        compute: torch.float32, or torch.float64: ops compute in float64 on the fp32 values and round
            once from there. Then + - * / sqrt and addcmul are correctly rounded in formats of up to 23 stored
            mantissa bits, in every rounding mode. An op whose device has no float64 kernel raises.

    Raises:
        TypeError: a format, rounding, Gemm or Accumulator that is not one.
        ValueError: an unknown rounding, another dtype, an accumulator that the dtype cannot carry, or a forward
            format without negative numbers and no backward one, since gradients have signs.

    >>> from lptensor import E4M3, E5M2
    >>> Arithmetic(E4M3, backward=E5M2, backward_rounding="stochastic").gradient_rounding
    Stochastic()
    """

    forward: Format | None = None
    backward: Format | None = None
    rounding: Rounding = field(default_factory=Rounding)
    backward_rounding: Rounding | None = None
    operands: Gemm | None = None
    accumulator: Accumulator | None = None
    compute: torch.dtype = torch.float32
    if TYPE_CHECKING:  # what follows from these is no field: Dynamo makes a dataclass anew from all that it has
        gradient_format: Format | None = field(init=False)  # what gradients are kept in
        gradient_rounding: Rounding = field(init=False)
        sides: tuple[tuple[Format | None, Rounding], ...] = field(init=False)  # of results, and of gradients
        direct: bool = field(init=False)  # whether ops run on fp32 as they are, and only round
        has_zero: bool = field(init=False)  # whether all formats have, so that it need not be rounded

    def __init__(
        self,
        forward: Format | None = None,
        backward: Format | None = None,
        rounding: Rounding | Mode | str = "nearest",
        backward_rounding: Rounding | Mode | str | None = None,
        operands: Gemm | None = None,
        accumulator: Accumulator | None = None,
        compute: torch.dtype = torch.float32,
    ) -> None:
        for name, format in (("forward", forward), ("backward", backward)):
            if format is not None and not isinstance(format, Format):
                got = no_format(format)
                raise TypeError(f"{name} must be a number format such as FloatingPoint(8) or None, got {got}")
        check_signed(forward if backward is None else backward, "name a backward format")
        if operands is not None and not isinstance(operands, Gemm):
            raise TypeError(f"operands must be Gemm(forward, grad_input, grad_weight) or None, got {operands!r}")
        if accumulator is not None and not isinstance(accumulator, Accumulator):
            raise TypeError(f"accumulator must be Accumulator(sum, ...) or None, got {accumulator!r}")
        if compute not in (torch.float32, torch.float64):
            raise ValueError(f"compute must be torch.float32 or torch.float64, got {compute!r}")
        if accumulator is not None and not accumulator.adds_elements:  # which come in a dtype of their own
            accumulator.check_carrier(compute)
        values: dict[str, Any] = {
            "forward": forward,
            "backward": backward,
            "rounding": as_rounding(rounding),
            "backward_rounding": None if backward_rounding is None else as_rounding(backward_rounding),
            "operands": operands,
            "accumulator": accumulator,
            "compute": compute,
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        # Asked for at every op, so worked out once.
        of_gradients = forward if backward is None else backward, values["backward_rounding"] or values["rounding"]
        sides = (forward, values["rounding"]), of_gradients
        object.__setattr__(self, "sides", sides)
        object.__setattr__(self, "gradient_format", sides[True][0])
        object.__setattr__(self, "gradient_rounding", sides[True][1])
        object.__setattr__(self, "direct", operands is None and accumulator is None and compute is torch.float32)
        object.__setattr__(self, "has_zero", all(f is None or f.has(0.0) for f in (forward, backward)))
        object.__setattr__(self, "_hash", hash(tuple(values.values())))

    @cached_property
    def _in_place(self) -> tuple[Callable[[Tensor], None], ...]:
        """What rounds a plain tensor where it lies, to each of the ``sides``."""
        return tuple(ops.in_place(FP32 if f is None else f, rounding) for f, rounding in self.sides)

    def __hash__(self) -> int:
        value: int = self.__dict__["_hash"]
        return value

    def __reduce__(self) -> tuple[Any, ...]:  # a hash is good for one process only
        return Arithmetic, tuple(getattr(self, f.name) for f in fields(self) if f.init)

    def __repr__(self) -> str:
        shown = [repr(self.forward)]
        if self.backward is not None:
            shown.append(f"backward={self.backward!r}")
        shown.append(f"rounding={show_rounding(self.rounding)}")
        if self.backward_rounding is not None:
            shown.append(f"backward_rounding={show_rounding(self.backward_rounding)}")
        if self.operands is not None:
            shown.append(f"operands={self.operands!r}")
        if self.accumulator is not None:
            shown.append(f"accumulator={self.accumulator!r}")
        if self.compute is not torch.float32:
            shown.append(f"compute={self.compute}")
        return f"Arithmetic({', '.join(shown)})"


def as_arithmetic(
    format: Format | Arithmetic,
    rounding: Rounding | Mode | str = "nearest",
    backward: Format | None = None,
) -> Arithmetic:
    """The ``Arithmetic`` that a format, or an arithmetic itself, stands for.

    >>> from lptensor import E4M3
    >>> as_arithmetic(E4M3) == Arithmetic(E4M3)
    True
    """
    if isinstance(format, Arithmetic):
        if backward is not None or as_rounding(rounding) != Rounding():
            raise TypeError(f"{format!r} says its rounding and backward format itself; give nothing beside it")
        return format
    if not isinstance(format, Format):
        got = "None; x.dequantize() gives the plain values" if format is None else no_format(format)
        raise TypeError(f"expected a number format such as FloatingPoint(8), or an Arithmetic, got {got}")
    return Arithmetic(format, backward, rounding)


def promote(a: Arithmetic, b: Arithmetic) -> Arithmetic:
    """The arithmetic of an op between two: the format that contains the other; commutative.

    Containment compares finite values. A block format counts as its element and yields to a scalar
    format. The remaining fields must agree, or one of them be at its default.

    Raises:
        TypeError: neither format contains the other, or other fields conflict.

    >>> from lptensor import BF16, E4M3
    >>> promote(Arithmetic(E4M3), Arithmetic(BF16)).forward == BF16
    True
    """
    if a == b:
        return a
    return Arithmetic(
        _wider(a, b),
        _agree(a, b, "backward", None),
        _agree(a, b, "rounding", Rounding()),
        _agree(a, b, "backward_rounding", None),
        _agree(a, b, "operands", None),
        _agree(a, b, "accumulator", None),
        _agree(a, b, "compute", torch.float32),
    )


def wider(a: Arithmetic, b: Arithmetic) -> bool:
    """Whether an op between two has the format of the first."""
    try:
        return _wider(a, b) == a.forward
    except TypeError:
        return False


def _wider(a: Arithmetic, b: Arithmetic) -> Format | None:
    f, g = a.forward, b.forward
    if f == g or g is None or f is None:
        return f if f == g else None
    if isinstance(f, BlockFormat) != isinstance(g, BlockFormat):
        element, scalar = (f, g) if isinstance(f, BlockFormat) else (g, f)
        if contains(scalar, element):
            return scalar
    else:
        f_holds, g_holds = contains(f, g), contains(g, f)
        if f_holds != g_holds:
            return f if f_holds else g
        if f_holds:
            raise TypeError(
                f"{f!r} and {g!r} have the same values, but not all the rest, such as their blocks or overflow, so "
                "that an op between them has no format of its own; recast one operand with .to_lp(...)"
            )
    raise TypeError(
        f"neither of {f!r} and {g!r} contains the other, so an op between them has no format of its own; "
        "recast one operand with .to_lp(...), or leave low precision with .dequantize()"
    )


@lru_cache(maxsize=256)
def contains(f: Format, g: Format) -> bool:
    """Whether ``f``, or its element, has every finite value of ``g``, or of its element."""
    ours, theirs = (h.element if isinstance(h, BlockFormat) else h for h in (f, g))
    if ours == FP32 and not isinstance(theirs.lowered, Grid):
        return True  # the carrier
    with _compat.real_tensors():
        try:
            return ours.contains(theirs)
        except (TypeError, ValueError):
            return False  # values that cannot be listed, or too many, which no list has


def _agree(a: Arithmetic, b: Arithmetic, name: str, default: Any) -> Any:
    x, y = getattr(a, name), getattr(b, name)
    if x == y or y == default:
        return x
    if x == default:
        return y
    raise TypeError(
        f"operands disagree on {name}: {x!r} and {y!r}; recast one of them with .to_lp(...) to the Arithmetic you mean"
    )
