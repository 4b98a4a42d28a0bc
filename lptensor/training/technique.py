"""A function as an operand of matrix products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lptensor.formats import Format
from lptensor.of_values import made_by
from lptensor.operands import Operand
from lptensor.rounding import Rounding


@dataclass(frozen=True, init=False, repr=False)
class Technique(Operand):
    """An operand that a function rounds, for ``Gemm``: what formats and roundings do not express.

    Args:
        format: what describes the values best; nothing is computed from it.
        function: of a plain tensor (..., rows, contraction), which it leaves as it is; a frozen value,
            if arithmetics are to compare and travel through pickle.

    Raises:
        TypeError: what cannot be called.

    >>> from lptensor import E4M3
    >>> import torch
    >>> Technique(E4M3, torch.round).quantize(torch.tensor([1.4]))
    tensor([1.])
    """

    rounding: Rounding = field(default_factory=Rounding, init=False)  # of which the function knows nothing
    function: Callable[[Tensor], Tensor] = None  # type: ignore[assignment]

    def __init__(self, format: Format, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__(format)
        if not callable(function):
            raise TypeError(f"a technique is a function of a tensor, got {function!r}")
        object.__setattr__(self, "function", function)

    def __reduce__(self) -> tuple[Any, ...]:
        return Technique, (self.format, self.function)

    def __repr__(self) -> str:
        return f"Technique({self.format!r}, {self.function!r})"

    def quantize(self, x: Tensor) -> Tensor:
        """What the function makes of a tensor.

        Raises:
            TypeError: it made no tensor of the shape and dtype that it was given.
        """
        return made_by(self.function, x, self)
