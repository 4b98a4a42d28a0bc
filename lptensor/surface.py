"""What an LPTensor shows to Python: printing, numpy, copies, pickles, ``.data``."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.formats import Format
from lptensor.rounding import Rounding, show_rounding


class Surface:
    """Methods of LPTensor that read its values rather than compute with them."""

    _inner: Tensor
    _arithmetic: Arithmetic
    _gradient: bool

    @property
    def arithmetic(self) -> Arithmetic:
        """The formats and roundings that this tensor takes into every op."""
        return self._arithmetic

    @property
    def format(self) -> Format | None:
        """The format its values are in: the backward one for a gradient, else the forward one; None is fp32."""
        return self._arithmetic.sides[self._gradient][0]

    @property
    def rounding(self) -> Rounding:
        """How results of its side, forward or gradient, are rounded."""
        return self._arithmetic.sides[self._gradient][1]

    @_compat.run_by_python
    def __repr__(self, *, tensor_contents: Any = None) -> str:
        shown = repr(self._inner.detach())
        shown = shown.removeprefix("tensor(").removesuffix(")") if shown.startswith("tensor(") else shown
        shown = shown.replace("\n       ", "\n         ")  # "LPTensor(" is two wider than "tensor("
        parts = [shown, f"format={self.format!r}", f"rounding={show_rounding(self.rounding)}"]
        if not self._gradient and self._arithmetic.backward is not None:
            parts.append(f"backward={self._arithmetic.backward!r}")
        grad_fn = getattr(self, "grad_fn", None)
        if grad_fn is not None:
            parts.append(f"grad_fn=<{grad_fn.name()}>")
        elif getattr(self, "requires_grad", False):
            parts.append("requires_grad=True")
        return f"LPTensor({', '.join(parts)})"

    def __format__(self, spec: str) -> str:
        if self._inner.dim() == 0:
            return format(self._inner.item(), spec)
        return object.__format__(self, spec)

    def tolist(self) -> Any:
        return self._inner.tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """A copy of the values as a numpy array; writing to it changes nothing here."""
        return self._array(force).numpy().copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            raise ValueError("the array of an LPTensor is a copy, so that no write goes by its format")
        return np.array(self._array(False).numpy(), dtype=dtype)

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Tensor:
        """What a numpy function makes of the values is a plain tensor."""
        return torch.as_tensor(array)

    def _array(self, force: bool) -> Tensor:
        if force:
            return self._inner.detach().cpu()
        if self.requires_grad:  # type: ignore[attr-defined]
            raise RuntimeError("this LPTensor requires grad; say x.detach() first, or x.numpy(force=True)")
        return self._inner

    def __dlpack__(self, **how: Any) -> Any:
        """A copy of the values, as ``numpy()`` gives it."""
        return self._array(False).clone().__dlpack__(**how)

    def __dlpack_device__(self) -> Any:
        return self._inner.__dlpack_device__()

    def __setitem__(self, index: Any, value: Any) -> None:
        if isinstance(value, float) and self._arithmetic.compute is torch.float64:  # torch makes an fp32 tensor of it
            value = torch.tensor(value, dtype=torch.float64, device=self._inner.device)
        super().__setitem__(index, value)  # type: ignore[misc]

    def apply_(self, function: Callable[[float], float]) -> Any:
        """Write ``function`` of every value, rounded, in place; slow, CPU only, as with any tensor."""
        if self.requires_grad:  # type: ignore[attr-defined]
            raise RuntimeError("this LPTensor requires grad, and autograd cannot see this; say x.detach().apply_(...)")
        values = self._inner.clone().apply_(function)
        with torch.no_grad():
            return self.copy_(values)  # type: ignore[attr-defined]

    def new_tensor(
        self,
        data: Any,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        requires_grad: bool = False,
    ) -> Any:
        """``data`` on this tensor's device, rounded into its format; plain if ``dtype`` names another than fp32."""
        wide = dtype or self._arithmetic.compute  # in which data is exact where it is to round once
        made = torch.tensor(_plain(data), dtype=wide, device=device or self._inner.device)
        if dtype is None or made.dtype is torch.float32:
            with torch.no_grad():
                made = self.new_empty(made.shape, device=made.device).copy_(made)  # type: ignore[attr-defined]
        return made.requires_grad_(requires_grad)

    def new(self, *given: Any) -> Any:
        """An uninitialised tensor of a shape, or one of ``given`` data, in this tensor's format."""
        if len(given) == 1 and not isinstance(given[0], (int, torch.Size)):
            return self.new_tensor(given[0])
        shape = given[0] if given and isinstance(given[0], torch.Size) else given or (0,)
        return self.new_empty(shape)  # type: ignore[attr-defined]

    def data_ptr(self) -> int:
        return self._inner.data_ptr()

    def storage(self) -> torch.UntypedStorage:
        """The memory of the values: libraries that save models ask which tensors share it.

        ``untyped_storage()`` stays the wrapper's own, which torch's tracers go by.
        """
        return self._inner.untyped_storage()

    def share_memory_(self) -> Any:
        self._inner.share_memory_()
        return self

    def is_shared(self) -> bool:
        return bool(self._inner.is_shared())

    @property
    def data(self) -> Any:
        """The values without their history, written to behind autograd's back; setting them rounds into the format."""
        return type(self)(self._inner.detach(), self._arithmetic, self._gradient)  # type: ignore[call-arg]

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f".data of an LPTensor takes a tensor, got {type(value).__name__}")
        if value.dtype is not torch.float32:  # model.double() comes here
            raise TypeError(
                f".data of an LPTensor takes float32 values, got {value.dtype}; say .float(), or take the model out "
                "of low precision with lptensor.convert(model, None)"
            )
        if value.device != self._inner.device:
            raise ValueError(
                f".data of an LPTensor takes values on its device {self._inner.device}, got {value.device}; move the "
                "tensor with .to(), or its module"
            )
        with torch.no_grad():
            alike = value.shape == self._inner.shape
            fresh: Any = torch.empty_like(self) if alike else self.new_empty(value.shape)  # type: ignore[arg-type, attr-defined]
            fresh.copy_(value)
            self._inner = fresh._inner
            held: Any = self
            mine, new = ((x.shape, x.stride(), x.storage_offset()) for x in (held, fresh))
            if mine != new:
                _compat.take_form(held, self._inner)

    @_compat.run_by_python
    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) in memo:
            return memo[id(self)]
        if not self.is_leaf:  # type: ignore[attr-defined]
            raise RuntimeError("only leaves of the graph can be deep-copied; call .detach() first")
        new = type(self)(copy.deepcopy(self._inner, memo), self._arithmetic, self._gradient)  # type: ignore[call-arg]
        memo[id(self)] = new
        new.requires_grad_(self.requires_grad)  # type: ignore[attr-defined]
        own = {k: v for k, v in self._own().items() if k not in new.__dict__ or k == _compat.IS_PARAMETER}
        new.__dict__.update(copy.deepcopy(own, memo))
        if self.grad is not None and not isinstance(self, nn.Parameter):  # type: ignore[attr-defined]  # as torch's
            new.grad = copy.deepcopy(self.grad, memo)  # type: ignore[attr-defined]
        return new

    @_compat.run_by_python
    def __reduce_ex__(self, protocol: Any) -> Any:
        flags = self._gradient, self.requires_grad, self._own()  # type: ignore[attr-defined]
        return rebuild, (type(self), self._inner, self._arithmetic, *flags)

    def _own(self) -> dict[str, Any]:
        """Attributes that go with a copy; when the parameter was converted is of this process alone."""
        ours = ("_inner", "_arithmetic", "_gradient", "_converted_at")
        return {k: v for k, v in self.__dict__.items() if k not in ours}


@_compat.run_by_python
def rebuild(
    cls: Any, inner: Tensor, arithmetic: Arithmetic, gradient: bool, requires_grad: bool, own: dict[str, Any]
) -> Any:
    """An LPTensor out of a pickle, or of ``copy.copy``, whose shape may then change without that of the original."""
    _compat.disable_fused_attention()
    tensor = cls(inner.detach(), arithmetic, gradient)
    tensor.__dict__.update(own)
    tensor.requires_grad_(requires_grad)
    return tensor


def _plain(data: Any) -> Any:
    """A nest of numbers and tensors as numbers: torch reads the memory of the tensors in it, which we have not."""
    if isinstance(data, Tensor):
        return data.tolist()
    return [_plain(item) for item in data] if isinstance(data, (list, tuple)) else data
