"""What AOTAutograd asks of an LPTensor: what it is made of, what its gradients are, what names it in a cache."""

from __future__ import annotations

import hashlib
from typing import Any

from torch import Tensor

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.text import code, write
from lptensor.watch import round_


class Traceable:
    """Methods of LPTensor that torch.compile and torch.export look for."""

    _inner: Tensor
    _arithmetic: Arithmetic
    _gradient: bool

    def __tensor_flatten__(self) -> tuple[list[str], tuple[Arithmetic, bool]]:
        return ["_inner"], (self._arithmetic, self._gradient)

    def __coerce_tangent_metadata__(self) -> Any:
        """What the gradient of an output will be: it is guessed when the backward pass is traced with it."""
        return type(self)(self._inner, self._arithmetic, True)  # type: ignore[call-arg]

    @_compat.run_by_python
    def __coerce_same_metadata_as_tangent__(self, grid: Any, expected: type | None = None) -> Any:
        """This gradient as the one that the backward pass was traced for; None where it cannot be."""
        if expected is Tensor:
            return self._inner
        return _as_gradient(type(self), self._inner, grid) if expected in (None, type(self)) else None

    def _stable_hash_for_caching(self) -> str:
        """What a graph that was traced with this tensor depends on: the same in any process, for the same code."""
        inner = self._inner
        shape = [str(n) for n in (*inner.shape, *inner.stride())]
        about = write((self._arithmetic, self._gradient)), shape, inner.dtype, inner.device, code()
        flags = self.requires_grad, inner.requires_grad, inner.is_conj(), inner.is_neg(), inner.layout  # type: ignore[attr-defined]
        return hashlib.blake2b(repr((about, flags)).encode(), digest_size=16).hexdigest()


def _as_gradient(cls: Any, inner: Tensor, grid: tuple[Arithmetic, bool]) -> Any:
    return cls(round_(inner.detach().clone(), *grid), *grid)


def accept_plain_gradients(cls: Any) -> None:
    """Let a compiled function whose result is an LPTensor take a plain gradient too.

    It is rounded as the gradient of an LPTensor. There are such gradients behind one's back: the zeros
    that stand for those of results that nobody uses.
    """

    @_compat.run_by_python
    def coerce(self: Tensor, grid: Any, expected: type | None = None) -> Any:
        return _as_gradient(cls, self, grid) if expected is cls else None

    _compat.set_plain_tangent(coerce)
