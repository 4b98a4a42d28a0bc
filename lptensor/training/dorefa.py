"""DoReFa: weights through tanh, activations clipped to [0, 1], gradients dithered sample by sample."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lptensor.base import check_int, set_int
from lptensor.formats import FixedPoint
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round as lp_round
from lptensor.rounding import Mode, Rounding

_STEPS = FixedPoint(24, 0)


def levels(x: Tensor, bits: int, rounding: Rounding | None = None) -> Tensor:
    """The nearest of 2**bits equally spaced values from 0 to 1; the gradient passes straight through."""
    steps = 2**bits - 1
    rounded: Tensor = lp_round(x * steps, _STEPS, rounding or Rounding()) / steps
    return rounded


class DoReFaWeight(nn.Module):
    """2 q(tanh w / (2 max|tanh w|) + 1/2) - 1, q to ``bits`` bits (Zhou et al., 1606.06160, section 2.3).

    With one bit, sign(w) mean|w|, the sign of zero being one, whose gradient passes straight through.
    Differentiable, but for q, through max as well. Float32 and float64 of any shape; one NaN makes all NaN.

    Args:
        bits: 1 to 16.

    Raises:
        TypeError, ValueError: bits that are not an integer in that range.

    >>> DoReFaWeight(1)(torch.tensor([1.0, -0.5, 0.0]))
    tensor([ 0.5000, -0.5000,  0.5000])
    >>> DoReFaWeight(2)(torch.tensor([2.0, 0.5, -0.1])).mul(3).round()  # thirds
    tensor([ 3.,  1., -1.])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_int("bits", bits, 1, 16)

    @of_values
    def forward(self, w: Tensor) -> Tensor:
        """A weight ``w``, rounded, with its derivative."""
        check_roundable(w, _STEPS)
        if w.numel() == 0:
            return w.clone()
        if self.bits == 1:
            signs = torch.where(w >= 0, 1.0, -1.0).to(w.dtype) * w.detach().abs().mean()
            return signs + (w - w.detach())  # exactly zero, with the gradient of w
        squeezed = w.tanh()
        largest = squeezed.abs().max().clamp(min=torch.finfo(w.dtype).tiny)
        return 2 * levels(squeezed / (2 * largest) + 0.5, self.bits) - 1

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"bits={self.bits}"


class DoReFaActivation(nn.Module):
    """q(clip(a, 0, 1)), q to ``bits`` bits (1606.06160, section 2.4); no gradient where it is clipped.

    Float32 and float64 of any shape. Infinities are clipped, -0 becomes 0, NaN stays.

    Args:
        bits: 1 to 16.

    Raises:
        TypeError, ValueError: bits that are not an integer in that range.

    >>> DoReFaActivation(2)(torch.tensor([-1.0, 0.4, 3.0])).mul(3)
    tensor([0., 1., 3.])
    """

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = check_int("bits", bits, 1, 16)

    @of_values
    def forward(self, a: Tensor) -> Tensor:
        """An activation ``a``, clipped and rounded, with its derivative."""
        check_roundable(a, _STEPS)
        return levels(a.clamp(0, 1), self.bits)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"bits={self.bits}"


@dataclass(frozen=True)
class DoReFaGradient:
    """2 m (q(g / (2 m) + 1/2 + noise) - 1/2), m = max|g| of each sample (1606.06160, section 2.5).

    The noise, uniform over one step of q, makes it stochastic rounding, which this draws instead.
    Samples lie along the first axis. Zero stays within half a step of zero, which is not a value of q.
    Float32 and float64; a sample of zeros stays zero, one with NaN or an infinity keeps no finite value.

    Args:
        bits: 1 to 16.

    Raises:
        TypeError, ValueError: bits that are not an integer in that range.

    >>> DoReFaGradient(1)(torch.tensor([[4.0, -1.0], [0.5, 0.0]])).abs()  # up or down, by chance
    tensor([[4.0000, 4.0000],
            [0.5000, 0.5000]])
    """

    bits: int

    def __post_init__(self) -> None:
        set_int(self, "bits", 1, 16)

    @torch.no_grad()
    @of_values
    def __call__(self, grad: Tensor) -> Tensor:
        check_roundable(grad, _STEPS)
        if grad.numel() == 0:
            return grad.clone()
        m = grad.abs()
        for axis in range(1, grad.dim()):
            m = m.amax(axis, keepdim=True)
        safe = torch.where(m == 0, torch.ones_like(m), m)
        q = levels(grad / (2 * safe) + 0.5, self.bits, Rounding(Mode.STOCHASTIC))
        return 2 * m * (q - 0.5)
