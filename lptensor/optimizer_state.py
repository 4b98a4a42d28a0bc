"""The formats of an optimizer's state: those of its parameters, or formats of its own."""

from __future__ import annotations

import warnings
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lptensor.arithmetic import Arithmetic, as_arithmetic
from lptensor.base import ScalarFormat
from lptensor.distributed import refuse_sharded
from lptensor.formats import Format
from lptensor.nests import map_nest
from lptensor.ops import round_fresh
from lptensor.rounding import Rounding
from lptensor.tensor import LPTensor, check_carrier, enter

_ADAM = ("exp_avg", "exp_avg_sq", "step")
# What they may keep of a parameter, under whatever options, by their classes; others show it at their first step.
_KEPT: dict[str, tuple[str, ...]] = {
    "ASGD": ("ax", "eta", "mu", "step"),
    "Adadelta": ("acc_delta", "square_avg", "step"),
    "Adafactor": ("col_var", "row_var", "step", "variance"),
    "Adagrad": ("step", "sum"),
    "Adam": (*_ADAM, "max_exp_avg_sq"),
    "AdamW": (*_ADAM, "max_exp_avg_sq"),
    "Adamax": ("exp_avg", "exp_inf", "step"),
    "Madam": ("largest", "square_avg", "step"),
    "Muon": ("momentum_buffer",),
    "NAdam": (*_ADAM, "mu_product"),
    "RAdam": _ADAM,
    "RMSprop": ("grad_avg", "momentum_buffer", "square_avg", "step"),
    "Rprop": ("prev", "step", "step_size"),
    "SGD": ("momentum_buffer",),
    "SparseAdam": _ADAM,
}


# What optimizers count, schedule and bound with, in tensors of no dimension, as all state of a scalar parameter is.
BOOKKEEPING = frozenset({"step", "eta", "mu", "mu_product", "largest"})
_MOMENTS = frozenset(key for keys in _KEPT.values() for key in keys) - BOOKKEEPING


def known_keys(optimizer: Optimizer) -> set[str]:
    """What ``optimizer`` keeps of a parameter, or may keep; nothing for one from elsewhere that took no step."""
    known = {key for entries in optimizer.state.values() for key in entries}
    if _torchs(optimizer):
        known.update(_KEPT.get(type(optimizer).__name__, ()))
    return known


def fit(optimizer: Optimizer, spec: Format | Arithmetic | None | Mapping[str, Format | Arithmetic | None]) -> None:
    """Give the state of ``optimizer``, present and future, formats of its own, by key or one for all."""
    if isinstance(spec, Mapping) and not spec:
        raise ValueError("rules name no state to convert, got {}; say a format, or rules such as {'exp_avg_sq': BF16}")
    rows = spec.items() if isinstance(spec, Mapping) else [("*", spec)]
    rules = []
    for pattern, value in rows:
        if not isinstance(pattern, str):
            raise TypeError(f"a key of an optimizer's state is a string such as 'exp_avg_sq', got {pattern!r}")
        arithmetic = None if value is None else as_arithmetic(value)
        if arithmetic is not None:
            check_carrier(arithmetic)
        rules.append((pattern, arithmetic))
    optimizer = _bare(optimizer)
    refuse_sharded((p for group in optimizer.param_groups for p in group["params"]), "convert(optimizer)")
    known = known_keys(optimizer)
    for pattern, _ in rules:
        if known and not any(fnmatchcase(key, pattern) for key in known):
            raise ValueError(
                f"{pattern!r} matches nothing in the state of {type(optimizer).__name__}, which is {sorted(known)}"
            )
    _install(optimizer, Own(tuple(rules)))


def mark(parameters: Iterable[Tensor]) -> None:
    """Note that parameters have been converted: the state that optimizers keep for them follows at their next step."""
    global _conversions
    _conversions += 1
    for p in parameters:
        p._converted_at = _conversions  # type: ignore[attr-defined]


def conversions() -> int:
    """How often parameters have been converted: what was found of them holds while this stays the same."""
    return _conversions


def follow(optimizer: Optimizer, parameters: Iterable[Tensor]) -> None:
    """Let the state that an optimizer of torch's has follow parameters whose arithmetic is another in its steps."""
    state = vars(optimizer).get("state")
    if _seen(optimizer) is None and _torchs(optimizer) and not isinstance(getattr(state, "default_factory", None), Own):
        _see(optimizer, _Seen(0, state, None))  # as if it had stepped before all conversions
    mark(parameters)


def _torchs(optimizer: Optimizer) -> bool:
    return type(optimizer).__module__.startswith(("torch.optim", "lptensor"))


@dataclass(frozen=True)
class Own:
    """Formats of state by patterns of its keys: the first that matches counts. Makes the entries of a parameter."""

    rules: tuple[tuple[str, Arithmetic | None], ...]

    def __call__(self) -> Entries:
        return Entries(self)

    def cast(self, key: str, value: Any) -> Any:
        for pattern, arithmetic in self.rules:
            if fnmatchcase(key, pattern):
                return _cast(value, arithmetic, scalars=key in _MOMENTS or key == pattern and key not in BOOKKEEPING)
        return value


