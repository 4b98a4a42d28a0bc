"""A compiled function on LPTensors gives the bits of the eager one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lptensor import BF16, E4M3, E5M2, Arithmetic, FloatingPoint, convert

SPLIT = Arithmetic(E4M3, backward=E5M2)
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler


def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def model() -> nn.Module:
    torch.manual_seed(0)
    return convert(nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4)), SPLIT)


def test_results_and_gradients_are_those_of_eager_mode() -> None:
    x = torch.randn(8, 16).to_lp(SPLIT)  # type: ignore[attr-defined]
    eager, traced = model(), model()
    wanted, got = eager(x), compiled(traced)(x)
    assert got.format == E4M3 and torch.equal(got.dequantize(), wanted.dequantize())
    wanted.sum().backward()
    got.sum().backward()
    for p, q in zip(eager.parameters(), traced.parameters(), strict=True):
        assert p.grad is not None and q.grad is not None and q.grad.format == E5M2  # type: ignore[attr-defined]
        assert torch.equal(p.grad.dequantize(), q.grad.dequantize())


def test_writes_round_into_their_destination() -> None:
    def f(x: Tensor) -> Tensor:
        y = x.clone()
        y.add_(1.53)
        y[0] *= 1.1
        return y * x

    x = torch.randn(4, 8).to_lp(E4M3)  # type: ignore[attr-defined]
    assert torch.equal(compiled(f)(x).dequantize(), f(x).dequantize())


def test_stochastic_rounding_draws_the_same_numbers() -> None:
    def f(x: Tensor) -> Tensor:
        return (x * 1.01 + 0.37).tanh()

    x = torch.randn(64, 64).to_lp(FloatingPoint(8), "stochastic")  # type: ignore[attr-defined]
    results = []
    for function in (f, compiled(f)):
        torch.manual_seed(3)
        results.append(function(x).dequantize())
    assert torch.equal(*results) and not torch.equal(results[0], f(x).dequantize())


def test_running_statistics_follow() -> None:
    x = torch.randn(2, 3, 8, 8)
    layers = []
    for _ in range(2):
        torch.manual_seed(1)
        layers.append(convert(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), BF16))
    assert torch.equal(layers[0](x).dequantize(), compiled(layers[1])(x).dequantize())
    assert torch.equal(layers[0][1].running_mean, layers[1][1].running_mean)  # type: ignore[arg-type, index, union-attr]
