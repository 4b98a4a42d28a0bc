"""An arithmetic that computes in float64: results are correctly rounded, by exact rationals."""

from __future__ import annotations

import copy
import math
import operator
import pickle
import struct
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backends import flushed_denormals
from lptensor import (
    BF16,
    E4M3,
    E5M2,
    FP16,
    FP32,
    Arithmetic,
    FloatingPoint,
    Format,
    LPTensor,
    accumulate,
    convert,
    odd_sums,
)
from lptensor.arithmetic import promote
from oracles import exact

aten = torch.ops.aten

FORMATS = {
    "FP32": (FP32, exact.Float(8, 23, 127)),
    "16 bits of man": (FloatingPoint(8, 16), exact.Float(8, 16, 127)),
    "BF16": (BF16, exact.Float(8, 7, 127)),
    "FP16": (FP16, exact.Float(5, 10, 15)),
}
WIDE = Arithmetic(BF16, compute=torch.float64)


def root(x: Fraction) -> Fraction:
    """The square root to 300 bits, inexact ones with one bit more, so that they round as the root does."""
    scaled = x * 2**600
    whole = scaled.numerator // scaled.denominator
    found = math.isqrt(whole)
    return Fraction(2 * found + (found * found != scaled), 2**301)


OPS: dict[str, tuple[Callable[..., Tensor], Callable[..., Fraction]]] = {
    "add": (operator.add, lambda a, b, c: a + b),
    "sub": (operator.sub, lambda a, b, c: a - b),
    "rsub": (torch.rsub, lambda a, b, c: b - a),
    "mul": (operator.mul, lambda a, b, c: a * b),
    "div": (operator.truediv, lambda a, b, c: a / b),
    "sqrt": (lambda a, b: torch.sqrt(a.abs()), lambda a, b, c: root(abs(a))),
}


def hard_numbers(format: Format, n: int = 150) -> tuple[Tensor, Tensor, Tensor]:
    """fp32 numbers whose sums and products lie beside values and midpoints of a format, and ordinary ones."""
    generator = torch.Generator().manual_seed(1)
    precision = format.grid.precision  # type: ignore[attr-defined]
    near = 1.0 + torch.randint(0, 2**precision, (n,), generator=generator) * 2.0**-precision  # values and midpoints
    tiny = torch.randn(n, generator=generator) * 2.0 ** torch.randint(-90, -20, (n,), generator=generator)
    a = torch.cat([near, torch.randn(n, generator=generator), torch.ones(n) + 2.0**-12])
    b = torch.cat([tiny, torch.randn(n, generator=generator), torch.ones(n) + 2.0**-12])
    c = torch.cat([near.flip(0), torch.randn(n, generator=generator), tiny.flip(0) * 2.0**-20])
    assert a.dtype == b.dtype == c.dtype == torch.float32
    return a, b, c


def lp(x: Tensor, arithmetic: Arithmetic) -> LPTensor:
    return x.to_lp(arithmetic)  # type: ignore[attr-defined, no-any-return]


def check(got: Tensor, values: exact.Float, wanted: list[Fraction], mode: str) -> None:
    for result, true in zip(got.dequantize().tolist(), wanted, strict=True):  # type: ignore[attr-defined]
        if true:
            assert result == exact.rounded(values, true, mode), (result, float(true))  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", exact.MODES)
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_result_is_the_exact_one_rounded_once(name: str, op: str, mode: str) -> None:
    format, values = FORMATS[name]
    run, true = OPS[op]
    a, b, _ = hard_numbers(format)
    x = lp(a, Arithmetic(format, rounding=mode, compute=torch.float64))
    operands = zip(x.tolist(), b.tolist(), strict=True)
    check(run(x, b), values, [true(Fraction(p), Fraction(q), None) for p, q in operands], mode)


