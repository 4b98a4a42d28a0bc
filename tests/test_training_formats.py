"""LUQ, S2FP8, dynamic fixed point, Flexpoint, format schedules, fine-tuning with rounded weights."""

from __future__ import annotations

import copy
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD

from lptensor import (
    BF16,
    E4M3,
    FP32,
    INT4,
    INT8,
    BlockFloatingPoint,
    Channel,
    CurrentMaximum,
    DelayedScaling,
    FixedPoint,
    Posit,
    Quantizer,
    Scaled,
    lower,
    quantizer,
)
from lptensor.training import LUQ, S2FP8, DynamicFixedPoint, Flexpoint, FormatSchedule, finish, prepare, round_layers


class TestLUQ:
    def test_its_grid_is_the_papers(self) -> None:
        """a 2**k with k from 0 to 2**(b-1) - 2, a = max / 2**(2**(b-1) - 2)."""
        x = torch.randn(5000) * torch.logspace(-4, 0, 5000)
        for bits in (3, 4):
            top = 2 ** (bits - 1) - 2
            alpha = float(x.abs().max()) / 2**top
            levels = {0.0, *(alpha * 2**k for k in range(top + 1))}
            assert set(LUQ(bits)(x).abs().tolist()) == levels

    def test_the_odds_are_the_papers(self) -> None:
        """Below a: |x|/a; from 2**n on, up with (|x| - 2**n) / 2**n. Three-sigma counts over 10,000 draws."""
        n = 10_000
        for value, low, high in ((0.3, 0.0, 1.0), (1.75, 1.0, 2.0), (-40.0, -32.0, -64.0), (5.0, 4.0, 8.0)):
            x = torch.full((n + 1,), value)
            x[-1] = 64.0
            got = LUQ()(x)[:-1]
            assert set(got.tolist()) <= {low, high}
            share = (value - low) / (high - low)
            assert abs(float((got == high).double().mean()) - share) < 4 * math.sqrt(share * (1 - share) / n)

    def test_it_is_unbiased_where_nearest_loses_a_fifth(self) -> None:
        """B11: the sums of magnitudes, for log-normal gradients."""
        x = torch.randn(20_000).mul(2.0).exp() * torch.randn(20_000).sign()
        nearest = quantizer(LUQ().format, forward_rounding="nearest")
        exact = float(x.abs().sum())
        draws = torch.tensor([float(LUQ()(x).abs().sum()) / exact for _ in range(50)])
        assert abs(float(draws.mean()) - 1) < 4 * float(draws.std()) / math.sqrt(50) < 0.02
        assert float(nearest(x).abs().sum()) / exact < 0.85
        assert (nearest(x) == 0).float().mean() > 0.6

    def test_averaging_samples_divides_the_variance(self) -> None:
        x = torch.randn(4000)
        errors = [float((LUQ(samples=s)(x) - x).square().mean()) for s in (1, 16)]
        assert errors[0] / errors[1] == pytest.approx(16, rel=0.15)

    def test_special_values(self) -> None:
        assert LUQ()(torch.zeros(3)).tolist() == [0.0] * 3
        assert LUQ()(torch.tensor([1.0, math.nan])).isnan().all()
        with pytest.raises(ValueError, match="samples"):
            LUQ(samples=0)

    def test_the_price_of_no_bias_is_variance(self) -> None:
        """B11: of one draw, the squared error is larger than to nearest; the error of a mean of 16 is smaller."""
        x = torch.randn(20_000).mul(2.0).exp() * torch.randn(20_000).sign()
        nearest = quantizer(LUQ().format, forward_rounding="nearest")

        def error(q: Tensor) -> float:
            return float((q - x).norm() / x.norm())

        assert error(LUQ(samples=16)(x)) < error(nearest(x)) < error(LUQ()(x))


