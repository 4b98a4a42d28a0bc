"""Products whose operands are rounded, against three plain products with each operand rounded by hand."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lptensor
from low import through_file
from lptensor import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    MXFP4,
    MXFP6_E2M3,
    MXFP6_E3M2,
    MXFP8_E4M3,
    MXFP8_E5M2,
    NVFP4,
    Arithmetic,
    BlockFloatingPoint,
    Channel,
    CurrentMaximum,
    FixedPoint,
    Format,
    LPTensor,
    PowerOfTwo,
    Scaled,
    Tile,
    TwoLevel,
    _compat,
    convert,
    round as lp_round,
)
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import promote
from lptensor.blocks import BlockFormat, Blocks
from lptensor.hadamard import Hadamard
from lptensor.operands import Gemm, Operand, along_contraction
from lptensor.rounding_points import rounding_points
from lptensor.trace import trace
from oracles import gemm_reference
from oracles.gemm_reference import Quantize, product

# Six formats, so that no slot can stand in for another.
SIX: dict[str, Format] = {
    "forward 0": MXFP8_E4M3,
    "forward 1": MXFP4,
    "grad_input 0": MXFP8_E5M2,
    "grad_input 1": MXFP6_E2M3,
    "grad_weight 0": NVFP4,
    "grad_weight 1": MXFP6_E3M2,
}
SCALARS: dict[str, Format] = {
    "forward 0": E4M3,
    "forward 1": E5M2,
    "grad_input 0": E3M2,
    "grad_input 1": FixedPoint(8, 5),
    "grad_weight 0": Scaled(E2M1, PowerOfTwo(-1)),
    "grad_weight 1": FixedPoint(6, 2),
}


def gemm_of(slots: dict[str, Format]) -> Gemm:
    pairs = {name: (slots[f"{name} 0"], slots[f"{name} 1"]) for name in ("forward", "grad_input", "grad_weight")}
    return Gemm(**pairs)  # type: ignore[arg-type]


def by_hand(slots: dict[str, Format]) -> Quantize:
    """Rounds along an axis with the format that a slot names."""
    return lambda x, slot, axis: lp_round(x.detach().movedim(axis, -1).contiguous(), slots[slot]).movedim(-1, axis)


def lp(x: Tensor, arithmetic: Arithmetic) -> LPTensor:
    return x.to_lp(arithmetic)  # type: ignore[attr-defined, no-any-return]


def plain(x: Any) -> Tensor:
    assert type(x) is LPTensor
    return x.dequantize().detach()


MM = Callable[[Tensor, Tensor], Tensor]  # the product that a reference is made of
SEEN = torch.arange(1600).view(40, 40) % 7 < 3
SEEN[3] = False  # nothing at all

CASES: dict[str, tuple[list[tuple[int, ...]], Callable[..., Tensor], Callable[..., Tensor]]] = {
    "mm": ([(40, 70), (70, 50)], torch.mm, lambda mm, a, b: mm(a, b)),
    "mm, square": ([(64, 64), (64, 64)], torch.mm, lambda mm, a, b: mm(a, b)),
    "mm, both by columns": (
        [(70, 40), (50, 70)],
        lambda a, b: torch.mm(a.t(), b.t()),
        lambda mm, a, b: mm(a.t(), b.t()),
    ),
    "mm, square, first by columns": (
        [(48, 48), (48, 48)],
        lambda a, b: torch.mm(a.t(), b),
        lambda mm, a, b: mm(a.t(), b),
    ),
    "mm with itself": ([(40, 40)], lambda a: a @ a, lambda mm, a: mm(a, a)),
    "mm with its own transpose": ([(40, 70)], lambda a: a @ a.t(), lambda mm, a: mm(a, a.t())),
    "mm of a transposed mm": (
        [(48, 48), (48, 48), (48, 48)],
        lambda a, b, c: torch.mm(torch.mm(a, b).t(), c.t()),
        lambda mm, a, b, c: mm(mm(a, b).t(), c.t()),
    ),
    "addmm": (
        [(50,), (40, 70), (70, 50)],
        lambda c, a, b: torch.addmm(c, a, b, beta=0.5),
        lambda mm, c, a, b: 0.5 * c + mm(a, b),
    ),
    "bmm": ([(3, 40, 70), (3, 70, 50)], torch.bmm, lambda mm, a, b: mm(a, b)),
    "baddbmm": ([(3, 40, 50), (3, 40, 70), (3, 70, 50)], torch.baddbmm, lambda mm, c, a, b: c + mm(a, b)),
    "linear": ([(40, 70), (50, 70), (50,)], F.linear, lambda mm, x, w, b: mm(x, w.t()) + b),
    "linear, batch and outputs alike": ([(64, 70), (64, 70)], F.linear, lambda mm, x, w: mm(x, w.t())),
    "linear of a batch": (
        [(4, 10, 70), (50, 70), (50,)],
        F.linear,
        lambda mm, x, w, b: mm(x.flatten(0, 1), w.t()).view(4, 10, 50) + b,
    ),
    "linear of a strided batch": (
        [(10, 4, 70), (50, 70), (50,)],
        lambda x, w, b: F.linear(x.transpose(0, 1), w, b),
        lambda mm, x, w, b: mm(x.transpose(0, 1).reshape(40, 70), w.t()).view(4, 10, 50) + b,
    ),
    "matmul, 3 axes by 2": (
        [(4, 10, 70), (70, 50)],
        torch.matmul,
        lambda mm, a, b: mm(a.flatten(0, 1), b).view(4, 10, 50),
    ),
    "einsum": (
        [(3, 40, 70), (3, 50, 70)],
        lambda a, b: torch.einsum("bik,bjk->bij", a, b),
        lambda mm, a, b: mm(a, b.mT),
    ),
    "math attention": (
        [(2, 40, 70)] * 3,
        lambda q, k, v: _math_attention(q, k, v),
        lambda mm, q, k, v: mm((mm(q * 70**-0.25, (k * 70**-0.25).mT)).softmax(-1), v),
    ),
    "attention": ([(1, 2, 40, 70)] * 3, F.scaled_dot_product_attention, lambda mm, *qkv: _attention(mm, *qkv)),
    "attention of grouped heads": (
        [(2, 6, 40, 70), (2, 2, 40, 70), (2, 2, 40, 70)],
        lambda *qkv: F.scaled_dot_product_attention(*qkv, enable_gqa=True),
        lambda mm, q, k, v: _attention(mm, q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1)),
    ),
    "causal attention": (
        [(1, 2, 40, 70)] * 3,
        lambda *qkv: F.scaled_dot_product_attention(*qkv, is_causal=True),
        lambda mm, *qkv: _attention(mm, *qkv, torch.ones(40, 40).tril() > 0),
    ),
    "attention that a mask leaves little": (
        [(1, 2, 40, 70)] * 3,
        lambda *qkv: F.scaled_dot_product_attention(*qkv, attn_mask=SEEN),
        lambda mm, *qkv: _attention(mm, *qkv, SEEN),
    ),
    "attention with a mask to add and a scale": (
        [(1, 2, 40, 70)] * 3,
        lambda *qkv: F.scaled_dot_product_attention(
            *qkv, attn_mask=torch.zeros(40, 40).masked_fill(~SEEN, -torch.inf), scale=0.3
        ),
        lambda mm, *qkv: _attention(mm, *qkv, SEEN, 0.3),
    ),
}


def _math_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    with sdpa_kernel(SDPBackend.MATH):
        return F.scaled_dot_product_attention(q, k, v)


def _attention(mm: MM, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None = None, scale: float = 70**-0.5) -> Tensor:
    seen = torch.ones(40, 40, dtype=torch.bool) if seen is None else seen
    scores = mm(q, k.mT) * scale
    scores = scores.masked_fill(~seen & seen.any(-1, keepdim=True), -torch.inf)
    return mm(scores.softmax(-1) * seen.any(-1, keepdim=True), v)  # no weight where nothing is seen


def gradients(f: Callable[..., Tensor], leaves: list[Tensor], weights: Tensor) -> list[Tensor]:
    y = f(*leaves)
    return [y.detach(), *torch.autograd.grad((y * weights).sum(), leaves)]


@pytest.mark.parametrize("slots", [SIX, SCALARS], ids=["blocks", "scalars"])
@pytest.mark.parametrize("case", CASES)
def test_an_op_is_three_products_of_rounded_operands(case: str, slots: dict[str, Format]) -> None:
    shapes, run, reference = CASES[case]
    values = [torch.randn(s) for s in shapes]
    quantize = by_hand(slots)

    def mm(a: Tensor, b: Tensor) -> Tensor:
        return product(a, b, quantize)

    leaves = [v.clone().requires_grad_() for v in values]
    weights = torch.randn(reference(mm, *leaves).shape)
    wanted = gradients(lambda *a: reference(mm, *a), leaves, weights)
    arithmetic = Arithmetic(None, operands=gemm_of(slots))
    got = gradients(run, [lp(v, arithmetic).requires_grad_() for v in values], weights)
    for mine, true in zip(got, wanted, strict=True):
        torch.testing.assert_close(plain(mine), true, rtol=2e-4, atol=2e-4 * true.abs().max().item())


ENDS = (24, 40, 96)
GROUPED: dict[str, tuple[tuple[int, ...], tuple[int, ...], Callable[..., Tensor]]] = {
    "rows": ((96, 40), (3, 40, 50), lambda mm, a, b, of: torch.cat([mm(a[g], b[i]) for i, g in enumerate(of)])),
    "columns": (
        (3, 50, 40),
        (40, 96),
        lambda mm, a, b, of: torch.cat([mm(a[i], b[:, g]) for i, g in enumerate(of)], 1),
    ),
    "terms": ((40, 96), (96, 50), lambda mm, a, b, of: torch.stack([mm(a[:, g], b[g]) for g in of])),
    "matrices": ((3, 40, 70), (3, 70, 50), lambda mm, a, b, of: mm(a, b)),
}


@pytest.mark.parametrize("by_columns", [(False, False), (False, True), (True, False), (True, True)], ids=str)
@pytest.mark.parametrize("groups", GROUPED)
def test_products_of_groups_know_nothing_of_each_other(groups: str, by_columns: tuple[bool, bool]) -> None:
    """Experts' rows, with a matrix for each group; autograd has another form where an operand lies by columns."""
    *shapes, reference = GROUPED[groups]
    values = [torch.randn(s) for s in shapes]
    values = [x.mT.contiguous().mT if turned else x for x, turned in zip(values, by_columns, strict=True)]
    slices = [slice(start, end) for start, end in zip((0, *ENDS), ENDS, strict=False)]
    offs = None if groups == "matrices" else torch.tensor(ENDS, dtype=torch.int32)
    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))

    def wanted(*leaves: Tensor) -> Tensor:
        return reference(lambda a, b: product(a, b, quantize), *leaves, slices)

    weights = torch.randn(wanted(*values).shape)
    true = gradients(wanted, [v.clone().requires_grad_() for v in values], weights)
    low = [lp(v, arithmetic).requires_grad_() for v in values]
    for mine, y in zip(gradients(lambda a, b: torch.ops.aten._grouped_mm(a, b, offs), low, weights), true, strict=True):
        torch.testing.assert_close(plain(mine), y, rtol=2e-4, atol=2e-4 * y.abs().max().item())


