"""Where an LPTensor rounds, in what format, and what it refuses."""

from __future__ import annotations

import contextlib
import operator
import re
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lptensor
from low import is_low, rounded, same, values
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    FP32,
    INT8,
    NVFP4,
    Accumulator,
    Arithmetic,
    BlockFloatingPoint,
    FixedPoint,
    FloatingPoint,
    Gemm,
    LPTensor,
    Posit,
    escapes,
)


def low(*shape: int, format: Any = BF16) -> LPTensor:
    made: LPTensor = torch.randn(*shape).to_lp(format)  # type: ignore[attr-defined]
    return made


# -- in and out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", [BF16, FP16, E5M2, E4M3])
def test_to_lp_rounds_and_dequantize_gives_the_values(format: Any) -> None:
    x = torch.randn(100) * 10
    y = x.to_lp(format)
    assert is_low(y, format) and type(y.dequantize()) is Tensor
    assert torch.equal(y.dequantize(), rounded(x, format))


def test_float64_is_rounded_once_not_through_fp32() -> None:
    x = torch.tensor([1 + 2**-9 + 2**-30], dtype=torch.float64)  # just above a midpoint
    fine = FloatingPoint(8, 8)
    assert x.to_lp(fine).item() == 1 + 2**-8
    assert x.float().to_lp(fine).item() == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wide", [FixedPoint(32, 16), Arithmetic(E4M3, backward=FixedPoint(32, 16)), Posit(32, 2)])
def test_a_format_wider_than_the_carrier_is_refused_whatever_enters(dtype: torch.dtype, wide: Any) -> None:
    with pytest.raises(ValueError, match="holds its values in float32"):
        torch.ones(2, dtype=dtype).to_lp(wide)


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz]
)
def test_narrow_dtypes_enter_with_their_exact_values(dtype: torch.dtype) -> None:
    x = torch.randn(50).to(dtype)
    assert torch.equal(values(x.to_lp(FP32)), x.float())


def test_recasting_rounds_anew() -> None:
    x = low(100)
    assert same(x.to_lp(E5M2), rounded(values(x), E5M2)) and x.to_lp(E5M2).format == E5M2


def test_recasting_to_its_own_arithmetic_is_the_tensor_itself() -> None:
    x = low(3)
    assert x.to_lp(BF16) is x


@pytest.mark.parametrize("bad", [torch.ones(2, dtype=torch.int64), torch.ones(2, dtype=torch.complex64)])
def test_integer_and_complex_tensors_are_refused(bad: Tensor) -> None:
    with pytest.raises(TypeError, match=str(bad.dtype)):
        bad.to_lp(BF16)


def test_sparse_tensors_are_refused() -> None:
    with pytest.raises(TypeError, match="to_dense"):
        torch.eye(2).to_sparse().to_lp(BF16)


@pytest.mark.filterwarnings("ignore:.*nested tensors")
def test_nested_tensors_of_low_ones_are_refused_with_the_way_out() -> None:
    x = low(2, 3)
    for make in (lambda: torch.nested.as_nested_tensor([x, x]), lambda: torch.nested.as_nested_tensor(x)):
        with pytest.raises(NotImplementedError, match="nested tensor.*dequantize"):
            make()


def test_what_is_no_format_is_refused() -> None:
    with pytest.raises(TypeError, match="'bf16'"):
        torch.ones(2).to_lp("bf16")


def test_an_unknown_rounding_is_refused() -> None:
    with pytest.raises(ValueError, match="'nerest'.*nearest"):
        torch.ones(2).to_lp(BF16, "nerest")


def test_it_cannot_be_subclassed() -> None:
    with pytest.raises(TypeError, match="subclass"):
        type("Mine", (LPTensor,), {})


# -- one rounding per op -----------------------------------------------------------------------------


def test_a_product_rounds_once_at_its_end() -> None:
    a, b = low(4, 64), low(64, 3)
    assert same(a @ b, rounded(values(a) @ values(b), BF16))


def test_a_chain_of_ops_rounds_at_every_op() -> None:
    x = low(1000)
    step = rounded(values(x) * values(x), BF16)
    assert same(x * x + x, rounded(step + values(x), BF16))
    assert not same(x * x + x, rounded(values(x) * values(x) + values(x), BF16))


def test_scalars_are_used_exactly() -> None:
    x = low(1000)
    assert same(x * 1.01, rounded(values(x) * 1.01, BF16))
    assert same(x.add(x, alpha=0.3), rounded(values(x).add(values(x), alpha=0.3), BF16))
    assert not same(x * 1.01, rounded(values(x) * rounded(torch.tensor(1.01), BF16), BF16))


def test_plain_operands_are_used_exactly_and_the_format_wins() -> None:
    x, plain = low(1000), torch.randn(1000)
    for result in (x * plain, plain * x):
        assert is_low(result, BF16) and same(result, rounded(values(x) * plain, BF16))


@pytest.mark.parametrize("weak", [2, True, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64), torch.arange(4)])
def test_numbers_and_integers_leave_the_format_alone(weak: Any) -> None:
    x = low(4)
    assert is_low(x * weak, BF16) and is_low(weak * x, BF16)


