"""S2FP8: a tensor is shifted and squeezed into FP8 by two statistics of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lptensor.formats import E5M2, ScalarFormat
from lptensor.of_values import of_values
from lptensor.ops import check_format, check_roundable, round_fresh
from lptensor.rounding import Mode, Rounding, as_rounding


@dataclass(frozen=True)
class S2FP8:
    """A function that rounds |x| as 2**b |x|**a in E5M2, and takes it back (Cambier et al., 2001.05674).

    With the mean u and the maximum m of log2|x| over what is not zero, a = 15 / (m - u) and b = -a u:
    the squeezed magnitudes have a mean logarithm of 0 and a largest one of 15. Where all magnitudes
    are one, a = 1 and b = 15 - m. Statistics and powers are computed in float64; the result has the
    dtype and shape of x. Signs are kept, zeros stay zero, NaN or an infinity makes all NaN.

    Args:
        format: of the squeezed values, which it has to reach; E5M2 is the paper's.
        rounding: to nearest in the paper.

    Raises:
        TypeError: a format of blocks, or none.
        ValueError: a format that ends below 2**15, an unknown rounding.

    >>> S2FP8()(torch.tensor([2.0**-40, -(2.0**-44), 2.0**-48]))
    tensor([ 9.0949e-13, -5.6843e-14,  3.5527e-15])
    """

    format: ScalarFormat = E5M2
    rounding: Rounding | Mode | str = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "rounding", as_rounding(self.rounding))
        check_format(self.format)
        if not hasattr(self.format, "max"):
            raise TypeError(f"S2FP8 takes a format of single values such as E5M2, got {self.format!r}")
        if not self.format.max >= 2.0**15:
            raise ValueError(f"S2FP8 squeezes magnitudes to 2**15, but {self.format!r} ends at {self.format.max:g}")

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, self.format)
        magnitude = x.double().abs()
        logs = magnitude[magnitude != 0].log2()
        if not logs.numel():
            return x.clone()
        if not logs.isfinite().all():
            return torch.full_like(x, torch.nan)
        a, b = self._statistics(logs)
        squeezed = torch.where(magnitude > 0, (b + a * magnitude.log2()).exp2(), magnitude)
        rounded = round_fresh(squeezed, self.format, as_rounding(self.rounding))
        back = torch.where(rounded > 0, ((rounded.log2() - b) / a).exp2(), rounded)
        return torch.copysign(back, x.double()).to(x.dtype)

    @staticmethod
    def _statistics(logs: Tensor) -> tuple[float, float]:
        mean, largest = float(logs.mean()), float(logs.max())
        if largest - mean < 1e-9:
            return 1.0, 15.0 - largest
        a = 15.0 / (largest - mean)
        return a, -a * mean
