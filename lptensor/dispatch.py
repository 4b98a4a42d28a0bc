"""Runs ops on LPTensors by their rules: unwrap, compute in fp32, round once, wrap.

Every function here gets the tensor class as an argument; lptensor/tensor.py hands it in.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.arguments import (
    Opened,
    Side,
    caller_named,
    common_grid,
    direct,
    each,
    in_single,
    join,
    join_list,
    promoted_by_numbers,
    unwrap,
)
from lptensor.arithmetic import Arithmetic
from lptensor.bags import entry_by_entry
from lptensor.blocks import BlockFormat
from lptensor.computing import computed, copies_double, each_once, write
from lptensor.ctc import with_exact_likelihood
from lptensor.direction import in_backward, side_of_copy
from lptensor.escape import leave
from lptensor.exact_ops import correct
from lptensor.limits import within_limits
from lptensor.next_values import to_next_value, to_next_value_in_place
from lptensor.recorded import recorded, unrecorded
from lptensor.rules import Kind, Rule, argument, rule_for
from lptensor.running_product import CARRIES, TURNS, carried, turn
from lptensor.sparse_extremes import with_places
from lptensor.unscale import unscaled
from lptensor.watch import round_, round_all

Runner = Callable[[tuple[Any, ...], dict[str, Any]], Any]


def make_runner(func: Any, cls: Any) -> Runner:
    """The function that runs one operator on arguments among which there are tensors of class ``cls``."""
    if not _compat.is_operator(func):
        refuse_higher_order(func)
    rule = rule_for(func)
    kinds = {
        Kind.DECOMPOSE: _decompose,
        Kind.RESHAPE: _reshape,
        Kind.MUTATE: _mutate,
        Kind.VIEW: _view,
        Kind.KEEP: _keep,
        Kind.ROUND: _foreach if rule.foreach else _compute,
        Kind.COLLECT: _collect,
        Kind.REFUSE: _refuse,
    }
    run = kinds[rule.kind](func, rule, cls)
    if rule.foreach and rule.kind is Kind.MUTATE:
        run = _counted(run, rule)
    special = _SPECIAL.get(_compat.schema(func).name)
    return run if special is None else special(run)


# What ops do beside their rules: those that ask what the format has, and those on their way into a product.
_SPECIAL: dict[str, Callable[[Runner], Runner]] = {
    "aten::nan_to_num": within_limits,
    "aten::nan_to_num_": within_limits,
    "aten::nextafter": to_next_value,
    "aten::nextafter_": to_next_value_in_place,
    "aten::_embedding_bag_backward": entry_by_entry,
    "aten::_ctc_loss_backward": with_exact_likelihood,
    "aten::_sparse_mm_reduce_impl": with_places,
    "aten::convolution": recorded,
    "aten::_convolution": unrecorded,
    "aten::_amp_foreach_non_finite_check_and_unscale_": unscaled,
    **dict.fromkeys(CARRIES, carried),
}


def refuse_higher_order(func: Any) -> NoReturn:
    """Say that an operator that takes functions is none for LPTensors."""
    raise NotImplementedError(
        f"{func} takes functions as arguments and cannot look into an LPTensor; call .dequantize() on its "
        "tensors, or write the control flow in Python"
    )


# -- pieces ------------------------------------------------------------------------------------------


def wrap(cls: Any, inner: Tensor, arithmetic: Arithmetic, gradient: bool) -> Any:
    """An LPTensor, without the questions that its class asks of what people give it."""
    made = _compat.make_wrapper(cls, inner)
    made._inner, made._arithmetic, made._gradient = inner, arithmetic, gradient
    return made


def _alike(grids: Sequence[Side | None], inners: Sequence[Any]) -> bool:
    """Whether plain tensors all round to one side of one arithmetic."""
    first = grids[0] if len(grids) > 1 and not _compat.traced_by_mode() else None
    return first is not None and all(
        grid is not None
        and grid[0] is first[0]
        and grid[1] == first[1]
        and type(inner) is Tensor
        and _stays(inner)
        and not _compat.is_zero_tensor(inner)
        for grid, inner in zip(grids, inners, strict=True)
    )


_SINGLE, _STRIDED = torch.float32, torch.strided  # looked up here at every op


def _stays(result: Any) -> bool:
    """Whether a result can be the inner tensor of an LPTensor."""
    return isinstance(result, Tensor) and result.dtype is _SINGLE and result.layout is _STRIDED


def _fresh(
    func: Any, rule: Rule, cls: Any, out: Any, grid: Side, rounds: bool, named: bool = False, found: Any = ()
) -> Any:
    """Results of a computation, rounded if need be, and wrapped."""
    if isinstance(out, Tensor):
        if not _stays(out):
            wide = grid[0].compute is torch.float64 and not named
            if wide and out.dtype is torch.float64 and out.layout is torch.strided:
                return cls((round_(out, *grid) if rounds else out).float(), *grid)
            return leave(func, out, named, found)
        return cls(round_(out, *grid) if rounds else out, *grid)
    if isinstance(out, (list, tuple)):
        wrapped = [
            item if i in rule.exact else _fresh(func, rule, cls, item, grid, rounds, named, found)
            for i, item in enumerate(out)
        ]
        return wrapped if type(out) is list else tuple(wrapped)
    return out


# -- one runner for each kind --------------------------------------------------------------------------


def _compute(func: Any, rule: Rule, cls: Any) -> Runner:
    fast = _compat.direct_call(correct(func))

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: list[Any] = []
        plain = unwrap(args, cls, found)
        named = dict(zip(kwargs, unwrap(tuple(kwargs.values()), cls, found), strict=True)) if kwargs else kwargs
        if direct(found) or rule.names_layout:
            out = fast(*plain, **named)
        else:
            out = computed(Opened(func, args, kwargs, plain, named, found))
        if _stays(out):  # most ops, the short way through _fresh
            arithmetic, gradient = join(found), in_backward()
            return wrap(cls, round_(out, arithmetic, gradient), arithmetic, gradient)
        if isinstance(out, bool) or isinstance(out, Tensor) and not out.is_floating_point() and not out.is_complex():
            return out  # a comparison: it needs no format that holds both operands
        if promoted_by_numbers(out, found, (*plain, *named.values())):
            return run(in_single(args), in_single(kwargs))
        grid = join(found), in_backward()
        return _fresh(func, rule, cls, out, grid, True, caller_named(rule, args, kwargs), found)

    return run


def _keep(func: Any, rule: Rule, cls: Any) -> Runner:
    fast = _compat.direct_call(func)
    joined = join_list if func in (torch.ops.aten.cat.default, torch.ops.aten.stack.default) else join

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: list[Any] = []
        plain = unwrap(args, cls, found)
        named = dict(zip(kwargs, unwrap(tuple(kwargs.values()), cls, found), strict=True)) if kwargs else kwargs
        kept = common_grid(rule, args, kwargs, cls)
        grid: Side = (joined(found), in_backward()) if kept is None else (kept[0], side_of_copy(kept[1]))
        if grid == kept or direct(found):
            out = fast(*plain, **named)
        else:
            out = computed(Opened(func, args, kwargs, plain, named, found))
        if _stays(out):
            return wrap(cls, out if grid == kept else round_(out, *grid), *grid)
        if promoted_by_numbers(out, found, (*plain, *named.values())):
            return run(in_single(args), in_single(kwargs))
        return _fresh(func, rule, cls, out, grid, grid != kept, caller_named(rule, args, kwargs), found)

    return run


def _view(func: Any, rule: Rule, cls: Any) -> Runner:
    fast = _compat.direct_call(func)
    writable = func is torch.ops.aten.detach.default  # also what inference mode made, outside of it

    def look(out: Any, base: Any) -> Any:
        inference = base.is_inference()
        if torch.is_inference_mode_enabled() != inference and not (inference and writable):
            with torch.inference_mode(inference):  # with the version counter of a tensor that has one
                view = wrap(cls, out, base._arithmetic, base._gradient)
        else:
            view = wrap(cls, out, base._arithmetic, base._gradient)
        _compat.share_storage(view, base)
        return view

    def each_look(out: Any, base: Any) -> Any:
        if isinstance(out, Tensor):
            return look(out, base) if _stays(out) else out
        looks = [each_look(item, base) for item in out]
        return looks if type(out) is list else tuple(looks)

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: list[Any] = []
        plain = unwrap(args, cls, found)
        out = fast(*plain, **kwargs)
        if _stays(out):
            return look(out, found[0])
        if isinstance(out, Tensor):  # a copy, so that no write goes by the format
            return leave(func, out.clone(), caller_named(rule, args, kwargs), found)
        return each_look(out, found[0])

    def turning(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        view = run(args, kwargs)
        if type(view) is cls:  # the other operand's arithmetic may be the one that names operands
            turn(func, args, view)
        return view

    return turning if func in TURNS else run


def _mutate(func: Any, rule: Rule, cls: Any) -> Runner:
    fast = _compat.direct_call(correct(func))
    makes = not rule.foreach and any(place is None for place in rule.returns)  # also what it does not write to

    def written(args: tuple[Any, ...], kwargs: dict[str, Any], rounds: bool) -> None:
        for place in rule.writes:
            target = argument(place, args, kwargs)
            if type(target) is cls:
                _written(target, rounds)
            elif isinstance(target, (list, tuple)):
                _all_written([item for item in target if type(item) is cls], rounds)

    def leaving(args: tuple[Any, ...], kwargs: dict[str, Any], found: list[Any]) -> None:
        if all(type(x) is cls for place in rule.writes for x in each(argument(place, args, kwargs))):
            return
        for x in found:  # what it writes to a plain tensor is plain, and so would its gradient be
            if x.grad_fn is not None:
                x._let_plain_gradients_enter()

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: list[Any] = []
        plain = unwrap(args, cls, found)
        named = dict(zip(kwargs, unwrap(tuple(kwargs.values()), cls, found), strict=True)) if kwargs else kwargs
        rounds = not (rule.selects and common_grid(rule, args, kwargs, cls))
        grid = (join(found), in_backward()) if makes else None
        if not makes and torch.is_grad_enabled():
            leaving(args, kwargs, found)
        try:
            if direct(found) and not copies_double(func, plain):
                out = fast(*plain, **named)
                written(args, kwargs, rounds)
            else:
                op = Opened(func, args, kwargs, plain, named, found)
                out = write(op, rule.writes, rounds)
                written(args, kwargs, False)
        except BaseException:  # an index out of range half way, or a person who stops a loop: formats hold all the same
            for place in rule.writes:
                for target in each(argument(place, args, kwargs)):
                    if type(target) is cls and not isinstance(target.format, BlockFormat):
                        _written(target, True)  # which changes nothing that was rounded; blocks it may
            raise
        if not rule.returns:
            return out
        outs = out if len(rule.returns) > 1 else (out,)
        results = [
            argument(place, args, kwargs)
            if place is not None
            else item
            if i in rule.exact or grid is None
            else _fresh(func, rule, cls, item, grid, True)
            for i, (place, item) in enumerate(zip(rule.returns, outs, strict=True))
        ]
        return results[0] if len(rule.returns) == 1 else tuple(results)

    return run


def _counted(run: Runner, rule: Rule) -> Runner:
    """Count the writes to the tensors of a list, which torch leaves to its kernels: a graph may need what was there."""

    def counting(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return run(args, kwargs)
        finally:
            # A list: of what comes out of an iterator in there, as Ctrl-C may, torch makes a SystemError.
            written = [x for place in rule.writes for x in each(argument(place, args, kwargs))]
            torch.autograd.graph.increment_version(written)

    return counting


def _written(target: Any, rounds: bool) -> None:
    """An op has written into the inner tensor of ``target``: its format holds, in either direction."""
    if rounds:
        inner = each_once(target._inner, target._inner)
        rounded = round_(inner, target._arithmetic, target._gradient)
        if rounded is not inner:
            inner.copy_(rounded)
    if target._inner.shape != target.shape:  # out= grew an empty tensor
        _compat.take_form(target, target._inner)


def _all_written(targets: Sequence[Any], rounds: bool) -> None:
    inners = [target._inner for target in targets]
    if rounds and _alike([(target._arithmetic, target._gradient) for target in targets], inners):
        round_all(inners, targets[0]._arithmetic, targets[0]._gradient)
        rounds = False
    for target in targets:
        _written(target, rounds)


def _reshape(func: Any, rule: Rule, cls: Any) -> Runner:
    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if _compat.schema(func).name == "aten::set_":
            _check_set(args, cls)
        found: list[Any] = []
        func(*unwrap(args, cls, found), **kwargs)
        if not rule.resizes:
            _compat.apply_below(func, args, kwargs)
        elif type(args[0]) is cls:
            _compat.take_form(args[0], args[0]._inner)
        return args[0]

    return run


def _check_set(args: tuple[Any, ...], cls: Any) -> None:
    """Refuse to give a tensor the memory of one in another format, as torch does with dtypes."""
    target, source = args[0], args[1] if len(args) > 1 else None
    if (
        source is None
        or type(target) is cls
        and type(source) is cls
        and ((target._arithmetic, target._gradient) == (source._arithmetic, source._gradient))
    ):
        return
    if not isinstance(source, Tensor):
        raise TypeError("an LPTensor has no memory of its own to set from a storage; copy values with .copy_()")
    given: list[Any] = [target, source]
    names = [f"one of {x.format!r}" if type(x) is cls else "a plain one" for x in given]
    raise TypeError(f"set_() gives a tensor another's memory as it is, got {' and '.join(names)}; copy with .copy_()")


def _foreach(func: Any, rule: Rule, cls: Any) -> Runner:
    fast = _compat.direct_call(correct(func))

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: list[Any] = []
        plain = unwrap(args, cls, found)
        named = dict(zip(kwargs, unwrap(tuple(kwargs.values()), cls, found), strict=True)) if kwargs else kwargs
        if direct(found):
            outs = fast(*plain, **named)
        else:
            outs = computed(Opened(func, args, kwargs, plain, named, found))
        if promoted_by_numbers(outs, found, (*plain, *named.values())):
            return run(in_single(args), in_single(kwargs))
        backward = in_backward()
        values = (*args, *kwargs.values())
        shared = [v for v in values if type(v) is cls]
        lists = [v for v in values if isinstance(v, (list, tuple))]  # all of one length
        grids: list[Side | None] = []
        for i in range(len(outs)):
            operands = [v[i] for v in lists if type(v[i]) is cls] + shared
            grids.append((join(operands), backward) if operands else None)
        together = _alike(grids, outs)
        if together and grids[0] is not None:
            round_all(outs, *grids[0])
        return [
            _fresh(func, rule, cls, out, grid, not together) if grid else out
            for out, grid in zip(outs, grids, strict=True)
        ]

    return run


def _decompose(func: Any, rule: Rule, cls: Any) -> Runner:
    whole = _compute(func, rule, cls)

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        out = _compat.decompose(func, args, kwargs)
        return whole(args, kwargs) if out is NotImplemented else out

    return run


def _collect(func: Any, rule: Rule, cls: Any) -> Runner:
    functional = func.namespace != "c10d"

    def own(result: Any, operand: Any) -> Any:
        if isinstance(result, (list, tuple)):
            return [own(*pair) for pair in zip(result, operand, strict=True)]
        if type(operand) is not cls:
            return result
        return cls(round_(result, operand._arithmetic, operand._gradient), operand._arithmetic, operand._gradient)

    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        found: list[Any] = []
        plain = unwrap(args, cls, found)
        named = dict(zip(kwargs, unwrap(tuple(kwargs.values()), cls, found), strict=True)) if kwargs else kwargs
        out = func(*plain, **named)
        _compat.wait_for(out)
        for place in rule.writes:
            for target in each(argument(place, args, kwargs)):
                if type(target) is cls:
                    _written(target, True)
        if functional:
            return argument(rule.writes[0], args, kwargs) if rule.writes else own(out, args[0])
        return (args[0], _compat.finished_work()) if isinstance(out, tuple) else _compat.finished_work()

    return run


def _refuse(func: Any, rule: Rule, cls: Any) -> Runner:
    def run(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        raise NotImplementedError(f"{func} {rule.reason}")

    return run
