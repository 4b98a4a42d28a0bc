"""Sums of tensor cores against MMA-Sim, whose authors compared it with the hardware: docs/accumulators.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from mmasim.amd.sim import MFMA
from mmasim.nv_ptx.sim import MMA, WGMMA, TCGen05MMA
from torch import Tensor

import lptensor
from lptensor.accumulator import Accumulator
from lptensor.arithmetic import Arithmetic
from lptensor.base import ScalarFormat
from lptensor.blocks import Scaled
from lptensor.formats import BF16, E4M3, E5M2, FP16, FP32, TF32, FloatingPoint
from lptensor.hadamard import Hadamard
from lptensor.hardware_sums import _TENSOR_CORES, tensor_core
from lptensor.operands import Gemm
from lptensor.scaling import CurrentMaximum
from lptensor.tensor import LPTensor
from test_gemm import IMPLEMENTATIONS, product

# A row of ours, its operands, and instructions of the hardware that add up so.
CORES: list[tuple[str, tuple[ScalarFormat, ScalarFormat], Any]] = [
    ("volta", (FP16, FP16), MMA("Volta", "m8n8k4.f32.f16.f16.f32")),
    ("turing", (FP16, FP16), MMA("Turing", "m16n8k8.f32.f16.f16.f32")),
    ("ampere", (FP16, FP16), MMA("Ampere", "m16n8k16.f32.f16.f16.f32")),
    ("ampere", (BF16, BF16), MMA("Ampere", "m16n8k16.f32.bf16.bf16.f32")),
    ("ampere_tf32", (TF32, TF32), MMA("Ampere", "m16n8k8.f32.tf32.tf32.f32")),
    ("ada", (FP16, FP16), MMA("Ada Lovelace", "m16n8k16.f32.f16.f16.f32")),
    ("ada_tf32", (TF32, TF32), MMA("Ada Lovelace", "m16n8k8.f32.tf32.tf32.f32")),
    ("ada_fp8", (E5M2, E4M3), MMA("Ada Lovelace", "m16n8k32.f32.e5m2.e4m3.f32")),
    ("hopper", (FP16, FP16), WGMMA("Hopper", "m64n8k16.f32.f16.f16")),
    ("hopper", (BF16, BF16), MMA("Hopper", "m16n8k16.f32.bf16.bf16.f32")),
    ("hopper_tf32", (TF32, TF32), WGMMA("Hopper", "m64n8k8.f32.tf32.tf32")),
    ("hopper_fp8", (E4M3, E4M3), WGMMA("Hopper", "m64n8k32.f32.e4m3.e4m3")),
    ("hopper_fp8", (E4M3, E5M2), WGMMA("Hopper", "m64n8k32.f32.e4m3.e5m2")),
    ("blackwell", (FP16, FP16), TCGen05MMA("Blackwell", "m64n8k16.kind::f16.f32.f16.f16")),
    ("blackwell_tf32", (TF32, TF32), TCGen05MMA("Blackwell", "m64n8k8.kind::tf32.f32.tf32.tf32")),
    ("blackwell_fp8", (E4M3, E4M3), TCGen05MMA("Blackwell", "m64n8k32.kind::f8f6f4.f32.e4m3.e4m3")),
    ("blackwell_fp8", (E5M2, E4M3), MMA("RTX Blackwell", "m16n8k32.kind::f8f6f4.f32.e5m2.e4m3.f32")),
]
DTYPES = {FP32: torch.float32, FP16: torch.float16, BF16: torch.bfloat16, TF32: torch.float32}
DTYPES |= {E4M3: torch.float8_e4m3fn, E5M2: torch.float8_e5m2}


def numbers(shape: tuple[int, ...], format: ScalarFormat, exponent: int, g: torch.Generator) -> Tensor:
    """Of sizes around 2**exponent, a tenth of them zero, at most the format's largest."""
    x = torch.randn(shape, generator=g) * torch.exp2(torch.randint(-6, 7, shape, generator=g) + exponent)
    x = torch.where(torch.rand(shape, generator=g) < 0.1, 0.0, x)
    # PyTorch's conversion, or a mask of the ten bits that TF32 keeps
    return x.to(DTYPES[format]) if format != TF32 else (x.view(torch.int32) & -(2**13)).view(torch.float32)


