"""Keeps fp32 products in fp32, where torch may be told to take fewer bits.

TensorFloat-32, which cuDNN takes unless told otherwise, has 11 bits; BF16, which oneDNN takes on CPUs that have units
for it after ``torch.set_float32_matmul_precision("medium")``, has 8.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch

from lptensor import _compat
from lptensor.process_wide import ProcessWide

Setting = tuple[str, str]  # a backend and a kind of product


@functools.cache
def settings() -> tuple[Setting, ...]:
    """The settings of products that may take fewer bits, of this torch on this machine."""
    units = any("bf16" in unit and there for unit, there in torch.cpu.get_capabilities().items())
    backends = (["cuda"] if torch.backends.cuda.is_built() else []) + (["mkldnn"] if units else [])
    return tuple((backend, kind) for backend in backends for kind in ("matmul", "conv", "rnn"))


_FEWER = "tf32", "bf16"
_GENERAL = "generic", "all"  # what backends follow that have no setting of their own, as kinds follow their backend


def _ask_for_all_bits() -> list[tuple[Setting, str]]:
    """Turn TF32 and BF16 off, and say what was set."""
    for setting in settings():  # a loop, as this comes before every product
        if _compat.fp32_precision(*setting) in _FEWER:
            return _turn_off()
    return []


def _turn_off() -> list[tuple[Setting, str]]:
    """The same from above, so that what follows another setting does so afterwards too."""
    before = [(_GENERAL, _compat.fp32_precision(*_GENERAL))]
    _compat.set_fp32_precision(*_GENERAL, "ieee")
    backends = dict.fromkeys((backend, "all") for backend, _ in settings())
    for setting in (*backends, *settings()):
        precision = _compat.fp32_precision(*setting)
        if precision in _FEWER:
            before.append((setting, precision))
            _compat.set_fp32_precision(*setting, "ieee")
    return before


def _ask_for_fewer(before: list[tuple[Setting, str]]) -> None:
    for setting, precision in reversed(before):
        _compat.set_fp32_precision(*setting, precision)


full_fp32 = ProcessWide(_ask_for_all_bits, _ask_for_fewer)  # a context without TF32 and BF16


class _InFullFP32:
    """An operator that computes in full fp32; in all else it is the operator."""

    def __init__(self, func: Any) -> None:
        self._func, self._call = func, _compat.direct_call(func)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with full_fp32:
            return self._call(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._func, name)

    def __str__(self) -> str:
        return str(self._func)


def in_full_fp32(func: Any) -> Callable[..., Any]:
    """``func``, an operator, computing in fp32 whatever the settings for TF32 and BF16 say.

    It is ``func`` itself where that changes nothing: for ops that form no products, which are the pointwise ones and
    reductions, and where no products have fewer bits.
    """
    products = not {torch.Tag.pointwise, getattr(torch.Tag, "reduction", None)} & set(getattr(func, "tags", ()))
    same: Callable[..., Any] = func
    return _InFullFP32(func) if products and settings() else same