@pytest.mark.parametrize("mode", exact.MODES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_fused_multiply_add_is_rounded_once(name: str, mode: str) -> None:
    format, values = FORMATS[name]
    a, b, c = hard_numbers(format)
    x = lp(c, Arithmetic(format, rounding=mode, compute=torch.float64))
    true = [Fraction(r) + Fraction(p) * Fraction(q) for p, q, r in zip(a.tolist(), b.tolist(), x.tolist(), strict=True)]
    check(torch.addcmul(x, a, b), values, true, mode)
    check(x.clone().addcmul_(a, b), values, true, mode)


def test_fp32_alone_is_wrong_where_float64_is_right() -> None:
    # 2**-24 + 1.5 * 683/1024 lies just above a midpoint of FP16, in fp32 on it.
    a, b, c = (torch.tensor([v]) for v in (1.5, 683 / 1024, 2.0**-24))
    true = Fraction(1.5) * Fraction(683, 1024) + Fraction(1, 2**24)
    right = exact.rounded(FORMATS["FP16"][1], true, "nearest")  # type: ignore[arg-type]
    assert torch.addcmul(lp(c, Arithmetic(FP16)), a, b).item() != right == 1.0009765625
    assert torch.addcmul(lp(c, Arithmetic(FP16, compute=torch.float64)), a, b).item() == right


@pytest.mark.parametrize("write", ["add_", "sub_", "mul_", "out", "add alpha"])
def test_writes_round_once_from_float64(write: str) -> None:
    a, b, _ = hard_numbers(BF16)
    x = lp(a, WIDE)
    terms = [(Fraction(p), Fraction(q)) for p, q in zip(x.tolist(), b.tolist(), strict=True)]
    match write:
        case "add_":
            got, true = x.add_(b), [p + q for p, q in terms]
        case "sub_":
            got, true = x.sub_(b), [p - q for p, q in terms]
        case "mul_":
            got, true = x.mul_(b), [p * q for p, q in terms]
        case "add alpha":
            got, true = x.add_(b, alpha=-0.25), [p - q / 4 for p, q in terms]
        case _:
            got, true = torch.add(x, b, out=torch.empty_like(x)), [p + q for p, q in terms]
    check(got, FORMATS["BF16"][1], true, "nearest")


@pytest.mark.parametrize(("format", "dtype"), [(FP16, np.float16), (FP32, np.float32)])
@pytest.mark.parametrize("mode", ["nearest", "down"])
@pytest.mark.parametrize("compiled", [False, True])
def test_float64_values_are_copied_with_one_rounding(format: Format, dtype: Any, mode: str, compiled: bool) -> None:
    def write(x: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        x[:] = values
        return x

    values = torch.rand(999, dtype=torch.float64)
    values[::3] = 1 + 2.0**-11 + torch.rand(333, dtype=torch.float64) * 2.0**-30  # beside a midpoint of FP16
    x = torch.zeros(999).to_lp(format, mode)  # type: ignore[attr-defined]
    (torch.compile(write) if compiled else write)(x, values)
    want = values.numpy().astype(dtype)
    if mode == "down":
        want = np.where(want > values.numpy(), np.nextafter(want, dtype(-np.inf)), want)
    assert x.tolist() == want.tolist()


def test_lists_of_float64_are_copied_so_too_and_expanded_targets_refused() -> None:
    x, value = lp(torch.zeros(1), Arithmetic(BF16)), torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    torch._foreach_copy_([x], [value])
    assert x.item() == 1 + 2.0**-7  # beyond the midpoint, on which fp32 puts it
    with pytest.raises(RuntimeError, match="single memory location"):
        x.expand(3).copy_(value.expand(3))


@pytest.mark.parametrize("compiled", [False, True])
def test_numbers_written_by_index_are_exact(compiled: bool) -> None:
    def write(x: torch.Tensor) -> torch.Tensor:
        x[0] = 0.1
        x[1:2] = 0.1
        return x

    down, up = (lp(torch.zeros(2), Arithmetic(FP32, rounding=r, compute=torch.float64)) for r in ("down", "up"))
    for x in (down, up):
        (torch.compile(write) if compiled else write)(x)
    assert all(Fraction(v) < Fraction(0.1) for v in down.tolist())
    assert all(Fraction(v) > Fraction(0.1) for v in up.tolist())


def test_an_out_tensor_grows_as_torch_lets_it() -> None:
    out = lp(torch.empty(0), WIDE)
    torch.mul(lp(torch.ones(3), WIDE), 2, out=out)
    assert out.shape == (3,) and out.tolist() == [2, 2, 2]
    out = lp(torch.empty(0), WIDE)
    torch.add(lp(torch.ones(3), WIDE), 1, out=out)
    assert out.tolist() == [2, 2, 2]


def test_sums_and_products_are_those_of_float64() -> None:
    a, b = torch.randn(40, 300), torch.randn(300, 20)
    x, y = lp(a, Arithmetic(FP32, compute=torch.float64)), lp(b, Arithmetic(FP32, compute=torch.float64))
    assert torch.equal((x @ y).dequantize(), (a.double() @ b.double()).float())
    assert torch.equal(x.sum(1).dequantize(), a.double().sum(1).float())
    assert torch.equal(x.softmax(1).dequantize(), a.double().softmax(1).float())
    named = x.sum(1, dtype=torch.float32)
    assert type(named) is LPTensor and torch.equal(named.dequantize(), a.double().sum(1).float())
    assert type(x.sum(1, dtype=torch.float64)) is Tensor


def test_gradients_are_computed_in_float64_too() -> None:
    a, b = torch.randn(40, 30), torch.randn(20, 30)
    x, w = (lp(t, Arithmetic(FP32, compute=torch.float64)).requires_grad_() for t in (a, b))
    torch.nn.functional.linear(x, w).relu().sum().backward()
    p, q = (t.double().requires_grad_() for t in (a, b))
    # The product is rounded to fp32 before relu sees it, which keeps its sign.
    torch.nn.functional.linear(p, q).relu().sum().backward()
    for lp_grad, grad in ((x.grad, p.grad), (w.grad, q.grad)):
        assert torch.equal(lp_grad.dequantize(), grad.float())  # type: ignore[union-attr]


@pytest.mark.parametrize("shapes", [((8, 4), (3, 4, 8)), ((3, 4, 8), (8, 8)), ((4, 8), (8, 8)), ((3, 4, 8), (3, 8, 4))])
def test_groups_of_rows_are_multiplied_in_float64(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    """torch's own product of groups has fp32 and less; that of one group is the product that there is of matrices."""
    low = [torch.randn(s).to_lp(Arithmetic(FP32, compute=torch.float64)).requires_grad_() for s in shapes]  # type: ignore[attr-defined]
    wide = [x.dequantize().detach().double().requires_grad_() for x in low]
    offs = None if len(shapes[0]) == len(shapes[1]) == 3 else torch.tensor([2, 3, 8], dtype=torch.int32)
    got = torch.ops.aten._grouped_mm(*low, offs)
    a, b = wide
    if offs is None:
        want = a @ b
    elif a.dim() == b.dim():
        want = torch.stack([a[:, :2] @ b[:2], a[:, 2:3] @ b[2:3], a[:, 3:] @ b[3:]])
    elif a.dim() == 2:
        want = torch.cat([a[:2] @ b[0], a[2:3] @ b[1], a[3:] @ b[2]])
    else:
        want = torch.cat([a[0] @ b[:, :2], a[1] @ b[:, 2:3], a[2] @ b[:, 3:]], 1)
    assert torch.equal(got.dequantize(), want.float())
    seed = torch.randn(want.shape)
    got.backward(seed), want.backward(seed.double())
    for x, y in zip(low, wide, strict=True):
        assert torch.equal(x.grad.dequantize(), y.grad.float())  # type: ignore[union-attr, attr-defined]


def test_plain_float64_operands_and_numbers_are_used_exactly() -> None:
    x = lp(torch.ones(1), Arithmetic(FP32, rounding="up", compute=torch.float64))
    tiny = torch.tensor([2.0**-40], dtype=torch.float64)
    assert (x + tiny).item() == (x + 2.0**-40).item() == 1 + 2.0**-23


NUMBERS = [0.1, 1 / 3, 2.0**-11 * (1 + 2.0**-30), 1e-30, -7.3]
WITH_A_NUMBER: dict[str, tuple[Callable[[Tensor, float], Tensor], Callable[[Fraction, Fraction], Fraction]]] = {
    "x + number": (lambda x, c: x + c, lambda x, c: x + c),
    "x - number": (lambda x, c: x - c, lambda x, c: x - c),
    "number - x": (lambda x, c: c - x, lambda x, c: c - x),
    "x * number": (lambda x, c: x * c, lambda x, c: x * c),
    "x / number": (lambda x, c: x / c, lambda x, c: x / c),
    "x *= number": (lambda x, c: x.clone().mul_(c), lambda x, c: x * c),
    "x / tensor": (lambda x, c: x / torch.full((len(x),), c, dtype=torch.float64), lambda x, c: x / c),
    "list / number": (lambda x, c: torch._foreach_div([x], c)[0], lambda x, c: x / c),
    "list + numbers": (lambda x, c: torch._foreach_add([x], [c])[0], lambda x, c: x + c),
}


@pytest.mark.parametrize("mode", exact.MODES)
@pytest.mark.parametrize("op", WITH_A_NUMBER)
@pytest.mark.parametrize("name", FORMATS)
def test_a_number_that_fp32_does_not_hold_is_used_as_it_is(name: str, op: str, mode: str) -> None:
    format, values = FORMATS[name]
    run, true = WITH_A_NUMBER[op]
    low = lp(hard_numbers(format, 40)[0], Arithmetic(format, rounding=mode, compute=torch.float64))
    for number in NUMBERS:
        wanted = [true(Fraction(x), Fraction(number)) for x in low.dequantize().tolist()]
        check(run(low, number), values, wanted, mode)


def test_lists_of_tensors_get_the_sums_of_each() -> None:
    a, b, c = (lp(x, Arithmetic(FP16, compute=torch.float64)) for x in hard_numbers(FP16))
    assert torch.equal(torch._foreach_add([a, c], [b, b], alpha=0.3)[1], torch.add(c, b, alpha=0.3))
    assert torch.equal(torch._foreach_addcmul([a, c], [a, b], [b, b], 0.3)[1], torch.addcmul(c, b, b, value=0.3))
    assert torch.equal(torch._foreach_sub([a, c], 0.1)[0], a - 0.1)
    kept = [a.clone(), c.clone()]
    torch._foreach_add_(kept, [b, b])
    assert torch.equal(kept[0], a + b) and torch.equal(kept[1], c + b)


def test_what_selects_values_and_what_is_no_float_stays() -> None:
    x = lp(torch.randn(20), WIDE)
    assert torch.equal(x.relu().dequantize(), x.dequantize().relu())
    assert (x > 0.1).dtype is torch.bool and x.argmax().dtype is torch.int64
    assert x.masked_fill(x > 0, 0.1).max().item() == torch.tensor(0.1).bfloat16().item()


def test_running_statistics_and_every_optimizer_step() -> None:
    # Without a bias, whose gradient under a batch norm is 0, and whose step that of an optimizer is then any.
    model = torch.nn.Sequential(torch.nn.Conv1d(2, 4, 3, bias=False), torch.nn.BatchNorm1d(4), torch.nn.Flatten())
    for p in model.parameters():
        p.data = p.data.bfloat16().float()
    twin = copy.deepcopy(model).double()
    convert(model, Arithmetic(FP32, compute=torch.float64))
    x = torch.randn(5, 2, 9)
    for net, value in ((model, lp(x, Arithmetic(FP32, compute=torch.float64))), (twin, x.double())):
        optimizer = torch.optim.Adam(net.parameters(), lr=0.1, foreach=net is model)
        net(value).pow(3).sum().backward()
        optimizer.step()
    # The statistics are of rounded convolutions, and so agree to fp32's last places.
    torch.testing.assert_close(model[1].running_var.double(), twin[1].running_var, rtol=1e-6, atol=0)
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.dequantize().double(), q, rtol=1e-5, atol=1e-6)  # type: ignore[attr-defined]


def test_an_arithmetic_tells_its_dtype_and_keeps_it() -> None:
    for twin in (pickle.loads(pickle.dumps(WIDE)), copy.deepcopy(WIDE), eval(repr(WIDE), {**globals()})):
        assert twin == WIDE and hash(twin) == hash(WIDE)
    assert WIDE != Arithmetic(BF16) and "torch.float64" in repr(WIDE)
    assert promote(Arithmetic(E4M3), WIDE) == promote(WIDE, Arithmetic(E4M3)) == WIDE
    with pytest.raises(ValueError, match="compute must be torch.float32 or torch.float64, got torch.float16"):
        Arithmetic(BF16, compute=torch.float16)


def test_every_op_of_torchs_database_has_a_float64_kernel_where_it_has_an_fp32_one() -> None:
    from torch.testing._internal.common_methods_invocations import op_db

    single, double = torch.float32, torch.float64
    lacking = [op.name for op in op_db if {single} <= op.supported_dtypes("cpu") and double not in op.dtypes]
    assert lacking == ["broadcast_shapes"]  # which takes no tensors


def test_a_tensor_made_of_data_rounds_once() -> None:
    x, value = torch.zeros(1).to_lp(WIDE), 1 + 2**-8 + 2**-40  # type: ignore[attr-defined]  # fp32 has a tie
    assert x.new_tensor([value]).item() == x.new_full((1,), value).item() == 1.0078125
    assert x.new_tensor([3]).format == BF16 and type(x.new_tensor([1.0], dtype=torch.float64)) is Tensor


def to_odd(x: Fraction) -> float:
    """The float64 number that is x, or the one of its two neighbours whose significand is odd."""
    near = float(x)
    if Fraction(near) == x:
        return near
    other = math.nextafter(near, math.inf if Fraction(near) < x else -math.inf)
    return near if struct.unpack("q", struct.pack("d", near))[0] % 2 else other


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("op", [operator.add, operator.mul])
def test_sums_and_products_of_float64_are_rounded_to_odd(op: Any, compiled: bool, monkeypatch: Any) -> None:
    if not compiled:
        monkeypatch.setattr(odd_sums, "_by_kernel", lambda *_: None)
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4000, dtype=torch.float64, generator=generator) for _ in range(2))
    x, y = (t * 2.0 ** torch.randint(-70, 70, t.shape, generator=generator) for t in (x, y))
    x[:3], y[:3] = torch.tensor([1.0, -1.0, 0.0]), torch.tensor([2.0**-80, 2.0**-80, -0.0])
    run = odd_sums.in_double({operator.add: aten.add.Tensor, operator.mul: aten.mul.Tensor}[op], False)
    numbers = (y[5], x), (x[:3000], y[5])  # which others follow in memory
    for a, b in (*numbers, (x, y), (x, y[:1]), (x.view(40, 100), y[:100]), (x[::2], y[1::2]), (x[:0], y[:0])):
        wanted = [
            to_odd(op(Fraction(p), Fraction(q)))
            for p, q in zip(*(t.flatten().tolist() for t in torch.broadcast_tensors(a, b)), strict=True)
        ]
        got = run(a, b)
        assert got.shape == torch.broadcast_shapes(a.shape, b.shape) and got.flatten().tolist() == wanted
    assert run(x, 0.1).tolist() == [to_odd(op(Fraction(p), Fraction(0.1))) for p in x.tolist()]


