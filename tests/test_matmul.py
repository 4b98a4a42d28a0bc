"""The public functions over gemm: shapes, gradients, convolutions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import lptensor as lp
from lptensor import matmul
from lptensor.accumulator import Accumulator
from lptensor.formats import BF16, FP16, FP32, FixedPoint, FloatingPoint
from lptensor.gemm import gemm
from lptensor.hardware_sums import integer_accumulator, tensor_core

WIDE = Accumulator(FixedPoint(50, 20))  # exact on small integers


def integers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(-5, 6, shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize(
    ("left", "right"),
    [((4,), (4,)), ((4,), (4, 3)), ((2, 4), (4,)), ((2, 4), (4, 3)), ((5, 2, 4), (4,)), ((4,), (5, 4, 3)),
     ((5, 1, 2, 4), (6, 4, 3))],
)  # fmt: skip
def test_shapes_are_those_of_torch(left: Any, right: Any) -> None:
    a, b = integers(*left).requires_grad_(), integers(*right, seed=1).requires_grad_()
    wanted = torch.matmul(a, b)
    got = lp.matmul(a, b, WIDE)
    assert got.shape == wanted.shape and torch.equal(got, wanted)
    grad = integers(*wanted.shape, seed=2)
    for mine, theirs in zip(
        torch.autograd.grad(got, (a, b), grad), torch.autograd.grad(wanted, (a, b), grad), strict=True
    ):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize(
    "acc", [Accumulator(BF16), Accumulator(FloatingPoint(5, 4), chunk=2, inner=FloatingPoint(5, 2))]
)
def test_gradients_are_added_up_by_the_same_accumulator(acc: Accumulator) -> None:
    a, b, c = (torch.randn(s, requires_grad=True) for s in ((3, 20), (20, 4), (4,)))
    grad = torch.randn(3, 4)
    got = torch.autograd.grad(lp.matmul(a, b, acc, c), (a, b, c), grad)
    assert torch.equal(got[0], gemm(grad, b.mT, acc))
    assert torch.equal(got[1], gemm(a.mT, grad, acc))
    assert torch.equal(got[2], grad.sum(0))


SAMPLES: dict[str, tuple[Any, list[tuple[int, ...]], tuple[int | None, ...]]] = {
    "left": (lp.matmul, [(5, 3, 40), (40, 2)], (0, None)),
    "right": (lp.matmul, [(3, 40), (40, 5, 2)], (None, 1)),
    "both": (lp.matmul, [(3, 40, 5), (40, 5, 2)], (2, 1)),
    "of a batch": (lp.matmul, [(3, 5, 2, 40), (40, 5, 2)], (1, 1)),
    "vectors": (lp.matmul, [(5, 40), (40, 5)], (0, 1)),
    "addend": (lambda a, b, acc, c: lp.matmul(a, b, acc, c), [(3, 40), (40, 2), (2, 5)], (None, None, 1)),
    "sum": (lambda x, acc: lp.sum(x, accumulator=acc), [(3, 5, 40)], (1,)),
    "sum of an axis": (lambda x, acc: lp.sum(x, 0, accumulator=acc), [(40, 5, 3)], (1,)),
    "sum of the last": (lambda x, acc: lp.sum(x, -1, True, accumulator=acc), [(3, 40, 5)], (2,)),
    "sum of numbers": (lambda x, acc: lp.sum(x, 0, accumulator=acc), [(5,)], (0,)),
}


def _with(run: Any, acc: Accumulator) -> Any:
    return lambda *tensors: run(*tensors[:2], acc, *tensors[2:])


@pytest.mark.parametrize("name", SAMPLES)
def test_samples_of_a_vmap_and_their_gradients_are_those_of_each(name: str) -> None:
    run, shapes, axes = SAMPLES[name]
    f, tensors = _with(run, Accumulator(FloatingPoint(5, 4))), [torch.randn(s) for s in shapes]
    mapped = torch.stack(
        [f(*(t if d is None else t.select(d, i) for t, d in zip(tensors, axes, strict=True))) for i in range(5)]
    )
    assert torch.equal(torch.func.vmap(f, axes)(*tensors), mapped)
    of_first = torch.func.grad(lambda *ts: f(*ts).square().sum())
    each = [
        of_first(*(t if d is None else t.select(d, i) for t, d in zip(tensors, axes, strict=True))) for i in range(5)
    ]
    assert torch.equal(torch.func.vmap(of_first, axes)(*tensors), torch.stack(each))


def test_tangents_are_products_and_sums_too() -> None:
    acc = Accumulator(BF16)
    a, b, c, of_a, of_b, of_c = (torch.randn(s) for s in [(3, 40), (40, 2), (2,)] * 2)
    _, tangent = torch.func.jvp(lambda a, b, c: lp.matmul(a, b, acc, c), (a, b, c), (of_a, of_b, of_c))
    assert torch.equal(tangent, gemm(of_a, b, acc) + gemm(a, of_b, acc) + of_c)
    _, tangent = torch.func.jvp(lambda b: lp.matmul(a, b, acc), (b,), (of_b,))
    assert torch.equal(tangent, gemm(a, of_b, acc))
    _, tangent = torch.func.jvp(lambda c: lp.matmul(a, b, acc, c), (c,), (of_c,))
    assert torch.equal(tangent, of_c.expand(3, 2))
    _, tangent = torch.func.jvp(lambda a: lp.sum(a, 1, accumulator=acc), (a,), (of_a,))
    assert torch.equal(tangent, lp.sum(of_a, 1, accumulator=acc))


def test_a_vmap_that_draws_has_to_say_that_samples_differ() -> None:
    acc, x = Accumulator(BF16, rounding="stochastic"), torch.rand(5, 3, 40)
    for f in (lambda x: lp.matmul(x, x.mT, acc), lambda x: lp.sum(x, accumulator=acc)):
        assert len(torch.func.vmap(f, randomness="different")(x)) == 5
        for randomness in ("error", "same"):
            with pytest.raises(RuntimeError, match='randomness="different"'):
                torch.func.vmap(f, randomness=randomness)(x)


def test_sums_have_derivatives_of_all_orders() -> None:
    fine = Accumulator(FixedPoint(51, 42))
    a, b, c = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 1, 3, 4), (5, 4, 2), (2,)))
    for f in (lambda *t: lp.matmul(*t[:2], fine, t[2]), lambda *t: lp.sum(t[0], (1, -1), accumulator=fine)):
        assert torch.autograd.gradcheck(f, (a, b, c)) and torch.autograd.gradgradcheck(f, (a, b, c))


def test_float64_stays_float64() -> None:
    x = torch.full((3, 3), 1 + 2.0**-40, dtype=torch.float64)
    wide = Accumulator(FixedPoint(52, 45))
    assert lp.matmul(x, x, wide).dtype == torch.float64
    assert lp.sum(x, 0, accumulator=wide).tolist() == [3 + 3 * 2.0**-40] * 3


@pytest.mark.parametrize("dim", [None, 0, -1, (0, 2)])
@pytest.mark.parametrize("keepdim", [True, False])
def test_sum_has_the_shapes_and_gradients_of_torch(dim: Any, keepdim: bool) -> None:
    x = integers(3, 4, 5).requires_grad_()
    got, wanted = lp.sum(x, dim, keepdim, accumulator=WIDE), x.sum(dim, keepdim)
    assert torch.equal(got, wanted)
    (mine,), (theirs,) = (torch.autograd.grad(t.square().sum(), x) for t in (got, wanted))
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("axes", [1, 2, 3])
@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), [(1, 0, 1, 1), (2, 1, 1, 2), (1, 2, 2, 1)])
def test_a_convolution_is_that_of_torch(axes: int, stride: int, padding: int, dilation: int, groups: int) -> None:
    x = integers(2, 4, *range(7, 7 + axes)).requires_grad_()
    w = integers(6, 4 // groups, *(3, 2, 3)[:axes], seed=1).requires_grad_()
    bias = integers(6, seed=2)
    torch_conv = (torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d)[axes - 1]
    wanted = torch_conv(x, w, bias, stride, padding, dilation, groups)
    got = lp.conv(x, w, WIDE, bias, stride, padding, dilation, groups)
    assert torch.equal(got, wanted)
    for mine, theirs in zip(
        torch.autograd.grad(got.square().sum(), (x, w)),
        torch.autograd.grad(wanted.square().sum(), (x, w)),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_a_convolution_is_unfold_and_matmul_bit_for_bit() -> None:
    x, w = torch.randn(2, 3, 9, 8), torch.randn(5, 3, 3, 2)
    for acc in (Accumulator(BF16), Accumulator(FloatingPoint(6, 9), chunk=4), tensor_core()):
        columns = torch.nn.functional.unfold(x, (3, 2), dilation=(2, 1), padding=(1, 0), stride=(1, 2))
        wanted = lp.matmul(w.flatten(1), columns, acc)
        got = lp.conv(x, w, acc, stride=(1, 2), padding=(1, 0), dilation=(2, 1))
        assert torch.equal(got.flatten(2).view(torch.int32), wanted.view(torch.int32))


def test_what_does_not_fit_is_refused() -> None:
    acc = Accumulator(BF16)
    with pytest.raises(ValueError, match="got a scalar; multiply it instead"):
        lp.matmul(torch.tensor(1.0), torch.ones(2), acc)
    with pytest.raises(ValueError, match="a kernel of 4 with dilation 1 reaches over 4"):
        lp.conv(torch.ones(1, 1, 3), torch.ones(1, 1, 4), acc)
    with pytest.raises(ValueError, match="2 groups need w"):
        lp.conv(torch.ones(1, 3, 5), torch.ones(2, 1, 2), acc, groups=2)
    with pytest.raises(ValueError, match="stride takes one number of 1 or more, or one for each axis .1.,"):
        lp.conv(torch.ones(1, 1, 5), torch.ones(1, 1, 2), acc, stride=(1, 1))
    with pytest.raises(ValueError, match="dilation takes one number of 1 or more"):
        lp.conv(torch.ones(1, 1, 5), torch.ones(1, 1, 2), acc, dilation=0)
    with pytest.raises(ValueError, match="2 groups need w of .a multiple of 2"):
        lp.conv(torch.ones(1, 4, 5), torch.ones(3, 2, 2), acc, groups=2)
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        lp.sum([1.0], accumulator=acc)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups must be"):
        lp.conv(torch.ones(1, 1, 5), torch.ones(1, 1, 2), acc, groups=0)
    with pytest.raises(ValueError, match="1 to 3 axes"):
        lp.conv(torch.ones(1, 1, 2, 2, 2, 2), torch.ones(1, 1, 2, 2, 2, 2), acc)
    with pytest.raises(ValueError, match="one number for each of 2 output channels"):
        lp.conv(torch.ones(1, 1, 5), torch.ones(2, 1, 2), acc, torch.ones(3))
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        lp.matmul([1.0], torch.ones(1), acc)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="expected a tensor, got list"):
        lp.conv(torch.ones(1, 1, 5), torch.ones(1, 1, 2), acc, [1.0])  # type: ignore[arg-type]


@pytest.mark.parametrize(("batch", "channels"), [(0, 2), (3, 0), (0, 0)])
def test_a_convolution_of_nothing_is_empty(batch: int, channels: int) -> None:
    x, w = torch.ones(batch, 1, 4, 4).requires_grad_(), torch.ones(channels, 1, 3, 3).requires_grad_()
    y = lp.conv(x, w, Accumulator(BF16), torch.ones(channels))
    y.sum().backward()
    assert y.shape == (batch, channels, 2, 2)
    assert x.grad is not None and w.grad is not None and not x.grad.any() and not w.grad.any()


def test_accumulators_travel() -> None:
    for acc in (Accumulator(FP16, chunk=4, inner=FP32), tensor_core(), integer_accumulator(16)):
        for copied in (copy.deepcopy(acc), pickle.loads(pickle.dumps(acc))):
            assert copied == acc and hash(copied) == hash(acc)
    assert eval(repr(Accumulator(FP16, chunk=4, rounding="up"))) == Accumulator(FP16, chunk=4, rounding="up")


@pytest.mark.parametrize(("a", "b"), [((2,), (2, 3)), ((3, 2), (2,)), ((2,), (2,))], ids=str)
def test_an_addend_of_no_axes_starts_every_sum(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    x, y = torch.ones(a), torch.ones(b)
    assert torch.equal(matmul(x, y, Accumulator(BF16), torch.tensor(4.0)), x @ y + 4)


def test_an_addend_is_not_blamed_for_operands_that_do_not_go_together() -> None:
    with pytest.raises(ValueError, match="leading axes must broadcast"):
        matmul(torch.ones(2, 1, 1), torch.ones(3, 1, 1), Accumulator(BF16), torch.ones(5, 5))


def test_a_tensor_of_zeros_without_memory_is_a_tensor_of_zeros() -> None:
    none, acc = torch._efficientzerotensor(4, 4), Accumulator(BF16)
    assert not matmul(none, torch.ones(4, 4), accumulator=acc).any()
    assert torch.equal(matmul(torch.zeros(4, 4), torch.ones(4, 4), acc, none), torch.zeros(4, 4))
    assert lp.sum(none, accumulator=acc) == 0


def test_the_tangent_of_one_operand_meets_nothing_of_the_other() -> None:
    # where the other has none, no products with zero are formed: of an infinity they would be NaN
    a, b, acc = torch.tensor([[torch.inf]]), torch.tensor([[2.0]]), Accumulator(BF16)
    for of_a, of_b, tangent in ((torch.ones(1, 1), None, 2.0), (None, torch.ones(1, 1), torch.inf)):
        with torch.autograd.forward_ad.dual_level():
            x, y = (t if d is None else torch.autograd.forward_ad.make_dual(t, d) for t, d in ((a, of_a), (b, of_b)))
            assert torch.autograd.forward_ad.unpack_dual(matmul(x, y, acc)).tangent.item() == tangent


def test_an_addend_is_a_number_of_each_row_beside_a_vector() -> None:
    x, y, c = torch.ones(3, 2), torch.ones(2), torch.arange(3.0)
    assert matmul(x, y, Accumulator(BF16), c).tolist() == [2, 3, 4]
    assert matmul(y, x.mT, Accumulator(BF16), c).tolist() == [2, 3, 4]
    assert matmul(torch.ones(1, 2), y, Accumulator(BF16)).shape == (1,)
    assert matmul(torch.ones(1, 1, 2), y, Accumulator(BF16)).shape == (1, 1)


def test_samples_of_a_vmap_that_are_numbers_are_summed_alone() -> None:
    x, acc = torch.arange(5.0), Accumulator(BF16)
    assert torch.equal(torch.vmap(lambda t: lp.sum(t, accumulator=acc))(x), x)
    assert torch.equal(torch.vmap(lambda t: lp.sum(t, 0, True, accumulator=acc))(x), x)


def test_samples_of_a_vmap_draw_from_the_generator_that_is_given() -> None:
    acc, x, g = Accumulator(BF16, rounding="stochastic"), torch.rand(5, 3, 40), torch.Generator()
    for f in (lambda x: matmul(x, x.mT, acc, generator=g), lambda x: lp.sum(x, accumulator=acc, generator=g)):
        before, made = torch.get_rng_state(), []
        for seed in (1, 1, 2):
            g.manual_seed(seed)
            made.append(torch.func.vmap(f, randomness="different")(x))
        assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
        assert torch.equal(torch.get_rng_state(), before)
