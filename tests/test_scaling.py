"""Scaling as a noun of its own: tiles, fixed powers of two, delayed maxima, and what blocks let one choose."""

from __future__ import annotations

import copy
import itertools
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, strategies as st

import lptensor
from low import through_file
from lptensor.blocks import MX, BlockFloatingPoint, Scaled
from lptensor.codes import decode, encode
from lptensor.delayed import DelayedScaling
from lptensor.finfo import finfo
from lptensor.formats import E2M1, E4M3, E5M2, E5M2FNUZ, E8M0, FP32, INT8, FixedPoint, FloatingPoint, ScalarFormat
from lptensor.ops import round as lp_round
from lptensor.p3109 import P3109
from lptensor.rounding import Rounding
from lptensor.scaling import PER_TENSOR, Channel, CurrentMaximum, DelayedMaximum, PowerOfTwo, Scaling, Tile
from lptensor.study.sqnr import bits_per_value
from oracles import exact
from oracles.exact import MODES
from rounders import NATIVE_BUILDS, assert_same, assert_same_bits, judge, run

ROUNDERS = ["reference", *NATIVE_BUILDS]


# --- tiles ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "shape", "block"),
    [
        (PER_TENSOR, (4, 6), (4, 6)),
        (PER_TENSOR, (), ()),
        (Channel(0), (4, 6, 2), (1, 6, 2)),
        (Channel(-1), (4, 6, 2), (4, 6, 1)),
        (Channel(2), (4, 6), (4, 6)),
        (Tile((1, 128)), (3, 512, 512), (1, 1, 128)),
        (Tile((128, 128)), (3, 512, 512), (1, 128, 128)),
        (Tile((None,)), (4, 6), (1, 6)),
        (Tile((2, None), (0, 1)), (4, 6, 5), (2, 6, 1)),
        (Tile((32,), (1,)), (4, 6), (1, 32)),
        (Tile((2, 2)), (7,), (7,)),
    ],
    ids=str,
)
def test_a_tile_knows_its_block_in_a_shape(tile: Tile, shape: tuple[int, ...], block: tuple[int, ...]) -> None:
    assert tile.block_shape(shape) == block


@pytest.mark.parametrize(
    "call",
    [
        "PER_TENSOR",
        "Channel(0)",
        "Channel(-1)",
        "Tile((1, 128))",
        "Tile((32,), axes=(1,))",
        "Tile((2, None), axes=(0, 1))",
        "Tile((1,), axes=(0,))",
        "Tile((4,), others=None)",
        "CurrentMaximum()",
        "CurrentMaximum(tile=Channel(0))",
        "CurrentMaximum(tile=Tile((1, 32)), margin=1, infinite='saturate')",
        "CurrentMaximum(tile=Channel(0), top=7.5)",
        "DelayedMaximum(history=16)",
        "PowerOfTwo(exponent=-3)",
    ],
)
def test_a_scaling_shows_the_call_that_makes_it_without_defaults(call: str) -> None:
    assert repr(eval(call)) == call


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (dict(widths=(0,)), ValueError, "block_size must be from 1"),
        (dict(widths=(1.5,)), TypeError, "block_size must be an integer"),
        (dict(widths=(1,), axes=(16,)), ValueError, "axis must be from -16 to 15, got 16"),
        (dict(widths=(1, 2), axes=(0,)), ValueError, r"one axis for each width \(1, 2\), got axes \(0,\)"),
        (dict(widths=(1, 2), axes=(0, 0)), ValueError, "one axis for each width"),
        (dict(widths=(1,), others=2), ValueError, "others must be one of 1, None, got 2"),
    ],
    ids=str,
)
def test_bad_tiles_are_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        Tile(**arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (dict(tile=(1, 128)), TypeError, r"tile must be a Tile such as .*, got \(1, 128\)"),
        (dict(scale="fp32"), TypeError, "scale must be a scalar format .* got 'fp32'"),
        (dict(scale=E8M0, rule="up"), ValueError, "rule must be one of"),
        (dict(scale=E4M3, rule="ceil"), ValueError, "for scales that are powers of two"),
        (dict(scale=E8M0, reciprocal=True), ValueError, "for scales with a significand"),
        (dict(scale=E8M0, tensor_scale=True), ValueError, "for scales with a significand"),
        (dict(scale=E8M0, floor=0.5), ValueError, "for scales with a significand"),
        (dict(scale=E8M0, top=7.5), ValueError, "for scales with a significand"),
        (dict(top="7.5"), TypeError, "top must be a number"),
        (dict(top=0.0), ValueError, "top must be positive and finite, got 0.0"),
        (dict(scale=E4M3, floor="0.5"), TypeError, "floor must be a number"),
        (dict(scale=E4M3, floor=-1.0), ValueError, "floor must be from 0 to 448, .* got -1.0"),
        (dict(scale=E4M3, floor=449.0), ValueError, "floor must be from 0 to 448, .* got 449.0"),
        (dict(margin=65), ValueError, "margin must be from -64 to 64, got 65"),
        (dict(infinite="drop"), ValueError, "infinite must be one of"),
    ],
    ids=str,
)
def test_bad_scalings_are_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        CurrentMaximum(**arguments)


