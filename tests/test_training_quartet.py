"""Quartet against its formulas, in float64 with explicit Hadamard matrices and lists of values."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lptensor import BF16, Accumulator, Arithmetic, convert, round as lp_round
from lptensor.training import ThreeQuarters, recipes
from lptensor.training.quartet import QuartetLinear, clipped_mxfp4

VALUES = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0], dtype=torch.float64)


def hadamard() -> Tensor:
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < 32:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return h / math.sqrt(32)


def by_blocks(x: Tensor, matrix: Tensor) -> Tensor:
    return torch.cat([block @ matrix for block in x.split(32, 1)], 1)


def quest(x: Tensor) -> tuple[Tensor, Tensor]:
    values, inside = torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)
    for row in range(x.shape[0]):
        for start in range(0, x.shape[1], 32):
            block = x[row, start : start + 32]
            deviation = (block.square().mean() - block.mean() ** 2).sqrt()
            s = 2.0 ** math.floor(math.log2(2.92247856 / 6 * deviation + 1e-8))
            nearest = VALUES[((block / s).abs().unsqueeze(1) - VALUES).abs().argmin(1)]
            values[row, start : start + 32] = torch.copysign(nearest, block) * s
            inside[row, start : start + 32] = (block / s).abs() < 6
    return values, inside


def case(n: int = 64, features: int = 96, outputs: int = 64) -> tuple[nn.Linear, Tensor, Tensor]:
    net = recipes.quartet().model(nn.Sequential(nn.Linear(features, outputs))).double()
    layer = net[0]
    x = torch.randn(n, features, dtype=torch.float64)
    return layer, x, torch.randn(n, outputs, dtype=torch.float64)


def test_the_forward_product_is_the_papers() -> None:
    layer, x, _ = case()
    h = hadamard()
    qx, qw = quest(by_blocks(x, h))[0], quest(by_blocks(layer.weight.detach(), h))[0]
    assert torch.allclose(layer(x), qx @ qw.T + layer.bias, rtol=1e-10, atol=1e-12)
    assert not torch.allclose(layer(x), nn.functional.linear(x, layer.weight, layer.bias), rtol=1e-3)
    assert torch.equal(layer(x.view(2, 32, 96)).flatten(0, 1), layer(x)) and layer(x[0]).shape == (64,)
    assert layer(x[:0]).shape == (0, 64)


def test_gradients_are_those_of_the_rounded_operands_on_average_and_masked() -> None:
    layer, x, g = case()
    h = hadamard()
    (qx, inside_x), (qw, inside_w) = quest(by_blocks(x, h)), quest(by_blocks(layer.weight.detach(), h))
    assert not inside_x.all() and not inside_w.all()
    turned = [(g @ qw) * inside_x, (g.T @ qx) * inside_w]
    draws: list[list[Tensor]] = [[], []]
    for _ in range(400):
        leaf = x.clone().requires_grad_()
        layer.zero_grad()
        layer(leaf).backward(g)
        for kept, grad, inside in zip(draws, (leaf.grad, layer.weight.grad), (inside_x, inside_w), strict=True):
            assert grad is not None
            in_front = by_blocks(grad, h)
            assert float(in_front[~inside].abs().max()) < 1e-12, "what was clipped has no gradient"
            kept.append(in_front)
    assert torch.equal(layer.bias.grad, g.sum(0))
    for kept, wanted, inside in zip(draws, turned, (inside_x, inside_w), strict=True):
        stacked = torch.stack(kept)
        spread = stacked.std(0) / 20
        assert bool(((stacked.mean(0) - wanted).abs() <= 5.5 * spread + 1e-12).all())
        error = float((kept[0] - wanted)[inside].norm() / wanted.norm())
        assert 0.05 < error < 0.4 and not torch.equal(kept[0], kept[1])


def test_both_operands_of_a_backward_product_turn_by_the_same_fresh_signs() -> None:
    """Turned back, an operand is itself times the signs of its block: of each product others, of each call too."""
    h, seen = hadamard(), []

    def unbiased(x: Tensor) -> Tensor:
        seen.append(x.clone())
        return x

    layer = QuartetLinear(32, 64, bias=False, unbiased=unbiased, dtype=torch.float64)
    x, g = torch.randn(96, 32, dtype=torch.float64), torch.randn(96, 64, dtype=torch.float64)
    qx, qw = quest(by_blocks(x, h))[0], quest(by_blocks(layer.weight.detach(), h))[0]
    for _ in range(2):
        layer(x).backward(g)
    drawn = []
    for turned, operand in zip(seen, [g, qw.T, g.T, qx.T] * 2, strict=True):
        signs = (by_blocks(turned, h) * operand.sign()).sign().where(operand != 0, 0)
        assert torch.allclose(by_blocks(turned, h), operand * signs, atol=1e-12)
        vector = signs.view(len(signs), -1, 32).sum((0, 1)).sign()
        assert torch.equal(signs, (vector * (operand != 0).view(len(signs), -1, 32)).flatten(1))
        drawn.append(vector.tolist())
    assert drawn[::2] == drawn[1::2] and len({tuple(v) for v in drawn}) == 4
    assert all({-1.0, 1.0} == set(v) for v in drawn)


def test_special_blocks_and_odd_widths() -> None:
    x = torch.cat([torch.zeros(32), torch.full((32,), math.nan), torch.randn(32)])
    values, inside = clipped_mxfp4(x)
    assert values[:32].tolist() == [0.0] * 32 and values[32:64].isnan().all() and values[64:].isfinite().all()
    assert inside[:32].all() and not inside[32:64].any()
    flat, within = clipped_mxfp4(torch.ones(32))  # its deviation is zero, and its scale what the authors add
    assert flat.tolist() == [6 * 2.0 ** math.floor(math.log2(1e-8))] * 32 and not within.any()
    edge = torch.tensor([6.0, -6.0] + 10 * [0.0] + 10 * [3.0, -3.0])  # of deviation 2.8, so of scale 1
    assert clipped_mxfp4(edge)[1].tolist() == [False, False] + 30 * [True]  # 6 itself is out, as in the authors' code
    layer = recipes.quartet().model(nn.Sequential(nn.Linear(40, 3)))[0]
    padded = recipes.quartet().model(nn.Sequential(nn.Linear(64, 3)))[0]
    with torch.no_grad():
        padded.weight.zero_()
        padded.weight[:, :40] = layer.weight
        padded.bias.copy_(layer.bias)
    x = torch.randn(5, 40)
    assert torch.equal(layer(x), padded(nn.functional.pad(x, (0, 24))))
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad is not None and leaf.grad.shape == (5, 40) and layer.weight.grad.shape == (3, 40)


def test_it_is_the_layer_that_it_was() -> None:
    plain = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    keys = list(plain.state_dict())
    net = recipes.quartet(exempt=("2",)).model(plain)
    assert net is plain and list(net.state_dict()) == keys and type(net[2]) is nn.Linear
    x = torch.randn(3, 32)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert type(other[0]) is QuartetLinear and torch.equal(other(x), net(x))
    with pytest.raises(ValueError, match="'0' is a QuartetLinear"):
        recipes.quartet().model(net)
    assert type(net[2]) is nn.Linear, "nothing was changed"
    with pytest.raises(ValueError, match="exempt names '7'"):
        recipes.quartet(exempt=("7",)).model(nn.Sequential(nn.Linear(2, 2)))


def test_a_layer_may_be_made_by_hand() -> None:
    torch.manual_seed(0)
    layer = QuartetLinear(64, 4, bias=False, unbiased=ThreeQuarters(), dtype=torch.float64)
    plain = nn.Linear(64, 4, bias=False, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    recipes.quartet().model(plain)
    x = torch.randn(3, 64, dtype=torch.float64)
    assert torch.equal(layer(x), plain(x))


def test_torchs_fused_paths_do_not_pass_it_by() -> None:
    """In evaluation without gradients a TransformerEncoderLayer would read the weights itself."""
    net = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True).eval()
    recipes.quartet(exempt=("self_attn.out_proj",)).model(net)
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        fused = net(x)
    assert torch.allclose(fused, net(x), atol=1e-4)  # attention has a path of its own, which sums otherwise


def test_scales_end_at_two_to_the_126() -> None:
    y = ThreeQuarters()(torch.tensor([2.0**200], dtype=torch.float64))
    assert y.item() == pytest.approx(6 * 2.0**126 * 4 / 3, rel=1e-12)


def test_a_penalty_on_gradients_is_refused() -> None:
    net = recipes.quartet().model(nn.Sequential(nn.Linear(32, 4)))
    x = torch.randn(3, 32, requires_grad=True)
    (g,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="not differentiated again"):
        (net(x).sum() + g.square().sum()).backward()
    assert torch.func.grad(lambda x: net(x).sum())(x.detach()).shape == x.shape


def test_the_values_of_lptensors_go_in_and_outputs_lie_on_their_format() -> None:
    plain = nn.Linear(64, 4)
    with torch.no_grad():
        for p in plain.parameters():
            p.copy_(lp_round(p, BF16, "nearest"))
    x = lp_round(torch.randn(3, 64), BF16, "nearest")
    low = recipes.quartet().model(convert(copy.deepcopy(plain), BF16))
    exact = recipes.quartet().model(nn.Sequential(plain))[0]
    bias, exact.bias = exact.bias, None
    y = low(x)
    want = lp_round(lp_round(exact(x), BF16, "nearest") + bias, BF16, "nearest")
    assert torch.equal(y.dequantize(), want)
    y.sum().backward()
    assert low.weight.grad.shape == (4, 64) and low.weight.grad.dequantize().count_nonzero() > 0


@pytest.mark.parametrize(
    "first",
    [
        recipes.mxfp8().model,
        lambda net: convert(net, recipes.mxfp8().arithmetic),
        lambda net: convert(net, Arithmetic(BF16, accumulator=Accumulator(BF16))),
    ],
)
def test_operands_that_are_rounded_already_are_refused_before_a_layer_changes(first: Any) -> None:
    net = first(nn.Sequential(nn.Linear(32, 4)))
    with pytest.raises((TypeError, ValueError), match="rounds operands itself|rounded already"):
        recipes.quartet().model(net)
    assert type(net[0]) is nn.Linear
    late = recipes.quartet().model(nn.Sequential(nn.Linear(32, 4)))
    with pytest.raises(TypeError, match="rounds operands itself"):
        first(late)(torch.randn(2, 32))


@pytest.mark.parametrize("unbiased", [3, None, ThreeQuarters])
def test_what_is_no_function_is_refused(unbiased: Any) -> None:
    with pytest.raises(TypeError, match="unbiased must be a function of a tensor"):
        QuartetLinear(32, 4, unbiased=unbiased)


def test_a_function_that_returns_another_shape_is_refused() -> None:
    layer = QuartetLinear(32, 4, unbiased=lambda t: t[:1])
    with pytest.raises(TypeError, match=r"lambda.* must return a tensor like the torch.float32 of .*got .*\(1, 32\)"):
        layer(torch.randn(8, 32)).sum().backward()
