"""Recipes under torch.func: the gradients of autograd, bit for bit, and those of each sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

from lptensor.training.unit_scaling import scale
from recipe_list import RECIPES

KEEPS_STATE = {"fp8_delayed"}  # which torch.func does not let a function write


def network(name: str) -> tuple[dict[str, Tensor], Callable[..., Tensor]]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))
    net = RECIPES[name]().model(net)
    parameters = dict(net.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(net, parameters, (x,)), target)

    return parameters, loss


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 32, generator=generator), torch.randint(0, 4, (8,), generator=generator)


@pytest.mark.parametrize("name", sorted(set(RECIPES) - KEEPS_STATE))
def test_grad_is_what_autograd_gives(name: str) -> None:
    parameters, loss = network(name)
    x, target = batch()
    torch.manual_seed(5)
    wanted = torch.autograd.grad(loss(parameters, x, target), list(parameters.values()))
    torch.manual_seed(5)
    got = grad(loss)(parameters, x, target)
    assert any(w.count_nonzero() for w in wanted)
    for key, w in zip(parameters, wanted, strict=True):
        assert torch.equal(got[key], w), key


@pytest.mark.parametrize("name", ["hbfp to nearest", "wage", "mxfp8", "mxfp6"])
def test_a_vmap_of_grad_gives_the_gradients_of_each_sample(name: str) -> None:
    parameters, loss = network(name)
    x, target = batch()
    each = vmap(grad(loss), (None, 0, 0))(parameters, x[:, None], target[:, None])
    for i in range(len(x)):
        wanted = torch.autograd.grad(loss(parameters, x[i : i + 1], target[i : i + 1]), list(parameters.values()))
        for key, w in zip(parameters, wanted, strict=True):
            assert torch.equal(each[key][i], w), (i, key)


@pytest.mark.parametrize("name", ["hbfp", "dorefa", "quartet", "quartet2", "unit_scaling"])
def test_what_draws_or_turns_asks_for_samples_of_their_own(name: str) -> None:
    parameters, loss = network(name)
    x, target = batch()
    of_each: Any = vmap(grad(loss), (None, 0, 0), randomness="different")
    for g in of_each(parameters, x[:, None], target[:, None]).values():
        assert g.shape[0] == len(x) and g.isfinite().all()


@pytest.mark.parametrize("name", ["hbfp to nearest", "unit_scaling"])
def test_tangents_pass_what_rounds_gradients(name: str) -> None:
    parameters, loss = network(name)
    x, target = batch()
    value, tangent = jvp(lambda x: loss(parameters, x, target), (x,), (x,))
    assert torch.equal(value, loss(parameters, x, target))
    assert tangent.isfinite() and tangent != 0


def test_a_tangent_is_scaled_as_values_are() -> None:
    x = torch.randn(5)
    value, tangent = jvp(lambda x: scale(x, 2.0, 3.0), (x,), (torch.ones(5),))
    assert torch.equal(value, 2 * x) and torch.equal(tangent, torch.full((5,), 2.0))
    assert torch.equal(vmap(grad(lambda x: scale(x, 2.0, 3.0)))(x), torch.full((5,), 3.0))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo does so
def test_scaling_stays_in_a_graph() -> None:
    compiled = torch.compile(lambda x: scale(x, 2.0, 3.0), fullgraph=True, backend="aot_eager")
    x = torch.randn(4, requires_grad=True)
    compiled(x).sum().backward()
    assert torch.equal(x.grad, torch.full((4,), 3.0))


def test_no_gradient_at_all_is_none_for_quartet() -> None:
    class Stop(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> None:
            return None

    net = RECIPES["quartet"]().model(nn.Sequential(nn.Linear(32, 32)))
    (Stop.apply(net(torch.randn(4, 32))).sum() + 2 * net[0].weight.sum()).backward()
    assert (net[0].weight.grad == 2).all()