@pytest.mark.parametrize(
    "scaling",
    [PowerOfTwo(-3), CurrentMaximum(), CurrentMaximum(Tile((1, 128)), E8M0, "rceil"), DelayedMaximum(16, 1)],
    ids=repr,
)
def test_scalings_are_values(scaling: Scaling) -> None:
    for other in (eval(repr(scaling), vars(lptensor)), pickle.loads(pickle.dumps(scaling)), copy.deepcopy(scaling)):
        assert other == scaling and hash(other) == hash(scaling)
    format = E4M3 if isinstance(scaling, DelayedMaximum) else Scaled(E4M3, scaling)
    assert eval(repr(format), vars(lptensor)) == format and pickle.loads(pickle.dumps(format)) == format


# --- none, and fixed powers of two ----------------------------------------------------------------


def test_no_scaling_is_the_format_itself() -> None:
    assert Scaled(E4M3, None) is E4M3


@pytest.mark.parametrize(
    "element", [E4M3, E5M2, E2M1, FixedPoint(8, 4), FloatingPoint(3, 2, subnormals=False)], ids=repr
)
@pytest.mark.parametrize("exponent", [-30, -1, 0, 7])
def test_a_fixed_power_of_two_moves_the_whole_grid(element: ScalarFormat, exponent: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, generator=generator) * torch.exp2(torch.randint(-16, 18, (400,), generator=generator))
    x = torch.cat([x, torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan])]) * 2.0**exponent
    for mode, rounder in itertools.product(MODES, ROUNDERS):
        values = [exact.rounded(judge(element), v / 2.0**exponent, mode) * 2.0**exponent for v in x.tolist()]
        assert_same(run(rounder, x, Scaled(element, PowerOfTwo(exponent)), mode), values, x, (rounder, mode))


@pytest.mark.parametrize(
    "element", [E4M3, E5M2, E5M2FNUZ, INT8, FixedPoint(8, 4, symmetric=True), P3109(6, 1)], ids=repr
)
@pytest.mark.parametrize("exponent", [-3, 5])
def test_the_codes_under_a_fixed_power_of_two_are_those_of_the_element(element: ScalarFormat, exponent: int) -> None:
    format: Any = Scaled(element, PowerOfTwo(exponent))
    codes, factor = torch.arange(2**element.bits), 2.0**exponent
    values = decode(codes, element)
    assert torch.equal((decode(codes, format) / factor).nan_to_num(0.1), values.nan_to_num(0.1))
    known = ~values.isnan() | torch.tensor(element.layout.nan is not None)
    assert torch.equal(encode(values[known] * factor, format), encode(values[known], element))
    assert torch.equal(format.values(), element.values() * factor)
    assert finfo(format).max == finfo(element).max * factor and format.bits == element.bits


def test_a_scaled_value_without_a_code_is_refused() -> None:
    with pytest.raises(ValueError, match="no code of 8 bits"):
        encode(torch.tensor([16.0]), Scaled(FixedPoint(8, 4, clamp=False), PowerOfTwo(1)))