NUMBER = torch.tensor(0.3, dtype=torch.float64)
WITH_A_NUMBER: dict[str, Callable[[Any], Any]] = {
    "x * number": lambda x: x * NUMBER,
    "number - x": lambda x: NUMBER - x,
    "where": lambda x: torch.where(x > 1, x * 0, NUMBER),
    "clamp": lambda x: x.clamp(max=NUMBER),
    "lerp": lambda x: torch.lerp(x, x + 1, NUMBER),
    "addcmul": lambda x: torch.addcmul(x, x, NUMBER),
    "foreach": lambda x: torch._foreach_mul([x], NUMBER)[0],
}


@pytest.mark.parametrize("name", WITH_A_NUMBER)
def test_a_float64_number_is_weak_beside_an_lptensor_that_is_a_number_too(name: str) -> None:
    """Where torch would promote one fp32 number, an LPTensor of any shape computes the same."""
    op, x = WITH_A_NUMBER[name], torch.tensor(1.3).to_lp(BF16)  # type: ignore[attr-defined]
    y = op(x)
    assert is_low(y, BF16) and torch.equal(y.dequantize(), op(x.expand(2)).dequantize()[0])


def test_gradients_pass_a_float64_number() -> None:
    x = torch.tensor(1.3).to_lp(BF16).requires_grad_()  # type: ignore[attr-defined]
    (x * NUMBER).backward()
    assert is_low(x.grad, BF16) and x.grad.item() == torch.tensor(0.3).to(torch.bfloat16).item()


def test_a_float64_tensor_with_axes_is_not_weak() -> None:
    with pytest.raises(RuntimeError, match="gives a plain float64 tensor"):
        torch.tensor(1.3).to_lp(BF16) * NUMBER[None]  # type: ignore[attr-defined]


def test_nor_is_it_beside_a_float64_number() -> None:
    number, axes = torch.tensor(0.1, dtype=torch.float64), torch.full((3,), 0.1, dtype=torch.float64)
    with pytest.raises(RuntimeError, match="plain float64 tensor"):
        torch.addcmul(torch.tensor(2.0).to_lp(BF16), number, axes)  # type: ignore[attr-defined]