GROUPS_REFUSED: dict[str, Callable[[Tensor, Tensor, Tensor], Any]] = {
    "a bias": lambda a, b, offs: torch.ops.aten._grouped_mm(a, b, offs, torch.ones(8)),
    "another dtype": lambda a, b, offs: torch.ops.aten._grouped_mm(a, b, offs, out_dtype=torch.bfloat16),
    "no ends": lambda a, b, offs: torch.ops.aten._grouped_mm(a, b),
    "two stacks and ends": lambda a, b, offs: torch.ops.aten._grouped_mm(a.expand(2, 8, 16), b, offs),
    "too few groups": lambda a, b, offs: torch.ops.aten._grouped_mm(a, b, offs[:1]),
}


@pytest.mark.parametrize("arithmetic", [Arithmetic(BF16, operands=Gemm(E4M3)), Arithmetic(BF16, compute=torch.float64)])
@pytest.mark.parametrize("what", GROUPS_REFUSED)
def test_groups_that_torch_refuses_are_refused(what: str, arithmetic: Arithmetic) -> None:
    a, b, offs = torch.randn(8, 16), torch.randn(2, 16, 8), torch.tensor([3, 8], dtype=torch.int32)
    with pytest.raises(RuntimeError):
        GROUPS_REFUSED[what](a, b, offs)
    with pytest.raises((NotImplementedError, ValueError), match="grouped_mm (is|needs)"):
        GROUPS_REFUSED[what](lp(a, arithmetic), lp(b, arithmetic), offs)
    assert torch.ops.aten._grouped_mm(lp(a, arithmetic), lp(b[:0], arithmetic), offs[:0]).shape == (8, 8)