def test_a_grid_beyond_the_carrier_is_refused() -> None:
    with pytest.raises(ValueError, match="beyond the largest fp32"):
        Scaled(E5M2, PowerOfTwo(120))
    wide = Scaled(FixedPoint(40, 0), PowerOfTwo(1))
    with pytest.raises(ValueError, match="more than the 24 bits of float32; use a float64 tensor"):
        lp_round(torch.ones(1), wide)
    assert lp_round(torch.tensor([1e15], dtype=torch.float64), wide).item() == 2 * (2.0**39 - 1)
    with pytest.raises(ValueError, match="in steps of|values down to"):
        Scaled(E5M2, PowerOfTwo(-140))
    with pytest.raises(TypeError, match="a scalar format"):
        Scaled(MX(E4M3), PowerOfTwo(1))  # type: ignore[arg-type]


def test_a_scaling_with_a_state_needs_a_module() -> None:
    with pytest.raises(TypeError, match="DelayedScaling"):
        Scaled(E4M3, DelayedMaximum())


def test_microscaling_is_one_scaling_among_others() -> None:
    """MX is current maxima of tiles under E8M0; a margin moves its exponent."""
    x = torch.randn(8, 96)
    for rule in ("floor", "ceil", "even", "rceil"):
        format = Scaled(E4M3, CurrentMaximum(Tile((32,)), E8M0, rule))
        assert_same_bits(lp_round(x, format), lp_round(x, MX(E4M3, scale_rule=rule)))
        plain, margined = (
            lptensor.scales(x, Scaled(E4M3, CurrentMaximum(Tile((32,)), E8M0, rule, margin=m))) for m in (0, 3)
        )
        assert_same_bits(plain * 8, margined)


@pytest.mark.parametrize("rounder", ROUNDERS)
@pytest.mark.parametrize("wl", [2, 4, 8])
def test_integers_may_use_half_a_step_more(wl: int, rounder: str) -> None:
    """The scale max(abs(x)) / (2**(wl - 1) - 0.5) of torchao, compressed-tensors and qwix."""
    x = torch.randn(64, 48) * torch.randint(-30, 30, (64, 1)).float().exp2()
    top = 2.0 ** (wl - 1) - 0.5
    s = x.abs().amax(1, keepdim=True) / top
    format = Scaled(FixedPoint(wl, 0), CurrentMaximum(Channel(0), top=top))
    low, high = -(2.0 ** (wl - 1)), 2.0 ** (wl - 1) - 1
    wanted = (x / s).round().clamp(low, high) * s + 0.0
    assert_same(run(rounder, x, format), wanted, x)
    assert_same(lptensor.scales(x, format), s)
    multiplied = Scaled(FixedPoint(wl, 0), CurrentMaximum(Channel(0), top=top, reciprocal=True))
    wanted = (x * (1 / s)).round().clamp(low, high) * s + 0.0
    assert_same(run(rounder, x, multiplied), wanted, x)


@pytest.mark.parametrize("rounder", ROUNDERS)
def test_a_top_of_its_own_is_the_largest_value_or_another(rounder: str) -> None:
    x = torch.randn(8, 64)
    for scale, whole in ((FP32, False), (E4M3, True)):
        of = dict(tile=Tile((16,)), scale=scale, tensor_scale=whole)
        plain, same, halved, margined = (
            run(rounder, x, Scaled(E2M1, CurrentMaximum(**of, **more)))
            for more in ({}, dict(top=6), dict(top=3.0), dict(margin=1))
        )
        assert_same_bits(same, plain)
        assert_same_bits(halved, margined)
    with pytest.raises(ValueError, match=r"margin=0 makes 0, no fp32 number, of top=1e-300"):
        Scaled(E2M1, CurrentMaximum(top=1e-300))


# --- block floating point's options ---------------------------------------------------------------


def test_a_maximum_that_rounds_up_is_clipped_or_bumps_the_exponent() -> None:
    x = torch.tensor([1.9999, 0.5078125, -0.25])
    for rounder in ROUNDERS:
        assert run(rounder, x, BlockFloatingPoint(8)).tolist() == [1.984375, 0.5, -0.25]
        assert run(rounder, x, BlockFloatingPoint(8, overflow="bump")).tolist() == [2.0, 0.5, -0.25]


