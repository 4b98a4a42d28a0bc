"""The contracts "function" and "primitive", against plain tensors that PyTorch's own casts round."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import lptensor
from count_roundings import CASES, roundings, table
from function_samples import FUNCTIONS, S
from low import is_low, rounded, same, values
from lptensor import BF16, E4M3, E5M2, Arithmetic, Gemm, LPTensor
from lptensor.contracts import CONTRACTS, contract
from lptensor.functions import _inside, functions
from lptensor.rounding_points import rounding_points
from lptensor.trace import Trace, trace

DOCS = Path(__file__).parents[1] / "docs" / "rounding_points.md"
ROLES = Arithmetic(BF16, backward=E5M2)
# Judged by a test of its own, or with other operands.
ELSEWHERE = {"binary_cross_entropy", "linear_cross_entropy"}


def plain_operands(shapes: tuple[tuple[int, ...], ...]) -> list[Tensor]:
    torch.manual_seed(3)
    return [torch.randn(s).bfloat16().float().requires_grad_() for s in shapes]


def lowered(xs: list[Tensor]) -> list[Any]:
    return [x.detach().to_lp(ROLES).requires_grad_() for x in xs]  # type: ignore[attr-defined]


def shown(t: Trace, backward: bool) -> list[str]:
    return [row.op for row in t for _ in row.rounded if row.backward == backward]


@pytest.mark.parametrize("first", CONTRACTS)
@pytest.mark.parametrize("second", CONTRACTS)
def test_contexts_that_close_in_the_order_in_which_they_opened_leave_each_other_alone(first: str, second: str) -> None:
    """As those of two tasks of asyncio do."""

    def softplus() -> int:
        with trace() as t:
            F.softplus(x)
        return t.count().total()

    x, alone = lowered([torch.randn(3)])[0], {}
    for name in CONTRACTS:
        with rounding_points(name):
            alone[name] = softplus()
    a, b = rounding_points(first), rounding_points(second)
    a.__enter__()
    b.__enter__()
    assert softplus() == alone[second]
    a.__exit__()
    assert softplus() == alone[second]
    b.__exit__()
    assert softplus() == alone["aten"] and contract() == "aten"


def test_every_function_of_the_contract_is_judged() -> None:
    known = {name for name in ELSEWHERE if hasattr(torch.nn.functional, name)}  # torch 2.11 lacks a loss of 2.13
    assert set(functions().values()) - FUNCTIONS.keys() == known
    assert FUNCTIONS.keys() <= set(functions().values())


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_rounds_once_and_each_of_its_gradients_once(name: str) -> None:
    function, shapes = FUNCTIONS[name]
    xs = plain_operands(shapes)
    lows = lowered(xs)
    torch.manual_seed(4)
    y = function(*xs)
    seed = rounded(torch.randn(y.shape), E5M2)
    wanted = torch.autograd.grad(y, xs, seed)

    torch.manual_seed(4)
    with rounding_points("function"), trace() as t:
        z = function(*lows)
        found = torch.autograd.grad(z, lows, seed.to_lp(E5M2))  # type: ignore[attr-defined]
    assert is_low(z, BF16) and same(z, rounded(y.detach(), BF16))
    for mine, theirs in zip(found, wanted, strict=True):
        assert is_low(mine, E5M2) and same(mine, rounded(theirs, E5M2))
    extra = ["abs"] if name.startswith("lp_pool") else []  # roots need it; it is exact, and its gradient a sign
    assert shown(t, backward=False) == [*extra, name, "to_lp"]
    if not extra:
        assert shown(t, backward=True) == ["gradient"] * len(lows)


def test_the_gradient_is_rounded_where_the_graph_was_made_with_the_contract() -> None:
    x, w, b = plain_operands(((3, 5), (4, 5), (4,)))
    lows = lowered([x, w, b])
    with rounding_points("function"):
        z = F.softmax(F.linear(*lows), -1)
    seed = rounded(torch.randn(3, 4), E5M2)
    with trace() as t:
        z.backward(seed.to_lp(E5M2))  # type: ignore[attr-defined]
    hidden = F.linear(x, w, b).bfloat16().float().detach().requires_grad_()
    between = rounded(torch.autograd.grad(F.softmax(hidden, -1), hidden, seed)[0], E5M2)
    wanted = torch.autograd.grad(F.linear(x, w, b), (x, w, b), between)
    for low, theirs in zip(lows, wanted, strict=True):
        assert same(low.grad, rounded(theirs, E5M2))
    assert t.count(backward=True).total() == 4


def test_a_function_in_a_backward_pass_that_somebody_wrote_gives_a_gradient() -> None:
    class Soft(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, g: Tensor) -> Tensor:
            return F.softmax(g, -1)

    (low,) = lowered(plain_operands(((3, 5),)))
    with rounding_points("function"):
        Soft.apply(low).sum().backward()
    fifth = torch.full((3, 5), 0.2)
    assert same(low.grad, rounded(fifth, E5M2)) and not same(low.grad, rounded(fifth, BF16))


@pytest.mark.parametrize("arithmetic", [ROLES, Arithmetic()], ids=["BF16", "fp32"])
def test_linear_gives_the_same_bits_in_any_layout(arithmetic: Arithmetic) -> None:
    x, w, b = (p.detach().to_lp(arithmetic) for p in plain_operands(((16, 33, 257), (64, 257), (64,))))  # type: ignore[attr-defined]
    x, w, b = x * 1.1, w * 0.7, b * 1.3  # all bits of fp32 in use
    strided = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous() and same(x, strided)
    with rounding_points("function"), trace() as t:
        results = [F.linear(x, w, b), F.linear(strided, w.t().contiguous().t(), b)]
    assert same(*results)
    assert [row.op for row in t if row.shape == (16, 33, 64)] == ["linear", "linear"]
    with trace() as aten:
        F.linear(strided, w, b)
    assert len([row for row in aten if row.kind not in ("viewed", "kept")]) == 2  # a product and a sum, by "aten"


def test_attention_rounds_once_with_every_backend() -> None:
    q = lowered(plain_operands(((2, 2, 5, 4),)))[0]
    counts: dict[str, list[int]] = {"function": [], "aten": [], "primitive": []}
    for name in counts:
        for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
            with sdpa_kernel(backend), rounding_points(name), trace() as t:
                F.scaled_dot_product_attention(q, q, q)
            counts[name].append(t.count().total())
    assert counts["function"] == [1, 1]
    assert counts["aten"] == [5, 1]  # two scalings, two products, a softmax
    assert counts["primitive"][0] == counts["primitive"][1] > counts["aten"][0]


def test_attention_by_primitives_asks_nothing_of_the_whole_process() -> None:
    """Other threads would compute otherwise meanwhile."""
    fused = []

    class Settings(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            fused.append(torch.backends.cuda.flash_sdp_enabled())
            return func(*args, **(kwargs or {}))

    (q,) = lowered(plain_operands(((1, 2, 4, 8),)))
    with Settings(), rounding_points("primitive"):
        F.scaled_dot_product_attention(q, q, q)
    assert fused and all(fused)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"is_causal": True},
        {"attn_mask": torch.ones(4, 4).tril() > 0},
        {"attn_mask": torch.ones(4, 4).tril(-1) > 0},  # the first row sees nothing
        {"attn_mask": torch.ones(4, 4)},
    ],
    ids=str,
)
def test_attention_by_primitives_has_the_values_of_attention_in_steps(options: Any) -> None:
    q, k, v = lowered(plain_operands(((1, 2, 4, 8),) * 3))
    with rounding_points("primitive"):
        y = F.scaled_dot_product_attention(q, k, v, **options)
        with sdpa_kernel(SDPBackend.MATH):
            want = torch.ops.aten.scaled_dot_product_attention(q, k, v, **options)
    assert same(y, want)


def test_multi_head_attention_is_entered() -> None:
    layer = lptensor.convert(nn.MultiheadAttention(8, 2, batch_first=True), ROLES)
    x = lowered(plain_operands(((2, 3, 8),)))[0]
    with rounding_points("function"), trace() as t:
        layer(x, x, x, need_weights=False)
    assert shown(t, False) == ["linear", "scaled_dot_product_attention", "linear"]
    with rounding_points("primitive"), trace() as steps:
        layer(x, x, x, need_weights=False)
    assert "exp" in steps.count() and "div.Tensor" in steps.count()


def test_what_selects_values_rounds_nothing() -> None:
    x = lowered(plain_operands(((2, 3, 6),)))[0].detach()
    with rounding_points("function"), trace() as t:
        F.relu(x)
        F.max_pool1d(x, 2)
        F.pad(x, (1, 1))
        F.embedding(torch.tensor([0, 1]), x[0])
        assert F.dropout(x, training=False) is x
    assert t.count() == {}


def test_other_ops_follow_aten() -> None:
    x = lowered(plain_operands(((2, 3),)))[0]
    with rounding_points("function"), trace() as t:
        (x * 2 + 1).exp().backward(torch.ones(2, 3))
    assert shown(t, False) == ["mul.Tensor", "add.Tensor", "exp", "backward"]  # what the caller gives it rounds first
    assert shown(t, True) == ["mul.Tensor", "mul.Tensor"]


def test_in_place_functions_write_once() -> None:
    x = lowered(plain_operands((S,)))[0]
    y = x * 1
    with rounding_points("function"), trace() as t:
        z = F.silu(y, inplace=True)
    assert z is y and same(y, rounded(F.silu(values(x)), BF16))
    assert t.count() == {"silu": 1}
    z.sum().backward()
    wanted = torch.autograd.grad(F.silu(p := values(x).requires_grad_()).sum(), p)[0]
    assert same(x.grad, rounded(wanted, E5M2))


@pytest.mark.parametrize("out", [torch.empty(S).to_lp(E5M2), torch.empty(S)], ids=["another format", "plain"])  # type: ignore[attr-defined]
def test_out_is_written_once_in_its_own_format(out: Tensor) -> None:
    x = plain_operands((S,))[0].detach().to_lp(BF16)  # type: ignore[attr-defined]
    with rounding_points("function"):
        assert torch.softmax(x, -1, out=out) is out
    wanted = torch.softmax(values(x), -1)
    assert same(out, rounded(wanted, E5M2) if isinstance(out, LPTensor) else wanted)


@pytest.mark.parametrize("buffers", [False, True])
@pytest.mark.parametrize("kind", ["batch_norm", "instance_norm"])
def test_running_statistics_are_right(kind: str, buffers: bool) -> None:
    function = getattr(F, kind)
    x = plain_operands((S,))[0].detach()
    mean, var = torch.zeros(4), torch.ones(4)
    y = function(x, mean, var, None, None, True)
    m, v = (b.to_lp(BF16) if buffers else b for b in (torch.zeros(4), torch.ones(4)))  # type: ignore[attr-defined]
    with rounding_points("function"), trace() as t:
        z = function(x.to_lp(BF16), m, v, None, None, True)  # type: ignore[attr-defined]
    assert same(z, rounded(y, BF16))
    for mine, theirs in ((m, mean), (v, var)):
        assert type(mine) is (LPTensor if buffers else Tensor)
        assert same(mine, rounded(theirs, BF16) if buffers else theirs)
    assert t.count()[kind] == 1 + 2 * buffers


def test_statistics_that_are_only_read_are_not_rounded() -> None:
    mean, var = (b.to_lp(BF16) for b in (torch.zeros(4), torch.ones(4)))  # type: ignore[attr-defined]
    x = plain_operands((S,))[0].detach().to_lp(BF16)  # type: ignore[attr-defined]
    with rounding_points("function"), trace() as t:
        F.batch_norm(x, mean, var)
    assert t.count().total() == 1


def test_operands_are_rounded_also_where_functions_round_once() -> None:
    narrow = Arithmetic(BF16, operands=Gemm(E4M3))
    x, w = (t.detach() for t in plain_operands(((3, 5), (4, 5))))
    with rounding_points("function"):
        got = F.linear(x.to_lp(narrow), w.to_lp(narrow))  # type: ignore[attr-defined]
    assert same(got, rounded(rounded(x, E4M3) @ rounded(w, E4M3).T, BF16))


@pytest.mark.parametrize("correction", [None, 0, 1, 2])
def test_a_variance_by_primitives_has_the_divisor_of_torch(correction: int | None) -> None:
    x = plain_operands(((3, 5),))[0].detach()
    with rounding_points("primitive"):
        low = x.to_lp(BF16).var(1, correction=correction)  # type: ignore[attr-defined]
    torch.testing.assert_close(values(low), x.var(1, correction=correction), rtol=2.0**-6, atol=0)


def test_a_plain_parameter_gets_a_rounded_gradient() -> None:
    x = lowered(plain_operands(((3, 5),)))[0].detach()
    w = torch.randn(4, 5, requires_grad=True)
    with rounding_points("function"):
        z = F.linear(x, w)
    assert same(z, rounded(F.linear(values(x), w.detach()), BF16))
    z.backward(torch.ones(3, 4).to_lp(E5M2))  # type: ignore[attr-defined]
    assert same(w.grad, rounded(torch.ones(3, 4).t() @ values(x), E5M2))


def test_a_write_after_the_function_leaves_its_gradient_right() -> None:
    x, w = lowered(plain_operands(((3, 5), (4, 5))))
    inner = x * 1
    with rounding_points("function"):
        z = F.linear(inner, w)
    before = values(inner).clone()
    with torch.no_grad():
        inner.zero_()
    z.backward(torch.ones(3, 4).to_lp(E5M2))  # type: ignore[attr-defined]
    assert same(w.grad, rounded(torch.ones(3, 4).t() @ before, E5M2))


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax, F.softmin])
def test_a_named_dtype_leaves_and_its_gradient_is_rounded_once(function: Callable[..., Tensor]) -> None:
    plain, seed = plain_operands((S,))[0], torch.randn(S, dtype=torch.float64)
    x = lowered([plain])[0]
    with rounding_points("function"):
        y = function(x, -1, dtype=torch.float64)
    y.backward(seed)
    reference = values(x).clone().requires_grad_()
    wanted = function(reference, -1, dtype=torch.float64)
    wanted.backward(seed)
    assert type(y) is Tensor and torch.equal(y, wanted)
    assert is_low(x.grad, E5M2) and same(x.grad, rounded(reference.grad, E5M2))


def test_double_backward() -> None:
    x = lowered(plain_operands((S,)))[0]
    with rounding_points("function"):
        (grad,) = torch.autograd.grad(F.softplus(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(grad.sum(), x)
    s = torch.sigmoid(values(x))
    torch.testing.assert_close(values(second), s * (1 - s), rtol=0.2, atol=0.01)
    assert is_low(second, E5M2)


def bf16(x: Tensor) -> Tensor:
    return x.bfloat16().float()


def test_softmax_by_primitives() -> None:
    x = plain_operands((S,))[0].detach()
    shifted = bf16(x - x.amax(-1, keepdim=True))
    e = bf16(shifted.exp())
    wanted = bf16(e / bf16(e.sum(-1, keepdim=True)))
    low = x.to_lp(BF16).requires_grad_()  # type: ignore[attr-defined]
    seed = bf16(torch.randn(S))
    with rounding_points("primitive"), trace() as t:
        y = F.softmax(low, -1)
        y.backward(seed.to_lp(BF16))  # type: ignore[attr-defined]
    assert same(y, wanted)
    assert not same(y, bf16(F.softmax(x, -1)))
    assert shown(t, False) == ["sub.Tensor", "exp", "sum.dim_IntList", "div.Tensor", "to_lp"]
    product = bf16(seed * wanted)
    assert same(low.grad, bf16(product - bf16(wanted * bf16(product.sum(-1, keepdim=True)))))
    assert shown(t, True) == ["mul.Tensor", "sum.dim_IntList", "mul.Tensor", "sub.Tensor"]


def test_layer_norm_by_primitives() -> None:
    x, w, b = (p.detach() for p in plain_operands((S, (6,), (6,))))
    mean = bf16(bf16(x.sum(-1, keepdim=True)) / 6)
    deviation = bf16(x - mean)
    variance = bf16(bf16(bf16(deviation * deviation).sum(-1, keepdim=True)) / 6)
    scale = bf16(bf16(variance + 1e-5).rsqrt())
    wanted = bf16(bf16(bf16(deviation * scale) * w) + b)
    with rounding_points("primitive"), trace() as t:
        y = F.layer_norm(*(p.to_lp(BF16) if p is x else (6,) for p in (x, w)), w.to_lp(BF16), b.to_lp(BF16))  # type: ignore[attr-defined]
    assert same(y, wanted)
    # mean: 2; variance: difference, square, sum, quotient; mean again; eps, root, difference, product, weight, bias
    assert t.count().total() == 3 + 2 + 4 + 2 + 6


def test_activations_and_losses_by_primitives() -> None:
    x, target = (p.detach() for p in plain_operands((S, S)))
    low, low_target = x.to_lp(BF16), target.to_lp(BF16)  # type: ignore[attr-defined]
    with rounding_points("primitive"):
        silu, loss, mean = F.silu(low), F.mse_loss(low, low_target), low.mean()
        tanh, gate = torch.tanh(low), low.clone().sigmoid_()
    sigmoid = bf16(1 / bf16(1 + bf16((-x).exp())))
    assert same(silu, bf16(x * sigmoid))
    assert same(loss, bf16(bf16(bf16(bf16(x - target).square()).sum()) / x.numel()))
    assert same(mean, bf16(bf16(x.sum()) / x.numel()))
    assert same(tanh, bf16(x.tanh()))  # an elementary function is a primitive
    assert same(gate, sigmoid)


def test_norms_by_primitives() -> None:
    x, target = (p.detach() for p in plain_operands((S, S)))
    low, low_target = x.to_lp(BF16), target.to_lp(BF16)  # type: ignore[attr-defined]
    with rounding_points("primitive"):
        distance, norm = F.pairwise_distance(low, low_target, eps=0.5), low.norm(dim=-1)
        counts = [low.norm(0), torch.linalg.vector_norm(low, ord=0), torch.dist(low, low_target, p=0)]
    apart = bf16(bf16(x - target) + 0.5)
    assert same(distance, bf16(bf16(bf16(apart.square()).sum(-1)).sqrt()))
    assert same(norm, bf16(bf16(bf16(x.square()).sum(-1)).sqrt()))
    assert all(is_low(count, BF16) and count.item() == x.numel() for count in counts)


def test_products_are_primitives() -> None:
    x, w, b = lowered(plain_operands(((3, 5), (4, 5), (4,))))
    with trace() as aten:
        wanted = F.linear(x, w, b)
    with rounding_points("primitive"), trace() as t:
        y = F.linear(x, w, b)
    assert same(y, wanted) and t.count() == aten.count() == {"addmm": 1}


@pytest.mark.parametrize("name", ["function", "primitive"])
def test_inference_mode_rounds_the_same(name: str) -> None:
    x = lowered(plain_operands((S,)))[0]
    results, counts = [], []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode(), rounding_points(name), trace() as t:
            results.append(F.softmax(F.layer_norm(x, (6,)), -1))
        counts.append(t.count())
    assert same(*results) and counts[0] == counts[1]


@pytest.mark.parametrize("name", CONTRACTS)
def test_the_inner_of_two_contexts_wins(name: str) -> None:
    x = lowered(plain_operands(((2, 2, 4, 6),)))[0]

    def count() -> int:
        with trace() as t:
            F.scaled_dot_product_attention(x, x, x) + F.cosine_similarity(x, x).sum() + F.softmax(x, -1)
        return t.count().total()

    alone = {}
    for inner in CONTRACTS:
        with rounding_points(inner):
            alone[inner] = count()
    assert len(set(alone.values())) == 3
    with rounding_points(name):
        for inner in CONTRACTS:
            with rounding_points(inner):
                assert count() == alone[inner]
            assert count() == alone[name]
    assert count() == alone["aten"]


@pytest.mark.parametrize("name", ["function", "primitive"])
def test_a_context_ends_with_an_error(name: str) -> None:
    x = lowered(plain_operands((S,)))[0]
    with pytest.raises(RuntimeError), rounding_points(name):
        F.linear(x, x)
    with trace() as t:
        F.softmax(x, -1)
    assert shown(t, False) == ["_softmax"]


def test_one_context_can_be_entered_again() -> None:
    points = rounding_points("function")
    x = lowered(plain_operands((S,)))[0]
    with points, points, trace() as t:
        F.rms_norm(x, (6,))
    with points:
        pass
    F.rms_norm(x, (6,))
    assert shown(t, False) == ["rms_norm"]


def test_before_a_function_it_holds_for_each_of_its_calls() -> None:
    @rounding_points("function")
    def norm(x: Tensor, deeper: int = 0) -> Tensor:
        """Of rows."""
        return norm(x, deeper - 1) if deeper else F.rms_norm(x, (6,))

    x = lowered(plain_operands((S,)))[0]
    with trace() as t:
        norm(x, deeper=1)
        F.softmax(x, -1)
        norm(x)
    assert (norm.__name__, norm.__doc__) == ("norm", "Of rows.")
    assert shown(t, False) == ["rms_norm", "_softmax", "rms_norm"]


async def later() -> None: ...


def piece_by_piece() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    "given", [later, piece_by_piece, nn.Linear, 3], ids=["coroutine", "generator", "class", "number"]
)
def test_before_what_computes_after_it_has_returned_it_is_refused(given: Any) -> None:
    with pytest.raises(TypeError, match="before a function that has computed all when it returns"):
        rounding_points("function")(given)


def test_other_threads_keep_their_contract() -> None:
    x = lowered(plain_operands((S,)))[0]
    counts: list[Any] = []

    def work() -> None:
        with trace() as t:
            F.softmax(x, -1)
        counts.append(t.count())

    with rounding_points("primitive"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert counts == [{"_softmax": 1}]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", CONTRACTS)
def test_a_checkpoint_recomputes_by_the_same_contract(name: str, reentrant: bool) -> None:
    def block(x: Tensor) -> Tensor:
        return F.softmax(F.rms_norm(x, (6,)), -1)

    grads, seed = [], rounded(torch.randn(S), E5M2)
    for run in (block, lambda x: checkpoint(block, x, use_reentrant=reentrant)):
        x = lowered(plain_operands((S,)))[0]
        with rounding_points(name):
            run(x).mul(seed).sum().backward()
        grads.append(x.grad)
    assert same(*grads)


def test_a_function_that_is_entered_keeps_its_defaults() -> None:
    def add(a: int, b: int = 2, *, c: int = 3) -> int:
        return a + b + c

    assert _inside(add)(1) == add(1)


def test_an_unknown_contract_is_refused() -> None:
    with pytest.raises(ValueError, match="'aten', 'function', 'primitive', got 'op'"):
        rounding_points("op")


def test_the_documented_counts_are_the_counts() -> None:
    text = DOCS.read_text(encoding="utf-8")
    version = ".".join(torch.__version__.split(".")[:2])
    if f"with PyTorch {version}:" in text:  # what the formulas of other versions count, nobody wrote down
        assert table() in text
    # The third contract owes nothing to a version: one, and one for each operand; what selects keeps.
    for name in CASES.keys() - {"relu", "max_pool2d"}:
        assert roundings(name, "function") == (1, len(CASES[name][1]))


def test_a_bag_that_renorms_its_weights_leaves_them_in_their_format() -> None:
    for given in ({"max_norm": 1.0}, {}):
        w = torch.full((3, 2), 3.0).to_lp(E4M3)
        with lptensor.rounding_points("function"):
            args = (torch.tensor([[0, 1]]), w) if given else (torch.tensor([[0, 1]]), w, None, 1.0)
            F.embedding_bag(*args, **given)
        assert w.tolist() == [[0.6875, 0.6875], [0.6875, 0.6875], [3.0, 3.0]]  # sqrt(1/2) in E4M3


def test_forward_mode_is_refused_where_functions_round_once() -> None:
    with torch.autograd.forward_ad.dual_level(), lptensor.rounding_points("function"):
        x = torch.autograd.forward_ad.make_dual(torch.ones(3).to_lp(E4M3), torch.ones(3).to_lp(E4M3))
        with pytest.raises(NotImplementedError, match="forward-mode AD, where softmax"):
            torch.softmax(x, -1)


def test_an_export_is_refused_where_functions_round_once() -> None:
    model = lptensor.convert(torch.nn.Linear(4, 4), E4M3).eval()
    with lptensor.rounding_points("function"), pytest.raises(NotImplementedError, match="torch.export, where linear"):
        torch.export.export(model, (torch.randn(2, 4),))