@pytest.mark.parametrize("op", [aten.add.Tensor, aten.mul.Tensor])
def test_the_compiled_odd_results_are_those_of_torch_at_the_ends_too(op: Any, monkeypatch: Any) -> None:
    ends = [
        0.0,
        -0.0,
        math.inf,
        -math.inf,
        math.nan,
        5e-324,
        2.0**-1022,
        2.0**-900,
        2.0**-450,
        2.0**899.5,
        1.7e308,
        -1.1,
    ]
    x, y = (t.flatten() for t in torch.meshgrid(*[torch.tensor(ends, dtype=torch.float64)] * 2, indexing="ij"))
    got = [odd_sums.in_double(op, False)(x[i : i + n], y[i : i + n]) for n in (1, 144) for i in range(0, 144, n)]
    monkeypatch.setattr(odd_sums, "_by_kernel", lambda *_: None)
    wanted = [odd_sums.in_double(op, False)(x[i : i + n], y[i : i + n]) for n in (1, 144) for i in range(0, 144, n)]
    for one, other in zip(got, wanted, strict=True):
        assert torch.equal(one.isnan(), other.isnan())
        assert torch.equal(one.nan_to_num(7.0).view(torch.int64), other.nan_to_num(7.0).view(torch.int64))


def test_compiled_products_know_subnormals_where_the_process_flushes_them() -> None:
    x, y = torch.full((8,), 2.0**-1070, dtype=torch.float64), torch.full((8,), 3.0**20, dtype=torch.float64)
    run = odd_sums.in_double(aten.mul.Tensor, False)
    with flushed_denormals():
        taken = odd_sums._by_kernel("products", x, y)
    assert taken is None and (run(x, y) != 0).all()