@pytest.mark.parametrize("wl", [2, 3, 8, 24])
def test_a_bumped_block_is_on_the_grid_of_the_next_exponent(wl: int) -> None:
    turn = 2 - 2.0 ** (1 - wl)  # half way between the largest value and the next power of two
    for top in (turn, np.nextafter(np.float32(turn), np.float32(0)), 2 - 2.0**-23, 1.0, 1.25):
        x = torch.tensor([top, -0.3, 0.7, 0.1])
        bumps = float(x[0]) >= turn
        for mode, rounder in itertools.product(MODES, ROUNDERS):
            wanted = [exact.rounded(exact.Block(wl, int(bumps)), v, mode) for v in x.tolist()]
            assert_same(run(rounder, x, BlockFloatingPoint(wl, overflow="bump"), mode), wanted, x, (rounder, mode))


def test_block_floating_point_in_tiles() -> None:
    """HBFP (1804.01526) rounds weights in tiles of 24 x 24."""
    x = torch.randn(50, 60)
    y = lp_round(x, BlockFloatingPoint(8, block_size=(24, 24)))
    for i, j in itertools.product(range(0, 50, 24), range(0, 60, 24)):
        part = x[i : i + 24, j : j + 24]
        assert_same_bits(y[i : i + 24, j : j + 24], lp_round(part, BlockFloatingPoint(8)))


def test_infinities_of_a_block_saturate_on_request() -> None:
    x = torch.tensor([torch.inf, -torch.inf, 1.5, -0.1])
    for rounder in ROUNDERS:
        assert run(rounder, x, BlockFloatingPoint(4, infinite="saturate")).tolist() == [1.75, -1.75, 1.5, 0.0]
        assert run(rounder, x, BlockFloatingPoint(4)).isnan().all()


@pytest.mark.parametrize("arguments", [dict(overflow="wrap"), dict(infinite="zero"), dict(block_size=(0, 2))], ids=str)
def test_bad_options_of_block_floating_point_are_named(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="wrap|zero|block_size must be from 1"):
        BlockFloatingPoint(8, **arguments)


# --- delayed maxima -------------------------------------------------------------------------------


def by_hand(xs: list[torch.Tensor], element: ScalarFormat, scaling: DelayedMaximum) -> tuple[list[Any], list[float]]:
    """Transformer Engine's recipe step by step with numpy's fp32: the results, and the scale after each."""
    scale, history, results, scales = np.float32(1), [np.float32(0)] * scaling.history, [], []
    saturating = exact.Float(**{**vars(judge(element)), "overflow": "saturate"})
    for x in xs:
        values = x.numpy()
        q = [exact.rounded(saturating, float(v), "nearest") for v in values * scale]
        results.append(np.array(q, np.float32) * (np.float32(1) / scale))
        history = [np.abs(values).max(), *history[:-1]]
        amax = max(history) if scaling.amax == "max" else history[0]
        if 0 < amax < np.inf:
            scale = np.float32(saturating.largest(False)) / amax / np.float32(2.0**scaling.margin)
            scale = min(scale, np.finfo(np.float32).max)
        scales.append(float(scale))
    return results, scales


def test_the_history_has_the_latest_first_and_forgets_the_oldest() -> None:
    quantize = DelayedScaling(E4M3, DelayedMaximum(history=3))
    for largest in (8.0, 4.0, 2.0, 1.0):
        quantize(torch.tensor([largest, 0.5]))
    assert quantize.amax_history.tolist() == [1.0, 2.0, 4.0] and quantize.scale.item() == 448 / 4


@pytest.mark.parametrize("bad", [torch.inf, torch.nan, 0.0])
def test_a_scale_stays_where_the_maximum_is_of_no_use(bad: float) -> None:
    quantize = DelayedScaling(E4M3, DelayedMaximum(amax="most_recent"))
    quantize(torch.tensor([7.0]))
    quantize(torch.tensor([bad]))
    assert quantize.scale.item() == 448 / 7