class TestS2FP8:
    def test_the_squeezed_logarithms_have_mean_zero_and_maximum_fifteen(self) -> None:
        x = torch.randn(3000) * 1e-9
        seen: list[Tensor] = []

        class Spy(S2FP8):
            @staticmethod
            def _statistics(logs: Tensor) -> tuple[float, float]:
                a, b = S2FP8._statistics(logs)
                seen.append(a * logs + b)
                return a, b

        Spy()(x)
        assert abs(float(seen[0].mean())) < 1e-9 and float(seen[0].max()) == pytest.approx(15, abs=1e-9)

    def test_it_is_its_formula(self) -> None:
        x = torch.randn(400) * torch.logspace(-30, -12, 400)
        logs = [math.log2(abs(v)) for v in x.tolist()]
        mu, m = math.fsum(logs) / len(logs), max(logs)
        a = 15 / (m - mu)
        b = -a * mu
        want = []
        for v in x.tolist():
            y = float(torch.tensor(2**b * abs(v) ** a, dtype=torch.float32).to(torch.float8_e5m2))
            want.append(math.copysign((2**-b * y) ** (1 / a), v))
        got = S2FP8(rounding="nearest")(x)
        assert torch.allclose(got, torch.tensor(want), rtol=1e-5, atol=0)
        assert bool(((got / x - 1).abs() < 0.5).all())

    def test_fp8_alone_loses_what_it_keeps(self) -> None:
        x = torch.randn(1000) * 1e-8
        assert not x.to(torch.float8_e5m2).float().any()
        assert float((S2FP8()(x) - x).norm() / x.norm()) < 0.15

    def test_special_values(self) -> None:
        same = torch.tensor([3.0, -3.0, 0.0, -0.0])
        assert torch.equal(S2FP8()(same), same) and S2FP8()(same).signbit().tolist() == [False, True, False, True]
        assert S2FP8()(torch.zeros(2)).tolist() == [0, 0]
        assert S2FP8()(torch.tensor([1.0, math.inf])).isnan().all()
        assert S2FP8()(torch.tensor([1.0, math.nan])).isnan().all()
        assert S2FP8()(torch.randn(3).double()).dtype == torch.float64
        with pytest.raises(ValueError, match=r"squeezes magnitudes to 2\*\*15, .* ends at 448"):
            S2FP8(E4M3)
        with pytest.raises(TypeError, match="format of single values .* got Block"):
            S2FP8(BlockFloatingPoint(8))  # type: ignore[arg-type]


