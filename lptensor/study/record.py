"""Records what rounding does to a model while it runs: counts for each role and module, no tensors."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lptensor import observe
from lptensor.base import check_int
from lptensor.formats import Format
from lptensor.ops import check_format
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.study.log import Log
from lptensor.study.places import Places, innermost, named_modules, named_parameters, tensors_of, values_of
from lptensor.tensor import LPTensor


class record:  # reads as a function
    """A context that counts what every rounding does to the values of a model and its optimizer.

    Without formats it watches the roundings that happen: of LPTensors, lowered layers, quantizers and
    OptimLP. With formats it asks what rounding would do to a plain model, and changes nothing: to the
    outputs of its leaf modules and its weights (``forward``), to their gradients (``backward``; as
    ``forward`` by default). It holds for this thread and its backward passes; compiled code, and what a
    checkpoint computes a second time, count as it runs. Memory does not grow with the steps: a few
    kilobytes for each role, path and format; for the time of a step one copy of the weights.

    Args:
        model: any module, plain, lowered or converted.
        optimizer: the one that steps, to see weights, states and lost updates.
        forward, backward, rounding: formats to ask about, and how they would round.
        every: record one step in so many; of an optimizer, without one of calls of the model.

    Raises:
        TypeError: no module, no optimizer, no format; when it begins, a ScriptModule in the model.
        ValueError: every below 1; when it begins, a lazy parameter.
        RuntimeError: entered within itself.

    >>> from lptensor import E4M3
    >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
    >>> with record(model, forward=E4M3) as log:
    ...     _ = model(torch.tensor([[1e-6, -1e-6]]))
    >>> [(row["role"], row["path"], row["underflow"]) for row in log.rows()]
    [('weight', '0.weight', 0.0), ('activation', '0', 1.0)]
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | None = None,
        forward: Format | None = None,
        backward: Format | None = None,
        rounding: Rounding | Mode | str = "nearest",
        every: int = 1,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"record takes a torch.nn.Module, got {type(model).__name__}")
        if optimizer is not None and not isinstance(optimizer, Optimizer):
            raise TypeError(f"optimizer must be a torch.optim.Optimizer or None, got {type(optimizer).__name__}")
        every = check_int("every", every, 1, 2**31)
        for format in (forward, backward):
            if format is not None:
                check_format(format)
        self._made = model, optimizer, forward, backward or forward, as_rounding(rounding), every
        self._open: ExitStack | None = None

    def __enter__(self) -> Log:
        if self._open is not None:
            raise RuntimeError("this recording is entered already; make another record(...) for a context within")
        model, optimizer, forward, backward, rounding, every = self._made
        places = Places(model, optimizer)
        recorder = _Recorder(places, every)
        with ExitStack() as stack:
            if forward is None and backward is None:
                stack.enter_context(places)
                stack.enter_context(observe.observing(recorder))
            else:
                _Asked(recorder, forward, backward, rounding).attach(stack)
            recorder.attach(stack)
            self._open = stack.pop_all()
        return recorder.log

    def __exit__(self, *_: Any) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None


