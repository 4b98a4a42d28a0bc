"""Ops on LPTensors with an accumulator, against plain loops over the terms in float64, rounded step by step."""

from __future__ import annotations

import copy
import itertools
import operator
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

import lptensor
from lptensor import (
    BF16,
    E4M3,
    E8M0,
    FP16,
    FP32,
    MXFP4,
    Arithmetic,
    FixedPoint,
    FloatingPoint,
    Format,
    LPTensor,
    convert,
)
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import promote
from lptensor.hadamard import Hadamard
from lptensor.hardware_sums import integer_accumulator
from lptensor.operands import Gemm, Operand
from oracles import gemm_reference

NARROW = FloatingPoint(5, 4)
ACC = Accumulator(NARROW)
SUMMED = Arithmetic(None, accumulator=ACC)


def narrow(*shape: int) -> Tensor:
    """Random values of few bits, whose products and sums float64 holds exactly."""
    return lptensor.round(torch.randn(shape), E4M3)


def lp(x: Tensor, arithmetic: Arithmetic = SUMMED) -> LPTensor:
    return x.to_lp(arithmetic)  # type: ignore[attr-defined, no-any-return]


def plain(x: Any) -> Tensor:
    assert type(x) is LPTensor
    return x.dequantize().detach()


def loop(a: Tensor, b: Tensor, start: Tensor | None = None, format: Format = NARROW) -> Tensor:
    """``a @ b``: one product after the other is added, and the sum is rounded."""
    a, b = a.detach().double(), b.detach().double()
    total = torch.zeros(*torch.broadcast_shapes(a.shape[:-2], b.shape[:-2]), a.shape[-2], b.shape[-1]).double()
    if start is not None:
        total = lptensor.round((total + start.double()).contiguous(), format)
    for k in range(a.shape[-1]):
        total = lptensor.round(total + a[..., :, k, None] * b[..., None, k, :], format)
    return total.float()


def loop_sum(x: Tensor, dim: int = -1, format: Format = NARROW) -> Tensor:
    x = x.detach().double().movedim(dim, 0)
    total = torch.zeros(x.shape[1:]).double()
    for term in x:
        total = lptensor.round(total + term, format)
    return total.float()


class Looped(torch.autograd.Function):
    """A product by loops, whose gradients are products by loops."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, start: Tensor | None) -> Tensor:
        ctx.save_for_backward(a, b)
        ctx.start = None if start is None else start.shape
        return loop(a, b, start)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        a, b = ctx.saved_tensors
        of_start = None if ctx.start is None else g if ctx.start == g.shape else loop_sum(g, 0)
        return loop(g, b.mT), loop(a.mT, g), of_start


def mm(a: Tensor, b: Tensor, start: Tensor | None = None) -> Tensor:
    result: Tensor = Looped.apply(a, b, start)
    return result


CASES: dict[str, tuple[list[tuple[int, ...]], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "mm": ([(9, 30), (30, 8)], torch.mm, mm),
    "mm by columns": ([(30, 9), (8, 30)], lambda a, b: torch.mm(a.t(), b.t()), lambda a, b: mm(a.t(), b.t())),
    "addmm": ([(8,), (9, 30), (30, 8)], torch.addmm, lambda c, a, b: mm(a, b, c)),
    "addmm of a matrix": ([(9, 8), (9, 30), (30, 8)], torch.addmm, lambda c, a, b: mm(a, b, c)),
    "bmm": ([(2, 9, 30), (2, 30, 8)], torch.bmm, mm),
    "baddbmm": ([(2, 9, 8), (2, 9, 30), (2, 30, 8)], torch.baddbmm, lambda c, a, b: mm(a, b, c)),
    "linear": ([(9, 30), (8, 30), (8,)], F.linear, lambda x, w, b: mm(x, w.t(), b)),
    "linear of a batch": (
        [(3, 3, 30), (8, 30), (8,)],
        F.linear,
        lambda x, w, b: mm(x.flatten(0, 1), w.t(), b).view(3, 3, 8),
    ),
    "matmul": ([(3, 3, 30), (30, 8)], torch.matmul, lambda a, b: mm(a.flatten(0, 1), b).view(3, 3, 8)),
    "einsum": ([(2, 9, 30), (2, 8, 30)], lambda a, b: torch.einsum("bik,bjk->bij", a, b), lambda a, b: mm(a, b.mT)),
}


@pytest.mark.parametrize("wrap", ["direct", "checkpoint"])
@pytest.mark.parametrize("case", CASES)
def test_a_product_and_its_gradients_equal_the_loop_bit_for_bit(case: str, wrap: str) -> None:
    shapes, run, reference = CASES[case]
    values = [narrow(*s) for s in shapes]
    leaves = [v.clone().requires_grad_() for v in values]
    y = reference(*leaves)
    g = narrow(*y.shape)
    wanted = [y.detach(), *torch.autograd.grad(y, leaves, g)]
    mine = [lp(v).requires_grad_() for v in values]
    z = run(*mine) if wrap == "direct" else checkpoint(run, *mine, use_reentrant=False)
    for got, true in zip([z, *torch.autograd.grad(z, mine, lp(g))], wanted, strict=True):
        assert torch.equal(plain(got), true)


@pytest.mark.parametrize("name", ["mv", "addmv", "dot", "vdot", "matmul of vectors", "addbmm", "addmm_", "mm out"])
def test_other_forms_of_a_product_equal_the_loop_too(name: str) -> None:
    a, b, v, c = narrow(9, 30), narrow(30, 8), narrow(30), narrow(9)
    x, y, z = lp(a), lp(b), lp(v)
    column = loop(a, v.unsqueeze(1)).squeeze(1)
    match name:
        case "mv":
            got, true = torch.mv(x, z), column
        case "addmv":
            got, true = torch.addmv(lp(c), x, z), loop(a, v.unsqueeze(1), c.unsqueeze(1)).squeeze(1)
        case "dot" | "vdot" | "matmul of vectors":
            run = {"dot": torch.dot, "vdot": torch.vdot}.get(name, torch.matmul)
            got, true = run(x[0], z), column[0]
        case "addbmm":
            p, q = narrow(3, 9, 10), narrow(3, 10, 8)
            start = narrow(9, 8)
            got = torch.addbmm(lp(start), lp(p), lp(q))
            true = loop(p.transpose(0, 1).flatten(1), q.flatten(0, 1), start)
        case "addmm_":
            start = narrow(9, 8)
            got, true = lp(start).addmm_(x, y), loop(a, b, start)
        case _:
            got, true = torch.mm(x, y, out=lp(torch.empty(9, 8))), loop(a, b)
    assert torch.equal(plain(got), true)


def test_factors_scale_the_finished_sum() -> None:
    c, a, b = narrow(9, 8), narrow(9, 30), narrow(30, 8)
    got = torch.addmm(lp(c), lp(a), lp(b), alpha=0.5, beta=2)
    assert torch.equal(plain(got), loop(a, b) * 0.5 + 2 * c)
    nan = torch.full((9, 8), torch.nan)
    assert torch.equal(plain(torch.addmm(lp(nan), lp(a), lp(b), beta=0)), loop(a, b))


def every_product(a: Tensor, b: Tensor) -> dict[str, Any]:
    """The product of two vectors, by every op that has one."""
    return {
        "mm": torch.mm(a[None], b[:, None]),
        "bmm": torch.bmm(a[None, None], b[None, :, None]),
        "dot": torch.dot(a, b),
        "mv": torch.mv(a[None], b),
        "linear": F.linear(a[None], b[None]),
        "matmul": a @ b,
        "einsum": torch.einsum("k,k->", a, b),
        "conv1d": F.conv1d(a[None, None], b[None, None]),
        "conv2d": F.conv2d(a[None, :, None, None], b[None, :, None, None]),
    }


@pytest.mark.parametrize("use_gelu", [True, False])
def test_an_activation_follows_the_finished_sum(use_gelu: bool) -> None:
    c, a, b = narrow(8), narrow(9, 30), narrow(30, 8)
    total = loop(a, b, c)
    got = torch._addmm_activation(lp(c), lp(a), lp(b), use_gelu=use_gelu)
    assert torch.equal(plain(got), F.gelu(total, approximate="tanh") if use_gelu else total.relu())


def test_an_fp16_multiply_add_is_rounded_once_in_every_op() -> None:
    a, b = torch.tensor([2.0**-12, 1.5]), torch.tensor([2.0**-12, 683 / 1024])
    once = Arithmetic(None, accumulator=Accumulator(FP16))
    twice = Arithmetic(None, accumulator=Accumulator(FP16, compute="fp32"))
    for arithmetic, wanted in ((once, 1.0009765625), (twice, 1.0)):
        products = every_product(lp(a, arithmetic), lp(b, arithmetic))
        assert {name: y.item() for name, y in products.items()} == dict.fromkeys(products, wanted)


CONVOLUTIONS = {
    "1d": ((2, 3, 11), (4, 3, 3), dict(stride=2, padding=1, dilation=2)),
    "2d": ((2, 3, 6, 5), (4, 3, 3, 2), dict(stride=1, padding=1, dilation=1)),
    "2d, strided": ((1, 2, 7, 8), (3, 2, 3, 3), dict(stride=2, padding=1, dilation=1)),
    "3d": ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), dict(stride=1, padding=1, dilation=1)),
}


def looped_convolution(monkeypatch: pytest.MonkeyPatch, f: Any, *args: Any, **form: Any) -> Any:
    """The reference's convolution with each of its matrix products by loops."""
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "__matmul__", lambda a, b: loop(a, b))
        return f(*args, **form, quantize=lambda x, slot, axis: x)


