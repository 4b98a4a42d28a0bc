"""WAGE: weights, activations, gradients and errors as integers of few bits, errors and gradients by direction only."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.base import check_int, set_int
from lptensor.formats import FixedPoint
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Rounding


def grid(bits: int) -> FixedPoint:
    """The values k 2**(1 - bits) inside (-1, 1), on which everything in WAGE lies."""
    return FixedPoint(bits, bits - 1, symmetric=True)


def shift(largest: Tensor) -> Tensor:
    """The power of two nearest in logarithm, 2**round(log2 x), in the tensor's dtype; 1 for zero."""
    power = largest.double().log2().round().exp2()
    return torch.where(largest == 0, torch.ones_like(power), power).to(largest.dtype)


@dataclass(frozen=True)
class WageWeight:
    """R(w) / a, R to nearest with ``bits`` bits and a = max(shift(L0 / L), 1), a power of two.

    Wu et al. (1802.04680, section 3.2). Float32 and float64 (out, in, ...); what lies beyond the grid
    inside (-1, 1) is clipped, infinities too, -0 becomes 0, NaN stays.

    L = sqrt(6 / n) is the limit of the usual uniform initial weights of n inputs, and L0 = 1.5 2**(1 - bits)
    the limit under which too many weights would round to zero.

    Args:
        bits: 2 to 24.

    Raises:
        TypeError, ValueError: bits that are not an integer in that range.

    >>> WageWeight(2)(torch.tensor([[0.3, -0.2, 0.9, 0.25]]))
    tensor([[0.5000, 0.0000, 0.5000, 0.0000]])
    """

    bits: int = 2

    def __post_init__(self) -> None:
        set_int(self, "bits", 2, 24)

    def limits(self, w: Tensor) -> tuple[float, float]:
        """L and L0 of a weight (out, in, ...)."""
        return math.sqrt(6 / max(math.prod(w.shape[1:]), 1)), 1.5 * 2.0 ** (1 - self.bits)

    @torch.no_grad()
    @of_values
    def __call__(self, w: Tensor) -> Tensor:
        check_roundable(w, grid(self.bits))
        usual, least = self.limits(w)
        scale = max(2.0 ** round(math.log2(least / usual)), 1.0)
        return round_fresh(w, grid(self.bits), Rounding()) / scale


@dataclass(frozen=True)
class WageError:
    """R(e / shift(max|e|)), R to nearest with ``bits`` bits: the magnitude of an error is dropped (section 3.3.3).

    Float32 and float64 of any shape. Zeros stay zero; NaN or an infinity makes all NaN.

    Args:
        bits: 2 to 24.

    Raises:
        TypeError, ValueError: bits that are not an integer in that range.

    >>> WageError(8)(torch.tensor([3.0, 1.0, 1e-4])), WageError(8)(torch.tensor([3.0, 1.0, 1e-4]) * 2**-40)
    (tensor([0.7500, 0.2500, 0.0000]), tensor([0.7500, 0.2500, 0.0000]))
    """

    bits: int = 8

    def __post_init__(self) -> None:
        set_int(self, "bits", 2, 24)

    @torch.no_grad()
    @of_values
    def __call__(self, e: Tensor) -> Tensor:
        check_roundable(e, grid(self.bits))
        return round_fresh(_direction(e), grid(self.bits), Rounding())


class WageActivation(nn.Module):
    """R(a), R to nearest with ``bits`` bits; its gradient is zero where R clipped, then rounded as an error.

    Wu et al. (1802.04680, section 3.3.2), in the order of their code. Infinities are clipped, -0 becomes 0, NaN stays.

    Args:
        bits: of the values, 2 to 24.
        error: bits of the gradient, 2 to 24, which ``WageError`` rounds.

    Raises:
        TypeError, ValueError: bits that are not integers in that range.

    >>> WageActivation()(torch.tensor([0.25, 3.0, -3.0]))
    tensor([ 0.2500,  0.9922, -0.9922])
    """

    def __init__(self, bits: int = 8, error: int = 8) -> None:
        super().__init__()
        self.bits, self.error = check_int("bits", bits, 2, 24), WageError(check_int("error", error, 2, 24))

    @of_values
    def forward(self, a: Tensor) -> Tensor:
        """An activation ``a``, float32 or float64 of any shape, rounded; so is its gradient on the way back."""
        values: Tensor = _Activation.apply(a, grid(self.bits), self.error)[0]  # type: ignore[no-untyped-call]
        return values

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"bits={self.bits}, error={self.error.bits}"


class _Activation(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    @_compat.known_signature
    def forward(a: Tensor, format: FixedPoint, error: WageError) -> tuple[Tensor, Tensor]:
        check_roundable(a, format)
        return round_fresh(a, format, Rounding()), a.abs() <= format.max

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: tuple[Tensor, Tensor]) -> None:
        ctx.error, inside = inputs[2], output[1]
        ctx.mark_non_differentiable(inside)
        ctx.save_for_backward(inside)

    @staticmethod
    @_compat.differentiable_once("WageActivation")
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor, None, None]:
        (inside,) = ctx.saved_tensors
        return ctx.error(torch.where(inside, grad, torch.zeros_like(grad))), None, None


@dataclass(frozen=True)
class WageGradient:
    """2**(1 - bits) g / shift(max|g|): a learning rate is then counted in steps of the weights' grid (section 3.3.4).

    The paper's update is the product with the rate, rounded stochastically to that grid, which is what
    stochastic weights on the grid make of it. Zeros stay zero; NaN or an infinity makes all NaN.

    Args:
        bits: of the weights' grid, 2 to 24.

    Raises:
        TypeError, ValueError: bits that are not an integer in that range.

    >>> WageGradient()(torch.tensor([3e-9, -1e-9])).mul(128)
    tensor([ 0.8053, -0.2684])
    """

    bits: int = 8

    def __post_init__(self) -> None:
        set_int(self, "bits", 2, 24)

    @torch.no_grad()
    @of_values
    def __call__(self, g: Tensor) -> Tensor:
        return _direction(g) * 2.0 ** (1 - self.bits)


def _direction(x: Tensor) -> Tensor:
    if x.numel() == 0:
        return x.clone()
    largest = x.abs().max()
    return x / torch.where(largest.isfinite(), shift(largest), torch.full_like(largest, torch.nan))


def check_drawable(w: Tensor, bits: int) -> None:
    """Refuse a weight that ``draw_weight`` cannot draw anew."""
    if type(w.data) is not Tensor:
        raise TypeError(
            f"WAGE draws plain weights anew, got {type(w.data).__name__}; give initialize=False to keep them"
        )
    check_roundable(w, grid(bits))


@torch.no_grad()
def draw_weight(w: Tensor, quantize: WageWeight, bits: int) -> None:
    """Draw a weight anew, uniformly up to the larger of both limits, on the grid of its updates (section 3.2)."""
    limit = max(quantize.limits(w))
    w.copy_(round_fresh(torch.empty_like(w).uniform_(-limit, limit), grid(bits), Rounding()))
