"""Weight updates in a narrow format: nearest, stochastic, Kahan and expansions, and narrow states."""

from __future__ import annotations

import copy
import io
import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import SGD, Adam

from lptensor import BF16, DYNAMIC8, E4M3, E5M2, FP16, Arithmetic, FixedPoint, OptimLP, convert, updates
from lptensor.ops import round as lp_round
from lptensor.training import SWALP, Blockwise, Expansion
from lptensor.updates import grow, kahan
from oracles.exact import Float, rounded
from rounders import assert_same_bits

UPDATES = ("nearest", "stochastic", "kahan", "mcf")
ORACLES = {BF16: Float(8, 7, 127), FP16: Float(5, 10, 15), E5M2: Float(5, 2, 15)}


def nearest(x: Fraction, values: Float) -> Fraction:
    assert Fraction(float(x)) == x
    return Fraction(rounded(values, float(x), "nearest"))


def kahan_by_hand(w: Fraction, c: Fraction, u: Fraction, f: Float) -> tuple[Fraction, Fraction]:
    """Zamirai et al., algorithm 1, in exact rationals."""
    y = nearest(u - c, f)
    s = nearest(w + y, f)
    return s, nearest(nearest(s - w, f) - y, f)


def collage_by_hand(w: Fraction, r: Fraction, u: Fraction, f: Float) -> tuple[Fraction, Fraction]:
    """Collage's Grow, in exact rationals: the error of a sum is the sum less its rounding."""
    u = nearest(u, f)
    s = nearest(w + u, f)
    rest = nearest(r + (w + u - s), f)
    high = nearest(s + rest, f)
    return high, s + rest - high


BY_HAND = {"kahan": (kahan_by_hand, "weight_compensation"), "mcf": (collage_by_hand, "weight_residual")}


@pytest.mark.parametrize("format", ORACLES, ids=repr)
@pytest.mark.parametrize("update", BY_HAND)
@pytest.mark.parametrize("size", [0.1, 30.0])
def test_compensated_steps_follow_their_formulas(size: float, update: str, format: Any) -> None:
    """SGD's change of the weight, smaller or larger than that, is taken as fp32 has it; all that follows is exact."""
    step, key = BY_HAND[update]
    values = ORACLES[format]
    generator = torch.Generator().manual_seed(7)
    w = nn.Parameter(torch.randn(60, generator=generator).clamp(-3, 3).bfloat16().to(torch.float8_e5m2).float())
    optim = OptimLP(SGD([w], lr=0.125), weight_quant=format, update=update)
    hand = [(Fraction(x), Fraction(0)) for x in w.tolist()]
    for _ in range(8):
        w.grad = torch.randn(60, generator=generator) * size
        moved = (w.detach() - 0.125 * w.grad) - w.detach()
        optim.step()
        hand = [step(a, b, Fraction(u), values) for (a, b), u in zip(hand, moved.tolist(), strict=True)]
        kept = optim.state_dict()["state"][0][key]
        assert w.tolist() == [float(a) for a, _ in hand]
        assert kept.tolist() == [float(b) for _, b in hand]
    assert kept.any()


@pytest.mark.parametrize("update", ["nearest", "stochastic"])
def test_a_plain_step_is_one_rounding_of_the_fp32_step(update: str) -> None:
    w, plain = (nn.Parameter(torch.randn(4000, generator=torch.Generator().manual_seed(1))) for _ in range(2))
    optims = [OptimLP(Adam([w], lr=0.01), weight_quant=BF16, update=update), Adam([plain], lr=0.01)]
    for p, optim in zip((w, plain), optims, strict=True):
        p.grad = torch.ones(4000)
        optim.step()
    if update == "nearest":
        assert torch.equal(w, plain.bfloat16().float())
    else:
        bits = plain.detach().view(torch.int32)
        down = (bits & -(2**16)).view(torch.float32)
        up = ((bits & -(2**16)) + 2**16).view(torch.float32)
        assert bool(((w == down) | (w == up)).all())
        share = ((bits & 0xFFFF) / 2**16).double()
        gone_up = (w == up).double()
        assert abs((gone_up - share).sum()) < 4 * (share * (1 - share)).sum().sqrt()


