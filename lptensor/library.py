"""The rounding ops that torch's compilers and tracers see in place of a direct kernel call.

A graph says what is rounded to by a text, which ``text.read`` understands in any process.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.base import Format, ScalarFormat
from lptensor.inductor import element_function
from lptensor.rounding import Rounding
from lptensor.text import code, read, write

_LIBRARY = torch.library.Library("lptensor", "DEF")
_LIBRARY.define("round(Tensor x, str rule) -> Tensor")
# A draw may be neither moved nor repeated in the backward pass, which the tag says; nor may two be
# merged, for which no tag exists: so every one has a number of its own.
_LIBRARY.define("round_stochastic(Tensor x, str rule, int draw) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,))
_DRAWS = itertools.count()


# What these return are elements of their first argument, or zeros.
_CHOOSING = (
    *(torch.ops.aten.relu.default, torch.ops.aten.view.default, torch.ops.aten.clone.default),
    *(torch.ops.aten.alias.default, torch.ops.aten.detach.default),
)


def _needless(node: Any, text: str) -> bool:
    """Whether rounding what a node of a graph makes changes nothing, as of the ReLU of what was rounded like this."""
    while node.target in _CHOOSING:
        node = node.args[0]
    if node.target is not torch.ops.lptensor.round.default or node.args[1] != text:
        return False
    format, _ = _rule(text)
    if not isinstance(format, ScalarFormat) or not format.grid.zero:
        return False
    # Graphs of make_fx may write, also by views, to what a node made; those of compilers never do.
    targets = (other.target for other in node.graph.nodes)
    return not any(_compat.is_operator(target) and _compat.schema(target).is_mutable for target in targets)


_compat.leave_out_of_graphs("lptensor::round", _needless, _LIBRARY)
_lowered = False  # inductor comes with the first compilation, not with torch


def _round_fake(x: Tensor, rule: str, draw: int = 0) -> Tensor:
    global _lowered
    if not _lowered:
        _lowered = _compat.set_lowering(torch.ops.lptensor.round.default, element_function)
    return torch.empty_like(x)


def _straight_through(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    return grad, None, *(None for _ in range(ctx.numbers))


def _count_arguments(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.numbers = len(inputs) - 2


for _kind in ("round", "round_stochastic"):
    torch.library.register_fake(f"lptensor::{_kind}", _round_fake, lib=_LIBRARY)
    torch.library.register_autograd(
        f"lptensor::{_kind}", _straight_through, setup_context=_count_arguments, lib=_LIBRARY
    )


def _rule(text: str) -> tuple[Format, Rounding]:
    format, rounding, *_ = read(text)  # programs that were saved before texts named the code have but these
    return format, rounding


Kernel: TypeAlias = "Callable[[Tensor, Format, Rounding], Tensor]"


def implement(kernel: Kernel) -> Kernel:
    """Let the ops do to plain tensors what ``kernel`` does: make a rounded copy."""

    def run(x: Tensor, rule: str, draw: int = 0) -> Tensor:
        return kernel(x, *_rule(rule))

    for kind in ("round", "round_stochastic"):
        _LIBRARY.impl(kind, run, "CompositeExplicitAutograd")
    return kernel


def traced_round(x: Tensor, format: Format, rounding: Rounding) -> Tensor:
    """A rounded copy of a tensor that a tracer watches."""
    rule = write((format, rounding, code()))  # compiled loops hold the steps of fused.py, and are kept on disk
    rounded: Tensor = (
        torch.ops.lptensor.round_stochastic(x, rule, next(_DRAWS))
        if rounding.stochastic
        else torch.ops.lptensor.round(x, rule)
    )
    return rounded