def test_fused_attention_gives_the_logarithms_of_its_sums() -> None:
    q, k, v = (torch.randn(1, 2, 40, 70) for _ in range(3))
    arithmetic, quantize = Arithmetic(None, operands=gemm_of(SIX)), by_hand(SIX)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    _, sums = attention(*(lp(t, arithmetic) for t in (q, k, v)))
    scores = quantize(q, "forward 0", -1) @ quantize(k.mT, "forward 1", -2) * 70**-0.5
    torch.testing.assert_close(sums, scores.logsumexp(-1))
    assert sums.shape == attention(q, k, v)[1].shape


def test_with_one_format_more_the_results_are_rounded_too() -> None:
    x, w = torch.randn(40, 70), torch.randn(50, 70)
    arithmetic = Arithmetic(E4M3, BF16, operands=gemm_of(SIX))
    a, b = lp(x, arithmetic).requires_grad_(), lp(w, arithmetic).requires_grad_()
    y = F.linear(a, b)
    quantize = by_hand(SIX)
    true = quantize(plain(a), "forward 0", -1) @ quantize(plain(b), "forward 1", -1).T
    assert torch.equal(plain(y), lp_round(true, E4M3))
    g = lp_round(torch.randn(40, 50), E4M3)
    y.backward(lp(g, arithmetic))
    of_w = quantize(g, "grad_weight 0", -2).T @ quantize(plain(a), "grad_weight 1", -2)
    assert torch.equal(plain(b.grad), lp_round(of_w, BF16))


def test_plain_operands_and_plain_gradients_are_told_apart_too() -> None:
    x, w, g = torch.randn(64, 70), torch.randn(64, 70), torch.randn(64, 64)
    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))
    of_x = quantize(g, "grad_input 0", -1) @ quantize(w, "grad_input 1", -2)
    of_w = quantize(g, "grad_weight 0", -2).T @ quantize(x, "grad_weight 1", -2)
    for first, second in ((True, True), (True, False), (False, True)):
        for seed in (g, lp(g, arithmetic)) if first and second else (lp(g, arithmetic),):
            a, b = (lp(t, arithmetic) if low else t.clone() for t, low in ((x, first), (w, second)))
            grads = torch.autograd.grad(F.linear(a.requires_grad_(), b.requires_grad_()), (a, b), seed)
            for mine, true in zip(grads, (of_x, of_w), strict=True):
                torch.testing.assert_close(plain(mine), true)


def attempts(f: Callable[..., Tensor]) -> dict[str, Callable[..., Tensor]]:
    return {
        "direct": f,
        "checkpoint": lambda *a: checkpoint(f, *a, use_reentrant=False),
        "reentrant checkpoint": lambda *a: checkpoint(f, *a, use_reentrant=True),
    }