@pytest.mark.filterwarnings("ignore:Sparse CSR")
@pytest.mark.parametrize("compute", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layout", [torch.sparse_coo, torch.sparse_csr, torch.sparse_bsc], ids=str)
def test_another_layout_gives_a_plain_fp32_tensor_with_the_values(layout: torch.layout, compute: torch.dtype) -> None:
    x = torch.randn(4, 4).to_lp(Arithmetic(E4M3, compute=compute))  # type: ignore[attr-defined]
    y = x.to_sparse(layout=layout, blocksize=(2, 2) if layout is torch.sparse_bsc else None)
    assert type(y) is Tensor and y.dtype is torch.float32 and y.layout is layout
    assert torch.equal(y.to_dense(), x.dequantize())


def test_every_result_of_an_op_with_several_is_rounded() -> None:
    x = low(20, 30)
    for got, want in zip(torch.var_mean(x, dim=1), torch.var_mean(values(x), dim=1), strict=True):
        assert is_low(got, BF16) and same(got, rounded(want, BF16))


def test_saved_statistics_of_a_norm_are_not_rounded() -> None:
    x = low(6, 40)
    out, mean, rstd = torch.native_layer_norm(x, [40], None, None, 1e-5)
    want = torch.native_layer_norm(values(x), [40], None, None, 1e-5)
    assert same(out, rounded(want[0], BF16))
    assert type(mean) is Tensor and torch.equal(mean, want[1]) and torch.equal(rstd, want[2])


def test_what_batch_norm_and_log_sigmoid_save_is_not_rounded_either() -> None:
    x, mean, var = low(6, 4), torch.zeros(4).to_lp(BF16), torch.ones(4).to_lp(BF16)  # type: ignore[attr-defined]
    got = torch.native_batch_norm(x, None, None, mean, var, True, 0.1, 1e-5)
    want = torch.native_batch_norm(values(x), None, None, None, None, True, 0.1, 1e-5)
    _, buffer = torch.ops.aten.log_sigmoid_forward(x)
    for saved, exact in (
        (got[1], want[1]),
        (got[2], want[2]),
        (buffer, torch.ops.aten.log_sigmoid_forward(values(x))[1]),
    ):
        assert type(saved) is Tensor and torch.equal(saved, exact)


@pytest.mark.parametrize(
    "norm",
    [
        lambda x: F.layer_norm(x, (8,)),
        lambda x: F.group_norm(x, 2),
        lambda x: F.batch_norm(x, None, None, training=True),
    ],
)
def test_the_gradient_of_a_norm_uses_the_exact_statistics(norm: Callable[[Tensor], Tensor]) -> None:
    """With the forward format as fine as fp32 and a narrow backward one, gradients round an exact computation."""
    x = (torch.randn(6, 8) * 3 + 1).requires_grad_()
    seed = rounded(torch.randn(norm(x).shape), E5M2)
    norm(x).backward(seed)
    y = x.detach().to_lp(FP32, grad=E5M2).requires_grad_()
    norm(y).backward(seed.to_lp(y.arithmetic))
    assert same(y.grad, rounded(x.grad, E5M2))


def test_views_share_memory_and_keep_values() -> None:
    x = low(4, 6)
    view = x.t()[1:3]
    view.zero_()
    assert is_low(view, BF16) and (values(x)[:, 1:3] == 0).all() and view._base is not None
    assert torch._C._is_alias_of(view, x) and view.storage_offset() == 1  # compilers ask


@pytest.mark.parametrize(
    "select",
    [
        lambda x: F.unfold(x, 2),
        lambda x: torch.nn.utils.rnn.pack_padded_sequence(x[0], torch.tensor([4, 3, 1])).data,
        lambda x: x.clamp(x[:, :, :1], x[:, :, 1:2]),
        lambda x: x.index_put((torch.tensor([0]), torch.tensor([1])), x[:, 2]),
        lambda x: x.clone().index_put_((torch.tensor([0]), torch.tensor([1])), x[:, 2]),
        lambda x: x.clone().put_(torch.tensor([0, 40]), x[0, 1, 0, :2]),
    ],
    ids=["unfold", "pack_padded_sequence", "clamp by tensors", "index_put", "index_put_", "put_"],
)
def test_what_selects_values_keeps_them_and_draws_no_random_numbers(select: Any) -> None:
    x = (torch.randn(1, 4, 3, 5) * torch.logspace(-4, 4, 5)).to_lp(BlockFloatingPoint(8, dim=1), "stochastic")
    before = torch.get_rng_state()
    assert torch.equal(values(select(x)), select(values(x)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "select",
    [
        torch.relu,
        lambda x: x[:4],
        lambda x: F.hardtanh(x, -0.5, 0.5),
        lambda x: F.softshrink(x, 0.3),
        lambda x: F.threshold(x, 0.1, 0.2),
    ],
    ids=["relu", "a slice", "hardtanh", "softshrink", "threshold"],
)
def test_what_gradients_such_ops_let_through_draw_none_either(select: Callable[[Tensor], Tensor]) -> None:
    arithmetic = Arithmetic(BF16, backward=E5M2, backward_rounding="stochastic")
    x, y = (torch.randn(6).to_lp(arithmetic).requires_grad_() for _ in range(2))  # type: ignore[attr-defined]
    y.sum().backward()
    selected, before = select(x), torch.get_rng_state()
    selected.backward(y.grad[: len(selected)])
    assert torch.equal(torch.get_rng_state(), before) and is_low(x.grad, E5M2)


def test_views_and_copies_draw_no_random_numbers() -> None:
    x = torch.randn(4, 6).to_lp(E4M3, "stochastic")
    state = torch.get_rng_state()
    for keep in (
        lambda: x.t(),
        lambda: x.clone(),
        lambda: x.t().contiguous(),
        lambda: torch.cat([x, x]),
        lambda: x[[0, 2]],
        lambda: x.relu(),
        lambda: x.max(),
        lambda: x.sort(),
        lambda: x.detach(),
        lambda: torch.zeros_like(x),
        lambda: torch.empty_like(x).copy_(x),
        lambda: torch.empty_like(x).zero_(),
        lambda: torch.where(x > 0, x, x),
        lambda: x.masked_select(x > 0),
        lambda: F.pad(x, (1, 1)),
        lambda: F.max_pool1d(x, 2),
        lambda: x.dequantize(),
        lambda: x > 0,
        lambda: repr(x),
    ):
        keep()
        assert torch.equal(state, torch.get_rng_state())
    x * 1.1
    assert not torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    "fill",
    [
        lambda x: x.masked_fill(x > 0, 0.1),
        lambda x: x.clamp(min=0.1),
        lambda x: F.pad(x, (1, 1), value=0.1),
        lambda x: F.threshold(x, 0.0, 0.1),
        lambda x: F.hardtanh(x, -0.1, 0.1),
        lambda x: torch.full_like(x, 0.1),
        lambda x: x.clone().fill_(0.1),
        lambda x: x.clone().masked_fill_(x > 0, 0.1),
        lambda x: x.clone().clamp_(max=0.1),
        lambda x: x.index_fill(0, torch.tensor([0]), 0.1),
        lambda x: x.scatter(0, torch.zeros(1, 4, dtype=torch.int64), 0.1),
        lambda x: torch.cat([x, torch.full((1, 4), 0.1)]),
        lambda x: torch.where(x > 0, x, 0.1),
        lambda x: torch.where(x > 0, x, torch.full((4,), 0.1)),
        lambda x: torch.maximum(x, torch.full((4,), 0.1)),
        lambda x: x.nan_to_num(0.1) + 0 * x.clone().index_put_((torch.tensor(0),), torch.tensor(0.1)),
        lambda x: x.index_put((torch.tensor([0]),), x[1:2], accumulate=True),
        lambda x: x.clone().put_(torch.tensor([0]), x[1, :1], accumulate=True),
        lambda x: x.new_full((3,), 0.1),
        lambda x: torch.rand_like(x),
        lambda x: torch.ones_like(x) * 0.1,
        lambda x: x.clone().uniform_(),
        lambda x: x.clone().copy_(torch.full((4,), 0.1)),
    ],
)
def test_what_a_fill_value_or_plain_operand_brings_in_is_rounded(fill: Callable[[Tensor], Tensor]) -> None:
    assert is_low(fill(low(4, 4)), BF16)


INTEGERS = torch.tensor([257, 259, -515])  # BF16 has every second and every fourth number there
SOME = torch.tensor([True, False, True])
MIXED_WITH_INTEGERS: dict[str, Callable[[Tensor], Any]] = {
    "copy_": lambda x: x.clone().copy_(INTEGERS),
    "where": lambda x: torch.where(SOME, x, INTEGERS),
    "where, the other way": lambda x: torch.where(SOME, INTEGERS, x),
    "cat": lambda x: torch.cat([x, INTEGERS]),
    "maximum": lambda x: torch.maximum(x, INTEGERS),
    "clamp": lambda x: x.clamp(max=INTEGERS),
    "clamp by both": lambda x: x.clamp(INTEGERS, INTEGERS + 2),
    "masked_fill": lambda x: x.masked_fill(SOME, INTEGERS[0]),
    "index_fill": lambda x: x.index_fill(0, torch.tensor([1]), INTEGERS[0]),
    "select_scatter": lambda x: torch.select_scatter(x, INTEGERS[0], 0, 0),
}


@pytest.mark.parametrize("mix", MIXED_WITH_INTEGERS.values(), ids=MIXED_WITH_INTEGERS)
def test_integers_among_the_values_that_an_op_selects_are_rounded(mix: Callable[[Tensor], Any]) -> None:
    x = torch.tensor([1.0, 300.0, -3.0]).to_lp(BF16)
    assert is_low(mix(x), BF16) and same(mix(x), mix(x.dequantize().bfloat16()).float())


def test_bools_are_values_too() -> None:
    x = torch.zeros(2).to_lp(FixedPoint(8, 8))
    assert x.copy_(torch.tensor([True, False])).tolist() == [FixedPoint(8, 8).max, 0.0]


def test_nan_to_num_fills_in_the_limits_of_the_format() -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0])
    for format, dtype in ((BF16, torch.bfloat16), (E5M2, torch.float8_e5m2)):
        limits = torch.tensor([torch.finfo(dtype).max, torch.finfo(dtype).min, 0.0, 1.0])
        assert same(x.to_lp(format).nan_to_num(), limits) and same(x.to_lp(format).nan_to_num_(), limits)


