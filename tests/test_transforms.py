"""Rounding, quantizers and LPTensors under torch.func: what each sample, gradient and tangent would be alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import lptensor
from low import values
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    MXFP8_E4M3,
    Accumulator,
    Arithmetic,
    BlockFloatingPoint,
    FixedPoint,
    Format,
    Gemm,
    Stochastic,
    convert,
    lower,
    quantizer,
    round as lp_round,
)
from oracles.aten_reference import AtenReference

FORMATS = [E4M3, MXFP8_E4M3, BlockFloatingPoint(5), BlockFloatingPoint(5, dim=0)]


@pytest.mark.parametrize("format", FORMATS, ids=repr)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_vmap_rounds_each_sample_as_if_alone(format: Format, dim: int) -> None:
    x = torch.randn(3, 4, 5) * torch.tensor([1.0, 1e3, 1e-3, 7.0, 1e6])
    mapped = torch.vmap(lambda t: lp_round(t, format), in_dims=dim, out_dims=dim)(x)
    assert torch.equal(mapped, torch.stack([lp_round(t, format) for t in x.unbind(dim)], dim))


def test_derivatives_pass_straight_through() -> None:
    x, v = torch.randn(3, 4), torch.randn(3, 4)
    gradient = torch.func.grad(lambda t: (lp_round(t, E4M3) ** 2).sum())(x)
    assert torch.equal(gradient, 2 * lp_round(x, E4M3))
    value, tangent = torch.func.jvp(lambda t: lp_round(t, E4M3), (x,), (v,))
    assert torch.equal(value, lp_round(x, E4M3)) and torch.equal(tangent, v)
    jacobian = torch.func.jacrev(lambda t: lp_round(t, E4M3))(x[0])
    assert torch.equal(jacobian, torch.eye(4))
    per_sample = torch.vmap(torch.func.grad(lambda t: (lp_round(t, E4M3) ** 2).sum()))(x)
    assert torch.equal(per_sample, gradient)


def test_an_lp_tensor_is_refused_within_transformations_as_it_is_outside() -> None:
    x = torch.randn(3, 4).to_lp(BF16)  # type: ignore[attr-defined]
    for ask in (
        lambda: lp_round(x, E4M3),
        lambda: torch.vmap(lambda t: lp_round(t, E4M3))(x),
        lambda: torch.func.grad(lambda t: lp_round(t, E4M3).sum())(x),
        lambda: torch.func.jvp(lambda t: lp_round(t, E4M3), (x,), (x,)),
    ):
        with pytest.raises(TypeError, match="rounding takes plain tensors, got an LPTensor"):
            ask()


def test_stochastic_rounding_in_a_vmap_draws_anew_for_each_sample() -> None:
    x = torch.full((2, 4096), 1.03)

    def f(t: torch.Tensor) -> torch.Tensor:
        return lp_round(t, E4M3, Stochastic())

    with pytest.raises(RuntimeError, match="different"):
        torch.vmap(f)(x)
    first, second = torch.vmap(f, randomness="different")(x)
    assert (first != second).any() and set(first.unique().tolist()) == {1.0, 1.125}


def test_a_quantizer_may_be_mapped() -> None:
    x = torch.randn(3, 8)
    q = quantizer(E4M3, E4M3, "nearest", "nearest")
    assert torch.equal(torch.vmap(q)(x), lp_round(x, E4M3))
    gradient = torch.vmap(torch.func.grad(lambda t: (q(t) * t).sum()))(x)
    assert torch.equal(gradient, lp_round(x, E4M3) + lp_round(x, E4M3))


# -- LPTensors -------------------------------------------------------------------------------------------

SPLIT = Arithmetic(E4M3, backward=E5M2)


def reference() -> AtenReference:
    return AtenReference(lambda x: lp_round(x, E4M3), lambda x: lp_round(x, E5M2))


def f(x: Tensor, w: Tensor) -> Tensor:
    return ((x @ w).tanh() * 1.7).exp()


def total(x: Tensor, w: Tensor) -> Tensor:
    return f(x, w).sum()


def operands() -> tuple[Tensor, Tensor, Tensor]:
    return torch.randn(4, 6), torch.randn(6, 5), torch.randn(4, 6)


def low(*tensors: Tensor) -> tuple[Any, ...]:
    return tuple(x.to_lp(SPLIT) for x in tensors)  # type: ignore[attr-defined]


def test_grad_of_an_lp_tensor_rounds_gradients_to_the_backward_format() -> None:
    x, w, _ = operands()
    mode = reference()
    a, b = mode.low(x).requires_grad_(), mode.low(w).requires_grad_()
    with mode:
        y = total(a, b)
        with mode.gradients():
            wanted = torch.autograd.grad(y, (a, b))
    got = torch.func.grad(total, (0, 1))(*low(x, w))
    for one, other in zip(got, wanted, strict=True):
        assert one.format == E5M2 and torch.equal(one.dequantize(), other)
    _, pull = torch.func.vjp(total, *low(x, w))
    for one, other in zip(pull(torch.tensor(1.0).to_lp(SPLIT)), wanted, strict=True):  # type: ignore[attr-defined]
        assert torch.equal(one.dequantize(), other)


def test_a_gradient_with_a_graph_of_its_own_is_that_without() -> None:
    x, w = low(*operands()[:2])
    grads = []
    for create_graph in (False, True):
        leaf = x.detach().clone().requires_grad_()
        grads.append(torch.autograd.grad(total(leaf, w), leaf, create_graph=create_graph)[0].detach())
    assert grads[1].format == E5M2 and torch.equal(grads[0].dequantize(), grads[1].dequantize())


@pytest.mark.parametrize("reentrant", [False, True])
def test_what_a_checkpoint_recomputes_stays_forward_work(reentrant: bool) -> None:
    from torch.utils.checkpoint import checkpoint

    x, w = low(*operands()[:2])
    grads = []
    for kept in (True, False):
        leaf = x.detach().clone().requires_grad_()
        y = f(leaf, w) if kept else checkpoint(f, leaf, w, use_reentrant=reentrant)
        y.square().sum().backward()
        grads.append(leaf.grad.dequantize())
    assert torch.equal(*grads)


@pytest.mark.parametrize("way", ["jvp", "dual"])
def test_tangents_round_as_forward_values(way: str) -> None:
    x, w, v = operands()
    mode = reference()
    a, b, tangent = mode.low(x), mode.low(w), mode.low(v)
    with mode, forward_ad.dual_level():
        wanted = forward_ad.unpack_dual(f(forward_ad.make_dual(a, tangent), b))
    x, w, v = low(x, w, v)
    if way == "jvp":
        value, moved = torch.func.jvp(lambda t: f(t, w), (x,), (v,))
    else:
        with forward_ad.dual_level():
            value, moved = forward_ad.unpack_dual(f(forward_ad.make_dual(x, v), w))
    assert moved.format == E4M3
    assert torch.equal(value.dequantize(), wanted.primal) and torch.equal(moved.dequantize(), wanted.tangent)


def test_a_vmap_of_an_lp_tensor_is_the_loop() -> None:
    x, w = low(*operands()[:2])
    mapped = torch.vmap(lambda t: (t * 1.7).exp() + t)(x)
    assert mapped.format == E4M3 and torch.equal(mapped.dequantize(), ((x * 1.7).exp() + x).dequantize())
    gradients = torch.vmap(torch.func.grad(total), in_dims=(0, None))(x, w)
    loop = torch.stack([torch.func.grad(total)(row, w) for row in x])
    assert gradients.format == E5M2 and torch.equal(gradients.dequantize(), loop.dequantize())


def cube(x: Tensor) -> Tensor:
    return (x * x * x * 1.3).tanh()


PARTS: dict[str, Callable[..., Tensor]] = {  # one operation each, if it is not mapped
    "linear": nn.functional.linear,
    "addmm": lambda x, w, b: torch.addmm(b, x[None], w.T),
    "group_norm": lambda x, w, b: nn.functional.group_norm(x[None], 1, w[0], b[:2]),
}


@pytest.mark.parametrize("name", PARTS)
def test_what_a_vmap_takes_apart_rounds_at_each_part_as_bfloat16_does(name: str) -> None:
    """Sums of two terms, which have one order."""
    x, w, b = torch.randn(500, 2).bfloat16(), torch.randn(3, 2).bfloat16(), torch.randn(3).bfloat16()
    native = torch.vmap(PARTS[name], in_dims=(0, None, None))(x, w, b)
    low = [t.float().to_lp(BF16) for t in (x, w, b)]  # type: ignore[attr-defined]
    mapped = torch.vmap(PARTS[name], in_dims=(0, None, None))(*low)
    assert torch.equal(values(mapped), native.float())
    assert not torch.equal(native, torch.stack([PARTS[name](t, w, b) for t in x]))


def test_jacobians_and_hessians_hold_the_single_derivatives() -> None:
    (x,) = low(torch.linspace(-1, 1, 6))
    rows = torch.stack([torch.func.grad(lambda t, i=i: cube(t)[i])(x) for i in range(6)])
    assert torch.equal(torch.func.jacrev(cube)(x).dequantize(), rows.dequantize())
    basis = low(torch.eye(6))[0]
    columns = torch.stack([torch.func.jvp(cube, (x,), (e,))[1] for e in basis], 1)
    assert torch.equal(torch.func.jacfwd(cube)(x).dequantize(), columns.dequantize())
    slope = torch.func.grad(lambda t: cube(t).sum())
    products = torch.stack([torch.func.jvp(slope, (x,), (e,))[1] for e in basis], 1)
    assert torch.equal(torch.func.hessian(lambda t: cube(t).sum())(x).dequantize(), products.dequantize())


def test_a_converted_model_may_be_called_with_other_parameters() -> None:
    model = convert(nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2)), SPLIT)
    (x,) = low(torch.randn(4, 6))
    parameters = dict(model.named_parameters())
    moved = {name: p * 2 for name, p in parameters.items()}
    assert torch.equal(torch.func.functional_call(model, parameters, (x,)).dequantize(), model(x).dequantize())
    assert not torch.equal(torch.func.functional_call(model, moved, (x,)).dequantize(), model(x).dequantize())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        result: Tensor = torch.func.functional_call(model, parameters, (x,)).square().sum()
        return result

    gradients = torch.func.grad(loss)(parameters, x)
    model(x).square().sum().backward()
    for name, p in parameters.items():
        assert torch.equal(gradients[name].dequantize(), p.grad.dequantize())  # type: ignore[union-attr]
    each = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(parameters, x)
    for i, row in enumerate(x):
        alone = torch.func.grad(loss)(parameters, row)
        for name in parameters:
            assert torch.equal(each[name][i].dequantize(), alone[name].dequantize())


def test_a_transformed_function_may_enter_and_leave_low_precision() -> None:
    def g(x: Tensor) -> Tensor:
        return (x.to_lp(SPLIT) * 2.3).to_lp(Arithmetic(BF16)).exp().dequantize()  # type: ignore[attr-defined]

    x, v = torch.randn(3, 4), torch.randn(3, 4)
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(g(leaf).sum(), leaf)
    assert torch.equal(torch.func.grad(lambda t: g(t).sum())(x), wanted)
    assert torch.equal(torch.vmap(g)(x), g(x)) and torch.equal(torch.vmap(g, in_dims=1, out_dims=1)(x), g(x))
    assert torch.equal(torch.vmap(torch.func.grad(lambda t: g(t).sum()))(x), wanted)
    with forward_ad.dual_level():
        dual = forward_ad.unpack_dual(g(forward_ad.make_dual(x, v)))
    value, tangent = torch.func.jvp(g, (x,), (v,))
    assert torch.equal(value, g(x)) and torch.equal(tangent, dual.tangent)


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_a_vmap_enters_the_blocks_of_each_sample(format: Format) -> None:
    x = torch.randn(3, 4, 5) * torch.tensor([1.0, 1e3, 1e-3, 7.0, 1e2])
    mapped = torch.vmap(lambda t: t.to_lp(format).dequantize(), in_dims=1)(x)  # type: ignore[attr-defined]
    assert torch.equal(mapped, torch.stack([lp_round(t, format) for t in x.unbind(1)]))


def test_entering_stochastically_in_a_vmap_asks_for_different_draws() -> None:
    x = torch.full((2, 4096), 1.03)

    def g(t: Tensor) -> Tensor:
        return t.to_lp(E4M3, "stochastic").dequantize()  # type: ignore[attr-defined, no-any-return]

    with pytest.raises(RuntimeError, match="different"):
        torch.vmap(g)(x)
    first, second = torch.vmap(g, randomness="different")(x)
    assert (first != second).any() and set(first.unique().tolist()) == {1.0, 1.125}


def test_inference_mode_gives_the_bits_of_no_grad() -> None:
    model = convert(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), SPLIT)
    (x,) = low(torch.randn(2, 5, 8))
    with torch.no_grad():
        wanted = model(x)
    with torch.inference_mode():
        got = model(x)
    assert torch.equal(got.dequantize(), wanted.dequantize())


def test_a_vmap_of_the_same_random_words_is_refused() -> None:
    with pytest.raises(RuntimeError, match='randomness="different"'):
        torch.vmap(lambda x: lptensor.round(x, E4M3, "stochastic"), randomness="same")(torch.full((4, 2), 1.05))


def mixed(how: str) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4))
    made: dict[str, Callable[[], nn.Module]] = {
        "a plain layer behind": lambda: convert(net, {"0": FixedPoint(4, 2)}),
        "two formats": lambda: convert(net, {"2": BF16, "*": E4M3}),
        "operands": lambda: lower(net, ["linear"], operands=Gemm((FixedPoint(4, 2),) * 2), exempt=["2"]),
        "an accumulator": lambda: lower(net, ["linear"], accumulator=Accumulator(BF16), exempt=["2"]),
        "numbers and operands": lambda: lower(
            net,
            ["linear"],
            forward_number=E4M3,
            forward_rounding="nearest",
            backward_rounding="nearest",
            operands=Gemm((E5M2, E5M2)),
        ),
    }
    return made[how]()


@pytest.mark.parametrize(
    "how", ["a plain layer behind", "two formats", "operands", "an accumulator", "numbers and operands"]
)
def test_formats_of_modules_end_where_they_end_under_a_transformation(how: str) -> None:
    """Where torch.func wraps an LPTensor, the boundaries of modules have to look into the wrapper."""
    net, x = mixed(how), torch.randn(6, 8)
    y = net(x)
    for z in (torch.func.vjp(net, x)[0], torch.func.jvp(net, (x,), (x,))[0]):
        assert type(z) is type(y) and getattr(z, "arithmetic", None) == getattr(y, "arithmetic", None)
        assert torch.equal(values(z), values(y))
    assert type(torch.vmap(net)(x)) is type(y)

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(net, parameters, (x,)).square().sum()

    parameters = dict(net.named_parameters())
    loss(parameters).backward()
    found = torch.func.grad(loss)({name: p.detach() for name, p in parameters.items()})
    for name, p in parameters.items():
        assert type(found[name]) is type(p.grad) and torch.equal(values(found[name]), values(p.grad)), name


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_quantizer_that_masks_is_transformed(rounding: str) -> None:
    q, x = quantizer(FixedPoint(4, 3), E5M2, rounding, "nearest", clamping_grad_zero=True), 2 * torch.randn(4, 16)
    found = torch.vmap(torch.func.grad(lambda v: q(v).sum()), randomness="different")(x)
    assert torch.vmap(q, randomness="different")(x).shape == x.shape and 0 < (found == 0).sum() < x.numel()
    assert (found[x.abs() < 0.8] == 1).all() and (found[(x < -1.2) | (x > 1.1)] == 0).all()


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap])
def test_functions_that_round_once_are_refused_under_a_transformation(transform: Any) -> None:
    x = torch.randn(8, generator=torch.Generator().manual_seed(0)).to_lp(E4M3)  # type: ignore[attr-defined]
    with lptensor.rounding_points("function"):
        with pytest.raises(NotImplementedError, match=r"torch.func .*, where silu"):
            transform(lambda x: nn.functional.silu(x).sum())(x)
        nn.functional.silu(x)


@pytest.mark.parametrize("format", FORMATS, ids=repr)
def test_a_vmap_rounds_the_gradient_of_each_sample_as_if_alone(format: Format) -> None:
    generator = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(*shape, generator=generator) for shape in ((5, 1, 64), (1, 64)))
    scales = torch.tensor([1.0, 100.0, 0.01, 3.0, 1e4])

    def f(x: Tensor, scale: Tensor) -> Tensor:
        return (x.to_lp(Arithmetic(BF16, backward=format)).dequantize() * direction * scale).sum()  # type: ignore[attr-defined]

    got = torch.func.vmap(torch.func.grad(f))(x, scales)
    for i in range(5):
        assert torch.equal(got[i], lp_round(direction * scales[i], format))


def test_stochastic_gradients_in_a_vmap_ask_for_different_draws() -> None:
    split = Arithmetic(BF16, backward=E4M3, backward_rounding="stochastic")

    def f(x: Tensor) -> Tensor:
        return (x.to_lp(split).dequantize() * (1 / 3)).sum()  # type: ignore[attr-defined]

    x = torch.zeros(256, 3)
    with pytest.raises(RuntimeError, match='randomness="different"'):
        torch.func.vmap(torch.func.grad(f))(x)
    assert len(torch.func.vmap(torch.func.grad(f), randomness="different")(x).unique()) == 2
