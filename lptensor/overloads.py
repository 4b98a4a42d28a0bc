"""One formula for all the overloads of an op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten


def overloads(name: str, f: Callable[..., Tensor]) -> dict[Any, Callable[..., Any]]:
    """The overloads of an op, in place, with ``out=`` and of lists, and what computes each where ``f`` is the op."""
    found: dict[Any, Callable[..., Any]] = {}
    for spelled, run in ((name, f), (f"{name}_", _in_place(f))):
        for packet, make in ((spelled, run), (f"_foreach_{spelled}", _of_lists(run, run is not f))):
            op = getattr(aten, packet, None)
            for overload in set(op.overloads() if op else ()) & {"default", "Tensor", "Scalar", "List", "ScalarList"}:
                found[getattr(op, overload)] = make
    if "out" in getattr(aten, name).overloads():
        found[getattr(aten, name).out] = _into(f)
    return found


def _in_place(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda x, *args, **kwargs: x.copy_(f(x, *args, **kwargs))


def _into(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def run(*args: Any, out: Tensor, **kwargs: Any) -> Tensor:
        result = f(*args, **kwargs)
        return (out if out.shape == result.shape else out.resize_(result.shape)).copy_(result)

    return run


def _of_lists(f: Callable[..., Any], in_place: bool) -> Callable[..., Any]:
    """``f`` of each tensor of a list, with its item of further lists."""

    def run(xs: Sequence[Tensor], *args: Any, **kwargs: Any) -> list[Tensor] | None:
        def of(i: int, value: Any) -> Any:
            return value[i] if isinstance(value, (list, tuple)) else value

        made = [f(x, *(of(i, a) for a in args), **{k: of(i, a) for k, a in kwargs.items()}) for i, x in enumerate(xs)]
        return None if in_place else made

    return run