def test_factories_from_a_tensor_keep_the_format() -> None:
    x = low(3)
    for made in (x.new_zeros(2), x.new_ones(2), torch.zeros_like(x), torch.empty_like(x), x.new_empty(2)):
        assert isinstance(made, LPTensor) and made.format == BF16


# -- writes ------------------------------------------------------------------------------------------


def test_in_place_takes_the_format_of_the_destination() -> None:
    a, b = low(100, format=E4M3), low(100)
    want = rounded(values(a) + values(b), E4M3)
    address = a.data_ptr()
    assert a.add_(b) is a and is_low(a, E4M3) and same(a, want) and a.data_ptr() == address


def test_a_plain_destination_stays_plain() -> None:
    x, plain = low(100), torch.randn(100)
    want = plain + values(x)
    assert plain.add_(x) is plain and type(plain) is Tensor and torch.equal(plain, want)
    plain[:50] = x[:50]
    assert type(plain) is Tensor and torch.equal(plain[:50], values(x)[:50])
    assert type(plain.copy_(x)) is Tensor


def test_assignment_rounds_into_the_tensor() -> None:
    x = low(10, format=E4M3)
    x[2] = 0.1
    x[3:5] = torch.full((2,), 0.3)
    x[values(x) > 5] = 1.7
    assert is_low(x, E4M3) and x[2].item() == rounded(torch.tensor(0.1), E4M3).item()


@pytest.mark.parametrize("target", [E4M3, BF16])
def test_out_takes_the_format_of_its_destination(target: Any) -> None:
    a, b = low(50), low(50)
    out = torch.zeros(50).to_lp(target)
    assert torch.mul(a, b, out=out) is out
    assert is_low(out, target) and same(out, rounded(values(a) * values(b), target))


def test_out_grows_an_empty_tensor() -> None:
    out = torch.empty(0).to_lp(BF16)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.add(low(3, 2), 1, out=out)
    assert out.shape == (3, 2) == values(out).shape and is_low(out, BF16)


def test_a_plain_out_stays_plain_and_exact() -> None:
    a, out = low(50), torch.empty(50)
    torch.exp(a, out=out)
    assert type(out) is Tensor and torch.equal(out, values(a).exp())


def test_shape_changes_in_place_reach_the_wrapper() -> None:
    x = low(1, 6)
    x.squeeze_(0)
    assert x.shape == values(x).shape == (6,)
    x.resize_(2, 3).t_()
    assert x.shape == values(x).shape == (3, 2) and x.stride() == values(x).stride()


