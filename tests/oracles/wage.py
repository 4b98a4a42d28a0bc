"""What WAGE rounds to and scales by (Wu et al., 1802.04680), in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def q(x: Tensor, bits: int) -> Tensor:
    """Clip(round(x / s) s, +-(1 - s)), s = 2**(1 - bits)."""
    s = 2.0 ** (1 - bits)
    return (torch.round(x.double() / s) * s).clamp(-1 + s, 1 - s)


def direction(x: Tensor) -> Tensor:
    return x.double() / 2.0 ** round(math.log2(float(x.abs().max())))
