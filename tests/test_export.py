"""torch.export: the exported program gives eager mode's bits, or an error that says the way round."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compiling import compile_anew as compile_anew, plain
from lptensor import E4M3, E5M2, FP16, Arithmetic, LPTensor, Quantizer, convert, lower

SPLIT = Arithmetic(E4M3, backward=E5M2)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch's own exporter
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)).eval()


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.aten.relu(Quantizer(E4M3, E5M2, "nearest", "nearest")(x * 1.3))


def lowered() -> nn.Module:
    modes = {"forward_rounding": "nearest", "backward_rounding": "nearest"}
    return lower(network(), layer_type=["linear"], forward_number=E4M3, backward_number=E5M2, **modes)


def roundings(program: Any) -> int:
    return sum(node.target is torch.ops.lptensor.round.default for node in program.graph.nodes)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("case", ["LPTensor", "plain"])
def test_a_converted_model_may_be_exported(case: str, strict: bool) -> None:
    model, x = convert(network(), SPLIT), torch.randn(8, 16)
    given = x.to_lp(SPLIT) if case == "LPTensor" else x  # type: ignore[attr-defined]
    with torch.no_grad():
        wanted = model(given)
        program = torch.export.export(model, (given,), strict=strict)
        assert isinstance(program.module()(given), LPTensor)
        assert torch.equal(plain(program.module()(given)), wanted.dequantize())
        flat = program.run_decompositions()
        assert roundings(flat) == 4  # one for each op
        assert torch.equal(plain(flat.module()(given)), wanted.dequantize())


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # by torch.export.load before PyTorch 2.13
@pytest.mark.parametrize("make", [lowered, lambda: nn.Sequential(nn.Linear(16, 4), Rounded())])
def test_a_lowered_model_may_be_exported_saved_and_loaded(make: Any) -> None:
    model, x = make(), torch.randn(8, 16)
    with torch.no_grad():
        program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("rows")},))
        flat = program.run_decompositions()
        file = io.BytesIO()
        torch.export.save(flat, file)
        file.seek(0)
        loaded = torch.export.load(file).module()
        for rows in (8, 3):
            assert torch.equal(loaded(x[:rows]), model(x[:rows]))
            assert torch.equal(program.module()(x[:rows]), model(x[:rows]))


@pytest.mark.parametrize("strict", [False, True])
def test_entering_low_precision_in_an_export_is_refused_with_the_way_round(strict: bool) -> None:
    class Enters(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.to_lp(E4M3).exp().dequantize()  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(Exception, match="give it LPTensors or plain tensors, or round plain tensors"):
        torch.export.export(Enters(), (torch.randn(3),), strict=strict)


def test_a_model_with_rules_for_parameters_may_be_exported_and_one_with_rules_for_modules_says_so() -> None:
    x = torch.randn(8, 16)
    model = convert(network(), {"3.*": None, "*": E4M3})
    assert torch.equal(plain(torch.export.export(model, (x,)).module()(x)), plain(model(x)))
    with pytest.raises(NotImplementedError, match="give rules to parameters alone"):
        torch.export.export(convert(network(), {"3": None, "*": E4M3}), (x,))


class WithNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)
        y = (y + 0.33) * 0.1 - 1 / 3
        y.add_(0.7)
        return y


@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
def test_numbers_and_writes_of_a_program_taken_apart_are_those_of_eager_mode(compute: torch.dtype) -> None:
    model, x = convert(WithNumbers(), Arithmetic(FP16, compute=compute)), torch.randn(4, 6)
    program = torch.export.export(model, (x,)).run_decompositions()
    assert torch.equal(plain(program.module()(x)), plain(model(x)))
