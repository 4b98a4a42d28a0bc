"""The arguments of an op: the plain tensors within, the arithmetic they share, what a caller named."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lptensor.arithmetic import Arithmetic, promote, wider
from lptensor.rules import Rule, argument

Side = tuple[Arithmetic, bool]  # what values are on: an arithmetic, and whether its gradient side


class Opened(NamedTuple):
    """An op that runs: its arguments as the caller gave them, and with plain tensors for its LPTensors."""

    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    plain: tuple[Any, ...]
    named: dict[str, Any]
    found: list[Any]  # the LPTensors


def unwrap(values: Any, cls: Any, found: list[Any]) -> Any:
    """``values`` with every LPTensor replaced by its inner tensor; the LPTensors go to ``found``."""
    plain = []
    for value in values:
        kind = type(value)
        if kind is cls:
            found.append(value)
            plain.append(value._inner)
        elif (kind is list or kind is tuple) and value and type(value[0]) is not int:  # sizes hold no tensors
            plain.append(unwrap(value, cls, found))
        else:
            plain.append(value)
    return plain if type(values) is list else tuple(plain)


def promoted_by_numbers(out: Any, operands: Sequence[Any], values: Sequence[Any]) -> bool:
    """Whether a result is float64 for no other reason than single float64 numbers, which are weak, among operands.

    Beside an fp32 tensor that has axes torch takes them so itself; beside one that has none it promotes.
    """
    if not any(isinstance(item, Tensor) and item.dtype is torch.float64 for item in each(out)) or wide(operands):
        return False
    axes = [value.dim() for value in each(values) if isinstance(value, Tensor) and value.dtype is torch.float64]
    return axes != [] and not any(axes)


def in_single(values: Any) -> Any:
    """Operands with those of float64 in fp32."""
    if isinstance(values, (list, tuple)):
        plain = [in_single(value) for value in values]
        return plain if type(values) is list else tuple(plain)
    return values.float() if isinstance(values, Tensor) and values.dtype is torch.float64 else values


def join(operands: Sequence[Any]) -> Arithmetic:
    """The arithmetic that operands promote to."""
    arithmetic: Arithmetic = operands[0]._arithmetic
    for operand in operands:
        if operand._arithmetic is not arithmetic:
            return _promoted(tuple(dict.fromkeys(operand._arithmetic for operand in operands)))
    return arithmetic


@lru_cache(maxsize=256)
def _promoted(arithmetics: tuple[Arithmetic, ...]) -> Arithmetic:
    """``promote`` of several, in an order that does not count: what contains all the others goes first."""
    return reduce(promote, sorted(arithmetics, key=lambda a: -sum(wider(a, b) for b in arithmetics)))


def join_list(operands: Sequence[Any]) -> Arithmetic:
    """``join``, which knows whence a list of tensors in several formats comes, most likely: from an optimizer's."""
    try:
        return join(operands)
    except TypeError as error:
        if not all(operand._gradient or operand.dim() == 0 for operand in operands):  # no gradients, nor norms
            raise
        raise TypeError(
            f"{error}. Gradients in several formats have a norm once they are plain, get_total_norm([p.grad."
            "dequantize() for p in parameters]), by which clip_grads_with_norm_ clips them; LBFGS takes such within "
            "OptimLP(..., update='nearest')"
        ) from None


def direct(operands: Sequence[Any]) -> bool:
    """Whether an op between these computes in fp32 as it is and only rounds: the fast way."""
    for operand in operands:
        if not operand._arithmetic.direct:
            return False
    return True


def wide(operands: Sequence[Any]) -> bool:
    """Whether any of these LPTensors computes in float64."""
    return any(x._arithmetic.compute is torch.float64 for x in operands)


def each(values: Any) -> Iterator[Any]:
    """The values of a nest of lists, or the one value that it is."""
    for value in values if isinstance(values, (list, tuple)) else (values,):
        if isinstance(value, (list, tuple)):
            yield from each(value)
        else:
            yield value


def _counts(scalar: Any) -> bool:
    """Whether a number among an op's values is another than the zero that every format has; -0 not all have."""
    return bool(scalar) or type(scalar) is float and math.copysign(1.0, scalar) < 0


def common_grid(rule: Rule, args: Any, kwargs: Any, cls: Any) -> Side | None:
    """The one grid that all values are on that an op selects from, if there is one and no number joins them."""
    for place, unsaid in zip(rule.scalars, rule.unsaid, strict=True):
        given = argument(place, args, kwargs)
        if _counts(unsaid if given is None else given):  # torch leaves out what is at its default
            return None
    grid: Side | None = None
    for place in rule.values:
        for value in each(argument(place, args, kwargs)):
            if type(value) is cls:
                if grid is None:
                    grid = value._arithmetic, value._gradient
                elif value._gradient != grid[1] or value._arithmetic != grid[0]:
                    return None
            elif isinstance(value, Tensor):  # integers and bools are values as well, and no format has all of them
                return None
    return grid if grid is None or grid[0].has_zero else None  # what is filled up is so with zeros


def caller_named(rule: Rule, args: Any, kwargs: Any) -> bool:
    """Whether a caller named a dtype or layout, other than what an LPTensor has anyway."""
    given = [argument(place, args, kwargs) for place in rule.named_dtype]
    if torch.float32 in given and all(value in (None, torch.float32, torch.strided) for value in given):
        return False
    return rule.names_layout or any(value is not None for value in given)
