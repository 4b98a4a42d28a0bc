"""A compiled function on LPTensors gives the bits of the eager one: docs/compile.md, sentence by sentence."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

import lptensor
from compiling import assert_equal_tensors, compile_anew as compile_anew, gradients, plain, since
from lptensor import BF16, E4M3, E5M2, MXFP8_E4M3, Arithmetic, FixedPoint, FloatingPoint, Mode, convert
from lptensor.direction import _step_begins, _step_ends
from lptensor.tensor import enter

SPLIT = Arithmetic(E4M3, backward=E5M2)
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # within torch's own compiler
    pytest.mark.filterwarnings("ignore:.*record_function.*:UserWarning"),
]
INDUCTOR = pytest.param("inductor", marks=pytest.mark.slow)


def compiled(function: Any, backend: str = "aot_eager") -> Any:
    return torch.compile(function, backend=backend, fullgraph=True)


class Block(nn.Module):
    """A block of a transformer: attention and a feed-forward part, each after a norm and beside a shortcut."""

    def __init__(self, width: int = 16, heads: int = 2) -> None:
        super().__init__()
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forwards = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.heads = heads

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.qkv(self.norms[0](x)).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width))
        y: Tensor = x + self.forwards(self.norms[1](x))
        return y


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 4))


def images() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


SHAPES: dict[Callable[[], nn.Module], tuple[int, ...]] = {mlp: (8, 16), Block: (2, 6, 16), images: (4, 3, 8, 8)}


def pair(make: Callable[[], nn.Module], arithmetic: Any) -> tuple[nn.Module, nn.Module]:
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        models.append(convert(make(), arithmetic, buffers=True))
    return models[0], models[1]


def assert_equal_models(got: nn.Module, wanted: nn.Module) -> None:
    state, other = got.state_dict(), wanted.state_dict()
    for name in state:
        assert_equal_tensors(state[name], other[name], name)
    grads, others = gradients(got), gradients(wanted)
    for name, grad in grads.items():
        assert_equal_tensors(grad, others[name], name)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("arithmetic", [SPLIT, BF16, FixedPoint(16, 10), MXFP8_E4M3], ids=repr)
@pytest.mark.parametrize("make", SHAPES)
def test_a_model_and_its_gradients(make: Callable[[], nn.Module], arithmetic: Any, backend: str) -> None:
    eager, traced = pair(make, arithmetic)
    x = torch.randn(SHAPES[make]).to_lp(arithmetic)  # type: ignore[attr-defined]
    graph = compiled(traced, backend)
    for _ in range(2):  # the second pass finds gradients to add to, and running statistics
        wanted, got = eager(x), graph(x)
        assert_equal_tensors(got, wanted)
        wanted.square().sum().backward()
        got.square().sum().backward()
    assert_equal_models(traced, eager)


def test_inductor_compiles_a_small_network_to_the_bits_of_eager_mode() -> None:
    eager, traced = pair(lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), SPLIT)
    x = torch.randn(4, 8)
    wanted, got = eager(x), compiled(traced, "inductor")(x)
    assert_equal_tensors(got, wanted)
    wanted.square().sum().backward()
    got.square().sum().backward()
    assert_equal_models(traced, eager)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_writes_round_into_their_destination(backend: str) -> None:
    def f(x: Tensor, z: Tensor) -> Tensor:
        y = x.clone()
        y.add_(1.53)
        y[0] *= 1.1
        z.mul_(1.3)[1].copy_(y[0])
        return y * x

    x = torch.randn(4, 8).to_lp(E4M3)  # type: ignore[attr-defined]
    z = torch.randn(4, 8).to_lp(E5M2)  # type: ignore[attr-defined]
    other = z.clone()
    assert_equal_tensors(compiled(f, backend)(x, z), f(x, other))
    assert_equal_tensors(z, other)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_one_graph_serves_every_size(backend: str) -> None:
    eager, traced = pair(mlp, SPLIT)
    graph = compiled(traced, backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for rows in (5, 7, 32):
            x = torch.randn(rows, 16).to_lp(SPLIT)  # type: ignore[attr-defined]
            torch._dynamo.mark_dynamic(x, 0)
            wanted, got = eager(x), graph(x)
            assert_equal_tensors(got, wanted)
            wanted.square().sum().backward()
            got.square().sum().backward()
    assert_equal_models(traced, eager)


# -- optimizers ------------------------------------------------------------------------------------------

SAME: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.1, weight_decay=0.01),
    "SGD with momentum": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True),
    "SGD, foreach": lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, foreach=True),
}
REWRITTEN: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "Adam": lambda p: torch.optim.Adam(p, 0.01),
    "AdamW, foreach": lambda p: torch.optim.AdamW(p, 0.01, foreach=True),
}


def steps(make: Callable[[Any], torch.optim.Optimizer], backend: str | None) -> nn.Module:
    """A network after three steps, taken in a graph if there is a backend."""
    model = pair(lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4)), BF16)[0]
    optimizer = make(model.parameters())
    step = torch.compile(lambda: optimizer.step(), backend=backend) if backend else optimizer.step
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        step()
    return model


def equal(model: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(plain(p), plain(q)) for p, q in zip(model.parameters(), other.parameters(), strict=True))


FORMULA = since("2.12", "a compiled step of SGD multiplies and adds in two ops unless foreach is said")


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("name", [pytest.param(o, marks=() if "foreach" in o else FORMULA) for o in SAME])
def test_a_compiled_step_of_sgd(name: str, backend: str) -> None:
    assert_equal_models(steps(SAME[name], backend), steps(SAME[name], None))


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_compiled_step_of_adam_has_another_formula(name: str) -> None:
    """torch's own: corrections of the bias as fp32 tensors instead of Python numbers, addcmul_() in two ops."""
    assert not equal(steps(REWRITTEN[name], "aot_eager"), steps(REWRITTEN[name], None))


