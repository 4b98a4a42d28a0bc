"""Whether the op that runs computes forward values or gradients."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from lptensor import _compat

_local = threading.local()


def _step_begins(optimizer: Any, *_: Any) -> None:
    if torch.compiler.is_dynamo_compiling():  # a step in a graph is traced outside of any backward pass
        return
    _steps()[id(optimizer)] = _compat.graph_task()


def _step_ends(optimizer: Any, *_: Any) -> None:
    if torch.compiler.is_dynamo_compiling():
        return
    _steps().pop(id(optimizer), None)


def _steps() -> dict[int, int]:
    """The optimizers that step on this thread, one within another perhaps, and the backward pass of each."""
    steps: dict[int, int] = _local.__dict__.setdefault("steps", {})
    return steps


# An optimizer computes forward values, also when it steps in a hook of the backward pass, whose number is kept.
register_optimizer_step_pre_hook(_step_begins)
register_optimizer_step_post_hook(_step_ends)


def in_step(task: int) -> bool:
    """Whether an optimizer steps on this thread, within the backward pass ``task`` or outside (-1)."""
    steps = _steps()
    if task in steps.values():
        for optimizer in steps.keys() - _compat.stepping(steps):
            del steps[optimizer]  # its step has raised, and no hook has said that it ended
    return task in steps.values()


def in_backward() -> bool:
    """Whether the running op computes a gradient.

    Within a backward pass the recomputation of a checkpoint is forward work. Grad mode does not tell: it is on as well
    where the gradient shall have a graph of its own (create_graph=True, torch.func.grad), and may be off in a part of
    what is recomputed.
    """
    task = _compat.graph_task()
    return task != -1 and not in_step(task) and not _compat.recomputing()


def recomputed() -> bool:
    """Whether a checkpoint computes forward values anew, within the backward pass."""
    return _compat.graph_task() != -1 and _compat.recomputing()


def side_of_copy(gradient: bool) -> bool:
    """The side of a copy: what autograd copies becomes a gradient, what an optimizer copies does not.

    Users' code within a backward pass, of a hook or a function, copies forward values as what they are; so do
    those come back that were saved for that pass on another device.
    """
    if gradient:
        return not in_step(_compat.graph_task())
    return in_backward() and _compat.called_by_torch()
