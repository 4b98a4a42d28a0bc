"""Rounds tensors to a side of an arithmetic, under the eyes of whoever watches, as a trace does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.library import traced_round
from lptensor.ops import round_all_in_place
from lptensor.rules import Kind


class Watcher(Protocol):
    """One who wants to see every op and every rounding."""

    def run(self, func: Any, kind: Kind, work: Callable[[], Any]) -> Any:
        """Do the work of an op, or of a boundary that rounds without one, and return its result."""

    def rounded(self, inner: Tensor, format: Any, rounding: Any) -> None:
        """A tensor was rounded in the op that runs."""


watcher: Watcher | None = None  # nobody watches unless asked, and then an op pays for one look at this


def watched(func: Any, kind: Kind, work: Callable[[], Any]) -> Any:
    """Do ``work`` under the eyes of whoever watches."""
    eyes = watcher  # another thread may close its trace meanwhile
    return work() if eyes is None else eyes.run(func, kind, work)


def tell(inner: Tensor, format: Any, rounding: Any) -> None:
    """Tell whoever watches of a tensor that was rounded elsewhere."""
    eyes = watcher
    if eyes is not None:
        eyes.rounded(inner, format, rounding)


def round_(inner: Tensor, arithmetic: Arithmetic, gradient: bool) -> Tensor:
    """A plain tensor rounded to one side of an arithmetic: in place, or anew where a tracer watches it."""
    in_place, (format, rounding) = arithmetic._in_place[gradient], arithmetic.sides[gradient]
    if format is None:
        return inner
    if type(inner) is Tensor and not _compat.traced_by_mode():
        if _compat.is_zero_tensor(inner):
            inner = inner.clone()
        in_place(inner)
    else:
        inner = traced_round(inner, format, rounding)
    eyes = watcher
    if eyes is not None:
        eyes.rounded(inner, format, rounding)
    return inner


def round_all(inners: Sequence[Tensor], arithmetic: Arithmetic, gradient: bool) -> None:
    """``round_`` of each where it lies: plain tensors that no tracer watches."""
    format, rounding = arithmetic.sides[gradient]
    if format is None:
        return
    round_all_in_place(inners, format, rounding)
    eyes = watcher
    if eyes is not None:
        for inner in inners:
            eyes.rounded(inner, format, rounding)
