"""Recipes: one step of a layer against its three products, each operand rounded by hand; all train and resume."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.optim import SGD, Adam

from lptensor import (
    BF16,
    E4M3,
    MXFP4,
    Accumulator,
    Arithmetic,
    DelayedScaling,
    Gemm,
    LPTensor,
    OptimLP,
    Quantizer,
    convert,
    lower,
    round as lp_round,
    training,
)
from lptensor.codebooks import DYNAMIC8
from lptensor.formats import FixedPoint
from lptensor.hadamard import Hadamard
from lptensor.posits import Posit
from lptensor.rounding import Mode, Rounding, Stochastic
from lptensor.training import (
    HBFP,
    LUQ,
    S2FP8,
    SAWB,
    Blockwise,
    DoReFaActivation,
    DoReFaGradient,
    DoReFaWeight,
    DynamicFixedPoint,
    Expansion,
    Flexpoint,
    FourOverSix,
    Madam,
    MSEden,
    Recipe,
    Static,
    Technique,
    ThreeQuarters,
    WageActivation,
    WageError,
    WageGradient,
    WageWeight,
    recipes,
    round_layers,
)
from recipe_list import RECIPES


def test_every_recipe_is_tested() -> None:
    public = {name for name, value in vars(recipes).items() if callable(value) and value.__module__ == recipes.__name__}
    assert {name.split()[0] for name in RECIPES} == {name for name in public if name[0] != "_"} - {"Recipe"}
    told = {name: str(getattr(recipes, name.split()[0]).__doc__) for name in RECIPES}
    assert all("(" in text and ">>>" in text for text in told.values()), "each names its paper and has an example"


# By hand: PyTorch's own 8-bit casts, scales by their formulas, integers by torch.round. Rows are along the last axis.
def e4m3(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


def e5m2(x: Tensor) -> Tensor:
    return x.to(torch.float8_e5m2).float()


def under(cast: Callable[[Tensor], Tensor], top: float, x: Tensor) -> Tensor:
    scale = x.abs().max() / top
    return cast(x / scale) * scale


def tiles(x: Tensor, height: int, width: int) -> Tensor:
    out = torch.empty_like(x)
    for i in range(0, x.shape[0], height):
        for j in range(0, x.shape[1], width):
            block = x[i : i + height, j : j + width]
            out[i : i + height, j : j + width] = under(e4m3, 448.0, block)
    return out


def bfp(x: Tensor, wl: int, height: int, width: int) -> Tensor:
    out = torch.empty_like(x)
    for i in range(0, x.shape[0], height):
        for j in range(0, x.shape[1], width):
            block = x[i : i + height, j : j + width]
            step = 2.0 ** (math.floor(math.log2(float(block.abs().max()))) - wl + 2)
            top = 2 ** (wl - 1) - 1
            out[i : i + height, j : j + width] = (block / step).round().clamp(-top, top) * step
    return out


def mx(x: Tensor, values: list[float], up: bool) -> Tensor:
    """Blocks of 32 along the last axis, nearest of a list of values, ties to the even place in it."""
    listed = torch.tensor(values, dtype=torch.float64)
    top = values[-1]
    out = torch.empty_like(x)
    for j in range(0, x.shape[1], 32):
        block = x[:, j : j + 32].double()
        largest = block.abs().amax(1, keepdim=True)
        exponent = (largest / top).log2().ceil() if up else largest.log2().floor() - math.floor(math.log2(top))
        scaled = (block / 2**exponent).abs()
        distance = (scaled.unsqueeze(-1) - listed).abs()
        odd = torch.arange(len(values)) % 2
        place = (distance * 1e6).round().mul(2).add(odd).argmin(-1)  # a tie goes to the even place
        out[:, j : j + 32] = (torch.copysign(listed[place], block) * 2**exponent).float()
    return out


def minifloat(exp: int, man: int, bias: int, codes: int) -> list[float]:
    return [
        (m / 2**man if e == 0 else 1 + m / 2**man) * 2.0 ** (max(e, 1) - bias)
        for e in range(2**exp)
        for m in range(2**man)
    ][:codes]


def linear(pairs: dict[str, Any], x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    """y, the gradients of x and w, each product with its operands rounded along the axis that it sums over.

    "whole": each tensor is rounded once, as it is. "forward_only": gradients are stochastic, and tested on average.
    """
    qx, qw, qg = pairs["x"], pairs["w"], pairs.get("g", lambda t: t)
    if pairs.get("whole"):
        x, w, g = qx(x), qw(w), qg(g)
        return x @ w.T, g @ w, g.T @ x
    if pairs.get("forward_only"):
        return (qx(x) @ qw(w).T,)
    qw_t = pairs.get("w along outputs", lambda t: qw(t.T.contiguous()).T)
    mm = pairs.get("mm", torch.mm)
    return mm(qx(x), qw(w).T), mm(qg(g), qw_t(w)), mm(qg(g.T.contiguous()), qx(x.T.contiguous()).T)


def ibm(a: Tensor, b: Tensor) -> Tensor:
    """Chunks of 64 products, each sum in 1-6-9, then the chunks' sums, rounded by scaling to integers in float64."""
    total = torch.zeros(a.shape[0], b.shape[1], dtype=torch.float64)
    for start in range(0, a.shape[1], 64):
        chunk = torch.zeros_like(total)
        for k in range(start, min(start + 64, a.shape[1])):
            chunk = one_six_nine(chunk + a[:, k : k + 1].double() * b[k : k + 1].double())
        total = one_six_nine(total + chunk)
    return total.float()