def test_compiled_sums_read_no_tensor_that_has_no_memory_here() -> None:
    x = torch.randn(4).to_lp(WIDE)  # type: ignore[attr-defined]
    for run in (
        lambda: x + torch.randn(4, device="meta"),
        lambda: x * torch.randn((), device="meta", dtype=torch.float64),
    ):
        with pytest.raises(RuntimeError, match="device"):
            run()
    none, ones = torch._efficientzerotensor((4,), dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for op, wanted in ((aten.add.Tensor, ones), (aten.mul.Tensor, 0 * ones)):
        assert torch.equal(odd_sums.in_double(op, False)(none, ones), wanted)


@pytest.mark.parametrize(
    ("dtype", "x", "integer"),
    [
        (torch.int32, 16387349, 1206639165),
        *((dtype, 12940169, 3143168697) for dtype in (torch.uint32, torch.int64, torch.uint64)),
    ],
)
def test_integers_that_fp32_lacks_are_multiplied_exactly(dtype: torch.dtype, x: int, integer: int) -> None:
    """The product is a little more than a midpoint of BF16, and in float64 it is the midpoint."""
    fp32, bf16 = (Arithmetic(format, compute=torch.float64) for format in (FP32, BF16))
    out = torch.zeros(1).to_lp(bf16)
    torch.mul(torch.tensor([float(x)]).to_lp(fp32), torch.tensor([integer], dtype=dtype), out=out)
    unit = 2 ** ((x * integer).bit_length() - 8)
    below, above = x * integer % unit, x * integer // unit
    assert 2 * below > unit and float(x * integer) == unit * (above + 0.5)
    assert out.item() == unit * (above + 1)


IN_ORDER: dict[str, Callable[[Any, Any], Any]] = {
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "rsub": lambda x, y: torch.rsub(x, y),
    "mul by a number": lambda x, y: x * 0.1,
    "div by a number": lambda x, y: x / 3,
    "addcmul": lambda x, y: torch.addcmul(x, x, x),
    "add an expanded one": lambda x, y: x + torch.ones(3, 1, 1),
    "add to an expanded one": lambda x, y: torch.ones(3, 1, 1) + x,
    "foreach": lambda x, y: torch._foreach_add([x], [x])[0],
}


@pytest.mark.parametrize("name", IN_ORDER)
def test_results_lie_in_memory_as_those_of_fp32(name: str) -> None:
    x, y = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last), torch.randn(2, 3, 4, 4)
    wide, single = (x.to_lp(Arithmetic(E4M3, compute=dtype)) for dtype in (torch.float64, torch.float32))  # type: ignore[attr-defined]
    for first, second in ((x, y), (y, x)):
        values = IN_ORDER[name](first, second)
        low = [IN_ORDER[name](t if first is x else first, second if first is x else t) for t in (wide, single)]
        assert low[0].stride() == low[1].stride() == values.stride()
        assert torch.equal(low[0].dequantize(), low[0].dequantize().contiguous())
    assert torch.equal(IN_ORDER[name](wide, y).dequantize(), IN_ORDER[name](wide.contiguous(), y).dequantize())