class LooksOn(TorchDispatchMode):
    """Hands on every op as it is, through a function of its own, as torch's FlopCounterMode does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.hand_on(func, args, kwargs or {})

    def hand_on(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


@pytest.mark.parametrize("watched", [False, True], ids=["", "while a mode looks on"])
@pytest.mark.parametrize("way", ["direct", "checkpoint", "reentrant checkpoint", "create_graph", "offloaded", "traced"])
def test_it_survives_what_people_do_to_a_graph(way: str, watched: bool) -> None:
    with LooksOn() if watched else nullcontext():
        survives(way)


def survives(way: str) -> None:
    x, w, v, g = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64, 64), torch.randn(64, 64)
    arithmetic = Arithmetic(None, operands=gemm_of(SIX))
    quantize = by_hand(SIX)
    leaves = [t.clone().requires_grad_() for t in (x, w, v)]
    hidden = product(leaves[0], leaves[1].t(), quantize).relu()
    wanted = torch.autograd.grad(product(hidden, leaves[2].t(), quantize), leaves, g)

    def net(x: Tensor, w: Tensor, v: Tensor) -> Tensor:
        return F.linear(F.linear(x, w).relu(), v)

    mine = [lp(t, arithmetic).requires_grad_() for t in (x, w, v)]
    if way == "offloaded":
        with torch.autograd.graph.save_on_cpu():
            y = net(*mine)
    elif way == "traced":
        with trace():
            y = net(*mine)
    else:
        y = attempts(net).get(way, net)(*mine)
    if way.startswith("reentrant"):
        y.backward(lp(g, arithmetic))
        grads: Any = [t.grad for t in mine]
    elif way == "traced":
        with trace():
            grads = torch.autograd.grad(y, mine, lp(g, arithmetic))
    else:
        grads = torch.autograd.grad(y, mine, lp(g, arithmetic), create_graph=way == "create_graph")
    for got, true in zip(grads, wanted, strict=True):
        torch.testing.assert_close(plain(got), true)


def test_a_second_backward_pass_rounds_by_the_places_of_the_products_it_differentiates() -> None:
    a, b = torch.randn(64, 64), torch.randn(64, 64)
    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))
    x, w = lp(a, arithmetic).requires_grad_(), lp(b, arithmetic).requires_grad_()
    g = torch.randn(64, 64)
    seed = lp(g, arithmetic).requires_grad_()
    (of_x,) = torch.autograd.grad(torch.mm(x, w), x, seed, create_graph=True)  # g @ w.T
    h = torch.randn(64, 64)
    of_g, of_w = torch.autograd.grad(of_x, (seed, w), lp(h, arithmetic))
    true = quantize(h, "grad_input 0", -1) @ quantize(b, "grad_input 1", -2)
    torch.testing.assert_close(plain(of_g), true)
    true = quantize(g, "grad_weight 1", -2).T @ quantize(h, "grad_weight 0", -2)
    torch.testing.assert_close(plain(of_w), true.T)


@pytest.mark.parametrize("ahead", range(4))
def test_a_second_backward_pass_may_number_its_nodes_as_the_first_did(ahead: int) -> None:
    """Each thread numbers from zero on, and so do those of a GPU that a pass with create_graph makes nodes on."""
    a, b, g, h = (torch.randn(64, 64) for _ in range(4))
    arithmetic = Arithmetic(None, operands=gemm_of(SIX))

    def forward() -> tuple[Tensor, ...]:
        x, w, seed = (lp(t, arithmetic).requires_grad_() for t in (a, b, g))
        return torch.mm(x, w), x, w, seed

    def twice(y: Tensor, x: Tensor, w: Tensor, seed: Tensor) -> Tensor:
        number = y.grad_fn._sequence_nr()  # type: ignore[union-attr]
        while _compat.next_node() < number - ahead:
            seed.detach().requires_grad_().view_as(seed)
        (of_x,) = torch.autograd.grad(y, x, seed, create_graph=True)
        return torch.autograd.grad(of_x, seed, lp(h, arithmetic))[0]

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        of_g = other.submit(twice, *one.submit(forward).result()).result()
    quantize = by_hand(SIX)
    torch.testing.assert_close(plain(of_g), quantize(h, "grad_input 0", -1) @ quantize(b, "grad_input 1", -2))


def test_gradients_accumulate_over_two_passes() -> None:
    arithmetic = Arithmetic(None, operands=gemm_of(SIX))
    x, w = torch.randn(4, 64), lp(torch.randn(8, 64), arithmetic).requires_grad_()
    F.linear(lp(x, arithmetic), w).sum().backward()
    once = plain(w.grad)
    F.linear(lp(x, arithmetic), w).sum().backward()
    torch.testing.assert_close(plain(w.grad), 2 * once)


TRANSPOSED: dict[str, Callable[[Tensor], Tensor]] = {
    "t": lambda x: x.t(),
    "T": lambda x: x.T,
    "mT": lambda x: x.mT,
    "transpose": lambda x: x.transpose(-1, -2),
    "permute": lambda x: x.permute(1, 0),
    "movedim": lambda x: x.movedim(0, 1),
    "three times": lambda x: x.T.T.t(),
}


@pytest.mark.parametrize("spelling", TRANSPOSED)
def test_a_backward_pass_that_somebody_wrote_rounds_by_where_the_gradient_stands(spelling: str) -> None:
    transposed = TRANSPOSED[spelling]

    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return x @ w.t()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return g @ w, transposed(g) @ x

    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))
    a, b, g = torch.randn(64, 64), torch.randn(64, 64), torch.randn(64, 64)
    x, w = lp(a, arithmetic).requires_grad_(), lp(b, arithmetic).requires_grad_()
    grads = torch.autograd.grad((Linear.apply(x, w) * g).sum(), (x, w))
    torch.testing.assert_close(plain(grads[0]), quantize(g, "grad_input 0", -1) @ quantize(b, "grad_input 1", -2))
    torch.testing.assert_close(plain(grads[1]), quantize(g, "grad_weight 0", -2).T @ quantize(a, "grad_weight 1", -2))


BATCHES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "flattened": lambda g, x: g.flatten(0, 1).T @ x.flatten(0, 1),
    "by samples": lambda g, x: (g.mT @ x).sum(0),
    "copied": lambda g, x: g.permute(2, 0, 1).reshape(8, -1) @ x.reshape(-1, 16),
    "tensordot": lambda g, x: torch.tensordot(g, x, ([0, 1], [0, 1])),
}


@pytest.mark.parametrize("spelling", BATCHES)
def test_a_product_of_batches_in_such_a_backward_pass_is_one_of_the_weights_gradient(spelling: str) -> None:
    class Linear(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            return F.linear(x, w)

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            return g @ w, BATCHES[spelling](g, x)

    # Formats of single numbers, so that it is all one in which order the rows are added.
    arithmetic = Arithmetic(None, operands=Gemm(BF16, (E5M2, E4M3), (E3M2, E2M3)))
    a, b, g = torch.randn(3, 4, 16), torch.randn(8, 16), torch.randn(3, 4, 8)
    x, w = lp(a, arithmetic).requires_grad_(), lp(b, arithmetic).requires_grad_()
    of_x, of_w = torch.autograd.grad(Linear.apply(x, w), (x, w), g)
    torch.testing.assert_close(plain(of_x), lptensor.round(g, E5M2) @ lptensor.round(b, E4M3))
    rows = lptensor.round(g, E3M2).flatten(0, 1), lptensor.round(a, E2M3).flatten(0, 1)
    torch.testing.assert_close(plain(of_w), rows[0].T @ rows[1])


def test_what_such_a_backward_pass_computes_anew_is_a_forward_product() -> None:
    products = []

    class Square(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
            ctx.save_for_backward(x, w)
            products.append(plain(x @ w.t()))
            return (x @ w.t()).square()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
            x, w = ctx.saved_tensors
            y = x @ w.t()
            products.append(plain(y))
            return (2 * y * g) @ w, (2 * y * g).t() @ x

    arithmetic = Arithmetic(None, operands=gemm_of(SIX))
    x, w = (lp(torch.randn(64, 64), arithmetic).requires_grad_() for _ in range(2))
    Square.apply(x, w).sum().backward()
    assert torch.equal(*products)


SPELLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: F.linear(x, w),
    "transposed": lambda x, w: (w @ x.t()).t(),
    "as it stands": lambda x, w: x @ w,
    "batches": lambda x, w: torch.bmm(x[None], w.mT[None])[0],
    "einsum": lambda x, w: torch.einsum("si,oi->so", x, w),
}


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("argument", [0, 1])
@pytest.mark.parametrize("spelling", SPELLED)
def test_gradients_of_a_batch_are_those_of_each_sample(spelling: str, argument: int, batch: int) -> None:
    """Also where all sides are of one length, and shapes tell nothing. Scales of whole tensors would be the batch's."""
    blocks = {**SIX, "grad_weight 0": BlockFloatingPoint(4, block_size=16)}
    arithmetic = Arithmetic(None, operands=gemm_of(blocks))
    x, w, *_ = samples = [lp(torch.randn(64, 64), arithmetic) for _ in range(2 * batch)]
    xs, ws = torch.stack(samples[:batch]), torch.stack(samples[batch:])
    seeds = torch.randn(batch, 64, 64)

    def gradient(x: Tensor, w: Tensor, seed: Tensor) -> Tensor:
        back: Callable[[Tensor], tuple[Tensor, Tensor]] = torch.func.vjp(SPELLED[spelling], x, w)[1]
        return back(seed)[argument]

    for of_x, of_w in ((0, 0), (0, None), (None, 0), (None, None)):
        given = (x if of_x is None else xs), (w if of_w is None else ws)
        found = torch.func.vmap(gradient, (of_x, of_w, 0))(*given, seeds)
        for i in range(batch):
            sample = [t if axis is None else t[i] for t, axis in zip(given, (of_x, of_w), strict=True)]
            torch.testing.assert_close(plain(found[i]), plain(gradient(*sample, seeds[i])))
    leaves = [t.detach().requires_grad_() for t in (x, w)]
    y = SPELLED[spelling](*leaves)
    found = torch.autograd.grad(y, leaves[argument], seeds, is_grads_batched=True)[0]
    for i in range(batch):
        torch.testing.assert_close(plain(found[i]), plain(gradient(x, w, seeds[i])))