@pytest.mark.parametrize(
    "scaling", [DelayedMaximum(4), DelayedMaximum(1, 2), DelayedMaximum(3, -1, "most_recent")], ids=repr
)
@pytest.mark.parametrize("element", [E4M3, E5M2], ids=repr)
def test_a_delayed_scale_follows_the_recipe(scaling: DelayedMaximum, element: ScalarFormat) -> None:
    torch.manual_seed(1)
    xs = [torch.randn(50) * 10.0**k for k in (0, 3, -2, -5, 1, 1, 4, 0, -3, 2)]
    module = DelayedScaling(element, scaling)
    results, scales = by_hand(xs, element, scaling)
    for x, wanted, scale in zip(xs, results, scales, strict=True):
        assert_same(module(x), wanted, x)
        assert module.scale.item() == scale
    assert module.amax_history.tolist() == [x.abs().max().item() for x in reversed(xs)][: scaling.history]


@given(exponents=st.lists(st.integers(-60, 60), min_size=1, max_size=8), history=st.integers(1, 5))
def test_any_run_follows_the_recipe(exponents: list[int], history: int) -> None:
    xs = [torch.tensor([1.37, -0.11, 0.0]) * 2.0**e for e in exponents]
    scaling = DelayedMaximum(history)
    module = DelayedScaling(E4M3, scaling)
    results, scales = by_hand(xs, E4M3, scaling)
    assert [module(x).tolist() for x in xs] == [r.tolist() for r in results]
    assert module.scale.item() == scales[-1]


def test_zero_infinite_and_nan_maxima_leave_the_scale_alone() -> None:
    module = DelayedScaling(E4M3, DelayedMaximum(1))
    module(torch.tensor([2.0]))
    before = module.scale.item()
    assert before == 224.0
    for bad in (0.0, torch.inf, -torch.inf, torch.nan):
        module(torch.tensor([bad, 0.0]))
        assert module.scale.item() == before
    assert module(torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])).tolist()[:2] == [2.0, -2.0]
    module(torch.tensor([1e-44]))
    assert module.scale.item() == torch.finfo(torch.float32).max


def test_an_overflow_saturates_once_and_the_next_call_has_room() -> None:
    module = DelayedScaling(E4M3, DelayedMaximum(4))
    assert module(torch.tensor([1000.0])).item() == 448.0
    assert module(torch.tensor([1000.0])).item() == pytest.approx(1000.0, rel=2.0**-22)


def test_evaluation_records_nothing() -> None:
    module = DelayedScaling(E4M3, DelayedMaximum(4))
    module(torch.tensor([3.0]))
    state = copy.deepcopy(module.state_dict())
    module.eval()(torch.tensor([100.0]))
    for name, value in module.state_dict().items():
        assert_same_bits(value, state[name])


@pytest.mark.parametrize("amax", ["max", "most_recent"])
def test_a_resumed_run_repeats_every_bit(amax: str) -> None:
    xs = [torch.randn(64) * 3.0**k for k in (0, 2, -1, 3, -4, 1, 0, -2)]
    straight = DelayedScaling(E4M3, DelayedMaximum(3, amax=amax), "stochastic")
    torch.manual_seed(5)
    wanted = [straight(x) for x in xs]
    first = DelayedScaling(E4M3, DelayedMaximum(3, amax=amax), "stochastic")
    torch.manual_seed(5)
    got = [first(x) for x in xs[:4]]
    saved = through_file({"module": first.state_dict(), "random": torch.get_rng_state()})
    second = DelayedScaling(E4M3, DelayedMaximum(3, amax=amax), "stochastic")
    second.load_state_dict(saved["module"])
    torch.set_rng_state(saved["random"])
    for y, z in zip([*got, *(second(x) for x in xs[4:])], wanted, strict=True):
        assert_same_bits(y, z)


def test_the_state_keeps_its_dtype_and_bits_through_casts() -> None:
    module = DelayedScaling(E4M3, DelayedMaximum(2))
    module(torch.tensor([0.3]))
    scale = module.scale.clone()
    for cast in (module.half, module.bfloat16, module.double, lambda: torch.nn.Sequential(module).to(torch.float16)):
        cast()
        assert_same_bits(module.scale, scale)
        assert module.amax_history.dtype == torch.float32
    assert module.to("meta").scale.device.type == "meta"


def test_a_deep_copy_goes_its_own_way() -> None:
    module = DelayedScaling(E4M3)
    other = copy.deepcopy(module)
    other(torch.tensor([5.0]))
    assert module.scale.item() == 1 and other.scale.item() != 1