@pytest.mark.parametrize("transposed", [False, True], ids=["plain", "transposed"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_equals_unfold_and_matmul_bit_for_bit(
    name: str, transposed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, kernel, form = CONVOLUTIONS[name]
    x, w = narrow(*shape), narrow(*kernel)
    w = w.transpose(0, 1).contiguous() if transposed else w
    conv = getattr(F, f"conv{'_transpose' * transposed}{len(shape) - 2}d")
    leaves = lp(x).requires_grad_(), lp(w).requires_grad_()
    y = conv(*leaves, **form)
    g = narrow(*y.shape)
    got = y, *torch.autograd.grad(y, leaves, lp(g))
    reference = gemm_reference.transposed_convolution if transposed else gemm_reference.convolution
    wanted = looped_convolution(monkeypatch, reference, x, w, g, **form)
    for mine, true in zip(got, wanted, strict=True):
        assert torch.equal(plain(mine), true)


def test_an_output_padded_by_more_than_the_stride_counts_in_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, form = narrow(2, 3, 7), narrow(3, 4, 2), dict(stride=1, padding=0, dilation=2)
    leaves = lp(x).requires_grad_(), lp(w).requires_grad_()
    y = F.conv_transpose1d(*leaves, output_padding=1, **form)
    assert y.shape == F.conv_transpose1d(x, w, output_padding=1, **form).shape
    g = narrow(*y.shape)
    got = y, *torch.autograd.grad(y, leaves, lp(g))
    wanted = looped_convolution(monkeypatch, gemm_reference.transposed_convolution, x, w, g, **form)
    for mine, true in zip(got, wanted, strict=True):
        assert torch.equal(plain(mine), true)


def test_one_number_stands_for_all_axes_of_a_convolution() -> None:
    x, w = narrow(1, 2, 4, 5), narrow(2, 3, 3, 3)
    made = torch.ops.aten.convolution(lp(x), lp(w), None, [2], [1], [1], True, [1], 1)
    wanted = F.conv_transpose2d(lp(x), lp(w), stride=2, padding=1, output_padding=1)
    assert torch.equal(plain(made), plain(wanted)) and made.shape == (1, 3, 8, 10)


def test_a_convolution_begins_with_its_bias_and_adds_up_its_gradient() -> None:
    x, w, b = narrow(2, 3, 6, 5), narrow(4, 3, 3, 2), narrow(4)
    bias = lp(b).requires_grad_()
    y = F.conv2d(lp(x), lp(w), bias)
    columns = F.unfold(x, (3, 2))
    true = loop(w.flatten(1), columns, b.unsqueeze(1)).view(y.shape)
    assert torch.equal(plain(y), true)
    g = narrow(*y.shape)
    (of_b,) = torch.autograd.grad(y, bias, lp(g))
    assert torch.equal(plain(of_b), loop_sum(g.transpose(0, 1).flatten(1)))


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x, w: F.conv2d(x, w), "reaches over 3 elements, the padded input has 2"),
        (lambda x, w: F.conv2d(x, w, padding=1, dilation=2), "reaches over 5 elements, the padded input has 4"),
        (lambda x, w: F.conv_transpose2d(x, w, stride=2, output_padding=2), "must be smaller than the stride 2"),
    ],
)
def test_a_convolution_that_torch_refuses_is_refused(run: Callable[..., Tensor], message: str) -> None:
    x, w = torch.ones(1, 1, 2, 2), torch.ones(1, 1, 3, 3)
    with pytest.raises(RuntimeError):
        run(x, w)
    for arithmetic in (SUMMED, Arithmetic(None, operands=Gemm(MXFP4))):
        with pytest.raises(RuntimeError, match=message):
            run(lp(x, arithmetic), lp(w, arithmetic))


@pytest.mark.filterwarnings("ignore:Sparse")
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr])
def test_a_sparse_operand_is_refused_with_a_way_out(layout: torch.layout) -> None:
    for arithmetic in (SUMMED, Arithmetic(None, operands=Gemm(E4M3))):
        with pytest.raises(NotImplementedError, match="to_dense"):
            torch.eye(5).to_sparse(layout=layout) @ lp(torch.ones(5, 5), arithmetic)


def test_convolutions_in_groups_are_convolutions_side_by_side() -> None:
    x, w = narrow(2, 4, 7, 7), narrow(6, 2, 3, 3)
    together = F.conv2d(lp(x), lp(w), stride=2, groups=2)
    apart = [F.conv2d(lp(p), lp(q), stride=2) for p, q in zip(x.chunk(2, 1), w.chunk(2), strict=True)]
    assert torch.equal(plain(together), plain(torch.cat(apart, 1)))


# -- sums ----------------------------------------------------------------------------------------------


def test_sums_means_and_running_sums_equal_the_loop() -> None:
    x = narrow(4, 5, 40)
    assert torch.equal(plain(lp(x).sum(-1)), loop_sum(x))
    assert torch.equal(plain(lp(x).sum()), loop_sum(x.flatten()))
    assert torch.equal(plain(lp(x).sum((0, 2))), loop_sum(x.transpose(0, 1).flatten(1)))
    assert torch.equal(plain(lp(x).sum(1, keepdim=True)), loop_sum(x, 1).unsqueeze(1))
    assert torch.equal(plain(lp(x).mean(-1)), loop_sum(x) / 40)
    assert torch.equal(plain(lp(x).mean()), loop_sum(x.flatten()) / 800)
    running = torch.stack([loop_sum(x[..., : k + 1]) for k in range(40)], -1)
    assert torch.equal(plain(lp(x).cumsum(-1)), running)
    assert torch.equal(plain(lp(x).clone().cumsum_(-1)), running)
    assert torch.equal(plain(torch.sum(lp(x), -1, out=lp(torch.empty(4, 5)))), loop_sum(x))
    assert lp(torch.tensor(3.0)).sum().item() == 3.0
    assert lp(torch.empty(0)).sum().item() == 0.0


def test_harmonic_series_stops_where_theory_says() -> None:
    for format, total in ((BF16, 5.0625), (FP16, 7.0859375), (E4M3, 3.0), (FloatingPoint(8), 2.0)):
        x = lp(1 / torch.arange(1.0, 2001.0), Arithmetic(None, accumulator=Accumulator(format)))
        assert x.sum().item() == total
        assert x.cumsum(0)[-1].item() == total


def test_the_gradient_of_a_sum_is_that_of_an_exact_sum_and_of_an_expansion_a_sum() -> None:
    x = lp(narrow(40)).requires_grad_()
    (grad,) = torch.autograd.grad(x.sum(), x)
    assert torch.equal(plain(grad), torch.ones(40))
    y = lp(narrow(1)).requires_grad_()
    g = narrow(40)
    (grad,) = torch.autograd.grad(y.expand(40), y, lp(g))
    assert torch.equal(plain(grad), loop_sum(g).unsqueeze(0))


def root(x: Tensor) -> Tensor:
    """The correctly rounded square root, which torch's own is not for one number in six."""
    return x.double().sqrt().float()


