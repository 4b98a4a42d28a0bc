"""How much the loss minds low precision in one layer, and in one role, at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lptensor import _compat
from lptensor.formats import Format
from lptensor.lower import RoundOutput
from lptensor.ops import check_format, check_roundable, round_fresh
from lptensor.quantizer import quantizer
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.study.format_table import by_name
from lptensor.study.layer_map import plot_layer_map
from lptensor.study.losses import check_callable, number_of
from lptensor.study.places import check_followed, check_roles, named_modules
from lptensor.study.progress import track
from lptensor.study.rows import Rows
from lptensor.tensor import LPTensor

ROUNDED = ("weight", "activation", "gradient")


def sensitivity(
    model: nn.Module,
    loss: Callable[[nn.Module], Tensor],
    formats: Mapping[str, Format] | Iterable[Format] | Format,
    roles: Iterable[str] = ROUNDED,
    per: str = "layer",
    rounding: Rounding | Mode | str = "nearest",
    progress: bool = False,
) -> Rows:
    """What the loss becomes if one layer's weights, outputs or gradients alone are in low precision.

    A row for each: path, role, format, values (rounded parameters; 0 of other roles), loss, change (from
    fp32), cosine (of all gradients with those of fp32; None without gradients); the worst first, by
    change, then by cosine. Gradients in low precision leave the loss as it is: look at their cosine.

    The model is run as it is, in plain fp32, once for each row, and left as it was: parameters, gradients,
    buffers. Random numbers are the same in every run. A layer that the loss does not call has no output, and
    no rows but that of its weights.

    Args:
        model: plain, or lowered; its layers are the leaf modules, and those with parameters of their own
            beside other modules (attention).
        loss: from the model to a tensor of one number; NaN counts as worst.
        formats: one, some, or a dict from the names to show.
        roles: among "weight", "activation", "gradient".
        per: "layer", or "role": all layers at once.
        rounding: as for ``round``.
        progress: show how far it has come, on a terminal.

    Raises:
        ValueError: no formats, an unknown role, rounding or ``per``, a loss of several numbers.
        TypeError: something that is not a format, a loss that is not a number, a converted model, parameters in a dtype
            that is not rounded, an output of a class that torch cannot look into.

    >>> from lptensor import E2M1
    >>> model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    >>> _ = model[0].weight.data.fill_(1.5), model[1].weight.data.fill_(1.3)
    >>> rows = sensitivity(model, lambda m: m(torch.ones(1, 1)).sum(), E2M1, roles=["weight"])
    >>> [(row["path"], round(row["change"], 2)) for row in rows]
    [('1', 0.3), ('0', 0.0)]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"sensitivity takes a torch.nn.Module, got {type(model).__name__}")
    if any(isinstance(parameter, LPTensor) for parameter in model.parameters()):
        raise TypeError("sensitivity takes a plain model, this one is converted: convert(model, None) takes it back")
    check_callable("loss", loss)
    chosen, how = check_roles(roles, ROUNDED), as_rounding(rounding)
    if per not in ("layer", "role"):
        raise ValueError(f"per is 'layer' or 'role', got {per!r}")
    named = by_name(formats)
    for format in named.values():
        check_format(format)
    layers = layers_in(model)
    groups = {path: {path: layer} for path, layer in layers.items()} if per == "layer" else {"": layers}
    with kept(model):
        with _called(layers) as called:
            base, gradient = _measure(model, loss)

        def there(path: str, role: str) -> bool:
            return _parameters(groups[path]) > 0 if role == "weight" else not called.isdisjoint(groups[path])

        rows = []
        plan = [(p, r, n) for p in groups for r in chosen if there(p, r) for n in named]
        for path, role, name in track(plan, "layers", progress):
            with _narrow(groups[path].values(), role, named[name], how):
                value, slope = _measure(model, loss)
            cosine = None
            if gradient is not None and slope is not None:
                cosine = float(torch.nn.functional.cosine_similarity(gradient, slope, dim=0))
            count = _parameters(groups[path]) if role == "weight" else None
            row = {"path": path, "role": role, "format": name, "values": count or 0, "loss": value}
            rows.append({**row, "change": value - base, "cosine": cosine})
    return Rows(sorted(rows, key=_badness), partial(plot_layer_map, column="change"))


