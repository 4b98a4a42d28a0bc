"""The largest or smallest products with the rows of a sparse matrix, whose gradients go to where they were found."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def with_places(run: Callable[..., Any]) -> Callable[..., Any]:
    """``aten::_sparse_mm_reduce_impl`` such that it says where it found what it returns, if that gets a gradient.

    torch's kernel asks its operands whether they need one, which inner tensors never do; and without the places the
    kernel of the backward pass reads past the end of an empty tensor.
    """

    def needing(x: Any) -> Any:
        inner = getattr(x, "_inner", None)
        if inner is None or not x.requires_grad:
            return x
        return type(x)(inner.detach().requires_grad_(), x._arithmetic, x._gradient)

    def placed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run(tuple(map(needing, args)) if torch.is_grad_enabled() else args, kwargs)

    return placed
