"""SWALP: means of low-precision iterates."""

from __future__ import annotations

import copy
from fractions import Fraction

import pytest
import torch
from torch import nn
from torch.optim import SGD

import lptensor
from lptensor import BF16, NVFP4, BlockFloatingPoint, FixedPoint, OptimLP, convert
from lptensor.training import SWALP


@pytest.mark.parametrize(("start", "period"), [(0, 1), (3, 1), (2, 4), (0, 5)])
def test_the_mean_is_that_of_the_scheduled_iterates(start: int, period: int) -> None:
    w = nn.Parameter(torch.zeros(3))
    average = SWALP([w], start, period)
    taken: list[list[Fraction]] = []
    for step in range(1, 21):
        with torch.no_grad():
            w.copy_(torch.randn(3))
        entered = average.step()
        assert entered == (step in range(start + 1, 21, period))
        if entered:
            taken.append([Fraction(v) for v in w.tolist()])
    exact = [float(sum(column) / len(taken)) for column in zip(*taken, strict=True)]
    assert torch.allclose(average.means[0], torch.tensor(exact, dtype=torch.float64), rtol=1e-13)
    assert average.collected == len(taken)


def test_a_low_precision_mean_is_rounded_each_time() -> None:
    """m = Q(m + (w - m) / n), on a fixed-point grid that Python's integers hold."""
    w = nn.Parameter(torch.zeros(50))
    average = SWALP([w], format=FixedPoint(8, 5), rounding="nearest")
    hand = [Fraction(0)] * 50
    for n in range(1, 9):
        with torch.no_grad():
            w.copy_(torch.randn(50))
        average.step()
        exact = [m + (Fraction(v) - m) / n for m, v in zip(hand, w.tolist(), strict=True)]
        hand = [max(Fraction(-4), min(Fraction(round(m * 32), 32), Fraction(127, 32))) for m in exact]
        assert average.means[0].tolist() == [float(m) for m in hand]


def test_swapped_parameters_come_back_bit_for_bit() -> None:
    net = nn.Linear(3, 2)
    average = SWALP(net, format=BlockFloatingPoint(9))
    before = [p.detach().clone() for p in net.parameters()]
    average.step()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(1.1)
    now = [p.detach().clone() for p in net.parameters()]
    average.step()
    with pytest.raises(ZeroDivisionError), average.swapped():
        assert all(torch.equal(p.double(), m) for p, m in zip(net.parameters(), average.means, strict=True) if p.dim())
        raise ZeroDivisionError
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), now, strict=True))
    assert not torch.equal(before[0], now[0])


def test_lp_parameters_have_a_mean_beyond_their_format() -> None:
    net = convert(nn.Linear(1, 1, bias=False), BF16)
    average = SWALP(net)
    for value in (1.0, 1.0 + 2.0**-7):
        with torch.no_grad():
            net.weight.fill_(value)
        average.step()
    assert average.means[0].item() == 1 + 2.0**-8
    with average.swapped():
        assert net.weight.item() == 1.0  # a tie, to even
    assert net.weight.item() == 1 + 2.0**-7 and net.weight.format == BF16


def test_weights_come_back_though_their_format_would_round_them_anew() -> None:
    """The scales of blocks come from the values that are rounded, and may be others for those that were rounded."""
    moved = 0
    for seed in range(50):
        torch.manual_seed(seed)
        weight = nn.Parameter(torch.randn(64).to_lp(NVFP4))  # type: ignore[attr-defined]
        plain = weight.dequantize().detach()  # type: ignore[attr-defined]
        moved += not torch.equal(lptensor.round(plain, NVFP4), plain)
        average = SWALP([weight])
        average.step()
        with average.swapped():
            pass
        assert torch.equal(weight.dequantize(), plain)  # type: ignore[attr-defined]
    assert moved


def test_a_saved_state_stays_what_it_was() -> None:
    w = nn.Parameter(torch.ones(2))
    average = SWALP([w])
    average.step()
    saved = average.state_dict()
    with torch.no_grad():
        w.fill_(3.0)
    average.step()
    assert saved["means"][0].tolist() == [1.0, 1.0] and average.means[0].tolist() == [2.0, 2.0]


def test_a_resumed_run_repeats_every_bit() -> None:
    def setup() -> tuple[nn.Module, OptimLP, SWALP]:
        torch.manual_seed(1)
        net = nn.Linear(4, 2)
        optim = OptimLP(SGD(net.parameters(), lr=0.1, momentum=0.9), BlockFloatingPoint(8), BlockFloatingPoint(8))
        return net, optim, SWALP(net, 2, 2, format=BlockFloatingPoint(9))

    def train(net: nn.Module, optim: OptimLP, average: SWALP, steps: int) -> None:
        for _ in range(steps):
            optim.zero_grad()
            net(torch.ones(3, 4)).square().sum().backward()
            optim.step()
            average.step()

    straight, resumed = setup(), setup()
    train(*straight, 5)
    for one, other in zip(straight, resumed, strict=True):
        other.load_state_dict(copy.deepcopy(one.state_dict()))  # torch shares the tensors otherwise
    state = torch.get_rng_state()
    train(*straight, 6)
    torch.set_rng_state(state)
    train(*resumed, 6)
    assert all(torch.equal(a, b) for a, b in zip(straight[2].means, resumed[2].means, strict=True))
    assert straight[2].collected == resumed[2].collected == 5


def test_bad_input_is_named() -> None:
    w = nn.Parameter(torch.zeros(2))
    with pytest.raises(ValueError, match="no parameters"):
        SWALP([])
    with pytest.raises(ValueError, match="period must be from 1"):
        SWALP([w], period=0)
    with pytest.raises(TypeError, match="number format"):
        SWALP([w], format="bfp8")  # type: ignore[arg-type]
    average = SWALP([w], start=4)
    with pytest.raises(RuntimeError, match="first come after 4"), average.swapped():
        pass
    with pytest.raises(ValueError, match=r"shapes \[\(2,\)\], the means \[\(1,\)\]"):
        average.load_state_dict({"steps": 1, "collected": 1, "means": [torch.ones(1)]})
    for mean in (torch.ones(2).to_sparse(), torch.ones(2, device="meta"), torch.ones(2) * 1j, torch.ones(2).int()):
        with pytest.raises(TypeError, match=f"dense tensors of floating-point numbers, got {mean.dtype}"):
            average.load_state_dict({"steps": 1, "collected": 1, "means": [mean]})
    assert average.steps == average.collected == 0 and average.means[0].tolist() == [0, 0]


def test_a_model_that_has_moved_since_is_named_and_not_counted() -> None:
    model = nn.Linear(1, 1)
    average = SWALP(model)
    average.step()
    before = average.state_dict()
    model.to("meta")
    average.parameters = list(model.parameters())
    with pytest.raises(ValueError, match="on meta now, its mean on cpu; begin with the model where it trains"):
        average.step()
    after = average.state_dict()
    assert (after["steps"], after["collected"]) == (1, 1) and all(map(torch.equal, before["means"], after["means"]))