def test_and_views_from_before_are_known_to_share_the_memory() -> None:
    x = low(4, 6)
    view = x[1:3]
    x.t_().unsqueeze_(0)
    view.zero_()
    assert torch._C._is_alias_of(view, x) and (values(x)[0, :, 1:3] == 0).all()


# -- formats that meet -------------------------------------------------------------------------------

BLOCKS = BlockFloatingPoint(8)


@pytest.mark.parametrize(
    ("narrow", "wide"),
    [(E4M3, BF16), (E5M2, FP16), (INT8, BF16), (BF16, FP32), (FixedPoint(4, 2), FixedPoint(8, 4)), (BLOCKS, FP32)],
)
def test_the_format_that_contains_the_other_wins_in_either_order(narrow: Any, wide: Any) -> None:
    a, b = torch.ones(3).to_lp(narrow), torch.ones(3).to_lp(wide)
    assert (a + b).format == wide == (b + a).format == torch.cat([a, b]).format == torch.add(b, a).format


CLASHES = [(E4M3, E5M2), (BF16, FP16), (FixedPoint(8, 4), E4M3), (FixedPoint(8, 4), FixedPoint(8, 2))]


@pytest.mark.parametrize(("one", "other"), CLASHES)
@pytest.mark.parametrize(
    "op",
    [torch.add, operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul, operator.pow, torch.dot],
    ids=lambda op: f"{op.__module__}.{op.__name__}",
)
def test_formats_of_which_neither_contains_the_other_are_refused_by_name(one: Any, other: Any, op: Any) -> None:
    a, b = torch.ones(3).to_lp(one), torch.ones(3).to_lp(other)
    for x, y in ((a, b), (b, a)):
        with pytest.raises(TypeError) as caught:
            op(x, y)
        assert repr(one) in str(caught.value) and repr(other) in str(caught.value)
        assert "to_lp" in str(caught.value) and "dequantize" in str(caught.value)


OPERATORS = [operator.add, operator.sub, operator.mul, operator.truediv, operator.floordiv, operator.mod, operator.pow]


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("left", [torch.rand(100) + 1, torch.arange(100), torch.tensor(3.0), torch.tensor(3)])
def test_a_plain_tensor_on_the_left_of_an_operator_rounds_once(op: Callable[..., Tensor], left: Tensor) -> None:
    x = (torch.rand(100) + 1e-3).to_lp(BF16)  # type: ignore[attr-defined]
    want = rounded(op(left, values(x)), BF16)
    for got in (op(left, x), op(left.numpy(), x)):
        assert is_low(got, BF16) and torch.equal(values(got), want)


def test_a_quotient_of_small_numbers_does_not_pass_by_infinity() -> None:
    tiny = torch.tensor([2.0**-16])
    assert (tiny / tiny.to_lp(FP16)).item() == (tiny.half() / tiny.half()).item() == 1


def test_roundings_that_disagree_are_refused_and_a_default_yields() -> None:
    up, down = torch.ones(2).to_lp(BF16, "up"), torch.ones(2).to_lp(BF16, "down")
    with pytest.raises(TypeError, match="rounding"):
        up + down
    assert (up + torch.ones(2).to_lp(BF16)).arithmetic == up.arithmetic


def test_a_backward_format_survives_a_partner_without_one() -> None:
    both = torch.ones(2).to_lp(BF16, grad=E5M2) * torch.ones(2).to_lp(E4M3)
    assert both.arithmetic == Arithmetic(BF16, backward=E5M2)


def test_unlike_things_give_pythons_own_type_error() -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        low(2) + "a"


# -- ways out ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "leave",
    [
        lambda x: torch.fft.fft(x),
        lambda x: torch.fft.fft2(x.view(2, 2)),
        lambda x: torch.fft.ifftn(x.view(2, 2)),
        lambda x: torch.fft.irfft(x),
        lambda x: torch.fft.hfft(x),
        lambda x: x.cfloat(),
        lambda x: x * 1j,
        lambda x: x + torch.ones(4, dtype=torch.float64),
        lambda x: x.half(),
        lambda x: x.bfloat16(),
        lambda x: torch.linalg.eigvals(x.view(2, 2)),
    ],
)
def test_leaving_low_precision_unasked_raises_warns_or_passes_as_set(leave: Callable[[Tensor], Tensor]) -> None:
    x = low(4)
    with pytest.raises(RuntimeError, match=r"aten\..*dequantize.*escapes"):
        leave(x)
    with escapes("warn"), pytest.warns(RuntimeWarning, match="leave low precision"):
        assert type(leave(x)) is Tensor
    with escapes("allow"):
        assert type(leave(x)) is Tensor
    with pytest.raises(RuntimeError):  # the setting ended with its block
        leave(x)