def test_a_gradient_that_vmap_rearranges_beyond_recognition_is_refused_with_a_way_out() -> None:
    arithmetic = Arithmetic(None, operands=gemm_of(SIX))
    w, x = lp(torch.randn(5, 4, 3), arithmetic), lp(torch.randn(6, 4, 3), arithmetic)
    grad = torch.func.grad(lambda w, x: F.linear(x, w).sum())
    with pytest.raises(NotImplementedError, match="sample by sample"):
        torch.func.vmap(grad, in_dims=-1)(w, x)


VECTORS: dict[str, Callable[..., Tensor]] = {
    "mv": lambda a, b, c: torch.mv(a, b),
    "addmv": lambda a, b, c: torch.addmv(c, a, b),
    "matmul": lambda a, b, c: a @ b,
}


@pytest.mark.parametrize("name", VECTORS)
def test_a_matrix_times_a_vector_is_a_product_and_so_is_the_gradient_of_the_vector(name: str) -> None:
    a, b, g = torch.randn(40, 70), torch.randn(70), torch.randn(40)
    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))
    x, y = lp(a, arithmetic).requires_grad_(), lp(b, arithmetic).requires_grad_()
    z = VECTORS[name](x, y, torch.zeros(40))
    torch.testing.assert_close(plain(z), quantize(a, "forward 0", -1) @ quantize(b, "forward 1", -1))
    of_x, of_y = torch.autograd.grad((z * g).sum(), (x, y))
    torch.testing.assert_close(plain(of_y), quantize(a, "grad_weight 1", -2).T @ quantize(g, "grad_weight 0", -1))
    assert torch.equal(plain(of_x), torch.outer(g, b))  # sums nothing


def test_a_gradient_that_is_multiplied_after_its_pass_is_an_operand_of_a_forward_product() -> None:
    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))
    x, w = lp(torch.randn(40, 70), arithmetic).requires_grad_(), torch.randn(70, 50)
    (x * lp(torch.randn(40, 70), arithmetic)).sum().backward()
    assert x.grad is not None
    true = quantize(plain(x.grad), "forward 0", -1) @ quantize(w, "forward 1", -2)
    torch.testing.assert_close(plain(x.grad @ lp(w, arithmetic)), true)


def test_gradients_of_sums_over_a_batch_are_products_too() -> None:
    quantize, arithmetic = by_hand(SCALARS), Arithmetic(None, operands=gemm_of(SCALARS))
    a, b, g = torch.randn(3, 8, 20), torch.randn(3, 20, 9), torch.randn(8, 9)
    x, y = (lp(t, arithmetic).requires_grad_() for t in (a, b))
    of_x, of_y = torch.autograd.grad((torch.addbmm(torch.zeros(8, 9), x, y) * g).sum(), (x, y))
    torch.testing.assert_close(plain(of_x), quantize(g, "grad_input 0", -1) @ quantize(b, "grad_input 1", -1).mT)
    torch.testing.assert_close(plain(of_y), quantize(a, "grad_weight 1", -1).mT @ quantize(g, "grad_weight 0", -1))


def test_dot_and_sums_over_a_batch_are_products() -> None:
    quantize, arithmetic = by_hand(SIX), Arithmetic(None, operands=gemm_of(SIX))
    a, b = torch.randn(70), torch.randn(70)
    true = quantize(a, "forward 0", -1) @ quantize(b, "forward 1", -1)
    torch.testing.assert_close(plain(torch.dot(lp(a, arithmetic), lp(b, arithmetic))), true)
    c, a, b = torch.randn(8, 9), torch.randn(3, 8, 20), torch.randn(3, 20, 9)
    long = quantize(a.transpose(0, 1).reshape(8, 60), "forward 0", -1) @ quantize(b.reshape(60, 9), "forward 1", -2)
    torch.testing.assert_close(plain(torch.addbmm(c, lp(a, arithmetic), lp(b, arithmetic))), c + long)


WRITES: dict[str, Callable[..., Any]] = {
    "addmm_": lambda c, a, b: c.addmm_(a, b),
    "addmm out": lambda c, a, b: torch.addmm(c.clone(), a, b, out=c),
    "mm out": lambda c, a, b: torch.mm(a, b, out=c.zero_()),
    "mm out of another shape": lambda c, a, b: torch.mm(a, b, out=torch.empty(0).to_lp(c.arithmetic)),
}


@pytest.mark.parametrize("name", WRITES)
def test_writes_round_the_operands_and_then_into_the_target(name: str) -> None:
    arithmetic = Arithmetic(BF16, operands=gemm_of(SIX))
    a, b, c = (lp(torch.randn(s), arithmetic) for s in ((40, 70), (70, 50), (40, 50)))
    true = torch.mm(a, b) if "mm out" in name and "addmm" not in name else torch.addmm(c, a, b)
    got = WRITES[name](c, a, b)
    assert got.arithmetic == arithmetic and torch.equal(plain(got), plain(true))


ELSEWHERE: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
    "bmm": (torch.bmm, [(2, 3, 70), (2, 70, 4)]),
    "mv": (torch.mv, [(3, 70), (70,)]),
    "dot": (torch.dot, [(70,), (70,)]),
    "vdot": (torch.vdot, [(70,), (70,)]),
    "addmv": (torch.addmv, [(3,), (3, 70), (70,)]),
    "addbmm": (torch.addbmm, [(3, 4), (2, 3, 70), (2, 70, 4)]),
    "baddbmm": (torch.baddbmm, [(2, 3, 4), (2, 3, 70), (2, 70, 4)]),
    "_addmm_activation": (torch._addmm_activation, [(4,), (3, 70), (70, 4)]),
    "convolution": (
        lambda x, w, out=None: (
            torch.ops.aten.convolution.out(x, w, None, [1], [0], [1], False, [0], 1, out=out)
            if out is not None
            else F.conv1d(x, w)
        ),
        [(2, 3, 70), (4, 3, 5)],
    ),
}


