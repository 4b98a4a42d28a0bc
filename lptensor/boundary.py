"""What a converted model does when its modules run, as hooks that copy and pickle with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.nests import Cast, begin_crossing, end_crossing
from lptensor.tensor import LPTensor, enter, is_low


def unhook(module: nn.Module) -> None:
    """Take the hooks of an earlier conversion off a module."""
    for key in (_compat.BOUNDARY, _compat.LAZY, _compat.LOADING):
        _compat.drop_hooks(module, key)


@dataclass(frozen=True)
class Boundary:
    """Casts where a module's rule differs from its parent's: None is plain fp32.

    Plain tensors are cast only if the side they come from is plain: in a low-precision one they are
    exact operands such as masks, and stay so. Lists and dicts stay the caller's own.
    """

    inside: Arithmetic | None
    outside: Arithmetic | None

    def attach(self, module: nn.Module) -> None:
        _compat.set_hooks(module, _compat.BOUNDARY, self.enter, self.leave, always=True)

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> Any:
        crossing = begin_crossing(module, _recast(self.inside, self.outside))
        return crossing.enter(args, kwargs, _recast(self.outside, self.inside))

    def leave(self, module: nn.Module, args: Any, output: Any) -> Any:
        return end_crossing(module).leave(output, _recast(self.inside, self.outside))


def _recast(source: Arithmetic | None, target: Arithmetic | None) -> Cast:
    def cast(x: Tensor) -> Tensor:
        if target is None:
            return x.dequantize() if is_low(x) else x
        if source is None or is_low(x):
            lp: Tensor = x.to_lp(target)  # type: ignore[attr-defined]
            return lp
        return x

    return cast


@dataclass(frozen=True)
class Materialize:
    """Converts lazy parameters as soon as they have a shape; then it goes away."""

    wanted: dict[str, Arithmetic]
    buffers: bool
    finish: Callable[[nn.Module, dict[str, Arithmetic], bool], None]

    def attach(self, module: nn.Module) -> None:
        _compat.set_hooks(module, _compat.LAZY, self.run)

    def run(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        _compat.drop_hooks(module, _compat.LAZY)
        self.finish(module, self.wanted, self.buffers)


def keep_formats_when_loading(module: nn.Module) -> None:
    """See to it that load_state_dict(assign=True) leaves a converted module in its formats."""
    _compat.set_load_hook(module, _compat.LOADING, _take_formats)


def _take_formats(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, metadata: dict[str, Any], *_: Any
) -> None:
    if not metadata.get("assign_to_params_buffers"):
        return  # values are copied into the tensors there are, which round them
    tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    for name, own in tensors:
        given = state_dict.get(prefix + name)
        if isinstance(own, LPTensor) and isinstance(given, Tensor) and given.is_floating_point():
            if getattr(given, "_arithmetic", None) != own._arithmetic:
                state_dict[prefix + name] = enter(getattr(given, "_inner", given), own._arithmetic)