@pytest.mark.filterwarnings("ignore:Sparse BSR")
@pytest.mark.parametrize(
    "leave",
    [
        lambda x: x.double(),
        lambda x: x.to(torch.float64),
        lambda x: x.sum(dtype=torch.float64),
        lambda x: torch.ones_like(x, dtype=torch.float64),
        lambda x: x.to_sparse(),
        lambda x: x.to_sparse_bsr((2, 2)),
        lambda x: x.to_mkldnn(),
        lambda x: torch.zeros_like(x, layout=torch.sparse_coo),
        lambda x: torch.zeros_like(x, dtype=torch.float32, layout=torch.sparse_coo),
        lambda x: x.long(),
        lambda x: x > 0,
        lambda x: x.argmax(),
    ],
)
def test_a_dtype_or_layout_that_the_caller_names_gives_a_plain_tensor(leave: Callable[[Tensor], Tensor]) -> None:
    assert type(leave(low(4, 4))) is Tensor


def test_autocast_raises_and_says_what_to_do() -> None:
    x, w = low(2, 4), low(3, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(RuntimeError, match="autocast"):
        F.linear(x, w)


def test_an_unknown_setting_is_refused() -> None:
    with pytest.raises(ValueError, match="'silent'"):
        escapes("silent")


# -- randomness --------------------------------------------------------------------------------------


def test_a_seed_repeats_stochastic_rounding_and_another_does_not() -> None:
    def run(seed: int) -> Tensor:
        torch.manual_seed(seed)
        x = torch.linspace(0, 1, 500).to_lp(E4M3, "stochastic")
        return values((x * 1.1).sin())

    assert torch.equal(run(1), run(1)) and not torch.equal(run(1), run(2))


def test_stochastic_rounding_goes_to_the_neighbours_only_and_is_unbiased() -> None:
    x = torch.full((10000,), 1 + 0.25 * 2**-3)
    got = values(x.to_lp(E4M3, "stochastic"))
    below, above = 1.0, 1 + 2**-3
    assert set(got.tolist()) == {below, above}
    ups = (got == above).sum().item()
    assert abs(ups - 2500) < 3 * (10000 * 0.25 * 0.75) ** 0.5


def test_comparing_formats_that_have_no_common_one_needs_none() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0]).to_lp(E4M3), torch.tensor([1.0, 2.5, 3.0]).to_lp(E5M2)
    assert (a == b).tolist() == [True, False, True]
    assert (b > a).tolist() == [False, True, False]
    assert torch.isclose(a, a).all() and type(a != b) is torch.Tensor


def test_what_takes_the_place_of_nan_is_rounded() -> None:
    x = torch.tensor([torch.nan, torch.inf, 1.0]).to_lp(BF16)
    y = x.nan_to_num(nan=0.3, posinf=0.7)
    assert y.tolist() == torch.tensor([0.3, 0.7, 1.0]).bfloat16().tolist()


def test_a_zero_with_a_sign_is_no_value_of_every_format() -> None:
    x = torch.tensor([1.0, 2.0]).to_lp(FixedPoint(8, 4))
    for y in (x.masked_fill(torch.tensor([True, False]), -0.0), x.clamp(max=-0.0), x.clamp_(max=-0.0)):
        assert not torch.signbit(y.dequantize())[0]


def test_a_gradient_format_without_negative_numbers_is_refused() -> None:
    for format in (E8M0, FixedPoint(8, 4, signed=False)):
        with pytest.raises(ValueError, match="has no negative numbers, which gradients need"):
            Arithmetic(E4M3, backward=format)


def test_a_plain_tensor_does_not_take_the_data_of_an_lptensor() -> None:
    """It would have no memory, and the next op be a fault of the whole process."""
    plain, low = nn.Linear(3, 3), lptensor.convert(nn.Linear(3, 3), E4M3)
    before = plain.weight.clone()
    with pytest.raises(RuntimeError, match=re.escape("say plain.data = low.dequantize().detach()")):
        plain.weight.data = low.weight.data
    assert torch.equal(plain.weight, before) and plain(torch.ones(3)).shape == (3,)
    plain.weight.data = low.weight.dequantize().detach()
    assert torch.equal(plain.weight, low.weight.dequantize())


@pytest.mark.parametrize("index", [1, 99])
def test_an_op_that_breaks_off_leaves_its_tensor_in_its_format(index: int) -> None:
    x = torch.zeros(6).to_lp(E4M3)
    for write in (
        lambda: x.index_fill_(0, torch.tensor([0, index]), 0.1),
        lambda: x.index_put_((torch.tensor([0, index]),), torch.full((2,), 0.1)),
        lambda: torch._foreach_add_([x, x], [torch.full((6,), 0.01), torch.ones(index)]),
    ):
        with pytest.raises((IndexError, RuntimeError)) if index == 99 else contextlib.nullcontext():
            write()
        assert is_low(x, E4M3) and same(x, rounded(values(x), E4M3))


def _stays_rounded(x: Tensor) -> bool:
    once = lptensor.round(x, NVFP4)
    return torch.equal(lptensor.round(once, NVFP4), once)


