"""The compiled sums of products on a CUDA device, called through ctypes."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor

from lptensor import _cuda, _native_gemm
from lptensor.accumulator import Accumulator

DEEPEST = 2  # accumulators in one another, csrc/gemm_element.h


def fits(acc: Accumulator) -> bool:
    """Whether the kernels nest as deeply as the accumulator; ``accumulate.gemm`` does at any depth."""
    depth = 1
    while acc.nested:
        acc, depth = acc.inside, depth + 1
    return depth <= DEEPEST


def gemm(a: Tensor, b: Tensor, y: Tensor, acc: Accumulator, c: Tensor | None, key: _cuda.Key, running: bool) -> None:
    """``_native_gemm.gemm`` for tensors of one CUDA device, on the stream that is current there; nothing waits."""
    name = f"lpt_cuda_gemm_f{torch.finfo(a.dtype).bits}"
    drawn = key if isinstance(key, Tensor) else None
    product = _native_gemm.product_struct(a, b, y, c, None if isinstance(key, Tensor) else key, running)
    form: Any = _native_gemm.accumulator_struct(acc)
    with _cuda.guard(a.device):
        code = getattr(_cuda.library(), name)(
            ctypes.byref(product),
            ctypes.byref(form),
            None if drawn is None else drawn.data_ptr(),
            *_cuda.where(a),
        )
    _cuda.check(code, name, a.device)
