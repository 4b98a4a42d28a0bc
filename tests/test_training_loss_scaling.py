"""Loss scaling: static, dynamic, automatic; divided after rounding."""

from __future__ import annotations

import inspect
import math
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import SGD

from lptensor import BF16, E4M3, E5M2, FP16, Arithmetic, FixedPoint, OptimLP, convert, lower, quantizer
from lptensor.training import Automatic, Dynamic, LossScaler, Static

E4M3_NEAREST = quantizer(E4M3, forward_rounding="nearest")
TINY = 2.0**-12  # a quarter of E4M3's smallest value: to nearest it becomes zero


def e4m3(x: Tensor) -> Tensor:
    return x.clamp(-448, 448).to(torch.float8_e4m3fn).float()


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_a_step_is_round_then_divide_by_hand(optimizer: str) -> None:
    w, hand = (nn.Parameter(torch.linspace(-1, 1, 40)) for _ in range(2))
    kind = getattr(torch.optim, optimizer)
    optim, plain = OptimLP(kind([w], lr=0.5), grad_quant=E4M3_NEAREST), kind([hand], lr=0.5)
    scaler = LossScaler(1000.0)
    x = torch.randn(40) * torch.logspace(-7, 0, 40)
    for _ in range(3):
        optim.zero_grad()
        loss = (w * x + 0.1 * w.square() * x).sum()
        scaler.scale(loss).backward()
        scaled = w.grad.clone() if w.grad is not None else None
        scaler.step(optim)
        scaler.update()
        assert scaled is not None
        hand.grad = e4m3(scaled) / 1000.0
        plain.step()
        assert torch.equal(w, hand) and torch.equal(w.grad, hand.grad)


@pytest.mark.parametrize("scale", [1.0, 2.0**8])
def test_what_would_underflow_arrives_if_scaled(scale: float) -> None:
    w = nn.Parameter(torch.ones(1))
    optim = OptimLP(SGD([w], lr=1.0), grad_quant=E4M3_NEAREST)
    scaler = LossScaler(scale)
    scaler.scale(w * TINY).sum().backward()
    scaler.step(optim)
    assert w.item() == (1.0 if scale == 1 else 1 - TINY)


def test_optimlps_own_scaling_stays_apart() -> None:
    """QPyTorch multiplies before it rounds and divides by nothing."""
    w = nn.Parameter(torch.ones(1))
    optim = OptimLP(SGD([w], lr=1.0), grad_quant=E4M3_NEAREST, grad_scaling=2.0)
    scaler = LossScaler(2.0**8)
    scaler.scale(w * TINY).sum().backward()
    scaler.step(optim)
    assert w.item() == 1 - 2 * TINY


@pytest.mark.parametrize("seed", range(4))
def test_dynamic_scales_are_those_of_torch(seed: int) -> None:
    """torch.amp.GradScaler on the same gradients, some of them infinite or NaN."""
    generator = torch.Generator().manual_seed(seed)
    runs = []
    for kind in ("torch", "ours"):
        generator.manual_seed(seed)
        w = nn.Parameter(torch.ones(5))
        optim = SGD([w], lr=0.01)
        scaler: Any = (
            torch.amp.GradScaler("cpu", 2.0**125, growth_interval=3)
            if kind == "torch"
            else LossScaler(Dynamic(2.0**125, growth_interval=3))
        )
        run = []
        for _ in range(60):
            optim.zero_grad()
            scaler.scale(w.sum()).backward()
            bad = torch.rand(1, generator=generator).item()
            if bad < 0.15:
                w.grad[2] = math.inf if bad < 0.1 else math.nan
            scaler.step(optim)
            scaler.update()
            run.append((scaler.get_scale(), *w.tolist()))
        runs.append(run)
    assert runs[0] == runs[1]
    assert len({scale for scale, *_ in runs[1]}) >= 3


def test_the_arguments_are_called_as_those_of_torchs_scaler() -> None:
    theirs = {*inspect.signature(torch.amp.GradScaler.__init__).parameters}
    assert {field.name for field in fields(Dynamic)} == theirs - {"self", "device", "enabled"}
    assert all("init_scale" in {field.name for field in fields(kind)} for kind in (Static, Automatic))


