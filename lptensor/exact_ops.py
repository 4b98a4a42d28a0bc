"""Ops that IEEE 754 wants correctly rounded and that torch's fp32 CPU kernels do not: the square root.

Its vector library is one unit off for about one value in six, and a value that lands on a midpoint of
a narrow format by mistake rounds to the wrong side. The root of an fp32 number in float64, rounded to
fp32, is correctly rounded (Figueroa 1995: 53 >= 2 * 24 + 2 bits). CUDA's kernel is correct.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lptensor.full_fp32 import in_full_fp32
from lptensor.overloads import overloads


def _sqrt(x: Tensor) -> Tensor:
    if x.dtype is torch.float32 and x.device.type == "cpu":
        return x.double().sqrt_().float()  # in place: one float64 copy at a time, not two
    return x.sqrt()


_CORRECT: dict[Any, Callable[..., Any]] = overloads("sqrt", _sqrt)


def correct(func: Any) -> Callable[..., Any]:
    """What computes ``func`` on plain tensors: itself, or the correctly rounded version; in full fp32.

    >>> correct(torch.ops.aten.exp.default) is torch.ops.aten.exp.default
    True
    """
    return in_full_fp32(_CORRECT.get(func, func))
