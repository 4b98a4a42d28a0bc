"""Which of a layer's three products the running op computes, and which operand of it is the gradient.

Below autograd a gradient's product is an ``mm`` like any other. For ``first @ second`` autograd computes
one of four forms, the transposed ones where an operand lies in memory by columns:

    grad_weight   first.T @ g     or   g.T @ first       the operand on the left has just been transposed
    grad_input    g @ second.T    or   second @ g.T      the operand on the right has

so that the transposition, made within the same evaluation of the same autograd node, tells them apart.
"""

from __future__ import annotations

from typing import Any

import torch

from lptensor import _compat
from lptensor.direction import in_backward
from lptensor.operands import Product

# The nodes whose formulas are products, and the names of the operands that they save.
_NODES = {
    "MmBackward0": ("self", "mat2"),
    "AddmmBackward0": ("mat1", "mat2"),
    "BmmBackward0": ("self", "mat2"),
    "BaddbmmBackward0": ("batch1", "batch2"),
    "AddbmmBackward0": ("batch1", "batch2"),
    "MvBackward0": ("self", "vec"),
    "AddmvBackward0": ("mat", "vec"),
}

TURNS = frozenset({torch.ops.aten.t.default, torch.ops.aten.transpose.int})


def turn(view: Any) -> None:
    """Note on an LPTensor that it was transposed in the running evaluation of a node."""
    if _compat.running_node() != -1:
        view._turned = _compat.evaluation()


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
        second = (place == 0) == _turned((left, right)[place])
        return (Product.GRAD_WEIGHT if second else Product.GRAD_INPUT), place
    if node.name() not in _NODES:
        return None, 0
    turned = [_turned(x) if hasattr(x, "_arithmetic") else None for x in (left, right)]
    if None not in turned and turned[0] == turned[1]:
        raise NotImplementedError(
            "a gradient's product came rearranged, as torch.func.vmap does it, so that the formats of its operands "
            "are unknown; call the function sample by sample, or use an arithmetic without operands"
        )
    of_second = turned[0] if turned[0] is not None else not turned[1]
    # The transposed form belongs to the operand whose gradient it is, if that lies by columns.
    form = _compat.saved_form(node, _NODES[node.name()][1 if of_second else 0])
    by_columns = form is not None and len(form[0]) == 2 and form[1] == [1, form[0][0]]
    gradient_on_left = by_columns if of_second else not by_columns
    return (Product.GRAD_WEIGHT if of_second else Product.GRAD_INPUT), 0 if gradient_on_left else 1


def _turned(x: Any) -> bool:
    return getattr(x, "_turned", None) == _compat.evaluation()
