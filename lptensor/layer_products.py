"""A layer of a plain model whose products round their operands or add up in an accumulator: plain in, plain out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.nests import Crossing
from lptensor.tensor import LPTensor

_BEFORE = "_lptensor_before"  # where a running layer keeps what was changed on it


WAY_OUT = (
    "give its Arithmetic the operands and the accumulator: lptensor.convert(model, Arithmetic(format, operands=..., "
    "accumulator=...)), or leave the layer plain: lptensor.convert(model, {path: None, ...})"
)


@dataclass(frozen=True)
class LayerProducts:
    """Hooks that let a layer compute with LPTensors of an arithmetic without formats of its own.

    Parameters stay what they are: while the layer runs, its attributes show LPTensors made of them,
    whose gradients go back to the parameters as plain tensors.
    """

    arithmetic: Arithmetic

    def attach(self, module: nn.Module) -> None:
        _compat.set_hooks(module, _compat.PRODUCTS, self.begin, self.end, always=True)
        self.stay_innermost(module)

    @staticmethod
    def stay_innermost(module: nn.Module) -> None:
        """Run within a boundary that was attached since: it hands in what is plain, and takes what is plain again."""
        _compat.run_innermost(module, _compat.PRODUCTS)

    @staticmethod
    def attached(module: nn.Module) -> bool:
        """Whether a module has such hooks."""
        return _compat.PRODUCTS in module._forward_hooks

    @staticmethod
    def detach(module: nn.Module) -> None:
        _compat.drop_hooks(module, _compat.PRODUCTS)

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        crossing = Crossing()
        changed: list[tuple[dict[str, Any], str, Any]] = []
        fused = torch.backends.mkldnn.set_flags(False) if isinstance(module, nn.RNNBase) else None
        # Before anything changes: what comes next may raise, and end() undoes what was done by then.
        module.__dict__.setdefault(_BEFORE, []).append((changed, fused, crossing))
        args, named = crossing.enter(args, kwargs, self._enter)
        for part in module.modules():
            own = {**part._parameters, **{k: v for k, v in vars(part).items() if type(v) is Tensor and v.requires_grad}}
            for name, value in own.items():
                if value is not None and value.is_floating_point():
                    changed.append((part.__dict__, name, part.__dict__.get(name)))
                    part.__dict__[name] = self._enter(value)
            if isinstance(part, nn.RNNBase):
                changed.append((part.__dict__, "_flat_weights", part._flat_weights))
                part.__dict__["_flat_weights"] = [getattr(part, name) for name in part._flat_weights_names]
        return args, named

    def end(self, module: nn.Module, args: Any, output: Any) -> Any:
        stack = module.__dict__.get(_BEFORE)
        if not stack:  # another hook raised before begin()
            return None
        changed, fused, crossing = stack.pop()
        if not stack:
            del module.__dict__[_BEFORE]
        for attributes, name, value in reversed(changed):
            if value is None:
                attributes.pop(name, None)
            else:
                attributes[name] = value
        if fused is not None:
            torch.backends.mkldnn.set_flags(*fused)
        return crossing.leave(output, lambda x: x.dequantize() if type(x) is LPTensor else x)

    def _enter(self, x: Tensor) -> Tensor:
        check_plain(x)
        lp: Tensor = x.to_lp(self.arithmetic)  # type: ignore[attr-defined]
        return lp


def check_plain(x: Tensor) -> None:
    """Refuse what is no plain fp32 tensor."""
    if type(x) is LPTensor:
        raise TypeError(f"lower(operands=, accumulator=) is for plain models, got an LPTensor; {WAY_OUT}")
    if x.dtype is not torch.float32:
        raise TypeError(f"lower(operands=, accumulator=) is for fp32 models, got {x.dtype}; convert it with .float()")