class TestDynamicFixedPoint:
    def test_the_exponent_follows_the_authors_rule(self) -> None:
        """Courbariaux et al.'s code: shares of rounded values at the largest magnitude, or at half the range's."""
        quantize = DynamicFixedPoint(10, exponent=0, max_overflow=0.01, interval=2)
        integer_bits, overflow, overflow_below = 0, [0.0], [0.0]
        history = set()
        for call in range(60):
            x = torch.randn(200) * 2.0 ** (5 * math.sin(call / 8))
            power, most = 2.0 ** (9 - integer_bits), 2.0**9 - 1
            value = (x.double() * power).round().clamp(-most, most) / power
            assert torch.equal(quantize(x), value.float())
            overflow.append(float((value.abs() >= most / power).double().mean()))
            overflow_below.append(float((value.abs() >= most / power / 2).double().mean()))
            if call % 2:
                if sum(overflow) / 2 > 0.01:
                    integer_bits += 1
                elif not sum(overflow_below) / 2 > 0.01:
                    integer_bits -= 1
                overflow, overflow_below = [], []
            history.add(integer_bits)
            assert int(quantize.exponent) == integer_bits
        assert len(history) > 5

    def test_the_largest_value_overflows_and_its_neighbour_does_not(self) -> None:
        """Of four bits the integers end at 7, and those of half the range at 3.5."""
        for value, change in ((7.0, 1), (6.0, 0), (4.0, 0), (3.0, -1), (-7.0, 1), (-100.0, 1)):
            quantize = DynamicFixedPoint(4, exponent=3, interval=1)
            quantize(torch.tensor([value]))
            assert int(quantize.exponent) == 3 + change

    def test_the_exponent_stays_within_what_fp32_carries(self) -> None:
        for end, value in ((100, 3e38), (-100, 0.0)):
            quantize = DynamicFixedPoint(4, exponent=end, interval=1)
            for _ in range(2):
                assert quantize(torch.tensor([value])).item() == (7 * 2.0**97 if value else 0.0)
                assert int(quantize.exponent) == end

    def test_a_share_that_is_allowed_is_none_too_many(self) -> None:
        """One of four reaches the largest value, and half of it: a quarter is not more than a quarter, twice."""
        for allowed, change in ((0.25, -1), (0.24, 1)):
            quantize = DynamicFixedPoint(4, exponent=3, max_overflow=allowed, interval=1)
            quantize(torch.tensor([7.0, 1.0, 1.0, 1.0]))
            assert int(quantize.exponent) == 3 + change

    def test_evaluation_counts_nothing_and_gradients_pass(self) -> None:
        quantize = DynamicFixedPoint(8, interval=1).eval()
        x = torch.full((3,), 100.0, requires_grad=True)
        quantize(x).sum().backward()
        assert int(quantize.exponent) == 0 and x.grad is not None and x.grad.tolist() == [1.0] * 3

    def test_a_resumed_run_repeats_every_bit(self) -> None:
        one = DynamicFixedPoint(6, interval=3, rounding="stochastic")
        data = [torch.randn(50) * 2.0**i for i in range(8)]
        for x in data[:4]:
            one(x)
        other = DynamicFixedPoint(6, interval=3, rounding="stochastic")
        other.load_state_dict(one.state_dict())
        runs = []
        for module in (one, other):
            torch.manual_seed(0)
            runs.append([module(x) for x in data[4:]])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        assert one.exponent == other.exponent != 0

    @pytest.mark.parametrize("arguments", [dict(wl=1), dict(exponent=999), dict(max_overflow=1.0), dict(interval=0)])
    def test_bad_input_is_named(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            DynamicFixedPoint(**arguments)


class TestFlexpoint:
    def test_the_exponent_is_autoflexs(self) -> None:
        """Koester et al., algorithm 2, in exact rationals but for the deviation."""
        bits, length = 12, 4
        quantize = Flexpoint(bits, length)
        history: list[float] = []
        exponent: int | None = None
        overflows = 0
        for call in range(40):
            x = torch.randn(64) * (300.0 if call in (15, 16, 30) else 1.0)
            if exponent is None:
                exponent = math.ceil(math.log2(float(x.abs().max()))) - bits + 2
            kappa = Fraction(2) ** exponent
            integers = [max(-2048, min(2047, round(Fraction(v) / kappa))) for v in x.tolist()]
            assert quantize(x).tolist() == [float(k * kappa) for k in integers]
            gamma = max(map(abs, integers))
            if gamma >= 2 ** (bits - 1) - 1:
                history, gamma, overflows = [], 2 * gamma, overflows + 1
            history = [*history, float(gamma * kappa)][-length:]
            mean = sum(history) / len(history)
            spread = math.sqrt(sum((h - mean) ** 2 for h in history) / len(history))
            chi = 2 * (max(history) + 3 * spread + 100 * float(kappa))
            exponent = math.ceil(math.log2(chi)) - bits + 1
            assert int(quantize.exponent) == exponent
        assert overflows >= 3

    def test_the_largest_integer_overflows_and_its_neighbour_does_not(self) -> None:
        """Of four bits the integers end at 7; what overflows enters the history doubled, and alone."""
        for value, entered in ((7.0, [14.0, -1.0]), (6.0, [6.0, 3.0]), (-7.0, [14.0, -1.0]), (-8.0, [16.0, -1.0])):
            quantize = Flexpoint(4, history=2)
            quantize.exponent.fill_(0)
            quantize.magnitudes[0] = 3.0
            quantize(torch.tensor([value, 1.0]))
            assert quantize.magnitudes.tolist() == entered
        assert len(Flexpoint().magnitudes) == 16

    def test_the_exponent_stays_within_what_fp32_carries(self) -> None:
        """From 2**-120 to 2**100, whatever the values call for."""
        for value, rounded in ((2.0**-119, 2.0**-119), (1.5 * 2.0**-120, 2.0**-119), (1e-38, 0.0)):
            assert Flexpoint(8)(torch.tensor([value])).item() == rounded
        quantize = Flexpoint(8)
        for _ in range(3):
            assert quantize(torch.tensor([3e38])).item() == 127 * 2.0**100

    def test_an_infinity_at_first_saturates_and_overflows(self) -> None:
        """Nothing is known of the range then, and it is (-1, 1): of 2 G k only alpha and gamma make the next."""
        quantize = Flexpoint(8)
        assert quantize(torch.tensor([math.inf, 0.5])).tolist() == [127 / 128, 0.5]
        assert int(quantize.exponent) == math.ceil(math.log2(2 * (2 * 127 / 128 + 100 / 128))) - 7

    def test_a_steady_signal_never_overflows(self) -> None:
        quantize = Flexpoint()
        for _ in range(50):
            x = torch.randn(1000)
            assert float((quantize(x) - x).abs().max()) < 2.0**-10

    def test_evaluation_zeros_and_nan_predict_nothing(self) -> None:
        quantize = Flexpoint(8)
        quantize(torch.ones(3))
        state = copy.deepcopy(quantize.state_dict())
        quantize(torch.zeros(3))
        quantize(torch.tensor([math.nan]))
        quantize(torch.empty(0))
        quantize.eval()(torch.full((2,), 1e6))
        assert all(torch.equal(v, state[k]) for k, v in quantize.state_dict().items())

    def test_a_resumed_run_repeats_every_bit_and_casts_leave_the_state_alone(self) -> None:
        one, data = Flexpoint(8, rounding="stochastic"), [torch.randn(50) * 1.7**i for i in range(9)]
        for x in data[:4]:
            one(x)
        one.half()
        other = Flexpoint(8, rounding="stochastic")
        other.load_state_dict(one.state_dict())
        runs = []
        for module in (one, other):
            torch.manual_seed(0)
            runs.append([module(x) for x in data[4:]])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        assert one.magnitudes.dtype == torch.float64 and torch.equal(one.magnitudes, other.magnitudes)

    @pytest.mark.parametrize("module", [Flexpoint(8), DelayedScaling(E4M3)], ids=["Flexpoint", "DelayedScaling"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.int32, "torch.FloatTensor"])
    def test_a_model_of_another_type_keeps_the_values_of_the_state(self, module: Any, dtype: Any) -> None:
        one = copy.deepcopy(module)
        one(torch.randn(50))
        state = copy.deepcopy(one.state_dict())
        nn.Sequential(one).type(dtype)
        assert all(torch.equal(v, state[k]) and v.dtype == state[k].dtype for k, v in one.state_dict().items())

    @pytest.mark.parametrize(
        "arguments", [dict(bits=2), dict(history=0), dict(alpha=0.0), dict(beta=-1.0), dict(gamma=math.nan)]
    )
    def test_bad_input_is_named(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=next(iter(arguments))):
            Flexpoint(**arguments)


class TestFormatSchedule:
    def test_accuracy_boosters_schedule_lowers_anew(self) -> None:
        """HBFP4 until the last epoch, then HBFP6: what the layer puts out is on the grid of the moment."""
        net = nn.Sequential(nn.Linear(8, 8))

        def use(format: Any) -> None:
            lower(net, "linear", format, format, "nearest", "nearest")

        schedule = FormatSchedule({0: BlockFloatingPoint(4), 3: BlockFloatingPoint(6)}, use)
        for epoch in range(4):
            wl = 4 if epoch < 3 else 6
            out = net(torch.randn(1, 8)).detach()
            step = 2.0 ** (math.floor(math.log2(float(out.abs().max()))) - wl + 2)
            assert not (out / step).frac().any() and ((out / step / 4).frac().any() or wl == 4)
            schedule.step()

    def test_it_resumes_where_it_was(self) -> None:
        seen: list[Any] = []
        schedule = FormatSchedule({0: BF16, 2: E4M3, 5: None}, seen.append)
        for _ in range(3):
            schedule.step()
        other = FormatSchedule({0: BF16, 2: E4M3, 5: None}, seen.append)
        other.load_state_dict(schedule.state_dict())
        assert seen == [BF16, E4M3, BF16, E4M3] and other.format == E4M3
        other.step()
        other.step()
        assert seen[-1] is None and other.format is None

    def test_a_step_that_cannot_be_taken_is_not_counted(self) -> None:
        ready = {BF16: True, E4M3: False}
        seen: list[Any] = []

        def use(format: Any) -> None:
            if not ready[format]:
                raise RuntimeError("not now")
            seen.append(format)

        schedule = FormatSchedule({0: BF16, torch.tensor(1): E4M3}, use)  # type: ignore[dict-item]
        for move in (schedule.step, lambda: schedule.load_state_dict({"steps": 3})):
            with pytest.raises(RuntimeError, match="not now"):
                move()
            assert schedule.format == BF16 and schedule.steps == 0
        ready[E4M3] = True
        schedule.step()
        assert schedule.format == E4M3 and seen == [BF16, E4M3]

    def test_bad_input_is_named(self) -> None:
        with pytest.raises(ValueError, match="at step 0; it has"):
            FormatSchedule({1: BF16}, print)
        with pytest.raises(TypeError, match="got 'bf16'"):
            FormatSchedule({0: "bf16"}, print)  # type: ignore[dict-item]


class TestFineTuning:
    def test_one_step_moves_the_exact_weight_by_the_gradient_at_the_rounded_one(self) -> None:
        layer = nn.Linear(5, 3).double()
        weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
        prepare(layer, FixedPoint(4, 2))
        x, y = torch.randn(7, 5).double(), torch.randn(7, 3).double()
        optim = SGD(layer.parameters(), lr=0.1)
        (layer(x) - y).square().sum().backward()
        optim.step()
        rounded = (weight * 4).round().clamp(-8, 7) / 4
        error = x @ rounded.T + bias - y
        assert torch.allclose(layer.parametrizations.weight.original, weight - 0.1 * 2 * error.T @ x, rtol=1e-12)
        assert torch.allclose(layer.bias, bias - 0.1 * 2 * error.sum(0), rtol=1e-12)

    def test_it_beats_rounding_afterwards(self) -> None:
        """Regression on correlated inputs, weights in 4 bits: fine-tuning finds a better point of the grid."""
        torch.manual_seed(1)
        x = torch.randn(400, 4) @ torch.randn(4, 64) + 0.3 * torch.randn(400, 64)
        y = x @ torch.randn(64, 2)
        format = Scaled(INT4, CurrentMaximum(Channel(0)))
        exact = nn.Linear(64, 2, bias=False)
        with torch.no_grad():
            exact.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
        losses = []
        for steps in (0, 300):
            layer = prepare(copy.deepcopy(exact), format)
            optim = torch.optim.Adam(layer.parameters(), lr=0.02)
            best = math.inf
            for _ in range(steps + 1):
                optim.zero_grad()
                loss = (layer(x) - y).square().mean()
                best = min(best, loss.item())
                loss.backward()
                optim.step()
            losses.append(best)
        assert losses[1] < 0.5 * losses[0]

    def test_finishing_leaves_ordinary_parameters_on_the_grid(self) -> None:
        net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2))
        keys = list(net.state_dict())
        prepare(net, FixedPoint(4, 3))
        x = torch.randn(1, 1, 4, 4)
        before = net(x)
        assert torch.equal(finish(net)(x), before)
        assert list(net.state_dict()) == [name for name, _ in net.named_parameters()] == keys  # as optimizers count
        assert not any((net[i].weight * 8).frac().any() for i in (0, 2))

    def test_weights_round_as_they_are_told_to(self) -> None:
        up, chance = (prepare(nn.Linear(9, 9), FixedPoint(8, 4), rounding) for rounding in ("up", "stochastic"))
        exact = up.parametrizations.weight.original.detach()
        assert torch.equal(up.weight, (exact * 16).ceil() / 16)
        assert not torch.equal(chance.weight, chance.weight)

    def test_a_state_dict_brings_the_exact_weights_back(self) -> None:
        torch.manual_seed(0)
        one, other = (prepare(nn.Linear(3, 3), FixedPoint(4, 3)) for _ in range(2))
        other.load_state_dict(one.state_dict())
        assert torch.equal(one.parametrizations.weight.original, other.parametrizations.weight.original)

    def test_bad_input_is_named(self) -> None:
        with pytest.raises(ValueError, match="has no layer of Linear"):
            prepare(nn.ReLU(), FixedPoint(4, 3))
        net = prepare(nn.Linear(2, 2), Posit(8, 1))
        with pytest.raises(ValueError, match="prepared already"):
            prepare(net, FP32)
        with pytest.raises(ValueError, match="no layer of Linear has a weight that is rounded"):
            finish(nn.Linear(2, 2))

    @pytest.mark.parametrize("last", [lambda: nn.Linear(2, 2, dtype=torch.bfloat16), lambda: nn.LazyLinear(2)])
    def test_a_layer_that_cannot_be_prepared_leaves_the_others_alone(self, last: Any) -> None:
        net = nn.Sequential(nn.Linear(2, 2), last())
        with pytest.raises((TypeError, ValueError), match="bfloat16|LazyLinear has no weight yet"):
            prepare(net, FixedPoint(4, 3))
        assert "weight" in dict(net[0].named_parameters())
        with pytest.raises(TypeError, match="number format"):
            prepare(nn.Linear(2, 2), None)  # type: ignore[arg-type]


