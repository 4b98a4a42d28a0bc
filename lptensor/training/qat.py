"""Quantization-aware fine-tuning: layers compute with rounded weights, and the optimizer moves exact ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils import parametrize

from lptensor.base import Format, wrong_format
from lptensor.layer_types import LayerTypes, classes_of, names_of
from lptensor.ops import check_roundable
from lptensor.quantizer import Quantizer
from lptensor.rounding import Mode, Rounding
from lptensor.weighted_layers import (
    LAYERS,
    check_weights,
    has_weight,
    is_weight_rounded,
    layers_of,
    parametrize_weights,
    unparametrize_weight,
)

Model = TypeVar("Model", bound=nn.Module)


def prepare(
    model: Model,
    format: Format,
    rounding: Rounding | Mode | str = "nearest",
    layer_types: LayerTypes = LAYERS,
    exempt: Sequence[str] = (),
) -> Model:
    """Round the weights of the chosen layers wherever they are used; the gradient passes straight through.

    The model is changed in place and returned (``torch.nn.utils.parametrize``): ``layer.weight`` is
    the rounded weight, its exact one a parameter ``layer.parametrizations.weight.original``, which
    ``parameters()`` and the state_dict hold: make the optimizer afterwards. Biases stay, and so do the
    projections of ``nn.MultiheadAttention``; ``lower`` rounds activations. Formats of INT8 with one scale
    per output: ``Scaled(INT8, CurrentMaximum(Channel(0)))``, and with a zero point ``CurrentRange(Channel(0))`` in its
    place. What NaN, infinities and -0 become is the format's to say.

    Args:
        model: any module, itself a chosen layer or with such inside.
        format: of the weights.
        rounding: as for ``round``; to nearest by default.
        layer_types: which to change, as ``layer_type`` of ``lower`` names them; by default linear and convolutional
            layers, but transposed ones.
        exempt: path patterns of what to leave alone, as ``exempt`` of ``lower``.

    Raises:
        TypeError: no module, no format, or weights that it cannot round.
        ValueError: no such layer in the model, a pattern in ``exempt`` that matches none, or a layer that is prepared
            already or lazy; an unknown rounding. Whatever is raised, the model is unchanged.

    >>> from lptensor import FixedPoint
    >>> net = prepare(nn.Sequential(nn.Linear(2, 1)), FixedPoint(3, 1))
    >>> net[0].weight.mul(2).frac().any().item(), len(list(net.parameters()))
    (False, 2)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"prepare takes a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(format, Format):
        if callable(format) and not isinstance(format, type):
            raise TypeError(f"prepare takes a format, got {format!r}; a function is for round_layers(weight=...)")
        raise wrong_format(format)
    quantizer = Quantizer(format, forward_rounding=rounding)
    wanted = classes_of("layer_types", layer_types)
    found = layers_of(model, exempt, wanted).values()
    called = [m for m in found if type(m) is not NonDynamicallyQuantizableLinear]
    chosen = [m for m in called if has_weight(m)]
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no layer of {names_of(wanted)} with a weight of its own")
    if any(map(_is_prepared, chosen)):
        raise ValueError("a layer's weight is prepared already; finish(model) before preparing it anew")
    check_weights(chosen)
    for module in chosen:
        check_roundable(module.weight, format)
    parametrize_weights([(module, quantizer) for module in chosen])
    return model


def finish(model: Model) -> Model:
    """The model with its rounded weights as ordinary parameters, in place; what ``prepare`` or ``round_layers`` began.

    It computes what it did, with the weights of one draw where they round stochastically: inputs and gradients that
    ``round_layers`` lets a layer round are rounded still.

    Args:
        model: what either of them has changed.

    Raises:
        TypeError: no module.
        ValueError: no weight is rounded by them.

    >>> from lptensor import FixedPoint
    >>> net = finish(prepare(nn.Linear(2, 1), FixedPoint(3, 1)))
    >>> type(net.weight).__name__, net.weight.mul(2).frac().any().item()
    ('Parameter', False)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"finish takes a torch.nn.Module, got {type(model).__name__}")
    prepared = [m for m in model.modules() if _is_prepared(m)]
    if not prepared:
        raise ValueError(
            f"no layer of {type(model).__name__} has a weight that is rounded: prepare(model, format) and "
            "round_layers(model, weight=...) round some"
        )
    for module in prepared:
        unparametrize_weight(module, leave_parametrized=True)
    return model


def _is_prepared(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    listed = module.parametrizations["weight"]  # type: ignore[index]
    return is_weight_rounded(module) or any(isinstance(step, Quantizer) for step in listed)  # by hand
