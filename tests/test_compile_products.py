"""Compiled functions round the operands of their products, and compute in float64, as eager ones do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.utils import prune

import lptensor
from lptensor import (
    BF16,
    E4M3,
    FP16,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NVFP4,
    Arithmetic,
    FloatingPoint,
    convert,
    lower,
)
from lptensor.accumulator import Accumulator
from lptensor.gemm import gemm
from lptensor.hadamard import Hadamard
from lptensor.operands import Gemm, Operand
from lptensor.text import write

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler

SIX = Gemm((MXFP8_E4M3, MXFP4), (MXFP8_E5M2, MXFP6_E2M3), (NVFP4, MXFP6_E3M2), transform={"grad_input": Hadamard(16)})
ADDED = Accumulator(FloatingPoint(5, 4), chunk=3)
DRAWN = Gemm(Operand(MXFP4, "stochastic"), transform={"forward": Hadamard(16, "random")})


def run(arithmetic: Arithmetic, compiled: bool) -> list[Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(32, 32), nn.GELU(), nn.Linear(32, 32)]
    # Two equal draws in one graph, such as those of signs, may be merged by the compiler.
    net = convert(nn.Sequential(*layers[: 1 if arithmetic.operands == DRAWN else 3]), arithmetic)
    x = torch.randn(32, 32).to_lp(arithmetic)  # type: ignore[attr-defined]
    torch._dynamo.reset()
    y = (torch.compile(net, backend="aot_eager", fullgraph=True) if compiled else net)(x)
    y.sum().backward()
    return [t.dequantize().detach() for t in (y, *(p.grad for p in net.parameters()))]


@pytest.mark.parametrize(
    "arithmetic",
    [
        Arithmetic(BF16, operands=SIX),
        Arithmetic(BF16, operands=DRAWN),
        Arithmetic(BF16, compute=torch.float64),
        Arithmetic(BF16, accumulator=ADDED),
        Arithmetic(BF16, operands=SIX, accumulator=ADDED),
        Arithmetic(BF16, accumulator=Accumulator(E4M3, rounding="stochastic")),
    ],
    ids=["operands", "random", "float64", "accumulator", "operands and accumulator", "stochastic accumulator"],
)
def test_results_and_gradients_are_those_of_eager_mode(arithmetic: Arithmetic) -> None:
    # As many samples as outputs, so that shapes tell no product from another.
    for eager, compiled in zip(run(arithmetic, False), run(arithmetic, True), strict=True):
        assert torch.equal(eager, compiled)


def lstm() -> nn.Module:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = nn.LSTM(32, 16, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]

    return Last()


LOWERED = {
    "a layer": lambda: nn.Linear(32, 16),
    "layers": lambda: nn.Sequential(nn.Conv1d(4, 4, 3, padding=1), nn.ReLU(), nn.Linear(32, 16)),
    "pruned": lambda: nn.Sequential(prune.l1_unstructured(nn.Linear(32, 16), "weight", 0.5)),
    "recurrent": lstm,
}


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo asks, where a graph ends within a layer
@pytest.mark.parametrize("name", LOWERED)
def test_lowered_layers_compute_as_in_eager_mode_and_keep_their_parameters(name: str) -> None:
    torch.manual_seed(0)
    net, x = LOWERED[name](), torch.randn(4, 4, 32)
    lower(net, layer_types="all", operands=Gemm(MXFP8_E4M3, MXFP8_E5M2), accumulator=Accumulator(BF16))
    kept, compiled = dict(net.named_parameters()), torch.compile(net, backend="aot_eager", fullgraph=False)
    for _ in range(2):
        found = []
        for run in (net, compiled):
            net.zero_grad()
            y = run(x)
            y.square().sum().backward()
            assert dict(net.named_parameters()) == kept
            found.append([y.detach(), *(p.grad.clone() for p in kept.values() if p.grad is not None)])
        assert len(found[0]) == 1 + len(kept) and all(map(torch.equal, *found))
        with torch.no_grad():
            kept["rnn.weight_ih_l0" if name == "recurrent" else [*kept][0]].mul_(2)


def every_sum(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    y = F.layer_norm(F.linear(x, w, b), (8,)).softmax(-1).cumsum(0)
    return y.sum(0) + y.mean(0) + y.var(0) + torch.linalg.vector_norm(y, dim=0)


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_every_sum_is_added_up_in_a_graph_as_in_eager_mode(backend: str, dynamic: bool) -> None:
    arithmetic = Arithmetic(FP16, accumulator=Accumulator(FloatingPoint(5, 4)))
    torch._dynamo.reset()
    compiled = torch.compile(every_sum, backend=backend, fullgraph=True, dynamic=dynamic)
    for rows in (6, 9):
        values = [torch.randn(shape) for shape in ((rows, 40), (8, 40), (8,))]
        grads = []
        for function in (every_sum, compiled):
            leaves = [v.to_lp(arithmetic).requires_grad_() for v in values]  # type: ignore[attr-defined]
            y = function(*leaves)
            y.sum().backward()
            grads.append([t.dequantize().detach() for t in (y, *(leaf.grad for leaf in leaves))])
        for eager, other in zip(*grads, strict=True):
            assert torch.equal(eager, other)


def test_plain_products_and_sums_are_traced_too() -> None:
    a, b = torch.randn(6, 40, requires_grad=True), torch.randn(40, 5, requires_grad=True)

    def product(a: Tensor, b: Tensor) -> Tensor:
        return lptensor.matmul(a, b, ADDED) + lptensor.sum(a, 0, accumulator=ADDED)[:5]

    torch._dynamo.reset()
    compiled = torch.compile(product, backend="aot_eager", fullgraph=True)
    for mine, true in zip(
        (compiled(a, b), *torch.autograd.grad(compiled(a, b).sum(), (a, b))),
        (product(a, b), *torch.autograd.grad(product(a, b).sum(), (a, b))),
        strict=True,
    ):
        assert torch.equal(mine, true)


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_the_op_of_a_graph_is_what_torch_asks_of_one(running: bool, rounding: str) -> None:
    acc = Accumulator(FP16, rounding=rounding)
    a, b = torch.randn(2, 1 if running else 3, 7), torch.randn(2, 7, 5)
    args: tuple[Any, ...] = (a, b, None if running else torch.randn(2, 3, 5), write(acc), running)
    checked = ("test_schema", "test_faketensor")
    if acc.stochastic:
        torch.library.opcheck(torch.ops.lptensor.add_up_stochastic.default, (*args, 0), test_utils="test_faketensor")
    else:
        torch.library.opcheck(torch.ops.lptensor.add_up.default, args, test_utils=checked)


def test_a_generator_of_its_own_is_refused_in_a_graph() -> None:
    acc = Accumulator(FP16, rounding="stochastic")
    with FakeTensorMode(), pytest.raises(ValueError, match="use torch.manual_seed"):
        gemm(torch.ones(2, 3), torch.ones(3, 2), acc, generator=torch.Generator())


def grown(x: Tensor, write: Callable[[Tensor], object]) -> Tensor:
    y = x.clone()
    write(y)
    return y


WRITES: dict[str, Callable[[Tensor], Tensor]] = {
    "add_": lambda x: grown(x, lambda y: y.add_(0.33)),
    "mul_, relu_": lambda x: grown(x, lambda y: y.mul_(y).relu_()),
    "an item": lambda x: grown(x, lambda y: y.__setitem__(1, 0.33)),
    "masked_fill_": lambda x: grown(x, lambda y: y.masked_fill_(y > 0, 0.33)),
    "addmm_": lambda x: grown(x, lambda y: y.addmm_(x, x)),
    "out=": lambda x: torch.add(x, x, alpha=0.3, out=torch.empty_like(x)),
    "a list": lambda x: grown(x, lambda y: torch._foreach_add_([y], 0.33)),
    "an argument": lambda x: x.mul_(1.1) + 1,
}


@pytest.mark.parametrize(
    "arithmetic",
    [
        Arithmetic(E4M3, accumulator=Accumulator(BF16)),
        Arithmetic(E4M3, operands=Gemm((E4M3, E4M3))),
        Arithmetic(E4M3, compute=torch.float64),
        Arithmetic(E4M3),
    ],
    ids=["accumulator", "operands", "float64", "fp32"],
)
@pytest.mark.parametrize("name", WRITES)
def test_what_a_graph_writes_into_is_rounded(name: str, arithmetic: Arithmetic) -> None:
    torch._dynamo.reset()
    x, seen = torch.randn(6, 6).to_lp(arithmetic), []  # type: ignore[attr-defined]
    for f in (WRITES[name], torch.compile(WRITES[name], backend="aot_eager", fullgraph=True)):
        given = x.clone()
        seen.append((f(given).dequantize(), given.dequantize()))  # type: ignore[operator]
    (result, argument), (compiled, compiled_argument) = seen
    assert torch.equal(compiled, result) and torch.equal(compiled_argument, argument)
    assert torch.equal(lptensor.round(result, E4M3), result) and not torch.equal(result, x.dequantize())


@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
def test_a_compiled_step_is_the_eager_one_in_every_arithmetic(compute: torch.dtype) -> None:
    arithmetic = Arithmetic(BF16, compute=compute, accumulator=ADDED if compute is torch.float32 else None)
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        w = nn.Parameter(torch.randn(7).to_lp(arithmetic))  # type: ignore[attr-defined]
        optimizer = torch.optim.SGD([w], lr=0.1, momentum=0.9, foreach=True)
        step = torch.compile(optimizer.step, backend="aot_eager") if compiled else optimizer.step
        for _ in range(3):
            w.grad = torch.randn(7).to_lp(arithmetic)  # type: ignore[attr-defined]
            step()
        weights.append(w.dequantize())  # type: ignore[operator]
    assert torch.equal(*weights)
