"""Parameters that compute in another arithmetic than their own while an optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from lptensor.arithmetic import Arithmetic
from lptensor.optimizer_state import fit_gradient
from lptensor.parameters import write
from lptensor.tensor import LPTensor


class Loans:
    """LPTensors that compute in an arithmetic other than their own for a time, and so do their gradients.

    A gradient keeps its values exactly. What is computed or copied of it is rounded as the lent arithmetic says.
    """

    def __init__(self) -> None:
        self._parameters: dict[Tensor, Arithmetic] = {}
        self._gradients: dict[Tensor, tuple[LPTensor, Arithmetic, Tensor]] = {}

    def own(self, p: LPTensor) -> Arithmetic:
        """The arithmetic of ``p`` itself."""
        return self._parameters.get(p, p._arithmetic)

    def lend(self, p: LPTensor, arithmetic: Arithmetic) -> None:
        """Give ``p``, and its gradient if that is an LPTensor, this arithmetic until it is taken back."""
        self.take_back(p)
        fit_gradient(p)
        grad = p.grad
        if isinstance(grad, LPTensor):
            self._gradients[p] = grad, grad._arithmetic, grad._inner.clone()
            grad._arithmetic = arithmetic
        self._parameters[p] = p._arithmetic
        p._arithmetic = arithmetic

    def take_back(self, p: Tensor) -> None:
        """Give ``p`` its own arithmetic again, and its gradient; values of ``p`` stay what they are."""
        if isinstance(p, LPTensor) and p in self._parameters:
            p._arithmetic = self._parameters[p]
            del self._parameters[p]  # only now, as Ctrl-C may come between, and it is taken back then
        if p in self._gradients:
            grad, arithmetic, values = self._gradients[p]
            grad._arithmetic = arithmetic
            if not torch.equal(grad._inner, values):  # torch's foreach SGD adds its momentum to it
                write(grad, grad._inner.clone())
            del self._gradients[p]