def one_six_nine(x: Tensor) -> Tensor:
    quantum = torch.exp2(x.abs().clamp(min=2.0**-30).log2().floor() - 9)
    return (x / quantum).round() * quantum


E2M1 = minifloat(2, 1, 1, 8)
BY_HAND: dict[str, dict[str, Any]] = {
    "wang": dict(x=e5m2, w=e5m2, g=e5m2, mm=ibm),
    "fp8_current": dict(
        x=lambda t: under(e4m3, 448.0, t), w=lambda t: under(e4m3, 448.0, t), g=lambda t: under(e5m2, 57344.0, t)
    ),
    "deepseek": dict(x=lambda t: tiles(t, 1, 128), w=lambda t: tiles(t, 128, 128), g=lambda t: tiles(t, 1, 128)),
    "hbfp to nearest": dict(
        x=lambda t: bfp(t, 8, 1, 10**9), w=lambda t: bfp(t, 8, 24, 24), g=lambda t: bfp(t, 8, 1, 10**9), whole=True
    ),
    "mxfp8": dict.fromkeys("xwg", lambda t: mx(t, minifloat(4, 3, 7, 127), up=True)),
    "mxfp6": dict.fromkeys("xwg", lambda t: mx(t, minifloat(3, 2, 3, 32), up=False)),
    "mxfp4 to nearest": dict.fromkeys("xwg", lambda t: mx(t, E2M1, up=False)),
    "posit": dict(
        x=lambda t: lp_round(t, Posit(8, 1)), w=lambda t: lp_round(t, Posit(8, 1)), g=lambda t: lp_round(t, Posit(8, 2))
    ),
    "hfp8": dict(
        x=lambda t: nearest_of(minifloat(4, 3, 11, 128), t),
        w=lambda t: nearest_of(minifloat(4, 3, 11, 128), t),
        g=e5m2,
        mm=ibm,
    ),
    "lns_madam": dict.fromkeys("xwg", lambda t: logarithmic(t)),
    "s2fp8": dict.fromkeys("xwg", lambda t: shifted_and_squeezed(t)),
    "luq": dict(x=lambda t: sawb(t), w=lambda t: sawb(t), forward_only=True),
    "luq by maximum": dict.fromkeys("xw", lambda t: under(lambda q: q.round().clamp(-8, 7), 7.0, t))
    | {"forward_only": True},
    "nvfp4": dict(x=lambda t: nvfp4(t, 1, 16), w=lambda t: nvfp4(t, 16, 16), forward_only=True),
    "mxfp4": dict(x=lambda t: t, w=lambda t: t, forward_only=True),
    "dorefa": dict(x=lambda t: (t.clamp(0, 1) * 255).round() / 255, w=lambda t: dorefa_weight(t, 4), forward_only=True),
}


def shifted_and_squeezed(x: Tensor) -> Tensor:
    """S2FP8's formula: |x| becomes 2**b |x|**a, whose logarithms have the mean 0 and the maximum 15."""
    logs = x.double().abs().log2()
    a = 15 / (logs.max() - logs.mean())
    b = -a * logs.mean()
    return torch.copysign(((e5m2((a * logs + b).exp2()).double().log2() - b) / a).exp2(), x.double()).float()


def sawb(x: Tensor) -> Tensor:
    clip = 12.035 * x.square().mean().sqrt() - 12.03 * x.abs().mean()
    return (x / (clip / 7)).round().clamp(-7, 7) * (clip / 7)


def dorefa_weight(w: Tensor, bits: int) -> Tensor:
    n, t = 2**bits - 1, w.tanh()
    return 2 * ((t / (2 * t.abs().max()) + 0.5) * n).round() / n - 1


def nvfp4(x: Tensor, height: int, width: int) -> Tensor:
    """E2M1 under E4M3 scales of blocks, under one fp32 scale for the tensor."""
    whole, out = x.abs().max() / (6 * 448), torch.empty_like(x)
    for i in range(0, x.shape[0], height):
        for j in range(0, x.shape[1], width):
            block = x[i : i + height, j : j + width]
            scale = e4m3(block.abs().max() / 6 / whole) * whole
            out[i : i + height, j : j + width] = nearest_of(E2M1, block / scale) * scale
    return out


def nearest_of(values: list[float], x: Tensor) -> Tensor:
    listed = torch.tensor(values, dtype=torch.float64)
    return torch.copysign(listed[(x.double().abs().unsqueeze(-1) - listed).abs().argmin(-1)], x.double()).float()


def logarithmic(x: Tensor) -> Tensor:
    """LNS-Madam's formula: s 2**(k / 8 - 127 / 8), k the nearest integer from 1 to 127; zero below half the least."""
    s = x.abs().max()
    k = (8 * (x / s).double().abs().log2() + 127).round().clamp(1, 127)
    magnitude = 2 ** ((k - 127) / 8)
    magnitude[(x / s).abs() < 2 ** ((1 - 127) / 8) / 2] = 0
    return torch.copysign(magnitude, x.double()).float() * s


def one_step(recipe: Recipe, x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, ...]:
    layer = nn.Sequential(nn.Linear(w.shape[1], w.shape[0], bias=False))
    with torch.no_grad():
        layer[0].weight.copy_(w)
    layer = recipe.model(layer)
    leaf = x.clone().requires_grad_()
    y = layer(leaf)
    y.backward(g if type(y) is Tensor else g.to_lp(y.arithmetic))  # type: ignore[attr-defined]
    grads = [leaf.grad, next(iter(layer.parameters())).grad]
    return tuple(t.dequantize().detach() if hasattr(t, "arithmetic") else t.detach() for t in (y, *grads))


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_pickle_and_equal_their_like(name: str) -> None:
    recipe = RECIPES[name]()
    assert pickle.loads(pickle.dumps(recipe)) == recipe == RECIPES[name]()
    assert len({recipe, RECIPES[name]()}) == 1 and "0x" not in repr(recipe)