@pytest.mark.parametrize("accumulator", [None, Accumulator(E4M3)], ids=repr)
@pytest.mark.parametrize("name", ELSEWHERE)
def test_every_product_may_be_written_elsewhere(name: str, accumulator: Accumulator | None) -> None:
    arithmetic = Arithmetic(BF16, operands=gemm_of(SCALARS), accumulator=accumulator)
    run, shapes = ELSEWHERE[name]
    operands = [lp(torch.randn(shape), arithmetic) for shape in shapes]
    wanted = run(*operands)
    out = torch.zeros_like(wanted)
    run(*operands, out=out)
    assert out.arithmetic == arithmetic and torch.equal(plain(out), plain(wanted)) and plain(out).any()


def test_what_writes_a_product_and_rounds_no_operands_is_refused() -> None:
    arithmetic = Arithmetic(BF16, operands=gemm_of(SCALARS))
    x, w, out = (lp(torch.ones(3, 3), arithmetic) for _ in range(3))
    with pytest.raises(NotImplementedError, match="has no rounded operands and no accumulator"):
        torch.ops.aten.linear.out(x, w, out=out)
    with pytest.raises(NotImplementedError, match="without out= and out_dtype="):
        torch.ops.aten.mm.dtype_out(x, w, torch.float32, out=out)


# -- convolutions --------------------------------------------------------------------------------------

CONVOLUTIONS = {
    "1d": ((2, 3, 11), (4, 3, 3), dict(stride=1, padding=1, dilation=1)),
    "1d, strided": ((2, 3, 12), (4, 3, 3), dict(stride=2, padding=1, dilation=2)),
    "2d": ((2, 3, 6, 7), (4, 3, 3, 2), dict(stride=1, padding=0, dilation=1)),
    "2d, strided": ((2, 3, 7, 8), (4, 3, 3, 3), dict(stride=2, padding=1, dilation=1)),
    "3d": ((1, 2, 4, 5, 4), (3, 2, 2, 3, 2), dict(stride=2, padding=1, dilation=1)),
}


