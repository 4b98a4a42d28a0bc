"""The op that torch's compilers and tracers see in place of sums of products that an accumulator forms."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from lptensor.accumulator import Accumulator
from lptensor.text import read, write

_LIBRARY = torch.library.Library("lptensor", "FRAGMENT")
_ARGUMENTS = "Tensor a, Tensor b, Tensor? c, str accumulator, bool running"
_LIBRARY.define(f"add_up({_ARGUMENTS}) -> Tensor")
# As in lptensor.library: a draw may be neither moved nor repeated, nor may two be merged.
_LIBRARY.define(f"add_up_stochastic({_ARGUMENTS}, int draw) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_DRAWS = itertools.count()


def _fake(a: Tensor, b: Tensor, c: Tensor | None, accumulator: str, running: bool, draw: int = 0) -> Tensor:
    return a.new_empty((*a.shape, b.shape[2]) if running else (*a.shape[:2], b.shape[2]))


for _kind in ("add_up", "add_up_stochastic"):
    torch.library.register_fake(f"lptensor::{_kind}", _fake, lib=_LIBRARY)

Kernel = TypeVar("Kernel", bound=Callable[..., Tensor])


def implement(kernel: Kernel) -> Kernel:
    """Let the ops do to plain tensors what ``kernel(a, b, accumulator, c, running)`` does: a new contiguous tensor."""

    def run(a: Tensor, b: Tensor, c: Tensor | None, accumulator: str, running: bool, draw: int = 0) -> Tensor:
        return kernel(a, b, read(accumulator), c, running)

    for kind in ("add_up", "add_up_stochastic"):
        _LIBRARY.impl(kind, run, "CompositeExplicitAutograd")
    return kernel


def traced_sums(a: Tensor, b: Tensor, acc: Accumulator, c: Tensor | None, running: bool) -> Tensor:
    """a[batch, m, k] b[batch, k, n] + c of tensors that a tracer watches; ``running``: every sum, [batch, m, k, n]."""
    op, form = torch.ops.lptensor, write(acc)
    sums: Tensor = (
        op.add_up_stochastic(a, b, c, form, running, next(_DRAWS))
        if acc.stochastic
        else op.add_up(a, b, c, form, running)
    )
    return sums