class TestStall:
    """One plus 4096 times 2**-10 is 5; half a unit in the last place of 1 in BF16 is 2**-8 (B3 of Zamirai et al.)."""

    @staticmethod
    def after(update: str, n: int = 1, **options: Any) -> Tensor:
        w = nn.Parameter(torch.ones(n))
        optim = OptimLP(SGD([w], lr=2.0**-10), weight_quant=BF16, update=update, **options)
        for _ in range(4096):
            w.grad = -torch.ones(n)
            optim.step()
        return w.detach()

    def test_to_nearest_it_never_moves(self) -> None:
        assert self.after("nearest").item() == 1.0

    @pytest.mark.parametrize("update", ["kahan", "mcf"])
    def test_compensated_it_is_exact(self, update: str) -> None:
        assert self.after(update).item() == 5.0

    def test_stochastically_it_is_right_on_average(self) -> None:
        finals = self.after("stochastic", 2000)
        error = finals.std() / math.sqrt(2000)
        assert abs(finals.mean() - 5) < 4 * error < 0.05


def test_to_nearest_the_floor_grows_as_the_rate_shrinks() -> None:
    """Least squares with condition 10: the update halts where it falls below half a unit in the last place."""
    generator = torch.Generator().manual_seed(3)
    curvature = torch.linspace(1, 10, 10)
    best = torch.randn(10, generator=generator) + 2.0

    def final(update: str | None, lr: float) -> float:
        w = nn.Parameter(torch.zeros(10))
        sgd = SGD([w], lr=lr)
        optim = sgd if update is None else OptimLP(sgd, weight_quant=BF16, update=update)
        for _ in range(int(12 / lr)):
            w.grad = curvature * (w.detach() - best)
            optim.step()
        return float((w.detach() - best).norm())

    of_rounding = float((best.bfloat16().float() - best).norm())
    floors = [final("nearest", lr) for lr in (0.1, 0.01)]
    assert floors[1] > 4 * floors[0] and floors[0] > 3 * of_rounding
    for update in ("kahan", "mcf", "stochastic"):
        assert final(update, 0.01) < 3 * of_rounding


@pytest.mark.parametrize("update", UPDATES)
@pytest.mark.parametrize("low", [False, True])
def test_a_resumed_run_repeats_every_bit(update: str, low: bool) -> None:
    def setup() -> tuple[nn.Module, OptimLP]:
        torch.manual_seed(2)
        net = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
        net = convert(net, BF16) if low else net
        states = {"exp_avg": Blockwise(DYNAMIC8, 4, 1), "exp_avg_sq": Expansion(BF16)}
        format = None if low else BF16
        return net, OptimLP(Adam(net.parameters(), lr=0.01), format, momentum_quant=states, update=update)

    def train(net: nn.Module, optim: OptimLP, steps: int) -> None:
        x = torch.randn(16, 6, generator=torch.Generator().manual_seed(5))
        for _ in range(steps):
            optim.zero_grad()
            net(x).square().mean().backward()
            optim.step()

    net, optim = setup()
    train(net, optim, 3)
    buffer = io.BytesIO()
    torch.save({"net": net.state_dict(), "optim": optim.state_dict(), "rng": torch.get_rng_state()}, buffer)
    train(net, optim, 3)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    other, fresh = setup()
    other.load_state_dict(saved["net"])
    fresh.load_state_dict(saved["optim"])
    torch.set_rng_state(saved["rng"])
    train(other, fresh, 3)
    a, b = (
        [values(p) for p in n.parameters()]
        + [values(v) for entry in o.state_dict()["state"].values() for v in entry.values()]
        for n, o in ((net, optim), (other, fresh))
    )
    assert len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))
    kept = 1 if update in ("kahan", "mcf") else 0
    assert len(a) == 4 * (1 + 3 + kept)


def values(x: Any) -> Tensor:
    return x.dequantize().detach() if hasattr(x, "arithmetic") else x.detach()


