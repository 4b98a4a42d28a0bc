"""MS-EDEN: turned tensors in NVFP4 to nearest, made unbiased by the scales of their blocks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lptensor.base import CARRIER_MAX
from lptensor.blocks import NVFP4
from lptensor.formats import E2M1, E4M3
from lptensor.of_values import as_one, by_blocks, of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Mode, Rounding

_ROOM = 255.99  # of E4M3's 448: the largest scale before it is corrected (the authors')
_LARGEST = E2M1.max / (17 / 16 * 0.93)  # where the largest magnitude of a block goes, which clips it (the authors')


@dataclass(frozen=True)
class MSEden:
    """A function that rounds to NVFP4 to nearest; turned back, its mean is x (Panferov et al., Quartet II, 2601.22813).

    It is for what a random rotation has gone through, such as ``Hadamard(128, "random")``: over the
    rotations, what is rounded to nearest is x on average but for its length, and each block's scale is
    stretched to mend that, stochastically, since it has to stay in E4M3. This costs about half the
    error of rounding the elements stochastically.

    With m the largest magnitude of the tensor, L = 6 / (17/16 * 0.93), g = m / L / 255.99, at least 2**-126, and
    b that of a block of 16 over L: s = R(b / g), R to nearest in E4M3 (0 becomes 1), z = x / (s g) and q = Q(z), Q
    to nearest in E2M1, which saturates. The block becomes q R'(s <z, z> / <z, q>) g, R' stochastic
    in E4M3; where <z, q> is 0 the factor is 1. Scales begin in fp32, of magnitudes up to its largest number; the
    rest is in the dtype of x.

    Float32 and float64 tensors of any shape; blocks run along the last axis, the last one may be short. A block with
    NaN or an infinity becomes NaN, and has no part in m; zeros stay zero.

    Raises:
        TypeError: on use, tensors of other dtypes.

    >>> from lptensor import Hadamard
    >>> x, turn = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), Hadamard(128, "random")
    >>> def back(signs):
    ...     return Hadamard(128, "none").apply(MSEden()(turn.apply(x, signs)), None) * signs
    >>> mean = sum(back(turn.draw(x)) for _ in range(64)) / 64
    >>> bool((mean - x).norm() < 0.2 * (back(turn.draw(x)) - x).norm())
    True
    """

    block_size: ClassVar[int] = 16

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, E2M1)
        return as_one(lambda x: by_blocks(self._round, x, self.block_size), x, NVFP4, Rounding())

    def _round(self, blocks: Tensor) -> Tensor:
        largest = blocks.abs().amax(-1, keepdim=True).clamp(max=CARRIER_MAX).float() / _LARGEST
        unit = (largest.amax() / _ROOM).clamp(min=2.0**-126)
        scale = round_fresh(largest / unit, E4M3, Rounding())
        scale = torch.where(scale == 0, 1, scale)
        scaled = blocks / (scale * unit).to(blocks.dtype)
        values = round_fresh(scaled, E2M1, Rounding())
        along = (scaled * values).sum(-1, keepdim=True)
        stretch = torch.where(along == 0, 1, scaled.square().sum(-1, keepdim=True) / along)
        return values * round_fresh(scale * stretch, E4M3, Rounding(Mode.STOCHASTIC)) * unit
