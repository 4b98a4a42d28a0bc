"""What an op gives on plain tensors where its arithmetic asks for more than fp32 and one rounding."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.accumulator import Accumulator
from lptensor.arguments import Opened, each, join, wide
from lptensor.arithmetic import Arithmetic
from lptensor.exact_ops import correct
from lptensor.grouped import IN_FLOAT64
from lptensor.odd_sums import in_double
from lptensor.products import PRODUCTS, WRITTEN, multiplied, refuse_product
from lptensor.rules import argument
from lptensor.sums import FORMULAS, SUMS, WRITTEN_SUMS, refuse_sum
from lptensor.watch import round_


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


_COPY, _COPY_LISTS = torch.ops.aten.copy_.default, torch.ops.aten._foreach_copy_.default


def copies_double(func: Any, plain: Sequence[Any]) -> bool:
    """Whether an op copies float64, which torch would round to fp32 before the format has its turn.

    Into an expanded tensor torch refuses to copy.
    """
    if func is _COPY:
        pairs = [plain[:2]]
    elif func is _COPY_LISTS:
        pairs = [*zip(*plain[:2], strict=True)]
    else:
        return False
    expanded = any(n > 1 and step == 0 for x, _ in pairs for n, step in zip(x.shape, x.stride(), strict=True))
    return not expanded and any(source.dtype is torch.float64 for _, source in pairs)


def _all_single(values: Sequence[Any]) -> bool:
    """Whether fp32 holds what operands are, as far as their kinds tell."""
    for value in values:
        if isinstance(value, (list, tuple)):
            if not _all_single(value):
                return False
        elif isinstance(value, Tensor):
            if value.element_size() > (4 if value.is_floating_point() else 2):
                return False
        elif isinstance(value, (int, float)) and ctypes.c_float(value).value != value:  # NaN too, which is no matter
            return False
    return True


def computed(op: Opened) -> Any:
    """What an op gives: in float64, by a product with rounded operands, or added up, as its arithmetic says."""
    func, plain, named, run = op.func, op.plain, op.named, correct(op.func)
    if wide(op.found):
        run = IN_FLOAT64.get(func) or in_double(func, _all_single((*plain, *named.values())))
        plain, named = widened(plain), widened(named)
        plain = tuple(torch.float64 if value is torch.float32 else value for value in plain)
        named = {name: torch.float64 if value is torch.float32 else value for name, value in named.items()}
    if any(shapes_products(x) for x in op.found):
        if func in PRODUCTS:
            return multiplied(op._replace(plain=plain, named=named))
        refuse_product(func)
    accumulator = accumulator_of(op.found)
    if accumulator is not None:
        if func in SUMS:
            return SUMS[func](accumulator, *plain, **named)
        if _compat.schema(func).name in FORMULAS:
            return by_formula(op)
        refuse_sum(func, plain)
    return run(*plain, **named)


def shapes_products(x: Any) -> bool:
    """Whether an LPTensor's arithmetic says how products are formed."""
    return x._arithmetic.operands is not None or x._arithmetic.accumulator is not None


def accumulator_of(found: list[Any]) -> Accumulator | None:
    """What adds up in an op that is no product; without an accumulator, LPTensors need no arithmetic in common."""
    if all(x._arithmetic.accumulator is None for x in found):
        return None
    accumulator = join(found).accumulator
    return None if accumulator is None or accumulator.adds_elements else accumulator


def by_formula(op: Opened) -> Any:
    """An op by its formula in simpler ones, whose sums are added up and of which nothing else is rounded."""
    arithmetic, cls = join(op.found), type(op.found[0])
    inside = Arithmetic(None, accumulator=arithmetic.accumulator, compute=arithmetic.compute)
    formula = _compat.decomposition(op.func)
    assert formula is not None, f"torch has no formula for {op.func}"

    def enter(x: Any) -> Any:
        return cls(x._inner, inside) if type(x) is cls else x

    args, kwargs = _compat.tree_map(enter, (op.args, op.kwargs), cls)
    return _compat.tree_map(lambda x: x._inner if type(x) is cls else x, formula(*args, **kwargs), cls)


def write(op: Opened, writes: Sequence[int | str], rounds: bool) -> Any:
    """Run an op that writes into its arguments, and leave each as its format has it, rounded once.

    Args:
        writes: the places of what is written to.
        rounds: False for what only selects values.
    """
    func, accumulator = op.func, accumulator_of(op.found)
    known: dict[int, Tensor] = {}  # what is to be written, by id of the plain tensor it goes to
    source = None
    if any(shapes_products(x) for x in op.found):
        source = WRITTEN.get(func)
        if source is None:
            refuse_product(func)
    if accumulator is not None:
        source = source or WRITTEN_SUMS.get(func)
    out: Any = None
    if source is not None:
        (place,) = writes
        kwargs, named = ({k: v for k, v in given.items() if k != place} for given in (op.kwargs, op.named))
        known[id(argument(place, op.plain, op.named))] = computed(op._replace(func=source, kwargs=kwargs, named=named))
    elif accumulator is not None and _compat.schema(func).name in FORMULAS:
        out = by_formula(op)
    else:
        if accumulator is not None:
            refuse_sum(func, op.plain)
        if rounds and (wide(op.found) or copies_double(func, op.plain)):
            # What is expanded stays so, and torch refuses most writes to it.
            for inner in each(tuple(argument(place, op.plain, op.named) for place in writes)):
                if isinstance(inner, Tensor) and inner.dtype is torch.float32 and 0 in inner.stride():
                    known[id(inner)] = each_once(inner, inner).double().expand(inner.shape)
            run = in_double(func, _all_single((*op.plain, *op.named.values())))
            out = run(*widened(op.plain, known), **widened(op.named, known))
        else:
            out = correct(func)(*op.plain, **op.named)
    for place in writes:
        targets, inners = _listed(argument(place, op.args, op.kwargs)), _listed(argument(place, op.plain, op.named))
        for target, inner in zip(targets, inners, strict=True):
            value = known.get(id(inner), inner)
            if inner.shape != value.shape:
                _grow(func, place, inner, value)
            once = each_once(inner, inner)
            value = once if value is inner else each_once(value, inner)
            if rounds and inner is not target:
                value = round_(value, target._arithmetic, target._gradient)  # anew, where a tracer watches
            if value is not once:
                once.copy_(value)
    return out


def each_once(x: Tensor, expanded: Tensor) -> Tensor:
    """Of a tensor like an expanded one, which repeats elements, each element once."""
    if 0 in expanded.stride() and expanded.numel():
        for axis, (n, step) in enumerate(zip(expanded.shape, expanded.stride(), strict=True)):
            x = x.narrow(axis, 0, 1) if n > 1 and step == 0 else x
    return x


def _grow(func: Any, place: int | str, target: Tensor, result: Tensor) -> None:
    """Give what an op with ``out=`` writes to the shape of the result; an op in place has none to give."""
    if isinstance(place, int):
        raise RuntimeError(
            f"{func} writes into its first argument, which has shape {tuple(target.shape)} and the result "
            f"{tuple(result.shape)}; make them one, or take the op that returns a tensor"
        )
    target.resize_(result.shape)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else [] if value is None else [value]