def test_flexpoints_factors_are_plain_numbers() -> None:
    quantize = Flexpoint(alpha=torch.tensor(3))  # type: ignore[arg-type]
    assert type(quantize.alpha) is float and "alpha=3" in repr(quantize)


def test_calls_with_nothing_in_them_leave_the_exponent_alone() -> None:
    quantize = DynamicFixedPoint(4, interval=1)
    for _ in range(3):
        quantize(torch.empty(0))
    assert int(quantize.exponent) == 0


def test_a_layer_whose_gradient_alone_is_rounded_is_rounded_already() -> None:
    net = round_layers(nn.Sequential(nn.Linear(2, 2)), gradient=lambda: torch.round)
    with pytest.raises(ValueError, match="rounded already"):
        round_layers(net, gradient=lambda: torch.sign)
    net(torch.ones(1, 2)).backward(torch.full((1, 2), 1.75))
    assert net[0].bias.grad.tolist() == [2.0, 2.0]


def test_layers_without_parameters_have_no_weight_to_round() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2, affine=False), nn.ReLU(), nn.LayerNorm(2))
    net[0].weight.data = torch.tensor([[0.4, 1.6], [2.6, -1.4]])
    made: list[int] = []
    round_layers(net, input=lambda: torch.floor, weight=lambda: made.append(1) or torch.round, layer_types="all")
    assert len(made) == 2 and net[0].weight.tolist() == [[0, 2], [3, -1]]
    assert net[2](torch.tensor([-0.5, 1.5])).tolist() == [0, 1]
    with pytest.raises(ValueError, match="none of the layers has a weight to round: BatchNorm1d, ReLU"):
        round_layers(
            nn.Sequential(nn.BatchNorm1d(2, affine=False), nn.ReLU()), weight=lambda: torch.round, layer_types="all"
        )
    for layer, name in ((nn.LSTM(2, 2), "LSTM"), (nn.MultiheadAttention(2, 1), "MultiheadAttention")):
        with pytest.raises(ValueError, match=f"the weight of a {name} must be a dense tensor"):
            round_layers(nn.Sequential(nn.ReLU(), layer), weight=lambda: torch.round, layer_types="all")


