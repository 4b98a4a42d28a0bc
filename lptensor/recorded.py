"""Convolutions under ``torch.jit.trace``, which records not the operator that an LPTensor sees, but one within it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lptensor import _compat

aten = torch.ops.aten


def recorded(run: Callable[..., Any]) -> Callable[..., Any]:
    """``aten::convolution``, by way of ``aten::_convolution`` where a trace is being made."""

    def convolution(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if not _compat.jit_traces():
            return run(args, kwargs)
        cudnn = torch.backends.cudnn  # a trace says what was set, and no TF32
        with _compat.recording():
            return aten._convolution.default(*args, cudnn.benchmark, cudnn.deterministic, cudnn.enabled, False)

    return convolution


def unrecorded(run: Callable[..., Any]) -> Callable[..., Any]:
    """``aten::_convolution``, also of a trace that runs: a convolution like any other."""
    return lambda args, kwargs: aten.convolution.default(*args[:9])