class Entries(dict[str, Any]):
    """What an optimizer keeps for a parameter; what is put in takes the format of its key.

    A copy or a pickle of it is plain: it belongs to its optimizer.
    """

    def __init__(self, own: Own) -> None:
        super().__init__()
        self._own = own

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, self._own.cast(key, value))

    def setdefault(self, key: str, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *given: Any, **named: Any) -> None:
        for key, value in dict(*given, **named).items():
            self[key] = value

    def __reduce_ex__(self, protocol: Any) -> Any:
        return OrderedDict, (), None, None, iter(self.items())


def _install(optimizer: Optimizer, own: Own) -> None:
    state: defaultdict[Any, Any] = defaultdict(own)
    for p, entries in optimizer.state.items():
        held = state[p] = entries if isinstance(entries, Entries) else Entries(own)
        held._own = own
        held.update(entries)
    optimizer.state = state
    _see(optimizer, _Seen(_conversions, state, own))
    _unwarned.add(optimizer)


def _bare(optimizer: Optimizer) -> Optimizer:
    """The optimizer that holds the state: a wrapper hands on that of another."""
    while "state" not in vars(optimizer) and isinstance(getattr(optimizer, "optim", None), Optimizer):
        optimizer = optimizer.optim  # type: ignore[attr-defined]
    return optimizer


def _cast(value: Any, arithmetic: Arithmetic | None, recast: bool = True, scalars: bool = False) -> Any:
    """State in an arithmetic, None for plain fp32. What is no tensor stays as it is.

    Without ``recast``, what is low precision already stays so too; without ``scalars`` what has no dimension, as
    counters have none.
    """

    def cast(x: Tensor) -> Tensor:
        if not (x.dim() or scalars) or x.layout is not torch.strided or not x.is_floating_point():
            return x
        if arithmetic is None:
            return x.dequantize() if isinstance(x, LPTensor) else x
        if not isinstance(x, LPTensor):
            return enter(x, arithmetic)
        return enter(x._inner, arithmetic, x._gradient) if recast and x._arithmetic != arithmetic else x

    with torch.no_grad():
        return map_nest(value, cast)


# -- before every step -----------------------------------------------------------------------------------


@dataclass
class _Seen:
    """An optimizer as its last step found it; in a copy or a pickle of the optimizer it is None."""

    conversions: int
    state: Any  # load_state_dict() puts another in its place
    own: Own | None
    size: int = 0  # parameters that had some

    def __reduce__(self) -> Any:
        return type(None), ()


_conversions = 0
# An attribute of an optimizer, for the state has parameters for keys, and these may hold the optimizer: in a table of
# ours, weak or not, it would stay for good.
_SEEN = "_lptensor_seen"
_unwarned: WeakSet[Optimizer] = WeakSet()  # those that have been given formats and took no step since


def _seen(optimizer: Optimizer) -> _Seen | None:
    seen: _Seen | None = vars(optimizer).get(_SEEN)
    return seen


def _see(optimizer: Optimizer, seen: _Seen) -> None:
    vars(optimizer)[_SEEN] = seen


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    if torch.compiler.is_dynamo_compiling():  # a graph steps with the state that convert() or a step outside has made
        return
    for group in optimizer.param_groups:
        for p in group["params"]:
            fit_gradient(p)
    state = vars(optimizer).get("state")
    seen = _seen(optimizer)
    if state is None:
        return
    if seen is not None and seen.state is state and seen.conversions == _conversions:
        if seen.size != len(state):  # a step that raised has made some
            seen.size = len(state)
            _fit_new(optimizer, seen)
        if optimizer in _unwarned:
            _unwarned.discard(optimizer)
            _warn_of_no_eps(optimizer, seen.own)
        return
    own = seen.own if seen is not None else getattr(state, "default_factory", None)
    if isinstance(own, Own):  # the state was loaded, or the optimizer copied
        _install(optimizer, own)
    else:
        _follow(optimizer, seen, state)
        _see(optimizer, _Seen(_conversions, state, None))
    _unwarned.discard(optimizer)
    _warn_of_no_eps(optimizer, own if isinstance(own, Own) else None)


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    if torch.compiler.is_dynamo_compiling():
        return
    seen, state = _seen(optimizer), vars(optimizer).get("state")
    if seen is not None and state is not None and seen.state is state and seen.size != len(state):
        seen.size = len(state)
        _fit_new(optimizer, seen)


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


def fit_gradient(p: Tensor) -> None:
    """Round the gradient of an LPTensor if it is plain: one assigned by hand, or zeros that torch makes by itself.

    Else what an optimizer copies of it, a momentum, would be plain as well.
    """
    if type(p) is LPTensor:
        grad = p.grad
        if type(grad) is Tensor and grad.layout is torch.strided and not grad.requires_grad:
            p.grad = enter(grad, p._arithmetic, True)


