"""Any torch optimizer, with gradients, weights, accumulators and momenta in low precision."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lptensor import _compat, ops, optimizer_state
from lptensor.arithmetic import Arithmetic, contains
from lptensor.base import Format, check_bool, check_closure, check_positive, check_signed, check_state
from lptensor.distributed import refuse_sharded
from lptensor.loans import Loans
from lptensor.momenta import as_momenta
from lptensor.observe import saying
from lptensor.parameters import listed, read, restore, round_values, values, write
from lptensor.quantizer import Quant, Quantize, Step, as_step
from lptensor.tensor import LPTensor
from lptensor.updates import UPDATES, as_update, by_update

_ACCUMULATOR = "weight_accumulator"  # its name in state_dict()["state"][parameter]
_KEYS = {_ACCUMULATOR: "an acc_quant", **{row.kept: f"update={row.name!r}" for row in UPDATES.values() if row.kept}}


def _of_the_wrapped(name: str) -> Any:
    """An attribute that is the wrapped optimizer's."""
    get, put = (lambda self: getattr(self.optim, name)), (lambda self, value: setattr(self.optim, name, value))
    return property(get, put, doc=f"The {name.replace('_', ' ')} of the wrapped optimizer.")


class _Held(NamedTuple):
    """What OptimLP keeps of a parameter between two steps."""

    kept: Tensor  # the accumulator of the weight, or its compensation
    weight: Tensor | None  # as the last step left it; None if a state_dict brought what is kept


