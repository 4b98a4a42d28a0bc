"""What Dynamo leaves to Python beside a graph gives the bits of eager mode, and none of our own code is compiled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lptensor
from compiling import assert_equal_tensors, compile_anew as compile_anew
from lptensor import E4M3, E5M2, Arithmetic, convert
from lptensor.tensor import enter

pytestmark = [  # within Dynamo
    pytest.mark.filterwarnings("ignore:The .grad attribute:UserWarning"),
    pytest.mark.filterwarnings("ignore:Dynamo does not know how to trace:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning"),
]
SPLIT = Arithmetic(E4M3, backward=E5M2)


def loop(work: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    """``work``, called from a function that Dynamo cannot take on: it has a graph break within a loop."""

    def run(x: Tensor) -> Any:
        for _ in range(1):
            torch._dynamo.graph_break()
            result = work(x)
        return result

    return run


def ops(x: Tensor) -> Tensor:
    for _ in range(1):
        torch._dynamo.graph_break()
        y = (x * 3).sigmoid().sum(0)
    return y


def scaled(x: Any) -> Any:
    for _ in range(1):
        torch._dynamo.graph_break()
        y = x.detach() / x.format.max
    return y


def by_functions(x: Tensor) -> Tensor:
    with lptensor.rounding_points("function"):
        return nn.functional.softmax(x * 3, 0)


BESIDE_A_GRAPH: dict[str, Callable[[Tensor], Any]] = {
    "ops": ops,
    "a gradient": loop(lambda x: torch.autograd.grad(x.exp().sum(), x)[0]),
    "the contract of functions": loop(by_functions),
    "a text": loop(lambda x: repr(x.detach() * 3)),
    "a copy": loop(lambda x: copy.deepcopy(x).detach() * 3),
    "a pickle": loop(lambda x: pickle.loads(pickle.dumps(x.detach() * 3))),
    "a tangent": loop(lambda x: x.detach().__coerce_same_metadata_as_tangent__((SPLIT, True))),
    "a property of a format": scaled,
    "plain values and back": loop(lambda x: enter(x.detach().dequantize() * 3, SPLIT)),
}


@pytest.mark.parametrize("run", BESIDE_A_GRAPH.values(), ids=BESIDE_A_GRAPH)
def test_what_a_graph_break_leaves_to_python_is_that_of_eager_mode(run: Callable[[Tensor], Any]) -> None:
    x = torch.linspace(-1, 1, 8).to_lp(SPLIT).requires_grad_()  # type: ignore[attr-defined]
    got, wanted = torch.compile(run, backend="eager")(x), run(x)
    if isinstance(wanted, str):
        assert got == wanted
    else:
        assert_equal_tensors(got, wanted)


def test_dynamo_compiles_none_of_the_code_that_runs_an_op() -> None:
    """It would at every op, until its limit of recompilations, where it does not fail."""
    graphs: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compile(ops, backend=backend)(torch.ones(3).to_lp(E4M3))  # type: ignore[attr-defined]
    assert not graphs


@pytest.mark.slow
def test_a_backward_pass_may_be_run_within_a_compiled_function() -> None:
    def gradient(model: nn.Module, x: Tensor) -> Any:
        model(x).square().sum().backward()
        return model.weight.grad

    models = [convert(nn.Linear(4, 2), SPLIT) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    x = torch.linspace(-1, 1, 8).view(2, 4)
    got = torch.compile(gradient, backend="aot_eager")(models[0], x)
    assert_equal_tensors(got, gradient(models[1], x))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_layer_which_dynamo_leaves_to_python_rounds_at_every_step(kind: type[nn.RNNBase]) -> None:
    model, x = convert(kind(3, 2), SPLIT), torch.randn(3, 1, 3)
    assert_equal_tensors(torch.compile(model, backend="eager")(x)[0].detach(), model(x)[0].detach())
    assert torch.backends.mkldnn.enabled