def test_arguments_that_mean_the_same_make_equal_recipes() -> None:
    for name, mode in (("stochastic", Mode.STOCHASTIC), ("nearest", Mode.NEAREST)):
        for recipe in (recipes.hbfp, recipes.gupta):
            assert recipe(rounding=name) == recipe(rounding=mode) == recipe(rounding=Rounding(mode))
    assert recipes.Recipe(scaling=8.0) == recipes.Recipe(scaling=Static(8.0))


@pytest.mark.parametrize("name", BY_HAND)
def test_one_step_is_three_products_of_rounded_operands(name: str) -> None:
    x, w, g = torch.randn(40, 150), torch.randn(70, 150), torch.randn(40, 70) / 8
    got = one_step(RECIPES[name](), x, w, g)
    wanted = linear(BY_HAND[name], x, w, g)
    for product, a, b in zip(("y", "gradient of x", "gradient of w"), got, wanted, strict=False):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5 * float(b.abs().max())), product
    exact = linear(dict.fromkeys("xwg", lambda t: t), x, w, g)
    assert torch.allclose(got[0], exact[0], rtol=1e-5) == (name == "mxfp4")


def test_hfp8s_bias_comes_on_top_of_the_usual_one() -> None:
    """LLVM and XLA made float8_e4m3b11fnuz after Sun et al., whose bias of 4 they count as 11."""
    made_after_it = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3b11fnuz).astype(np.float64)
    values = recipes.hfp8().operands.forward[0].format.values().tolist()
    assert set(values) == set(made_after_it[~np.isnan(made_after_it)])


def test_guptas_outputs_reach_32_and_everything_else_8() -> None:
    """To nearest: outputs in steps of 2**-10, gradients and weights in steps of 2**-12."""

    def fixed(x: Tensor, fl: int) -> Tensor:
        return (x.double() * 2**fl).round().clamp(-(2**15), 2**15 - 1) / 2**fl

    net = recipes.gupta(rounding="nearest").model(nn.Sequential(nn.Linear(20, 9)))
    optim = recipes.gupta(rounding="nearest").optimizer(SGD(net.parameters(), lr=0.25))
    w, b = (p.detach().double() for p in net.parameters())
    x, g = (torch.randn(6, 20) * 8).requires_grad_(), torch.randn(6, 9) * 4
    y = net(x)
    y.backward(g)
    optim.step()
    exact = x.detach().double() @ w.T + b
    assert torch.allclose(y.detach().double(), fixed(exact, 10), atol=2**-9) and float(exact.abs().max()) > 8
    assert torch.equal(y * 2**10, (y * 2**10).round()) and float(y.detach().abs().max()) > 8
    error = fixed(g, 12)
    wanted = fixed(w - 0.25 * fixed(error.T @ x.detach().double(), 12), 12)
    assert torch.allclose(next(net.parameters()).detach().double(), wanted, atol=2**-11)
    with pytest.raises(ValueError, match="outputs must be"):
        recipes.gupta(outputs=200)


def test_gupta_rounds_the_outputs_of_layers_that_have_parts() -> None:
    """Attention, and a layer whose weight another module makes, which is no layer and keeps its values."""
    attention, normed = nn.MultiheadAttention(4, 2), parametrizations.weight_norm(nn.Linear(4, 4))
    net = recipes.gupta(8, 6).model(nn.ModuleList([attention, normed]))  # outputs have 2 fraction bits
    x = torch.randn(3, 2, 4)
    with torch.no_grad():
        w = copy.deepcopy(normed.weight)
        for y in (net[0](x, x, x)[0], net[1](x)):
            assert torch.equal(y * 4, (y * 4).round())
    exact = normed.parametrizations.weight.original1
    assert torch.allclose(w, normed.parametrizations.weight.original0 * exact / exact.norm(dim=1, keepdim=True))


@pytest.mark.parametrize("name", ["mxfp4", "luq", "luq by maximum"])
def test_stochastic_gradients_are_unbiased(name: str) -> None:
    """The mean of many backward passes is that of operands whose stochastic ones are exact; one pass is not."""
    x, w, g = torch.randn(16, 64), torch.randn(32, 64), torch.randn(16, 32)
    runs = [one_step(RECIPES[name](), x, w, g) for _ in range(200)]
    qx, qw = BY_HAND[name]["x"](x), BY_HAND[name]["w"](w)
    for i, wanted in enumerate((qx @ qw.T, g @ qw, g.T @ qx)):
        drawn = torch.stack([run[i] for run in runs])
        spread = drawn.std(0) / math.sqrt(200)
        assert bool(((drawn.mean(0) - wanted).abs() < 5.5 * spread + 1e-4).all())
        if i:
            assert not torch.equal(runs[0][i], runs[1][i])


