"""Gradients of LPTensors: where they round, in what format, and through every way autograd runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from low import is_low, rounded, same, values
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    FP16,
    FP32,
    Arithmetic,
    BlockFloatingPoint,
    FixedPoint,
    Format,
    LPTensor,
    arguments,
    convert,
    dispatch,
)

BOTH = Arithmetic(BF16, backward=E5M2)


def leaf(*shape: int, arithmetic: Any = BOTH) -> LPTensor:
    x: LPTensor = torch.randn(*shape).to_lp(arithmetic)  # type: ignore[attr-defined]
    return x.requires_grad_()


def test_gradients_are_in_the_backward_format_and_results_in_the_forward_one() -> None:
    x = leaf(100)
    y = x.sin() * 3
    y.sum().backward()
    assert is_low(y, BF16) and is_low(x.grad, E5M2) and x.grad.arithmetic == BOTH
    step = rounded(torch.full((100,), 3.0), E5M2)
    slope = rounded(values(x).cos(), E5M2)  # an op of the backward pass too
    assert same(x.grad, rounded(step * slope, E5M2))


def test_without_a_backward_format_gradients_are_in_the_forward_one() -> None:
    x = leaf(50, arithmetic=Arithmetic(E4M3))
    (x * 0.3).sum().backward()
    assert is_low(x.grad, E4M3)


def test_fp32_gradients_are_not_rounded() -> None:
    x = leaf(50, arithmetic=Arithmetic(E4M3, backward=FP32))
    (x * 0.3).sum().backward()
    assert x.grad.format == FP32 and same(x.grad, torch.full((50,), 0.3))


def test_a_linear_layer_rounds_each_of_its_three_products_once() -> None:
    x, w = leaf(5, 40), leaf(7, 40)
    y = F.linear(x, w)
    g = rounded(torch.randn(5, 7), E5M2)
    y.backward(g.to_lp(BOTH))
    assert same(y, rounded(values(x) @ values(w).t(), BF16))
    assert same(x.grad, rounded(g @ values(w), E5M2))
    assert same(w.grad, rounded(g.t() @ values(x), E5M2))


def test_every_hook_sees_the_backward_format() -> None:
    x = leaf(20)
    seen: list[Any] = []
    x.register_hook(lambda g: seen.append(g))
    x.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    y = x * 0.3
    y.register_hook(lambda g: seen.append(g))
    (y * 1.1).sum().backward()
    assert len(seen) == 3 and all(is_low(g, E5M2) for g in seen)


def test_gradients_that_meet_are_summed_and_rounded() -> None:
    x = leaf(200)
    a, b = 1.3, 0.37
    (x * a + x * b).sum().backward()
    one = torch.ones(200)
    want = rounded(rounded(one * a, E5M2) + rounded(one * b, E5M2), E5M2)
    assert same(x.grad, want)


def test_accumulation_over_two_backwards_rounds_in_the_backward_format() -> None:
    x = leaf(20)
    y = (x * 0.37).sum()
    y.backward(retain_graph=True)
    first = values(x.grad).clone()
    y.backward()
    assert is_low(x.grad, E5M2) and same(x.grad, rounded(first + first, E5M2))


def test_a_gradient_that_the_caller_supplies_is_taken_to_the_backward_format() -> None:
    x = leaf(20)
    x.flip(0).backward(torch.randn(20).to_lp(BOTH))
    assert is_low(x.grad, E5M2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    "pull",
    [
        lambda f, x, seed: torch.autograd.grad(f(x), x, seed)[0],
        lambda f, x, seed: torch.autograd.grad(f(x), x, torch.stack([seed, seed]), is_grads_batched=True)[0][1],
        lambda f, x, seed: f(x).backward(seed) or x.grad,
        lambda f, x, seed: torch.autograd.functional.vjp(f, x, seed)[1],
        lambda f, x, seed: torch.func.vjp(f, x)[1](seed)[0],
        lambda f, x, seed: torch.vmap(torch.func.vjp(f, x)[1])(torch.stack([seed, seed]))[0][1],
    ],
    ids=["grad", "batched", "backward", "functional", "func", "mapped"],
)
def test_a_plain_gradient_that_the_caller_supplies_is_rounded_as_a_native_dtype_would_cast_it(
    pull: Any, dtype: torch.dtype
) -> None:
    x, seed = leaf(20), torch.randn(20).to(dtype)
    grad = pull(lambda x: x.flip(0), x, seed)
    assert is_low(grad, E5M2) and same(grad, rounded(seed.float().flip(0), E5M2))


def test_gradients_too_few_or_too_many_are_torchs_affair() -> None:
    for x in (torch.ones(2, requires_grad=True), leaf(2)):
        seed = torch.ones(2)
        with pytest.raises(RuntimeError, match="got 2 tensors and 1 gradients"):
            torch.autograd.grad([x * 2, x * 3], x, [seed])
        assert torch.autograd.grad([x * 2], x, [seed, seed])[0].tolist() == [2.0, 2.0]


def test_a_plain_gradient_may_have_a_graph_of_its_own() -> None:
    x, seed = leaf(4), torch.randn(4, requires_grad=True)
    (grad,) = torch.autograd.grad(x * 2, x, seed, create_graph=True)
    grad.sum().backward()
    assert type(seed.grad) is Tensor and seed.grad.tolist() == [2.0] * 4


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_changes_no_bit(reentrant: bool) -> None:
    w1, w2 = leaf(16, 16), leaf(16, 16)

    def block(x: Tensor) -> Tensor:
        return F.gelu(x @ w1).sin() @ w2

    def run(whole: bool) -> list[Any]:
        x = leaf_of[0].detach().requires_grad_()
        y = block(x) if whole else checkpoint(block, x, use_reentrant=reentrant)
        grads = torch.autograd.grad(y.square().sum(), [x, w1, w2]) if not reentrant or whole else None
        if grads is None:
            w1.grad = w2.grad = None
            y.square().sum().backward()
            grads = x.grad, w1.grad, w2.grad
        return [y, *grads]

    leaf_of = [leaf(4, 16)]
    for a, b in zip(run(True), run(False), strict=True):
        assert same(a, b) and a.format == b.format


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_repeats_the_draws_of_stochastic_rounding(reentrant: bool) -> None:
    random = Arithmetic(E4M3, rounding="stochastic")
    w, start = leaf(16, 16, arithmetic=random), leaf(4, 16, arithmetic=random)

    def gradient(whole: bool) -> Tensor:
        torch.manual_seed(7)
        x = start.detach().requires_grad_()
        block = lambda x: (x @ w).sin() @ w  # noqa: E731
        y = block(x) if whole else checkpoint(block, x, use_reentrant=reentrant)
        y.sum().backward()
        return values(x.grad)

    assert torch.equal(gradient(True), gradient(False))


class Cube(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * 3 * x * x


def test_a_custom_function_rounds_in_both_directions() -> None:
    x = leaf(100)
    y = Cube.apply(x)
    y.sum().backward()
    v = values(x)
    assert same(y, rounded(rounded(v * v, BF16) * v, BF16))
    want = rounded(rounded(rounded(torch.ones(100) * 3, E5M2) * v, E5M2) * v, E5M2)
    assert is_low(x.grad, E5M2) and same(x.grad, want)


def test_double_backward_and_create_graph() -> None:
    x = leaf(30, arithmetic=Arithmetic(BF16))
    (g,) = torch.autograd.grad(x.pow(3).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert is_low(g, BF16) and is_low(h, BF16)
    torch.testing.assert_close(h.dequantize(), 6 * values(x), rtol=2**-6, atol=0)


def energy_and_force(x: Tensor) -> Tensor:
    """A function with a gradient in it, as networks of forces and PINNs have."""
    (force,) = torch.autograd.grad((x.exp() * x + x).sum(), x, create_graph=True)
    assert is_low(force, E5M2)
    return force.square().sum()


def test_a_gradient_with_a_graph_is_one_where_saved_tensors_have_hooks() -> None:
    x = leaf(30)
    energy_and_force(x).backward()
    want, x.grad = x.grad, None
    with torch.autograd.graph.save_on_cpu():
        energy_and_force(x).backward()
    assert same(x.grad, want)


def test_a_gradient_within_a_checkpoint_is_one_before_and_in_the_recomputation() -> None:
    x = leaf(30)
    energy_and_force(x).backward()
    want, x.grad = x.grad, None
    checkpoint(energy_and_force, x, use_reentrant=False).backward()
    assert same(x.grad, want) and is_low(x.grad, E5M2)


def test_retain_grad_gives_gradients_of_inner_results() -> None:
    x = leaf(30)
    y = x * 0.3
    y.retain_grad()
    (y * 0.7).sum().backward()
    assert is_low(y.grad, E5M2)


def test_the_gradient_leaves_low_precision_where_its_tensor_entered() -> None:
    x = torch.randn(30, requires_grad=True)
    (x.to_lp(BOTH) * 0.3).sum().backward()
    assert type(x.grad) is Tensor and torch.equal(x.grad, rounded(torch.full((30,), 0.3), E5M2))


def test_the_gradient_enters_low_precision_where_its_tensor_left() -> None:
    x = leaf(30)
    seed = torch.randn(30)
    x.dequantize().backward(seed)
    assert is_low(x.grad, E5M2) and same(x.grad, rounded(seed, E5M2))


def test_a_recast_gives_each_side_its_own_backward_format() -> None:
    x = leaf(30, arithmetic=Arithmetic(BF16, backward=FP16))
    y = x.to_lp(Arithmetic(E4M3, backward=E5M2))
    (y * 0.3).sum().backward()
    assert x.grad.format == FP16 and same(x.grad, rounded(rounded(torch.full((30,), 0.3), E5M2), FP16))


def test_round_trip_through_dequantize_keeps_the_graph() -> None:
    x = leaf(10)
    (x.dequantize() * 2).to_lp(E4M3).sum().backward()
    assert is_low(x.grad, E5M2) and same(x.grad, torch.full((10,), 2.0))


def test_in_place_writes_to_views_reach_the_gradient() -> None:
    x = leaf(4, 4)
    y = x * 1.0
    y[1].mul_(0.3)
    y.sum().backward()
    want = torch.ones(4, 4)
    want[1] = rounded(torch.tensor(0.3), E5M2)
    assert same(x.grad, want)


def test_an_optimizer_step_in_a_hook_of_the_backward_pass_rounds_to_the_forward_format() -> None:
    def train(in_hook: bool) -> list[Any]:
        torch.manual_seed(3)
        model = convert(nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2)), BOTH)
        optimizers = {p: torch.optim.SGD([p], lr=0.1, momentum=0.9, weight_decay=0.1) for p in model.parameters()}

        def step(p: Tensor) -> None:
            optimizers[p].step()
            optimizers[p].zero_grad()

        if in_hook:
            for p in model.parameters():
                p.register_post_accumulate_grad_hook(step)
        for i in range(3):
            torch.manual_seed(i)
            model(torch.randn(5, 6).to_lp(BOTH)).square().sum().backward()
            if not in_hook:
                for p in model.parameters():
                    step(p)
        return [t for p, o in optimizers.items() for t in (p, o.state[p]["momentum_buffer"])]

    for a, b in zip(train(True), train(False), strict=True):
        assert is_low(a, BF16) and same(a, b) and not a._gradient


def _put(x: Tensor, how: str) -> Tensor:
    """``x`` written to a plain fp32 tensor."""
    u, rows = torch.zeros(x.shape), torch.arange(len(x))
    where = torch.ones(x.shape, dtype=torch.bool)
    index: Any = {"a slice": slice(None), "a list": rows}.get(how)
    if index is not None:
        u[index] = x
        return u
    written = {
        "copy_": lambda: u.copy_(x),
        "add_": lambda: u.add_(x),
        "addcmul_": lambda: u.addcmul_(x, torch.ones(())),
        "index_add_": lambda: u.index_add_(0, rows, x),
        "scatter_": lambda: u.scatter_(0, rows[:, None].expand_as(x), x),
        "masked_scatter_": lambda: u.masked_scatter_(where, x),
    }
    return written[how]()


@pytest.mark.parametrize(
    "how", ["a slice", "a list", "copy_", "add_", "addcmul_", "index_add_", "scatter_", "masked_scatter_"]
)
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_gradient_that_comes_back_from_a_plain_tensor_rounds(how: str, create_graph: bool) -> None:
    """What is written to a plain tensor is plain; its gradient is cast where it comes back, as to a native dtype."""
    x, v = leaf(6, 5), torch.randn(6, 5)
    u = _put(x * 3, how)
    assert type(u) is Tensor and same(u, rounded(values(x) * 3, BF16))
    (grad,) = torch.autograd.grad((u * v).sum(), x, create_graph=create_graph)
    assert is_low(grad, E5M2) and same(grad, rounded(rounded(v, E5M2) * 3, E5M2))


@pytest.mark.parametrize("how", ["a slice", "copy_", "add_"])
@pytest.mark.parametrize(
    "op", [lambda x: x.split(3), lambda x: x.view(2, 3).unbind(), lambda x: torch.var_mean(x.view(2, 3), 0)]
)
def test_what_is_written_to_a_plain_tensor_may_be_left_without_a_gradient(how: str, op: Any) -> None:
    """If another result of the same op has one."""
    x = leaf(6)
    used, other = op(x * 2)
    _put(other, how)
    used.sum().backward()
    (grad,) = torch.autograd.grad(op(x * 2)[0].sum(), x)
    assert is_low(x.grad, E5M2) and same(x.grad, grad)


@pytest.mark.parametrize("how", ["a slice", "copy_", "add_"])
def test_such_a_gradient_is_that_of_the_native_dtype(how: str) -> None:
    x, v = leaf(6, 5, arithmetic=BF16), torch.randn(6, 5)
    native = values(x).bfloat16().requires_grad_()
    for p in (x, native):
        (_put(p * 3, how) * v).sum().backward()
    assert is_low(x.grad, BF16) and same(x.grad, native.grad)


@pytest.mark.parametrize("kind", [tuple, torch.tensor])
@pytest.mark.parametrize("format", [BF16, FP16, E4M3])
def test_ctc_loss_saves_the_exact_likelihood(format: Format, kind: Callable[[Any], Any]) -> None:
    """Its gradient is made of e to the power of the loss: a rounded one would scale it."""
    targets, lengths, sizes = torch.randint(1, 9, (2, 12)), kind([60, 41]), kind([12, 7])
    arithmetic = Arithmetic(format, backward=BF16)
    low = F.log_softmax(torch.randn(60, 2, 9), -1).to_lp(arithmetic).requires_grad_()  # type: ignore[attr-defined]
    plain = values(low).clone().requires_grad_()
    loss, want = (F.ctc_loss(x, targets, lengths, sizes, reduction="sum") for x in (low, plain))
    loss.backward(), want.backward()
    assert is_low(loss, format) and is_low(low.grad, BF16) and same(low.grad, rounded(plain.grad, BF16))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("reduce", ["sum", "mean", "amax", "amin"])
def test_a_product_with_a_sparse_matrix_gives_gradients_to_the_rows_it_took(reduce: str) -> None:
    """Once torch read past the end of an empty tensor there, for amax and amin."""
    matrix = torch.randn(6, 7).relu() + torch.eye(6, 7)
    x = leaf(7, 3)
    y = torch.sparse.mm(matrix.to_sparse_csr(), x, reduce)
    plain = values(x).requires_grad_()
    rows = [matrix[i, matrix[i] != 0, None] * plain[matrix[i] != 0] for i in range(6)]
    want = torch.stack([getattr(row, reduce)(0) for row in rows])
    torch.testing.assert_close(values(y), rounded(want.detach(), BF16), rtol=2**-7, atol=1e-6)
    (y * 2).sum().backward()
    (want * 2).sum().backward()
    assert is_low(y, BF16) and is_low(x.grad, E5M2)
    torch.testing.assert_close(values(x.grad), rounded(plain.grad, E5M2), rtol=0.25, atol=1e-6)  # type: ignore[arg-type]


def test_a_write_in_a_hook_takes_the_format_of_its_destination() -> None:
    x, average = leaf(30), torch.zeros(30).to_lp(BOTH)

    def track(p: Tensor) -> None:
        average.lerp_(p.detach(), 0.1)

    x.register_post_accumulate_grad_hook(track)
    (x * 2).sum().backward()
    assert average.format == BF16 and same(average, rounded(torch.zeros(30).lerp(values(x), 0.1), BF16))


def test_a_momentum_copied_from_a_gradient_is_in_the_forward_format() -> None:
    """A gradient of 0.3 in E5M2 stays itself; what is added to it later is rounded to BF16."""
    p = nn.Parameter(torch.ones(4)).to_lp(BOTH).detach().requires_grad_()
    optimizer = torch.optim.SGD([p], lr=0.1, momentum=0.9)
    for _ in range(2):
        optimizer.zero_grad()
        (p * 0.3).sum().backward()
        optimizer.step()
    g = rounded(torch.tensor(0.3), E5M2)
    momentum = optimizer.state[p]["momentum_buffer"]
    assert momentum.format == BF16 and same(momentum, rounded(rounded(g * 0.9, BF16) + g, BF16).expand(4))


def test_gradients_clip_in_the_backward_format() -> None:
    x = leaf(100)
    (x * 3.0).sum().backward()
    torch.nn.utils.clip_grad_norm_([x], 1.0)
    assert is_low(x.grad, E5M2)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_a_graph_the_forward_bits_are_the_same(mode: Any) -> None:
    model = convert(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 3)), BOTH)
    x = torch.randn(4, 5, 8).to_lp(BOTH)
    for given in (x, x.transpose(0, 1)):
        want = model(given)
        with mode():
            assert same(model(given), want)


@pytest.mark.parametrize("format", [BF16, BlockFloatingPoint(8, dim=0)], ids=["scalar", "blocks"])
def test_an_operand_without_a_tangent_has_a_zero_that_takes_no_memory(format: Any) -> None:
    x, tangent, y = (torch.randn(4).to_lp(format) for _ in range(3))  # type: ignore[attr-defined]
    value, derivative = torch.func.jvp(lambda a: torch.dot(a, y), (x,), (tangent,))
    assert same(value, torch.dot(x, y)) and same(derivative, torch.dot(tangent, y))


def test_forward_mode_tangents_round() -> None:
    x, t = leaf(20).detach(), torch.randn(20).to_lp(BF16)
    with torch.autograd.forward_ad.dual_level():
        out = (torch.autograd.forward_ad.make_dual(x, t.to_lp(BOTH)) * 1.7).sin()
        tangent = torch.autograd.forward_ad.unpack_dual(out).tangent
    assert is_low(tangent, BF16)


def test_functional_transforms_give_low_precision() -> None:
    x = torch.randn(6).to_lp(BF16)
    f = lambda x: (x * 1.7).sin().sum()  # noqa: E731
    assert is_low(torch.func.grad(f)(x), BF16)
    assert is_low(torch.func.vmap(torch.sin)(x), BF16)
    assert is_low(torch.func.jvp(torch.sin, (x,), (x,))[1], BF16)
    assert is_low(torch.func.jacrev(torch.sin)(x), BF16)
    assert is_low(torch.func.hessian(f)(x), BF16)


def test_saved_tensor_hooks_see_low_precision() -> None:
    kinds: list[type] = []

    def pack(t: Tensor) -> Tensor:
        kinds.append(type(t))
        return t

    x = leaf(5)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = x.sin() * x
    y.sum().backward()
    assert LPTensor in kinds and is_low(x.grad, E5M2)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
def test_anomaly_mode_runs() -> None:
    x = leaf(5)
    with torch.autograd.detect_anomaly():
        x.exp().sum().backward()
    assert is_low(x.grad, E5M2)


# -- forward values within a backward pass ---------------------------------------------------------------


def test_values_saved_for_the_backward_pass_come_back_as_they_were_from_elsewhere() -> None:
    """As from another device, where offloading has put them: a copy there is the value."""
    both = Arithmetic(E4M3, backward=E5M2)
    x, layer = torch.randn(8, 16).to_lp(both), convert(nn.Linear(16, 4, bias=False), both)  # type: ignore[attr-defined]
    gradients = []
    for unpack in (lambda t: t, lambda t: t.to("cpu", copy=True), lambda t: t.clone()):
        layer.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t, unpack):
            layer(x).exp().sum().backward()
        gradients.append(layer.weight.grad.dequantize())
    assert torch.equal(gradients[0], gradients[1]) and torch.equal(gradients[0], gradients[2])


@pytest.mark.parametrize("file", ["vision/offload.py", "/autograd/graph.py", "/nn/_functions.py"])
def test_only_functions_of_torchs_own_make_gradients_of_what_was_saved(file: str) -> None:
    """Neither those of other packages, nor save_on_cpu, which brings values back."""
    both = Arithmetic(E4M3, backward=E5M2)
    place: dict[str, Any] = {}
    torch_folder = torch.__file__.removesuffix("/__init__.py")
    exec(compile("def unpack(x):\n    return x.clone()", torch_folder + file, "exec"), place)
    x = torch.full((2,), 0.8125).to_lp(both).requires_grad_()  # type: ignore[attr-defined]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t, place["unpack"]):
        (x * x.detach() * 3).sum().backward()
    # 3 * 0.8125 = 2.4375 is nearest to 2.5 in E5M2; 0.8125 itself is 0.75 there, and 3 * 0.75 = 2.25 a tie to 2
    assert x.grad.tolist() == [2.0 if "_functions" in file else 2.5] * 2


@pytest.mark.parametrize("copy", [torch.clone, lambda x: x.t().contiguous().t(), lambda x: x[[0, 1]]])
def test_a_backward_of_ones_own_copies_forward_values_without_rounding(copy: Callable[[Tensor], Tensor]) -> None:
    both = Arithmetic(E4M3, backward=E5M2, backward_rounding="stochastic")
    seen: list[Any] = []

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
            before = torch.get_rng_state()
            seen.append(copy(ctx.saved_tensors[0]))
            assert torch.equal(torch.get_rng_state(), before)
            return grad

    x = torch.full((2, 2), 0.6875).to_lp(both).requires_grad_()  # type: ignore[attr-defined]
    Function.apply(x).sum().backward()
    assert seen[0].format == E4M3 and seen[0].dequantize().tolist() == [[0.6875] * 2] * 2
    assert x.grad.format == E5M2


@pytest.mark.parametrize("last", [torch.relu, lambda x: x, torch.t, lambda x: x.masked_fill(x < 0, 0.0), torch.flip])
def test_a_gradient_that_is_all_one_has_the_backward_format(last: Callable[..., Tensor]) -> None:
    x = torch.ones(2, 2).to_lp(Arithmetic(E4M3, backward=E5M2)).requires_grad_()  # type: ignore[attr-defined]
    y = last(x, (0,)) if last is torch.flip else last(x)
    y.sum().backward()
    assert x.grad.format == E5M2 and (x.grad == 1).all()


SEEDED: dict[str, Callable[[LPTensor], Any]] = {
    "backward": lambda x: x.sum().backward() or x.grad,  # type: ignore[func-returns-value]
    "autograd.grad": lambda x: torch.autograd.grad(x.sum(), x)[0],
    "func.grad": lambda x: torch.func.grad(torch.sum)(x),
    "vmap of func.grad": lambda x: torch.vmap(torch.func.grad(torch.sum))(x[None])[0],
    "jacobian": lambda x: torch.autograd.functional.jacobian(torch.sum, x),
}


@pytest.mark.parametrize("way", SEEDED)
@pytest.mark.parametrize("format", [FixedPoint(8, 8), FixedPoint(8, -1)], ids=str)
def test_backward_starts_from_one_although_the_format_of_the_loss_may_lack_it(format: Format, way: str) -> None:
    x = torch.tensor([0.25, 8.0]).to_lp(Arithmetic(format, backward=FP32)).requires_grad_()  # type: ignore[attr-defined]
    assert SEEDED[way](x).tolist() == [1, 1]


class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return grad * (1 - y * y)


@pytest.mark.parametrize("reentrant", [True, False])
def test_what_a_checkpoint_recomputes_without_a_graph_is_forward_work(reentrant: bool) -> None:
    x, formats = leaf(40), []

    def part(x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = x.cos()
        formats.append(scale.format)
        return x * scale

    checkpoint(part, x, use_reentrant=reentrant).sum().backward()
    assert formats == [BF16, BF16]


@pytest.mark.parametrize("inner", [True, False])
@pytest.mark.parametrize("outer", [True, False])
def test_checkpoints_within_checkpoints_give_the_gradients_of_none(outer: bool, inner: bool) -> None:
    x = leaf(40)
    y = x.exp()
    (want,) = torch.autograd.grad((y * y.sin()).sum(), x)

    def within(x: Tensor) -> Tensor:
        y = checkpoint(torch.exp, x, use_reentrant=inner)
        return y * y.sin()

    checkpoint(within, x, use_reentrant=outer).sum().backward()
    assert x.grad.format == E5M2 and same(x.grad, want)


def test_a_hook_within_a_checkpoint_computes_gradients() -> None:
    x, formats = leaf(40), []

    def hooked(x: Tensor) -> Tensor:
        y = x.sin()
        if y.requires_grad:  # not in the first pass of the reentrant kind
            y.register_hook(lambda g: formats.append((g * 0.3).format))
        return y * 2

    for reentrant in (True, False):
        checkpoint(hooked, x, use_reentrant=reentrant).sum().backward()
    assert set(formats) == {E5M2}


@pytest.mark.parametrize("hooks", [save_on_cpu, lambda: saved_tensors_hooks(lambda x: x, lambda x: x)])
def test_hooks_on_saved_tensors_are_no_checkpoint(hooks: Any) -> None:
    x = torch.tensor([0.7, 1.9, -0.4]).to_lp(Arithmetic(BF16, backward=E5M2)).requires_grad_()
    alone = torch.autograd.grad(Tanh.apply(x).sum(), x, create_graph=True)[0]
    with hooks():
        hooked = torch.autograd.grad(Tanh.apply(x).sum(), x, create_graph=True)[0]
    assert hooked.format == E5M2 and torch.equal(hooked.dequantize(), alone.dequantize())


def test_of_several_gradients_at_once_each_has_blocks_of_its_own() -> None:
    x = torch.randn(4).to_lp(Arithmetic(BF16, backward=BlockFloatingPoint(4))).requires_grad_()
    seeds = torch.stack([torch.ones(4), torch.full((4,), 2.0**-10)])
    grads = torch.autograd.grad(x.flip(0), x, seeds, is_grads_batched=True)[0]
    assert torch.equal(grads.dequantize(), seeds)


@pytest.mark.parametrize("other", [[], [torch.ones(2)]], ids=["alone", "beside a plain one"])
@pytest.mark.parametrize("view", [lambda x: x[1:], lambda x: x.flatten(), lambda x: x.t()])
def test_a_view_that_is_written_to_in_a_list_has_the_gradient_of_both(view: Any, other: Any) -> None:
    for x in (leaf(3, 2), torch.randn(3, 2, requires_grad=True)):
        y = view(x * 1)
        torch._foreach_mul_([y, *other], 3.0)
        y.sum().backward()
        assert same(x.grad, torch.autograd.grad((view(x * 1) * 3.0).sum(), x)[0])


@pytest.mark.parametrize(
    "look",
    [lambda x: x[1:], lambda x: x[:, ::2], lambda x: x[:, -1], lambda x: x.unbind(1)[0], lambda x: x.split(2, 1)[1]]
    + [lambda x: x.diagonal(1), lambda x: x.diff(), torch.trace, lambda x: x[torch.tensor([2, 0])], torch.Tensor.t],
)
def test_several_gradients_at_once_stay_low_on_their_way_through_views(look: Callable[[Tensor], Tensor]) -> None:
    x = leaf(3, 4)
    y = look(x * 0.7)
    seeds = torch.randn(2, *y.shape)
    grads = torch.autograd.grad(y, x, seeds, is_grads_batched=True, retain_graph=True)[0]
    alone = [torch.autograd.grad(y, x, seed, retain_graph=True)[0] for seed in seeds]
    assert is_low(grads, E5M2) and same(grads, torch.stack([values(g) for g in alone]))
    plain = values(x).requires_grad_()
    y = look(plain * 0.7)
    grads = torch.autograd.grad(y, plain, seeds, is_grads_batched=True, retain_graph=True)[0]
    assert torch.equal(grads[1], torch.autograd.grad(y, plain, seeds[1])[0])


@pytest.mark.parametrize("p", [1.0, 2.0, 3.0, torch.inf])
@pytest.mark.parametrize("create_graph", [False, True])
def test_a_formula_that_goes_through_float64_gives_the_gradient_of_bfloat16(p: float, create_graph: bool) -> None:
    x, weight = (torch.randn(5, 4).bfloat16() for _ in range(2))

    def gradient(cast: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = cast(x).requires_grad_()
        y = torch.renorm(leaf, p, 0, 1.0) * cast(weight)
        return torch.autograd.grad(y.sum(), leaf, create_graph=create_graph)[0]

    found = gradient(lambda t: t.to_lp(BF16))  # type: ignore[attr-defined]
    assert is_low(found, BF16) and same(found, gradient(torch.clone).float())


@pytest.mark.parametrize("write", ["foreach", "one by one"])
def test_a_graph_notices_that_what_it_saved_was_written_to_in_a_list(write: str) -> None:
    for x in (leaf(3), torch.randn(3, requires_grad=True)):
        hidden, other = x * 2, torch.zeros(2)
        y = hidden.square().sum()
        with torch.no_grad():
            torch._foreach_add_([hidden, other], 1.0) if write == "foreach" else hidden.add_(1.0)
        assert other._version == (write == "foreach")  # a plain one beside it
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_ctrl_c_while_writes_to_a_list_are_counted_comes_out_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []

    def each(nest: Any) -> Any:
        looked.append(nest)
        yield from arguments.each(nest)
        if len(looked) == last:
            raise KeyboardInterrupt

    monkeypatch.setattr(dispatch, "each", each)
    last, xs = 0, [torch.ones(2).to_lp(BF16) for _ in range(2)]  # type: ignore[attr-defined]
    torch._foreach_add_(xs, 1.0)
    last, looked = len(looked), []
    with pytest.raises(KeyboardInterrupt):
        torch._foreach_add_(xs, 1.0)
    assert [x.tolist() for x in xs] == [[3.0, 3.0]] * 2
