"""Gradients accumulated over micro-batches, and clipped: what every recipe's and technique's optimizer then sees."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam
from torch.utils.checkpoint import checkpoint

from lptensor import BF16, E4M3, DelayedMaximum, DelayedScaling, OptimLP, quantizer
from lptensor.training import HALP, SWALP, DynamicFixedPoint, Flexpoint, LossScaler, Madam, round_layers
from recipe_list import RECIPES

E4M3_NEAREST = quantizer(E4M3, forward_rounding="nearest")
MOST = 0.01  # what gradients are clipped to


def batches(k: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.rand(8, 12), torch.randint(3, (8,))) for _ in range(k)]


def plain_net() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))


def backward(net: nn.Module, data: list[tuple[Tensor, Tensor]], scale: float, seed: int) -> None:
    """Forward and backward of each micro-batch; the seed makes stochastic roundings those of another run."""
    for i, (x, y) in enumerate(data):
        torch.manual_seed(seed + i)
        (F.cross_entropy(net(x), y) / len(data) * scale).backward()


def one_by_one(net: nn.Module, data: list[tuple[Tensor, Tensor]], scale: float, seed: int) -> list[Tensor]:
    """The gradients of each micro-batch by itself, added in fp32 in their order; ``net`` goes on with its state."""
    totals: list[Tensor] = []
    for i, (x, y) in enumerate(data):
        net.zero_grad()
        torch.manual_seed(seed + i)
        (F.cross_entropy(net(x), y) / len(data) * scale).backward()
        grads = [p.grad.clone() for p in net.parameters() if p.grad is not None]
        totals = grads if not totals else [a + b for a, b in zip(totals, grads, strict=True)]
    return totals


def clipped(grads: list[Tensor]) -> list[Tensor]:
    """By hand in float64, as torch documents clip_grad_norm_."""
    norm = torch.stack([g.double().square().sum() for g in grads]).sum().sqrt()
    return [g * min(1.0, MOST / (float(norm) + 1e-6)) for g in grads]


def seen_by(optim: Any) -> list[list[Tensor]]:
    """The gradients that the innermost optimizer steps with, step by step, filled in as it goes."""
    inner, seen = getattr(optim, "optim", optim), []
    inner.register_step_pre_hook(
        lambda o, *_: seen.append([p.grad.clone() for g in o.param_groups for p in g["params"]])
    )
    return seen


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipes_optimizer_steps_with_the_clipped_sum(name: str) -> None:
    """Each micro-batch rounds in its products; their gradients are added in fp32, rounded once, unscaled, clipped."""
    recipe = RECIPES[name]()
    net = recipe.model(plain_net())
    twin = copy.deepcopy(net)
    optim, scaler = recipe.optimizer(SGD(net.parameters(), lr=0.5)), recipe.scaler()
    seen = seen_by(optim)
    for step in range(2):
        data, scale = batches(), scaler.get_scale()
        optim.zero_grad()
        backward(net, data, scale, 10 * step)
        sums = one_by_one(twin, data, scale, 10 * step)
        for p, total in zip(net.parameters(), sums, strict=True):
            assert p.grad is not None and torch.equal(p.grad, total)
        torch.manual_seed(99)
        scaler.unscale_(optim)
        torch.manual_seed(99)
        rule = getattr(optim, "grad_quant", None)
        rounded = [total if rule is None else rule(total) for total in sums]
        wanted = clipped([g / scale for g in rounded])
        norm = clip_grad_norm_(net.parameters(), MOST)
        assert norm > MOST, "else nothing was tested"
        scaler.step(optim)
        scaler.update()
        assert len(seen) == step + 1
        for got, want in zip(seen[-1], wanted, strict=True):
            assert torch.allclose(got, want, rtol=1e-5, atol=1e-12)
        twin.load_state_dict(net.state_dict())


@pytest.mark.parametrize("update", ["nearest", "stochastic", "kahan", "mcf"])
@pytest.mark.parametrize("kind", [SGD, Adam, Madam])
def test_every_update_takes_one_step_for_all_micro_batches(update: str, kind: Any) -> None:
    """Accumulated, rounded and clipped by the scaler, or given to the bare update as that sum: the same bits."""
    finals = []
    for by_hand in (False, True):
        net, data = plain_net(), batches()
        optim = OptimLP(kind(net.parameters(), lr=0.1), BF16, None if by_hand else E4M3_NEAREST, update=update)
        scaler = LossScaler(2.0**6)
        for step in range(3):
            optim.zero_grad()
            if by_hand:
                sums = one_by_one(net, data, 2.0**6, 7)
                for p, total in zip(net.parameters(), sums, strict=True):
                    p.grad = total.clamp(-448, 448).to(torch.float8_e4m3fn).float() / 2.0**6
                clip_grad_norm_(net.parameters(), MOST)
                torch.manual_seed(step)
                optim.step()
            else:
                backward(net, data, 2.0**6, 7)
                scaler.unscale_(optim)
                assert clip_grad_norm_(net.parameters(), MOST) > MOST
                torch.manual_seed(step)
                scaler.step(optim)
                scaler.update()
        finals.append([p.detach().clone() for p in net.parameters()])
        key = {"kahan": "weight_compensation", "mcf": "weight_residual"}.get(update)
        finals[-1] += [entry[key] for entry in optim.state_dict()["state"].values() if key]
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def test_without_a_scaler_gradients_are_rounded_in_the_step_after_clipping() -> None:
    """``round_gradients`` and ``gradients_rounded`` make it before."""
    for first in (False, True):
        w = nn.Parameter(torch.zeros(50))
        optim = OptimLP(SGD([w], lr=1.0), grad_quant=E4M3_NEAREST)
        a, b = torch.randn(50), torch.randn(50)
        for g in (a, b):
            (w * g).sum().backward()
        total = a + b
        q = lambda t: t.clamp(-448, 448).to(torch.float8_e4m3fn).float()  # noqa: E731
        if first:
            optim.round_gradients()
            clip_grad_norm_([w], MOST)
            optim.step(gradients_rounded=True)
            (want,) = clipped([q(total)])
        else:
            clip_grad_norm_([w], MOST)
            optim.step()
            want = q(clipped([total])[0])
        assert torch.allclose(w.detach(), -want, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DelayedScaling(E4M3, DelayedMaximum(history=5)),
        lambda: DynamicFixedPoint(8, interval=2),
        lambda: Flexpoint(8, history=5),
    ],
    ids=["delayed", "dfxp", "flexpoint"],
)
def test_scales_with_a_memory_advance_with_each_micro_batch_and_clipping_leaves_them_alone(
    make: Callable[[], nn.Module],
) -> None:
    net = round_layers(plain_net(), make, make, make)
    twin = copy.deepcopy(net)
    optim = SGD(net.parameters(), lr=0.5)
    seen = seen_by(optim)
    for step in range(3):
        data = batches()
        optim.zero_grad()
        backward(net, data, 1.0, step)
        before = {key: value.clone() for key, value in net.named_buffers()}
        sums = one_by_one(twin, data, 1.0, step)
        for p, total in zip(net.parameters(), sums, strict=True):
            assert p.grad is not None and torch.equal(p.grad, total)
        assert all(torch.equal(value, before[key]) for key, value in twin.named_buffers())
        clip_grad_norm_(net.parameters(), MOST)
        optim.step()
        assert all(torch.equal(value, before[key]) for key, value in net.named_buffers())
        assert all(torch.allclose(a, b, rtol=1e-5) for a, b in zip(seen[-1], clipped(sums), strict=True))
        twin.load_state_dict(net.state_dict())
    if "amax_history" in "".join(before):
        assert int((net[0].rounded_input.amax_history > 0).sum()) == 5  # of nine calls


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: DelayedScaling(E4M3), lambda: DynamicFixedPoint(4, interval=1), lambda: Flexpoint(4)],
    ids=["delayed", "dfxp", "flexpoint"],
)
def test_a_checkpoints_recomputation_rounds_as_the_call_did_and_is_not_remembered(
    make: Callable[[], nn.Module], reentrant: bool
) -> None:
    runs = []
    for call in (lambda net, x: net(x), lambda net, x: checkpoint(net, x, use_reentrant=reentrant)):
        torch.manual_seed(0)
        net = round_layers(nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6)), make, make, make)
        for i in range(3):
            x = (torch.randn(5, 6) * 10.0**i).requires_grad_()
            call(net, x).square().sum().backward()
        net.eval()  # evaluation remembers nothing, and follows the state
        call(net, x).sum().backward()
        runs.append([x.grad, *(p.grad for p in net.parameters()), *net.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_swalp_counts_optimizer_steps_and_no_micro_batches() -> None:
    net = plain_net()
    optim = OptimLP(SGD(net.parameters(), lr=0.5), BF16, update="stochastic")
    average, taken = SWALP(net, start=1), []
    for step in range(4):
        optim.zero_grad()
        backward(net, batches(), 1.0, step)
        clip_grad_norm_(net.parameters(), MOST)
        optim.step()
        average.step()
        taken.append([p.detach().double() for p in net.parameters()])
    for mean, *iterates in zip(average.means, *taken[1:], strict=True):
        assert torch.allclose(mean, sum(iterates) / 3, rtol=1e-12)


def test_halps_closures_accumulate_and_clip_as_they_like() -> None:
    """Gradients of halves, of squares over integers, add up exactly to that of the whole."""
    a, b = torch.randint(-4, 5, (8, 3)).double(), torch.randint(-4, 5, (8,)).double()
    finals = []
    for parts in (1, 2):
        torch.manual_seed(5)
        w = nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optim = HALP([w], lr=0.01, mu=1.0)

        def closure(parts: int = parts, w: nn.Parameter = w) -> None:
            for rows in torch.arange(8).chunk(parts):
                ((a[rows] @ w - b[rows]).square().sum() / 16).backward()
            clip_grad_norm_([w], 4.0)

        optim.recenter(closure)
        assert w.grad is not None and abs(float(w.grad.norm()) - 4) < 1e-5
        for _ in range(6):
            optim.step(closure)
        finals.append(optim.state[w]["offset"] / optim.param_groups[0]["spacing"])
    assert torch.allclose(*finals, atol=1e-6) and bool(finals[0].any())


def test_madam_normalises_what_was_clipped() -> None:
    """Its steps go by g / sqrt(v): of the first, clipping changes nothing but the running square."""
    w, hand = nn.Parameter(torch.randn(20)), None
    hand = w.detach().clone()
    for g in (torch.randn(20), torch.randn(20)):
        (w * g).sum().backward()
    total = w.grad.clone() if w.grad is not None else None
    assert total is not None
    clip_grad_norm_([w], MOST)
    optim = Madam([w], lr=0.1)
    optim.step()
    assert torch.allclose(w.detach(), hand * torch.exp(-0.1 * hand.sign() * total.sign()), rtol=1e-5)
    (want,) = clipped([total])
    assert torch.allclose(optim.state[w]["square_avg"], 0.001 * want.square(), rtol=1e-4)
