"""The public functions over gemm: shapes, gradients, convolutions."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

import lptensor as lp
from lptensor.accumulator import Accumulator, integer_accumulator, tensor_core
from lptensor.formats import BF16, FP16, FP32, FixedPoint, FloatingPoint
from lptensor.gemm import gemm

BITS = {torch.float32: torch.int32, torch.float64: torch.int64}
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


def test_gradients_are_added_up_by_the_same_accumulator() -> None:
    a, b, c = (torch.randn(s, requires_grad=True) for s in ((3, 20), (20, 4), (4,)))
    acc, grad = Accumulator(BF16), torch.randn(3, 4)
    got = torch.autograd.grad(lp.matmul(a, b, acc, c), (a, b, c), grad)
    assert torch.equal(got[0], gemm(grad, b.mT, acc))
    assert torch.equal(got[1], gemm(a.mT, grad, acc))
    assert torch.equal(got[2], grad.sum(0))


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
    with pytest.raises(ValueError, match="expected one number or 1"):
        lp.conv(torch.ones(1, 1, 5), torch.ones(1, 1, 2), acc, stride=(1, 1))


def test_accumulators_travel() -> None:
    for acc in (Accumulator(FP16, chunk=4, inner=FP32), tensor_core(), integer_accumulator(16)):
        for copied in (copy.deepcopy(acc), pickle.loads(pickle.dumps(acc))):
            assert copied == acc and hash(copied) == hash(acc)
    assert eval(repr(Accumulator(FP16, chunk=4, rounding="up"))) == Accumulator(FP16, chunk=4, rounding="up")
