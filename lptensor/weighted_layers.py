"""The layers of a model that have a weight to multiply by, found by class and by path."""

from __future__ import annotations

from torch import nn

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def layers_of(model: nn.Module, skip: tuple[str, ...], layers: tuple[type[nn.Module], ...]) -> dict[str, nn.Module]:
    """The layers of these classes by their paths, without those in ``skip``."""
    found = {path: module for path, module in model.named_modules() if isinstance(module, layers)}
    if unknown := [path for path in skip if path not in found]:
        raise ValueError(f"skip names {unknown[0]!r}, which is none of the layers {', '.join(found) or '(none)'}")
    chosen = {path: module for path, module in found.items() if path not in skip}
    if not chosen:
        raise ValueError(f"{type(model).__name__} has no layer left to round among {', '.join(found) or '(none)'}")
    return chosen
