"""Layers whose input, weight and incoming gradient are each rounded by a module of the layer's own."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.layer_types import LayerTypes
from lptensor.of_values import made_by
from lptensor.ops import StraightThrough
from lptensor.weighted_layers import (
    LAYERS,
    called_layers,
    check_dtypes,
    check_made,
    check_weights,
    has_weight,
    kind_of,
    parametrize_weights,
    with_first,
)

Model = TypeVar("Model", bound=nn.Module)
Make: TypeAlias = "Callable[[], Callable[[Tensor], Tensor]]"

INPUT, GRADIENT = "rounded_input", "rounded_gradient"  # under these names a layer holds what rounds


def round_layers(
    model: Model,
    input: Make | None = None,
    weight: Make | None = None,
    gradient: Make | None = None,
    exempt: Sequence[str] = (),
    layer_types: LayerTypes = LAYERS,
) -> Model:
    """Give each chosen layer something that rounds its input, its weight, and the gradient of its output.

    These are the operands of the layer's three products, each tensor rounded once, as it is right for
    scales of whole tensors (for blocks along the contraction axis there is ``Gemm``). Every argument is
    called once per layer and returns a function of a tensor, or a module: a scaling with a state, whose
    buffers the state_dict then holds. A function may work in place, as it gets a copy, and returns a tensor of
    the same shape and dtype. Its derivative is taken to be one, of gradients too; a module is differentiated as it
    stands.

    The model is changed in place and returned. ``layer.weight`` is the rounded weight, made anew
    whenever it is read; its exact one, ``layer.parametrizations.weight.original``, is what
    ``parameters()`` and the state_dict hold: make the optimizer afterwards. The projections of
    ``nn.MultiheadAttention`` are no layers that are called, and left alone. ``finish`` makes the rounded weights
    parameters.

    Args:
        model: any module, itself a chosen layer or with such inside.
        input, weight, gradient: what makes the function or module that rounds this operand, called without
            arguments; None leaves it alone. A layer without parameters, such as nn.ReLU, has no weight to round.
        exempt: path patterns of what to leave alone, as ``exempt`` of ``lower``.
        layer_types: which to change, as ``layer_type`` of ``lower`` names them; by default linear and convolutional
            layers, but transposed ones.

    Raises:
        TypeError: an argument that cannot be called; in a call of the model, a function that returns something else, or
            a ``gradient`` of a layer that does not return one tensor.
        ValueError: no such layer, a pattern in ``exempt`` that matches none, or layers that are changed already or
            lazy; a weight that is not one tensor of numbers, as of nn.LSTM, or none in all layers. Whatever is raised
            here, by the arguments too, the model is unchanged.

    >>> from lptensor import E4M3, DelayedScaling
    >>> net = round_layers(nn.Sequential(nn.Linear(2, 1)), input=lambda: DelayedScaling(E4M3))
    >>> [name for name in net.state_dict() if "input" in name]
    ['0.rounded_input.amax_history', '0.rounded_input.scale']
    """
    for name, make in (("input", input), ("weight", weight), ("gradient", gradient)):
        if make is not None and (not callable(make) or isinstance(make, nn.Module) or not _takes_nothing(make)):
            raise TypeError(f"{name} makes what rounds, once for each layer: say {name}=lambda: ..., got {make!r}")
    chosen = [*called_layers(model, exempt, layer_types).values()]
    if weight is not None and all(map(_has_none, chosen)):
        raise ValueError(f"none of the layers has a weight to round: {', '.join(sorted({*map(kind_of, chosen)}))}")
    round_each(chosen, input, weight, gradient)
    return model


def _takes_nothing(make: Callable[..., Any]) -> bool:
    """Whether a function can be called without arguments, as far as Python knows its signature."""
    try:
        signature = inspect.signature(make)
    except ValueError:  # of some that are built in
        return True
    return all(
        parameter.default is not parameter.empty or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in signature.parameters.values()
    )


def round_each(
    chosen: Sequence[nn.Module], input: Make | None = None, weight: Make | None = None, gradient: Make | None = None
) -> None:
    """``round_layers`` of these layers themselves, whatever their paths."""
    weighted = [weight is not None and not _has_none(layer) for layer in chosen]
    check_unrounded(chosen, [layer for layer, wanted in zip(chosen, weighted, strict=True) if wanted])
    made = [
        [None if make is None else make() for make in (weight if wanted else None, input, gradient)]
        for wanted in weighted
    ]
    for name, *each in zip(("weight", "input", "gradient"), *made, strict=True):
        for what in each:
            if what is not None and not callable(what):
                raise TypeError(f"what {name}= makes rounds a tensor, such as quantizer(E4M3), got {what!r}")
    rounders = [(layer, _as_module(of)) for layer, (of, *_) in zip(chosen, made, strict=True) if of is not None]
    parametrize_weights(rounders, unsafe=True)  # not tried out beforehand, which a scaling with a state would remember
    for module, (_, of_input, of_gradient) in zip(chosen, made, strict=True):
        if of_input is not None:
            module.add_module(INPUT, _as_module(of_input))
        if of_gradient is not None:
            module.add_module(GRADIENT, _Function(of_gradient))
        before = _round_input if of_input is not None else None
        after = _round_gradient if of_gradient is not None else None
        _compat.set_hooks(module, _compat.ROUND_LAYERS, before=before, after=after)


def _has_none(layer: Any) -> bool:
    """Whether there is no weight that a layer could have under another name, as an LSTM has."""
    return not has_weight(layer) and next(layer.parameters(), None) is None


def check_unrounded(layers: Sequence[nn.Module], weighted: Sequence[nn.Module]) -> None:
    """Refuse layers that ``round_layers`` has changed, and among some of them those whose weight it cannot change."""
    for layer in layers:
        if hasattr(layer, INPUT) or hasattr(layer, GRADIENT):
            raise ValueError(f"a {kind_of(layer)} is rounded already; begin with a fresh model")
    check_made(layers)
    check_weights(weighted)
    check_dtypes([layer.weight for layer in weighted])


def _round_input(module: nn.Module, args: Any, kwargs: Any) -> Any:
    return with_first(module.get_submodule(INPUT), args, kwargs)


def _round_gradient(module: nn.Module, args: Any, output: Any) -> Any:
    if not isinstance(output, Tensor):
        raise TypeError(
            f"round_layers(gradient=) rounds the gradient of one tensor, which a {kind_of(module)} does not return "
            f"but a {type(output).__name__}; leave it out of layer_types, lower(model, backward_number=...) rounds it"
        )
    return _apply(_Backward, output, module.get_submodule(GRADIENT))


@_compat.break_graph
def _apply(function: type[torch.autograd.Function], x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Tensor:
    return function.apply(x, quantize)  # type: ignore[no-any-return]


def _as_module(quantize: Callable[[Tensor], Tensor]) -> nn.Module:
    return quantize if isinstance(quantize, nn.Module) else _Function(quantize)


class _Function(nn.Module):
    """A function as a module, straight through; a module that goes into it whole is differentiated as it stands."""

    def __init__(self, quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.quantize = quantize

    def forward(self, x: Tensor) -> Tensor:
        return self.quantize(x) if isinstance(self.quantize, nn.Module) else _apply(_Forward, x, self.quantize)

    def extra_repr(self) -> str:
        return "" if isinstance(self.quantize, nn.Module) else repr(self.quantize)


class _Forward(StraightThrough):
    """Rounds going forward; the gradient passes."""

    generate_vmap_rule = True

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, quantize: Callable[[Tensor], Tensor]) -> Tensor:
        return made_by(quantize, x.detach().clone(), quantize)  # a copy: a function may work in place


class _Backward(torch.autograd.Function):
    """Passes going forward; the gradient is rounded."""

    generate_vmap_rule = True

    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, quantize: nn.Module) -> Tensor:
        return x.clone()  # no view, which torch forbids a layer that works in place to change

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.quantize = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return ctx.quantize(grad), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Any) -> Tensor:
        return tangent.clone()