@pytest.mark.parametrize("update", UPDATES)
def test_lp_parameters_give_their_format_and_get_the_bits_of_plain_ones(update: str) -> None:
    start = torch.randn(50, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    finals = []
    for low in (False, True):
        torch.manual_seed(4)
        w = nn.Parameter(start.to_lp(BF16) if low else start.clone())  # type: ignore[attr-defined]
        optim = OptimLP(Adam([w], lr=2.0**-7), None if low else BF16, update=update)
        for i in range(6):
            grad = torch.randn(50, generator=torch.Generator().manual_seed(i)).bfloat16().float()
            w.grad = grad.to_lp(BF16) if low else grad  # type: ignore[attr-defined]
            optim.step()
        assert not low or w.format == BF16
        finals.append(values(w))
    assert torch.equal(*finals)


def test_lp_parameters_without_a_format_of_their_own_take_weight_quant() -> None:
    """As a model converted to an arithmetic that rounds nothing but the operands of its products."""
    w = nn.Parameter(torch.ones(3).to_lp(Arithmetic()))  # type: ignore[attr-defined]
    optim = OptimLP(SGD([w], lr=2.0**-10), BF16, update="kahan")
    for _ in range(4):
        w.grad = torch.full((3,), -1.0).to_lp(Arithmetic())  # type: ignore[attr-defined]
        optim.step()
    assert values(w).tolist() == [1.0] * 3
    assert optim.state_dict()["state"][0]["weight_compensation"].tolist() == [-(2.0**-8)] * 3


@pytest.mark.parametrize("update", ["kahan", "mcf"])
def test_what_is_kept_starts_anew_where_the_weight_was_changed(update: str) -> None:
    w = nn.Parameter(torch.ones(3))
    optim = OptimLP(SGD([w], lr=2.0**-10), BF16, update=update)
    w.grad = -torch.ones(3)
    optim.step()
    with torch.no_grad():
        w[0] = 2.0
    (kept,) = (v for v in optim.state_dict()["state"][0].values())
    assert kept[0] == 0 and kept[1].abs() == 2.0**-10


def test_a_step_that_fails_keeps_weights_and_compensations() -> None:
    w = nn.Parameter(torch.ones(2))
    optim = OptimLP(SGD([w], lr=2.0**-10), BF16, update="kahan")
    w.grad = -torch.ones(2)
    optim.step()
    before = copy.deepcopy(optim.state_dict()["state"])

    def broken() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optim.step(broken)
    assert w.tolist() == [1.0, 1.0]
    assert torch.equal(before[0]["weight_compensation"], optim.state_dict()["state"][0]["weight_compensation"])


def test_a_closure_sees_narrow_weights_and_comes_to_the_same() -> None:
    finals = []
    for with_closure in (False, True):
        w = nn.Parameter(torch.linspace(1, 2, 7).bfloat16().float())
        optim = OptimLP(SGD([w], lr=0.01), BF16, update="mcf")
        for _ in range(5):

            def closure(w: Tensor = w) -> Tensor:
                assert torch.equal(w, w.bfloat16().float())
                w.grad = None
                loss = (w - 0.3).square().sum()
                loss.backward()
                return loss

            if with_closure:
                optim.step(closure)
            else:
                closure()
                optim.step()
        finals.append(w.detach())
    assert torch.equal(*finals)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (dict(update="kahn"), "one of 'nearest', 'stochastic', 'kahan', 'mcf' or None, got 'kahn'"),
        (dict(update="kahan"), "give weight_quant"),
        (dict(update="kahan", weight_quant=BF16, acc_quant=FP16), "leave acc_quant out"),
        (dict(update="nearest", weight_quant=torch.round), "rounds to a format"),
    ],
)
def test_contradictions_are_named(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        OptimLP(SGD([nn.Parameter(torch.ones(1))]), **arguments)


@pytest.mark.parametrize("update", [None, "nearest"])
def test_an_lp_parameter_of_another_format_is_named(update: str | None) -> None:
    w = nn.Parameter(torch.ones(1).to_lp(E5M2))  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="leave weight_quant out"):
        OptimLP(SGD([w]), weight_quant=E4M3, update=update)


def test_qpytorchs_step_rounds_lp_parameters_to_fewer_values_than_their_format_has() -> None:
    w = nn.Parameter(torch.ones(64).to_lp(BF16))  # type: ignore[attr-defined]
    w.grad = torch.full((64,), 0.3).to_lp(BF16)  # type: ignore[attr-defined]
    OptimLP(SGD([w], lr=1.0), weight_quant=E4M3).step()
    assert torch.equal(w.dequantize(), lp_round(w.dequantize(), E4M3))  # type: ignore[operator]
    assert w.dequantize().unique().numel() == 2  # type: ignore[operator]


def test_a_state_of_another_update_is_named_and_changes_nothing() -> None:
    optims = {}
    for update in ("kahan", "mcf"):
        w = nn.Parameter(torch.ones(2))
        optims[update] = OptimLP(SGD([w], lr=0.1), BF16, update=update)
        w.grad = torch.ones(2)
        optims[update].step()
    with pytest.raises(ValueError, match="each weight_compensation: this OptimLP needs update='kahan'"):
        optims["mcf"].load_state_dict(optims["kahan"].state_dict())
    assert "weight_residual" in optims["mcf"].state_dict()["state"][0]