@pytest.mark.parametrize("slots", [SIX, SCALARS], ids=["blocks", "scalars"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_convolution_is_three_products_of_unfolded_operands(name: str, slots: dict[str, Format]) -> None:
    shape, kernel, form = CONVOLUTIONS[name]
    conv = (F.conv1d, F.conv2d, F.conv3d)[len(shape) - 3]
    arithmetic = Arithmetic(None, operands=gemm_of(slots))
    values = torch.randn(shape), torch.randn(kernel), torch.randn(kernel[0])
    x, w, b = (lp(v, arithmetic).requires_grad_() for v in values)
    y = conv(x, w, b, **form)
    g = torch.randn(y.shape)
    grads = torch.autograd.grad((y * g).sum(), (x, w, b))
    out, *wanted = gemm_reference.convolution(values[0], values[1], g, **form, quantize=by_hand(slots))
    out = out + values[2].view(-1, *[1] * (len(shape) - 2))
    for mine, true in zip((y, *grads), (out, *wanted, g.transpose(0, 1).flatten(1).sum(1)), strict=True):
        torch.testing.assert_close(plain(mine), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("slots", [SIX, SCALARS], ids=["blocks", "scalars"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_so_is_a_transposed_convolution(name: str, slots: dict[str, Format]) -> None:
    shape, kernel, form = CONVOLUTIONS[name]
    conv = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[len(shape) - 3]
    extra = form["stride"] - 1
    arithmetic = Arithmetic(None, operands=gemm_of(slots))
    values = torch.randn(shape), torch.randn(kernel).transpose(0, 1).contiguous()
    x, w = (lp(v, arithmetic).requires_grad_() for v in values)
    y = conv(x, w, output_padding=extra, **form)
    assert y.shape == conv(*values, output_padding=extra, **form).shape
    g = torch.randn(y.shape)
    grads = torch.autograd.grad((y * g).sum(), (x, w))
    wanted = gemm_reference.transposed_convolution(values[0], values[1], g, **form, quantize=by_hand(slots))
    for mine, true in zip((y, *grads), wanted, strict=True):
        torch.testing.assert_close(plain(mine), true, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("transposed", [False, True])
def test_groups_are_convolutions_side_by_side(transposed: bool) -> None:
    slots = {name: format for name, format in SIX.items() if "NV" not in repr(format)} | {"grad_weight 0": MXFP4}
    arithmetic = Arithmetic(None, operands=gemm_of(slots))
    conv: Any = F.conv_transpose2d if transposed else F.conv2d
    x = lp(torch.randn(2, 4, 6, 6), arithmetic).requires_grad_()
    w = lp(torch.randn(4, 3, 3, 3) if transposed else torch.randn(6, 2, 3, 3), arithmetic).requires_grad_()
    together = conv(x, w, stride=2, groups=2)
    apart = torch.cat([conv(p, q, stride=2) for p, q in zip(x.chunk(2, 1), w.chunk(2), strict=True)], 1)
    torch.testing.assert_close(plain(together), plain(apart))
    g = torch.randn(together.shape)
    for mine, true in zip(
        torch.autograd.grad((together * g).sum(), (x, w)), torch.autograd.grad((apart * g).sum(), (x, w)), strict=True
    ):
        torch.testing.assert_close(plain(mine), plain(true))


# -- what an operand's format means --------------------------------------------------------------------

SHAPES: dict[str, tuple[Format, tuple[int, ...]]] = {
    "blocks": (MXFP8_E4M3, (1, 1, 32)),
    "axis given": (TwoLevel(E4M3, axis=0, tensor_scale=False), (1, 1, 16)),
    "square tiles": (TwoLevel(E4M3, (16, 16)), (1, 16, 16)),
    "DeepSeek tiles": (Scaled(E4M3, CurrentMaximum(Tile((1, 128)))), (1, 1, 128)),
    "tile with axes": (Scaled(E4M3, CurrentMaximum(Tile((128,), (0,)))), (1, 1, 128)),
    "channels": (Scaled(E4M3, CurrentMaximum(Channel(0))), (1, 1, 200)),
    "tensor": (Scaled(E4M3, CurrentMaximum()), (2, 30, 200)),
    "BFP": (BlockFloatingPoint(8), (2, 30, 200)),
    "BFP channels": (BlockFloatingPoint(8, dim=0), (1, 1, 2**62)),
    "BFP blocks": (BlockFloatingPoint(8, dim=1, block_size=24), (1, 1, 24)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_run_along_the_contraction_whatever_axis_was_named(name: str) -> None:
    format, block = SHAPES[name]
    assert along_contraction(format).block_shape((2, 30, 200)) == block  # type: ignore[attr-defined]


def test_one_scale_per_channel_is_one_per_row_of_each_product() -> None:
    x = torch.randn(3, 5, 40) * 2.0 ** torch.arange(5).view(5, 1)
    for format in (Scaled(E4M3, CurrentMaximum(Channel(0))), BlockFloatingPoint(8, dim=0)):
        rows = [lp_round(row, along_contraction(format)) for row in x.flatten(0, 1)]
        assert torch.equal(Operand(format).quantize(x), torch.stack(rows).view(3, 5, 40))


@dataclass(frozen=True)
class Mine(BlockFormat):
    """Block floating point of eight bits with blocks of four, as somebody outside may write it."""

    axis: int = -2
    element = BlockFloatingPoint(8).element

    @property
    def lowered(self) -> Blocks:
        return BlockFloatingPoint(8).lowered

    @property
    def tile(self) -> Tile:
        return Tile((4,), (self.axis,))

    def tiled(self, tile: Tile) -> BlockFormat:
        return replace(self, axis=(tile.axes or ())[0])


def test_the_blocks_of_a_format_of_ones_own_run_along_the_contraction() -> None:
    x, w, g = torch.randn(12, 8), torch.randn(6, 8), torch.randn(12, 6)

    def along(t: Tensor, axis: int) -> Tensor:
        return lp_round(t.movedim(axis, -1).contiguous(), BlockFloatingPoint(8, block_size=4)).movedim(-1, axis)

    assert not torch.equal(lp_round(x, Mine()), along(x, -1))
    for given in (Mine(), Mine(axis=0), Mine(axis=-1)):
        arithmetic = Arithmetic(None, operands=Gemm(given, given, given))
        a, b = lp(x, arithmetic).requires_grad_(), lp(w, arithmetic).requires_grad_()
        y = F.linear(a, b)
        y.backward(lp(g, arithmetic))
        assert torch.equal(plain(y), along(x, 1) @ along(w, 1).T)
        assert torch.equal(plain(a.grad), along(g, 1) @ along(w, 0))
        assert torch.equal(plain(b.grad), along(g, 0).T @ along(x, 0))


def test_a_format_of_ones_own_whose_blocks_cannot_be_moved_is_named() -> None:
    class Fixed(Mine):
        tiled = BlockFormat.tiled

    class Unsaid(Mine):
        tile = BlockFormat.tile  # type: ignore[assignment]

    assert along_contraction(Fixed(-1)) == Fixed(-1)
    with pytest.raises(NotImplementedError, match=r"Fixed does not say .* Tile\(\(4,\)\): give it a method tiled"):
        Gemm(Fixed(-2))
    with pytest.raises(NotImplementedError, match="Unsaid does not say which elements share a scale: give it a tile"):
        Gemm(Unsaid(-1))


def test_what_is_no_operand_is_named() -> None:
    with pytest.raises(ValueError, match="two sides"):
        Gemm(BlockFloatingPoint(8, block_size=(2, 2, 2)))
    with pytest.raises(ValueError, match="an operand's tiles"):
        Gemm(Scaled(E4M3, CurrentMaximum(Tile((32,), others=None))))
    with pytest.raises(ValueError, match="an operand's tiles"):
        Gemm(Scaled(E4M3, CurrentMaximum(Tile(()))))  # a scale for each number
    with pytest.raises(TypeError, match="forward takes formats .* got 'e4m3'"):
        Gemm("e4m3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="grad_input takes a pair"):
        Gemm(grad_input=(E4M3, E4M3, E4M3))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 'wgrad'"):
        Gemm(E4M3, transform={"wgrad": Hadamard(16)})
    with pytest.raises(TypeError, match="transform takes Hadamard"):
        Gemm(E4M3, transform=16)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="operands must be Gemm"):
        Arithmetic(E4M3, operands=E4M3)  # type: ignore[arg-type]


def test_the_gradient_needs_a_format_with_a_sign_and_what_it_meets_does_not() -> None:
    positive = FixedPoint(8, 4, signed=False)  # of what comes out of a ReLU
    for name in ("grad_input", "grad_weight"):
        assert getattr(Gemm(**{name: (E5M2, positive)}), name) == (Operand(E5M2), Operand(positive))
        with pytest.raises(ValueError, match="the first is the gradient's"):
            Gemm(**{name: (positive, E5M2)})
    assert Gemm((positive, E4M3)).forward[0] == Operand(positive)


def test_an_operand_with_a_rounding_of_its_own_says_its_class() -> None:
    assert repr(Gemm((Watched(BF16), BF16))).startswith("Gemm(forward=(Watched(BF16, ")


def test_a_gemm_is_a_value() -> None:
    gemm = Gemm((MXFP4, None), (Operand(MXFP4, "stochastic"), MXFP4), transform={"grad_weight": Hadamard(32, "random")})
    a = Arithmetic(BF16, operands=gemm)
    names = {**vars(lptensor), **globals()}
    loaded = through_file(lp(torch.ones(2), a)).arithmetic
    for twin in (pickle.loads(pickle.dumps(a)), copy.deepcopy(a), eval(repr(a), names), loaded):
        assert twin == a and hash(twin) == hash(a)
    assert a != Arithmetic(BF16) and a != Arithmetic(BF16, operands=Gemm(MXFP4))


def test_two_arithmetics_with_different_operands_are_an_error_that_names_both() -> None:
    one, other = Arithmetic(BF16, operands=Gemm(MXFP4)), Arithmetic(BF16, operands=Gemm(NVFP4))
    assert promote(one, Arithmetic(E4M3)) == promote(Arithmetic(E4M3), one) == one
    with pytest.raises(TypeError) as error:
        lp(torch.ones(2, 2), one) @ lp(torch.ones(2, 2), other)
    assert repr(Gemm(MXFP4)) in str(error.value) and repr(Gemm(NVFP4)) in str(error.value)


def test_stochastic_operands_repeat_with_the_seed() -> None:
    arithmetic = Arithmetic(None, operands=Gemm(Operand(MXFP4, "stochastic"), Operand(NVFP4, "stochastic")))
    x, w = lp(torch.randn(8, 64), arithmetic).requires_grad_(), lp(torch.randn(9, 64), arithmetic)

    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        y = F.linear(x, w)
        return [plain(y), plain(torch.autograd.grad(y.sum(), x)[0])]

    once, again, other = draw(3), draw(3), draw(4)
    assert all(map(torch.equal, once, again)) and not any(map(torch.equal, once, other))


def test_each_operand_is_drawn_and_rounded_by_its_own_rounding() -> None:
    arithmetic = Arithmetic(None, operands=Gemm((Operand(E4M3, "up"), Operand(E4M3, "down"))))
    x, w = torch.full((1, 8), 1.01), torch.full((8, 1), 1.01)
    assert plain(lp(x, arithmetic) @ lp(w, arithmetic)).item() == 8 * 1.125


def test_a_trace_lists_the_operands_it_rounds() -> None:
    arithmetic = Arithmetic(BF16, operands=gemm_of(SIX))
    x, w = lp(torch.randn(4, 64), arithmetic).requires_grad_(), lp(torch.randn(8, 64), arithmetic).requires_grad_()
    with trace() as t:
        F.linear(x, w).sum().backward()
    rows = {(row.backward, row.shape): [r.format for r in row.rounded] for row in t if row.op == "mm"}
    assert rows == {
        (False, (4, 8)): [MXFP8_E4M3, MXFP4, BF16],
        (True, (4, 64)): [MXFP8_E5M2, MXFP6_E2M3, BF16],
        (True, (8, 64)): [NVFP4, MXFP6_E3M2, BF16],
    }


def test_other_ops_and_the_optimizer_are_as_without_operands() -> None:
    model = convert(nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8)), Arithmetic(BF16, operands=gemm_of(SIX)))
    y = model(lp(torch.randn(4, 8), Arithmetic(BF16)))
    assert torch.equal(plain(y.softmax(-1)), plain(lp(plain(y), Arithmetic(BF16)).softmax(-1)))
    y.square().sum().backward()
    torch.optim.AdamW(model.parameters()).step()
    assert all(p.arithmetic == Arithmetic(BF16, operands=gemm_of(SIX)) for p in model.parameters())
    convert(model, None)
    assert all(type(p) is nn.Parameter for p in model.parameters())


def test_what_cannot_round_its_operands_says_what_to_do() -> None:
    x = lp(torch.randn(2, 1, 8, 8), Arithmetic(BF16, operands=Gemm(Operand(E4M3, "stochastic"))))
    with pytest.raises(NotImplementedError, match="SDPBackend.MATH"):
        F.scaled_dot_product_attention(x, x, x)
    assert type(_math_attention(x, x, x)) is LPTensor
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    q = lp(torch.randn(2, 4, 8, 8), Arithmetic(BF16, operands=gemm_of(SIX)))
    with pytest.raises(NotImplementedError, match="dropout has .*SDPBackend.MATH"):
        fused(q, q, q, 0.5)
    with pytest.raises(NotImplementedError, match="two products"):
        nn.Bilinear(8, 8, 2)(x, x)


def test_functions_follow_their_kernels_where_an_arithmetic_shapes_products() -> None:
    arithmetic = Arithmetic(BF16, operands=gemm_of(SIX))
    x, w = lp(torch.randn(4, 64), arithmetic), lp(torch.randn(8, 64), arithmetic)
    for contract in ("function", "primitive"):
        with rounding_points(contract):
            assert torch.equal(plain(F.linear(x, w)), plain(x @ w.t()))


def test_transforms_that_differ_are_all_shown() -> None:
    gemm = Gemm(BF16, transform=(Hadamard(16), Hadamard(32), Hadamard(64)))
    assert all(f"block_size={size}" in repr(gemm) for size in (16, 32, 64))


class Watched(Operand):
    """An operand that rounds in a way of its own, by position."""

    shapes: list[tuple[int, ...]] = []

    def quantize(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return x


def test_a_convolution_gives_operands_of_ones_own_its_matrices() -> None:
    """(groups, rows, contraction), whatever the format that describes them."""
    Watched.shapes.clear()
    own = Arithmetic(None, operands=Gemm(Watched(E4M3)))
    F.conv2d(torch.ones(2, 4, 5, 5).to_lp(own), torch.ones(6, 2, 3, 3).to_lp(own), groups=2)
    assert Watched.shapes == [(2, 2 * 3 * 3, 2 * 3 * 3), (2, 3, 2 * 3 * 3)]


@pytest.mark.parametrize("format", [E4M3, MXFP4], ids=str)
def test_a_transform_goes_along_the_unfolded_contraction_of_a_convolution(format: Any) -> None:
    """The same product as that of the windows and the kernels, written as matrices."""
    turned = Arithmetic(None, operands=Gemm(format, transform=Hadamard(16)))
    x, w = torch.randn(2, 3, 6, 6), torch.randn(5, 3, 3, 3)
    got = F.conv2d(x.to_lp(turned), w.to_lp(turned)).dequantize()
    rows = F.unfold(x, 3).transpose(1, 2).reshape(-1, 27)
    want = (rows.to_lp(turned) @ w.flatten(1).to_lp(turned).mT).dequantize()
    torch.testing.assert_close(got.permute(0, 2, 3, 1).reshape(-1, 5), want)


@pytest.mark.parametrize("named", ["first", "second"])
def test_one_operand_may_name_what_all_three_products_round_to(named: str) -> None:
    both = Arithmetic(BF16, operands=Gemm((E4M3, E2M1), (E5M2, E2M1), (E5M2, E4M3)))
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(2, *shape, generator=generator) for shape in ((16, 8), (8, 3)))
    found = []
    for left, right in ((both, both), (both, Arithmetic(BF16)) if named == "first" else (Arithmetic(BF16), both)):
        for multiply in (torch.bmm, lambda x, w: F.linear(x[0], w[0].mT.contiguous())):
            a, b = x.to_lp(left).requires_grad_(), w.to_lp(right).requires_grad_()  # type: ignore[attr-defined]
            y = multiply(a, b)
            found.append([y, *torch.autograd.grad(y.square().sum(), (a, b))])
    for one, other in zip(found[:2], found[2:], strict=True):
        assert all(torch.equal(s.dequantize(), t.dequantize()) for s, t in zip(one, other, strict=True))