@pytest.mark.parametrize("name", REWRITTEN)
def test_a_step_of_adam_outside_of_the_graph_is_that_of_eager_mode(name: str) -> None:
    def trained(compile_it: bool) -> nn.Module:
        model = pair(mlp, BF16)[0]
        optimizer = REWRITTEN[name](model.parameters())
        forward = compiled(model) if compile_it else model
        for _ in range(3):
            optimizer.zero_grad()
            forward(torch.linspace(-1, 1, 64).view(4, 16)).square().sum().backward()
            optimizer.step()
        return model

    assert_equal_models(trained(True), trained(False))


def test_the_hooks_on_optimizers_break_no_graph() -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.5)

    def f(x: Tensor) -> Tensor:
        _step_begins(optimizer)
        y = x + 1
        _step_ends(optimizer)
        return y

    assert torch.equal(compiled(f)(torch.ones(2)), torch.full((2,), 2.0))


# -- gradients from outside of the graph -----------------------------------------------------------------


def test_a_result_that_nobody_uses_has_no_gradient() -> None:
    def f(x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 1.3, (x * 2.1).exp()

    grads = []
    for function in (f, compiled(f)):
        x = torch.randn(8).to_lp(SPLIT).requires_grad_()  # type: ignore[attr-defined]
        x.data = torch.linspace(-1, 1, 8)
        function(x)[0].square().sum().backward()
        grads.append(x.grad)
    assert_equal_tensors(grads[1], grads[0])


@pytest.mark.parametrize("given", [None, BF16, FloatingPoint(3, 1)], ids=repr)
def test_a_gradient_given_to_a_result_is_rounded_as_one_of_the_result(given: Any) -> None:
    torch.manual_seed(2)
    v = torch.randn(16) * 1000  # beyond the largest value of the forward format
    x, y = (torch.linspace(-2, 2, 16).to_lp(SPLIT).requires_grad_() for _ in range(2))  # type: ignore[attr-defined]
    compiled(lambda t: t * 1.5)(x).backward(v if given is None else v.to_lp(given))  # type: ignore[attr-defined]
    first = v if given is None else v.to_lp(given).dequantize()  # type: ignore[attr-defined]
    (y * 1.5).backward(enter(first, SPLIT, gradient=True))
    assert_equal_tensors(x.grad, y.grad)
    assert x.grad.format == E5M2  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo asks
@pytest.mark.parametrize("view", [lambda x: x[1], lambda x: x.t()[:1], lambda x: (x.view(3, 2)[1:], x + 1)[0]])
def test_what_is_written_to_a_view_that_a_compiled_function_returned_reaches_gradients(view: Any) -> None:
    results = []
    for function in (view, compiled(view)):
        x = torch.arange(6.0).view(2, 3).to_lp(BF16).requires_grad_()  # type: ignore[attr-defined]
        y = x * 1
        function(y).mul_(2)
        y.backward(torch.ones(2, 3))
        results.append((y, x.grad))
    assert sorted(set(results[0][1].dequantize().flatten().tolist())) == [1, 2]
    for got, wanted in zip(*results, strict=True):
        assert_equal_tensors(got, wanted)


# -- stochastic rounding ---------------------------------------------------------------------------------

DRAWN = FloatingPoint(8)


def draws(function: Any, x: Tensor) -> list[Tensor]:
    torch.manual_seed(3)
    return [plain(y.detach()) for y in function(x)]


def twice(x: Tensor) -> tuple[Tensor, Tensor]:
    return x * 1.01 + 0.37, x * 1.01 + 0.37


def test_stochastic_rounding_draws_the_same_numbers() -> None:
    x = torch.randn(64, 64).to_lp(DRAWN, "stochastic").requires_grad_()  # type: ignore[attr-defined]
    wanted, got = draws(twice, x), draws(compiled(twice), x)  # a graph with a backward pass has its equal nodes merged
    assert torch.equal(got[0], wanted[0]) and torch.equal(got[1], wanted[1])
    assert not torch.equal(*got), "two draws were merged into one"


@pytest.mark.slow
def test_inductor_keeps_the_order_of_draws_if_told_to() -> None:
    x = torch.randn(64, 64).to_lp(DRAWN, "stochastic")  # type: ignore[attr-defined]
    graph = torch.compile(twice, fullgraph=True, options={"fallback_random": True})
    for got, wanted in zip(draws(graph, x), draws(twice, x), strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.slow
def test_inductor_rounds_to_one_of_the_neighbours_with_the_right_odds() -> None:
    x = torch.full((100, 1000), 1.0).to_lp(DRAWN, "stochastic")  # type: ignore[attr-defined]
    first, second = (plain(y) for y in compiled(lambda t: (t * 1.1, t * 1.1), "inductor")(x))
    fraction = 4 * (torch.tensor(1.1).item() - 1)  # E5M2 has quarters between 1 and 2
    for y in (first, second):
        assert set(y.unique().tolist()) == {1.0, 1.25}
        deviation = math.sqrt(fraction * (1 - fraction) / y.numel())
        assert abs((y == 1.25).double().mean().item() - fraction) < 4 * deviation
    assert not torch.equal(first, second)


@pytest.mark.slow
def test_inductor_differs_only_where_its_fp32_result_is_next_to_a_midpoint() -> None:
    x = torch.randn(1 << 20).to_lp(BF16)  # type: ignore[attr-defined]
    got, wanted = (plain(g(x)) for g in (compiled(torch.exp, "inductor"), torch.exp))
    apart = (got.view(torch.int32) - wanted.view(torch.int32)).abs()
    assert set(apart.unique().tolist()) <= {0, 1 << 16}  # neighbours in BF16
    assert (apart > 0).double().mean() < 1e-4


def test_a_mode_that_only_watches_leaves_rounding_as_it_is() -> None:
    x, generators = torch.rand(64), [torch.Generator().manual_seed(3) for _ in range(2)]
    with FlopCounterMode(display=False):
        watched = lptensor.round(x, E4M3, "stochastic", generator=generators[0])
    assert torch.equal(watched, lptensor.round(x, E4M3, "stochastic", generator=generators[1]))


def test_a_tracer_over_plain_tensors_sees_the_rounding() -> None:
    graph = make_fx(lambda x: lptensor.round(x, E4M3))(torch.rand(4))
    assert "lptensor.round.default" in {str(node.target) for node in graph.graph.nodes}


class Caching(nn.Module):
    """A layer that writes to containers of its caller."""

    def forward(self, x: Tensor, outs: list[Tensor], cache: dict[str, Any]) -> Tensor:
        outs.append(x)
        cache["pair"] = cache["pair"][0], x
        return x


class Calling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = Caching()

    def forward(self, x: Tensor) -> Any:
        outs: list[Tensor] = []
        cache: dict[str, Any] = {"pair": (x, x)}
        return self.layer(x, outs, cache=cache), *outs, *cache["pair"]


def test_the_boundaries_of_modules_are_part_of_the_graph_with_containers_too() -> None:
    model = convert(Calling(), {"layer": E4M3})
    x = torch.linspace(-1, 1, 8)
    want = model(x)
    assert want[0] is want[1] is want[3] and want[2] is x
    for one, other in zip(compiled(model, "eager")(x), want, strict=True):
        assert type(one) is Tensor and torch.equal(one, other)


def test_a_mode_says_the_rounding_in_a_graph_too() -> None:
    x = torch.tensor([1.01, -2.03])
    for f in (lambda x: lptensor.round(x, E4M3, Mode.UP), lambda x: x.to_lp(E4M3, Mode.UP).dequantize()):
        assert torch.equal(torch.compile(f, backend="aot_eager", fullgraph=True)(x), f(x))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
def test_make_fx_sees_every_rounding(mode: str) -> None:
    model, x = lptensor.convert(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), E4M3), torch.randn(5, 3)

    def f(x: torch.Tensor) -> torch.Tensor:
        low = x.to_lp(E4M3) / 3  # type: ignore[attr-defined]
        y: torch.Tensor = (model(low) if mode == "real" else low.tanh()).dequantize()  # the others take no real weights
        return y

    with torch.no_grad():
        assert torch.equal(make_fx(f, tracing_mode=mode)(torch.randn(5, 3))(x), f(x))
