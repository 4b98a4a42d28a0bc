"""Outputs of layers that can be rounded where they lie, or need no rounding: less memory and time, the same bits."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import Tensor, nn

from lptensor import _compat, observe, ops
from lptensor.base import Format, ScalarFormat
from lptensor.quantizer import Quantize
from lptensor.rounding import Rounding

# Each element of what these return is one of the input, or zero.
_MOVING = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
_CHOOSING = (nn.ReLU, nn.Dropout, *_MOVING)
# What these return is a new tensor, which their backward pass does not read, unless they work in place.
_NEW = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding),
    *(nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Hardtanh, nn.ReLU6, nn.LeakyReLU, nn.PReLU),
    *(nn.ELU, nn.SELU, nn.CELU, nn.Softplus, nn.LogSigmoid),
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.Dropout, *_MOVING),
)
# Someone may put another function in the place of torch's, of which nothing is known.
_FORWARDS: dict[type[nn.Module], Any] = {cls: cls.forward for cls in (*_NEW, *_CHOOSING)}
# Of these the same holds for the gradients that they hand on.
_CHOOSING_BACK = (nn.ReLU, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.Dropout)


class _Last(threading.local):
    """The tensor that came to lie in a format last: what one layer hands to the next."""

    tensor: Any = None
    version = -1
    format: Format | None = None

    def note(self, x: Tensor, format: Format | None) -> None:
        if isinstance(format, ScalarFormat) and not x.is_inference():
            self.tensor, self.version, self.format = weakref.ref(x), _compat.version(x), format

    def lies_in(self, x: object, format: Format | None) -> bool:
        """Whether ``x`` is that tensor, not changed since, and zeros would lie in its format too."""
        return (
            isinstance(format, ScalarFormat)
            and self.tensor is not None
            and self.tensor() is x
            and isinstance(x, Tensor)
            and _compat.version(x) == self.version
            and self.format == format
            and format.grid.zero
        )


_output, _gradient = _Last(), _Last()


def round_output(module: nn.Module, args: tuple[Any, ...], output: Tensor, quantize: Quantize) -> Tensor:
    """The output of a layer as ``quantize`` rounds it, with its gradient: a copy only where there has to be one."""
    if observe.anyone or _compat.transforming() or _compat.traced():
        return quantize(output)  # whoever looks on sees every rounding
    simple = _is_torchs(module) and not quantize.clamping_grad_zero
    given = args[0] if args else None
    if simple and _chooses(module) and _output.lies_in(given, quantize.forward_number):
        _draw(output, quantize.forward_rounding)
        # Where nothing is dropped, the output is the input, but has a gradient of its own.
        same = output.view_as(output) if output is given else output
        rounded = _with_rounded_gradient(module, same, quantize)
    elif simple and isinstance(module, _NEW) and given is not None and output is not given:
        quantize.in_place(output)
        rounded = _with_rounded_gradient(module, output, quantize)
    else:
        rounded = quantize(output)
    _output.note(rounded, quantize.forward_number)
    return rounded


def _is_torchs(module: nn.Module) -> bool:
    """Whether this output is what a layer of torch's has returned."""
    forward = _FORWARDS.get(type(module))
    return (
        forward is not None
        and forward is type(module).forward
        and "forward" not in module.__dict__
        and _compat.runs_one_hook(module)
    )


def _chooses(module: nn.Module) -> bool:
    return isinstance(module, _CHOOSING) and not (isinstance(module, nn.Dropout) and module.training and module.p > 0)


def _draw(x: Tensor, rounding: Rounding) -> None:
    """Draw for a rounding that is left out, so that those that follow draw the words that they would have drawn."""
    if rounding.stochastic:
        ops.call_key(x, None)


def _with_rounded_gradient(module: nn.Module, output: Tensor, quantize: Quantize) -> Tensor:
    """The output, whose gradient is rounded before it goes on; hooks on the output see it before."""
    node, place, number = output.grad_fn, output.output_nr, quantize.backward_number

    def rounded(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        grad = grads[place]
        if grad is None:
            return grads
        if _gradient.lies_in(grad, number) and not quantize.backward_hooks and not observe.anyone:
            _draw(grad, quantize.backward_rounding)
            return grads
        grad = quantize.backward(grad)
        _gradient.note(grad, number)
        return *grads[:place], grad, *grads[place + 1 :]

    def handed_on(grads: tuple[Tensor | None, ...], came: tuple[Tensor | None, ...]) -> None:
        if grads[0] is not None and _gradient.lies_in(came[place], number):
            _gradient.note(grads[0], number)

    if node is not None and (number is not None or quantize.backward_hooks):
        node.register_prehook(rounded)
        if isinstance(module, _CHOOSING_BACK) and _chooses(module):
            node.register_hook(handed_on)
    return output
