"""Matrix products and convolutions whose arithmetic says how operands are rounded, or what adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from lptensor import _compat, attention, unfolded
from lptensor.arguments import Opened, join
from lptensor.exact_ops import correct
from lptensor.grouped import grouped_mm
from lptensor.multiply import Multiply
from lptensor.operands import Product
from lptensor.running_product import running_product

aten = torch.ops.aten


_Handler = Callable[[Opened, Multiply], Any]


class _Operands(NamedTuple):
    """The places of the two operands of an op that is one product, and how many axes each has."""

    places: tuple[int, int]
    axes: tuple[int, int]


_OPERANDS = {
    aten.mm.default: _Operands((0, 1), (2, 2)),
    aten.bmm.default: _Operands((0, 1), (3, 3)),
    aten.mv.default: _Operands((0, 1), (2, 1)),
    aten.dot.default: _Operands((0, 1), (1, 1)),
    aten.vdot.default: _Operands((0, 1), (1, 1)),
    aten.addmm.default: _Operands((1, 2), (2, 2)),
    aten._addmm_activation.default: _Operands((1, 2), (2, 2)),
    aten.addmv.default: _Operands((1, 2), (2, 1)),
    aten.addbmm.default: _Operands((1, 2), (3, 3)),
    aten.baddbmm.default: _Operands((1, 2), (3, 3)),
}


def _of_running(multiply: Multiply, left: Any, right: Any) -> Multiply:
    """The same for the product that runs, of these operands as they came to the op."""
    product = running_product(left, right) if multiply.asks else (Product.FORWARD, 0)
    return multiply.of(*product, (left, right))


def _product(op: Opened, multiply: Multiply) -> Any:
    """An op of one product: its operands are rounded as matrices, and torch computes the rest of it."""
    (i, j), axes = _OPERANDS[op.func]
    a, b = op.plain[i], op.plain[j]
    if (a.dim(), b.dim()) != axes or axes == (3, 3) and a.shape[0] != b.shape[0]:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        alike = " of one length of the first" if axes == (3, 3) else ""
        raise RuntimeError(f"{op.func} multiplies tensors of {axes[0]} and {axes[1]} axes{alike}, got {shapes}")
    for x in (a, b):
        if x.layout is not torch.strided:
            _refuse(op.func, f"an operand is {x.layout}; convert it with .to_dense()")
    multiply = _of_running(multiply, op.args[i], op.args[j])
    func, vector_left, vector_right = op.func, a.dim() == 1, b.dim() == 1
    if func is aten.addbmm.default:  # sums over the batch too: one long contraction
        a, b, func = a.transpose(0, 1).flatten(1), b.flatten(0, 1), aten.addmm.default
    a, b = a.unsqueeze(0) if vector_left else a, b.unsqueeze(-1) if vector_right else b
    args = list(op.plain)
    if multiply.accumulator is not None:
        addend, factors = args[0] if i == 1 else None, op.named
        if func is aten._addmm_activation.default:  # torch leaves out what is at its default
            factors = {"use_gelu": False, **factors}
        return _added_up(multiply, a, b, addend, vector_left, vector_right, **factors)
    a, b = multiply.operands(a, b)
    args[i], args[j] = a.squeeze(0) if vector_left else a, b.squeeze(-1) if vector_right else b
    return correct(func)(*args, **op.named)


def _added_up(
    multiply: Multiply,
    a: Tensor,
    b: Tensor,
    addend: Tensor | None,
    vector_left: bool,
    vector_right: bool,
    alpha: Any = 1,
    beta: Any = 1,
    use_gelu: bool | None = None,
) -> Tensor:
    """beta * addend + alpha * a @ b; the addend begins the sum, unless something is scaled."""
    if addend is not None:
        if vector_right:
            addend = addend.unsqueeze(-1)
        addend = addend.expand(*a.shape[:-1], b.shape[-1])
    within = addend if alpha == 1 and beta == 1 else None
    y = multiply.matmul(a, b, within)
    y = y if alpha == 1 else y * alpha if alpha != 0 else torch.zeros_like(y)  # which hides NaN, as in BLAS
    if addend is not None and within is None and beta != 0:
        y = y + beta * addend
    y = y.squeeze(-1) if vector_right else y
    y = y.squeeze(0) if vector_left else y
    return y if use_gelu is None else torch.nn.functional.gelu(y, approximate="tanh") if use_gelu else y.relu()


def _grouped(op: Opened, multiply: Multiply) -> Any:
    """Products of groups of rows with a matrix each, which know nothing of each other."""
    return grouped_mm(*op.plain, **op.named, matmul=_of_running(multiply, *op.args[:2]).matmul)


def _convolution(op: Opened, multiply: Multiply) -> Any:
    x, weight, bias, *form = op.plain
    return unfolded.forward(
        multiply.of(Product.FORWARD, 0, (op.args[0], op.args[1])), x, weight, bias, unfolded.Form(*form)
    )


def _convolution_backward(op: Opened, multiply: Multiply) -> Any:
    grad, x, weight, _, *form, mask = op.plain
    return unfolded.backward(multiply, op.args, grad, x, weight, unfolded.Form(*form), mask)


def _attention(op: Opened, multiply: Multiply) -> Any:
    return attention.forward(multiply, op.args, *op.plain, **op.named)


def _attention_backward(op: Opened, multiply: Multiply) -> Any:
    return attention.backward(multiply, op.args, *op.plain, **op.named)


def _refused(reason: str) -> _Handler:
    return lambda op, multiply: _refuse(op.func, reason)


def _refuse(func: Any, reason: str) -> NoReturn:
    raise NotImplementedError(f"{func} has no rounded operands and no accumulator: {reason}")


def _present(names: str) -> list[Any]:
    """Those of some ops that this torch has."""
    return [getattr(aten, name).default for name in names.split() if hasattr(aten, name)]


_FUSED = _refused(attention.WAY_OUT)

PRODUCTS: dict[Any, _Handler] = {
    **dict.fromkeys(_OPERANDS, _product),
    aten.convolution.default: _convolution,
    aten.convolution_overrideable.default: _convolution,
    aten.convolution_backward.default: _convolution_backward,
    aten._scaled_dot_product_flash_attention_for_cpu.default: _attention,
    aten._scaled_dot_product_flash_attention_for_cpu_backward.default: _attention_backward,
    aten._scaled_dot_product_flash_attention.default: _FUSED,
    aten._scaled_dot_product_efficient_attention.default: _FUSED,
    aten._scaled_dot_product_cudnn_attention.default: _FUSED,
    aten._trilinear.default: _refused("nn.Bilinear multiplies three operands at once; write it as two products"),
    aten.conv_tbc.default: _refused("use conv1d on a transposed input"),
    **dict.fromkeys(_present("_grouped_mm"), _grouped),
    **dict.fromkeys(_present("_foreach_mm"), _refused("multiply the matrices one by one")),
    **dict.fromkeys(_present("_cudnn_rnn miopen_rnn"), _refused("use torch.backends.cudnn.flags(enabled=False)")),
}

# What writes its product into an argument: the op that computes it, and where the argument is.
WRITTEN = {
    aten.addmm_.default: aten.addmm.default,
    aten.baddbmm_.default: aten.baddbmm.default,
    aten.addbmm_.default: aten.addbmm.default,
    aten.addmv_.default: aten.addmv.default,
    aten.mm.out: aten.mm.default,
    aten.bmm.out: aten.bmm.default,
    aten.mv.out: aten.mv.default,
    aten.dot.out: aten.dot.default,
    aten.vdot.out: aten.vdot.default,
    aten.addmm.out: aten.addmm.default,
    aten._addmm_activation.out: aten._addmm_activation.default,
    aten.addmv.out: aten.addmv.default,
    aten.addbmm.out: aten.addbmm.default,
    aten.baddbmm.out: aten.baddbmm.default,
    aten.convolution.out: aten.convolution.default,
}

_NAMES = frozenset(_compat.schema(func).name for func in PRODUCTS) | {"aten::linear"}
_IN_CHUNKS = "torch_nn::_linear_cross_entropy_"  # what F.linear_cross_entropy calls if it has options


def refuse_product(func: Any) -> None:
    """Raise if ``func`` is an overload of a product that has no row, as that of linear with ``out=`` is."""
    if _compat.schema(func).name in _NAMES:
        _refuse(func, "call it without out= and out_dtype=")
    if _compat.schema(func).name.startswith(_IN_CHUNKS):
        _refuse(func, "leave options out of linear_cross_entropy()")


def multiplied(op: Opened) -> Any:
    """What a product gives on plain tensors, its operands rounded and added up as the arithmetic says."""
    arithmetic = join(op.found)
    return PRODUCTS[op.func](op, Multiply(arithmetic.operands, arithmetic.accumulator))