def test_nvfp4s_gradients_are_those_of_its_operands_on_average() -> None:
    """The weight's rounded values are those of the forward pass; before the last product come Hadamard matrices.

    Stochastic rounding ends at 6 scales: what lies beyond, E4M3 having rounded its scale down, saturates.
    """
    x, w, g = torch.randn(16, 64), torch.randn(32, 64), torch.randn(16, 32)

    def mean_of_rounding(t: Tensor) -> Tensor:
        whole = t.abs().max() / (6 * 448)
        scales = e4m3(t.unflatten(1, (-1, 16)).abs().amax(2, keepdim=True) / 6 / whole) * whole
        return torch.maximum(torch.minimum(t.unflatten(1, (-1, 16)), 6 * scales), -6 * scales).flatten(1)

    h = torch.ones(1, 1)
    for _ in range(4):
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    h = Hadamard(16).draw(h).view(-1, 1) * h / 4  # type: ignore[union-attr]
    runs = [one_step(recipes.nvfp4(), x, w, g) for _ in range(400)]
    wanted = mean_of_rounding(g) @ nvfp4(w, 16, 16), mean_of_rounding(g.T @ h) @ nvfp4(x.T @ h, 1, 16).T
    for i in (1, 2):
        drawn = torch.stack([run[i] for run in runs])
        assert bool(((drawn.mean(0) - wanted[i - 1]).abs() < 5.5 * drawn.std(0) / 20 + 1e-4).all())


@pytest.mark.parametrize("rounding", ["stochastic", Mode.STOCHASTIC, Rounding(Mode.STOCHASTIC)])
def test_guptas_updates_are_drawn_however_the_rounding_is_said(rounding: Any) -> None:
    recipe, w = recipes.gupta(rounding=rounding), nn.Parameter(torch.ones(4000))
    w.grad = torch.full_like(w, 2.0**-12)
    recipe.optimizer(SGD([w], lr=0.125)).step()
    assert set(w.tolist()) == {1.0, 1 - 2.0**-12}
    assert abs(float((w == 1).double().mean()) - 0.875) < 5 * (0.875 * 0.125 / 4000) ** 0.5


def test_gupta_takes_no_rounding_that_its_update_has_not() -> None:
    for rounding in ("up", Stochastic(4)):
        with pytest.raises(ValueError, match='gupta rounds "stochastic" or "nearest", got'):
            recipes.gupta(rounding=rounding)


def test_dorefas_gradients_are_dithered_sample_by_sample() -> None:
    """Of one column, with weights and inputs that are exact, the gradient of the input shows the grid."""
    x, w, g = torch.ones(3, 1), torch.ones(1, 1), torch.tensor([[0.5], [1e-3], [-20.0]])
    _, of_x, of_w = one_step(recipes.dorefa(8, 8, 4), x, w, g)
    m = g.abs()
    steps = (of_x / (2 * m) + 0.5) * 15
    assert torch.allclose(steps, steps.round(), atol=1e-4) and bool(((of_x - g).abs() < 2 * m / 15 + 1e-6).all())
    assert of_w.item() == 0  # the derivative of tanh w / max|tanh w|, where w is the largest itself


