"""The layers of a model that have a weight to multiply by, found by class and by path."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize

from lptensor import _compat
from lptensor.layer_types import LayerTypes, classes_of, names_of
from lptensor.path_rules import listed, matches

_ORDER = "_lptensor_order"  # where a list of parametrizations keeps the names of the parameters before there were any
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layers_of(model: nn.Module, exempt: Iterable[str], layer_types: LayerTypes) -> dict[str, nn.Module]:
    """The layers of these types by their paths, without those at or below what the patterns in ``exempt`` match."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"layers are changed of a torch.nn.Module, got {type(model).__name__}")
    exempt, wanted = listed("exempt", exempt), classes_of("layer_types", layer_types)
    found = {path: module for path, module in model.named_modules() if isinstance(module, wanted)}
    if not found:
        raise ValueError(f"{type(model).__name__} has no layer of {names_of(wanted)}")
    if unknown := [pattern for pattern in exempt if not any(matches(pattern, path) for path in found)]:
        raise ValueError(f"exempt names {unknown[0]!r}, which is none of the layers {', '.join(found)}")
    chosen = {path: module for path, module in found.items() if not any(matches(pattern, path) for pattern in exempt)}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no layer left to round among {', '.join(found)}")
    return chosen


def called_layers(model: nn.Module, exempt: Iterable[str], layer_types: LayerTypes) -> dict[str, nn.Module]:
    """The same, without the projections within ``nn.MultiheadAttention``, which reads their weights past them."""
    found = layers_of(model, exempt, layer_types)
    called = {path: module for path, module in found.items() if type(module) is not NonDynamicallyQuantizableLinear}
    if not called:
        raise ValueError(f"{type(model).__name__} has no such layer but projections of attention, which are not called")
    return called


def kind_of(layer: nn.Module) -> str:
    """The class of a layer as its user knows it."""
    return str(parametrize.type_before_parametrizations(layer).__name__)


def has_weight(layer: nn.Module) -> bool:
    """Whether a layer has a weight. It is not read: a parametrization computes it then, may draw, and change its state.

    As does that of spectral_norm(), which takes a step of a power iteration.
    """
    return parametrize.is_parametrized(layer, "weight") or getattr(layer, "weight", None) is not None


def check_made(layers: Iterable[nn.Module]) -> None:
    """Refuse lazy layers, which have no weight before their first call."""
    for layer in layers:
        if isinstance(_compat.parameters(layer).get("weight"), UninitializedParameter):
            raise ValueError(f"a {type(layer).__name__} has no weight yet; call the model on a batch first")


def check_weights(layers: Iterable[Any]) -> None:
    """Refuse layers whose weight is not a dense tensor of their own, of floating-point numbers.

    By weight_norm() for one it is made of others, whenever it is read.
    """
    layers = list(layers)
    check_made(layers)
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            there = ", ".join(type(step).__name__.lstrip("_") for step in layer.parametrizations["weight"])
            raise ValueError(
                f"the weight of a {kind_of(layer)} has a parametrization already, {there}; take it off by "
                "torch.nn.utils.parametrize.remove_parametrizations, or leave the layer out"
            )
        check_dense(layer)
        if "weight" not in {**_compat.parameters(layer), **_compat.buffers(layer)}:
            raise ValueError(
                f"the weight of a {kind_of(layer)} is neither parameter nor buffer, but made by a hook, as prune "
                "and the older weight_norm() do; take that off first, or leave the layer out"
            )


def check_dense(layer: nn.Module) -> None:
    """Refuse a layer whose weight is not a dense tensor of floating-point numbers."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or weight.layout is not torch.strided:
        got = f"{weight.dtype}, {weight.layout}" if isinstance(weight, Tensor) else repr(weight)
        raise ValueError(
            f"the weight of a {kind_of(layer)} must be a dense tensor of floating-point numbers, got {got}; "
            "leave the layer out"
        )


def check_dtypes(weights: Iterable[Any]) -> None:
    """Refuse weights of half precision and the like, whose layers would fail in their first call."""
    for weight in weights:
        if weight.is_floating_point() and weight.dtype not in (torch.float32, torch.float64):
            got = f"{weight.dtype}; convert the model with .float() first"
            raise TypeError(f"only float32 and float64 weights are rounded, got {got}")


def parametrize_weights(rounders: Sequence[tuple[nn.Module, nn.Module]], unsafe: bool = False) -> None:
    """Let the weight of each layer be what its module makes of it; if one of them raises, all weights are as they were.

    ``unsafe`` as of ``register_parametrization``.
    """
    before: list[tuple[Any, ...]] = [(layer, [*_compat.parameters(layer)], layer.weight) for layer, _ in rounders]
    values = [weight.data for *_, weight in before]  # a right_inverse() may give the parameter others
    try:
        for layer, rounder in rounders:
            parametrize.register_parametrization(layer, "weight", rounder, unsafe=unsafe)
        for layer, names, _ in before:
            layer.parametrizations["weight"].__dict__[_ORDER] = names
    except BaseException as error:
        for (layer, names, weight), value in zip(before, values, strict=True):
            weight.data = value
            if parametrize.is_parametrized(layer, "weight"):
                held = layer.parametrizations["weight"]
                held.is_tensor, held.original = True, weight  # a right_inverse() may have made several tensors of it
                held.__dict__[_ORDER] = names
                unparametrize_weight(layer, leave_parametrized=False)
        if not _compat.could_not_swap(error):
            raise
        raise RuntimeError(
            "a weight in low precision is in use by a computation graph or a weak reference and cannot be parametrized "
            f"now: let go of losses and outputs (del loss) and begin again; the model is unchanged (torch: {error})"
        ) from error


def is_weight_rounded(layer: nn.Module) -> bool:
    """Whether ``parametrize_weights`` has changed a layer."""
    return parametrize.is_parametrized(layer, "weight") and _ORDER in vars(layer.parametrizations["weight"])  # type: ignore[index]


def unparametrize_weight(layer: Any, leave_parametrized: bool) -> None:
    """Take off what ``parametrize_weights`` did, as ``remove_parametrizations`` does; parameters keep their order."""
    names = layer.parametrizations["weight"].__dict__.get(_ORDER, ())
    parametrize.remove_parametrizations(layer, "weight", leave_parametrized=leave_parametrized)
    own = _compat.parameters(layer)
    for name in [name for name in names if name in own]:  # in which optimizers and their states know them
        own[name] = own.pop(name)


def with_first(change: Callable[[Any], Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A call's arguments with the first of them changed, which may come by its name."""
    if args or not kwargs:
        return (*map(change, args[:1]), *args[1:]), kwargs
    first = next(iter(kwargs))
    return args, {**kwargs, first: change(kwargs[first])}


def become(layer: nn.Module, cls: type[nn.Module], **attributes: Any) -> None:
    """Give a layer another class and attributes; its parameters stay.

    A hook that does nothing goes with it: fused paths of torch, such as nn.TransformerEncoderLayer's in
    evaluation, read weights past the layers, but not where there are hooks.
    """
    layer.__class__ = cls
    layer.__dict__.update(attributes)
    _compat.set_hooks(layer, _compat.WEIGHTED, after=_seen)


def _seen(module: nn.Module, args: Any, output: Any) -> None:
    return None