def _badness(row: dict[str, Any]) -> tuple[float, float]:
    change, cosine = row["change"], 1.0 if row["cosine"] is None else row["cosine"]
    return -torch.inf if change != change else -change, -torch.inf if cosine != cosine else cosine


def layers_in(model: nn.Module) -> dict[str, nn.Module]:
    """The modules made of no others, and those with parameters of their own beside others, by path, each once."""
    return {
        path: module
        for path, module in named_modules(model)
        if not any(True for _ in module.children()) or any(True for _ in module.parameters(recurse=False))
    }


@contextmanager
def kept(model: nn.Module) -> Iterator[None]:
    """Give parameters, gradients and buffers their old values back, and torch's CPU generator its state."""
    check_followed(model)
    values = [p.detach().clone() for p in model.parameters()]
    buffers = _Buffers(model)
    gradients = [p.grad for p in model.parameters()]
    try:
        for p in model.parameters():
            p.grad = None
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        with torch.no_grad():
            for p, value in zip(model.parameters(), values, strict=True):
                p.copy_(value)
        buffers.restore()
        for p, gradient in zip(model.parameters(), gradients, strict=True):
            p.grad = gradient


def _measure(model: nn.Module, loss: Callable[[nn.Module], Tensor]) -> tuple[float, Tensor | None]:
    """The loss and all gradients in a row; parameters that have none are left out."""
    torch.manual_seed(0)
    buffers = _Buffers(model)
    value = loss(model)
    gradient = None
    number = number_of(value, "loss")
    if isinstance(value, Tensor) and value.requires_grad:
        value.backward()
        parts = [p.grad.detach().flatten().double() for p in model.parameters() if p.grad is not None]
        gradient = torch.cat(parts) if parts else None
        for p in model.parameters():
            p.grad = None
    buffers.restore()
    return number, gradient


class _Buffers:
    """The buffers of a model as they are now, which a forward pass may write to, replace, or add to."""

    def __init__(self, model: nn.Module) -> None:
        there = [(module, dict(_compat.buffers(module))) for module in model.modules()]
        self._kept = [
            (module, own, {name: b.detach().clone() for name, b in own.items() if b is not None})
            for module, own in there
        ]

    @torch.no_grad()
    def restore(self) -> None:
        for module, own, values in self._kept:
            there = _compat.buffers(module)
            there.clear()
            there.update(own)
            for name, value in values.items():
                buffer = own[name]
                if buffer is not None and buffer.shape == value.shape:
                    buffer.copy_(value)
                else:
                    there[name] = value


def _parameters(layers: Mapping[str, nn.Module]) -> int:
    return sum({id(p): p.numel() for layer in layers.values() for p in layer.parameters(recurse=False)}.values())


@contextmanager
def _called(layers: Mapping[str, nn.Module]) -> Iterator[set[str]]:
    """The paths of those that run."""
    paths: set[str] = set()

    def note(path: str, *_: Any) -> None:
        paths.add(path)

    handles = [layer.register_forward_hook(partial(note, path)) for path, layer in layers.items()]
    try:
        yield paths
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _narrow(layers: Iterable[nn.Module], role: str, format: Format, rounding: Rounding) -> Iterator[None]:
    """One role of some layers in low precision."""
    chosen = list(layers)
    if role == "weight":
        parameters = [p for layer in chosen for p in layer.parameters(recurse=False) if p.is_floating_point()]
        for p in parameters:
            check_roundable(p, format)
        before = [p.detach().clone() for p in parameters]
        try:
            with torch.no_grad():
                for p in parameters:
                    p.copy_(round_fresh(p, format, rounding))
            yield
        finally:
            with torch.no_grad():
                for p, values in zip(parameters, before, strict=True):
                    p.copy_(values)
        return
    forward, backward = (format, None) if role == "activation" else (None, format)
    quantize = quantizer(forward, backward, rounding, rounding)
    handles = [layer.register_forward_hook(RoundOutput(quantize)) for layer in chosen]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
