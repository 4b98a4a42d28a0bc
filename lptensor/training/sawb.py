"""SAWB: 4-bit integers under a clip that two moments of the tensor give."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lptensor.formats import FixedPoint, Format
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Rounding

# The regression's slope and intercept for 15 values: those of the library of the authors' company
# (fms-model-optimizer, code 403). A test derives them anew from the paper's six distributions.
C1, C2 = 12.035, 12.03


@dataclass(frozen=True)
class SAWB:
    """A function that rounds to the nearest of 15 equally spaced values from -a to a = C1 rms(x) - C2 mean|x|.

    Choi et al., Accurate and Efficient 2-bit Quantized Neural Networks (SysML 2019): the clip that costs
    the least squares is nearly linear in both moments, whatever the distribution. A tensor without
    negative values, as after a ReLU, has the 16 values from 0 to 2 a instead, at intervals of 2 a / 15,
    as LUQ's authors have it in their code (2112.10769).

    Float32 and float64 tensors of any shape; moments are computed in float64. Zeros stay zero; NaN
    or an infinity makes all NaN. Where all magnitudes are one, the two terms cancel and little is
    left of it: it is a rule for distributions.

    Raises:
        TypeError: on use, tensors of other dtypes.

    >>> x = torch.randn(10000, generator=torch.Generator().manual_seed(0))
    >>> abs(SAWB()(x).max().item() - 2.44) < 0.1, len(SAWB()(x).unique())
    (True, 15)
    """

    @property
    def format(self) -> Format:
        """The integers that tensors with both signs become, over their scale."""
        return FixedPoint(4, 0, symmetric=True)

    @staticmethod
    def clip(x: Tensor) -> float:
        """a, of the paper's formula."""
        magnitude = x.detach().double().abs()
        return float(C1 * magnitude.square().mean().sqrt() - C2 * magnitude.mean())

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, self.format)
        if not x.any():  # which NaN is
            return x.clone()
        if not x.isfinite().all():
            return torch.full_like(x, torch.nan)
        signed = bool((x < 0).any())
        integers, step = (self.format, 1 / 7) if signed else (FixedPoint(4, 0, signed=False), 2 / 15)
        step *= self.clip(x)
        return round_fresh(x / step, integers, Rounding()) * step