class _Recorder(observe.Observer):
    """Counts roundings under their role and path."""

    def __init__(self, places: Places, every: int) -> None:
        self.places, self.every = places, every
        self.log = Log()
        self.active = True
        self.seen = 0 if places.optimizer is not None else -1  # a model is counted when it begins
        self.start: dict[str, Tensor] = {}  # weights before the step that runs, by path

    def round(self, x: Tensor, y: Tensor, format: Any, rounding: Any, generator: Any) -> bool:
        role, path = self.places.of(x, y)
        return not self._moves(role, path) and self.log.census(role, path, format).round(x, y, rounding, generator)

    def rounded(self, before: Tensor, after: Tensor, format: Any, rounding: Any) -> None:
        role, path = self.places.of(before, after)
        self.log.census(role, path, format).add(before, after)
        if self._moves(role, path):
            start = self.start[path]
            self.log.updates(role, path, format).add(start.view_as(before), before, after)
            start.copy_(after.view_as(start))

    def _moves(self, role: str, path: str) -> bool:
        """Whether the rounding is of what the step writes to a weight."""
        return role == ("accumulator" if self.places.accumulates else "weight") and path in self.start

    def attach(self, stack: ExitStack) -> None:
        """Follow the steps until ``stack`` closes."""
        optimizer = self.places.optimizer
        if optimizer is None:
            stack.callback(self.places.model.register_forward_pre_hook(self._next).remove)
        else:
            inner: Any = innermost(optimizer)
            stack.callback(optimizer.register_step_post_hook(self._stepped).remove)
            stack.callback(inner.register_step_pre_hook(self._begins).remove)

    def _begins(self, *_: Any) -> None:
        if self.active:
            named = named_parameters(self.places.model)
            # also those without a gradient yet: the step may call a closure
            self.start = {name: values_of(p).clone() for name, p in named if p.requires_grad}

    def _stepped(self, *_: Any) -> None:
        self.start = {}
        self.log.steps += self.active
        self._count()

    def _next(self, *_: Any) -> None:
        self._count()
        self.log.steps += self.active

    def _count(self) -> None:
        self.seen += 1
        self.active = self.seen % self.every == 0


class _Asked:
    """Counts what would happen to a plain model's values."""

    def __init__(self, recorder: _Recorder, forward: Any, backward: Any, rounding: Rounding) -> None:
        self.recorder, self.rounding = recorder, rounding
        self.forward, self.backward = forward, backward
        # Draws of its own: the model's (dropout) are those that it would make without a recording.
        self.generator = torch.Generator().manual_seed(torch.initial_seed())

    def attach(self, stack: ExitStack) -> None:
        """Ask until ``stack`` closes."""
        model, optimizer = self.recorder.places.model, self.recorder.places.optimizer
        eagerly: Any = torch.compiler.disable  # a compiled model breaks its graph at hooks
        output, of_output, gradient = eagerly(self._output), eagerly(self._of_output), eagerly(self._gradient)
        for path, module in named_modules(model):
            if not any(True for _ in module.children()):
                stack.callback(module.register_forward_hook(partial(output, path, partial(of_output, path))).remove)
        for name, p in named_parameters(model):
            if p.requires_grad:
                stack.callback(p.register_post_accumulate_grad_hook(partial(gradient, name)).remove)
        if optimizer is None:
            self._weights()
        else:
            stack.callback(optimizer.register_step_post_hook(self._weights).remove)

    def _ask(self, role: str, path: str, x: Tensor, format: Format | None) -> None:
        if format is not None and self.recorder.active and _countable(x):
            self.recorder.log.census(role, path, format).ask(x, self.rounding, self.generator)

    def _output(self, path: str, of_output: Any, module: nn.Module, args: Any, output: Any) -> None:
        for part in tensors_of(output):
            if not isinstance(part, LPTensor):
                self._ask("activation", path, part.detach(), self.forward)
                if part.requires_grad and self.backward is not None and self.recorder.active:
                    part.register_hook(of_output)

    def _of_output(self, path: str, grad: Tensor) -> None:
        self._ask("gradient", path, values_of(grad), self.backward)

    def _gradient(self, name: str, p: Tensor) -> None:
        if p.grad is not None:
            self._ask("gradient", name, values_of(p.grad), self.backward)

    def _weights(self, *_: Any) -> None:
        """Weights and states as the step left them, and whether a narrow weight would have moved."""
        if not self.recorder.active:
            return
        for name, p in named_parameters(self.recorder.places.model):
            now = values_of(p)
            self._ask("weight", name, now, self.forward)
            start = self.recorder.start.get(name)
            if start is not None and self.forward is not None and _countable(now):
                updates = self.recorder.log.updates("weight", name, self.forward)
                updates.ask(start, now, self.forward, self.rounding, self.generator)
        state = getattr(self.recorder.places.optimizer, "state", {})
        for p, entries in state.items():
            for value in entries.values():
                if isinstance(value, Tensor) and value.dim():
                    self._ask("state", self.recorder.places.names.get(id(p), ""), values_of(value), self.forward)


def _countable(x: Tensor) -> bool:
    return x.dtype in (torch.float32, torch.float64) and x.layout is torch.strided and not x.is_meta
