"""What functions that round plain tensors make of them, and of LPTensors."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lptensor import _compat, observe
from lptensor.base import Format, check_tensor
from lptensor.rounding import Rounding
from lptensor.tensor import LPTensor

Method = Callable[[Any, Tensor], Tensor]


def of_values(method: Method) -> Method:
    """A method that rounds a plain tensor, of an LPTensor too: its values are rounded, and lie on its format as well.

    What the method computes on its way is plain, and rounds nowhere else. It branches on values and holds formats, of
    which Dynamo makes nothing: a compiled function calls it between graphs.
    """

    @_compat.break_graph
    @functools.wraps(method)
    def run(self: Any, x: Tensor) -> Tensor:
        check_tensor(x)
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


def by_blocks(function: Callable[[Tensor], Tensor], x: Tensor, block_size: int) -> Tensor:
    """What a function makes of blocks (..., blocks, block_size) of the last axis, zeros behind a short one; like x.

    A block with NaN or an infinity becomes NaN, whatever the function makes of it.

    >>> by_blocks(lambda blocks: blocks / blocks.sum(-1, keepdim=True), torch.tensor([1.0, 3.0, 5.0]), 2)
    tensor([0.2500, 0.7500, 1.0000])
    """
    if x.numel() == 0:
        return x.clone()
    n = x.shape[-1] if x.dim() else 1
    blocks = pad(x.reshape(*x.shape[:-1], n), (0, -n % block_size)).unflatten(-1, (-1, block_size))
    finite = blocks.isfinite().all(-1, keepdim=True)
    made = torch.where(finite, function(torch.where(finite, blocks, 0)), torch.nan)
    return made.flatten(-2)[..., :n].reshape(x.shape)


def as_one(function: Callable[[Tensor], Tensor], x: Tensor, format: Format, rounding: Rounding) -> Tensor:
    """What a function makes of a plain tensor by roundings of its own, which studies see as one, to a format."""
    with observe.unseen() if observe.anyone else nullcontext():
        made = function(x)
    if observe.anyone and not _compat.transforming() and (observers := observe.observers()):
        observe.show(observers, x, made, format, rounding)
    return made
