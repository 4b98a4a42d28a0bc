"""WAGE against its formulas, written out in float64; sums of its integers are exact, and so is the comparison."""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lptensor.training import recipes
from lptensor.training.wage import WageActivation, WageError, WageGradient, WageWeight
from oracles.wage import direction, q


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(90, 40, bias=False), nn.ReLU(), nn.Linear(40, 6, bias=False))


class Step:
    """One step of the recipe's network, and the same by hand."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        recipe = recipes.wage()
        self.net: Any = recipe.model(net())
        self.optim = recipe.optimizer(SGD(self.net.parameters(), lr=8.0))
        self.x, self.g = torch.randn(32, 90), torch.randn(32, 6) * 1e-3
        self.w1, self.w2 = (p.detach().clone() for p in self.net.parameters())
        self.y = self.net(self.x)
        self.y.backward(self.g)

    def by_hand(self) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the gradients of both weights."""
        alphas = [max(2.0 ** round(math.log2(0.75 / math.sqrt(6 / n))), 1.0) for n in (90, 40)]
        w1, w2 = (q(w, 2) / alpha for w, alpha in zip((self.w1, self.w2), alphas, strict=True))
        a0 = q(self.x, 8)
        z = a0 @ w1.T
        h = z.clamp(min=0)
        a1 = q(h, 8)
        last = q(direction(self.g), 8)
        back = (last @ w2) * (h <= 1 - 2**-7)
        error = q(direction(back), 8) * (z > 0)
        return a1 @ w2.T, error.T @ a0, last.T @ a1


def test_one_step_is_the_papers_bit_for_bit() -> None:
    for seed in range(3):
        step = Step(seed)
        y, g1, g2 = step.by_hand()
        assert torch.equal(step.y.detach().double(), y)
        for p, wanted in zip(step.net.parameters(), (g1, g2), strict=True):
            assert torch.equal(p.grad.double(), wanted)
        assert bool((step.w1.abs() > 0.5).any())  # clipped, and trained all the same


def test_updates_are_integers_of_the_grid_with_the_right_mean() -> None:
    step = Step(7)
    _, g1, _ = step.by_hand()
    exact = (step.w1.double() - 8.0 * direction(g1) / 128).clamp(-127 / 128, 127 / 128) * 128
    weight = next(iter(step.net.parameters()))
    grad, total = weight.grad.clone(), torch.zeros_like(exact)
    for _ in range(400):
        with torch.no_grad():
            weight.copy_(step.w1)
        weight.grad = grad.clone()
        step.optim.step()
        k = weight.detach().double() * 128
        assert torch.equal(k, k.round()) and bool(((k - exact).abs() < 1 + 1e-3).all())
        total += k
    spread = ((exact - exact.floor()) * (exact.ceil() - exact)).sqrt() / 20
    assert bool(((total / 400 - exact).abs() < 5.5 * spread + 2e-3).all())


def test_initial_weights_are_uniform_on_the_grid() -> None:
    torch.manual_seed(0)
    given = nn.Sequential(nn.Linear(4, 3000, bias=False))
    before = given[0].weight.detach().clone()
    kept = recipes.wage(initialize=False).model(nn.Sequential(nn.Linear(4, 3000, bias=False)))
    assert bool((next(kept.parameters()).abs() <= 0.5).all())  # nn.Linear's own
    w = next(recipes.wage().model(given).parameters()).detach()
    assert not torch.equal(w, before) and torch.equal(w * 128, (w * 128).round())
    # sqrt(6 / 4) is past the grid, which ends at 127 / 128: the rest of the draws lie there.
    assert float(w.abs().max()) == 127 / 128
    inside = w[w.abs() < 0.9]
    assert float(inside.std()) == pytest.approx(0.9 / math.sqrt(3), rel=0.03)


def test_errors_and_gradients_at_the_edges() -> None:
    assert WageError(8)(torch.zeros(3)).tolist() == WageGradient(8)(torch.zeros(3)).tolist() == [0, 0, 0]
    assert WageError(8)(torch.tensor([math.inf, 1.0])).isnan().all() and WageGradient(8)(torch.empty(0)).shape == (0,)
    e = torch.tensor([3.0, -2.9, 1.0, 1e-4])  # log2(3) = 1.58, so the shift is 4
    assert WageError(8)(e).tolist() == [0.75, -93 / 128, 0.25, 0.0]
    assert WageError(8)(e * 2.0**-40).tolist() == WageError(8)(e).tolist()
    assert WageWeight(2)(torch.tensor([[0.3, -0.2, 0.9, 0.25]])).tolist() == [[0.5, 0, 0.5, 0]]
    assert WageWeight(2)(torch.empty(0, 3)).shape == (0, 3) and WageWeight(2)(torch.tensor(0.3)).item() == 0.5
    for make in (WageError, WageGradient, WageWeight, WageActivation):
        with pytest.raises(ValueError, match="bits"):
            make(1)


@pytest.mark.parametrize("role", [WageError(8), WageWeight(2), WageActivation(8)], ids=repr)
def test_dtypes_that_are_not_rounded_are_named(role: Any) -> None:
    with pytest.raises(TypeError, match="bfloat16"):
        role(torch.ones(2, 3, dtype=torch.bfloat16))


def test_the_last_layer_is_the_one_held_last_whatever_the_names() -> None:
    net = nn.Sequential(OrderedDict({"ab": nn.Linear(4, 4), "b": nn.ReLU(), "a*": nn.Linear(4, 4)}))
    recipes.wage().model(net)
    assert [hasattr(layer, "rounded_gradient") for layer in net] == [False, False, True]
    assert [hasattr(layer, "rounded_input") for layer in net] == [True, False, True]


def test_a_penalty_on_gradients_is_refused() -> None:
    net = nn.Sequential(nn.Linear(32, 4), WageActivation())
    x = torch.randn(3, 32, requires_grad=True)
    (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiated again"):
        (net(x).sum() + g.square().sum()).backward()
    assert torch.func.grad(lambda x: net(x).sum())(x.detach()).shape == x.shape
