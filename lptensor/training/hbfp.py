"""Hybrid block floating point: an exponent for each sample, or for each tile of a weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lptensor.base import check_int, set_int
from lptensor.blocks import BlockFloatingPoint
from lptensor.of_values import of_values
from lptensor.ops import check_roundable, round_fresh
from lptensor.rounding import Mode, Rounding, as_rounding
from lptensor.weighted_layers import LAYERS


@dataclass(frozen=True)
class HBFP:
    """A function that rounds to ``wl``-bit integers under shared exponents (Drumond et al., 1804.01526).

    Without ``tile`` each index of the first axis has an exponent: of an activation or a gradient,
    each sample. With it, each square of ``tile`` rows and columns of the matrix (out, in * taps) that
    a weight is; a bias is one column. Exponents are those of the largest magnitudes, as
    ``BlockFloatingPoint`` has them; NaN, infinities and -0 become what they become there.

    Args:
        wl: word length, the sign included, 2 to 24.
        tile: the side of a tile; 24 in the paper.
        rounding: stochastic in the authors' code.

    Raises:
        TypeError: a wl or a tile that is not an integer.
        ValueError: wl outside 2 to 24, a tile below 1, an unknown rounding.

    >>> x = torch.tensor([[4.0, 0.6], [0.5, 0.3]])
    >>> HBFP(4, rounding="nearest")(x), HBFP(4, 2, "nearest")(x)[1]
    (tensor([[4.0000, 1.0000],
            [0.5000, 0.2500]]), tensor([0., 0.]))
    """

    wl: int = 8
    tile: int | None = None
    rounding: Rounding | Mode | str = "stochastic"

    def __post_init__(self) -> None:
        set_int(self, "wl", 2, 24)
        if self.tile is not None:
            set_int(self, "tile", 1, 2**31)
        object.__setattr__(self, "rounding", as_rounding(self.rounding))

    @property
    def format(self) -> BlockFloatingPoint:
        """The format of samples, or of the matrix that a weight is."""
        if self.tile is None:
            return BlockFloatingPoint(self.wl, dim=0)
        return BlockFloatingPoint(self.wl, block_size=(self.tile, self.tile))

    @torch.no_grad()
    @of_values
    def __call__(self, x: Tensor) -> Tensor:
        check_roundable(x, self.format)
        if x.dim() == 0 or x.numel() == 0:
            return round_fresh(x.view(1), self.format, as_rounding(self.rounding)).view(()) if x.numel() else x.clone()
        rows = x.reshape(x.shape[0], -1)
        return round_fresh(rows, self.format, as_rounding(self.rounding)).view(x.shape)


def hbfp_widths(model: nn.Module, wl: int, ends: int | None = None) -> None:
    """Give the operands of layers that ``recipes.hbfp`` rounds ``wl`` bits, the first and the last layer's ``ends``.

    Accuracy Booster (Harma et al., 2211.10737) is 4 bits, 6 in the first and the last layer, and 6 in
    all during the last epoch. A schedule of it, whose steps are epochs, 9 of them:

    >>> from lptensor.training import FormatSchedule, recipes
    >>> model = recipes.hbfp(4).model(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)))
    >>> formats = {0: BlockFloatingPoint(4), 8: BlockFloatingPoint(6)}
    >>> schedule = FormatSchedule(formats, lambda format: hbfp_widths(model, format.wl, ends=6))
    >>> [layer.rounded_input.quantize.wl for layer in model]
    [6, 4, 6]

    Layers come in the order of ``model.modules()``. Tiles and rounding stay.

    Args:
        model: what ``recipes.hbfp`` has changed.
        wl, ends: word lengths, 2 to 24; without ``ends`` all layers have ``wl``.

    Raises:
        TypeError, ValueError: no module, no such layer, or a width that is not one; nothing is then changed.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"hbfp_widths takes a torch.nn.Module, got {model!r}")
    held = [
        [(part, q) for part in layer.modules() if isinstance(q := getattr(part, "quantize", None), HBFP)]
        for layer in model.modules()
        if isinstance(layer, LAYERS)
    ]
    layers = [parts for parts in held if parts]
    if not layers:
        raise ValueError(f"no layer of {type(model).__name__} rounds by HBFP; recipes.hbfp().model(model) makes them")
    wl = check_int("wl", wl, 2, 24)
    ends = None if ends is None else check_int("ends", ends, 2, 24)
    for i, parts in enumerate(layers):
        width = ends if ends is not None and i in (0, len(layers) - 1) else wl
        for part, quantize in parts:
            vars(part)["quantize"] = replace(quantize, wl=width)