def test_an_expanded_tensor_is_filled() -> None:
    t = torch.zeros(1).to_lp(Arithmetic(E4M3, compute=torch.float64)).expand(3)  # type: ignore[attr-defined]
    assert t.fill_(0.3).tolist() == [0.3125] * 3


@pytest.mark.filterwarnings("ignore:Use of .* on expanded tensors is deprecated")
@pytest.mark.parametrize(
    "write",
    [lambda x: x.sign_(), lambda x: x.add_(torch.ones(2, 3)), lambda x: x.masked_fill_(torch.eye(2, 3) > 0, 0.3)]
    + [lambda x: x.index_fill_(0, torch.tensor([1]), 0.3), lambda x: torch.sin(torch.ones(2, 3), out=x)],
)
def test_what_torch_refuses_or_writes_of_an_expanded_tensor_does_not_depend_on_compute(write: Any) -> None:
    found: list[Any] = []
    for compute in (torch.float32, torch.float64):
        x = torch.zeros(3).to_lp(Arithmetic(E4M3, compute=compute))  # type: ignore[attr-defined]
        try:
            write(x.expand(2, 3))
            found.append(x.tolist())
        except RuntimeError as error:
            assert "single memory location" in str(error) and x.tolist() == [0.0] * 3
            found.append("refused")
    assert found[0] == found[1]


