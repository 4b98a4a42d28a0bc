"""Any torch optimizer, with gradients, weights, accumulators and momenta in low precision."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lptensor import ops
from lptensor.arithmetic import Arithmetic
from lptensor.observe import saying
from lptensor.quantizer import Quant, Step, as_step
from lptensor.tensor import LPTensor, enter

# What torch's optimizers count and schedule with; a scalar parameter's state would else look like a momentum.
_BOOKKEEPING = {"step", "eta", "mu", "mu_product"}
_KEY = "weight_accumulator"  # of an accumulator in state_dict()["state"][parameter]


def _of_the_wrapped(name: str) -> Any:
    """An attribute that is the wrapped optimizer's."""
    return property(lambda self: getattr(self.optim, name), lambda self, value: setattr(self.optim, name, value))


class _Held(NamedTuple):
    """What OptimLP keeps of a parameter between two steps."""

    accumulator: Tensor
    weight: Tensor | None  # as the last step left it; None if a state_dict brought the accumulator


class OptimLP(Optimizer):
    """``optim`` with its step in low precision; itself a torch optimizer, so schedulers take it.

    One step is QPyTorch's: gradients become ``grad_quant(grad * grad_scaling)``; the weights give way
    to their accumulators; ``optim`` steps; accumulators are rounded; weights become the rounded
    accumulators; momenta are rounded, ready for the next step. Nothing is rounded at construction.
    A parameter without a gradient is left alone. Without ``acc_quant`` the weight is its own accumulator.

    An accumulator starts as its weight. It follows a weight that something else changed
    (``load_state_dict``, a clamp, a pruning mask) between steps, where it changed. A closure, which
    LBFGS calls many times in a step, always sees rounded weights, and its gradients are rounded
    after each call. Sparse gradients are rounded once coalesced. LPTensor parameters compute the
    step in the accumulator's format (fp32, if it is a function), and their weights stay on their own.

    Args:
        optim: any torch optimizer. It goes on holding parameters, groups and momenta.
        weight_quant, grad_quant, acc_quant: a format, rounded to stochastically, or a function from
            a tensor to one of the same shape; None rounds nothing.
        momentum_quant: the same for every floating-point state of a parameter's shape, or a dict
            ``{state key: format or function}``. Narrow exponents take the squares of Adam and its
            kin to zero, and the step to infinity: give these keys a wide format, or leave them out.
        grad_scaling: multiplies the gradients before they are rounded. It is never undone.

    Raises:
        TypeError: no optimizer, a quantizer that is neither format nor function, parameters that a
            format cannot round (it takes float32 and float64).
        ValueError: grad_scaling not positive, a momentum key that the optimizer does not have.

    >>> from lptensor import BF16, E4M3
    >>> w = torch.nn.Parameter(torch.ones(2))
    >>> optim = OptimLP(torch.optim.SGD([w], lr=0.125), weight_quant=E4M3, acc_quant=BF16)
    >>> w.sum().backward(); optim.step(); w.tolist()
    [0.875, 0.875]
    """

    def __init__(
        self,
        optim: Optimizer,
        weight_quant: Quant | None = None,
        grad_quant: Quant | None = None,
        momentum_quant: Quant | Mapping[str, Quant | None] | None = None,
        acc_quant: Quant | None = None,
        grad_scaling: float = 1.0,
    ) -> None:
        if not isinstance(optim, Optimizer) or isinstance(optim, OptimLP):
            raise TypeError(f"OptimLP wraps a torch.optim.Optimizer that is no OptimLP yet, got {optim!r}")
        if isinstance(grad_scaling, bool) or not isinstance(grad_scaling, int | float):
            raise TypeError(f"grad_scaling must be a number, got {grad_scaling!r}")
        if not 0 < grad_scaling < math.inf:
            raise ValueError(f"grad_scaling must be positive and finite, got {grad_scaling}")
        single = None if isinstance(momentum_quant, Mapping) else momentum_quant
        by_key = momentum_quant if isinstance(momentum_quant, Mapping) else {}
        self.optim = optim
        self.grad_scaling = float(grad_scaling)
        self.weight_quant = as_step("weight_quant", weight_quant)
        self.grad_quant = as_step("grad_quant", grad_quant)
        self.acc_quant = as_step("acc_quant", acc_quant)
        self.momentum_quant = as_step("momentum_quant", single)
        self.momentum_by_key = {key: as_step(f"momentum_quant[{key!r}]", quant) for key, quant in by_key.items()}
        self._held: dict[Tensor, _Held] = {}
        self._own: dict[Tensor, Arithmetic] = {}  # of LPTensors that a step has given their accumulator's
        # Not Optimizer.__init__, which would make groups and states of its own; this only adds what hooks need.
        self.__setstate__({})
        self._check(optim.param_groups)

    param_groups: Any = _of_the_wrapped("param_groups")
    state: Any = _of_the_wrapped("state")
    defaults: Any = _of_the_wrapped("defaults")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the wrapped optimizer's step returns, the closure's loss if there is one.

        If it raises, accumulators and their weights are those from before.
        """
        if closure is None:
            self._round_gradients()
        weights = self._load_accumulators()
        try:
            loss = self.optim.step(None if closure is None else self._at_rounded_weights(closure, weights))
            self._round_weights(weights)
        except BaseException:
            for p, weight in weights.items():
                self._store(p, weight)
            raise
        self._round_momenta()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As the wrapped optimizer's."""
        self.optim.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As the wrapped optimizer's; the new parameters' accumulators start at the next step."""
        self.optim.add_param_group(param_group)
        try:
            self._check(self.param_groups[-1:])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def state_dict(self) -> dict[str, Any]:
        """The wrapped optimizer's, with each parameter's "weight_accumulator" among its state."""
        for pre_hook in self._optimizer_state_dict_pre_hooks.values():
            pre_hook(self)
        saved: dict[str, Any] = self.optim.state_dict()
        state = dict(saved["state"])
        for p, i in zip(_in(self.param_groups), _in(saved["param_groups"]), strict=True):
            if p in self._held:
                state[i] = {**state.get(i, {}), _KEY: self._accumulator(p)}
        saved = {**saved, "state": state}
        for post_hook in self._optimizer_state_dict_post_hooks.values():
            saved = post_hook(self, saved) or saved
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, here or in another process.

        The state of the bare optimizer does too: then accumulators start from the weights.

        Raises:
            ValueError: other groups or shapes, or accumulators where there is no acc_quant.
        """
        state_dict = state_dict.copy()
        for pre_hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = pre_hook(self, state_dict) or state_dict
        params = dict(zip(_in(state_dict["param_groups"]), _in(self.param_groups), strict=False))
        state, held = {}, {}
        for i, entries in state_dict["state"].items():
            state[i] = {key: value for key, value in entries.items() if key != _KEY}
            if _KEY in entries and i in params:
                p, saved = params[i], entries[_KEY]
                if self.acc_quant is None:
                    raise ValueError(
                        "the state_dict holds accumulators: this OptimLP needs an acc_quant to go on with them"
                    )
                if saved.shape != p.shape:
                    raise ValueError(f"parameter {i} has shape {tuple(p.shape)}, its accumulator {tuple(saved.shape)}")
                held[p] = _Held(saved.detach().to(p.device, p.dtype, copy=True), None)
        self.optim.load_state_dict({**state_dict, "state": {i: entries for i, entries in state.items() if entries}})
        self._held = held
        for post_hook in self._optimizer_load_state_dict_post_hooks.values():
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        kept = ("optim", "grad_scaling", "weight_quant", "grad_quant", "acc_quant", "momentum_quant", "momentum_by_key")
        return {name: self.__dict__[name] for name in (*kept, "_held", "_own")}

    def __repr__(self) -> str:
        shown = [repr(rule) for rule in self._rules()]
        return f"OptimLP({', '.join([repr(self.optim), *shown])}, grad_scaling={self.grad_scaling})"

    def _rules(self) -> Iterator[Step]:
        given = (
            self.weight_quant,
            self.grad_quant,
            self.acc_quant,
            self.momentum_quant,
            *self.momentum_by_key.values(),
        )
        return (rule for rule in given if rule is not None)

    def _parameters(self) -> Iterator[Tensor]:
        return (p for p in _in(self.param_groups) if not is_lazy(p))

    def _stepped(self) -> Iterator[Tensor]:
        return (p for p in self._parameters() if p.grad is not None)

    def _check(self, groups: list[dict[str, Any]]) -> None:
        for rule in self._rules():
            for p in _in(groups):
                if rule.format is not None:
                    ops.check_roundable(p, rule.format)

    def _round_gradients(self) -> None:
        if self.grad_quant is None and self.grad_scaling == 1.0:
            return

        def rounded(grad: Tensor) -> Tensor:
            return _apply(self.grad_quant, grad * self.grad_scaling)

        for p in self._parameters():
            with saying("gradient", p):
                if p.grad is not None and p.grad.is_sparse:
                    p.grad = p.grad.coalesce()  # else the parts of a sum were rounded, not the sum
                    p.grad.values().copy_(rounded(p.grad.values()))
                elif p.grad is not None:
                    _write(p.grad, rounded(_values(p.grad)))

    def _load(self, p: Tensor, values: Tensor) -> None:
        """Give ``p`` these values for the time of the step; an LPTensor takes on the accumulator's arithmetic too."""
        if isinstance(p, LPTensor) and self.acc_quant is not None:
            self._own.setdefault(p, p._arithmetic)
            p._arithmetic = Arithmetic(self.acc_quant.format, rounding="stochastic")
            p._inner.copy_(values)  # exactly: a function's accumulator lies on no format
        else:
            _write(p, values)

    def _store(self, p: Tensor, weight: Tensor) -> None:
        """Write a weight to ``p``, an LPTensor once more in an arithmetic of its own, which rounds it."""
        if isinstance(p, LPTensor) and p in self._own:
            p._arithmetic = self._own.pop(p)
        with saying("weight", p):
            _write(p, weight)

    def _accumulator(self, p: Tensor) -> Tensor:
        """The accumulator of ``p``, brought up to date where something else has changed the weight."""
        accumulator, weight = self._held.get(p, (_values(p), None))
        return accumulator if weight is None else torch.where(_values(p) == weight, accumulator, _values(p))

    def _load_accumulators(self) -> dict[Tensor, Tensor]:
        """Put accumulators in the place of their weights, and return the weights."""
        if self.acc_quant is None:
            return {}
        weights = {p: _values(p) for p in self._parameters()}
        for p, weight in weights.items():
            self._held[p] = _Held(self._accumulator(p), weight)
            self._load(p, self._held[p].accumulator)
        return weights

    def _at_rounded_weights(self, closure: Callable[[], Any], weights: dict[Tensor, Tensor]) -> Callable[[], Any]:
        """The closure as the wrapped optimizer gets it: weights and gradients are rounded, its own point is kept."""
        start = {p: _values(p) for p in self._parameters()}

        def evaluate() -> Any:
            with torch.no_grad():
                point = {p: _values(p) for p in start}
                for p, value in point.items():
                    # Where it still stands, the weight is known; stochastic rounding might come out otherwise.
                    if torch.equal(value, start[p]):
                        self._store(p, weights.get(p, value))
                    else:
                        self._store(p, self._weight(p, self._accumulated(p, value)))
            loss = closure()
            with torch.no_grad():
                self._round_gradients()
                for p, value in point.items():
                    self._load(p, value)
            return loss

        return evaluate

    def _accumulated(self, p: Tensor, values: Tensor) -> Tensor:
        """What the accumulator of ``p`` makes of these values."""
        with saying("accumulator", p):
            return _apply(self.acc_quant, values)

    def _weight(self, p: Tensor, accumulator: Tensor) -> Tensor:
        with saying("weight", p):
            return _apply(self.weight_quant, accumulator)

    def _round_weights(self, weights: dict[Tensor, Tensor]) -> None:
        """Round accumulators, then weights; a parameter without a gradient gets its weight back."""
        accumulators = {p: self._accumulated(p, _values(p)) for p in self._stepped()}
        after = {**weights, **{p: self._weight(p, value) for p, value in accumulators.items()}}
        for p, weight in after.items():
            self._store(p, weight)
            if self.acc_quant is not None:
                accumulator = accumulators.get(p, self._held[p].accumulator)
                self._held[p] = _Held(accumulator, _values(p))  # an LPTensor may have rounded the weight

    def _round_momenta(self) -> None:
        for p in self._stepped():
            for key, value in self.state.get(p, {}).items():
                if key in self.momentum_by_key:
                    rule, tensors = self.momentum_by_key[key], value if isinstance(value, list) else [value]
                elif isinstance(value, Tensor) and value.shape == p.shape and key not in _BOOKKEEPING:
                    rule, tensors = self.momentum_quant, [value]
                else:
                    continue
                for tensor in tensors:
                    if rule is not None and isinstance(tensor, Tensor) and tensor.is_floating_point():
                        with saying("state", p):
                            _write(tensor, rule(_values(tensor)))
        known = {key for state in self.state.values() for key in state}
        for key in self.momentum_by_key:
            if known and key not in known:
                raise ValueError(f"momentum_quant names {key!r}, {type(self.optim).__name__} keeps {sorted(known)}")


def _apply(rule: Step | None, x: Tensor) -> Tensor:
    return x if rule is None else rule(x)


def _in(groups: Iterable[Mapping[str, Any]]) -> Iterator[Any]:
    """The parameters (or their numbers) in groups, in order."""
    return (p for group in groups for p in group["params"])


def _values(x: Tensor) -> Tensor:
    """A plain copy."""
    return x.dequantize() if isinstance(x, LPTensor) else x.detach().clone()


def _write(x: Tensor, values: Tensor) -> None:
    """Write plain values. An LPTensor rounds them, as a gradient or not: also if the step runs in the backward pass."""
    if isinstance(x, LPTensor):
        x._inner.copy_(enter(values, x._arithmetic, x._gradient)._inner)
    else:
        x.copy_(values)