@pytest.mark.parametrize(
    "weight", [lambda: torch.round, lambda: Quantizer(INT8, forward_rounding="nearest"), lambda: DelayedScaling(INT8)]
)
def test_finish_keeps_the_weights_that_a_layer_rounds(weight: Any) -> None:
    net = round_layers(
        nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), lambda: torch.floor, weight, exempt=["2"]
    )
    twin, x = copy.deepcopy(net).eval(), 4 * torch.randn(8, 4)
    wanted, rounded = twin(x), twin[0].weight
    assert finish(twin) is twin and torch.equal(twin(x), wanted)
    assert list(dict(twin.named_parameters())) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert torch.equal(twin[0].weight, rounded) and not torch.equal(rounded, net[0].parametrizations.weight.original)
    with pytest.raises(ValueError, match="has a weight that is rounded"):
        finish(twin)


def test_finish_leaves_parametrizations_of_others() -> None:
    net = nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(2, 2)), nn.Linear(2, 2))
    finish(round_layers(net, weight=lambda: torch.round, exempt=["0"]))
    assert nn.utils.parametrize.is_parametrized(net[0]) and not nn.utils.parametrize.is_parametrized(net[1])


def test_equal_magnitudes_keep_their_value_whatever_their_number() -> None:
    for n in range(1, 64):  # the mean of n equal logarithms may be off in its last bit
        x = torch.full((n,), 0.1)
        assert torch.allclose(S2FP8()(x), x, rtol=1e-6), n