def test_variances_and_norms_add_up_their_squares() -> None:
    x = narrow(6, 50)
    mean = (loop_sum(x) / 50).unsqueeze(1)
    square = loop_sum((x - mean).square())
    assert torch.equal(plain(lp(x).var(-1)), square / 49)
    assert torch.equal(plain(lp(x).var(-1, correction=0)), square / 50)
    assert torch.equal(plain(lp(x).std(-1)), root(square / 49))
    got = torch.var_mean(lp(x), -1)
    assert torch.equal(plain(got[0]), square / 49) and torch.equal(plain(got[1]), mean.squeeze(1))
    norm = root(loop_sum(x.square()))
    assert torch.equal(plain(torch.linalg.vector_norm(lp(x), dim=-1)), norm)
    assert torch.equal(plain(lp(x).norm(dim=-1)), norm)
    cubes = loop_sum(x.abs().pow(3)).pow(1 / 3)
    assert torch.equal(plain(torch.linalg.vector_norm(lp(x), 3, -1)), cubes)
    assert torch.equal(plain(torch._foreach_norm([lp(row) for row in x])[2]), norm[2])
    assert torch.equal(plain(torch.linalg.vector_norm(lp(x), 1, dim=-1)), loop_sum(x.abs()))
    assert torch.equal(plain(torch.linalg.vector_norm(lp(x), torch.inf, dim=-1)), x.abs().amax(-1))


def test_nothing_has_no_mean_and_one_number_no_variance() -> None:
    assert lp(torch.empty(0)).mean().isnan() and plain(lp(torch.empty(3, 0)).mean(-1)).isnan().all()
    assert plain(lp(torch.ones(3, 1)).var(-1)).isnan().all() and lp(torch.empty(0)).var().isnan()


def test_what_only_selects_or_counts_is_no_sum_and_infinities_stay() -> None:
    x = narrow(6, 50)
    x[0, :7] = 0
    for ord in (0, torch.inf, -torch.inf):
        assert torch.equal(
            plain(torch.linalg.vector_norm(lp(x), ord, dim=-1)), torch.linalg.vector_norm(x, ord, dim=-1)
        )
    x[1, 3], x[2, 4], x[3] = torch.nan, torch.inf, -torch.inf
    known = torch.where(x.isnan(), 0.0, x)
    assert torch.equal(plain(lp(x[:3]).nansum(-1)), loop_sum(known[:3]))
    endless = lp(torch.tensor([torch.nan, torch.inf]), Arithmetic(None, accumulator=Accumulator(FP32)))
    assert endless.nansum().item() == torch.inf
    assert plain(lp(x).logsumexp(-1))[2:4].tolist() == [torch.inf, -torch.inf]


@pytest.mark.parametrize(
    "shape, dim", [((), 0), ((), -1), ((0,), 0), ((2, 0), 1), ((0, 2), 1), ((2, 0), (0, 1))], ids=str
)
@pytest.mark.parametrize("keepdim", [False, True])
def test_logsumexp_of_a_number_and_of_nothing(shape, dim, keepdim):
    x = torch.full(shape, 1.5)
    assert torch.equal(plain(lp(x).logsumexp(dim, keepdim)), x.logsumexp(dim, keepdim))
    y = lp(narrow(6, 50))
    assert torch.equal(plain(torch.var(y, -1, correction=None)), plain(y.var(-1)))  # type: ignore[call-overload]


GRADIENTS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "sum": (lambda x: x.sum(-1), lambda x, g: g[:, None].expand_as(x)),
    "mean": (lambda x: x.mean(-1), lambda x, g: (g / x.shape[-1])[:, None].expand_as(x)),
    "cumsum": (lambda x: x.cumsum(-1), lambda x, g: torch.stack([loop_sum(g[:, k:].flip(-1)) for k in range(40)], -1)),
    "var": (
        lambda x: x.var(-1),
        lambda x, g: (2 / 39) * g[:, None] * (x - (loop_sum(x) / 40)[:, None]),
    ),
    "norm": (
        lambda x: torch.linalg.vector_norm(x, dim=-1),
        lambda x, g: x * (g / loop_sum(x.square()).sqrt())[:, None],
    ),
    "logsumexp": (
        lambda x: x.logsumexp(-1),
        lambda x, g: g[:, None] * (x - (x.amax(-1) + loop_sum((x - x.amax(-1, True)).exp()).log())[:, None]).exp(),
    ),
}


@pytest.mark.parametrize("name", GRADIENTS)
def test_the_gradient_of_a_sum_has_its_own_sums_added_up(name: str) -> None:
    run, formula = GRADIENTS[name]
    x = narrow(6, 40)
    leaf = lp(x).requires_grad_()
    y = run(leaf)
    g = narrow(*y.shape)
    (grad,) = torch.autograd.grad(y, leaf, lp(g))
    torch.testing.assert_close(plain(grad), formula(x, g))


def test_the_gradients_of_vectors_are_products_or_sum_nothing() -> None:
    a, v, g = narrow(9, 30), narrow(30), narrow(9)
    x, y = lp(a).requires_grad_(), lp(v).requires_grad_()
    of_x, of_y = torch.autograd.grad(torch.mv(x, y), (x, y), lp(g))
    assert torch.equal(plain(of_y), loop(a.T, g[:, None]).squeeze(1))
    assert torch.equal(plain(of_x), torch.outer(g, v))
    of_x, of_y = torch.autograd.grad(torch.dot(x[0], y), (x, y), lp(torch.tensor(1.5)))
    assert torch.equal(plain(of_y), 1.5 * a[0]) and torch.equal(plain(of_x)[0], 1.5 * v)


def test_group_norm_adds_up_forward_and_backward() -> None:
    x, w, b, g = narrow(4, 6, 10), narrow(6), narrow(6), narrow(4, 6, 10)
    rows = x.reshape(8, 30)  # two groups of three channels, ten numbers each
    mean = loop_sum(rows) / 30
    rstd = (loop_sum((rows - mean[:, None]).square()) / 30 + 1e-5).rsqrt()
    hat = ((rows - mean[:, None]) * rstd[:, None]).view_as(x)
    leaves = [lp(t).requires_grad_() for t in (x, w, b)]
    y = F.group_norm(leaves[0], 2, leaves[1], leaves[2])
    torch.testing.assert_close(plain(y), hat * w[:, None] + b[:, None])
    grads = [plain(t) for t in torch.autograd.grad(y, leaves, lp(g))]
    # PyTorch's formula: sums over positions, then over samples
    of_g, of_gx = loop_sum(g), loop_sum(g * x)
    center, scale = (t.view(4, 2).repeat_interleave(3, 1) for t in (mean, rstd))
    torch.testing.assert_close(grads[1], loop_sum((of_gx - of_g * center) * scale, 0))
    torch.testing.assert_close(grads[2], loop_sum(of_g, 0))
    # and, for x, of those sums over the channels of a group
    along, total = (loop_sum((t * w).view(8, 3)) for t in (of_gx, of_g))
    slope = (total * mean - along) * rstd**3 / 30
    of_x = (g * w[:, None]).view_as(rows) * rstd[:, None] + slope[:, None] * rows
    of_x = of_x - (slope * mean + total * rstd / 30)[:, None]
    torch.testing.assert_close(grads[0], of_x.view_as(x), rtol=1e-4, atol=1e-4)


def test_softmax_adds_up_its_exponentials_and_its_gradient() -> None:
    x, g = narrow(5, 60), narrow(5, 60)
    e = (x - x.amax(-1, keepdim=True)).exp()
    y = e / loop_sum(e).unsqueeze(1)
    leaf = lp(x).requires_grad_()
    z = leaf.softmax(-1)
    torch.testing.assert_close(plain(z), y)
    (grad,) = torch.autograd.grad(z, leaf, lp(g))
    y = plain(z)
    torch.testing.assert_close(plain(grad), y * (g - loop_sum(g * y).unsqueeze(1)))
    z = leaf.log_softmax(-1)
    torch.testing.assert_close(plain(z), x - x.amax(-1, keepdim=True) - loop_sum(e).log().unsqueeze(1))
    torch.testing.assert_close(plain(leaf.logsumexp(-1)), x.amax(-1) + loop_sum(e).log())