def test_defaults_are_the_papers_and_torchs() -> None:
    scaler = torch.amp.GradScaler("cpu")
    torchs = (scaler.get_scale(), scaler.get_growth_factor(), scaler.get_backoff_factor(), scaler.get_growth_interval())
    assert Dynamic() == Dynamic(*torchs)
    assert Automatic(E4M3) == Automatic(E4M3, threshold=0.001 / 100, span=1000)  # FP8-LM: 0.001 %, 1,000 steps


def test_the_automatic_scale_halves_at_saturation_and_else_doubles_in_its_span() -> None:
    w = nn.Parameter(torch.zeros(1000))
    optim = OptimLP(SGD([w], lr=0.0), grad_quant=E4M3_NEAREST)
    scaler = LossScaler(Automatic(E4M3, threshold=0.002, span=10))
    grads = torch.full((1000,), 1.0)
    grads[:2] = 448.0 / 4
    scales = []
    for _ in range(45):
        optim.zero_grad()
        scaler.scale((w * grads).sum()).backward()
        scaler.step(optim)
        scaler.update()
        scales.append(scaler.get_scale())
    by_hand, scale = [], 1.0
    for _ in range(45):  # two elements saturate: 0.2 %, which is not above the threshold; then all thousand
        rounded = e4m3(grads * scale)
        share = (rounded >= 448).double().mean().item()
        scale = scale / 2 if share > 0.002 else scale * 2**0.1
        by_hand.append(scale)
    assert scales == by_hand
    assert scales[9] == pytest.approx(2.0) and max(scales) > 8

    grads[:3] = 448.0
    scaler = LossScaler(Automatic(E4M3, 1.0, threshold=0.002))
    optim.zero_grad()
    scaler.scale((w * grads).sum()).backward()
    scaler.step(optim)
    scaler.update()
    assert scaler.get_scale() == 0.5


def test_the_automatic_scale_halves_at_a_skipped_step_however_few_elements_overflow() -> None:
    w = nn.Parameter(torch.ones(1000))
    optim, scaler = SGD([w], lr=1.0), LossScaler(Automatic(E5M2, 8.0, threshold=0.01))
    for scale in (4.0, 2.0):
        w.grad = torch.ones(1000)
        w.grad[3] = math.inf
        assert scaler.step(optim) is None
        scaler.update()
        assert scaler.get_scale() == scale


def test_accumulated_and_clipped_gradients_are_the_fp32_ones() -> None:
    """Two halves of a batch under one scale, clipped between unscale_ and step."""
    x, y = torch.randn(8, 4), torch.randn(8, 3)
    finals = []
    for scaled in (False, True):
        torch.manual_seed(1)
        net = nn.Linear(4, 3)
        optim = OptimLP(SGD(net.parameters(), lr=0.5))
        scaler = LossScaler(2.0**10 if scaled else 1.0)
        for _ in range(3):
            optim.zero_grad()
            for half in (slice(0, 4), slice(4, 8)):
                scaler.scale((net(x[half]) - y[half]).square().sum() / 8).backward()
            scaler.unscale_(optim)
            norm = clip_grad_norm_(net.parameters(), 0.1)
            assert norm > 0.1
            scaler.step(optim)
            scaler.update()
        finals.append([p.detach().clone() for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*finals, strict=True))


def test_rounding_comes_before_clipping_and_not_again() -> None:
    w = nn.Parameter(torch.zeros(100))
    calls: list[Tensor] = []

    def note(grad: Tensor) -> Tensor:
        calls.append(grad)
        return e4m3(grad)

    optim = OptimLP(SGD([w], lr=1.0), grad_quant=note)
    scaler = LossScaler(64.0)
    scaler.scale((w * torch.randn(100)).sum()).backward()
    scaler.unscale_(optim)
    clip_grad_norm_([w], 0.5)
    before = w.grad.clone() if w.grad is not None else None
    scaler.step(optim)
    assert len(calls) == 1 and before is not None and torch.equal(w, -before)


def test_a_gradient_clipped_back_to_finite_is_skipped_all_the_same() -> None:
    w = nn.Parameter(torch.ones(2))
    optim = SGD([w], lr=1.0)
    scaler = LossScaler(2.0)
    w.grad = torch.tensor([math.inf, 1.0])
    scaler.unscale_(optim)
    clip_grad_value_([w], 1.0)
    assert scaler.step(optim) is None and w.tolist() == [1.0, 1.0]


