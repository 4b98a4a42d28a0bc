"""The layers that one means by the name of a group, or by a class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from types import ModuleType
from typing import Any, TypeAlias

from torch import nn
from torch.nn import modules
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

LayerTypes: TypeAlias = "str | type[nn.Module] | Iterable[str | type[nn.Module]]"


def _layers(*files: ModuleType) -> tuple[type[nn.Module], ...]:
    """The public layers that these files of torch.nn define."""
    listed = (getattr(file, name) for file in files for name in file.__all__)
    return tuple(cls for cls in listed if issubclass(cls, nn.Module) and cls not in _NO_LAYERS | _ATTENTION)


_ATTENTION = {nn.MultiheadAttention}  # torch keeps it with the activations
_NO_LAYERS = {nn.Identity, NonDynamicallyQuantizableLinear}

GROUPS: dict[str, tuple[type[nn.Module], ...]] = {
    "conv": _layers(modules.conv, modules.fold),
    "linear": _layers(modules.linear),
    "pool": _layers(modules.pooling),
    "pad": _layers(modules.padding),
    "activation": _layers(modules.activation),
    "normalization": _layers(modules.normalization, modules.batchnorm, modules.instancenorm),
    "dropout": _layers(modules.dropout),
    "loss": _layers(modules.loss),
    "rnn": _layers(modules.rnn),
    "embedding": _layers(modules.sparse),
    "attention": tuple(_ATTENTION),
}


def classes_of(argument: str, named: Any) -> tuple[type[nn.Module], ...]:
    """The classes that an argument of this name asks for: one or several names of groups, or classes.

    Raises:
        TypeError: what is neither a name nor a class of modules.
        ValueError: an unknown name, or none.

    >>> classes_of("layer_type", ["loss", nn.Linear])[-1]
    <class 'torch.nn.modules.linear.Linear'>
    """
    if isinstance(named, str | type):
        named = [named]
    elif not isinstance(named, Iterable):
        raise TypeError(f"{argument} must be names of layer groups or module classes, got {named!r}; {_KNOWN}")
    found: list[type[nn.Module]] = []
    for name in named:
        if isinstance(name, type) and issubclass(name, nn.Module):
            found.append(name)
        elif not isinstance(name, str):
            raise TypeError(f"a layer type is the name of a group or a module class, got {name!r}; {_KNOWN}")
        elif name == "all":
            found += [cls for group in GROUPS.values() for cls in group]
        elif name in GROUPS:
            found += GROUPS[name]
        else:
            raise ValueError(f"unknown layer type {name!r}; {_KNOWN}")
    if not found:
        raise ValueError(f"{argument} names no layers; {_KNOWN}")
    return tuple(found)


def passed_over(model: nn.Module, wanted: tuple[type[nn.Module], ...]) -> list[str]:
    """The classes of modules that extend no layer of torch.nn, and hold many of the matrices of a model.

    That is more than half as many numbers as the chosen layers do, if linear ones are among these. Small parameters of
    several axes, such as positions, are none of the model's products.
    """
    if nn.Linear not in wanted:
        return []
    chosen, held = 0, Counter[str]()
    for module in model.modules():
        count = sum(p.numel() for p in module.parameters(recurse=False) if not nn.parameter.is_lazy(p) and p.dim() > 1)
        if isinstance(module, wanted):
            chosen += count
        elif not any(cls.__module__.startswith("torch.") for cls in type(module).__mro__ if cls is not nn.Module):
            held[type(module).__name__] += count
    return [name for name, count in held.most_common() if count > 0] if 2 * held.total() > chosen else []


_KNOWN = f"known groups: {', '.join(GROUPS)}, 'all', or a class such as nn.Linear"


def names_of(wanted: tuple[type[nn.Module], ...]) -> str:
    """The classes in words: the names of the groups that they hold, and of the classes that are left."""
    groups = [name for name, group in GROUPS.items() if set(group) <= set(wanted)]
    grouped = {cls for name in groups for cls in GROUPS[name]}
    return " or ".join(groups + [cls.__name__ for cls in wanted if cls not in grouped])
