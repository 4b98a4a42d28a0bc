"""Loss scaling: gradients are rounded while they are large, and divided afterwards."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.base import check_int, check_number, check_positive, check_state, set_int, set_number
from lptensor.formats import ScalarFormat
from lptensor.nests import remade
from lptensor.optim import OptimLP
from lptensor.parameters import listed
from lptensor.tensor import LPTensor
from lptensor.text import renamed


@renamed(initial="init_scale")
@dataclass(frozen=True)
class Static:
    """The same scale at every step (Micikevicius et al., 1710.03740, section 3.2).

    Args:
        init_scale: the scale, positive and finite; no power of two is asked for.

    Raises:
        TypeError, ValueError: a scale that is not a positive, finite number.

    >>> Static(1000.0).init_scale
    1000.0
    """

    init_scale: float = 1024.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "init_scale", check_positive("init_scale", self.init_scale))

    def after(self, scale: float, count: int, seen: Seen) -> tuple[float, int]:
        """The scale of the next step, and the count that goes with it."""
        return scale, count


_LEAST = torch.finfo(torch.float32).tiny  # a scale that is divided by


@renamed(initial="init_scale", growth="growth_factor", backoff="backoff_factor", interval="growth_interval")
@dataclass(frozen=True)
class Dynamic:
    """Grows after a run of steps without infinities or NaN, backs off at one (1710.03740; torch's GradScaler).

    Args:
        init_scale: the first scale.
        growth_factor: factor after ``growth_interval`` steps in a row with finite gradients.
        backoff_factor: factor after a step without.
        growth_interval: steps in a row, at least 1.

    Raises:
        TypeError, ValueError: an initial scale that is not a positive, finite number, a growth_factor of 1 or
            less, a backoff_factor outside (0, 1), a growth_interval below 1.

    >>> scaler = LossScaler(Dynamic(init_scale=8.0))
    >>> w = torch.nn.Parameter(torch.ones(1)); w.grad = torch.tensor([math.inf])
    >>> scaler.step(torch.optim.SGD([w], lr=1.0)); scaler.update(); scaler.get_scale(), w.item()
    (4.0, 1.0)
    """

    init_scale: float = 2.0**16
    growth_factor: float = 2.0
    backoff_factor: float = 0.5
    growth_interval: int = 2000

    def __post_init__(self) -> None:
        object.__setattr__(self, "init_scale", check_positive("init_scale", self.init_scale))
        set_int(self, "growth_interval", 1, 2**31)
        set_number(self, "growth_factor")
        set_number(self, "backoff_factor")
        if not 1 < self.growth_factor < math.inf or not 0 < self.backoff_factor < 1:
            raise ValueError(
                f"growth_factor must be above 1 and backoff_factor between 0 and 1, got {self.growth_factor!r} "
                f"and {self.backoff_factor!r}"
            )

    def after(self, scale: float, count: int, seen: Seen) -> tuple[float, int]:
        """The scale of the next step, and the count that goes with it."""
        if seen.infinite:
            return max(scale * self.backoff_factor, _LEAST), 0
        if count + 1 < self.growth_interval:
            return scale, count + 1
        grown = scale * self.growth_factor
        return (grown if grown <= torch.finfo(torch.float32).max else scale), 0


@renamed(initial="init_scale")
@dataclass(frozen=True)
class Automatic:
    """Follows the share of saturated gradients: FP8-LM's factor mu (Peng et al., 2310.18313, section 2.1).

    Where more than ``threshold`` of the elements lie at the largest value of ``format``, or beyond,
    the scale is halved, and where a single one is infinite or NaN, as that step is skipped; else it
    grows so that ``span`` steps double it.

    Args:
        format: of the gradients, a scalar format with a largest value; nothing is rounded to it here.
        init_scale: the first scale.
        threshold: a share of the elements, from 0 to below 1.
        span: steps, at least 1.

    Raises:
        TypeError, ValueError: a format without a largest value, an initial scale that is not a positive, finite
            number, a span below 1, a threshold that is not a share.

    >>> from lptensor import E4M3
    >>> scaler = LossScaler(Automatic(E4M3, span=1))
    >>> w = torch.nn.Parameter(torch.zeros(1)); w.grad = torch.ones(1)
    >>> scaler.step(torch.optim.SGD([w], lr=1.0)); scaler.update(); scaler.get_scale()
    2.0
    """

    format: ScalarFormat
    init_scale: float = 1.0
    threshold: float = 1e-5
    span: int = 1000

    def __post_init__(self) -> None:
        if not isinstance(self.format, ScalarFormat) or not 0 < self.format.max < math.inf:
            raise ValueError(f"format must be a scalar format with a largest value, got {self.format!r}")
        object.__setattr__(self, "init_scale", check_positive("init_scale", self.init_scale))
        set_int(self, "span", 1, 2**31)
        set_number(self, "threshold")
        if not 0 <= self.threshold < 1:
            raise ValueError(f"threshold is a share of the elements, from 0 to below 1, got {self.threshold!r}")

    def after(self, scale: float, count: int, seen: Seen) -> tuple[float, int]:
        """The scale of the next step, and the count that goes with it."""
        if seen.infinite or seen.saturated > self.threshold * seen.elements:
            return max(scale / 2, _LEAST), 0
        return min(scale * 2 ** (1 / self.span), torch.finfo(torch.float32).max), 0


def as_policy(name: str, given: Any) -> Static | Dynamic | Automatic:
    """The policy that the argument ``name`` gives, of which a number is a static one."""
    if isinstance(given, Static | Dynamic | Automatic):
        return given
    try:
        check_number(name, given)
    except TypeError:
        kinds = "Static(...), Dynamic(...), Automatic(...) or a number"
        raise TypeError(f"{name} must be {kinds}, got {given!r}") from None
    return Static(check_positive(name, given))


@dataclass
class Seen:
    """What the gradients of one step were like, when they were rounded and still scaled."""

    saturated: int = 0
    elements: int = 0
    unscaled: list[Optimizer] = field(default_factory=list)
    infinite: list[Optimizer] = field(default_factory=list)  # those with an infinite or NaN gradient
    stepped: list[Optimizer] = field(default_factory=list)


class LossScaler:
    """Multiplies the loss, and divides the gradients: after they were rounded, never before.

    ``scale``, ``unscale_``, ``step`` and ``update`` are those of ``torch.amp.GradScaler``, used in the same
    order; what a policy is made of is asked of the policy. Where the optimizer is
    an ``OptimLP`` its ``grad_quant`` rounds the scaled gradients, which are then divided in fp32 (an
    LPTensor's gradient is fp32 until ``zero_grad()`` drops it: what is zeroed in place, and added to
    again, stays so), and not rounded again. A step with an infinite or
    NaN gradient is skipped, also under a ``Static`` scale. Backward passes that accumulate into one
    step take one scale; clip between ``unscale_`` and ``step``.

    Args:
        policy: ``Static``, ``Dynamic`` or ``Automatic``, or a number for a static one.

    Raises:
        TypeError: a policy that is not one.
        RuntimeError: a call out of order, or a closure given to ``step``.

    >>> from lptensor import E4M3, quantizer
    >>> w = torch.nn.Parameter(torch.ones(1))
    >>> optim = OptimLP(torch.optim.SGD([w], lr=1.0), grad_quant=quantizer(E4M3, forward_rounding="nearest"))
    >>> scaler = LossScaler(2.0**10)
    >>> scaler.scale(w * 2.0**-12).backward(); scaler.step(optim); scaler.update(); w.item() == 1 - 2.0**-12
    True
    >>> scaler
    LossScaler(Static(init_scale=1024.0)), now at 1024
    """

    def __init__(self, policy: Static | Dynamic | Automatic | float | None = None) -> None:
        self.policy = Dynamic() if policy is None else as_policy("policy", policy)
        self._scale = float(self.policy.init_scale)
        self._count = 0
        self._seen = Seen()

    def __repr__(self) -> str:
        return f"LossScaler({self.policy!r}), now at {self._scale:g}"

    def get_scale(self) -> float:
        """What losses are multiplied by now."""
        return self._scale

    def scale(self, losses: Any) -> Any:
        """A loss, or a nest of lists and tuples of them, times the scale; a plain tensor, also of an LPTensor."""
        if isinstance(losses, Tensor):
            return (losses.dequantize() if isinstance(losses, LPTensor) else losses) * self._scale
        if isinstance(losses, list | tuple):
            return remade(losses, self.scale)
        raise TypeError(f"scale takes a loss or a list of losses, got {type(losses).__name__}")

    @torch.no_grad()
    def unscale_(self, optimizer: Optimizer) -> None:
        """Round the optimizer's gradients if it is an ``OptimLP``, then divide them by the scale, in place.

        Raises:
            TypeError: no optimizer.
            RuntimeError: called before for this step, or after it.
        """
        _check_optimizer(optimizer)
        if _among(optimizer, self._seen.stepped):
            raise RuntimeError("unscale_() came after step(): call update() first")
        if _among(optimizer, self._seen.unscaled):
            raise RuntimeError("unscale_() was called before for this step: divide once")
        finite = True
        if isinstance(optimizer, OptimLP):  # asked before as well: a format that saturates makes numbers of infinities
            gradients = (_plain(p.grad) for p in listed(optimizer.param_groups) if p.grad is not None)
            finite = all(bool(grad.isfinite().all()) for grad in gradients)
            optimizer.round_gradients()
        for p in listed(optimizer.param_groups):
            if (grad := p.grad) is not None:
                finite &= self._look(_plain(grad))
                if isinstance(grad, LPTensor):  # its format would round the quotient
                    p.grad = LPTensor(grad._inner / self._scale, Arithmetic(), True)
                else:
                    grad.div_(self._scale)
        self._seen.unscaled.append(optimizer)
        if not finite:
            self._seen.infinite.append(optimizer)

    def step(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> Any:
        """One step of the optimizer, unless a gradient is infinite or NaN; None if it was skipped.

        Raises:
            TypeError: no optimizer.
            RuntimeError: called before, without ``update`` in between; a closure.
        """
        if args or kwargs:
            raise RuntimeError("a closure's gradients come too late for loss scaling: call step(optimizer) alone")
        _check_optimizer(optimizer)
        if _among(optimizer, self._seen.stepped):
            raise RuntimeError("step() was called before: call update() after each step")
        if not _among(optimizer, self._seen.unscaled):
            self.unscale_(optimizer)
        result = None
        if not _among(optimizer, self._seen.infinite):
            result = optimizer.step(gradients_rounded=True) if isinstance(optimizer, OptimLP) else optimizer.step()
        self._seen.stepped.append(optimizer)  # not if it raised: it may be called again
        return result

    def update(self, new_scale: float | None = None) -> None:
        """Make the scale of the next step, or set it."""
        if new_scale is not None:
            self._scale = check_positive("new_scale", new_scale)
        elif not self._seen.unscaled:
            raise RuntimeError("update() saw no gradients: call step(optimizer) before it")
        else:
            self._scale, self._count = self.policy.after(self._scale, self._count, self._seen)
        self._seen = Seen()

    def state_dict(self) -> dict[str, Any]:
        """The scale and the count of steps since it last changed."""
        return {"scale": self._scale, "count": self._count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned, or torch's GradScaler's; the policy is the constructor's.

        Raises:
            ValueError: a scale that is not positive, or a state without it.
        """
        check_state("scaler", state_dict, "scale")
        key = _compat.GROWTH_COUNT if _compat.GROWTH_COUNT in state_dict else "count"
        check_state("scaler", state_dict, "scale", key)
        scale, count = check_positive("scale", state_dict["scale"]), check_int("count", state_dict[key], 0, 2**62)
        self._scale, self._count = scale, count

    def _look(self, grad: Tensor) -> bool:
        """Note what a scaled gradient is like; whether it is finite."""
        if isinstance(self.policy, Automatic):
            self._seen.elements += grad.numel()
            self._seen.saturated += grad.numel() - int((grad.abs() < self.policy.format.max).sum())
        return bool(grad.isfinite().all())


def _check_optimizer(given: object) -> None:
    if not isinstance(given, Optimizer):
        raise TypeError(f"a scaler takes a torch.optim.Optimizer, got {given!r}")


def _plain(grad: Tensor) -> Tensor:
    """The gradient's own values, without a copy."""
    if isinstance(grad, LPTensor):
        return grad._inner
    return grad.coalesce().values() if grad.is_sparse else grad


def _among(optimizer: Optimizer, optimizers: Iterable[Optimizer]) -> bool:
    return any(optimizer is other for other in optimizers)