@pytest.mark.parametrize(
    "write",
    [
        lambda x, out: torch.topk(x, 2, out=(out, torch.empty(0, dtype=torch.long))),
        lambda x, out: torch.sort(x, out=(out, torch.empty(0, dtype=torch.long))),
    ]
    + [
        lambda x, out: torch.max(x, 0, out=(out, torch.empty(0, dtype=torch.long))),
        lambda x, out: torch.sort(x.exp(), out=(out, torch.empty(0, dtype=torch.long))),
    ],
)
def test_out_grows_whatever_torch_calls_it(write: Any) -> None:
    x = lp(torch.tensor([0.3, 2.0, -1.0]), Arithmetic(FP16, compute=torch.float64))
    out, native = lp(torch.empty(0), Arithmetic(BF16)), torch.empty(0, dtype=torch.float16)
    write(x, out)
    write(x.dequantize().half(), native)
    assert torch.equal(out.dequantize(), native.bfloat16().float())


def test_a_tangent_takes_the_layout_of_what_it_belongs_to() -> None:
    """As torch wants it at a view."""
    x, tangent = (lp(torch.randn(4, 2), Arithmetic(BF16, compute=torch.float64)) for _ in range(2))
    value, slope = torch.func.jvp(lambda a: a[1:], (x[:, 1],), (tangent[:, 1].clone(),))
    assert torch.equal(value.dequantize(), x.dequantize()[1:, 1])
    assert torch.equal(slope.dequantize(), tangent.dequantize()[1:, 1])