@pytest.mark.parametrize("name", RECIPES)
def test_all_train_a_network_and_resume_bit_for_bit(name: str) -> None:
    """With accumulated and clipped gradients; the loss falls."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, 12, generator=generator)
    y = (x[:, :3].sum(1) > 1.5).long() + (x[:, 3:6].sum(1) > 1.5).long()

    def setup() -> tuple[Any, ...]:
        torch.manual_seed(1)
        recipe = RECIPES[name]()
        net = recipe.model(nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3)))
        params = list(net.parameters())
        others = {
            "lns_madam": lambda: Madam(params, lr=0.02),
            "wage": lambda: SGD(params, lr=8.0),
            "unit_scaling": lambda: Adam(params, lr=0.03),
            "quartet": lambda: SGD(params, lr=1.0, momentum=0.5),
            "quartet2": lambda: SGD(params, lr=1.0, momentum=0.5),
        }
        optim = others.get(name, lambda: SGD(params, lr=0.3, momentum=0.5))()
        return net, recipe.optimizer(optim), recipe.scaler()

    def train(net: nn.Module, optim: Any, scaler: Any, steps: int) -> float:
        for _ in range(steps):
            optim.zero_grad()
            total = 0.0
            for half in (slice(0, 32), slice(32, 64)):
                logits = net(x[half])
                logits = logits.dequantize() if hasattr(logits, "arithmetic") else logits
                loss = F.cross_entropy(logits, y[half]) / 2
                scaler.scale(loss).backward()
                total += loss.item()
            scaler.unscale_(optim)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optim)
            scaler.update()
        return total

    run = setup()
    first = train(*run, 1)
    train(*run, 3)
    net, optim, scaler = run
    buffer = io.BytesIO()
    torch.save([net.state_dict(), optim.state_dict(), scaler.state_dict(), torch.get_rng_state()], buffer)
    straight = train(*run, 5)
    buffer.seek(0)
    *states, rng = torch.load(buffer, weights_only=True)
    other = setup()
    for part, state in zip(other, states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(rng)
    assert train(*other, 5) == straight
    for a, b in zip(net.parameters(), other[0].parameters(), strict=True):
        assert torch.equal(*(t.dequantize() if hasattr(t, "arithmetic") else t for t in (a.detach(), b.detach())))
    assert train(*run, 60) < 0.8 * first


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "nvfp4", "posit"])
def test_what_has_an_arithmetic_comes_off_without_a_trace(name: str) -> None:
    net = nn.Sequential(nn.Linear(32, 8), nn.ReLU(), nn.Linear(8, 2))
    x, before = torch.randn(3, 32), [dict(vars(m)) for m in net.modules()]
    keys, y = [(key, p.data_ptr()) for key, p in net.named_parameters()], net(x)
    hooks = [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()]
    lower(RECIPES[name]().model(net), ["linear", "conv"])
    assert torch.equal(net(x), y) and [(key, p.data_ptr()) for key, p in net.named_parameters()] == keys
    assert [set(vars(m)) for m in net.modules()] == [set(names) for names in before]
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in net.modules()] == hooks


@pytest.mark.parametrize("name", sorted({name.split()[0] for name in RECIPES}))
def test_a_recipe_knows_its_exempt_layers(name: str) -> None:
    assert getattr(recipes, name)(exempt=("2",)).exempt == ("2",)


@pytest.mark.parametrize("name", ["mxfp8", "s2fp8"])
def test_skipped_layers_stay_fp32_and_only_they(name: str) -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3))
    first, last = copy.deepcopy(net[0]), copy.deepcopy(net[2])
    getattr(recipes, name)(exempt=("0",)).model(net)
    x = torch.randn(4, 6)
    assert torch.equal(net[0](x), first(x))
    hidden = first(x).tanh().detach()
    rounded = linear(BY_HAND[name], hidden, last.weight.detach(), torch.ones(4, 3))[0] + last.bias
    assert torch.allclose(net(x), rounded, rtol=1e-5, atol=1e-6) and not torch.allclose(
        last(hidden), rounded, rtol=1e-3
    )


class TestRoundLayers:
    def test_input_weight_and_gradient_are_each_rounded_once(self) -> None:
        """Delayed scales are 1 in the first step, so that these are plain casts."""
        x, w, g = torch.randn(5, 7), torch.randn(3, 7), torch.randn(5, 3)
        got = one_step(recipes.fp8_delayed(), x, w, g)
        wanted = linear(dict(x=e4m3, w=e4m3, g=e5m2), x, w, g)
        assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-5) for a, b in zip(got, wanted, strict=True))

    def test_the_second_step_is_under_the_first_ones_scales(self) -> None:
        net = recipes.fp8_delayed().model(nn.Sequential(nn.Linear(7, 3, bias=False)))
        x, g = torch.randn(5, 7) * 1e-4, torch.randn(5, 3) * 1e-7
        net(x).backward(g)
        net(x)  # takes the scales of the first step
        layer = net[0]
        fresh = torch.randn(5, 7) * 1e-4
        scale = layer.rounded_input.scale.clone()
        assert float(scale) == float(torch.tensor(448.0) / x.abs().max())
        exact = layer.parametrizations.weight.original
        weight_scale = layer.parametrizations.weight[0].scale.clone()
        want = (e4m3(fresh * scale) / scale) @ (e4m3(exact * weight_scale) / weight_scale).T
        assert torch.allclose(net(fresh), want, rtol=1e-5, atol=1e-9)
        assert float(layer.rounded_gradient.quantize.scale) == pytest.approx(57344 / float(g.abs().max()), rel=1e-6)

    def test_modules_are_differentiated_as_they_stand(self) -> None:
        class Halving(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                return x / 2

        layer = round_layers(nn.Linear(2, 1, bias=False), input=Halving, weight=Halving)
        x = torch.ones(1, 2, requires_grad=True)
        layer(x).backward()
        assert x.grad is not None and torch.equal(x.grad, layer.weight.detach() / 2)
        assert torch.equal(layer.parametrizations.weight.original.grad, torch.full((1, 2), 0.25))

    def test_a_conversion_leaves_a_plain_layer_what_rounds_its_operands(self) -> None:
        net = round_layers(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), input=LUQ, exempt=("1",))
        hooks = dict(net[0]._forward_pre_hooks)
        convert(net, {"0": None, "1": E4M3})
        assert hooks and hooks.items() <= net[0]._forward_pre_hooks.items()

    def test_stateful_scalings_of_any_kind_go_in(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        round_layers(net, *[lambda: DynamicFixedPoint(10, interval=1)] * 3)
        for _ in range(6):
            net(torch.randn(2, 1, 4, 4) * 50).sum().backward()
        exponents = [v for k, v in net.state_dict().items() if k.endswith("exponent")]
        assert len(exponents) == 6 and any(exponents)
        twin = copy.deepcopy(net)
        x = torch.randn(2, 1, 4, 4)
        assert torch.equal(net(x), twin(x))

    def test_bad_input_is_named(self) -> None:
        net = nn.Sequential(nn.Linear(2, 2))
        with pytest.raises(ValueError, match="exempt names '1', which is none of the layers 0"):
            round_layers(net, input=LUQ, exempt=("1",))
        with pytest.raises(ValueError, match="no layer left"):
            round_layers(net, input=LUQ, exempt=("0",))
        round_layers(net, input=lambda: DelayedScaling(E4M3))
        with pytest.raises(ValueError, match="rounded already"):
            round_layers(net, weight=LUQ)
        with pytest.raises(ValueError, match="a LazyLinear has no weight yet"):
            round_layers(nn.LazyLinear(2), weight=LUQ)

    @pytest.mark.parametrize(
        "make", [lambda: torch.round, lambda: Quantizer(FixedPoint(24, 0), forward_rounding="nearest")]
    )
    def test_a_penalty_on_gradients_reaches_the_weights(self, make: Any) -> None:
        """All values are small integers, which no rounding changes: gradients are those of the plain layers."""
        plain = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
        for p in plain.parameters():
            p.data = torch.randint(-3, 4, p.shape).float()
        rounded = round_layers(copy.deepcopy(plain), gradient=make)
        x = torch.randint(-3, 4, (5, 3)).float()
        for net in (plain, rounded):
            net.zero_grad()
            (g,) = torch.autograd.grad(net(x.requires_grad_()).sum(), x, create_graph=True)
            g.square().sum().backward()
        for a, b in zip(plain, rounded, strict=True):
            assert a.weight.grad is not None and torch.equal(a.weight.grad, b.weight.grad)

    def test_a_function_that_works_in_place_changes_nothing_of_the_callers(self) -> None:
        net = nn.Sequential(nn.Linear(4, 4))
        want, x = copy.deepcopy(net), torch.full((2, 4), 3.0)
        round_layers(net, *[lambda: lambda t: t.clamp_(-0.1, 0.1)] * 3)
        seen: list[Tensor] = []
        y = net(x)
        y.register_hook(seen.append)
        y.backward(torch.ones(2, 4))
        assert torch.equal(x, torch.full((2, 4), 3.0)) and torch.equal(seen[0], torch.ones(2, 4))
        assert torch.equal(net[0].parametrizations.weight.original, want[0].weight)
        assert torch.equal(y, x.clamp(-0.1, 0.1) @ want[0].weight.clamp(-0.1, 0.1).T + want[0].bias)
        assert net[0].bias.grad.tolist() == pytest.approx(4 * [0.2])

    @pytest.mark.parametrize("which", ["input", "weight", "gradient"])
    @pytest.mark.parametrize(
        "wrong, got", [(lambda t: None, "NoneType"), (lambda t: t.double(), "float64"), (lambda t: t[:1], r"\(1,")]
    )
    def test_a_function_that_returns_something_else_is_named(self, which: str, wrong: Any, got: str) -> None:
        net = round_layers(nn.Linear(4, 4), **{which: lambda: wrong})
        with pytest.raises(TypeError, match=rf"lambda.*must return a tensor like the torch.float32 of .*got .*{got}"):
            net(torch.ones(2, 4)).backward(torch.ones(2, 4))

    @pytest.mark.parametrize("pieces", [1, 2])
    @pytest.mark.parametrize("low", [False, True])
    def test_a_module_that_refuses_a_later_weight_leaves_all_layers_as_they_were(self, low: bool, pieces: int) -> None:
        class Picky(nn.Module):
            def forward(self, *w: Tensor) -> Tensor:
                return sum(w)  # type: ignore[return-value]

            def right_inverse(self, w: Tensor) -> Any:
                if w.shape[0] == 1:
                    raise ValueError("too narrow")
                return w / 2 if pieces == 1 else (w / 2, w / 2)

        net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        net = convert(net, BF16) if low else net
        parameters, before = dict(net.named_parameters()), copy.deepcopy(net.state_dict())
        with pytest.raises(ValueError, match="too narrow"):
            round_layers(net, *[Picky] * 3)
        assert [*dict(net.named_parameters())] == [*parameters] == [*before] and type(net[0]) is nn.Linear
        assert all(p is parameters[name] and torch.equal(p, before[name]) for name, p in net.named_parameters())
        assert not net[0]._forward_hooks and not [*net[0].children()]

    def test_an_activation_may_work_in_place(self) -> None:
        plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True))
        net = round_layers(copy.deepcopy(plain), gradient=lambda: torch.clone)
        x = torch.randn(3, 4)
        for model in (plain, net):
            model(x).sum().backward()
        assert torch.equal(net(x), plain(x)) and torch.equal(net[0].weight.grad, plain[0].weight.grad)

    def test_the_gradient_of_several_outputs_is_refused(self) -> None:
        with pytest.raises(TypeError, match="gradient of one tensor, which a LSTM does not return but a tuple"):
            round_layers(nn.LSTM(2, 2), gradient=LUQ, layer_types=(nn.LSTM,))(torch.ones(3, 2))

    def test_an_input_may_come_by_its_name(self) -> None:
        layer, x = round_layers(nn.Linear(3, 2), input=S2FP8), torch.randn(4, 3)
        assert torch.equal(layer(input=x), layer(x))
        with pytest.raises(TypeError, match="missing"):
            layer()

    def test_a_projection_that_attention_reads_and_does_not_call_stays(self) -> None:
        """Its weight would be rounded, its input and gradient not: neither hook of it is called."""
        net = round_layers(nn.TransformerEncoderLayer(8, 2, 16), *[LUQ] * 3)
        keys = [name for name, _ in net.named_parameters() if "parametrizations" in name]
        assert keys == [f"linear{i}.parametrizations.weight.original" for i in (1, 2)]


@pytest.mark.parametrize(
    "recipe",
    [
        lambda: recipes.dorefa(activation=0),
        lambda: recipes.dorefa(gradient=0),
        lambda: recipes.wage(activation=0),
        lambda: recipes.wage(error=1),
        lambda: recipes.unit_scaling("E4M3"),  # type: ignore[arg-type]
        lambda: recipes.unit_scaling(backward=8),  # type: ignore[arg-type]
    ],
)
def test_a_recipe_that_cannot_be_followed_changes_nothing(recipe: Callable[[], Recipe]) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    before, x = copy.deepcopy(net.state_dict()), torch.randn(3, 4)
    y = net(x)
    with pytest.raises((TypeError, ValueError), match="got (0|1|8|'E4M3')"):
        recipe().model(net)
    assert torch.equal(net(x), y) and [type(m) for m in net] == [nn.Linear, nn.ReLU, nn.Linear]
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items()) and not net[0]._forward_hooks


def test_wage_leaves_a_model_alone_that_its_grid_cannot_hold() -> None:
    net = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 2))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match="bfloat16"):
        recipes.wage().model(net)
    assert list(net.state_dict()) == list(before) and torch.equal(net[1].weight, before["1.weight"])


@pytest.mark.parametrize("name", ["gupta", "quartet", "quartet2", "unit_scaling", "hbfp", "wage"])
def test_models_of_half_precision_are_refused_before_they_change(name: str) -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2, dtype=torch.bfloat16))
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(TypeError, match="bfloat16"):
        getattr(recipes, name)().model(net)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert type(net[0]) is nn.Linear and not net[0]._forward_hooks and not net[1]._forward_hooks
    with pytest.raises(TypeError, match="a recipe changes a torch.nn.Module, got None"):
        getattr(recipes, name)().model(None)


def test_gupta_takes_half_precision_in_exempt_layers() -> None:
    net = nn.Sequential(nn.Linear(4, 4, dtype=torch.bfloat16), nn.Linear(4, 2))
    recipes.gupta(exempt=["0"]).model(net)
    assert net[1]._forward_hooks and not net[0]._forward_hooks


def test_a_technique_is_an_operand() -> None:
    operand = Technique(MXFP4, LUQ())
    assert operand == Technique(MXFP4, LUQ()) != Technique(MXFP4, LUQ(3)) and not operand.elementwise
    assert copy.deepcopy(operand) == operand and "LUQ" in repr(operand)
    with pytest.raises(TypeError, match="function of a tensor"):
        Technique(MXFP4, 3)  # type: ignore[arg-type]


def test_the_optimizers_of_recipes() -> None:
    w = nn.Parameter(torch.ones(1))
    assert isinstance(recipes.wang().optimizer(SGD([w], lr=1.0)), OptimLP)
    assert isinstance(recipes.mxfp8().optimizer(SGD([w], lr=1.0)), SGD)
    assert recipes.wang().scaler().get_scale() == 1000 and recipes.mxfp8().scaler().get_scale() == 1


# What a kept weight below 1 is a fixed point of, how far it may be from what it stands for, and whether chance decides.
KEPT: dict[str, tuple[Callable[[Tensor], Tensor], float, bool]] = {
    "gupta": (lambda w: (w.double() * 2**12).round() / 2**12, 2**-12, True),
    "wang": (one_six_nine, 2**-10, True),
    "hfp8": (one_six_nine, 2**-10, True),
    "wage": (lambda w: (w.double() * 2**7).round().clamp(-127, 127) / 2**7, math.inf, True),  # moves by a direction
    "hbfp": (lambda w: bfp(w, 16, 24, 24), 2**-15, True),
    "hbfp to nearest": (lambda w: bfp(w, 16, 24, 24), 2**-16, False),
    "posit": (lambda w: lp_round(w, Posit(16, 1)), 2**-14, False),
}


@pytest.mark.parametrize("name", KEPT)
def test_weights_are_kept_in_the_papers_formats(name: str) -> None:
    """Gradients are on gupta's grid, which rounds them too: what chance there is, is the weights'."""
    kept, most, by_chance = KEPT[name]
    start, g = torch.rand(48, 48) * 1.9 - 0.95, (torch.randn(48, 48) * 64).round() / 2**12
    finals = []
    for _ in range(2):
        w = nn.Parameter(start.clone())
        optim = RECIPES[name]().optimizer(SGD([w], lr=0.7))
        w.grad = g.clone()
        optim.step()
        finals.append(w.detach())
        assert torch.equal(w.double(), kept(w.detach()).double())
        assert float((finals[-1] - (start - 0.7 * g)).abs().max()) <= most * 1.001
    assert torch.equal(*finals) != by_chance


def test_luqs_samples_are_of_the_weights_gradient_only() -> None:
    x, w, g = torch.randn(16, 64), torch.randn(32, 64), torch.randn(16, 32)
    spreads = []
    for samples in (1, 16):
        runs = [one_step(recipes.luq(samples), x, w, g) for _ in range(60)]
        spreads.append([float(torch.stack([run[i] for run in runs]).var(0).mean()) for i in (1, 2)])
    (of_x, of_w), (of_x_16, of_w_16) = spreads
    assert of_w / of_w_16 == pytest.approx(16, rel=0.2) and of_x / of_x_16 == pytest.approx(1, rel=0.2)


def test_defaults_are_the_papers() -> None:
    for made, wanted in (
        (recipes.mxfp4(), recipes.mxfp4(hadamard=64)),
        (recipes.luq(), recipes.luq(samples=1)),
        (recipes.lns_madam(), recipes.lns_madam(bits=8, gamma=8)),
    ):
        assert made.operands == wanted.operands and made.accumulator == wanted.accumulator


@pytest.mark.parametrize("name", ["mxfp8", "luq", "wang"])
def test_an_lptensor_model_multiplies_as_the_changed_layers_do(name: str) -> None:
    x, w = torch.randn(9, 64), torch.randn(5, 64)
    low = convert(nn.Linear(64, 5, bias=False), RECIPES[name]().arithmetic)
    with torch.no_grad():
        low.weight.copy_(w)
    y = low(x.to_lp(low.weight.arithmetic))  # type: ignore[attr-defined]
    assert torch.equal(y.dequantize(), one_step(RECIPES[name](), x, w, torch.zeros(9, 5))[0])


@pytest.mark.parametrize("name", ["hbfp", "s2fp8", "gupta", "wage", "quartet", "quartet2", "unit_scaling"])
def test_a_recipe_without_an_arithmetic_says_so(name: str) -> None:
    with pytest.raises(ValueError, match=r"no arithmetic; let recipe.model\(model\) do it"):
        _ = RECIPES[name]().arithmetic


def test_the_api_lists_every_technique() -> None:
    page = (Path(__file__).parents[1] / "docs" / "api" / "training.md").read_text()
    for name in set(training.__all__) - {"Recipe", "recipes"}:  # on the page with the module of recipes
        assert re.search(rf"::? lptensor\.training\.{name}$", page, re.MULTILINE), name


class TestSkip:
    """``exempt`` means the same in every recipe: path patterns, and what lies below."""

    SKIPPING = (recipes.mxfp8, recipes.hbfp, recipes.s2fp8, recipes.fp8_delayed, recipes.quartet, recipes.unit_scaling)

    @pytest.mark.parametrize("recipe", SKIPPING[:-1])
    @pytest.mark.parametrize("exempt", [("head",), ("h*d",), ["head.0"]])
    def test_it_names_parts_by_patterns_of_their_paths(self, recipe: Any, exempt: Any) -> None:
        torch.manual_seed(0)
        head = nn.Linear(32, 32)
        net = nn.Sequential(OrderedDict(body=nn.Linear(32, 32), head=nn.Sequential(head)))
        x, inputs = torch.randn(4, 32), []
        recipe(exempt=exempt).model(net)
        head.register_forward_hook(lambda _, args, output: inputs.append((args[0], output)))
        net(x)
        ((into, out),) = inputs
        torch.testing.assert_close(out, F.linear(into, head.weight, head.bias))

    @pytest.mark.parametrize("recipe", SKIPPING)
    def test_a_string_is_no_list_of_one_letter_paths(self, recipe: Any) -> None:
        net = nn.Sequential(*(nn.Linear(32, 32) for _ in range(11)))
        with pytest.raises(TypeError, match="takes a list of path patterns, got '10'; say .*=\\['10'\\]"):
            recipe(exempt="10").model(net)


def test_layers_that_are_only_projections_of_attention_are_refused() -> None:
    with pytest.raises(ValueError, match="no such layer but projections of attention, which are not called"):
        recipes.hbfp().model(nn.MultiheadAttention(8, 2))


def test_wage_leaves_the_projections_of_attention_alone_and_rounds_the_last_layers_error() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last, self.attention = nn.Linear(8, 8), nn.Linear(8, 8), nn.MultiheadAttention(8, 2)

    model = Model()
    before = model.attention.out_proj.weight.detach().clone()
    recipes.wage().model(model)
    assert torch.equal(model.attention.out_proj.weight, before)
    assert hasattr(model.last, "rounded_gradient") and not hasattr(model.first, "rounded_gradient")
    assert not hasattr(model.attention.out_proj, "rounded_input")


def test_guptas_updates_round_as_everything_else_does() -> None:
    w = nn.Parameter(torch.zeros(1000))
    optim = recipes.gupta(rounding="nearest").optimizer(torch.optim.SGD([w], lr=2.0**-2))
    w.grad = torch.full((1000,), -(2.0**-12))
    optim.step()  # by a quarter of the spacing of (4, 12), which nearest loses in every weight
    assert not w.any()


MAKE: list[Callable[[], Callable[[Tensor], Tensor]]] = [
    lambda: Blockwise(DYNAMIC8, block_size=4, min_size=1),
    lambda: Expansion(E4M3),
    lambda: HBFP(6),
    LUQ,
    S2FP8,
    SAWB,
    FourOverSix,
    MSEden,
    ThreeQuarters,
    WageActivation,
    WageError,
    WageGradient,
    WageWeight,
    lambda: DoReFaActivation(3),
    lambda: DoReFaGradient(3),
    lambda: DoReFaWeight(3),
    lambda: DynamicFixedPoint(6),
    Flexpoint,
    lambda: DelayedScaling(E4M3),
]


@pytest.mark.parametrize("make", MAKE, ids=lambda make: type(make()).__name__)
def test_techniques_round_the_values_of_lptensors(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    """What they compute on their way is plain; what comes out is an LPTensor on its own format."""
    plain = torch.randn(32, 32).to_lp(FixedPoint(8, 4)).dequantize()
    torch.manual_seed(0)
    want = lp_round(make()(plain), FixedPoint(8, 4))
    torch.manual_seed(0)
    got = make()(plain.to_lp(FixedPoint(8, 4)))
    assert isinstance(got, LPTensor) and torch.equal(got.dequantize(), want)
    gradient = LPTensor(plain.clone(), Arithmetic(BF16, backward=FixedPoint(8, 4)), True)
    torch.manual_seed(0)
    of_gradient = make()(gradient)
    assert of_gradient.format == FixedPoint(8, 4) and torch.equal(of_gradient.dequantize(), want)  # type: ignore[attr-defined]


@pytest.mark.parametrize("make", MAKE, ids=lambda make: type(make()).__name__)
def test_a_checkpoint_holds_arithmetics_of_techniques(make: Callable[[], Callable[[Tensor], Tensor]]) -> None:
    function = make()
    if isinstance(function, nn.Module):
        return  # which has a state, and is no value
    x = torch.ones(2).to_lp(Arithmetic(BF16, operands=Gemm(Technique(E4M3, function))))
    buffer = io.BytesIO()
    torch.save(x, buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).arithmetic == x.arithmetic


def test_a_recipe_may_be_an_accumulator_alone() -> None:
    recipe = Recipe(accumulator=Accumulator(FixedPoint(1, 0)))  # whose register holds -1 and 0
    net = recipe.model(nn.Linear(4, 3, bias=False))
    assert set(net(torch.ones(2, 4)).flatten().tolist()) <= {-1.0, 0.0}
    assert recipe.arithmetic == Arithmetic(accumulator=recipe.accumulator)
