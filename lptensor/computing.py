"""What an op gives on plain tensors where its arithmetic asks for more than fp32 and one rounding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from lptensor.arithmetic import Arithmetic
from lptensor.exact_ops import correct
from lptensor.multiply import Seen
from lptensor.odd_sums import in_double
from lptensor.products import PRODUCTS, WRITTEN, multiplied
from lptensor.rules import Rule


def wide(found: list[Any]) -> bool:
    """Whether any of these LPTensors computes in float64."""
    return any(x._arithmetic.compute is torch.float64 for x in found)


def widened(values: Any, known: dict[int, Tensor] | None = None) -> Any:
    """Arguments with every fp32 tensor in float64; ``known`` keeps what became of each, by id."""
    if isinstance(values, Tensor):
        if values.dtype is not torch.float32 or values.layout is not torch.strided:
            return values
        if known is None:
            return values.double()
        return known.setdefault(id(values), values.double())
    if isinstance(values, (list, tuple)):
        items = [widened(value, known) for value in values]
        return items if isinstance(values, list) else tuple(items)
    if isinstance(values, dict):
        return {name: widened(value, known) for name, value in values.items()}
    return values


def names_single(rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the dtype that the caller names is the one an LPTensor has anyway."""
    places = (kwargs.get(p) if isinstance(p, str) else args[p] if p < len(args) else None for p in rule.named_dtype)
    return any(place is torch.float32 for place in places)


def computed(
    func: Any,
    given: tuple[Any, ...],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    found: list[Any],
    join: Callable[[list[Any]], Arithmetic],
    seen: Seen,
) -> Any:
    """``func`` on plain tensors: in float64 if the arithmetic says so, with the operands of products rounded.

    Args:
        given: the arguments as the caller gave them, LPTensors among them, which are ``found``.
        seen: is told of each operand that is rounded.
    """
    run = correct(func)
    if wide(found):
        args, kwargs, run = widened(args), widened(kwargs), in_double(func)
        kwargs = {name: torch.float64 if value is torch.float32 else value for name, value in kwargs.items()}
        args = tuple(torch.float64 if value is torch.float32 else value for value in args)
    if func in PRODUCTS:
        arithmetic = join(found)
        if arithmetic.operands is not None:
            return multiplied(func, given, args, kwargs, arithmetic, seen)
    return run(*args, **kwargs)


def written_by_product(func: Any) -> Any:
    """The op that computes what ``func`` writes, if that is a product; else None."""
    return WRITTEN.get(func)
