"""Which of a layer's three products the running op computes, and which operand of it is the gradient.

Below autograd a gradient's product is an ``mm`` like any other. For ``first @ second`` autograd computes
one of four forms, the transposed ones where an operand lies in memory by columns:

    grad_weight   first.T @ g     or   g.T @ first       the operand on the left has just been transposed
    grad_input    g @ second.T    or   second @ g.T      the operand on the right has

so that the transposition, made within the same evaluation of the same autograd node, tells them apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch

from lptensor import _compat
from lptensor.direction import in_backward
from lptensor.operands import Product

Runner: TypeAlias = "Callable[[tuple[Any, ...], dict[str, Any]], Any]"

# The nodes whose formulas are products, and the names of the operands that they save.
_NODES = {
    "MmBackward0": ("self", "mat2"),
    "AddmmBackward0": ("mat1", "mat2"),
    "BmmBackward0": ("self", "mat2"),
    "BaddbmmBackward0": ("batch1", "batch2"),
    "AddbmmBackward0": ("batch1", "batch2"),
    "MvBackward0": ("self", "vec"),
    "AddmvBackward0": ("mat", "vec"),
    "GroupedMmBackward0": ("self", "mat2"),
}

# The views that transpose, and whether one moves the last axis, over which a product on the left sums.
TURNS: dict[Any, Callable[..., bool]] = {
    torch.ops.aten.t.default: lambda x: x.dim() == 2,
    torch.ops.aten.transpose.int: lambda x, i, j: _last(x, i) != _last(x, j),
    torch.ops.aten.permute.default: lambda x, axes: bool(axes) and not _last(x, axes[-1]),
}

# Ops on their way into a product of batches, within matmul() and tensordot(), which leave the axes in their order.
CARRIES = ("aten::expand", "aten::view", "aten::_unsafe_view", "aten::unsqueeze", "aten::clone")


def _last(x: Any, axis: int) -> bool:
    return axis in (-1, x.dim() - 1)


def turn(func: Any, args: tuple[Any, ...], view: Any) -> None:
    """Note on an LPTensor that an op has transposed it in the running evaluation of a node, perhaps once more."""
    if _compat.running_node() != -1:
        before, moves = _turned(args[0]), TURNS[func](*args)
        if moves or before is not None:
            view._turned = _compat.evaluation(), moves != bool(before)


def carried(run: Runner) -> Runner:
    """The same for an op that keeps an LPTensor as transposed as it was."""

    def keeping(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        made = run(args, kwargs)
        if "_turned" in vars(args[0]) and _turned(args[0]) is not None:
            made._turned = args[0]._turned
        return made

    return keeping


def running_product(left: Any, right: Any) -> tuple[Product | None, int]:
    """The product of two operands as the op that runs gets them, and the place (0 or 1) of the gradient.

    None where the product is a part of some other operator's derivative.

    Raises:
        NotImplementedError: torch.func.vmap has rearranged the product, so that its origin is lost.
    """
    node = _compat.running_formula()
    if node is None:
        flags = [getattr(x, "_gradient", False) for x in (left, right)]
        if not in_backward() or flags[0] == flags[1]:
            return Product.FORWARD, 1
        place = flags.index(True)  # a backward pass that somebody wrote: g @ w, g.T @ x or x.T @ g
        second = (place == 0) == bool(_turned((left, right)[place]))
        return (Product.GRAD_WEIGHT if second else Product.GRAD_INPUT), place
    if node.name() not in _NODES:
        return None, 0
    notes = [_turned(x) for x in (left, right)]
    turned = [bool(note) if hasattr(x, "_arithmetic") else None for x, note in zip((left, right), notes, strict=True)]
    flags = [getattr(x, "_gradient", False) for x in (left, right)]
    batched = None not in notes  # autograd itself transposes one operand, vmap perhaps the other too
    if None not in turned and turned[0] == turned[1] or batched and flags[0] == flags[1]:
        raise NotImplementedError(
            "a gradient's product came rearranged, as torch.func.vmap does it, so that the formats of its operands "
            "are unknown; call the function sample by sample, or use an arithmetic without operands"
        )
    of_second = turned[0] if turned[0] is not None else not turned[1]
    product = Product.GRAD_WEIGHT if of_second else Product.GRAD_INPUT
    if batched:
        return product, flags.index(True)
    # The transposed form belongs to the operand whose gradient it is, if that lies by columns. Batches have none.
    shape, strides = _compat.saved_form(node, _NODES[node.name()][1 if of_second else 0]) or ([], [])
    has_form = len(shape) == 2 or node.name() == "GroupedMmBackward0"
    by_columns = has_form and strides[-2:] == [1, *shape[-2:-1]]
    gradient_on_left = by_columns if of_second else not by_columns
    return product, 0 if gradient_on_left else 1


def _turned(x: Any) -> bool | None:
    """Whether an operand is transposed by the running evaluation of a node; None if that has not touched it."""
    evaluation, turned = getattr(x, "_turned", (None, None))
    return turned if evaluation == _compat.evaluation() else None
