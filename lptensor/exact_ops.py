"""Ops that IEEE 754 wants correctly rounded and that torch's fp32 kernels do not: square roots and some quotients.

A value that lands on a midpoint of a narrow format by mistake rounds to the wrong side. The vector library of CPUs is
one unit off for the root of about one value in six. That of an fp32 number in float64, rounded to fp32, is correctly
rounded (Figueroa 1995: 53 >= 2 * 24 + 2 bits). NumPy's kernel, which takes one thread and the processor's instruction,
is correct, and so is CUDA's. What is divided by a number of the CPU CUDA's kernels multiply by its reciprocal, unless
the number is on the device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lptensor import _compat
from lptensor.full_fp32 import in_full_fp32
from lptensor.overloads import overloads

aten = torch.ops.aten

# NumPy takes six times less than float64 does on one thread, and to get there a few microseconds.
_FEW, _WORTHWHILE = 4, 1024  # threads, elements


def _sqrt(x: Tensor) -> Tensor:
    if x.dtype is not torch.float32 or x.device.type != "cpu":
        return x.sqrt()
    in_memory = type(x) is Tensor and not _compat.traced() and not _compat.transforming()
    as_it_is = in_memory and not _compat.is_zero_tensor(x) and not x.is_neg()
    if as_it_is and x.numel() >= _WORTHWHILE and torch.get_num_threads() <= _FEW:
        root = torch.empty_like(x)
        with np.errstate(invalid="ignore"):  # of negative numbers
            np.sqrt(x.detach().numpy(), out=root.numpy())
        return root
    return x.double().sqrt_().float()  # in place: one float64 copy at a time, not two


def _power(power: Any, root: Callable[..., Any]) -> Callable[..., Any]:
    """A power whose exponent 1/2, for which torch takes its square root, is the correctly rounded one."""
    call = _compat.direct_call(power)

    def run(x: Any, exponent: Any, **out: Tensor) -> Any:
        half = type(exponent) is float and exponent == 0.5
        return root(x, **out) if half else call(x, exponent, **out)

    return run


def _quotient(division: Any) -> Callable[..., Any]:
    """A division by a number of the CPU, which goes to the device first."""
    call = _compat.direct_call(division)

    def run(x: Any, other: Any, **named: Any) -> Any:
        return call(x, _there(other, x) if isinstance(x, Tensor) and x.is_cuda else other, **named)

    return run


def _there(divisor: Any, x: Tensor) -> Any:
    if isinstance(divisor, (int, float)):
        return torch.full((), divisor, dtype=x.dtype, device=x.device)
    return divisor.to(x.device) if isinstance(divisor, Tensor) and divisor.dim() == 0 else divisor


_CORRECT: dict[Any, Callable[..., Any]] = overloads("sqrt", _sqrt)
_POWERS = {
    aten.pow.Tensor_Scalar: aten.sqrt.default,
    aten.pow.Tensor_Scalar_out: aten.sqrt.out,
    aten.pow_.Scalar: aten.sqrt_.default,
    aten._foreach_pow.Scalar: aten._foreach_sqrt.default,
    aten._foreach_pow_.Scalar: aten._foreach_sqrt_.default,
}
_DIVISIONS = (
    *(aten.div.Tensor, aten.div.Tensor_mode, aten.div.out, aten.div.out_mode),
    *(aten.div_.Tensor, aten.div_.Tensor_mode),
)
_CORRECT |= {op: _quotient(op) for op in _DIVISIONS}
_CORRECT |= {op: _power(op, _CORRECT[root]) for op, root in _POWERS.items()}


def correct(func: Any) -> Callable[..., Any]:
    """What computes ``func`` on plain tensors: itself, or the correctly rounded version; in full fp32.

    >>> correct(torch.ops.aten.exp.default) is torch.ops.aten.exp.default
    True
    """
    return _CORRECT[func] if func in _CORRECT else in_full_fp32(func)
