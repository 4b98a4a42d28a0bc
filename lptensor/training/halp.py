"""HALP: variance-reduced steps on a fixed-point grid that shrinks around the solution."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lptensor.base import check_closure, check_int, check_positive
from lptensor.formats import FixedPoint
from lptensor.ops import round_fresh
from lptensor.parameters import listed
from lptensor.rounding import Mode, Rounding


class HALP(Optimizer):
    """Bit-centred SVRG: linear convergence with a fixed number of bits (De Sa et al., 1803.03383).

    The iterate is a centre in full precision plus an offset z of ``bits`` bits. ``recenter`` moves
    the centre to the iterate, takes the full gradient g there and makes the offset's grid, whose
    spacing is |g| / (mu (2**(bits - 1) - 1)): it then reaches as far as the minimum of a function
    that is mu-strongly convex can lie. A step is z = R(z - lr (f_i'(centre + z) - f_i'(centre) + g)),
    rounded stochastically and held to the grid. Centre, offset and gradient live in the state_dict.

    Only the offset is low precision: gradients are computed as the parameters' dtype has it, and
    float32 parameters end at its own floor. Where the full gradient is zero, nothing moves; where it
    is NaN or infinite, parameters become NaN. A part whose closure leaves a parameter without a
    gradient does not depend on it.

    Args:
        params: plain float32 or float64 parameters.
        lr: the step size.
        mu: the strong convexity of the whole function; too large a value makes a grid that is too
            short to reach the minimum.
        bits: word length of the offset, 2 to 24.

    Raises:
        TypeError: parameters that are not plain float32 or float64 tensors.
        ValueError: bits outside 2 to 24, rates that are not positive and finite.
        RuntimeError: ``step`` without a closure, or before ``recenter``.

    >>> w = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    >>> optim = HALP([w], lr=0.5, mu=1.0)
    >>> def closure():
    ...     w.grad = w.detach().clone()  # of w**2 / 2
    >>> for _ in range(8):
    ...     optim.recenter(closure)
    ...     for _ in range(20):
    ...         optim.step(closure)
    >>> abs(w.item()) < 1e-12
    True
    """

    def __init__(self, params: Iterable[Tensor], lr: float, mu: float, bits: int = 8) -> None:
        super().__init__(params, {"lr": lr, "mu": mu, "bits": bits, "spacing": 0.0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As other optimizers'; the group is checked, and moves from the next ``recenter`` on."""
        super().add_param_group(param_group)
        try:
            self._check(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @staticmethod
    def _check(group: dict[str, Any]) -> None:
        for name in ("lr", "mu"):
            check_positive(name, group[name])
        group["bits"] = check_int("bits", group["bits"], 2, 24)
        for p in group["params"]:
            if type(p.data) is not Tensor or p.dtype not in (torch.float32, torch.float64):
                raise TypeError(f"HALP takes plain float32 and float64 parameters, got {type(p.data)}, {p.dtype}")

    @torch.no_grad()
    def recenter(self, closure: Callable[[], Any]) -> Any:
        """Begin an outer iteration: ``closure`` leaves the gradient of the whole function; returns what it does."""
        loss = self._gradients_of(closure)
        gradients = {p: _gradient(p) for p in listed(self.param_groups) if p.grad is not None or p in self.state}
        norm = math.sqrt(sum(float(grad.double().square().sum()) for grad in gradients.values()))
        for group in self.param_groups:
            group["spacing"] = norm / (group["mu"] * (2 ** (group["bits"] - 1) - 1))
        for p, grad in gradients.items():
            self.state[p] = {"center": p.clone(), "offset": torch.zeros_like(p), "gradient": grad}
        return loss

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One inner step; ``closure`` leaves the gradient of one part of the function, the same each time it is called.

        Returns what it returns at the iterate. If it raises, the parameters are the iterate.

        Raises:
            RuntimeError: no closure, or no ``recenter`` before.
        """
        if closure is None or not self.state:
            raise RuntimeError("HALP needs recenter(closure) first, and then step(closure): both evaluate gradients")
        moving = [p for p in listed(self.param_groups) if p in self.state]
        try:
            for p in moving:
                p.copy_(self.state[p]["center"])
            self._gradients_of(closure)
            at_center = {p: _gradient(p) for p in moving}
        finally:
            for p in moving:
                p.copy_(self.state[p]["center"] + self.state[p]["offset"])
        loss = self._gradients_of(closure)
        for group in self.param_groups:
            grid, spacing = FixedPoint(group["bits"], 0), group["spacing"]
            for p in group["params"]:
                if p in self.state and spacing != 0:
                    s = self.state[p]
                    moved = s["offset"] - group["lr"] * (_gradient(p) - at_center[p] + s["gradient"])
                    s["offset"].copy_(round_fresh(moved / spacing, grid, Rounding(Mode.STOCHASTIC)) * spacing)
                    p.copy_(s["center"] + s["offset"])
        return loss

    def _gradients_of(self, closure: Callable[[], Any]) -> Any:
        check_closure(closure)
        self.zero_grad()
        with torch.enable_grad():
            return closure()


def _gradient(p: Tensor) -> Tensor:
    """A copy of the gradient, of zeros if there is none."""
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()
