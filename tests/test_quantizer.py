"""A quantizer rounds values forward and gradients backward."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

from lptensor.arithmetic import Arithmetic
from lptensor.blocks import BlockFloatingPoint
from lptensor.formats import E4M3, E5M2, FP16, FixedPoint, FloatingPoint
from lptensor.quantizer import Quantizer, as_step, quantizer
from lptensor.rounding import Stochastic
from oracles.low_precision import CastBothWays, fixed, through


def normal(*shape, requires_grad=True):
    return torch.randn(*shape, requires_grad=requires_grad)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def doubled(grad):
    return grad * 2


def test_it_rounds_like_casts_forward_and_backward():
    x, weights = normal(1000), torch.randn(1000)
    both = quantizer(FloatingPoint(8), FloatingPoint(16), "nearest", "nearest")
    (both(x).pow(2) * weights).sum().backward()
    got, x.grad = x.grad, None
    y = CastBothWays.apply(x, torch.float8_e5m2, torch.float16)
    (y.pow(2) * weights).sum().backward()
    assert torch.equal(both(x), y)
    assert torch.equal(got, x.grad)


@pytest.mark.parametrize(("forward", "backward"), [(None, E5M2), (E5M2, None), (None, None)])
def test_none_is_the_identity_in_its_direction(forward, backward):
    x, factor = normal(100), torch.randn(100)
    y = quantizer(forward, backward, "nearest", "nearest")(x)
    (y * factor).sum().backward()
    dtypes = [torch.float32 if number is None else torch.float8_e5m2 for number in (forward, backward)]
    assert torch.equal(y, x.to(dtypes[0]).float())
    assert torch.equal(x.grad, factor.to(dtypes[1]).float())


def test_both_directions_are_stochastic_by_default():
    x = torch.full((10_000,), 1.0625, requires_grad=True)  # a quarter of the way from 1 to 1.25
    y = quantizer(FloatingPoint(8), FloatingPoint(8))(x)
    (y * 1.125).sum().backward()  # half of it
    for result, share in ((y.detach(), 0.25), (x.grad, 0.5)):
        assert set(result.tolist()) == {1.0, 1.25}
        sigma = (share * (1 - share) / 10_000) ** 0.5
        assert abs((result == 1.25).double().mean().item() - share) < 4 * sigma


def test_the_seed_repeats_both_directions():
    x, results = normal(100), []
    for _ in range(2):
        torch.manual_seed(1)
        y = quantizer(FloatingPoint(8), FloatingPoint(8))(x)
        results.append((y, *torch.autograd.grad((y * 0.3).sum(), x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("rounding", ["nearest", "toward_zero", "up", "stochastic"])
@pytest.mark.parametrize("format", [FixedPoint(5, 2), FixedPoint(5, 2, symmetric=True), FixedPoint(4, 2, signed=False)])
def test_the_gradient_is_zero_exactly_where_fixed_point_clamped(format, rounding):
    x = torch.linspace(-6, 6, 4001, requires_grad=True)
    y = quantizer(format, None, rounding, clamping_grad_zero=True)(x)
    y.sum().backward()
    step, top = 2.0**-2, 2.0**2 - 2.0**-2
    bottom = (-(2.0**2) + (2.0**-2 if format.symmetric else 0)) * format.signed
    beyond = {
        "nearest": (x / step).round() * step,
        "toward_zero": (x / step).trunc() * step,
        "up": (x / step).ceil() * step,
        "stochastic": None,
    }[rounding]
    if beyond is not None:
        clamped = (beyond > top) | (beyond < bottom)
        assert torch.equal(x.grad, (~clamped).float())
    surely = (x >= top + step) | (x <= bottom - step)
    never = (x <= top) & (x >= bottom)
    assert not x.grad[surely].any()
    assert x.grad[never].all()
    assert torch.equal(y[x.grad == 0].abs().unique(), torch.tensor([top, -bottom]).unique())


def test_the_mask_knows_which_way_stochastic_rounding_went():
    x = torch.full((10_000,), 1.75 + 0.0625, requires_grad=True)  # a quarter of the way past the top
    quantizer(FixedPoint(4, 2), clamping_grad_zero=True)(x).sum().backward()
    assert abs((x.grad == 0).double().mean().item() - 0.25) < 4 * (0.25 * 0.75 / 10_000) ** 0.5
    torch.manual_seed(5)
    quantizer(FixedPoint(6, 2), clamping_grad_zero=True)(x).sum()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    quantizer(FixedPoint(6, 2))(x).sum()
    assert torch.equal(after, torch.get_rng_state())


def test_the_mask_agrees_with_the_rounding_it_looks_at():
    """Below the top, the random numbers that the mask used are those of the result."""
    x = torch.full((10_000,), 1.75 - 0.0625, requires_grad=True)
    y = quantizer(FixedPoint(4, 2), clamping_grad_zero=True)(x)
    y.sum().backward()
    assert x.grad.all()
    x = torch.full((10_000,), -2 + 0.0625, requires_grad=True)
    limited = quantizer(FixedPoint(4, 2, symmetric=True), clamping_grad_zero=True)(x)  # -2 is clamped to -1.75
    torch.manual_seed(7)
    limited = quantizer(FixedPoint(4, 2, symmetric=True), clamping_grad_zero=True)(x)
    limited.sum().backward()
    torch.manual_seed(7)
    wide = quantizer(FixedPoint(6, 2))(x.detach())
    assert torch.equal(x.grad == 0, wide == -2)


def test_each_direction_has_its_own_rounding():
    x = torch.tensor([1.1], requires_grad=True)
    y = quantizer(E5M2, E5M2, "down", "up")(x)
    (y * 1.1).sum().backward()
    assert (y.item(), x.grad.item()) == (1.0, 1.25)


@pytest.mark.parametrize("overflow", ["saturate", "nan"])
def test_floats_are_masked_beyond_their_largest_value(overflow):
    x = torch.tensor([448.0, 460.0, 465.0, -1e30, float("inf"), float("nan"), 1e-9], requires_grad=True)
    y = quantizer(replace(E4M3, overflow=overflow), None, "nearest", clamping_grad_zero=True)(x)
    y.backward(torch.ones_like(x))
    assert x.grad.tolist() == [1, 1, 0, 0, 0, 1, 1]


def test_the_mask_comes_after_hooks_and_rounding():
    x = torch.tensor([0.5, 100.0], requires_grad=True)
    both = quantizer(FixedPoint(8, 4), E5M2, "nearest", "nearest", True, [doubled, lambda g: g + 0.04])
    both(x).backward(torch.tensor([0.3, 0.3]))
    assert x.grad.tolist() == [torch.tensor(0.64).to(torch.float8_e5m2).item(), 0.0]


def test_a_hook_that_returns_nothing_leaves_the_gradient():
    seen = []
    for hook in (lambda g: seen.append(g.clone()), lambda g: None):
        x = torch.ones(3, requires_grad=True)
        quantizer(E4M3, backward_hooks=[hook, lambda g: g * 2])(x).backward(torch.tensor([0.3, 1.0, 7.0]))
        assert torch.equal(x.grad, 2 * torch.tensor([0.3, 1.0, 7.0]))
    assert torch.equal(seen[0], torch.tensor([0.3, 1.0, 7.0]))


def test_hooks_run_in_order_before_rounding_without_a_mask_too():
    x = torch.ones(3, requires_grad=True)
    quantizer(None, E5M2, "nearest", "nearest", backward_hooks=(doubled, lambda g: g + 1))(x).sum().backward()
    assert x.grad.tolist() == [3, 3, 3]


def test_double_backward_passes_straight_through():
    x = torch.tensor([0.3], requires_grad=True)
    y = quantizer(E5M2, E5M2, "nearest", "nearest")(x)
    (grad,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad, x)
    rounded = torch.tensor(0.3).to(torch.float8_e5m2).float()
    assert grad.item() == (3 * rounded**2).to(torch.float8_e5m2).float().item()
    assert second.item() == (6 * rounded).to(torch.float8_e5m2).float().item()


@pytest.mark.parametrize("grad_mode", [True, False])
@pytest.mark.parametrize("mask", [True, False])
def test_forward_derivatives_pass_straight_through_but_where_clamped(mask, grad_mode):
    x, tangent = torch.tensor([0.3, 100.0]), torch.tensor([0.5, 0.5])
    both = quantizer(FixedPoint(8, 4), None, "nearest", clamping_grad_zero=mask)
    with torch.set_grad_enabled(grad_mode), torch.autograd.forward_ad.dual_level():
        y = both(torch.autograd.forward_ad.make_dual(x, tangent))
        slope = torch.autograd.forward_ad.unpack_dual(y).tangent
        assert slope.tolist() == [0.5, 0.0 if mask else 0.5]


@pytest.mark.parametrize("mask", [True, False])
def test_functional_gradients_work(mask):
    both = quantizer(FixedPoint(8, 4), E5M2, "nearest", "nearest", clamping_grad_zero=mask)
    slope = torch.func.grad(lambda x: (both(x) * 0.3).sum())(torch.tensor([0.3, 100.0]))
    assert slope.tolist() == [0.3125, 0.0 if mask else 0.3125]


def test_no_grad_rounds_as_well():
    x = normal(50)
    with torch.no_grad():
        y = quantizer(E5M2, E5M2, "nearest")(x)
    assert torch.equal(y, x.to(torch.float8_e5m2).float())
    assert not y.requires_grad


@pytest.mark.parametrize("forward", [None, E5M2])
def test_what_comes_next_may_work_in_place(forward):
    x = normal(50)
    y = torch.relu_(quantizer(forward, E5M2, "nearest", "nearest")(x))
    y.sum().backward()
    assert torch.equal(x.grad, (y > 0).float())
    assert (x < 0).any()


def test_an_lptensor_stays_one_and_on_its_own_format_too():
    values = torch.tensor([0.3, 100.0])
    x = values.to_lp(Arithmetic(E5M2, FP16)).requires_grad_()
    y = quantizer(FixedPoint(8, 4), FixedPoint(8, 6), "nearest", "nearest")(x)
    (y * 0.3).sum().backward()
    cast = through(torch.float8_e5m2)
    assert y.format == E5M2 and torch.equal(y.dequantize(), cast(fixed(4, 8)(cast(values))))
    assert y[1] == 8, "7.9375 is the largest of the one format and none of the other"
    assert x.grad.format == FP16 and torch.equal(x.grad.dequantize(), fixed(6, 8)(torch.full((2,), 0.3).half().float()))


def test_float64_is_rounded_without_a_detour():
    x = torch.tensor([1 + 2.0**-3 + 2.0**-40], dtype=torch.float64)  # in float32 a tie, which would go to 1
    assert quantizer(FloatingPoint(8), forward_rounding="nearest")(x).item() == 1.25


@pytest.mark.parametrize("again", [copy.deepcopy, lambda q: pickle.loads(pickle.dumps(q))])
def test_function_and_module_can_be_copied_and_pickled(again):
    settings = (E4M3, E5M2, Stochastic(8), "up", True, (doubled,))
    assert again(quantizer(*settings)) == quantizer(*settings)
    module = again(Quantizer(*settings))
    assert module.quantize == quantizer(*settings)
    assert "E4M3" in repr(module) or "exp=4, man=3" in repr(module)


def test_the_module_does_what_the_function_does():
    x, net = normal(20, 4), nn.Sequential(nn.Linear(4, 3), Quantizer(FixedPoint(8, 4), None, "nearest"))
    assert torch.equal(net(x), fixed(4, 8)(net[0](x)))
    assert not net[1].state_dict()


@pytest.mark.parametrize("argument", ["forward_number", "backward_number"])
@pytest.mark.parametrize("number", [8, "e4m3", FloatingPoint, torch.relu])
def test_what_is_no_format_is_named(argument, number):
    with pytest.raises(TypeError, match=argument):
        quantizer(**{argument: number})


@pytest.mark.parametrize("format", [BlockFloatingPoint(8), FixedPoint(8, 4, clamp=False)])
def test_a_mask_needs_a_format_with_limits(format):
    with pytest.raises(ValueError, match="clamping_grad_zero"):
        quantizer(format, clamping_grad_zero=True)


def test_it_shows_the_settings_that_are_no_defaults():
    assert repr(quantizer()) == "quantizer()"
    assert repr(quantizer(E4M3, clamping_grad_zero=True)) == "quantizer(forward_number=E4M3, clamping_grad_zero=True)"
    assert repr(Quantizer(E4M3, E5M2)) == "Quantizer(forward_number=E4M3, backward_number=E5M2)"


def test_other_bad_settings_are_named():
    with pytest.raises(ValueError, match="up_or_down"):
        quantizer(E4M3, forward_rounding="up_or_down")
    with pytest.raises(TypeError, match="clamping_grad_zero must be True or False, got 'no'"):
        quantizer(E4M3, clamping_grad_zero="no")
    with pytest.raises(TypeError, match="3"):
        quantizer(E4M3, backward_hooks=[3])
    with pytest.raises(TypeError, match="backward_hooks"):
        quantizer(E4M3, backward_hooks=3)
    with pytest.raises(TypeError, match="int64"):
        quantizer(E4M3)(torch.arange(3))
    with pytest.raises(TypeError, match="list"):
        quantizer(E4M3)([1.0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_a_mask_is_not_asked_of_a_dtype_that_is_not_rounded(dtype):
    with pytest.raises(TypeError, match=str(dtype)):
        quantizer(FixedPoint(8, 4), clamping_grad_zero=True)(torch.ones(3, dtype=dtype))


def test_a_step_is_a_format_or_a_function():
    x = torch.full((1000,), 1.0625)
    assert set(as_step("weight_quant", FloatingPoint(8))(x).tolist()) == {1.0, 1.25}
    assert torch.equal(as_step("weight_quant", lambda t: t.zero_())(x), torch.zeros(1000))
    assert x.all(), "a function that works in place gets a copy"
    assert as_step("weight_quant", None) is None
    for bad in (8, "fp8", FloatingPoint):
        with pytest.raises(TypeError, match="weight_quant"):
            as_step("weight_quant", bad)
    for wrong in (lambda t: t.sum(), lambda t: None):
        with pytest.raises(ValueError, match=r"weight_quant must return a tensor of shape \(1000,\)"):
            as_step("weight_quant", wrong)(x)


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_gradients_of_clamped_lptensors_are_zero_too(rounding):
    x = torch.tensor([1.0, 100.0, -100.0], requires_grad=True)
    clamps = quantizer(FixedPoint(8, 4), None, rounding, clamping_grad_zero=True)
    y = clamps(x.to_lp(FloatingPoint(8, 23)))
    y.sum().backward()
    assert y.tolist() == [1.0, 7.9375, -8.0] and x.grad.tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "x", [torch.ones(2).half(), torch.ones(2).int(), torch.eye(2).to_sparse()], ids=["half", "int", "sparse"]
)
def test_what_cannot_be_rounded_is_refused_alike_with_and_without_a_mask(x):
    said = []
    for mask in (False, True):
        with pytest.raises(TypeError) as error:
            quantizer(E4M3, clamping_grad_zero=mask)(x)
        said.append(str(error.value))
    assert said[0] == said[1]
