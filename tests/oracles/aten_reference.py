"""The contract "aten" on plain tensors: every aten kernel computes in fp32, and its result rounds once.

Written from the words of the contract, over plain tensors and by a dispatch mode; shares no code with
what it judges. It needs no list of ops that keep values, as rounding a value of the format is no
change: so it also finds an op that keeps what it should have rounded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

Round = Callable[[Tensor], Tensor]


def by_cast(dtype: torch.dtype) -> Round:
    """Rounding as PyTorch's own conversion to a narrow dtype does it."""

    def cast(x: Tensor) -> Tensor:
        return x.to(dtype).float()

    cast.dtype = dtype  # type: ignore[attr-defined]
    return cast


def run(func: Any, args: Any, kwargs: Any, dtype: torch.dtype | None) -> Any:
    """An op in fp32; nextafter, which asks for the values that there are, in the narrow dtype itself."""
    if dtype is None or func._schema.name.removesuffix("_") != "aten::nextafter":
        return func(*args, **kwargs)
    there = torch.nextafter(*(x.to(dtype) for x in args)).float()
    return func(args[0].copy_(there) if func._schema.name.endswith("_") else there, there, **kwargs)


# Results that an op saves for its own backward, by position: they are computed, and stay, in fp32.
SAVED = {
    "native_layer_norm": (1, 2),
    "native_group_norm": (1, 2),
    "native_batch_norm": (1, 2),
    "_native_batch_norm_legit": (1, 2),
    "_native_batch_norm_legit_no_training": (1, 2),
    "_batch_norm_with_update": (1, 2),
    "_batch_norm_no_update": (1, 2),
    "cudnn_batch_norm": (1, 2),
    "_fused_rms_norm": (1,),
    "_weight_norm_interface": (1,),
    "_scaled_dot_product_flash_attention_for_cpu": (1,),
    "_scaled_dot_product_efficient_attention": (1,),
    "log_sigmoid_forward": (1,),
    "nll_loss_forward": (1,),
    "nll_loss2d_forward": (1,),
    "_ctc_loss": (1,),
}

# Results that an op returns, and saves for its own backward too: there, the sixth operand, they are not rounded.
SAVED_TOO = {"_ctc_loss": 0}

# They write running statistics that their schemas do not mark.
UNMARKED_WRITES = {"native_batch_norm": (3, 4), "cudnn_batch_norm": (3, 4)}


class AtenReference(TorchDispatchMode):
    """Rounds at every op that touches a low-precision tensor.

    What is low precision goes by storage: a view of a low-precision tensor is one, the fresh fp32
    results of an op on one are, and a plain destination of a write stays plain.
    """

    def __init__(self, forward: Round, backward: Round | None = None) -> None:
        super().__init__()
        self.forward, self.backward = forward, backward or forward
        self._round = forward
        # What rounds writes to a storage. The storages stay alive, so that no address comes back.
        self._low: dict[int, tuple[Any, Round]] = {}
        self._exact: dict[int, Tensor] = {}  # by storage, what was rounded of the results that are saved too

    def low(self, x: Tensor) -> Tensor:
        """A copy of ``x`` on the forward format that counts as low precision."""
        assert self._round is self.forward
        fresh = self.forward(x.detach().clone(memory_format=torch.preserve_format))
        if fresh.stride() != x.stride():
            fresh = torch.empty_strided(x.shape, x.stride(), device=x.device).copy_(fresh)
        self._add(fresh)
        return fresh

    @contextmanager
    def gradients(self) -> Iterator[None]:
        """What runs in here is the backward pass."""
        before, self._round = self._round, self.backward
        yield
        self._round = before

    def is_low(self, x: Any) -> bool:
        return isinstance(x, Tensor) and x.layout is torch.strided and _key(x) in self._low

    def _add(self, x: Tensor) -> None:
        self._low[_key(x)] = x.untyped_storage(), self._round

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.layout is torch.strided]
        known = {_key(x) for x in given}
        if not any(key in self._low for key in known):
            return func(*args, **kwargs)
        schema, name = func._schema, func._schema.name.partition("::")[2]
        if name.removesuffix("_backward") in SAVED_TOO and name.endswith("_backward"):
            args = (*args[:5], self._exact[_key(args[5])], *args[6:])
        out = run(func, args, kwargs, getattr(self.forward, "dtype", None))
        if name in SAVED_TOO:
            result = out[SAVED_TOO[name]]
            self._exact[_key(result)] = result.clone()
        if torch.Tag.inplace_view in func.tags or name in ("resize_", "resize_as_", "set_"):
            return out
        unmarked = UNMARKED_WRITES.get(name, ())
        for i, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write or i in unmarked:
                written = args[i] if i < len(args) else kwargs.get(argument.name)
                for x in written if isinstance(written, (list, tuple)) else (written,):
                    if self.is_low(x) and x.dtype is torch.float32:
                        x.copy_(self._low[_key(x)][1](x))  # the destination's format
        results = out if isinstance(out, (list, tuple)) else (out,)
        for i, result in enumerate(results):
            if i not in SAVED.get(name, ()):
                for x in tree_leaves(result):
                    fresh = isinstance(x, Tensor) and x.layout is torch.strided and _key(x) not in known
                    if fresh and x.dtype is torch.float32:
                        x.copy_(self._round(x))
                        self._add(x)
        return out


def _key(x: Tensor) -> int:
    address: int = x.untyped_storage()._cdata
    return address
