"""Expansions: a number as the sum of two of a narrow format."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lptensor.formats import Format
from lptensor.of_values import of_values
from lptensor.ops import check_format, check_roundable, round_fresh
from lptensor.rounding import Rounding


@dataclass(frozen=True)
class Expansion:
    """A function that rounds to sums of two numbers of a format: h = R(x), then h + R(x - h).

    Collage (2405.03637) keeps Adam's second moment so: in BF16 alone 0.999 v rounds back to v, which
    then never decays. Give it to ``OptimLP``: ``momentum_quant={"exp_avg_sq": Expansion(BF16)}``.
    (Its expansion of beta2 is not needed, since the step is computed in fp32.)

    Float32 and float64 tensors of any shape, rounded to nearest; the sum is one of the tensor's
    dtype. Where h is NaN or infinite, so is the result. -0 becomes +0, and where the format saturates, the
    sum goes on to twice its largest value.

    Args:
        format: any.

    Raises:
        TypeError: no format.

    >>> from lptensor import BF16
    >>> Expansion(BF16)(torch.tensor([1.001])), round_fresh(torch.tensor([1.001]), BF16, Rounding())
    (tensor([1.0010]), tensor([1.]))
    """

    format: Format

    def __post_init__(self) -> None:
        check_format(self.format, torch.float64)

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, self.format)
        high = round_fresh(x, self.format, Rounding())
        low = round_fresh(x - high, self.format, Rounding())
        return torch.where(high.isfinite(), high + low, high)
