"""Madam: multiplicative updates, which are additions to the logarithms of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lptensor.base import check_closure, check_number, check_positive


class Madam(Optimizer):
    """w <- w exp(-lr sign(w) g / sqrt(v)), v the running mean of g**2 without its initial bias.

    Bernstein et al. (2006.14560) as LNS-Madam (2106.13914, algorithm 1) has it: in logarithmic numbers
    the update is a sum, so that what rounding does to it is the same for all magnitudes. Signs never
    change, and a weight of zero stays zero. g / sqrt(v) is held to ``limit``, weights to
    ``bound`` times the root mean square that they start with (infinite: no bound). Where v is zero,
    nothing moves; NaN and infinite gradients make their weights NaN.

    Args:
        params: as of every torch optimizer.
        lr: positive: what log|w| changes by where |g| is sqrt(v).
        beta: how much of the mean is kept at each step, from 0 to below 1.
        limit: the largest |g| / sqrt(v), positive; infinite for none.
        bound: the largest |w|, in units of the root mean square of its tensor at the start; positive.

    Raises:
        TypeError: a rate or limit that is not a number.
        ValueError: one that is not positive, beta outside [0, 1).

    >>> w = torch.nn.Parameter(torch.tensor([2.0, -2.0]))
    >>> w.grad = torch.ones(2)
    >>> _ = Madam([w], lr=0.5).step()
    >>> (w.detach() / torch.tensor([2.0, -2.0])).log()
    tensor([-0.5000,  0.5000])
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 0.01,
        beta: float = 0.999,
        limit: float = 10.0,
        bound: float = math.inf,
    ) -> None:
        super().__init__(params, {"lr": lr, "beta": beta, "limit": limit, "bound": bound})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As other optimizers'; the options of the group are checked like those of all."""
        options = {**self.defaults, **param_group}
        check_positive("lr", options["lr"])
        for name in ("limit", "bound"):
            if not check_number(name, options[name]) > 0:
                raise ValueError(f"{name} must be positive, got {options[name]!r}")
        if not 0 <= check_number("beta", options["beta"]) < 1:
            raise ValueError(f"beta must be from 0 to below 1, got {options['beta']!r}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step; returns what the closure returns."""
        loss = None
        if closure is not None:
            check_closure(closure)
            with torch.enable_grad():
                loss = closure()
        moving = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for p, _ in moving:
            if p.grad.layout is not torch.strided:
                raise TypeError(f"Madam takes dense gradients, got {p.grad.layout}; make the layer with sparse=False")
        for p, group in moving:
            self._move(p, p.grad, group)
        return loss

    def _move(self, p: Tensor, grad: Tensor, group: dict[str, Any]) -> None:
        state = self.state[p]
        if not state:
            state["step"] = torch.zeros((), device="cpu")
            state["square_avg"] = torch.zeros_like(p)
            state["largest"] = p.square().mean().sqrt() * group["bound"]
        state["step"] += 1
        state["square_avg"].lerp_(grad.square(), 1 - group["beta"])
        v = state["square_avg"] / (1 - group["beta"] ** float(state["step"]))
        direction = torch.where(v == 0, torch.zeros_like(grad), grad / v.sqrt()).clamp(-group["limit"], group["limit"])
        p.mul_(torch.exp(-group["lr"] * p.sign() * direction))
        if math.isfinite(group["bound"]):
            p.copy_(torch.maximum(torch.minimum(p, state["largest"]), -state["largest"]))