def test_rounding_that_overflows_counts() -> None:
    w = nn.Parameter(torch.ones(1))
    optim = OptimLP(SGD([w], lr=1.0), grad_quant=quantizer(E5M2, forward_rounding="nearest"))
    scaler = LossScaler(Dynamic(2.0**16))
    scaler.scale(w.sum()).backward()  # 65536 is beyond E5M2's 57344
    assert scaler.step(optim) is None
    scaler.update()
    assert scaler.get_scale() == 2.0**15 and w.item() == 1


def test_a_step_that_raises_may_be_taken_again() -> None:
    """As of torch.amp.GradScaler; the gradients are divided once."""
    w = nn.Parameter(torch.ones(1))
    optim, scaler = OptimLP(SGD([w], lr=1.0), acc_quant=lambda t: t.sum()), LossScaler(4.0)
    scaler.scale(w.sum()).backward()
    with pytest.raises(ValueError, match="acc_quant must return"):
        scaler.step(optim)
    assert w.item() == 1
    optim.acc_quant = None
    scaler.step(optim)
    assert w.item() == 0


def test_two_optimizers_share_a_scale_and_skip_on_their_own() -> None:
    a, b = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))
    optims = [SGD([p], lr=1.0) for p in (a, b)]
    scaler = LossScaler(Dynamic(4.0))
    a.grad, b.grad = torch.tensor([math.nan]), torch.tensor([4.0])
    for optim in optims:
        scaler.step(optim)
    scaler.update()
    assert a.item() == 1 and b.item() == 0 and scaler.get_scale() == 2


def test_gradients_of_lp_parameters_are_divided_in_fp32() -> None:
    """In their own format the quotient would become zero."""
    model = convert(nn.Linear(1, 1, bias=False), Arithmetic(BF16, E4M3))
    with torch.no_grad():
        model.weight.fill_(1.0)
    optim = OptimLP(SGD(model.parameters(), lr=16.0), update="nearest")
    scaler = LossScaler(2.0**8)
    for _ in range(2):
        optim.zero_grad()
        loss = model(torch.ones(1, 1).to_lp(Arithmetic(BF16, E4M3)) * TINY)  # type: ignore[attr-defined]
        scaled = scaler.scale(loss.sum())
        assert type(scaled) is torch.Tensor
        scaled.backward()
        scaler.unscale_(optim)
        clip_grad_norm_(model.parameters(), 1.0)  # too large to clip, but it multiplies
        scaler.step(optim)
        scaler.update()
    assert model.weight.item() == 1 - 2 * 16 * TINY
    assert model.weight.grad.item() == TINY


def test_a_resumed_run_repeats_every_bit() -> None:
    def setup() -> tuple[nn.Module, OptimLP, LossScaler]:
        torch.manual_seed(0)
        net = lower(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), "linear", FP16, E5M2)
        return (
            net,
            OptimLP(SGD(net.parameters(), lr=0.1), grad_quant=E4M3),
            LossScaler(Dynamic(2.0**14, growth_interval=2)),
        )

    def train(net: nn.Module, optim: OptimLP, scaler: LossScaler, steps: int) -> None:
        for _ in range(steps):
            optim.zero_grad()
            scaler.scale(net(torch.ones(5, 3)).square().sum()).backward()
            scaler.step(optim)
            scaler.update()

    straight, resumed = setup(), setup()
    train(*straight, 3)
    for one, other in zip(straight, resumed, strict=True):
        other.load_state_dict(one.state_dict())
    state = torch.get_rng_state()
    train(*straight, 4)
    torch.set_rng_state(state)
    train(*resumed, 4)
    assert all(torch.equal(p, q) for p, q in zip(straight[0].parameters(), resumed[0].parameters(), strict=True))
    assert straight[2].state_dict() == resumed[2].state_dict() != LossScaler(Dynamic(2.0**14)).state_dict()


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor])
def test_numbers_of_any_kind_make_scales_that_go_into_a_checkpoint(number: Any) -> None:
    four, two, half = number(4.0), number(2.0), number(0.5)
    for policy in (Static(four), Dynamic(four, two, half, 1), Automatic(BF16, four)):
        scaler = LossScaler(policy)
        w = nn.Parameter(torch.zeros(1))
        w.grad = torch.ones(1)
        scaler.step(SGD([w], lr=1.0))
        scaler.update()
        state = scaler.state_dict()
        assert type(state["scale"]) is float
        LossScaler(policy).load_state_dict(state)


