"""What functions that round plain tensors make of them, and of LPTensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lptensor.tensor import LPTensor

Method = Callable[[Any, Tensor], Tensor]


def of_values(method: Method) -> Method:
    """A method that rounds a plain tensor, of an LPTensor too: its values are rounded, and lie on its format as well.

    What the method computes on its way is plain, and rounds nowhere else.
    """

    @functools.wraps(method)
    def run(self: Any, x: Tensor) -> Tensor:
        if not isinstance(x, LPTensor):
            return method(self, x)
        values = method(self, x.dequantize())
        # A gradient stays on its side, on which .to_lp() makes nothing.
        result: Tensor = torch.empty_like(x).copy_(values) if x._gradient else values.to_lp(x.arithmetic)  # type: ignore[attr-defined]
        return result

    return run


def made_by(function: Callable[[Tensor], Tensor], x: Tensor, given: object) -> Tensor:
    """``function(x)``, or a TypeError about what was ``given``, unless it is a tensor of the shape and dtype of x.

    >>> made_by(torch.neg, torch.ones(1), torch.neg)
    tensor([-1.])
    """
    made = function(x)
    if not isinstance(made, Tensor) or made.shape != x.shape or made.dtype != x.dtype:
        got = f"{made.dtype} of shape {tuple(made.shape)}" if isinstance(made, Tensor) else type(made).__name__
        raise TypeError(f"{given!r} must return a tensor like the {x.dtype} of {tuple(x.shape)} it gets, got {got}")
    return made
