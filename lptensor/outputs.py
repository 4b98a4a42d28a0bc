"""Outputs of layers that can be rounded where they lie, or need no rounding: less memory and time, the same bits."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from torch import Tensor, nn

from lptensor import _compat, observe, ops
from lptensor.base import ScalarFormat
from lptensor.quantizer import Quantize

# What these return is a new tensor, which their backward pass does not read.
_NEW = (
    *(nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm, nn.Embedding),
)
# Each element of what these return is one of the input, or zero.
_CHOOSING = (
    *(nn.ReLU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
)
# Someone may put another function in the place of torch's, of which nothing is known.
_FORWARDS: dict[type[nn.Module], Any] = {cls: cls.forward for cls in (*_NEW, *_CHOOSING, nn.Dropout)}


class _Last(threading.local):
    """What was rounded last, its version then, and to which format: of one layer, and the input of the next."""

    output: Any = None
    version = -1
    format: ScalarFormat | None = None


_last = _Last()


def round_output(module: nn.Module, args: tuple[Any, ...], output: Tensor, quantize: Quantize) -> Tensor:
    """The output of a layer as ``quantize`` rounds it, with its gradient: a copy only where there has to be one."""
    if observe.anyone or _compat.transforming() or _compat.traced():
        return quantize(output)  # whoever looks on sees every rounding
    simple = _is_torchs(module) and not quantize.clamping_grad_zero
    if simple and isinstance(module, _NEW):
        quantize.in_place(output)
        rounded = _with_rounded_gradient(output, quantize)
    elif simple and _chooses(module) and _lies_in_format(args, quantize):
        if quantize.forward_rounding.stochastic:
            ops.call_key(output, None)  # what is rounded later draws the words that it would have drawn
        # Where nothing is dropped, the output is the input, but has a gradient of its own.
        rounded = _with_rounded_gradient(output.view_as(output) if output is args[0] else output, quantize)
    else:
        rounded = quantize(output)
    _note(rounded, quantize)
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
    return not isinstance(module, nn.Dropout) or not module.training or module.p == 0


def _lies_in_format(args: tuple[Any, ...], quantize: Quantize) -> bool:
    """Whether the only argument of a layer has been rounded to this format, which has a zero, and not changed since."""
    format = quantize.forward_number
    return (
        len(args) == 1
        and _last.output is not None
        and _last.output() is args[0]
        and args[0]._version == _last.version
        and _last.format == format
        and isinstance(format, ScalarFormat)
        and format.grid.zero
    )


def _note(output: Tensor, quantize: Quantize) -> None:
    if isinstance(quantize.forward_number, ScalarFormat) and not output.is_inference():
        _last.output, _last.version, _last.format = weakref.ref(output), output._version, quantize.forward_number


def _with_rounded_gradient(output: Tensor, quantize: Quantize) -> Tensor:
    """The output, whose gradient is rounded before it goes on; hooks on the output see it before."""
    node, place = output.grad_fn, output.output_nr

    def rounded(grads: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
        grad = grads[place]
        return grads if grad is None else (*grads[:place], quantize.backward(grad), *grads[place + 1 :])

    if node is not None and (quantize.backward_number is not None or quantize.backward_hooks):
        node.register_prehook(rounded)
    return output