def test_an_error_leaves_blocks_alone() -> None:
    """Rounding once more is another rounding where scales are made of what is there."""
    moves = (x for x in (torch.randn(4, 32) * 10 for _ in range(1000)) if not _stays_rounded(x))
    x = next(moves).to_lp(NVFP4)
    before = values(x).clone()
    with pytest.raises(RuntimeError):
        x.add_(torch.ones(3))
    assert torch.equal(values(x), before)


def test_an_expanded_tensor_is_filled() -> None:
    x, native = torch.zeros(3).to_lp(BF16), torch.zeros(3, dtype=torch.bfloat16)
    x.expand(4, 3).fill_(0.1)
    native.expand(4, 3).fill_(0.1)
    assert is_low(x, BF16) and torch.equal(values(x), native.float())


@pytest.mark.filterwarnings("ignore:Use of .* on expanded tensors is deprecated")
@pytest.mark.parametrize("inside", [{}, {"operands": Gemm(E4M3)}, {"accumulator": Accumulator(FP32)}], ids=str)
@pytest.mark.parametrize(
    "fill", [lambda x: x.masked_fill_(x == 0, 0.1), lambda x: x.index_fill_(0, torch.tensor([1]), 0.1)]
)
def test_an_expanded_tensor_is_filled_in_part_whatever_shapes_its_products(inside: Any, fill: Any) -> None:
    x = torch.zeros(3).to_lp(Arithmetic(BF16, **inside))  # type: ignore[attr-defined]
    native = torch.zeros(3, dtype=torch.bfloat16)
    fill(x.expand(4, 3))
    fill(native.expand(4, 3))
    assert is_low(x, BF16) and torch.equal(values(x), native.float())


def test_memory_is_set_between_tensors_of_one_format_alone() -> None:
    x, y = torch.randn(3).to_lp(E4M3), torch.randn(4).to_lp(E4M3)
    assert x.set_(y) is x and same(x, y) and x.shape == (4,)
    x.fill_(1.0)
    assert y.tolist() == [1.0] * 4
    for target, source in ((x, torch.randn(3).to_lp(BF16)), (x, torch.randn(3)), (torch.zeros(3), y)):
        with pytest.raises(TypeError, match="gives a tensor another's memory"):
            target.set_(source)
    with pytest.raises(TypeError, match="no memory of its own"):
        x.set_(y.untyped_storage(), 0, (3,), (1,))
    assert x.tolist() == [1.0] * 4


def test_a_value_does_not_take_the_memory_of_a_gradient() -> None:
    x = torch.ones(2).to_lp(Arithmetic(E4M3, backward=E5M2)).requires_grad_()  # type: ignore[attr-defined]
    x.sum().backward()
    with pytest.raises(TypeError, match="gives a tensor another's memory"):
        x.detach().clone().set_(x.grad)


def test_an_lptensor_holds_a_plain_fp32_tensor() -> None:
    for inner in (torch.ones(2).double(), torch.ones(2).to_lp(E4M3)):
        with pytest.raises(TypeError, match="holds a plain float32 tensor"):
            LPTensor(inner, Arithmetic(E4M3))


def test_a_bound_that_is_left_at_its_default_is_rounded_as_one_that_is_said() -> None:
    """Of hardtanh, which puts it into the result: 1 is no multiple of 2."""
    for run in (F.hardtanh, F.hardtanh_, torch.ops.aten.hardtanh, lambda x: F.hardtanh(x, -1.0, 1.0)):
        assert run(torch.tensor([2.0, 4.0]).to_lp(FixedPoint(8, -1))).tolist() == [0.0, 0.0]


WAYS_OUT: list[Callable[[Any], Tensor]] = [
    lambda x: x.double(),
    lambda x: x.to(torch.float64),
    lambda x: x.sum(dtype=torch.float64),
    lambda x: torch.softmax(x, -1, dtype=torch.float64),
    lambda x: x.to_sparse(),
]


@pytest.mark.parametrize("way", WAYS_OUT)
def test_a_gradient_does_not_come_back_plain_from_where_a_caller_named_a_dtype(way: Any) -> None:
    x = torch.tensor([0.3, 1.7, -0.6]).to_lp(BF16).requires_grad_()
    with pytest.raises(RuntimeError, match=r"gradient would come back plain.*x.dequantize\(\) first"):
        way(x)
    with torch.no_grad():
        assert not isinstance(way(x), LPTensor)
    way(x.detach())
    native = torch.tensor([0.3, 1.7, -0.6]).bfloat16().requires_grad_()
    (native.double() * 1.1).sum().backward()
    (x.dequantize().double() * 1.1).sum().backward()
    assert torch.equal(x.grad.dequantize(), native.grad.float())


def test_factories_have_no_gradient_that_could_come_back_plain() -> None:
    x = torch.ones(2, 3).to_lp(BF16).requires_grad_()
    for make in (torch.zeros_like, torch.rand_like, lambda x, **how: x.new_zeros(2, **how)):
        assert make(x, dtype=torch.float64).dtype is torch.float64