def test_the_repr_names_the_update() -> None:
    assert "update='mcf'" in repr(OptimLP(SGD([nn.Parameter(torch.ones(1))]), BF16, update="mcf"))


@pytest.mark.parametrize("low", [False, True], ids=["plain", "lp"])
def test_a_rule_is_a_row(low: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that rounds up, and keeps the whole step beside the weight."""
    row = updates.Update("own", rounding="up", kept="own_kept", compensated=lambda w, c, u, f: (lp_round(w, f), c + u))
    monkeypatch.setitem(updates.UPDATES, "own", row)
    monkeypatch.setitem(updates.UPDATES, "up", updates.Update("up", rounding="up"))
    ends = {}
    for update in ("own", "up"):
        w = nn.Parameter(torch.ones(2).to_lp(BF16) if low else torch.ones(2))  # type: ignore[attr-defined]
        w.grad = torch.full((2,), -(2.0**-12))
        optim = OptimLP(SGD([w], lr=1.0), None if low else BF16, update=update)
        optim.step()
        ends[update] = w.tolist(), optim.update, optim.state_dict()["state"].get(0)
    assert ends["up"] == ([1 + 2**-7] * 2, "up", None)
    assert ends["own"][:2] == ([1.0] * 2, "own") and ends["own"][2]["own_kept"].tolist() == [2**-12] * 2


def test_an_expansion_of_what_is_or_becomes_infinite_is_infinite() -> None:
    top = torch.finfo(torch.float32).max  # which BF16 rounds up
    assert Expansion(BF16)(torch.tensor([math.inf, -math.inf, top])).tolist() == [math.inf, -math.inf, math.inf]


def test_an_expansion_takes_float32_and_float64_alone() -> None:
    with pytest.raises(TypeError, match="only float32 and float64"):
        Expansion(BF16)(torch.ones(2, dtype=torch.float16))


@pytest.mark.parametrize("step", [kahan, grow])
@pytest.mark.parametrize("format", [BF16, E4M3, E5M2, FP16, FixedPoint(8, 4), FixedPoint(12, 6, clamp=False)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kernel_takes_the_steps_of_the_formula(
    step: Any, format: Any, dtype: torch.dtype, monkeypatch: Any
) -> None:
    """In one pass, of any length and on any number of threads."""
    for shape in ((0,), (1,), (511,), (3, 171), (70_001,)):
        w, c, u = (torch.randn(shape, dtype=dtype) * scale for scale in (1.0, 2.0**-8, 2.0**-6))
        u = u * torch.exp2(torch.randint(-12, 12, shape).to(dtype))
        w, c = lp_round(w, format), lp_round(c, format)
        for i, value in enumerate((math.nan, math.inf, -math.inf, -0.0, 1e30, 1e-42)):
            if w.numel() > 9:
                u.view(-1)[i], w.view(-1)[7] = value, -0.0
        inputs = w.clone(), c.clone(), u.clone()
        got = step(w, c, u, format)
        turned = step(w.t().contiguous().t() if w.dim() == 2 else w, c, u, format)
        with monkeypatch.context() as slow:
            slow.setattr(updates, "_compiled", lambda *_: False)
            want = step(w, c, u, format)
        for a, b, again in zip(got, want, turned, strict=True):
            assert_same_bits(a, b)
            assert_same_bits(again, b)
        assert all(torch.equal(a, b) or a.isnan().any() for a, b in zip(inputs, (w, c, u), strict=True))


def test_looking_at_a_mean_draws_nothing() -> None:
    net = convert(nn.Linear(4, 4), Arithmetic(FP16, rounding="stochastic"))
    average = SWALP(net)
    average.step()
    before = torch.get_rng_state()
    with average.swapped():
        drawn = torch.rand(1)
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(1), drawn)


@pytest.mark.parametrize("update", ["kahan", "mcf"])
def test_a_tensor_without_memory_of_its_own_is_no_matter_for_the_kernels(update: str) -> None:
    """As fake tensors are, of which a kernel would read where there is nothing."""
    with FakeTensorMode():
        w = nn.Parameter(torch.ones(4))
        w.grad = torch.ones(4)
        OptimLP(SGD([w]), BF16, update=update).step()
        assert w.shape == (4,)