def same(x: Tensor, y: Tensor) -> bool:
    return bool(((x == y) | (x.isnan() & y.isnan())).all())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("name", "formats", "core"), CORES, ids=[f"{c[0]}-{c[1][0]}-{c[1][1]}" for c in CORES])
def test_tensor_cores_add_up_as_mma_sim_does(
    name: str, formats: tuple[ScalarFormat, ScalarFormat], core: Any, implementation: str
) -> None:
    g = torch.Generator().manual_seed(0)
    acc = tensor_core(name, formats)
    for of_a, of_b, of_c in ((0, 0, 0), (-3, 2, -30), (-8, -5, -12), (-14, -14, -30), (-8, -20, -40)):
        a = numbers((core.m, core.k), formats[0], of_a, g)
        b = numbers((core.k, core.n), formats[1], of_b, g)
        c = numbers((core.m, core.n), FP32 if acc.sum == FP32 else TF32, of_c, g)
        wanted = core(a, b, c)
        got = product(implementation, a.float()[None], b.float()[None], acc, c[None])[0]
        assert same(got, wanted), (of_a, of_b, of_c)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("format", "chunk", "suffix"), [(FP16, 4, "f32_16x16x16f16"), (BF16, 2, "f32_16x16x8bf16")])
def test_fused_sums_are_those_of_the_first_matrix_cores(
    format: ScalarFormat, chunk: int, suffix: str, implementation: str
) -> None:
    """AMD's CDNA1 adds so, as MMA-Sim has it."""
    g = torch.Generator().manual_seed(0)
    core, acc = MFMA("CDNA1", suffix), Accumulator(FP32, chunk=chunk, order="aligned")
    for of_a, of_b, of_c in ((0, 0, 0), (-3, 2, -30), (-8, -5, -12), (4, 4, 40), (2, 2, -40)):
        a, b = numbers((core.m, core.k), format, of_a, g), numbers((core.k, core.n), format, of_b, g)
        a[:, 1::2], b[1::2] = -a[:, ::2], b[::2]  # pairs that cancel
        b[1] *= 1.25
        c = numbers((core.m, core.n), TF32, of_c, g)
        wanted = core(a, b, c)
        got = product(implementation, a.float()[None], b.float()[None], acc, c[None])[0]
        assert same(got, wanted), (of_a, of_b, of_c)


@pytest.mark.parametrize(
    ("format", "chunk", "suffix"),
    [(FP16, 4, "f32_16x16x16f16"), (BF16, 2, "f32_16x16x8bf16"), (BF16, 4, "f32_16x16x16bf16_1k")],
)
def test_sums_of_flushed_pairs_are_those_of_the_second_matrix_cores(
    format: ScalarFormat, chunk: int, suffix: str
) -> None:
    """CDNA2: products, sums of pairs and of pairs of them in fp32, and nothing is subnormal."""
    g = torch.Generator().manual_seed(0)
    core, flushed = MFMA("CDNA2", suffix), FloatingPoint(8, 23, subnormals="flush")
    acc = Accumulator(flushed, chunk=chunk, inner=Accumulator(flushed, flushed, order="pairwise"))
    operand = replace(format, subnormals="flush")
    for of_a, of_b, of_c in ((0, 0, 0), (-3, 2, -30), (-12, -12, -25), *[(-64, -64, -127)] * (format == BF16)):
        a, b = numbers((core.m, core.k), format, of_a, g), numbers((core.k, core.n), format, of_b, g)
        c = numbers((core.m, core.n), TF32, of_c, g)
        wanted = core(a, b, c)
        got = lptensor.matmul(*(lptensor.round(x.float(), operand) for x in (a, b)), accumulator=acc, c=c)
        assert same(got, wanted), (of_a, of_b, of_c)


def test_every_core_has_an_instruction() -> None:
    assert {name for name, _, _ in CORES} == set(_TENSOR_CORES)


# Mixed factors whose subnormal numbers differ: those of E5M2 begin at 2**-14, those of E4M3 at 2**-6.
FP8 = WGMMA("Hopper", "m64n8k32.f32.e5m2.e4m3")
MIXED = tensor_core("hopper_fp8", (E5M2, E4M3))