def test_an_infinity_makes_zeros_nan_too() -> None:
    assert S2FP8()(torch.tensor([torch.inf, 0.0, 1.0])).isnan().all()


def test_the_projections_of_attention_are_prepared_together_or_not_at_all() -> None:
    layer = prepare(nn.TransformerEncoderLayer(16, 4, 32), FixedPoint(3, 1))
    exact = {name for name, p in layer.named_parameters() if "original" not in name and p.dim() > 1}
    assert exact == {"self_attn.in_proj_weight", "self_attn.out_proj.weight"}
    assert not layer.linear1.weight.mul(2).frac().any()
    one = prepare(nn.Sequential(nn.Linear(2, 2), nn.Conv1d(1, 1, 1)), FixedPoint(3, 1), layer_types="linear")
    assert [n for n, _ in one.named_parameters() if "original" in n] == ["0.parametrizations.weight.original"]
    with pytest.raises(ValueError, match="has no layer of activation with a weight of its own"):
        prepare(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), FixedPoint(3, 1), layer_types=["activation"])


def test_exempt_layers_are_not_prepared() -> None:
    net = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
    prepare(net, FixedPoint(3, 1), exempt=["0", "2"])
    assert [n for n, _ in net.named_parameters() if "original" in n] == ["1.0.parametrizations.weight.original"]
    for wrong in (["head"], ["0", "1", "2"], ["1.0", "head"]):
        twin = nn.Sequential(nn.Conv1d(1, 1, 1), nn.Sequential(nn.Linear(2, 2)), nn.Linear(2, 2))
        with pytest.raises(ValueError, match="'head', which is none of|no layer left"):
            prepare(twin, FixedPoint(3, 1), exempt=wrong)
        assert not any("original" in n for n, _ in twin.named_parameters())


def test_the_mean_of_samples_of_the_largest_numbers_is_none_beyond_them() -> None:
    x = torch.tensor([3e38, 1e38, 0.0])
    assert LUQ(samples=3)(x).isfinite().all() and LUQ(samples=3)(x)[0] == x[0]