def test_a_gradient_and_a_value_that_are_joined_have_the_format_of_values() -> None:
    x = torch.ones(2).to_lp(Arithmetic(E4M3, backward=E5M2)).requires_grad_()  # type: ignore[attr-defined]
    (x * 1024).sum().backward()
    assert x.grad.tolist() == [1024.0, 1024.0]
    for joined in (torch.cat([x.grad, x.detach()]), torch.cat([x.detach(), x.grad])):
        assert sorted(joined.tolist()) == [1.0, 1.0, 448.0, 448.0]


def test_a_list_of_gradients_and_values_keeps_the_format_of_each() -> None:
    x = torch.ones(2).to_lp(Arithmetic(E4M3, backward=E5M2)).requires_grad_()  # type: ignore[attr-defined]
    x.sum().backward()
    listed = [x.grad.clone(), x.detach().clone(), x.grad.clone()]
    torch._foreach_mul_(listed, 1.1)
    assert [x[0].item() for x in listed] == [1.0, 1.125, 1.0]


def test_lists_of_several_formats_keep_the_format_of_each_too() -> None:
    listed = [torch.ones(2).to_lp(E5M2), torch.ones(2).to_lp(E4M3), torch.ones(2).to_lp(BF16)]  # type: ignore[attr-defined]
    wanted = [1.0, 1.125, torch.tensor(1.1).bfloat16().item()]
    assert [x[0].item() for x in torch._foreach_mul(listed, 1.1)] == wanted
    torch._foreach_mul_(listed, 1.1)
    assert [x[0].item() for x in listed] == wanted


def test_lists_leave_low_precision_as_set() -> None:
    x = low(3)
    listed = [x, x.clone()]
    with pytest.raises(RuntimeError, match="plain complex64 tensor"):
        torch._foreach_mul(listed, 1j)
    with escapes("allow"):
        assert all(x.dtype is torch.complex64 for x in torch._foreach_mul(listed, 1j))


def test_a_view_that_inference_mode_makes_of_a_tensor_from_outside_is_none_of_inference() -> None:
    x = low(2)
    with torch.inference_mode():
        made = [(t.view(2, 1), (t * 1).view(2, 1)) for t in (x, values(x))]
    assert [[y.is_inference() for y in pair] for pair in made] == [[False, True]] * 2


def test_a_view_of_a_tensor_that_inference_mode_made_is_one_of_inference_outside_too() -> None:
    weight = low(2).requires_grad_()
    for x in (low(2), torch.randn(2)):
        with torch.inference_mode():
            made = x * 1
        views = made[:1], made.view(2, 1), made.split(1)[0]
        assert all(view.is_inference() for view in views) and not (made + 1).is_inference()
        with pytest.raises(RuntimeError, match="Inplace update to inference tensor"):
            views[0].add_(1.0)
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved"):
            weight * made.view(2)
        assert made.detach().fill_(2.0).sum() == made.sum() == 4


@pytest.mark.parametrize(
    "write",
    [torch.exp_, torch.square_, lambda x: x.flatten().add_(1), lambda x: x.unflatten(0, (1, -1)).add_(1)]
    + [lambda x: x.narrow(0, 0, 1).add_(1), lambda x: x.chunk(2)[1].add_(1), lambda x: torch._foreach_add_([x], 1)],
)
def test_writes_in_inference_mode_to_a_tensor_from_outside_are_counted(write: Any) -> None:
    ours, plain = low(2), torch.randn(2)
    for x in (ours, plain):
        with torch.inference_mode():
            write(x)
    assert ours._version == plain._version == 1


def test_lists_of_plain_tensors_take_the_format_of_a_number_beside_them() -> None:
    made = torch._foreach_mul([torch.ones(1), torch.ones(2)], torch.tensor(1.1).to_lp(E4M3))  # type: ignore[attr-defined]
    assert all(is_low(x, E4M3) and x[0].item() == 1.125 for x in made)


def test_a_float64_number_is_weak_in_lists_too() -> None:
    number = torch.tensor(1.3).to_lp(BF16)  # type: ignore[attr-defined]
    (made,) = torch._foreach_mul([number], [NUMBER])
    assert same(made, number * NUMBER)


def test_a_half_complex_result_is_an_escape_even_if_named() -> None:
    with pytest.raises(RuntimeError, match="no format has complex values"):
        low(2).to(torch.complex32)


def test_a_float64_operand_is_blamed_for_what_it_does_with_a_gradient_too() -> None:
    with pytest.raises(RuntimeError, match="make float64 operands of yours float32"):
        low(3).requires_grad_() * torch.ones(3, dtype=torch.float64)


def test_where_a_format_has_no_limits_infinities_become_those_of_fp32() -> None:
    x = torch.tensor([torch.inf, -torch.inf]).to_lp(FixedPoint(8, 4, clamp=False))  # type: ignore[attr-defined]
    most = torch.finfo(torch.float32).max
    assert x.nan_to_num().tolist() == [most, -most]


def test_what_takes_the_place_of_infinities_may_be_written_elsewhere() -> None:
    x, out = torch.tensor([torch.inf, torch.nan]).to_lp(E5M2), torch.zeros(2).to_lp(E5M2)  # type: ignore[attr-defined]
    assert torch.nan_to_num(x, out=out).tolist() == out.tolist() == [57344.0, 0.0]
