"""A layer of a plain model whose products round their operands or add up in an accumulator: plain in, plain out."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.nests import Crossing
from lptensor.tensor import is_low

_BEFORE = "_lptensor_before"  # where a running layer keeps its calls, the inner one last


WAY_OUT = (
    "give its Arithmetic the operands and the accumulator: lptensor.convert(model, Arithmetic(format, operands=..., "
    "accumulator=...)), or leave the layer plain: lptensor.convert(model, {path: None, ...})"
)


class _Call(NamedTuple):
    """What a running call has changed of its layer."""

    thread: int
    changed: list[tuple[nn.Module, str, Any]]  # parts, not their dicts: a copy of the layer copies them too
    crossing: Crossing


_turn = threading.Condition()  # what is done to the calls of a layer


def _take_turn(module: nn.Module, call: _Call) -> None:
    """Begin a call when no other thread runs the layer: it would see, and take away, what this one changes on it."""
    with _turn:
        while not _undo_broken_off(module, 1):
            _turn.wait(0.1)  # again and again: a call that is broken off tells nobody
        module.__dict__.setdefault(_BEFORE, []).append(call)


@dataclass(frozen=True)
class LayerProducts:
    """Hooks that let a layer compute with LPTensors of an arithmetic without formats of its own.

    Parameters stay what they are: while the layer runs, its attributes show LPTensors made of them,
    whose gradients go back to the parameters as plain tensors.
    """

    arithmetic: Arithmetic

    def attach(self, module: nn.Module) -> None:
        _compat.set_hooks(module, _compat.PRODUCTS, self.begin, self.end, always=True)
        self.stay_innermost(module)

    @staticmethod
    def stay_innermost(module: nn.Module) -> None:
        """Run within a boundary that was attached since: it hands in what is plain, and takes what is plain again."""
        _compat.run_innermost(module, _compat.PRODUCTS)

    @staticmethod
    def attached(module: nn.Module) -> bool:
        """Whether a module has such hooks."""
        return _compat.has_hooks(module, _compat.PRODUCTS)

    @staticmethod
    def detach(module: nn.Module) -> None:
        with _turn:
            _undo_broken_off(module)
        _compat.drop_hooks(module, _compat.PRODUCTS)

    @_compat.between_graphs
    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        compiling = torch.compiler.is_dynamo_compiling()  # then nothing changes but in the traced code's own view
        call = _Call(0 if compiling else threading.get_ident(), [], Crossing())
        # Before anything changes: what comes next may raise, and end() undoes what was done by then.
        if compiling:
            module.__dict__.setdefault(_BEFORE, []).append(call)
        else:
            _take_turn(module, call)
        changed, crossing = call.changed, call.crossing
        args, named = crossing.enter(args, kwargs, self._enter)
        for part in module.modules():
            own = {
                **_compat.parameters(part),
                **{k: v for k, v in vars(part).items() if type(v) is Tensor and v.requires_grad},
            }
            for name, value in own.items():
                if value is not None and not holds_integers(value):
                    changed.append((part, name, part.__dict__.get(name)))
                    part.__dict__[name] = self._enter(value)
            if isinstance(part, nn.RNNBase):  # takes up what it shows by itself, and would keep these copies
                changed.append((part, _compat.FLAT_WEIGHTS, part.__dict__[_compat.FLAT_WEIGHTS]))
        return args, named

    @_compat.between_graphs
    def end(self, module: nn.Module, args: Any, output: Any) -> Any:
        compiling = torch.compiler.is_dynamo_compiling()
        calls: list[_Call] = module.__dict__.get(_BEFORE, [])
        if compiling:
            return _undo(module, calls).leave(output, _leave) if calls else None
        if not calls or calls[-1].thread != threading.get_ident():
            return None  # another hook raised before begin()
        with _turn:
            crossing = _undo(module, calls)
            _turn.notify_all()
        return crossing.leave(output, _leave)

    def _enter(self, x: Tensor) -> Tensor:
        check_plain(x)
        lp: Tensor = x.to_lp(self.arithmetic)  # type: ignore[attr-defined]
        return lp


def _leave(x: Tensor) -> Tensor:
    return x.dequantize() if is_low(x) else x


def _undo(module: nn.Module, calls: list[_Call]) -> Crossing:
    """Take back what the innermost call of a module has changed, but for its arguments."""
    for part, name, value in reversed(calls[-1].changed):
        if value is None:
            part.__dict__.pop(name, None)
        else:
            part.__dict__[name] = value
    call = calls.pop()  # only now, as Ctrl-C may come before, and the next call then begins with this
    if not calls:
        del module.__dict__[_BEFORE]
    return call.crossing


def _undo_broken_off(module: nn.Module, beginning: int = 0) -> bool:
    """Do what ``end`` would have done after calls that a ``KeyboardInterrupt``, or the like, has ended.

    Returns:
        Whether no other thread runs the layer.
    """
    calls: list[_Call] = module.__dict__.get(_BEFORE, [])
    while calls and calls[-1].thread:
        thread = calls[-1].thread
        mine = thread == threading.get_ident()
        if len(calls) <= _compat.calls_of(module, thread) - beginning * mine:
            return mine
        _undo(module, calls).leave(None, _leave)
    return True


def holds_integers(x: Tensor) -> bool:
    """Whether a parameter does, with which a layer computes as with those of buffers."""
    return not (x.dtype.is_floating_point or x.dtype.is_complex)


def check_plain(x: Tensor) -> None:
    """Refuse what is not a plain fp32 tensor."""
    if is_low(x):
        raise TypeError(f"lower(operands=, accumulator=) is for plain models, got an LPTensor; {WAY_OUT}")
    if x.dtype is not torch.float32:
        raise TypeError(f"lower(operands=, accumulator=) is for fp32 models, got {x.dtype}; convert it with .float()")
