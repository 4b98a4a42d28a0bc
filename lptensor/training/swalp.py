"""SWALP: the average of low-precision iterates, which their noise floor does not bound."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lptensor.base import check_int, check_state
from lptensor.formats import Format
from lptensor.ops import check_format, round as lp_round
from lptensor.parameters import read, restore, write
from lptensor.rounding import Mode, Rounding, as_rounding


class SWALP:
    """The running mean of parameters over a schedule of training steps (Yang et al., 1904.11943).

    The mean is kept in float64; with ``format`` every mean is rounded to that: m becomes
    R(m + (w - m) / n), the paper's Q_SWA. Values are taken as they are, NaN and infinities included.
    Train the collecting steps at a constant rate (``torch.optim.swa_utils.SWALR`` gets there), and
    make the statistics of batch normalisation anew for the mean (``swa_utils.update_bn``).

    Args:
        parameters: a model or its parameters.
        start: how many steps to wait: the warm-up.
        period: every how many steps from then on the parameters enter the mean; once an epoch in the paper.
        format, rounding: of the mean; None keeps it in float64.

    Raises:
        TypeError: what is neither a model nor a list of floating-point parameters.
        ValueError: no parameters, a negative start, a period below 1, an unknown rounding.
        RuntimeError: means asked for before any was collected.

    >>> w = torch.nn.Parameter(torch.zeros(1))
    >>> average = SWALP([w], start=1, period=2)
    >>> for step in range(6):
    ...     _ = w.data.add_(1.0)
    ...     _ = average.step()
    >>> average.means[0].item()  # of 2, 4 and 6
    4.0
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Tensor],
        start: int = 0,
        period: int = 1,
        format: Format | None = None,
        rounding: Rounding | Mode | str = "stochastic",
    ) -> None:
        if isinstance(parameters, Tensor) or not isinstance(parameters, nn.Module | Iterable):
            raise TypeError(f"SWALP takes a model or a list of parameters, got {type(parameters).__name__}")
        self.parameters = list(parameters.parameters() if isinstance(parameters, nn.Module) else parameters)
        if not self.parameters:
            raise ValueError("SWALP got no parameters to average")
        for p in self.parameters:
            if not isinstance(p, Tensor) or not p.is_floating_point():
                got = p.dtype if isinstance(p, Tensor) else f"a {type(p).__name__} in the list"
                raise TypeError(f"SWALP takes a model or a list of floating-point parameters, got {got}")
        self.start = check_int("start", start, 0, 2**62)
        self.period = check_int("period", period, 1, 2**62)
        if format is not None:
            check_format(format, torch.float64)
        self.format, self.rounding = format, as_rounding(rounding)
        self.steps = self.collected = 0
        self.means = [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in self.parameters]

    def step(self) -> bool:
        """Count one training step; whether the parameters entered the mean after it."""
        past = self.steps + 1 - self.start
        collects = past > 0 and (past - 1) % self.period == 0
        if collects:
            self.collect()
        self.steps += 1
        return collects

    @torch.no_grad()
    def collect(self) -> None:
        """Enter the parameters as they are now, whatever the schedule says."""
        for mean, p in zip(self.means, self.parameters, strict=True):
            if mean.shape != p.shape:
                raise ValueError(f"a parameter has shape {tuple(p.shape)} now, its mean {tuple(mean.shape)}")
            if mean.device != p.device:
                raise ValueError(
                    f"a parameter is on {p.device} now, its mean on {mean.device}; begin with the model where it trains"
                )
        self.collected += 1
        for mean, p in zip(self.means, self.parameters, strict=True):
            mean.add_((read(p).double() - mean) / self.collected)
            if self.format is not None:
                lp_round(mean, self.format, self.rounding, out=mean)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """The parameters are the mean inside; outside they have their bits back. Swapping draws no random numbers.

        An LPTensor rounds the mean to its format; ``convert`` a copy of the model to None for all of it.

        Raises:
            RuntimeError: nothing has been collected yet.
        """
        if not self.collected:
            raise RuntimeError(f"no parameters were collected in {self.steps} steps; the first come after {self.start}")
        with torch.no_grad():
            own = [read(p) for p in self.parameters]
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):  # looking on draws nothing
                for p, mean in zip(self.parameters, self.means, strict=True):
                    write(p, mean.to(p.dtype))
            yield
        finally:
            with torch.no_grad():
                for p, values in zip(self.parameters, own, strict=True):
                    restore(p, values)

    def state_dict(self) -> dict[str, Any]:
        """The means and the counts; the schedule is the constructor's."""
        return {"steps": self.steps, "collected": self.collected, "means": [m.clone() for m in self.means]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from what ``state_dict`` returned.

        Raises:
            TypeError, ValueError: a state without counts and means, or with means of other shapes; nothing is loaded.
        """
        check_state("SWALP", state_dict, "steps", "collected", "means")
        steps, collected = (check_int(key, state_dict[key], 0, 2**62) for key in ("steps", "collected"))
        given = state_dict["means"] if isinstance(state_dict["means"], list | tuple) else [state_dict["means"]]
        shapes = [tuple(m.shape) if isinstance(m, Tensor) else m for m in given]
        if shapes != [tuple(m.shape) for m in self.means]:
            raise ValueError(f"the parameters have shapes {[tuple(m.shape) for m in self.means]}, the means {shapes}")
        for m in given:
            if not m.is_floating_point() or m.layout is not torch.strided or m.is_meta:
                got = f"{m.dtype}, {m.layout} on {m.device}"
                raise TypeError(f"the means of a SWALP are dense tensors of floating-point numbers, got {got}")
        self.steps, self.collected = steps, collected
        for mean, saved in zip(self.means, given, strict=True):
            mean.copy_(saved)
