"""Unbiased MXFP4: values are shrunk under the scale of their block, so that none saturates."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lptensor.base import set_int
from lptensor.formats import E2M1
from lptensor.of_values import by_blocks, of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Mode, Rounding


@dataclass(frozen=True)
class ThreeQuarters:
    """A function x -> 4/3 s R(3/4 x / s), R stochastic in E2M1: its mean is x (Tseng et al., 2502.20586).

    s is the scale of OCP MX for a block of x, 2**(exponent(max|x|) - 2). There the largest element may
    reach 8, while E2M1 ends at 6: stochastic rounding alone saturates, and is biased. Three quarters
    of 8 is 6. The factors are rounded in the tensor's dtype. What is multiplied of two such operands
    is unbiased, too.

    Float32 and float64 tensors; blocks run along the last axis, the last one may be short. A block
    with NaN or an infinity becomes NaN, one of zeros stays zero. Scales end at 2**-126 and 2**126.

    Args:
        block_size: elements of the last axis that share a scale; 32 in OCP MX.

    Raises:
        TypeError, ValueError: a block size that is not an integer, or below 1.

    >>> x = torch.tensor([7.0] + 31 * [0.0]).repeat(2000)
    >>> draws = ThreeQuarters()(x)[::32]
    >>> bool(abs(draws.mean() - 7) < 0.1), sorted(set((draws * 0.75).round().tolist()))
    (True, [4.0, 6.0])
    """

    block_size: int = 32

    def __post_init__(self) -> None:
        set_int(self, "block_size", 1, 2**31)

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, E2M1)
        return by_blocks(self._round, x, self.block_size)

    def _round(self, blocks: Tensor) -> Tensor:
        largest = blocks.abs().amax(-1, keepdim=True)
        exponent = torch.frexp(largest).exponent - 1 - 2
        scale = torch.ldexp(torch.ones_like(largest), exponent.clamp(-126, 126))
        return round_fresh(blocks / scale * 0.75, E2M1, Rounding(Mode.STOCHASTIC)) * scale * (4 / 3)