def test_mantissas_and_exponents_are_those_of_frexp() -> None:
    x = torch.randn(1000).double() * torch.exp2(torch.randint(-1080, 1000, (1000,)).double())
    x[:6] = torch.tensor([5e-324, -5e-324, 1.7e308, 2.0**-1022, 2.0**-1000, -1.0], dtype=torch.float64)
    (mantissa, exponent), expected = accumulate._mantissa(x), torch.frexp(x)
    assert torch.equal(mantissa, expected.mantissa)
    assert torch.equal(exponent[x != 0], expected.exponent[x != 0].long())


def test_an_operand_that_does_not_ask_for_float64_does_not_take_it_from_another() -> None:
    one, tiny = torch.ones(1), torch.full((1,), 2.0**-40)
    x, y = lp(one, Arithmetic(FP32, rounding="up", compute=torch.float64)), lp(tiny, Arithmetic(FP32, rounding="up"))
    assert (x + y).item() == (y + x).item() == 1 + 2.0**-23


def test_a_tensor_may_be_an_operand_of_an_op_that_writes_into_it() -> None:
    for write, wanted in ((Tensor.mul_, 2.25), (Tensor.add_, 3.0), (Tensor.div_, 1.0), (Tensor.pow_, 1.5**1.5)):
        x = lp(torch.tensor([1.5]), WIDE)
        write(x, x)  # type: ignore[operator]
        assert x.item() == torch.tensor(wanted).bfloat16().item()


def test_numbers_that_fp32_lacks_are_multiplied_exactly_in_lists_and_by_a_scalar_too() -> None:
    """With e = 2**-23 the product (1 + e)(1 - e + e**2) is 1 + e**3, which float64 rounds to 1."""
    e = 2.0**-23
    x = lp(torch.tensor([1 + e]), Arithmetic(FP32, rounding="up", compute=torch.float64))
    factor = torch.tensor([1 - e + e**2], dtype=torch.float64)
    assert torch._foreach_mul([x], [factor])[0].item() == 1 + e
    assert torch._foreach_mul([x], 2**46 - 2**23 + 1)[0].item() == 2**46 * (1 + e)
    assert (x[0] * factor[0]).item() == (x * factor).item() == 1 + e