def test_layer_norm_adds_up_its_mean_its_variance_and_its_gradients() -> None:
    x, w, b, g = narrow(7, 60), narrow(60), narrow(60), narrow(7, 60)
    mean = (loop_sum(x) / 60).unsqueeze(1)
    rstd = (loop_sum((x - mean).square()).unsqueeze(1) / 60 + 1e-5).rsqrt()
    leaves = [lp(t).requires_grad_() for t in (x, w, b)]
    y = F.layer_norm(leaves[0], (60,), leaves[1], leaves[2])
    torch.testing.assert_close(plain(y), (x - mean) * rstd * w + b)
    grads = [plain(t) for t in torch.autograd.grad(y, leaves, lp(g))]
    hat = (x - mean) * rstd
    torch.testing.assert_close(grads[1], loop_sum(g * hat, 0))
    torch.testing.assert_close(grads[2], loop_sum(g, 0))
    inner = g * w
    of_x = rstd / 60 * (60 * inner - loop_sum(inner).unsqueeze(1) - hat * loop_sum(inner * hat).unsqueeze(1))
    torch.testing.assert_close(grads[0], of_x, rtol=1e-4, atol=1e-4)


def test_batch_norm_adds_up_and_updates_its_statistics() -> None:
    x = narrow(30, 3)
    norm = convert(nn.BatchNorm1d(3), SUMMED)
    y = norm(lp(x))
    mean = loop_sum(x, 0) / 30
    var = loop_sum((x - mean).square(), 0) / 30
    torch.testing.assert_close(plain(y), (x - mean) * (var + 1e-5).rsqrt())
    torch.testing.assert_close(norm.running_mean, 0.1 * mean)
    torch.testing.assert_close(norm.running_var, 0.9 + 0.1 * var * 30 / 29)


def test_the_gradients_of_a_batch_norm_are_added_up() -> None:
    x, w, b, g = narrow(30, 3), narrow(3), narrow(3), narrow(30, 3)
    leaves = [lp(t).requires_grad_() for t in (x, w, b)]
    y = F.batch_norm(leaves[0], None, None, leaves[1], leaves[2], training=True)
    grads = [plain(t) for t in torch.autograd.grad(y, leaves, lp(g))]
    mean = loop_sum(x, 0) / 30
    rstd = (loop_sum((x - mean).square(), 0) / 30 + 1e-5).rsqrt()
    of_b, along = loop_sum(g, 0), loop_sum(g * (x - mean), 0)
    of_x = (g - of_b / 30 - (x - mean) * along * rstd.square() / 30) * rstd * w
    for mine, true in zip(grads, (of_x, along * rstd, of_b), strict=True):
        torch.testing.assert_close(mine, true)


def test_an_rms_norm_adds_up_forward_and_backward() -> None:
    x, w, g = narrow(64).expand(7, 64), narrow(64), narrow(7, 64)
    square = loop_sum(x.square())[0].item() / 64
    leaves = [lp(t).requires_grad_() for t in (x, w)]
    y = F.rms_norm(leaves[0], (64,), leaves[1], 16 - square)  # so that it divides by 4, exactly
    assert torch.equal(plain(y), x / 4 * w)
    of_x, of_w = (plain(t) for t in torch.autograd.grad(y, leaves, lp(g)))
    along = loop_sum(g * w * x / 4).unsqueeze(1)
    assert torch.equal(of_x, (g * w - x / 4 * along / 64) / 4)
    assert torch.equal(of_w, loop_sum(g * x / 4, 0))


@pytest.mark.parametrize("padding", [0, 5])
def test_an_embeddings_gradient_adds_up_the_uses_of_each_row(padding: int) -> None:
    table, words, g = narrow(6, 4), torch.tensor([[1, 1, 2], [0, 5, 1]] * 9), narrow(18, 3, 4)
    leaf = lp(table).requires_grad_()
    (grad,) = torch.autograd.grad(F.embedding(words, leaf, padding_idx=padding), leaf, lp(g))
    for row in range(6):
        uses = g.flatten(0, 1)[words.flatten() == row] if row != padding else torch.zeros(1, 4)
        assert torch.equal(plain(grad)[row], loop_sum(uses, 0))


@pytest.mark.parametrize(("format", "highest"), [(NARROW, torch.inf), (E4M3, 448.0), (FixedPoint(8, 2), 31.75)])
@pytest.mark.parametrize("padding", [None, 2])
def test_a_gradient_that_is_not_finite_stays_in_the_rows_that_used_it(
    format: Any, highest: float, padding: int | None
) -> None:
    arithmetic = Arithmetic(None, accumulator=Accumulator(format))
    leaf, g = lp(narrow(4, 3), arithmetic).requires_grad_(), torch.ones(2, 2, 3)
    g[0, 0, 0], g[1, 0, 1], g[1, 1, 2] = torch.inf, -torch.inf, torch.nan
    y = F.embedding(torch.tensor([[0, 1], [1, 2]]), leaf, padding_idx=padding)
    (grad,) = torch.autograd.grad(y, leaf, lp(g, arithmetic))
    lowest = -32.0 if isinstance(format, FixedPoint) else -highest
    rows = torch.tensor(
        [[highest, 1, 1], [2, lowest, 2], [1, 1, torch.nan] if padding is None else [0, 0, 0], [0, 0, 0]]
    )
    assert torch.equal(plain(grad).nan_to_num(7.0, torch.inf, -torch.inf), rows.nan_to_num(7.0, torch.inf, -torch.inf))


def test_attention_is_two_products_and_a_softmax_that_are_added_up() -> None:
    q, k, v, g = (narrow(1, 2, 9, 16) for _ in range(4))
    leaves = [lp(t).requires_grad_() for t in (q, k, v)]
    y = F.scaled_dot_product_attention(*leaves)
    scores = loop(q, k.mT) * 0.25
    e = (scores - scores.amax(-1, keepdim=True)).exp()
    p = e / loop_sum(e).unsqueeze(-1)
    grads = [plain(t) for t in torch.autograd.grad(y, leaves, lp(g))]
    of_p = loop(g, v.mT)
    of_scores = p * (of_p - loop_sum(p * of_p).unsqueeze(-1)) * 0.25
    wanted = loop(p, v), loop(of_scores, k), loop(of_scores.mT, q), loop(p.mT, g)
    for mine, true in zip([plain(y), *grads], wanted, strict=True):  # a last bit of p may take a sum to its neighbour
        assert ((mine - true).abs() > 1e-6 + 0.07 * true.abs()).float().mean() < 0.01
    with sdpa_kernel(SDPBackend.MATH):
        steps = F.scaled_dot_product_attention(*leaves)
    torch.testing.assert_close(plain(steps), plain(y), rtol=0.2, atol=0.05)


def test_products_of_groups_are_added_up_each_by_itself() -> None:
    a, b, g = narrow(40, 16), narrow(2, 16, 8), narrow(40, 8)
    x, w = lp(a).requires_grad_(), lp(b).requires_grad_()
    y = torch.ops.aten._grouped_mm(x, w, torch.tensor([24, 40], dtype=torch.int32))
    assert torch.equal(plain(y), torch.cat([loop(a[:24], b[0]), loop(a[24:], b[1])]))
    of_x, of_w = (plain(t) for t in torch.autograd.grad(y, [x, w], lp(g)))
    assert torch.equal(of_x, torch.cat([loop(g[:24], b[0].t()), loop(g[24:], b[1].t())]))
    assert torch.equal(of_w, torch.stack([loop(a[:24].t(), g[:24]), loop(a[24:].t(), g[24:])]))


