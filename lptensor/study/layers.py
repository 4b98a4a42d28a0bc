"""What the layers of a model compute in and round to, as they stand: nothing is called."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from lptensor import _compat
from lptensor.arithmetic import Arithmetic
from lptensor.formats import Format
from lptensor.lower import RoundOutput
from lptensor.quantizer import Quantize, Quantizer
from lptensor.rounding import Rounding, show_rounding
from lptensor.study.places import named_modules
from lptensor.study.rows import Row, Rows
from lptensor.tensor import LPTensor
from lptensor.training.round_layers import GRADIENT, INPUT
from lptensor.weighted_layers import kind_of

_ROUNDING = ("parametrizations", INPUT, GRADIENT)  # the parts of a layer that round for it
_SAID = ("weight", "input", "output", "gradient", "rounding", "operands", "accumulator")


def layers(model: nn.Module) -> Rows:
    """What every layer of a model is in, and what rounds the tensors that go through it.

    One row for each module that has parameters of its own or rounds, in the order of ``named_modules()``, with these
    texts, or None where there is nothing:

    - path, layer: where it is, and its class.
    - weight: the formats of its parameters, as they are used; the dtype of plain ones.
    - input, output, gradient: the format that its input, its output, and the gradient of its output are rounded to;
      of a converted layer output and gradient are the formats in which it computes.
    - rounding: of output and gradient, in this order if they are two.
    - operands, accumulator: the ``Gemm`` and the ``Accumulator`` of its products.

    Where a function or a module rounds, it stands for the format. ``print`` leaves out the columns in which there is
    nothing. What rounds within an optimizer, ``print(optimizer)`` says.

    Raises:
        TypeError: no module.

    >>> import lptensor
    >>> from lptensor import E4M3, E5M2
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1))
    >>> print(layers(lptensor.lower(net, ["linear"], E4M3, E5M2, "nearest", exempt=["0"])))
    path  layer   weight   output  gradient  rounding
    0     Linear  float32  -       -         -
    2     Linear  float32  E4M3    E5M2      nearest, stochastic
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"layers takes a torch.nn.Module, got {type(model).__name__}")
    rows: list[Row] = []
    within: set[int] = set()  # modules that round for a layer, which says so
    for path, module in named_modules(model):
        steps = {name: part for name, part in module.named_children() if name in _ROUNDING}
        within.update(id(part) for step in steps.values() for part in step.modules())
        if id(module) not in within and any(row := _row(module, steps)):
            rows.append({"path": path, "layer": kind_of(module), **dict(zip(_SAID, row, strict=True))})
    return Rows(rows, main=[key for key in ("path", "layer", *_SAID) if any(row[key] is not None for row in rows)])


def _row(module: nn.Module, steps: dict[str, nn.Module]) -> list[str | None]:
    """What a module says of itself, in the order of ``_SAID``."""
    parameters: list[Any] = [p for p in _compat.parameters(module).values() if p is not None]
    weights = [_kept(p) for p in parameters]
    for made in steps["parametrizations"].children() if "parametrizations" in steps else ():
        last, kept = [*made.children()][-1], [*made.parameters()]
        own = type(last).__module__.startswith("torch.")  # a norm of the weight, say, which rounds nothing
        weights[:0] = map(_kept, kept) if own else [_by(last)]
        parameters[:0] = kept
    low = [p.arithmetic for p in parameters if isinstance(p, LPTensor)]
    products = _compat.hook_of(module, _compat.PRODUCTS)
    how: Arithmetic | None = low[0] if low else products.__self__.arithmetic if products is not None else None
    sides = _sides(module, low)
    gradient = _by(steps[GRADIENT]) if GRADIENT in steps else _named(sides[1][0])
    return [
        _joined(weights),
        _by(steps[INPUT]) if INPUT in steps else None,
        _named(sides[0][0]),
        gradient,
        _joined(show_rounding(rounding).strip("'") for format, rounding in sides if format is not None),
        _named(how and how.operands),
        _named(how and how.accumulator),
    ]


def _sides(module: nn.Module, low: list[Arithmetic]) -> tuple[tuple[Format | None, Rounding], ...]:
    """What the output and its gradient are rounded to, and how."""
    hook = _compat.hook_of(module, _compat.OUTPUTS)
    rounder = module if isinstance(module, Quantizer) else hook
    if isinstance(rounder, Quantizer | RoundOutput):
        said = rounder.quantize
        return (said.forward_number, said.forward_rounding), (said.backward_number, said.backward_rounding)
    return low[0].sides if low else ((None, Rounding()),) * 2


def _kept(parameter: Tensor) -> str:
    """The format that a parameter is in."""
    format = parameter.format if isinstance(parameter, LPTensor) else None
    return str(parameter.dtype).removeprefix("torch.") if format is None else repr(format)


def _by(rounder: Any) -> str:
    """The format that a module of a layer rounds to; else what it says of itself."""
    function = getattr(rounder, "quantize", rounder)
    if isinstance(function, Quantize):
        return repr(function.forward_number)
    return getattr(function, "__name__", None) or repr(function)


def _named(value: Any) -> str | None:
    return None if value is None else repr(value)


def _joined(texts: Iterable[str]) -> str | None:
    return ", ".join(dict.fromkeys(texts)) or None