def small(*shape: int) -> Tensor:
    """Subnormal numbers of E4M3, each of which E5M2 has among its normal ones."""
    return torch.randint(-7, 8, shape, generator=torch.Generator().manual_seed(0)) * 2.0**-9


def spread(*shape: int) -> Tensor:
    """Numbers of E5M2 of many sizes."""
    g = torch.Generator().manual_seed(1)
    return torch.randint(-7, 8, shape, generator=g) * torch.exp2(torch.randint(-12, 1, shape, generator=g))


def of_hardware(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in E5M2 and E4M3, the sums of one instruction the addends of the next."""
    wanted: Tensor = FP8(a.to(torch.float8_e5m2), b.to(torch.float8_e4m3fn), torch.zeros(len(a), b.shape[1]))
    return wanted


def test_mixed_factors_keep_their_sides() -> None:
    a, b = spread(20, 96), small(96, 1)
    wanted = of_hardware(a, b)
    assert same(lptensor.matmul(a, b, MIXED), wanted)  # one column, which kernels turn into a row
    assert not same(lptensor.matmul(a, b, tensor_core("hopper_fp8")), wanted)
    assert not same(lptensor.matmul(a, b, tensor_core("hopper_fp8", (E4M3, E5M2))), wanted)


def test_convolutions_have_the_input_first() -> None:
    x, w = spread(1, 2, 6), small(5, 2, 3)
    windows = x[0].unfold(1, 3, 1).permute(1, 0, 2).reshape(4, 6)
    assert same(lptensor.conv(x, w, MIXED)[0], of_hardware(windows, w.reshape(5, 6).T).T)


@pytest.mark.parametrize("lowered", [False, True])
def test_layers_tell_their_accumulator_what_their_operands_are_in(lowered: bool) -> None:
    acc, gemm = tensor_core("hopper_fp8"), Gemm((E5M2, E4M3), (E5M2, E4M3), (E5M2, E5M2))
    linear, conv = torch.nn.Linear(96, 8, bias=False), torch.nn.Conv1d(2, 5, 3, bias=False)
    linear.weight.data, conv.weight.data = small(8, 96), small(5, 2, 3)
    layers = torch.nn.ModuleList([linear, conv])
    if lowered:
        lptensor.lower(layers, ["linear", "conv"], operands=gemm, accumulator=acc)
    else:
        lptensor.convert(layers, Arithmetic(operands=gemm, accumulator=acc))
    a, x = spread(20, 96), spread(1, 2, 6)
    a.requires_grad_()
    y = linear(a)
    assert same(plain(y), of_hardware(a.detach(), small(8, 96).T))
    windows = x[0].unfold(1, 3, 1).permute(1, 0, 2).reshape(4, 6)
    assert same(plain(conv(x))[0], of_hardware(windows, small(5, 2, 3).reshape(5, 6).T).T)
    g = spread(20, 8)
    y.backward(g)
    assert a.grad is not None
    assert same(plain(a.grad), of_hardware(g, small(8, 96)))


HIGH = FloatingPoint(4, 3, bias=-5)  # whose smallest exponent is 6


def test_terms_of_a_sum_are_no_factors() -> None:
    """A sum of numbers far below the smallest exponents of formats, in one block, and as a bias gradient."""
    x = small(30).abs() * 2.0**-8
    wanted = float(sum(map(Fraction, x.tolist()), Fraction(0)))
    both = Accumulator(FP32, chunk=512, order="aligned", alignment=13, operands=(HIGH, E4M3))
    assert lptensor.sum(x, accumulator=both).item() == wanted
    assert lptensor.sum(x, accumulator=Accumulator(FP32, chunk=2, inner=both)).item() == wanted
    linear, embedding = torch.nn.Linear(3, 1), torch.nn.Embedding(1, 1)
    lptensor.lower(torch.nn.ModuleList([linear, embedding]), ["linear", "embedding"], accumulator=both)
    linear(torch.ones(30, 3)).backward(x.view(30, 1))
    embedding(torch.zeros(30, dtype=torch.long)).backward(x.view(30, 1))
    assert [w.grad.item() for w in (linear.bias, embedding.weight) if w.grad is not None] == [wanted] * 2


@pytest.mark.parametrize("of", ["gradient", "tangent"])
def test_gradients_are_in_no_format_that_the_operands_are_in(of: str) -> None:
    """What hopper_fp8 would cut off all of, did it count with the smallest exponent of E4M3."""
    a, b, g = (torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5], [2.0**-9]]), torch.tensor([[2.0**-30]]))
    acc = tensor_core("hopper_fp8", E4M3)
    if of == "gradient":
        _, vjp = torch.func.vjp(lambda a, b: lptensor.matmul(a, b, acc), a, b)
        assert all(map(same, vjp(g), (g * b.mT, g * a.mT)))
    else:
        for given, wanted in (((g * a, 0 * b), g * 0.5 - 2 * g * 2.0**-9), ((0 * a, g * b), g * 0.5 - 2 * g * 2.0**-9)):
            _, tangent = torch.func.jvp(lambda a, b: lptensor.matmul(a, b, acc), (a, b), given)
            assert same(tangent, wanted)


@pytest.mark.parametrize("lowered", [False, True])
@pytest.mark.parametrize("columns", [8, 1])
def test_gradients_of_layers_are_in_no_format_that_an_accumulator_names(columns: int, lowered: bool) -> None:
    """The other factor of theirs is: an input in E5M2, or a weight in E4M3."""
    linear, conv = torch.nn.Linear(96, columns, bias=False), torch.nn.Conv1d(96, columns, 1, bias=False)
    a, w, g = spread(20, 96), small(columns, 96), spread(20, columns) * 2.0**-30
    linear.weight.data, conv.weight.data = w, w[:, :, None]
    if lowered:
        lptensor.lower(torch.nn.ModuleList([linear, conv]), ["linear", "conv"], accumulator=MIXED)
    else:
        lptensor.convert(torch.nn.ModuleList([linear, conv]), Arithmetic(accumulator=MIXED))
    x, z = a.clone().requires_grad_(), a.mT[None].clone().requires_grad_()
    linear(x).backward(g)
    conv(z).backward(g.mT[None])
    of_input = lptensor.matmul(g, w, tensor_core("hopper_fp8", (None, E4M3)))
    of_weight = lptensor.matmul(g.mT, a, tensor_core("hopper_fp8", (None, E5M2)))
    for found, wanted in ((x, of_input), (z, of_input.mT[None]), (linear.weight, of_weight)):
        assert found.grad is not None and same(plain(found.grad), wanted)
    assert conv.weight.grad is not None and same(plain(conv.weight.grad)[:, :, 0], of_weight)


def test_a_gemm_names_what_an_accumulator_does_not() -> None:
    """Subnormal numbers of E5M2 times numbers of E4M3 of many sizes."""
    acc, gemm = tensor_core("hopper_fp8", (None, E4M3)), Gemm((E5M2, E5M2))
    linear = lptensor.lower(torch.nn.Linear(96, 8, bias=False), ["linear"], operands=gemm, accumulator=acc)
    a, w = spread(20, 96).sign() * 2.0**-16, spread(8, 96) * 2.0**3
    linear.weight.data = w
    assert same(linear(a).detach(), of_hardware(a, w.T))


def test_products_of_tensors_in_a_format_add_up_as_mma_sim_does() -> None:
    """Subnormal numbers times large ones, which cancel, beside what they cut off; a gradient in E5M2 too."""
    core, of_gradient = WGMMA("Hopper", "m64n8k32.f32.e4m3.e4m3"), WGMMA("Hopper", "m64n8k32.f32.e5m2.e4m3")
    arithmetic = Arithmetic(E4M3, E5M2, accumulator=tensor_core("hopper_fp8"))
    a, b = torch.full((64, 32), 2.0**-6), torch.full((32, 8), 2.0**-6)
    a[:, :2], b[:2] = torch.tensor([2.0**-9, -(2.0**-9)]), 2.0**8
    y = low(a, arithmetic) @ low(b, arithmetic)
    zero = torch.zeros(64, 8)
    wanted = core(a.to(torch.float8_e4m3fn), b.to(torch.float8_e4m3fn), zero)
    assert same(plain(y), wanted.to(torch.float8_e4m3fn).float())
    assert not same(plain(y), lptensor.round(lptensor.matmul(a, b, tensor_core("hopper_fp8")), E4M3))
    g, w = torch.full((64, 32), 2.0**-14), torch.full((8, 32), 2.0**-6)
    g[:, :2], w[:, :2] = torch.tensor([2.0**-16, -(2.0**-16)]), 2.0**8
    x = low(torch.zeros(64, 8), arithmetic).requires_grad_()
    (x @ low(w, arithmetic)).backward(g)
    assert x.grad is not None
    wanted = of_gradient(g.to(torch.float8_e5m2), w.mT.to(torch.float8_e4m3fn), zero)
    assert same(plain(x.grad), wanted.to(torch.float8_e5m2).float())
    assert not same(plain(x.grad), lptensor.round(lptensor.matmul(g, w.mT, tensor_core("hopper_fp8")), E5M2))


COARSE = Accumulator(FP32, chunk=8, order="aligned", rounding="toward_zero", alignment=1)
TOLD = Gemm((E4M3, E4M3), (E5M2, E4M3), (E5M2, E4M3))  # which changes no number of tensors that are in these formats
F = torch.nn.functional
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mm": lambda a, b: a @ b,
    "addmm": lambda a, b: torch.addmm(torch.full((5,), 2.0**-9), a, b),
    "scaled addmm": lambda a, b: torch.addmm(torch.full((5,), 2.0**-9), a, b, alpha=2),
    "mv": lambda a, b: a @ b[:, 0],
    "dot": lambda a, b: a[0] @ b[:, 0],
    "bmm": lambda a, b: torch.bmm(a.reshape(2, 8, 6), b.reshape(2, 6, 5)),
    "baddbmm": lambda a, b: torch.baddbmm(torch.full((8, 5), 2.0**-9), a.reshape(2, 8, 6), b.reshape(2, 6, 5)),
    "addbmm": lambda a, b: torch.addbmm(torch.full((8, 5), 2.0**-9), a.reshape(2, 8, 6), b.reshape(2, 6, 5)),
    "linear": lambda a, b: F.linear(a, b.mT),
    "einsum": lambda a, b: torch.einsum("ij,jk->ki", a, b),
    "conv": lambda a, b: F.conv1d(a.reshape(2, 4, 12), b.reshape(5, 4, 3)),
    "conv in groups": lambda a, b: F.conv1d(a.reshape(2, 4, 12), b.reshape(10, 2, 3), groups=2),
    "transposed conv": lambda a, b: F.conv_transpose1d(a.reshape(2, 4, 12), b.reshape(4, 5, 3), stride=2),
}


def multiplied(name: str, small: int, arithmetic: Arithmetic, compiled: bool = False) -> list[Tensor]:
    """A product and the gradient of each factor, where one of two operands has subnormal numbers, the other large ones.

    Args:
        small: which factor has the subnormal numbers.
    """
    product, g = PRODUCTS[name], torch.Generator().manual_seed(0)

    def some(shape: Sequence[int], exponent: int) -> Tensor:
        return torch.randint(-3, 4, shape, generator=g) * torch.exp2(
            torch.randint(exponent, exponent + 2, shape, generator=g)
        )

    a, b = (some(shape, -9 if i == small else 4) for i, shape in enumerate(((8, 12), (12, 5))))
    found: list[Tensor] = []
    for i in range(2):
        factors = low(a, arithmetic).requires_grad_(), low(b, arithmetic).requires_grad_()
        y = (torch.compile(product, backend="aot_eager", fullgraph=True) if compiled else product)(*factors)
        y.backward(some(y.shape, -16 if i == small else 4))
        of_factor = factors[i].grad
        assert of_factor is not None
        found += [plain(y)] * (i == 0) + [plain(of_factor)]
    return found


@pytest.mark.parametrize("small", [0, 1])
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_knows_what_its_tensors_are_in(name: str, small: int) -> None:
    found = multiplied(name, small, Arithmetic(E4M3, E5M2, accumulator=COARSE))
    wanted = multiplied(name, small, Arithmetic(E4M3, E5M2, operands=TOLD, accumulator=COARSE))
    assert all(map(same, found, wanted))
    unknown = multiplied(name, small, Arithmetic(FP32, accumulator=COARSE))
    unchanged = [same(x, lptensor.round(y, f)) for x, y, f in zip(found, unknown, (E4M3, E5M2, E5M2), strict=True)]
    assert unchanged == [False, name in ("mv", "dot"), name == "dot"]  # which have gradients of one term


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # within torch's own compiler
@pytest.mark.parametrize("name", ["linear", "baddbmm", "conv", "transposed conv"])
def test_a_compiled_product_knows_what_its_tensors_are_in(name: str) -> None:
    arithmetic = Arithmetic(E4M3, E5M2, accumulator=COARSE)
    assert all(map(same, multiplied(name, 0, arithmetic, compiled=True), multiplied(name, 0, arithmetic)))


@pytest.mark.parametrize("small", ["query", "key", "value", "gradient"])
def test_attention_knows_what_its_tensors_are_in(small: str) -> None:
    """Of its weights, which stay unrounded between its products, that is unknown."""
    g = torch.Generator().manual_seed(0)
    least = {"query": -9, "key": -9, "value": -9, "gradient": -16}
    q, k, v, grad = (
        torch.randint(-3, 4, (1, 1, 4, 16), generator=g) * 2.0 ** (n if name == small else 3)
        for name, n in least.items()
    )
    tensors = [low(x, Arithmetic(E4M3, E5M2, accumulator=COARSE)).requires_grad_() for x in (q, k, v)]
    y = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(*tensors)[0]

    def product(a: Tensor, b: Tensor, *formats: ScalarFormat | None) -> Tensor:
        return lptensor.matmul(
            a, b, Accumulator(FP32, None, 8, "aligned", "toward_zero", alignment=1, operands=formats)
        )

    def total(x: Tensor) -> Tensor:
        return lptensor.sum(x, -1, True, accumulator=COARSE)

    scores = product(q, k.mT, E4M3, E4M3) / 4
    each = (scores - scores.amax(-1, keepdim=True)).exp()
    weights = each / total(each)
    assert same(plain(y), lptensor.round(product(weights, v, None, E4M3), E4M3))
    y.backward(grad)
    of_weights = product(grad, v.mT, E5M2, E4M3)
    of_scores = weights * (of_weights - total(weights * of_weights)) / 4
    wanted = [
        product(of_scores, k, None, E4M3),
        product(of_scores.mT, q, None, E4M3),
        product(weights.mT, grad, None, E5M2),
    ]
    for x, of_x in zip(tensors, wanted, strict=True):
        assert x.grad is not None and same(plain(x.grad), lptensor.round(of_x, E5M2))


def test_a_factor_that_is_plain_scaled_or_transformed_is_in_no_known_format() -> None:
    """A small product is kept then, as the large ones that cancel count with no more than they are."""
    row, column = torch.full((1, 4), 2.0**-9), torch.tensor([[2.0**5], [-(2.0**5)], [2.0**-2], [0.0]])
    acc, turn = Accumulator(FP32, chunk=8, order="aligned", rounding="toward_zero", alignment=8), Hadamard(4, "none")

    def product(a: Tensor, b: Tensor, format: ScalarFormat | None, operands: Gemm | None = None) -> float:
        a = a if format is None else low(a, Arithmetic(format, operands=operands, accumulator=acc))
        b = low(b, Arithmetic(FP32, operands=operands, accumulator=acc))
        return plain(a @ b).item()

    assert product(row, column, E4M3) == 0
    assert product(row, column, None) == 2.0**-11
    assert product(row, column, E4M3, Gemm((Scaled(E4M3, CurrentMaximum()), None))) == 2.0**-11
    first, second = (turn.apply(x, turn.draw(x)) for x in (row, column.mT))  # what the transform turns back
    assert product(first, second.mT, E4M3, Gemm(transform=turn)) == 2.0**-11


def low(x: Tensor, arithmetic: Arithmetic) -> Tensor:
    made: Tensor = x.to_lp(arithmetic)  # type: ignore[attr-defined]
    assert same(made.dequantize(), x)
    return made


def plain(x: Tensor) -> Tensor:
    return x.dequantize().detach() if isinstance(x, LPTensor) else x.detach()