class OptimLP(Optimizer):
    """``optim`` with its step in low precision; itself a torch optimizer, so schedulers take it.

    One step is QPyTorch's: gradients become ``grad_quant(grad * grad_scaling)``; the accumulators take the place
    of the weights; ``optim`` steps; accumulators are rounded; weights become the rounded
    accumulators; momenta are rounded, ready for the next step. Nothing is rounded at construction.
    A parameter without a gradient is left alone. Without ``acc_quant`` the weight is its own accumulator.

    An accumulator starts as its weight. If something else changes a weight between steps
    (``load_state_dict``, a clamp, a pruning mask), its accumulator follows where it changed; but after OptimLP's own
    ``load_state_dict`` the next step uses it as it was saved. A closure, which
    LBFGS calls many times in a step, sees rounded weights (its very first call sees the weights as they are), and its
    gradients are rounded after each call. Sparse gradients are coalesced, then rounded once. During a step
    LPTensor parameters, and state that the step creates, are in the accumulator's format (fp32, if that is a function),
    and gradients are used exactly, whatever their format; afterwards the weights are in their own format again.

    With ``update``, ``optim`` steps in fp32 (LPTensors in the format of ``acc_quant``, if there is one), and the weight
    is rounded once on the way back, to ``weight_quant``, or to its own format if it is an LPTensor:

    - "nearest": to nearest even; updates below half a unit in the last place are lost.
    - "stochastic": stochastically; such updates arrive on average.
    - "kahan": each weight has a compensation in its own format (Zamirai et al., 2010.06192).
    - "mcf": each weight is a sum of two numbers of its format (Collage, 2405.03637).

    What kahan and mcf keep is in the state_dict. It starts at zero, again so after something else
    has changed the weight. What they add is the change that the step makes to the weight in fp32.

    Args:
        optim: any torch optimizer. It continues to hold parameters, groups and momenta.
        weight_quant, grad_quant, acc_quant: a format, rounded to stochastically, or a function from
            a tensor to one of the same shape; None rounds nothing.
        momentum_quant: the same for every floating-point state of a parameter's shape (a step that finds none
            warns), or a dict ``{state key: format or function}``. In formats with few exponent bits the squares of
            Adam and its relatives become zero, and the step infinite: give these keys a wide format, or leave them out.
        grad_scaling: multiplies the gradients before they are rounded. It is never undone; to scale the
            loss, use ``lptensor.training.LossScaler``.
        update: how weights are rounded, one of the four above; if ``acc_quant`` is a format, it is
            rounded to in the same way ("nearest" and "stochastic" only). None is QPyTorch's step.

    Raises:
        TypeError: not an optimizer, a quantizer that is neither a format nor a function, parameters that a
            format cannot round (it takes float32 and float64), or that are sharded.
        ValueError: grad_scaling not positive, a momentum key that the optimizer does not have (an optimizer that is
            not torch's says so at its first step), an ``update`` that is unknown or clashes with the other arguments,
            LPTensors of a format that lacks values of weight_quant (for block formats, of their elements).

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
        update: str | None = None,
    ) -> None:
        if not isinstance(optim, Optimizer) or isinstance(optim, OptimLP):
            raise TypeError(f"OptimLP wraps a torch.optim.Optimizer other than OptimLP, got {type(optim).__name__}")
        grad_scaling = check_positive("grad_scaling", grad_scaling)
        self.optim = optim
        self.grad_scaling = grad_scaling
        self._update = as_update(update, weight_quant, acc_quant)
        self.weight_quant = by_update(self._update, as_step("weight_quant", weight_quant))
        check_signed(grad_quant, "leave grad_quant out, or name one that has")
        self.grad_quant = as_step("grad_quant", grad_quant)
        self.acc_quant = by_update(self._update, as_step("acc_quant", acc_quant))
        self.momentum_quant = as_momenta(momentum_quant)
        self._held: dict[Tensor, _Held] = {}
        self._loans = Loans()  # LPTensors that a step has given their accumulator's arithmetic
        # Not Optimizer.__init__, which would make groups and states of its own; this only adds what hooks need.
        self.__setstate__({})
        self._check(optim.param_groups)
        self.momentum_quant.check(optim)
        self._follow_accumulators()

    def _follow_accumulators(self) -> None:
        """Let the state that there is, of whatever steps, follow the accumulators when a step begins."""
        if self._steps_apart:
            optimizer_state.follow(self.optim, [p for p in self._parameters() if isinstance(p, LPTensor)])
        self._checked = optimizer_state.conversions()

    _checked = -1  # the count of conversions when formats were last checked against each other
    _step_supports_amp_scaling = True  # GradScaler then leaves it to the step to divide gradients

    @property
    def update(self) -> str | None:
        """The name of the rule by which weights are rounded, None for QPyTorch's step."""
        return self._update.name

    param_groups: Any = _of_the_wrapped("param_groups")
    state: Any = _of_the_wrapped("state")
    defaults: Any = _of_the_wrapped("defaults")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, *, gradients_rounded: bool = False) -> Any:
        """One step; returns what the wrapped optimizer's step returns, the closure's loss if there is one.

        If it raises, accumulators and their weights are those from before; without accumulators, weights are what the
        wrapped optimizer's step has left. Its state may have moved on, and gradients are scaled and rounded, all
        before the one whose rounding raised: take a new backward pass before the next step. With ``gradients_rounded``
        (and no closure) they are taken as they are, ``round_gradients`` having been called.
        ``torch.amp.GradScaler`` may take the step: gradients are rounded before they are divided by its scale.

        Raises:
            TypeError: a closure that cannot be called, as the loss itself.
            RuntimeError: its ``unscale_`` has divided gradients that ``grad_quant`` was to round.
        """
        check_bool("gradients_rounded", gradients_rounded)
        if closure is not None:
            check_closure(closure)
        infinite, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)  # GradScaler sets them
        if infinite is not None and scale is None and self.grad_quant is not None:
            raise RuntimeError(
                "GradScaler.unscale_() has divided the gradients before they were rounded, and what scaling has saved "
                "would vanish; lptensor.training.LossScaler, used alike, rounds them first"
            )
        if infinite is not None and infinite.item():
            return None
        if self._checked != optimizer_state.conversions():  # parameters may be others now
            self._check(self.param_groups)
            if self._checked < 0:  # a copy, or out of a pickle
                self._follow_accumulators()
            self._checked = optimizer_state.conversions()
        if closure is None and not gradients_rounded:
            self.round_gradients()
        if scale is not None:
            for p in self._stepped():
                write(p.grad, read(p.grad) / scale)
        self.momentum_quant.check(self.optim)
        held = dict(self._held)
        weights = self._read_weights()
        try:
            self._load_accumulators(weights)
            step = self.optim.step  # of which some take no closure
            loss = step() if closure is None else step(self._at_rounded_weights(closure, weights))
            self._round_weights(weights)
            self.momentum_quant.round(self.optim, self._stepped())
        except BaseException:
            self._held = held
            for p, weight in weights.items():
                self._give_back(p, weight)
            raise
        return loss

    @torch.no_grad()
    def _begin(self) -> Optimizer:
        """Round gradients and put accumulators in the place of weights; the optimizer whose step comes next."""
        self.round_gradients()
        self._load_accumulators(self._read_weights())
        return self.optim

    @torch.no_grad()
    def round_gradients(self) -> None:
        """Round the gradients now, as ``step`` would, for who has something to do with them before it.

        Then say ``step(gradients_rounded=True)``, or they are scaled and rounded once more.

        >>> from lptensor import E4M3
        >>> w = torch.nn.Parameter(torch.ones(1)); w.grad = torch.tensor([500.0])
        >>> optim = OptimLP(torch.optim.SGD([w], lr=1.0), grad_quant=E4M3)
        >>> optim.round_gradients(); w.grad
        tensor([448.])
        """
        if self.grad_quant is None and self.grad_scaling == 1.0:
            return
        for p in self._stepped():
            with saying("gradient", p):
                if p.grad.is_sparse:
                    p.grad = p.grad.coalesce()  # else the parts of a sum were rounded, not the sum
                grad = p.grad.values() if p.grad.is_sparse else p.grad
                if self.grad_scaling != 1.0:  # an LPTensor is written to once, as it rounds what it is given
                    write(grad, _apply(self.grad_quant, read(grad) * self.grad_scaling))
                elif self.grad_quant is not None:
                    round_values(grad, self.grad_quant)

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
        """The wrapped optimizer's, with each parameter's "weight_accumulator" (or compensation) among its state."""
        for pre_hook in _compat.state_hooks(self, "state_dict_pre"):
            pre_hook(self)
        saved: dict[str, Any] = self.optim.state_dict()
        state = dict(saved["state"])
        for p, i in zip(listed(self.param_groups), listed(saved["param_groups"]), strict=True):
            if p in self._held:
                state[i] = {**state.get(i, {}), self._key: self._kept(p, read(p))}
        saved = {**saved, "state": state}
        for post_hook in _compat.state_hooks(self, "state_dict_post"):
            saved = post_hook(self, saved) or saved
        return saved

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, here or in another process.

        The state of the bare optimizer does too: then accumulators start from the weights, with a warning, as
        ``torch.distributed.checkpoint`` drops them where it flattens the state of an optimizer.

        Raises:
            ValueError: no such state, other groups or shapes, or accumulators where no acc_quant (or update) goes on
                with them.
        """
        state_dict = copy.copy(state_dict)
        for pre_hook in _compat.state_hooks(self, "load_state_dict_pre"):
            state_dict = pre_hook(self, state_dict) or state_dict
        check_state("wrapped optimizer", state_dict, "state", "param_groups")
        params = dict(zip(listed(state_dict["param_groups"]), listed(self.param_groups), strict=False))
        state, held = {}, {}
        for i, entries in state_dict["state"].items():
            state[i] = {key: value for key, value in entries.items() if key not in _KEYS}
            for key in _KEYS.keys() & entries.keys() if i in params else ():
                p, saved = params[i], entries[key]
                if key != self._key:
                    raise ValueError(
                        f"the state_dict holds each {key}: this OptimLP needs {_KEYS[key]} to go on with them"
                    )
                if saved.shape != p.shape:
                    raise ValueError(f"parameter {i} has shape {tuple(p.shape)}, its {key} {tuple(saved.shape)}")
                held[p] = _Held(saved.detach().to(p.device, p.dtype, copy=True), None)
        if self._key is not None and any(state.values()) and not held:
            warnings.warn(
                f"the state_dict holds no {self._key}: each begins anew, from the weights as they are. (A bare "
                "optimizer has none, and flatten_optimizer_state_dict=True drops them.)",
                RuntimeWarning,
                stacklevel=3,  # past torch.no_grad()
            )
        self.optim.load_state_dict({**state_dict, "state": {i: entries for i, entries in state.items() if entries}})
        self._held = held
        self._follow_accumulators()
        for post_hook in _compat.state_hooks(self, "load_state_dict_post"):
            post_hook(self)

    def __getstate__(self) -> dict[str, Any]:
        quantizers = ("weight_quant", "grad_quant", "acc_quant", "momentum_quant")
        kept = ("optim", "_update", "grad_scaling", *quantizers, "_held", "_loans")
        return {name: self.__dict__[name] for name in kept}

    def __repr__(self) -> str:
        shown = [repr(rule) for rule in self._rules()] + [f"update={self.update!r}"] * (self.update is not None)
        return f"OptimLP({', '.join([repr(self.optim), *shown])}, grad_scaling={self.grad_scaling})"

    def _rules(self) -> Iterator[Step]:
        given = (self.weight_quant, self.grad_quant, self.acc_quant, *self.momentum_quant.rules())
        return (rule for rule in given if rule is not None)

    def _parameters(self) -> Iterator[Tensor]:
        return (p for p in listed(self.param_groups) if not is_lazy(p))

    def _stepped(self) -> Iterator[Any]:
        return (p for p in self._parameters() if p.grad is not None)

    @property
    def _steps_apart(self) -> bool:
        """Whether the wrapped optimizer steps on accumulators, or on the weights in another arithmetic than theirs."""
        return self.acc_quant is not None or self.update is not None

    @property
    def _key(self) -> str | None:
        """What the state_dict calls that which is kept of a weight; None if nothing is."""
        return self._update.kept if self.acc_quant is None else _ACCUMULATOR

    def _weight_rule(self, p: Tensor) -> Step | None:
        """What rounds the weight ``p``: under ``update``, an LPTensor's own format is named by the LPTensor."""
        if self.weight_quant is not None or self.update is None:
            return self.weight_quant
        own = self._own(p)
        if own is None:
            raise ValueError(
                f"update={self.update!r} needs to know the weights' format: give weight_quant; or where only some "
                "of them are LPTensors, lptensor.convert() the others, to FP32 say"
            )
        return by_update(self._update, as_step("weight_quant", own))

    def _own(self, p: Tensor) -> Format | None:
        """The format of the weight ``p`` itself; None of a plain one."""
        return self._loans.own(p).forward if isinstance(p, LPTensor) else None

    def _check(self, groups: list[dict[str, Any]]) -> None:
        refuse_sharded(listed(groups), "OptimLP")
        for p in listed(groups):
            if is_lazy(p):  # the step asks again
                continue
            rule, own = self._weight_rule(p), self._own(p)
            if own is not None and rule is not None and self._would_round_twice(rule.format, own):
                raise ValueError(
                    f"weights would be rounded to weight_quant={rule.format!r}, and then by the LPTensors among them "
                    f"to {own!r}; leave weight_quant out"
                )
        for rule in self._rules():
            for p in listed(groups):
                if rule.format is not None and not is_lazy(p):
                    ops.check_roundable(p, rule.format)

    def _would_round_twice(self, format: Format | None, own: Format) -> bool:
        if self.update is not None:
            return format != own
        return format is not None and not contains(own, format)

    def _load(self, p: Tensor, values: Tensor) -> None:
        """Give ``p`` these values for the time of the step; an LPTensor takes on the step's arithmetic too."""
        if isinstance(p, LPTensor) and self._steps_apart:
            wide = None if self.acc_quant is None else self.acc_quant.format
            self._loans.lend(p, Arithmetic(wide, rounding=self._update.rounding))
            p._inner.copy_(values)  # exactly: a function's accumulator lies on no format
        else:
            write(p, values)

    def _store(self, p: Tensor, weight: Tensor) -> None:
        """Write a weight to ``p``, an LPTensor once more in an arithmetic of its own, which rounds it."""
        if self.update is not None:  # it has been rounded to that format
            return self._give_back(p, weight)
        self._loans.take_back(p)
        with saying("weight", p):
            write(p, weight)

    def _give_back(self, p: Tensor, weight: Tensor) -> None:
        """Give ``p`` a weight that it had before."""
        self._loans.take_back(p)
        restore(p, weight)

    def _kept(self, p: Tensor, now: Tensor) -> Tensor:
        """The accumulator or compensation of ``p``, up to date where something else has made the weight ``now``."""
        start = torch.zeros_like if self._update.compensated else torch.clone
        if p not in self._held:
            return start(now)
        kept, weight = self._held[p]
        if weight is None or now.is_cpu and torch.equal(now, weight):  # a device would be waited for
            return kept
        return torch.where(now == weight, kept, start(now))

    def _read_weights(self) -> dict[Tensor, Tensor]:
        """The weights before a step, of those that it has to give back if it raises."""
        if not self._steps_apart:
            rules = (self.weight_quant, *self.momentum_quant.rules())
            if all(rule is None or isinstance(rule.quantize, Quantize) for rule in rules):
                if self.momentum_quant.surely_fits(self.optim):
                    return {}
            # Else a user's function may raise, or a key be no state's.
        return {p: read(p) for p in self._parameters()}

    def _load_accumulators(self, weights: dict[Tensor, Tensor]) -> None:
        """Put accumulators in the place of their weights."""
        if not self._steps_apart:
            return
        if self._key is not None:  # all of them, or an error, before a weight gives way
            self._held.update({p: _Held(self._kept(p, weight), weight) for p, weight in weights.items()})
        for p, weight in weights.items():
            self._load(p, weight if self.acc_quant is None else self._held[p].kept)

    def _at_rounded_weights(self, closure: Callable[[], Any], weights: dict[Tensor, Tensor]) -> Callable[[], Any]:
        """The closure as the wrapped optimizer gets it: weights and gradients are rounded, its own point is kept."""
        start = {p: read(p) for p in self._parameters()}

        def evaluate() -> Any:
            with torch.no_grad():
                point = {p: read(p) for p in start}
                for p, value in point.items():
                    # Where it still stands, the weight is known; stochastic rounding might come out otherwise.
                    if torch.equal(value, start[p]):
                        self._give_back(p, weights.get(p, value))
                    else:
                        self._store(p, self._weight(p, self._accumulated(p, value)))
            loss = closure()
            with torch.no_grad():
                self.round_gradients()
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
            return _apply(self._weight_rule(p), accumulator)

    def _round_weights(self, weights: dict[Tensor, Tensor]) -> None:
        """Round accumulators, then weights; a parameter without a gradient gets its weight back."""
        if not self._steps_apart:  # weights alone, where they lie
            if (rule := self.weight_quant) is not None:
                for p in self._stepped():
                    with saying("weight", p):
                        round_values(p.detach(), rule)
            return
        if self._update.compensated:
            both = {p: self._compensate(p, weights[p]) for p in self._stepped()}
            after, kept = ({p: pair[i] for p, pair in both.items()} for i in (0, 1))
        else:
            kept = {p: self._accumulated(p, values(p)) for p in self._stepped()}
            after = {p: self._weight(p, value) for p, value in kept.items()}
        for p, weight in {**weights, **after}.items():
            (self._store if p in after else self._give_back)(p, weight)
            if self._key is not None:
                self._held[p] = _Held(kept.get(p, self._held[p].kept), self._written(p, weight))

    def _written(self, p: Tensor, weight: Tensor) -> Tensor:
        """The values that ``p`` has got by ``weight``, in a tensor that nobody else has."""
        rule = None if isinstance(p, LPTensor) else self._weight_rule(p)
        if rule is None or rule.format is None:  # an LPTensor may have rounded it, a function may keep what it returns
            return read(p)
        return weight

    def _compensate(self, p: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """What the step has changed of ``p``, added to the weight that it was."""
        rule, step = self._weight_rule(p), self._update.compensated
        assert step is not None and rule is not None and rule.format is not None
        return step(weight, self._held[p].kept, read(p) - weight, rule.format)


def _apply(rule: Step | None, x: Tensor) -> Tensor:
    return x if rule is None else rule(x)
