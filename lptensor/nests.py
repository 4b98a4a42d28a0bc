"""Tensors in containers: new containers with other tensors, and the caller's own while a module runs."""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from lptensor import _compat

Cast = Callable[[Tensor], Any]


def map_nest(nest: Any, f: Cast) -> Any:
    """``nest`` with f applied to its floating-point tensors; dicts, lists, tuples and dataclasses are rebuilt."""
    if isinstance(nest, Tensor):
        return f(nest) if nest.is_floating_point() else nest
    made = remade(nest, lambda item: map_nest(item, f))
    return copy.copy(nest) if made is nest and isinstance(nest, (list, MutableMapping)) else made


def remade(nest: Any, f: Callable[[Any], Any]) -> Any:
    """A container of the same class with f applied to its items; ``nest`` itself if they stay, or it holds none."""
    if isinstance(nest, PackedSequence):
        data = f(nest.data)
        return nest if data is nest.data else nest._replace(data=data)
    if isinstance(nest, (list, tuple)):
        items = [f(item) for item in nest]
        if all(_same(new, old) for new, old in zip(items, nest, strict=True)):
            return nest
        if isinstance(nest, tuple):
            return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
        return items if type(nest) is list else _filled(copy.copy(nest), enumerate(items))
    if isinstance(nest, Mapping):
        found = {key: f(value) for key, value in nest.items()}
        if all(_same(found[key], value) for key, value in nest.items()):
            return nest
        if type(nest) is dict:
            return found
        if type(nest) is defaultdict:  # torch.compile cannot copy it
            return defaultdict(nest.default_factory, found)
        mutable = isinstance(nest, MutableMapping)
        return _filled(copy.copy(nest), found.items()) if mutable else type(nest)(found)  # type: ignore[call-arg]
    return _with_fields(nest, {name: f(value) for name, value in _slots(nest)}) if _has_fields(nest) else nest


def is_container(x: Any) -> bool:
    """Whether ``remade`` looks into it."""
    return isinstance(x, (list, tuple, Mapping)) or _has_fields(x)


def _has_fields(x: Any) -> bool:
    return not isinstance(x, (type, nn.Module, Tensor)) and is_dataclass(x)


def _with_fields(record: Any, values: dict[str, Any]) -> Any:
    """A dataclass with other values, without a run of its constructor; itself if they are the same."""
    changed = {name: value for name, value in values.items() if not _same(value, getattr(record, name))}
    if not changed:
        return record
    try:
        made = copy.copy(record)
        for name, value in changed.items():
            object.__setattr__(made, name, value)  # frozen ones too
    except (TypeError, AttributeError) as error:
        name = type(record).__name__
        raise TypeError(
            f"cannot give a {name} other tensors, for it cannot be copied ({error}); use a tuple or a dict, "
            f"or give {name} a __copy__ method"
        ) from error
    return made


def _filled(container: Any, items: Iterable[tuple[Any, Any]]) -> Any:
    for key, value in items:
        if isinstance(container, (list, Mapping)):
            container[key] = value  # type: ignore[index]
        else:
            setattr(container, key, value)
    return container


def _same(a: Any, b: Any) -> bool:
    """Whether two are one object. torch.compile cannot tell of tuples, which are then made anew."""
    return not (isinstance(a, tuple) and torch.compiler.is_compiling()) and a is b


def _writable(nest: Any) -> bool:
    return isinstance(nest, (list, MutableMapping)) or (_has_fields(nest) and not _frozen(nest))


def _frozen(record: Any) -> bool:
    frozen: bool = type(record).__dataclass_params__.frozen
    return frozen or isinstance(record, (tuple, Mapping))


def _slots(container: Any) -> list[tuple[Any, Any]]:
    if isinstance(container, list):
        return list(enumerate(container))
    if isinstance(container, Mapping):
        return list(container.items())
    return [(f.name, getattr(container, f.name)) for f in fields(container) if hasattr(container, f.name)]


