"""Every module class of torch.nn, converted, against the contract on plain tensors: forward, backward, buffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from lptensor import BF16, E4M3, E5M2, Arithmetic, LPTensor, convert
from module_samples import Sample, module_classes, samples_of
from op_samples import attempt, differences, is_operand, tensors
from oracles.aten_reference import AtenReference, Round, by_cast

pytestmark = pytest.mark.filterwarnings("ignore")  # the samples use what torch deprecates

NAMES = list(module_classes())
Case = tuple[Arithmetic, Round, Round]
NARROW: Case = Arithmetic(BF16, backward=E5M2), by_cast(torch.bfloat16), by_cast(torch.float8_e5m2)


def saturating(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


COARSE: Case = Arithmetic(E4M3), saturating, saturating


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
        # Without oneDNN the CPU runs an LSTM one time step after the other.
        with self.reference, torch.backends.mkldnn.flags(enabled=not isinstance(self.theirs, nn.LSTM)):
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
        with self.reference, torch.backends.mkldnn.flags(enabled=not isinstance(self.theirs, nn.LSTM)):
            lows = [self.reference.low(s) for s in seeds]
            with self.reference.gradients():
                wanted = torch.autograd.grad(others, theirs, lows, allow_unused=True)
        return [f"gradient {d}" for d in differences(found, wanted)]


def test_every_class_has_a_sample() -> None:
    """A class that a new PyTorch brings is decided here: it gets a sample, or a place in a list of those without."""
    without = [name for name in NAMES if not samples_of(name, True, 1)]
    assert not without and len(NAMES) > 140


@pytest.fixture(autouse=True)
def _plain_new(monkeypatch: pytest.MonkeyPatch) -> None:
    """``x.new()`` makes a tensor of x's kind, of which the reference sees nothing: here it asks new_empty()."""
    monkeypatch.setattr(Tensor, "new", lambda self, *shape: self.new_empty(shape or (0,)))


# How many samples of each class, in which formats, with buffers or without.
DEPTHS = [
    pytest.param(2, NARROW, False, id="fast"),
    pytest.param(2, NARROW, True, id="buffers", marks=pytest.mark.slow),
    pytest.param(2, COARSE, False, id="saturating", marks=pytest.mark.slow),
    pytest.param(40, NARROW, True, id="whole", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("count", "case", "buffers"), DEPTHS)
@pytest.mark.parametrize("name", NAMES)
def test_a_converted_module_rounds_where_the_contract_says(name: str, count: int, case: Case, buffers: bool) -> None:
    for training in (True, False):
        for sample in samples_of(name, training, count):
            wrong = Twins(sample, case, training, buffers).run()
            assert not wrong, f"{name}, {'training' if training else 'evaluation'}: {wrong}"