def test_a_factor_of_a_product_that_is_added_counts() -> None:
    format, values = FORMATS["BF16"]
    a, b, c = (lp(x, WIDE) for x in hard_numbers(format))
    terms = zip(*(map(Fraction, x.dequantize().tolist()) for x in (a, b, c)), strict=True)  # type: ignore[attr-defined]
    check(torch.addcmul(a, b, c, value=-0.25), values, [p - q * r / 4 for p, q, r in terms], "nearest")


def test_quotients_have_the_specials_of_ieee_754() -> None:
    x = torch.tensor([1.0, -1.0, torch.inf, 1.0, 0.0, torch.inf, torch.nan, 0.0])
    y = torch.tensor([torch.inf, torch.inf, -2.0, -0.0, 0.0, torch.inf, 1.0, -3.0], dtype=torch.float64)
    made = lp(x, Arithmetic(FP32, compute=torch.float64)) / y
    assert [str(v) for v in made.tolist()] == [str(v) for v in (x.double() / y).tolist()]


def test_sums_of_lists_are_rounded_once_too() -> None:
    format, values = FORMATS["FP32"]
    a, b, c = (lp(x, Arithmetic(format, rounding="up", compute=torch.float64)) for x in hard_numbers(format))
    terms = list(zip(*(map(Fraction, x.dequantize().tolist()) for x in (a, b, c)), strict=True))  # type: ignore[attr-defined]
    check(torch._foreach_add([a], [b])[0], values, [p + q for p, q, _ in terms], "up")
    check(torch._foreach_sub([a], [b])[0], values, [p - q for p, q, _ in terms], "up")
    check(torch._foreach_addcmul([a], [b], [c], -0.25)[0], values, [p - q * r / 4 for p, q, r in terms], "up")


def test_a_list_with_a_tensor_of_factors_has_one_for_each() -> None:
    x, y = lp(torch.ones(2), WIDE), lp(torch.ones(3), WIDE)
    made = torch._foreach_addcmul([x, y], [x, y], [x, y], torch.tensor([0.5, 0.25]))
    assert [t.tolist() for t in made] == [[1.5] * 2, [1.25] * 3]
    with pytest.raises(RuntimeError, match="Expected length of scalars to match"):
        torch._foreach_addcmul([x, y], [x, y], [x, y], torch.tensor([0.5]))


@pytest.mark.parametrize("op", [torch._foreach_addcmul, torch._foreach_addcmul_])
def test_a_sum_of_lists_with_a_tensor_of_factors_is_rounded_once(op: Callable[..., Any]) -> None:
    """1 + 2**-8 is half way between two numbers of BF16, and 2**-60 more is nothing in float64."""
    ones, factors, more = ([lp(torch.ones(1), WIDE) for _ in range(2)] for _ in range(3))
    made = op(ones, factors, more, torch.tensor([2.0**-8 + 2.0**-60, 2.0**-8], dtype=torch.float64))
    assert [t.item() for t in made or ones] == [1 + 2.0**-7, 1]


def test_complex_operands_leave_as_they_do_from_fp32() -> None:
    for other in (1j, torch.full((2,), 1j)):
        with pytest.raises(RuntimeError, match="no format has complex values"):
            lp(torch.ones(2), WIDE) * other
    with pytest.raises(RuntimeError, match="no format has complex values"):
        torch._foreach_add([lp(torch.ones(2), WIDE)], 1j)


def test_norms_of_lists_that_name_fp32_are_of_float64() -> None:
    x = torch.randn(1000)
    (norm,) = torch._foreach_norm([lp(x, Arithmetic(FP32, compute=torch.float64))], 1, torch.float32)
    assert norm.item() == x.double().abs().sum().float().item()


def test_what_is_written_to_a_gradient_is_rounded_to_its_format() -> None:
    x = lp(torch.ones(3), Arithmetic(E4M3, backward=E5M2, compute=torch.float64)).requires_grad_()
    x.sum().backward()
    assert x.grad is not None and x.grad.mul_(1.1).tolist() == [1.0] * 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler
def test_inductor_compiles_products_with_numbers() -> None:
    x = torch.randn(64).to_lp(Arithmetic(BF16, compute=torch.float64))  # type: ignore[attr-defined]
    for f in (lambda t: t * 0.9 / 0.3, lambda t: t * torch.full((64,), 0.7, dtype=torch.float64)):
        assert torch.equal(torch.compile(f)(x).dequantize(), f(x).dequantize())