def test_the_gradient_passes_straight_through() -> None:
    x = torch.randn(10, requires_grad=True)
    module = DelayedScaling(E4M3)
    module(x).backward(torch.full((10,), 3.0))
    assert x.grad is not None and (x.grad == 3).all()
    for format in (Scaled(E4M3, CurrentMaximum()), Scaled(E4M3, PowerOfTwo(2))):
        x.grad = None
        lp_round(x, format).sum().backward()
        assert (x.grad == 1).all()


def test_the_inverse_of_a_delayed_scale_is_an_fp32_number_in_float64_too() -> None:
    quantize = DelayedScaling(E4M3).eval()
    quantize.scale.fill_(3.0)
    third = torch.tensor(3.0).reciprocal().double()
    assert quantize(torch.ones(1, dtype=torch.float64)) == 3 * third != 1


def test_float64_tensors_stay_float64() -> None:
    module = DelayedScaling(E4M3, DelayedMaximum(2))
    assert module(torch.randn(4, dtype=torch.float64)).dtype == torch.float64
    assert module(torch.empty(0)).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "error", "named"),
    [
        (dict(format=MX(E4M3)), TypeError, "takes a scalar format"),
        (dict(format=E4M3, scaling=CurrentMaximum()), TypeError, "expected DelayedMaximum"),
        (dict(format=FixedPoint(8, 4, clamp=False)), ValueError, "with a largest value"),
        (dict(format=E4M3, rounding="sideways"), ValueError, "unknown rounding"),
    ],
    ids=str,
)
def test_bad_modules_are_named(arguments: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        DelayedScaling(**arguments)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (dict(history=0), "history must be from 1"),
        (dict(margin=100), "margin must be from -64 to 64"),
        (dict(amax="mean"), "amax must be one of 'max', 'most_recent', got 'mean'"),
    ],
    ids=str,
)
def test_bad_histories_are_named(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DelayedMaximum(**arguments)


def test_the_module_says_what_it_does() -> None:
    assert repr(DelayedScaling(E4M3, DelayedMaximum(2), Rounding())).startswith("DelayedScaling(E4M3, ")


def test_fp32_is_the_scale_unless_one_says_so() -> None:
    assert CurrentMaximum().scale == FP32


def test_an_empty_tensor_is_no_division_by_zero() -> None:
    assert PER_TENSOR.block_shape((0, 3)) == (1, 3)
    assert bits_per_value(Scaled(E4M3, CurrentMaximum()), (0, 3)) == 8.0


def test_a_tile_has_no_axis_beside_it() -> None:
    for make in (lambda: MX(E4M3, (4, 4), axis=0), lambda: BlockFloatingPoint(8, dim=1, block_size=(4, 4))):
        with pytest.raises(ValueError, match="lies on the last axes"):
            make()
    with pytest.raises(ValueError, match=r"name one axis of a tensor of shape \(64, 64\) twice"):
        Tile((4, 8), (-1, 1)).block_shape((64, 64))
    assert Tile((4, 8), (-1, 1)).block_shape((4, 4, 64)) == (1, 8, 4)


def test_delayed_scaling_has_derivatives_under_torch_func() -> None:
    quantize = DelayedScaling(E4M3).eval()
    assert torch.func.grad(lambda x: quantize(x).square().sum())(torch.tensor([0.3, 2.0])).tolist() == [0.625, 4.0]
    _, tangent = torch.func.jvp(quantize, (torch.ones(2),), (torch.tensor([0.3, 1.0]),))
    assert tangent.tolist() == torch.tensor([0.3, 1.0]).tolist()


def test_the_largest_scale_may_be_the_floor() -> None:
    assert CurrentMaximum(scale=E4M3, floor=448.0).floor == 448


def test_the_exponent_of_a_maximum_just_below_a_power_of_two_is_the_one_below() -> None:
    # OCP MX 6.3: 2**floor(log2(m)) / 2**2 is 1/4, whose largest multiple in E2M1 is 6/4
    below = torch.nextafter(torch.tensor([2.0]), torch.tensor(0.0))
    assert lp_round(below, MX(E2M1)).item() == 1.5 and lp_round(torch.tensor([2.0]), MX(E2M1)).item() == 2
