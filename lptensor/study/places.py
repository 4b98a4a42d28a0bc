"""Says of a rounding what role its tensor plays, and which module or parameter it belongs to."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lptensor import _compat, direction, observe
from lptensor.base import check_dense, check_tensor
from lptensor.path_rules import plain_path
from lptensor.tensor import LPTensor

ROLES = ("weight", "accumulator", "activation", "gradient", "state", "update")


def check_roles(roles: str | Iterable[str], known: Sequence[str] = ROLES) -> tuple[str, ...]:
    """The roles of an argument, which may name a single one."""
    given = (roles,) if isinstance(roles, str) else tuple(roles) if isinstance(roles, Iterable) else ()
    if not given or not set(given) <= set(known):
        raise ValueError(f"roles are among {', '.join(known)}, got {roles!r}")
    return given


_MOST_MARKS = 2**17  # of them the older half is forgotten
_PARAMETRIZATION = re.compile(r"(?:.*\.)?parametrizations\.[^.]+")  # a module below makes a weight of its original
_FEW = 1000  # copies of which it does not matter whether they live


def innermost(optimizer: Optimizer | None) -> Optimizer | None:
    """The optimizer that does the step, inside those that wrap it.

    >>> from lptensor import OptimLP
    >>> sgd = torch.optim.SGD([torch.ones(1)], lr=1.0)
    >>> innermost(OptimLP(sgd)) is sgd
    True
    """
    while isinstance(inner := getattr(optimizer, "optim", None), Optimizer):
        optimizer = inner
    return optimizer


def named_modules(model: nn.Module, remove_duplicate: bool = True) -> list[tuple[str, nn.Module]]:
    """The modules of a model with their paths, those that ``torch.compile`` wraps under their own.

    >>> [path for path, _ in named_modules(torch.compile(nn.Sequential(nn.ReLU()), backend="eager"))]
    ['', '', '0']
    """
    found = model.named_modules(remove_duplicate=remove_duplicate)
    return [(plain_path(path), module) for path, module in found]


def named_parameters(model: nn.Module, remove_duplicate: bool = True) -> list[tuple[str, nn.Parameter]]:
    """The same of parameters."""
    found = model.named_parameters(remove_duplicate=remove_duplicate)
    return [(plain_path(path), parameter) for path, parameter in found]


def check_followed(model: nn.Module) -> None:
    """Refuse a model with parts that take no hooks, or that have no values to look at.

    Raises:
        TypeError: a ScriptModule in it.
        ValueError: a lazy parameter in it.
    """
    for path, module in named_modules(model):
        if isinstance(module, torch.jit.ScriptModule):
            which = repr(path) if path else "the model"
            raise TypeError(f"{which} is a ScriptModule, which takes no hooks; take what it was made of")
    for path, parameter in named_parameters(model):
        if is_lazy(parameter):
            raise ValueError(f"{path!r} is lazy and has no values yet; call the model on a batch first")


def values_of(x: Tensor) -> Tensor:
    """The plain tensor whose memory an LPTensor, or a plain tensor, has.

    Raises:
        TypeError: no tensor.
    """
    check_tensor(x)
    return x._inner if isinstance(x, LPTensor) else x.detach()


def numbers_of(x: Tensor) -> Tensor:
    """The same of a dense tensor of real numbers, which a study reads one by one.

    Raises:
        TypeError: no tensor, or one that is complex, sparse or without memory.
    """
    plain = values_of(x)
    if plain.is_complex():
        raise TypeError(f"expected real numbers, got {plain.dtype}; take .real and .imag, one at a time")
    check_dense(plain, "a study reads")
    if plain.is_meta:
        raise TypeError("expected a tensor with values, got one on the meta device, which has none; make it on the CPU")
    return plain


def tensors_of(nest: Any) -> list[Tensor]:
    """The tensors in what a module returned: one, or any nest of tuples, lists and dicts.

    >>> [x.item() for x in tensors_of({"a": torch.tensor(1), "b": (torch.tensor(2), None)})]
    [1, 2]
    """
    return [part for part in _compat.leaves(nest, Tensor) if isinstance(part, Tensor)]


class Places:
    """Follows a model and its optimizer: which module runs, forward or backward, and whose memory is whose.

    Roles are "weight" (a parameter), "accumulator" (what OptimLP keeps of it), "activation", "gradient",
    "state" (of the optimizer), and "update" (what else an optimizer's step computes). Paths are those of
    ``named_modules()`` and ``named_parameters()``, of a compiled model as before it was compiled; "" is the
    model itself, or outside of it.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer | None) -> None:
        check_followed(model)
        self.model, self.optimizer = model, optimizer
        self._parameters = named_parameters(model)
        self.names = {id(p): name for name, p in self._parameters}
        self.accumulates = getattr(optimizer, "acc_quant", None) is not None
        self._stack: list[str] = []
        self._starts: list[int] = []  # numbers of autograd nodes, ascending: from here on ...
        self._paths: list[str] = []  # ... nodes belong to this module
        self._memory: dict[int, tuple[str, str]] = {}
        self._copies: dict[int, tuple[tuple[str, str], Any]] = {}  # what stands for that, and its storage
        self._most_copies = _FEW
        self._open = ExitStack()
        self._complete = False

    def __enter__(self) -> Places:
        eagerly: Any = torch.compiler.disable  # a compiled model breaks its graph at hooks
        begin, leave = eagerly(self._enter), eagerly(self._leave)
        with ExitStack() as stack:
            for path, module in named_modules(self.model):
                enter = partial(begin, path)
                stack.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                stack.callback(module.register_forward_hook(leave, always_call=True).remove)
            if self.optimizer is not None:
                stack.callback(self.optimizer.register_step_pre_hook(lambda *_: self.look()).remove)
                stack.callback(self.optimizer.register_step_post_hook(lambda *_: self._remember()).remove)
            stack.enter_context(observe.following(self))
            self.look()
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._open.close()  # and lets go of them: the model would else stay until Python looks for cycles
        self._stack.clear()
        self._copies.clear()

    def look(self) -> None:
        """Learn anew which parameters there are, and where they and the states lie in memory."""
        self._parameters = named_parameters(self.model)
        self._remember()

    def _remember(self) -> None:
        state = getattr(self.optimizer, "state", {})
        self._memory = {
            values_of(value).data_ptr(): ("state", self.names.get(id(p), ""))
            for p, entries in state.items()
            for value in entries.values()
            if isinstance(value, Tensor) and value.dim() and value.layout is torch.strided
        }
        self._complete = bool(state)
        for name, p in self._parameters:
            if p.layout is torch.strided:  # a sparse one has no memory of its own, and is not rounded
                self._memory[values_of(p).data_ptr()] = "weight", name

    def of(self, before: Tensor, after: Tensor) -> tuple[str, str]:
        """Role and path of the rounding that just took place."""
        told = observe.said()
        operand = told is not None and told[0] == "operand"
        if told is not None and not operand:
            return told[0], self.names.get(id(told[1]), "")
        known = self._known(after.data_ptr()) or self._known(before.data_ptr())
        if known is None and told is not None and told[1] is not None:
            factor = values_of(_compat.innermost(told[1]))
            known = self._known(factor.data_ptr()) or self._known(factor.untyped_storage().data_ptr())
        if known is not None and not self.accumulates:
            return known
        task = _compat.graph_task()
        stepping = direction.in_step(task) and not self._stack
        if known is None and stepping and not self._complete:  # the first step makes the states
            self.look()
            self._complete = False
            known = self._known(after.data_ptr())
        if known is not None:
            return ("accumulator", known[1]) if stepping and known[0] == "weight" and self.accumulates else known
        if stepping:
            return "update", ""
        if task != -1 and not torch.is_grad_enabled():
            return "activation" if operand else "gradient", self._behind(_compat.running_node())
        path = self._stack[-1] if self._stack else ""
        made = _PARAMETRIZATION.match(path)
        if made is None:
            return "activation", path
        original = f"{made[0]}.original"
        return "weight", original if original in self.names.values() else made[0]  # which may be made of several

    def copied(self, x: Tensor, copy: Tensor) -> None:
        """A copy of a weight, or of a state, is one as long as its memory lives."""
        known = self._known(x.data_ptr())
        if known is None:
            return
        self._copies[copy.data_ptr()] = known, _compat.weak_storage(copy)
        if len(self._copies) > self._most_copies:
            self._copies = {at: entry for at, entry in self._copies.items() if not entry[1].expired()}
            self._most_copies = 2 * len(self._copies) + _FEW

    def _known(self, address: int) -> tuple[str, str] | None:
        """Whose memory it is that begins there."""
        known, (copy, storage) = self._memory.get(address), self._copies.get(address, (None, None))
        return known or (None if storage is None or storage.expired() else copy)

    def _behind(self, node: int) -> str:
        """The module whose forward pass made an autograd node."""
        at = bisect_right(self._starts, node) - 1
        return self._paths[at] if at >= 0 else ""

    def _mark(self, path: str) -> None:
        """From the next autograd node on, nodes belong to this module."""
        start = _compat.next_node()
        if self._starts and self._starts[-1] >= start:
            self._paths[-1] = path
            return
        self._starts.append(start)
        self._paths.append(path)
        if len(self._starts) > _MOST_MARKS:
            del self._starts[: _MOST_MARKS // 2], self._paths[: _MOST_MARKS // 2]

    def _enter(self, path: str, *_: Any) -> None:
        self._stack.append(path)
        self._mark(path)

    def _leave(self, *_: Any) -> None:
        if self._stack:  # a module that raised before its hooks ran has left nothing
            self._stack.pop()
        self._mark(self._stack[-1] if self._stack else "")
