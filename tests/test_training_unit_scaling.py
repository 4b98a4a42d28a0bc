"""Unit scaling against its formulas: factors by hand, PyTorch's own 8-bit casts, and variances of one at first."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from lptensor.training import recipes
from lptensor.training.unit_scaling import UnitLinear, activation_scale, cross_entropy


def e4m3(x: Tensor) -> Tensor:
    return x.float().clamp(-448, 448).to(torch.float8_e4m3fn).double()


def e5m2(x: Tensor) -> Tensor:
    return x.float().to(torch.float8_e5m2).double()


def test_one_step_of_a_linear_layer_is_its_formula() -> None:
    torch.manual_seed(0)
    net = recipes.unit_scaling().model(nn.Sequential(nn.Linear(80, 30)))
    layer = net[0]
    with torch.no_grad():
        layer.bias.normal_()
    x, g = torch.randn(2, 25, 80, requires_grad=True), torch.randn(2, 25, 30)
    y = net(x)
    y.backward(g)
    flat, grads = x.detach().flatten(0, 1), g.flatten(0, 1)
    a, b, common = e4m3(flat), e4m3(layer.weight.detach()), (80 * 30) ** -0.25
    assert torch.allclose(y.flatten(0, 1).double(), a @ b.T * common + layer.bias, atol=1e-5)
    assert x.grad is not None and torch.allclose(x.grad.flatten(0, 1).double(), e5m2(grads) @ b * common, atol=1e-5)
    assert torch.allclose(layer.weight.grad.double(), e5m2(grads).T @ a / math.sqrt(50), atol=1e-5)
    assert torch.allclose(layer.bias.grad, grads.sum(0) / math.sqrt(50), atol=1e-5)


def test_everything_begins_with_variance_one() -> None:
    """Outputs and gradients of outputs, weights and biases of a deep network; those of a plain one vanish."""
    torch.manual_seed(1)
    width, n = 256, 512
    layers = [m for _ in range(4) for m in (nn.Linear(width, width), nn.Tanh())]
    target = torch.randint(width, (n,))

    def gradients(net: nn.Module) -> list[Tensor]:
        return [p.grad for p in net.parameters() if p.grad is not None]

    plain = copy.deepcopy(nn.Sequential(*layers, nn.Linear(width, width)))
    nn.functional.cross_entropy(plain(torch.randn(n, width)), target).backward()
    assert all(float(g.std()) < 0.02 for g in gradients(plain))
    net = recipes.unit_scaling().model(nn.Sequential(*layers, nn.Linear(width, width)))
    x, outputs = torch.randn(n, width), []
    for module in net:
        x = module(x)
        x.retain_grad()
        outputs.append(x)
    cross_entropy(x, target).backward()
    seen = [t for y in outputs for t in (y.detach(), y.grad)] + gradients(net)
    assert len(seen) == 2 * 9 + 10
    assert all(t is not None and 0.85 < float(t.std()) < 1.5 for t in seen)


def test_one_square_layer_is_exact() -> None:
    torch.manual_seed(2)
    net = recipes.unit_scaling(None, None).model(nn.Sequential(nn.Linear(300, 300)))
    x = torch.randn(400, 300, requires_grad=True)
    y = net(x)
    y.backward(torch.randn(400, 300))
    assert x.grad is not None
    for tensor in (y, x.grad, net[0].weight, net[0].weight.grad):
        assert float(tensor.detach().std()) == pytest.approx(1, abs=0.01)


def test_an_embedding_scales_its_gradient() -> None:
    net = recipes.unit_scaling().model(nn.Sequential(nn.Embedding(50, 8, padding_idx=3), nn.Linear(8, 2)))
    codes, g = torch.randint(50, (7, 20)), torch.randn(7, 20, 8)
    assert net[0].weight[3].tolist() == [0] * 8
    assert torch.equal(net[0](codes), net[0].weight[codes])
    net[0](codes).backward(g)
    wanted = torch.zeros(50, 8)
    wanted.index_add_(0, codes.flatten(), g.flatten(0, 1))
    wanted[3] = 0
    assert torch.allclose(net[0].weight.grad, wanted * math.sqrt(50 / 140), atol=1e-5)


@pytest.mark.parametrize("make", [nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, lambda: nn.ReLU(inplace=True)])
def test_activations_are_scaled_by_their_gaussian_moments(make: type[nn.Module]) -> None:
    """Against a million draws; the factor's fourth power is one over both moments."""
    torch.manual_seed(3)
    z = torch.randn(1_000_000, dtype=torch.float64, requires_grad=True)
    f = make()(z.clone())
    (slope,) = torch.autograd.grad(f.sum(), z)
    factor = float((f.detach().var() * slope.square().mean()) ** -0.25)
    assert activation_scale(make()) == pytest.approx(factor, rel=3e-3)
    net = recipes.unit_scaling().model(nn.Sequential(nn.Linear(2, 2), make()))
    x = torch.randn(5, requires_grad=True)
    y = net[1](x)
    (grad,) = torch.autograd.grad(y.sum(), x)
    leaf = x.detach().clone().requires_grad_()
    plain = make()(leaf.clone())
    plain.sum().backward()
    assert leaf.grad is not None and torch.allclose(grad, leaf.grad * factor, rtol=1e-2)
    assert torch.allclose(y, plain * factor, rtol=1e-2)
    assert torch.equal(net[1](input=x.detach()), y)


def test_relus_factor_is_known() -> None:
    assert activation_scale(nn.ReLU()) == pytest.approx(((1 / 2 - 1 / (2 * math.pi)) * (1 / 2)) ** -0.25, rel=1e-5)


def test_the_loss_is_the_mean_and_its_gradient_of_variance_one() -> None:
    z, target = torch.zeros(64, 10, requires_grad=True), torch.randint(10, (64,))
    loss = cross_entropy(z, target)
    assert loss.item() == pytest.approx(math.log(10))
    loss.backward()
    assert z.grad is not None
    wanted = (torch.full((64, 10), 0.1) - nn.functional.one_hot(target, 10)) * 10 / 3
    assert torch.allclose(z.grad, wanted, atol=1e-6)
    with pytest.raises(ValueError, match=r"\(n, classes\)"):
        cross_entropy(torch.zeros(3), torch.zeros(()).long())


def test_it_is_the_model_that_it_was() -> None:
    plain = nn.Sequential(nn.Linear(6, 6), nn.GELU(), nn.Linear(6, 2))
    before = copy.deepcopy(plain.state_dict())
    net = recipes.unit_scaling(exempt=("2",), initialize=False).model(plain)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and list(before) == list(
        net.state_dict()
    )
    assert isinstance(net[2], UnitLinear) and net[2].formats == (None, None)
    x = torch.randn(3, 6)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other(x), net(x))
    with pytest.raises(ValueError, match="'0' is a UnitLinear"):
        recipes.unit_scaling().model(net)
