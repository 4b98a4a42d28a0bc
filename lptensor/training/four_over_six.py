"""Four over six: blocks of NVFP4 end at 4 or at 6, whichever costs less."""

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
from lptensor.rounding import Mode, Rounding, as_rounding


@dataclass(frozen=True)
class FourOverSix:
    """A function that rounds to NVFP4, and lets each block end at 4 or at 6 (Cook et al., 2512.02010).

    E2M1 has nothing between 4 and 6, where large values lose most. A block of 16 is rounded under two
    scales, which take its largest magnitude to 6 and to 4, and keeps what has the smaller sum of
    squared errors; in a tie, the first. With m the largest magnitude of the tensor, g = m / (6 * 256), at
    least 2**-126, and b that of the block over 6, the scales are t = g R(b / g) and t = g R(1.5 b / g), R to
    nearest in E4M3 (0 becomes 1); x becomes t Q(x / t), Q in E2M1, which saturates. 256 takes the
    place of NVFP4's 448 so that 1.5 times a scale is in E4M3, too. Scales are computed in fp32, of magnitudes up to
    its largest number; quotients, products and errors in the dtype of x.

    Float32 and float64 tensors of any shape; blocks run along the last axis, the last one may be short. A
    block with NaN or an infinity becomes NaN, and has no part in m; zeros keep their sign.

    As an operand of a product it is ``Technique(NVFP4, FourOverSix())``.

    Args:
        rounding: of the elements; to nearest in the paper.

    Raises:
        TypeError, ValueError: what is not a rounding; on use, tensors of other dtypes.

    >>> import lptensor
    >>> from lptensor import NVFP4
    >>> x = torch.tensor([8.0, 6.0, 4.0])
    >>> FourOverSix()(x).tolist(), lptensor.round(x, NVFP4).tolist()
    ([8.0, 6.0, 4.0], [8.0, 5.333333492279053, 4.0])
    """

    rounding: Rounding | Mode | str = "nearest"
    block_size: ClassVar[int] = 16

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounding", as_rounding(self.rounding))

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, E2M1)
        return as_one(lambda x: by_blocks(self._round, x, self.block_size), x, NVFP4, as_rounding(self.rounding))

    def _round(self, blocks: Tensor) -> Tensor:
        largest = blocks.abs().amax(-1, keepdim=True).clamp(max=CARRIER_MAX).float() / E2M1.max
        unit = (largest.amax() / 256).clamp(min=2.0**-126)
        (six, of_six), (four, of_four) = (self._under(blocks, largest * stretch, unit) for stretch in (1, 1.5))
        return torch.where(of_four < of_six, four, six)

    def _under(self, blocks: Tensor, largest: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """The values under scales, and their errors."""
        scale = round_fresh(largest / unit, E4M3, Rounding())
        scale = (torch.where(scale == 0, 1, scale) * unit).to(blocks.dtype)
        values = round_fresh(blocks / scale, E2M1, as_rounding(self.rounding)) * scale
        # Near one, as else squares would vanish, or be infinite.
        error = torch.ldexp(values - blocks, -torch.frexp(unit).exponent)
        return values, error.square().sum(-1, keepdim=True)
