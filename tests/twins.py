"""A module run twice: converted, and plain under the reference of the contract."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lptensor import BF16, E4M3, E5M2, FP16, Arithmetic, FixedPoint, LPTensor, convert
from module_samples import Sample
from op_samples import attempt, differences, is_operand, tensors
from oracles.aten_reference import AtenReference, Round, by_cast

Case = tuple[Arithmetic, Round, Round]
NARROW: Case = Arithmetic(BF16, backward=E5M2), by_cast(torch.bfloat16), by_cast(torch.float8_e5m2)


def saturating(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


COARSE: Case = Arithmetic(E4M3), saturating, saturating
HALF: Case = Arithmetic(FP16), by_cast(torch.float16), by_cast(torch.float16)
EIGHT: Case = Arithmetic(E5M2), by_cast(torch.float8_e5m2), by_cast(torch.float8_e5m2)


def fixed(x: Tensor) -> Tensor:
    """FixedPoint(12, 8): steps of 2**-8 up to 8, one zero; torch.round goes to even."""
    return (x * 256).round().clamp(-2048, 2047) / 256 + 0.0


FIXED: Case = Arithmetic(FixedPoint(12, 8)), fixed, fixed


def called(sample: Sample, low: Callable[[Tensor], Tensor]) -> tuple[Any, dict[str, Any]]:
    """What the module is called with: operands in low precision, masks as they are."""

    def change(x: Any) -> Any:
        return low(x.detach().clone()).requires_grad_(x.requires_grad) if is_operand(x) else x

    named = {k: v if "mask" in k else tree_map(change, v) for k, v in sample.kwargs.items()}
    return tree_map(change, sample.args), named


class Twins:
    """One module converted, and the same plain one run by the reference."""

    def __init__(self, sample: Sample, case: Case, training: bool, buffers: bool) -> None:
        arithmetic, forward, backward = case
        self.reference = AtenReference(forward, backward)
        self.ours, self.theirs = self._made(sample, training), self._made(sample, training)
        if any(nn.parameter.is_lazy(p) for p in self.theirs.parameters()):
            torch.manual_seed(1)
            self.theirs(*sample.args, **sample.kwargs)  # materialised, and then its statistics anew
            torch.manual_seed(1)
            for module in self.theirs.modules():
                getattr(module, "reset_running_stats", lambda: None)()
        for tensor in (*self.theirs.parameters(), *(self.theirs.buffers() if buffers else ())):
            if tensor.is_floating_point():
                tensor.data = self.reference.low(tensor)
        convert(self.ours, arithmetic, buffers=buffers)
        self.arguments = called(sample, lambda x: x.to_lp(arithmetic))  # type: ignore[attr-defined]
        self.stand_ins = called(sample, self.reference.low)

    @staticmethod
    def _made(sample: Sample, training: bool) -> nn.Module:
        torch.manual_seed(1)
        return sample.build().train(training)

    def run(self) -> str:
        """What is wrong with results, buffers and gradients; empty if nothing is."""
        args, kwargs = self.arguments
        mine, my_error = attempt(lambda: self.ours(*args, **kwargs))
        args, kwargs = self.stand_ins
        with self.reference, self._step_by_step():
            other, error = attempt(lambda: self.theirs(*args, **kwargs))
        if my_error or error:
            return f"raises {my_error!r:.200} and {error!r:.200}"
        wrong = differences(mine, other)
        for a, b in zip(tensors(mine), tensors(other), strict=True):
            if type(a) is not LPTensor and b.dtype is torch.float32 and self.reference.is_low(b):
                wrong.append("a result has left low precision")
        wrong += [
            f"buffer {d}" for d in differences(dict(self.ours.named_buffers()), dict(self.theirs.named_buffers()))
        ]
        return "; ".join([*wrong, *self._gradients(mine, other)])

    def _step_by_step(self) -> Any:
        """Without oneDNN the CPU runs an LSTM one time step after the other."""
        return torch.backends.mkldnn.flags(enabled=False) if isinstance(self.theirs, nn.LSTM) else nullcontext()

    def _gradients(self, mine: Any, other: Any) -> list[str]:
        outs, others = ([x for x in tensors(t) if x.requires_grad] for t in (mine, other))
        ins, theirs = (
            [x for x in (*tensors(given), *model.parameters()) if x.requires_grad]
            for given, model in ((self.arguments, self.ours), (self.stand_ins, self.theirs))
        )
        if not outs:
            return []
        torch.manual_seed(2)
        seeds = [torch.randn(x.shape) for x in outs]
        arithmetic = [x.arithmetic for x in outs]  # type: ignore[attr-defined]
        found = torch.autograd.grad(
            outs,
            ins,
            [s.to_lp(a) for s, a in zip(seeds, arithmetic, strict=True)],
            allow_unused=True,  # type: ignore[attr-defined]
        )
        with self.reference, self._step_by_step():
            lows = [self.reference.low(s) for s in seeds]
            with self.reference.gradients():
                wanted = torch.autograd.grad(others, theirs, lows, allow_unused=True)
        return [f"gradient {d}" for d in differences(found, wanted)]
