"""Keeps fp32 products on a GPU in fp32: TensorFloat-32, which cuDNN takes unless told otherwise, has 11 bits."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch

_CUDNN: Any = torch.backends.cudnn
_KINDS: tuple[Any, ...] = (torch.backends.cuda.matmul, _CUDNN.conv, _CUDNN.rnn)


class _FullFP32:
    """A context without TF32. The setting is the process's: the first in turns it off, the last out restores it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, str]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [(kind, kind.fp32_precision) for kind in _KINDS if kind.fp32_precision == "tf32"]
                for kind, _ in self._before:
                    kind.fp32_precision = "ieee"

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                for kind, precision in self._before:
                    kind.fp32_precision = precision


full_fp32 = _FullFP32()


class _WithoutTF32:
    """An operator that computes in full fp32; in all else it is the operator."""

    def __init__(self, func: Any) -> None:
        self._func = func

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with full_fp32:
            return self._func(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def __str__(self) -> str:
        return str(self._func)


def without_tf32(func: Any) -> Callable[..., Any]:
    """``func``, an operator, computing in fp32 on a GPU whatever the TF32 settings say.

    It is ``func`` itself where that changes nothing: for pointwise ops, and in a torch without CUDA.
    """
    pointwise = torch.Tag.pointwise in getattr(func, "tags", ())
    same: Callable[..., Any] = func
    return same if pointwise or not torch.backends.cuda.is_built() else _WithoutTF32(func)
