"""HBFP: exponents of samples and of tiles by hand, and Accuracy Booster's widths epoch by epoch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD

from lptensor import BlockFloatingPoint
from lptensor.training import HBFP, FormatSchedule, hbfp_widths, recipes


def bfp(x: Tensor, wl: int) -> Tensor:
    """One exponent: the authors' code with wl - 1 bits of mantissa, but for largest values that are powers of two."""
    mantissa = wl - 1
    top = 2.0 ** math.ceil(math.log2(float(x.abs().max())))
    interval = top / 2**mantissa
    return (x.double() / interval).round().mul(interval).clamp(interval - top, top - interval).float()


def by_samples(x: Tensor, wl: int) -> Tensor:
    return torch.stack([bfp(sample, wl) for sample in x])


def by_tiles(w: Tensor, wl: int, side: int) -> Tensor:
    matrix = w.reshape(len(w), -1).clone()
    for i in range(0, matrix.shape[0], side):
        for j in range(0, matrix.shape[1], side):
            matrix[i : i + side, j : j + side] = bfp(matrix[i : i + side, j : j + side], wl)
    return matrix.view(w.shape)


@pytest.mark.parametrize("shape", [(7, 30), (5, 3, 4, 4), (6,)])
def test_values_have_an_exponent_for_each_sample_or_tile(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape) * torch.logspace(-3, 3, shape[0]).view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(HBFP(5, rounding="nearest")(x), by_samples(x, 5))
    assert torch.equal(HBFP(5, 4, "nearest")(x), by_tiles(x, 5, 4))


def test_stochastic_values_are_neighbours_with_the_right_mean() -> None:
    x = torch.randn(3, 50)
    draws = torch.stack([HBFP(4)(x) for _ in range(2000)])
    step = torch.tensor([2.0 ** (math.ceil(math.log2(float(row.abs().max()))) - 3) for row in x]).view(-1, 1)
    assert bool(((draws - x).abs() < step).all())
    inside = x.abs() < 7 * step
    assert bool(((draws.mean(0) - x).abs() < 5 * draws.std(0) / math.sqrt(2000) + 1e-6)[inside].all())


def test_a_convolutions_products_have_exponents_of_samples() -> None:
    """Each of the three operands is rounded once, and the same values go into both of its products."""
    x, w, g = torch.randn(4, 3, 9, 9), torch.randn(30, 3, 3, 3), torch.randn(4, 30, 7, 7)
    x, g = (t * torch.tensor([1.0, 1e-2, 1e2, 1e-4]).view(-1, 1, 1, 1) for t in (x, g))
    net = nn.Sequential(nn.Conv2d(3, 30, 3, bias=False))
    with torch.no_grad():
        net[0].weight.copy_(w)
    recipes.hbfp(rounding="nearest").model(net)
    leaf = x.clone().requires_grad_()
    y = net(leaf)
    y.backward(g)
    qx, qw, qg = by_samples(x, 8).requires_grad_(), by_tiles(w, 8, 24).requires_grad_(), by_samples(g, 8)
    wanted = F.conv2d(qx, qw)
    wanted.backward(qg)
    for got, want in ((y, wanted), (leaf.grad, qx.grad), (next(net.parameters()).grad, qw.grad)):
        assert got is not None and want is not None and torch.allclose(got, want, rtol=1e-5, atol=1e-6)


def test_weights_are_stored_in_wide_tiles() -> None:
    recipe = recipes.hbfp(rounding="nearest")
    net = recipe.model(nn.Sequential(nn.Linear(40, 30)))
    w = next(net.parameters()).detach().clone()
    optim = recipe.optimizer(SGD(net.parameters(), lr=0.5))
    net(torch.randn(8, 40)).square().sum().backward()
    stepped = [p.detach() - 0.5 * p.grad for p in net.parameters() if p.grad is not None]
    optim.step()
    for p, exact in zip(net.parameters(), stepped, strict=True):
        assert torch.equal(p, by_tiles(exact, 16, 24))
    assert not torch.equal(next(net.parameters()), w)


def test_accuracy_booster_widens_the_ends_always_and_everything_in_the_last_epoch() -> None:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    recipes.hbfp(4, rounding="nearest").model(net)
    formats = {0: BlockFloatingPoint(4), 4: BlockFloatingPoint(6)}
    schedule = FormatSchedule(formats, lambda format: hbfp_widths(net, format.wl, ends=6))  # type: ignore[union-attr]
    for epoch in range(5):
        for i, wl in ((0, 6), (3, 4 if epoch < 4 else 6), (5, 6)):
            layer, size = net[i], ((5, 1, 6, 6) if i == 0 else (5, net[i].in_features))
            exact = next(p for p in layer.parameters() if p.dim() > 1).detach()
            x = torch.randn(size)
            y = layer(x)
            plain = F.conv2d if i == 0 else F.linear
            assert torch.allclose(y, plain(by_samples(x, wl), by_tiles(exact, wl, 24), layer.bias), atol=1e-6)
            g = torch.randn_like(y)
            layer.zero_grad()
            y.backward(g)
            leaf = by_tiles(exact, wl, 24).requires_grad_()
            plain(by_samples(x, wl), leaf).backward(by_samples(g, wl))
            got = next(p for p in layer.parameters() if p.dim() > 1).grad
            assert leaf.grad is not None and torch.allclose(got, leaf.grad, atol=1e-4)
        schedule.step()

    resumed = recipes.hbfp(4, rounding="nearest").model(
        nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    )
    resumed.load_state_dict(net.state_dict())
    later = FormatSchedule(formats, lambda format: hbfp_widths(resumed, format.wl, ends=6))  # type: ignore[union-attr]
    x = torch.randn(2, 1, 6, 6)
    assert not torch.equal(resumed(x), net(x))
    later.load_state_dict(schedule.state_dict())
    assert torch.equal(resumed(x), net(x))


def test_bad_input_is_named_and_changes_nothing() -> None:
    with pytest.raises(ValueError, match=r"no layer of Linear rounds by HBFP; recipes.hbfp\(\)"):
        hbfp_widths(nn.Linear(2, 2), 4)
    net = recipes.hbfp(4).model(nn.Sequential(nn.Linear(2, 2)))
    for arguments, says in (((1,), "wl must be"), ((4, 99), "ends must be")):
        with pytest.raises(ValueError, match=says):
            hbfp_widths(net, *arguments)
    assert net[0].rounded_input.quantize == HBFP(4)
    with pytest.raises(ValueError, match="tile must be"):
        HBFP(4, 0)
    assert HBFP(4)(torch.tensor(3.0)).item() == 3.0 and HBFP(4)(torch.empty(0, 3)).shape == (0, 3)
    assert HBFP(4)(torch.tensor([[1.0, math.nan], [2.0, 0.0]]))[0].isnan().all()
