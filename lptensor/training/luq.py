"""LUQ: unbiased gradients on a grid of powers of two."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lptensor.base import set_int
from lptensor.blocks import Scaled
from lptensor.formats import FloatingPoint, Format
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Mode, Rounding
from lptensor.scaling import PER_TENSOR, CurrentMaximum


@dataclass(frozen=True)
class LUQ:
    """A function that rounds to a sign and ``bits - 1`` exponent bits, without bias (Chmiel et al., 2112.10769).

    The grid is +-a 2**k, k from 0 to 2**(bits - 1) - 2, and zero, a being such that the tensor's
    largest magnitude is the largest value, which keeps its value. Between two values, and between
    zero and the first, rounding is stochastic. ``samples`` independent roundings are averaged (the
    paper's SMP, for the gradient of the weight).

    Float32 and float64 tensors of any shape. Zeros stay zero; NaN or an infinity makes all NaN.

    Args:
        bits: 2 to 8; the paper has 4.
        samples: how many roundings to average.

    Raises:
        TypeError: what is not an integer.
        ValueError: bits outside 2 to 8, samples below 1.

    >>> LUQ()(torch.tensor([64.0, 2.0, -1.0, 0.0]))
    tensor([64.,  2., -1.,  0.])
    """

    bits: int = 4
    samples: int = 1

    def __post_init__(self) -> None:
        set_int(self, "bits", 2, 8)
        set_int(self, "samples", 1, 2**20)

    @property
    def format(self) -> Format:
        """The format, for whoever rounds by themselves: stochastically."""
        return Scaled(FloatingPoint(self.bits - 1, 0, specials="none"), CurrentMaximum(PER_TENSOR))

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, self.format)
        first = round_fresh(x, self.format, Rounding(Mode.STOCHASTIC))
        if self.samples == 1:
            return first
        total = first.double()  # in which fp32's largest numbers add up to no infinity
        for _ in range(self.samples - 1):
            total += round_fresh(x, self.format, Rounding(Mode.STOCHASTIC))
        return (total / self.samples).to(x.dtype)