def test_gradients_of_what_heads_have_in_common_are_added_up() -> None:
    q, k, v, g = narrow(2, 6, 9, 16), narrow(2, 2, 9, 16), narrow(2, 2, 9, 16), narrow(2, 6, 9, 16)
    few = [lp(t).requires_grad_() for t in (q, k, v)]
    many = [lp(t.repeat_interleave(6 // t.shape[1], 1)).requires_grad_() for t in (q, k, v)]
    y, z = F.scaled_dot_product_attention(*few, enable_gqa=True), F.scaled_dot_product_attention(*many)
    assert torch.equal(plain(y), plain(z))
    of_q, *others = (plain(t) for t in torch.autograd.grad(y, few, lp(g)))
    wanted_q, *heads = (plain(t) for t in torch.autograd.grad(z, many, lp(g)))
    assert torch.equal(of_q, wanted_q)
    for mine, each in zip(others, heads, strict=True):
        grouped = each.unflatten(1, (2, 3))
        assert torch.equal(mine, loop_sum(grouped, 2)) and not torch.equal(mine, grouped.sum(2))


LOSSES: dict[str, Callable[..., Tensor]] = {
    "mse_loss": F.mse_loss,
    "l1_loss": F.l1_loss,
    "smooth_l1_loss": F.smooth_l1_loss,
    "huber_loss": F.huber_loss,
    "soft_margin_loss": lambda x, y, **form: F.soft_margin_loss(x, y.sign(), **form),
    "binary_cross_entropy": lambda x, y, **form: F.binary_cross_entropy(x.sigmoid(), y.sigmoid(), **form),
    "binary_cross_entropy_with_logits": lambda x, y, **form: F.binary_cross_entropy_with_logits(x, y.sigmoid(), **form),
    "poisson_nll_loss": F.poisson_nll_loss,
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_add_up_their_terms(name: str) -> None:
    x, y = narrow(200), narrow(200)
    terms = plain(LOSSES[name](lp(x), y, reduction="none"))
    torch.testing.assert_close(terms, LOSSES[name](x, y, reduction="none"))
    total = loop_sum(terms)
    assert not torch.allclose(total, terms.sum(), rtol=1e-3), "which a sum in fp32 is not"
    assert torch.equal(plain(LOSSES[name](lp(x), y, reduction="sum")), total)
    assert torch.equal(plain(LOSSES[name](lp(x), y)), total / 200)


def test_a_margin_loss_adds_up_the_terms_of_all_samples() -> None:
    x, classes = narrow(50, 4), torch.arange(50) % 4
    terms = (1 - x.gather(1, classes[:, None]) + x).clamp(min=0).scatter(1, classes[:, None], 0.0)
    assert torch.equal(plain(F.multi_margin_loss(lp(x), classes)), loop_sum(terms.flatten()) / 200)


@pytest.mark.parametrize("weighted", [False, True])
def test_a_cross_entropy_adds_up_its_terms_and_its_weights(weighted: bool) -> None:
    x, classes = narrow(50, 40), torch.randint(0, 40, (50,))
    weight = narrow(40).abs() if weighted else torch.ones(40)
    leaf = lp(x).requires_grad_()
    loss = F.cross_entropy(leaf, classes, lp(weight) if weighted else None)
    logs, of_each = plain(leaf.log_softmax(1)), weight[classes]
    count = loop_sum(of_each) if weighted else torch.tensor(50.0)
    assert count != of_each.sum() or not weighted
    assert torch.equal(plain(loss), loop_sum(-logs.gather(1, classes[:, None])[:, 0] * of_each) / count)
    (grad,) = torch.autograd.grad(loss, leaf)
    of_logs = torch.zeros(50, 40).scatter(1, classes[:, None], -(of_each / count)[:, None])
    torch.testing.assert_close(plain(grad), of_logs - logs.exp() * loop_sum(of_logs).unsqueeze(1))


# -- what an accumulator means for an arithmetic -------------------------------------------------------------


def test_results_are_rounded_once_more_into_the_format_of_the_tensor() -> None:
    a, b = narrow(9, 30), narrow(30, 8)
    arithmetic = Arithmetic(E4M3, accumulator=Accumulator(FP16))
    got = lp(a, arithmetic) @ lp(b, arithmetic)
    assert torch.equal(plain(got), lptensor.round(loop(a, b, format=FP16), E4M3))


def test_operands_and_accumulators_go_together() -> None:
    a, b = narrow(9, 64), narrow(64, 8)
    arithmetic = Arithmetic(None, operands=Gemm(MXFP4), accumulator=ACC)
    rounded = lptensor.round(a, MXFP4), lptensor.round(b.t().contiguous(), MXFP4).t()
    assert torch.equal(plain(lp(a, arithmetic) @ lp(b, arithmetic)), loop(*rounded))


def test_an_accumulator_of_integers_wraps_in_float64() -> None:
    arithmetic = Arithmetic(FP32, accumulator=integer_accumulator(32), compute=torch.float64)
    a = torch.full((1, 3), 2.0**15)
    assert (lp(a, arithmetic) @ lp(a.t(), arithmetic)).item() == 3 * 2.0**30 - 2.0**32
    with pytest.raises(ValueError, match="needs more than float32's 24 bits; use float64"):
        Arithmetic(FP32, accumulator=integer_accumulator(32))
    with pytest.raises(ValueError, match='compute="fp32" is for float32 tensors'):
        Arithmetic(FP32, accumulator=Accumulator(FP16, compute="fp32"), compute=torch.float64)


def test_stochastic_accumulators_repeat_with_the_seed() -> None:
    arithmetic = Arithmetic(None, accumulator=Accumulator(NARROW, rounding="stochastic"))
    x, w = lp(narrow(9, 60), arithmetic).requires_grad_(), lp(narrow(8, 60), arithmetic)

    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        y = F.linear(x, w)
        return [plain(y), plain(torch.autograd.grad(y.sum(), x)[0])]

    once, again, other = draw(3), draw(3), draw(4)
    assert all(map(torch.equal, once, again)) and not any(map(torch.equal, once, other))


@pytest.mark.parametrize("boolean", [True, False])
def test_attention_adds_up_what_its_mask_lets_it_see(boolean: bool) -> None:
    q, k, v, g = (narrow(1, 2, 9, 16) for _ in range(4))
    rows = torch.arange(9) != 4
    g[:, :, 4] = 0
    seen = (torch.arange(9) < 6) & rows.unsqueeze(1)
    mask = seen if boolean else torch.zeros(9, 9).masked_fill(~seen, -torch.inf)
    all_, few = ([lp(t).requires_grad_() for t in (q, *others)] for others in ((k, v), (k[:, :, :6], v[:, :, :6])))
    y, z = F.scaled_dot_product_attention(*all_, attn_mask=mask), F.scaled_dot_product_attention(*few)
    assert torch.equal(plain(y)[:, :, rows], plain(z)[:, :, rows]) and not plain(y)[:, :, 4].any()
    of_q, *others = (plain(t) for t in torch.autograd.grad(y, all_, lp(g)))
    true_q, *wanted = (plain(t) for t in torch.autograd.grad(z, few, lp(g)))
    assert torch.equal(of_q[:, :, rows], true_q[:, :, rows])
    for mine, true in zip(others, wanted, strict=True):
        assert torch.equal(mine[:, :, :6], true) and not mine[:, :, 6:].any()


def test_weights_of_large_equal_scores_add_up_to_one() -> None:
    q, k, v = torch.full((1, 1, 2, 4), 1000.0), torch.full((1, 1, 3, 4), 1000.0), torch.eye(4)[None, None, :3]
    low = Arithmetic(None, accumulator=Accumulator(FP32))
    operands = [x.to_lp(low).requires_grad_() for x in (q, k, v)]  # type: ignore[attr-defined]
    out = F.scaled_dot_product_attention(*operands)
    out.sum().backward()
    third = torch.tensor(1.0) / 3
    assert out.dequantize()[0, 0].tolist() == [[third, third, third, 0.0]] * 2  # type: ignore[attr-defined]
    assert operands[2].grad.dequantize()[0, 0].tolist() == [[2 * third] * 4] * 3


def test_attention_that_would_draw_twice_says_what_to_do() -> None:
    drawn = Arithmetic(None, accumulator=Accumulator(NARROW, rounding="stochastic"))
    inside = Arithmetic(None, accumulator=Accumulator(NARROW, chunk=4, inner=Accumulator(FP16, rounding="stochastic")))
    for arithmetic in (drawn, inside, Arithmetic(None, operands=Gemm(E4M3, transform=Hadamard(8, "random")))):
        x = lp(narrow(1, 2, 9, 16), arithmetic)
        with pytest.raises(NotImplementedError, match="SDPBackend.MATH"):
            F.scaled_dot_product_attention(x, x, x)


REFUSED: dict[str, Callable[[Tensor], Any]] = {
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "index_add": lambda x: torch.index_add(x, 0, torch.tensor([0]), x),
    "index_add_": lambda x: x.index_add_(0, torch.tensor([0]), x),
    "scatter": lambda x: torch.scatter(x, 0, torch.zeros(1, 1, 4, 4, dtype=torch.long), x, reduce="add"),
    "index_put": lambda x: torch.index_put(x, (torch.tensor([0]),), x, accumulate=True),
    "index_put_": lambda x: x.index_put_((torch.tensor([0]),), x, accumulate=True),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"),
    "cdist": lambda x: torch.cdist(x, x),
    "cdist of many": lambda x: torch.cdist(x.expand(1, 1, 4, 4).reshape(4, 4).repeat(8, 1), x.reshape(4, 4)),
    "bincount": lambda x: torch.bincount(torch.zeros(16, dtype=torch.long), weights=x.flatten()),
    "histogram": lambda x: torch.histogram(x.flatten(), 3, weight=x.flatten()),
    "cumprod_": lambda x: x.cumprod_(0),
    "ldl": lambda x: torch.linalg.ldl_factor(x),
    "linear out": lambda x: torch.nn.functional.linear(x[0, 0], x[0, 0], out=torch.ones_like(x[0, 0])),  # type: ignore[call-arg]
    "softmax out": lambda x: torch.softmax(x, -1, out=torch.ones_like(x)),  # type: ignore[call-overload]
    "log_softmax out": lambda x: torch.log_softmax(x, -1, out=torch.ones_like(x)),  # type: ignore[call-overload]
    "trace out": lambda x: torch.ops.aten.trace.out(x[0, 0], out=x[0, 0, 0, 0]),
    "inverse": lambda x: torch.linalg.inv(x),
    "bilinear": lambda x: F.bilinear(x, x, torch.randn(2, 4, 4)),
    "prod": lambda x: x.prod(),
    "put": lambda x: torch.put(x, torch.tensor([0]), x.flatten()[:1], accumulate=True),
    "fold": lambda x: F.fold(x[0], (5, 1), (1, 1)),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_adds_up_without_an_accumulator_is_an_error_with_a_way_out(name: str) -> None:
    with pytest.raises(NotImplementedError, match="no accumulator.*(to_lp|dequan|two prod|one by one|without out)"):
        REFUSED[name](lp(torch.randn(1, 1, 4, 4)))


@pytest.mark.parametrize(
    "run",
    [
        lambda x: F.interpolate(x, scale_factor=2, mode="nearest-exact"),
        lambda x: F.multi_margin_loss(x.flatten(0, 2), torch.tensor([0, 1, 2, 3])),
    ],
)
def test_what_adds_up_in_its_gradient_alone_is_refused_there(run: Callable[[Tensor], Tensor]) -> None:
    y = run(lp(torch.randn(1, 1, 4, 4)).requires_grad_()).sum()
    with pytest.raises(NotImplementedError, match="no accumulator"):
        y.backward()


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_weight_norm_adds_up_its_squares_and_its_gradients(dim: int) -> None:
    v, grad = narrow(4, 20, 3), narrow(4, 20, 3)
    g = narrow(*(n if d == dim else 1 for d, n in enumerate(v.shape)))
    a, b = lp(v).requires_grad_(), lp(g).requires_grad_()
    w = torch._weight_norm(a, b, dim)
    of_v, of_g = torch.autograd.grad(w, (a, b), lp(grad))

    def rows(x: Tensor) -> Tensor:
        return loop_sum(x.movedim(dim, 0).flatten(1)).view_as(g)

    norms, along = root(rows(v * v)), rows(grad * v)
    assert torch.equal(plain(w), v * (g / norms))
    assert torch.equal(plain(of_g), along / norms)
    assert torch.allclose(plain(of_v), g / norms * (grad - v * (along / norms.square())), atol=1e-6)


def test_a_grid_of_affine_maps_adds_up_three_products() -> None:
    theta = lp(narrow(2, 2, 3))
    points = F.affine_grid(torch.eye(2, 3)[None], [1, 1, 2, 2], align_corners=False).flatten(1, 2)
    columns = torch.cat([points, torch.ones(1, 4, 1)], -1)
    grid = loop_sum(columns[:, :, None] * plain(theta)[:, None])
    assert torch.equal(plain(F.affine_grid(theta, [2, 1, 2, 2], align_corners=False)).flatten(1, 2), grid)


def test_a_batch_norm_of_cudnn_is_that_of_torch() -> None:
    x, ones, grad = lp(narrow(40, 3)), lp(torch.ones(3)), lp(narrow(40, 3))
    aten = torch.ops.aten
    y, mean, rstd, _ = aten.cudnn_batch_norm(x, ones, None, None, None, True, 0.1, 1e-5)
    z, *saved = aten.native_batch_norm(x, ones, None, None, None, True, 0.1, 1e-5)
    assert torch.equal(plain(y), plain(z)) and torch.equal(mean, saved[0]) and torch.equal(rstd, saved[1])
    got = aten.cudnn_batch_norm_backward(x, grad, ones, None, None, mean, rstd, 1e-5, torch.empty(0, dtype=torch.uint8))
    wanted = aten.native_batch_norm_backward(grad, x, ones, None, None, *saved, True, 1e-5, [True, True, True])
    assert all(torch.equal(plain(a), plain(b)) for a, b in zip(got, wanted, strict=True))


def test_pools_are_refused_backward_only_where_windows_overlap() -> None:
    x = lp(torch.randn(1, 1, 6, 6)).requires_grad_()
    F.max_pool2d(x, 2).sum().backward()
    assert x.grad is not None and x.grad.sum().item() == 9
    for apart in (dict(kernel_size=(2, 3), stride=(3,)), dict(kernel_size=(3,), stride=(3, 4))):
        x.grad = None
        F.max_pool2d(x, **apart).sum().backward()  # type: ignore[arg-type]
        assert x.grad is not None and x.grad.sum().item() == (4 if len(apart["stride"]) == 1 else 2)
    for form in (dict(kernel_size=3, stride=2), dict(kernel_size=2, stride=2, dilation=2)):
        y = F.max_pool2d(x, **form).sum()  # type: ignore[arg-type]
        with pytest.raises(NotImplementedError, match="windows not overlap"):
            y.backward()


def test_putting_without_adding_needs_no_accumulator() -> None:
    x = lp(torch.zeros(4))
    x.index_put_((torch.tensor([1]),), lp(torch.ones(1)))
    assert x.tolist() == [0, 1, 0, 0]


def test_an_arithmetic_tells_its_accumulator_and_keeps_it() -> None:
    a = Arithmetic(BF16, accumulator=Accumulator(FixedPoint(16, 8), chunk=4, order="pairwise"))
    names = {**vars(lptensor), **globals()}
    for twin in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a), eval(repr(a), names)):
        assert twin == a and hash(twin) == hash(a)
    assert promote(a, Arithmetic(E4M3)) == promote(Arithmetic(E4M3), a) == a
    with pytest.raises(TypeError) as error:
        promote(a, Arithmetic(BF16, accumulator=ACC))
    assert repr(a.accumulator) in str(error.value) and repr(ACC) in str(error.value)
    with pytest.raises(TypeError, match="accumulator must be Accumulator"):
        Arithmetic(BF16, accumulator=BF16)  # type: ignore[arg-type]


def test_a_network_trains_with_an_accumulator() -> None:
    arithmetic = Arithmetic(BF16, accumulator=Accumulator(FloatingPoint(6, 9), chunk=16))
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )
    convert(net, arithmetic)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 3
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(net(lp(x, arithmetic)), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


SUMS32 = Arithmetic(None, accumulator=Accumulator(FP32))


def low(*shape: int) -> Any:
    return torch.randn(shape).to_lp(SUMS32)


@pytest.mark.parametrize(
    "call",
    {
        "mm": lambda: torch.mm(low(2, 3, 4), low(4, 5)),
        "bmm": lambda: torch.bmm(low(1, 3, 4), low(5, 4, 2)),
        "bmm of matrices": lambda: torch.bmm(low(3, 4), low(4, 2)),
        "mv": lambda: torch.mv(low(2, 3, 4), low(4)),
        "dot": lambda: torch.dot(low(2, 3), low(3)),
        "addmm": lambda: torch.addmm(low(7, 3, 5), low(3, 4), low(4, 5)),
        "addmm enlarged": lambda: torch.addmm(low(3, 5), low(1, 4), low(4, 5), beta=2),
        "addmv enlarged": lambda: torch.addmv(low(3), low(1, 4), low(4), beta=2),
        "baddbmm": lambda: torch.baddbmm(low(7, 3, 5), low(1, 3, 4), low(1, 4, 5)),
        "bias": lambda: F.conv1d(low(1, 2, 5), low(4, 2, 3), low(1)),
        "bias of a group": lambda: F.conv1d(low(1, 2, 8), low(4, 1, 3), low(2), groups=2),
        "bias transposed": lambda: F.conv_transpose1d(low(1, 2, 8), low(2, 2, 3), low(2), groups=2),
        "padding": lambda: F.conv1d(low(1, 2, 5), low(4, 2, 3), padding=-1),
        "dilation": lambda: F.conv1d(low(1, 2, 5), low(4, 2, 3), dilation=0),
        "stride": lambda: F.conv1d(low(1, 2, 5), low(4, 2, 3), stride=0),
        "output padding": lambda: F.conv_transpose1d(low(1, 2, 5), low(2, 2, 3), output_padding=-1),
        "in place": lambda: low(1, 5).addmm_(low(3, 4), low(4, 5)),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_product_that_torch_refuses_is_refused(call: tuple[str, Callable[[], Any]], monkeypatch: Any) -> None:
    with pytest.raises(RuntimeError):
        call[1]()
    monkeypatch.setitem(globals(), "SUMS32", Arithmetic(None))  # as torch does without an accumulator
    with pytest.raises(RuntimeError):
        call[1]()


def test_a_product_in_place_writes_to_what_it_was_given() -> None:
    whole = torch.zeros(4, 5).to_lp(SUMS32)
    with pytest.raises(RuntimeError, match="writes into its first argument"):
        whole[0:1].addmm_(torch.ones(3, 4).to_lp(SUMS32), torch.ones(4, 5).to_lp(SUMS32))
    assert not whole.dequantize().any()
    out = torch.empty(0).to_lp(SUMS32)
    assert torch.mm(low(3, 4), low(4, 5), out=out).shape == (3, 5) == out.shape


def test_an_addend_does_not_enlarge_a_product() -> None:
    with pytest.raises(ValueError, match=r"must broadcast to \(2, 2\), got shape \(5, 2, 2\)"):
        lptensor.matmul(torch.ones(2, 3), torch.ones(3, 2), Accumulator(FP32), torch.ones(5, 2, 2))
    c = torch.arange(3.0)
    many = torch.vmap(lambda c: lptensor.matmul(torch.ones(2, 3), torch.ones(3, 2), Accumulator(FP32), c))(c)
    assert torch.equal(many, (3 + c).reshape(3, 1, 1).expand(3, 2, 2))


def test_a_factor_of_zero_hides_what_is_not_a_number() -> None:
    addend, bad = torch.ones(3, 5).to_lp(SUMS32), torch.full((3, 4), torch.nan).to_lp(SUMS32)
    assert torch.addmm(addend, bad, low(4, 5), alpha=0).tolist() == torch.ones(3, 5).tolist()


def test_ops_that_add_up_within_one_op_are_refused() -> None:
    register = Arithmetic(None, operands=Gemm(MXFP4), accumulator=Accumulator(FixedPoint(1, 0)))
    with pytest.raises(NotImplementedError, match="no accumulator"):
        F.embedding(torch.tensor([0, 1]), torch.full((3, 4), 5.0).to_lp(register), max_norm=1.0)
    if hasattr(nn, "LinearCrossEntropyOptions"):
        options, labels = nn.LinearCrossEntropyOptions(batch_chunk_size=2), torch.arange(6) % 5
        x, w = torch.randn(6, 8), torch.randn(5, 8)
        with pytest.raises(NotImplementedError, match="leave options out"):
            F.linear_cross_entropy(x.to_lp(register), w.to_lp(register), labels, options=options)


def test_roots_of_sums_are_rounded_correctly() -> None:
    """x**2 + tiny has its root just beside a midpoint of FP16: one unit of fp32 decides."""
    j = torch.arange(1024.0)
    middle = 1 + (2 * j + 1) / 2**11
    middle = middle[middle * middle >= 2]
    x = torch.stack([middle, torch.full_like(middle, 2.0**-11)], 1)
    want = x.double().square().sum(1).sqrt().float()
    low = x.to_lp(SUMS32)
    assert torch.equal(torch.linalg.vector_norm(low, dim=1).dequantize(), want)
    lengths = torch._weight_norm_interface(low, torch.ones(len(x), 1).to_lp(SUMS32), 0)[1]
    assert torch.equal(lengths.dequantize().flatten(), want)
    v = torch.rand(4000, 2) * 4
    var, std = torch.var(v.to_lp(SUMS32), 1).dequantize(), torch.std(v.to_lp(SUMS32), 1).dequantize()
    assert torch.equal(std, var.double().sqrt().float())
    assert torch.equal(torch.std_mean(v.to_lp(SUMS32), 1)[0].dequantize(), std)


@pytest.mark.parametrize("accumulator", [None, Accumulator(FP32)])
def test_a_convolution_rounds_each_element_of_an_operand_once(accumulator: Accumulator | None) -> None:
    """Two windows see the same element; a format without zero has nothing to make of the padding."""
    once = Arithmetic(None, operands=Gemm((Operand(FixedPoint(8, 0), "stochastic"), None)), accumulator=accumulator)
    both = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]])
    y = F.conv1d(torch.full((1, 1, 99), 0.5).to_lp(once), both.to_lp(once)).dequantize()
    assert torch.equal(y[0, 0, 1:], y[0, 1, :-1]) and set(y.flatten().tolist()) == {0.0, 1.0}
    no_zero = Arithmetic(None, operands=Gemm(E8M0), accumulator=accumulator)
    ones = torch.ones(1, 1, 3).to_lp(no_zero)
    assert F.conv1d(ones, ones, padding=1).tolist() == [[[2.0, 3.0, 2.0]]]


@pytest.mark.parametrize(
    "gradients", [[torch.inf, -100.0], [torch.inf, -torch.inf], [-torch.inf, 3.0], [torch.nan, 1.0]]
)
@pytest.mark.parametrize(
    ("overflow", "order"),
    [
        *itertools.product(("saturate", "nan"), ("sequential", "pairwise", "kahan", "exact")),
        *itertools.product(("inf", "propagate"), ("sequential", "pairwise", "exact")),
    ],
)
def test_infinite_gradients_of_an_embedding_add_up_as_terms_do(
    gradients: list[float], overflow: str, order: str
) -> None:
    specials = "ieee" if overflow in ("inf", "propagate") else "fn"
    acc = Accumulator(FloatingPoint(4, 3, specials=specials, overflow=overflow), order=order)
    weight = torch.zeros(2, 1).to_lp(Arithmetic(None, accumulator=acc)).requires_grad_()
    F.embedding(torch.tensor([0, 0]), weight).backward(torch.tensor(gradients)[:, None])
    want = lptensor.sum(torch.tensor(gradients), accumulator=acc)
    torch.testing.assert_close(weight.grad.dequantize()[0, 0], want, equal_nan=True, rtol=0, atol=0)
    assert weight.grad[1, 0] == 0


@pytest.mark.parametrize(
    "acc",
    [
        integer_accumulator(8, "wrap"),
        Accumulator(E4M3, chunk=2, inner=FP16),
        Accumulator(FP16, chunk=2, inner=E4M3),
        Accumulator(FP16, chunk=2, order="exact", inner=Accumulator(E4M3, order="kahan")),
    ],
    ids=repr,
)
@pytest.mark.parametrize("gradients", [[torch.inf, -100.0], [torch.inf, -torch.inf]])
def test_registers_and_chunks_make_of_an_infinite_gradient_what_they_make_of_a_term(
    acc: Accumulator, gradients: list[float]
) -> None:
    weight = lp(torch.zeros(2, 1), Arithmetic(None, accumulator=acc)).requires_grad_()
    F.embedding(torch.tensor([0, 0]), weight).backward(torch.tensor(gradients)[:, None])
    want = lptensor.sum(torch.tensor(gradients), accumulator=acc)
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad.dequantize()[0, 0], want, equal_nan=True, rtol=0, atol=0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("order", ["sequential", "exact"])
def test_an_infinite_gradient_is_rounded_as_a_product_where_products_are(order: str) -> None:
    acc, gradients = Accumulator(FP16, product=E4M3, order=order), torch.tensor([[torch.inf, 7.0], [1.0, torch.inf]])
    weight = lp(torch.zeros(2, 2), Arithmetic(None, accumulator=acc)).requires_grad_()
    F.embedding(torch.tensor([1, 1]), weight).backward(gradients)
    assert weight.grad is not None and weight.grad.tolist() == [[0, 0], [448 + 1, 448 + 7]]
    assert lptensor.matmul(torch.ones(1, 2), gradients, acc).tolist() == [[448 + 1, 448 + 7]]


def test_an_infinite_gradient_of_padding_is_none() -> None:
    weight = lp(torch.zeros(2, 1)).requires_grad_()
    F.embedding(torch.tensor([0, 1]), weight, padding_idx=0).backward(torch.tensor([[torch.inf], [1.0]]))
    assert weight.grad is not None and weight.grad.tolist() == [[0.0], [1.0]]


def test_one_index_alone_is_an_embedding_too() -> None:
    weight = lp(torch.zeros(3, 2)).requires_grad_()
    F.embedding(torch.tensor(1), weight).sum().backward()
    assert weight.grad is not None and weight.grad.tolist() == [[0, 0], [1, 1], [0, 0]]


def test_gradients_scaled_by_frequency_are_refused() -> None:
    weight = lp(torch.zeros(3, 2)).requires_grad_()
    with pytest.raises(NotImplementedError, match="leave scale_grad_by_freq out"):
        F.embedding(torch.tensor([0, 0]), weight, scale_grad_by_freq=True).sum().backward()


def test_what_an_average_over_windows_apart_gives_back_is_no_sum() -> None:
    grad, x = torch.randn(1, 1, 2, 2), torch.zeros(1, 1, 4, 4)
    form = ([2, 2], [2, 2], [0, 0], False, True, None)
    made = torch.ops.aten.avg_pool2d_backward(lp(grad), lp(x), *form)
    assert torch.equal(plain(made), torch.ops.aten.avg_pool2d_backward(grad, x, *form))


def test_a_mean_is_written_where_it_is_wanted() -> None:
    x = lp(narrow(3, 5))
    out, each = lp(torch.zeros(())), lp(torch.zeros(3))
    assert torch.mean(x, out=out).item() == out.item() == x.mean().item()
    assert torch.ops.aten.mean.dtype_out(x, out=lp(torch.ones(()))).item() == x.mean().item()
    assert torch.mean(x, 1, out=each).tolist() == each.tolist() == x.mean(1).tolist()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Accumulator(FP16, order="aligned", alignment=3, chunk=4, inner=FP32), "leave inner out"),
        (lambda: Accumulator(FP16, inner=FP32), "chunk of 2 or more"),
        (lambda: Gemm(E4M3, transform=(Hadamard(4), None)), "one for each of forward, grad_input, grad_weight"),
        (lambda: lptensor.conv(low(1, 2, 5), low(4, 2, 3), Accumulator(FP32), padding="same"), "padding takes"),
        (lambda: lptensor.conv(low(1, 2, 5), low(4, 2, 3), Accumulator(FP32), stride=0), "stride takes"),
    ],
)
def test_what_does_not_go_together_is_said(make: Callable[[], Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()


def test_means_count_all_numbers_where_no_axis_is_named_and_one_of_a_scalar() -> None:
    x = lp(torch.arange(8.0).reshape(2, 4))
    assert x.mean(()).item() == x.mean().item() == 3.5
    assert x.var(()).item() == x.var().item() > 5.0
    assert lp(torch.tensor(3.0)).mean(0).item() == lp(torch.tensor(3.0)).mean(-1).item() == 3.0


def test_an_accumulator_of_one_operand_is_that_of_the_op() -> None:
    x, y = narrow(50), narrow(50)
    terms = (x.double() - y.double()).square().float()
    wanted = loop_sum(terms) / 50
    for a, b in ((lp(x), lp(y, Arithmetic(None))), (lp(x, Arithmetic(None)), lp(y))):
        assert F.mse_loss(a, b).item() == wanted.item()


def test_a_formula_adds_up_in_more_bits_than_fp32_has_where_it_computes_in_float64() -> None:
    arithmetic = Arithmetic(FP32, accumulator=Accumulator(FixedPoint(32, 26)), compute=torch.float64)
    x = lp(torch.tensor([1.0, 2.0**-12, 2.0**-13]), arithmetic)
    assert F.mse_loss(x, torch.zeros(3), reduction="sum").item() == 1 + 2.0**-23


def test_roots_in_place_are_rounded_correctly_too() -> None:
    x = torch.rand(5000)
    exact = x.double().sqrt().float()
    a, b, c = (lp(x, Arithmetic(FP32, accumulator=Accumulator(FP32))) for _ in range(3))
    torch._foreach_sqrt_([b])
    assert all(torch.equal(plain(got), exact) for got in (a.sqrt_(), b, torch.sqrt(c, out=torch.empty_like(c))))


def test_a_mean_that_names_float64_is_one() -> None:
    mean = lp(torch.tensor([1.0, 2.0])).mean(dtype=torch.float64)
    assert mean.dtype is torch.float64 and mean.item() == 1.5


def test_a_norm_of_order_zero_counts_by_each_name() -> None:
    x = lp(torch.tensor([[0.0, 3.0, 4.0]]))
    assert torch.linalg.vector_norm(x, 0).item() == torch.ops.aten.norm.Scalar(x, 0).item() == 2
    assert torch.ops.aten.norm.ScalarOpt_dim(x, 0, [1]).item() == 2
    assert torch.ops.aten.norm.ScalarOpt_dim(x, None, [1]).item() == 5


def test_logsumexp_goes_over_several_axes_of_equal_numbers() -> None:
    x = lp(torch.full((2, 4, 3), 5.0))
    made = torch.logsumexp(x, (0, 1))
    assert made.shape == (3,) and made.tolist() == [5.0 + torch.tensor(8.0).log().item()] * 3
    assert torch.logsumexp(x, (0, 1), keepdim=True).shape == (1, 1, 3)


def test_logsumexp_may_keep_its_axes() -> None:
    x = lp(torch.arange(24.0).reshape(2, 3, 4))
    for dim in (-1, (1, -1), 0):
        kept, gone = plain(x.logsumexp(dim, keepdim=True)), plain(x.logsumexp(dim))
        assert kept.shape == x.sum(dim, keepdim=True).shape and torch.equal(kept.view_as(gone), gone)


def test_sums_that_name_float64_are_formed_in_it() -> None:
    x = lp(torch.tensor([1.0, 2.0]))
    for made in (x.cumsum(0, dtype=torch.float64), x.sum(dtype=torch.float64), x.nansum(dtype=torch.float64)):
        assert type(made) is Tensor and made.dtype is torch.float64 and made.flatten()[-1] == 3
    made = torch.linalg.vector_norm(lp(torch.tensor([3.0, 4.0])), dtype=torch.float64)
    assert type(made) is Tensor and made.dtype is torch.float64 and made == 5


@pytest.mark.parametrize(
    ("written", "op", "args"),
    [
        ("cumsum.out", "cumsum.default", (1,)),
        ("sum.out", "sum.default", ()),
        ("sum.IntList_out", "sum.dim_IntList", ([1],)),
        ("nansum.out", "nansum.default", ([1],)),
        ("mean.dtype_out", "mean.default", ()),
        ("mean.out", "mean.dim", ([1],)),
        ("var.correction_out", "var.correction", ([1],)),
        ("std.correction_out", "std.correction", ([1],)),
        ("linalg_vector_norm.out", "linalg_vector_norm.default", (3, [1])),
        ("norm.out", "norm.ScalarOpt_dim", (3, [1])),
        ("logsumexp.out", "logsumexp.default", ([1],)),
    ],
)
def test_a_sum_is_written_into_what_out_names(written: str, op: str, args: tuple[Any, ...]) -> None:
    x = lp(narrow(4, 40))
    out, made = lp(torch.empty(0)), operator.attrgetter(op)(torch.ops.aten)(x, *args)
    assert operator.attrgetter(written)(torch.ops.aten)(x, *args, out=out) is out
    assert torch.equal(plain(out), plain(made))


@pytest.mark.parametrize(("overload", "args"), [("Scalar", (3,)), ("ScalarOpt_dim", (3, [0, 1]))])
def test_a_norm_of_each_name_is_one(overload: str, args: tuple[Any, ...]) -> None:
    x, norm = lp(narrow(4, 40)), torch.ops.aten.norm
    wanted = plain(torch.linalg.vector_norm(x, 3))
    assert torch.equal(plain(getattr(norm, overload)(x, *args)), wanted)
    given = getattr(norm, "ScalarOpt_dtype" if overload == "Scalar" else "ScalarOpt_dim_dtype")
    assert torch.equal(plain(given(x, *args, *[False] * (len(args) - 1), dtype=torch.float32)), wanted)


def test_norms_may_keep_their_axes() -> None:
    x = lp(narrow(3, 40))
    for order in (0, 2, 3, torch.inf):
        kept, gone = (plain(torch.linalg.vector_norm(x, order, -1, keepdim)) for keepdim in (True, False))
        assert kept.shape == (3, 1) and torch.equal(kept.view(3), gone)
    assert plain(x.nansum(-1, keepdim=True)).shape == (3, 1)