class Crossing:
    """One call of a module whose tensors are recast on their way in and on their way out.

    Lists, dicts and dataclasses that are arguments stay the caller's own, for a module may write to them: while it
    runs, their tensors are replaced by recast ones, and put back at the end. What the module wrote is recast as
    outputs are; what it writes into such a tensor is copied to the caller's, but for inference mode and compiled code,
    where nothing tells of it. Everything else that holds tensors is made anew.
    """

    def __init__(self) -> None:
        # The caller's containers, with what the module found in each slot and what the caller had there; and the
        # same of what stands in tuples there. Compared by identity: torch.compile knows no id() of a tensor.
        self._own: list[tuple[Any, dict[Any, tuple[Any, Any]]]] = []
        self._inner: list[tuple[Any, Any]] = []
        self._versions: list[tuple[Tensor, Tensor, int]] = []  # tensors among both, and how often they were written to
        self._written: list[tuple[Tensor, Any]] = []  # and recast: what is an output too is the same there

    def enter(self, args: Any, kwargs: dict[str, Any], cast: Cast) -> tuple[Any, dict[str, Any]]:
        """The arguments as the module gets them; those called ``*mask`` as they are."""
        own: list[tuple[Any, dict[Any, tuple[Any, Any]]]] = []
        inner: list[tuple[Any, Any]] = []
        versions: list[tuple[Tensor, Tensor, int]] = []

        found = own, inner, versions, _once(cast)
        args = _inward(args, False, cast, *found)
        named = {k: v if k.endswith("mask") else _inward(v, False, cast, *found) for k, v in kwargs.items()}
        # Only now, when no cast can fail, are the containers touched.
        self._own, self._inner, self._versions = own, inner, versions
        for container, slots in own:
            _filled(container, [(key, new) for key, (new, old) in slots.items() if not _same(new, old)])
        return args, named

    def leave(self, output: Any, cast: Cast) -> Any:
        """The output as the caller gets it; his containers have their tensors back, and what was written."""
        for container, slots in self._own:  # first of all, for a cast may fail
            back = [(key, *slots[key], value) for key, value in _slots(container) if key in slots]
            _filled(container, [(k, old) for k, new, old, v in back if _same(v, new) and not _same(new, old)])
        for new, old, version in self._versions:
            if _compat.version(new) != version:
                old.copy_(cast(new))
        for container, slots in self._own:
            written = [(k, v) for k, v in _slots(container) if k not in slots or not _same(v, slots[k][1])]
            recast = [(key, value, self._outward(value, cast, True)) for key, value in written]
            _filled(container, [(key, new) for key, value, new in recast if not _same(new, value)])
        return self._outward(output, cast, False)

    def _outward(self, x: Any, cast: Cast, held: bool) -> Any:
        if _writable(x) and any(x is container for container, _ in self._own):
            return x
        if held:
            for new, old in self._inner:
                if _same(x, new) or _same(x, old):
                    return old
        if isinstance(x, Tensor):
            for written, new in self._written:
                if x is written:
                    return new
            new = cast(x) if x.is_floating_point() else x
            if held:
                self._written.append((x, new))
            return new
        return remade(x, lambda item: self._outward(item, cast, held))


def _once(cast: Cast) -> Cast:
    """The cast, which makes one tensor of one: attention is torch's self-attention where ``query is key``.

    For arguments alone: what a container of the caller holds comes back to it as what it was, and they do not.
    """
    made: list[tuple[Tensor, Any]] = []

    def once(x: Tensor) -> Any:
        for old, new in made:
            if old is x:
                return new
        made.append((x, cast(x)))
        return made[-1][1]

    return once


# No closure: one that calls itself would keep the tensors, and their graph, until Python looks for cycles.
def _inward(x: Any, held: bool, cast: Cast, own: Any, inner: Any, versions: Any, once: Cast) -> Any:
    if isinstance(x, Tensor):
        new = (cast if held else once)(x) if x.is_floating_point() else x
    elif _writable(x):
        if not any(x is container for container, _ in own):
            slots: dict[Any, tuple[Any, Any]] = {}
            own.append((x, slots))
            for key, value in _slots(x):
                slots[key] = _inward(value, True, cast, own, inner, versions, once), value
        return x
    else:
        new = remade(x, lambda item: _inward(item, held, cast, own, inner, versions, once))
    if held and not _same(new, x):
        inner.append((new, x))
        if isinstance(x, Tensor) and not torch.compiler.is_compiling() and not new.is_inference():
            versions.append((new, x, _compat.version(new)))
    return new


def begin_crossing(module: nn.Module, back: Cast) -> Crossing:
    """A crossing that ``end_crossing`` finds again when this call of the module ends.

    Those that a ``KeyboardInterrupt`` has left open end now: ``back`` casts what they have let in.
    """
    crossing, calls = Crossing(), getattr(module, _open_calls(), None)
    if calls and not torch.compiler.is_compiling():
        for _ in range(len(calls) + 1 - _compat.calls_of(module)):
            calls.pop().leave(None, back)
    if calls is None:  # Dynamo of PyTorch 2.11 follows no __dict__.setdefault()
        setattr(module, _open_calls(), calls := [])
    calls.append(crossing)
    return crossing


def end_crossing(module: nn.Module) -> Crossing:
    """The crossing of the call that ends; an empty one if it was not begun, as where another hook raised first."""
    calls = getattr(module, _open_calls(), None)
    if not calls:
        return Crossing()
    crossing: Crossing = calls.pop()
    if not calls:
        delattr(module, _open_calls())
    return crossing


def _open_calls() -> str:
    """Where a running module keeps its crossings: each thread has its own, and calls may nest."""
    return f"_lptensor_crossings_{0 if torch.compiler.is_compiling() else threading.get_ident()}"