def test_losses_come_in_lists() -> None:
    scaler = LossScaler(2.0)
    scaled = scaler.scale([torch.ones(1), (torch.full((1,), 3.0),)])
    assert scaled[0].item() == 2 and scaled[1][0].item() == 6
    with pytest.raises(TypeError, match="got float"):
        scaler.scale(1.0)


def test_calls_out_of_order_are_named() -> None:
    w = nn.Parameter(torch.ones(1))
    optim, scaler = SGD([w], lr=0.1), LossScaler(1.0)
    with pytest.raises(RuntimeError, match="saw no gradients"):
        scaler.update()
    w.grad = torch.ones(1)
    scaler.unscale_(optim)
    with pytest.raises(RuntimeError, match="called before for this step"):
        scaler.unscale_(optim)
    with pytest.raises(RuntimeError, match="closure"):
        scaler.step(optim, lambda: None)
    scaler.step(optim)
    with pytest.raises(RuntimeError, match="call update"):
        scaler.step(optim)
    with pytest.raises(RuntimeError, match="call update"):
        scaler.unscale_(optim)
    scaler.update(8.0)
    assert scaler.get_scale() == 8.0


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: LossScaler("dynamic"), TypeError, "policy must be"),  # type: ignore[arg-type]
        (lambda: LossScaler(0), ValueError, "policy must be positive"),
        (lambda: Static(math.inf), ValueError, "got inf"),
        (lambda: Static(True), TypeError, "got True"),
        (lambda: Static(torch.ones(2)), TypeError, "init_scale must be a number"),  # type: ignore[arg-type]
        (lambda: Dynamic(growth_factor=1.0), ValueError, "growth_factor must be above 1"),
        (lambda: Dynamic(backoff_factor=1.0), ValueError, "backoff_factor"),
        (lambda: Dynamic(growth_interval=0), ValueError, "growth_interval"),
        (lambda: Automatic(BF16, threshold=1.0), ValueError, "share"),
        (lambda: Automatic("e4m3"), ValueError, "scalar format"),  # type: ignore[arg-type]
        (lambda: LossScaler(1.0).load_state_dict({"scale": -1.0, "count": 0}), ValueError, "scale must be positive"),
        (lambda: LossScaler(1.0).load_state_dict({"scale": 1.0}), ValueError, r"dict of scale, count, got \['scale'\]"),
    ],
)
def test_bad_input_is_named(make: Any, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize(
    "policy", [Static(256.0), Dynamic(init_scale=256.0), Automatic(E4M3, init_scale=256.0)], ids=repr
)
@pytest.mark.parametrize("format", [E4M3, E5M2, BF16, FixedPoint(8, 4)], ids=repr)
def test_an_infinite_gradient_is_skipped_though_its_rounding_saturates(format: Any, policy: Any) -> None:
    w = nn.Parameter(torch.ones(2))
    optimizer, scaler = OptimLP(SGD([w], lr=1.0), grad_quant=format), LossScaler(policy)
    scaler.scale((w * torch.tensor([math.inf, 0.0])).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert w.tolist() == [1, 1]
    assert scaler.get_scale() == (256 if isinstance(policy, Static) else 128)


@pytest.mark.parametrize("policy", [Dynamic(init_scale=1.0), Automatic(E4M3, init_scale=1.0)], ids=repr)
def test_a_scale_never_comes_down_to_zero(policy: Any) -> None:
    w = nn.Parameter(torch.ones(1))
    optimizer, scaler = SGD([w], lr=1.0), LossScaler(policy)
    for _ in range(1100):
        w.grad = torch.tensor([math.nan])
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() > 0
    scaler.load_state_dict(scaler.state_dict())


def test_a_scaler_goes_on_where_torchs_has_stopped() -> None:
    theirs = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=3)
    w = nn.Parameter(torch.ones(1))
    ours = LossScaler(Dynamic(init_scale=1.0, growth_interval=3))
    for _ in range(2):
        theirs.scale(w.sum()).backward()
        theirs.step(SGD([w], lr=0.0))
        theirs.update()
    ours.load_state_dict(theirs.state_dict())
    for scaler in (theirs, ours):
        scaler.scale(w.sum()).backward()
        scaler.step(SGD([w], lr=0.0))
        scaler.update()
    assert ours.get_scale() == theirs.get_scale() == 16