def _follow(optimizer: Optimizer, seen: _Seen | None, state: Any) -> None:
    """Give state the form of its parameter, where that was converted or the state loaded since the last step.

    What an optimizer from elsewhere has made before its first step may be meant as it is: it is only pointed out.
    """
    loaded = seen is not None and seen.state is not state
    foreign = seen is None and not _torchs(optimizer)
    for p, entries in state.items():
        converted = seen is not None and getattr(p, "_converted_at", 0) > seen.conversions
        if not isinstance(p, Tensor) or not isinstance(entries, dict) or not (seen is None or loaded or converted):
            continue  # what is kept for no parameter, or in a form of its own, is its optimizer's affair
        arithmetic = p._arithmetic if isinstance(p, LPTensor) else None
        scalar = not p.dim()
        fitting = {
            key: _cast(value, arithmetic, converted, scalar and key not in BOOKKEEPING)
            for key, value in entries.items()
        }
        if not foreign:
            entries.update(fitting)
        elif any(fitting[key] is not entries[key] for key in entries if isinstance(entries[key], Tensor)):
            warnings.warn(
                f"{type(optimizer).__name__} begins with state that is not in the format of its parameters; say "
                "lptensor.convert(optimizer, format) to convert it, or lptensor.convert(optimizer, None) to keep "
                "it in fp32",
                RuntimeWarning,
                stacklevel=5,
            )
            return


def _fit_new(optimizer: Optimizer, seen: _Seen) -> None:
    """Give state that was made as a copy of a gradient the form of its parameter.

    Plain parameters may have gradients that are LPTensors, and those of low ones have no format where a
    loss scale was divided out of them.
    """
    if seen.own is not None or not type(optimizer).__module__.startswith("torch.optim"):
        return
    for p, entries in seen.state.items():
        low = isinstance(p, LPTensor)
        for key, value in entries.items():
            if isinstance(value, LPTensor) and value.shape == p.shape:
                if not low or _forward(value) is None is not _forward(p) or _of_gradient(value, p):
                    entries[key] = _cast(value, p._arithmetic if low else None, scalars=True)


def _of_gradient(value: LPTensor, p: Tensor) -> bool:
    """Whether state is in the arithmetic of a gradient that came in another than its parameter's."""
    return isinstance(p.grad, LPTensor) and value._arithmetic == p.grad._arithmetic != p._arithmetic  # type: ignore[attr-defined]


# Where optimizers keep squares of gradients whose root they divide by: a key, and a pattern for all such. Adamax
# keeps absolute values, to which it adds eps in the format of the gradient: no format of the state helps there.
_SQUARES = {
    "Adam": ("exp_avg_sq", "*exp_avg_sq"),
    "NAdam": ("exp_avg_sq", "exp_avg_sq"),
    "RAdam": ("exp_avg_sq", "exp_avg_sq"),
    "Adamax": ("exp_inf", ""),
    "RMSprop": ("square_avg", "square_avg"),
    "Adadelta": ("square_avg", "square_avg"),
    "Adagrad": ("sum", "sum"),
    "Adafactor": ("row_var", "*var*"),
}


def _warn_of_no_eps(optimizer: Optimizer, own: Own | None) -> None:
    """Say before it happens that a step will divide by zero, as eps is none in the format of the state."""
    named = [_SQUARES[kind.__name__] for kind in type(optimizer).__mro__ if kind.__name__ in _SQUARES]
    for group in optimizer.param_groups:
        eps = _eps(group)
        for p in group["params"] if eps and named and not group.get("fused") else ():
            key, pattern = named[0]
            format = _format_of(optimizer, own, key, p) if pattern else _forward(p.grad)
            divisor = torch.tensor([eps], dtype=torch.float32, device="cpu")
            if format is None or round_fresh(divisor, format, Rounding()).item():
                continue
            ways = [f"lptensor.convert(optimizer, {{{pattern!r}: FP32}})"] if pattern else []
            if isinstance(format, ScalarFormat):  # its reciprocal is to be no overflow either
                ways.append(f"an eps of at least {max(format.grid.smallest, 2 / format.max):g}")
            warnings.warn(
                f"{type(optimizer).__name__} divides by the root of its state {key!r}, which eps={eps:g} keeps from "
                f"zero; but that is 0 itself in {format!r}, the format of the state for a parameter of shape "
                f"{tuple(p.shape)}: where squares of gradients underflow, the step divides by zero. "
                f"The way out: {', or '.join(ways) or 'a wider format'}",
                RuntimeWarning,
                stacklevel=5,
            )
            return


def _format_of(optimizer: Optimizer, own: Own | None, key: str, p: Tensor) -> Any:
    """The format in which the state of a parameter is, or will be made; None for fp32."""
    held = optimizer.state[p][key] if p in optimizer.state and key in optimizer.state[p] else p.detach()
    return _forward(own.cast(key, held) if own else held)


def _forward(x: Any) -> Any:
    return x._arithmetic.forward if isinstance(x, LPTensor) else None


def _eps(group: dict[str, Any]) -> float:
    eps = group.get("eps", 0.0)
    if isinstance(eps, (tuple, list)):  # Adafactor's: the least root, by default that of the dtype
        return float(eps[0] or torch.finfo(torch.float32).eps) ** 2
    return float(eps)
