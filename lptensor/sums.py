"""Ops that add up many numbers, as an accumulator adds them, on plain tensors.

What has no row here and no formula in other ops, but adds up, is refused: an accumulator that was asked
for is never left out in silence.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.accumulator import Accumulator
from lptensor.exact_ops import correct
from lptensor.formats import Overflow
from lptensor.gemm import cumsum, gemm, reduce

aten = torch.ops.aten
_Sum = Callable[..., Any]


def add(x: Tensor, dim: Sequence[int] | int | None, acc: Accumulator, keepdim: bool = False) -> Tensor:
    """The sum over axes, in contiguous order; over all of them if none is named."""
    return reduce(x, tuple(dim) if isinstance(dim, Sequence) else dim, acc, keepdim)


def _root(x: Tensor) -> Tensor:
    root: Tensor = correct(aten.sqrt.default)(x)
    return root


def _count(x: Tensor, dim: Sequence[int] | int | None) -> int:
    axes = range(x.dim()) if dim is None or isinstance(dim, Sequence) and not dim else dim
    return math.prod(x.shape[d] for d in ([axes] if isinstance(axes, int) else axes)) if x.dim() else 1


def _sum(acc: Accumulator, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return add(x if dtype is None else x.to(dtype), dim, acc, keepdim)


def _mean(acc: Accumulator, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return _sum(acc, x, dim, keepdim, dtype=dtype) / _count(x, dim)


def _nansum(acc: Accumulator, x: Tensor, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    return _sum(acc, x.masked_fill(x.isnan(), 0.0), dim, keepdim, dtype=dtype)


def _cumsum(acc: Accumulator, x: Tensor, dim: int, *, dtype: Any = None) -> Tensor:
    return cumsum(x if dtype is None else x.to(dtype), dim, acc)


def _var_mean(
    acc: Accumulator, x: Tensor, dim: Any = None, *, correction: Any = 1, keepdim: bool = False
) -> tuple[Tensor, Tensor]:
    """Two passes: the mean, then the squares of what is left."""
    mean = _mean(acc, x, dim, True)
    count = _count(x, dim) - (1 if correction is None else correction)
    square = add((x - mean).square(), dim, acc, keepdim)
    # x / 0 is as torch has it: NaN for one number, which has no spread.
    return square / max(count, 0), mean.reshape(square.shape)


def _var(acc: Accumulator, x: Tensor, dim: Any = None, **named: Any) -> Tensor:
    return _var_mean(acc, x, dim, **named)[0]


def _std(acc: Accumulator, x: Tensor, dim: Any = None, **named: Any) -> Tensor:
    return _root(_var(acc, x, dim, **named))


def _std_mean(acc: Accumulator, x: Tensor, dim: Any = None, **named: Any) -> tuple[Tensor, Tensor]:
    var, mean = _var_mean(acc, x, dim, **named)
    return _root(var), mean


def _norm(
    acc: Accumulator, x: Tensor, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    if ord in (0, math.inf, -math.inf):  # counts or selects
        selected: Tensor = aten.linalg_vector_norm(x, ord, dim, keepdim)
        return selected
    if ord == 2:
        return _root(add(x.square(), dim, acc, keepdim))
    return add(x.abs().pow(ord), dim, acc, keepdim).pow(1.0 / ord)


def _norm_of(acc: Accumulator, x: Tensor, p: Any = 2, dim: Any = None, keepdim: bool = False, **named: Any) -> Tensor:
    return _norm(acc, x, 2 if p is None else p, dim, keepdim, **named)


def _norms(acc: Accumulator, xs: Sequence[Tensor], ord: Any = 2, dtype: Any = None) -> list[Tensor]:
    return [_norm(acc, x, ord, dtype=dtype) for x in xs]


def _logsumexp(acc: Accumulator, x: Tensor, dim: Any, keepdim: bool = False) -> Tensor:
    if x.numel() == 0:  # nothing to add, and no largest
        nothing: Tensor = aten.logsumexp(x, dim, keepdim)
        return nothing
    most = x.amax(dim, keepdim=True)
    most = torch.where(most.isinf(), 0.0, most)
    return add((x - most).exp(), dim, acc, keepdim).log() + (most if keepdim else most.squeeze(dim))


def _trace(acc: Accumulator, x: Tensor) -> Tensor:
    return add(x.diagonal(), 0, acc)


def _weight_norm(acc: Accumulator, v: Tensor, g: Tensor, dim: int = 0) -> tuple[Tensor, Tensor]:
    """Each slice of ``v`` along an axis in the length that ``g`` gives, and the lengths they had."""
    norms = _root(add(v.square(), _others(v, dim), acc, True))
    return v * (g / norms), norms


def _weight_norm_backward(
    acc: Accumulator, grad: Tensor, v: Tensor, g: Tensor, norms: Tensor, dim: int
) -> tuple[Tensor, Tensor]:
    along = add(grad * v, _others(v, dim), acc, True)
    return g / norms * (grad - v * (along / norms.square())), along / norms


def _others(x: Tensor, dim: int) -> list[int]:
    return [d for d in range(x.dim()) if d != dim]


def _embedding_backward(
    acc: Accumulator, grad: Tensor, indices: Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> Tensor:
    """Each row adds up the gradients of its uses, in their order: a product with the table of uses.

    A gradient that is not finite would be NaN in the rows that do not use it, and counts by itself.
    """
    if scale_grad_by_freq:
        raise NotImplementedError(_refusal("embedding with scale_grad_by_freq", "leave scale_grad_by_freq out"))
    used = indices.flatten()
    uses = (used == torch.arange(num_weights, device=used.device).unsqueeze(1)).to(grad.dtype)
    if padding_idx >= 0:
        uses[padding_idx] = 0
    grad = grad.flatten(0, -2) if grad.dim() > 1 else grad.unsqueeze(0)
    if _saturates(acc):  # a sum that meets an infinity goes on from the largest value
        most = torch.finfo(grad.dtype).max
        grad = grad.clamp(-most, most)
    finite = grad.isfinite()
    sums = gemm(uses, grad.masked_fill(~finite, 0.0), acc.naming(False, False))
    specials = torch.zeros_like(sums).index_add(0, used, grad.masked_fill(finite, 0.0))
    if padding_idx >= 0:
        specials[padding_idx] = 0
    last = Accumulator(acc.sum, wrap=acc.wrap)  # what the format makes of them; rounds no other number
    return torch.where(specials == 0, sums, reduce(specials.unsqueeze(0), 0, last))


def _saturates(acc: Accumulator) -> bool:
    """Whether what is made of a term first has a format without infinities."""
    if acc.nested:
        return _saturates(acc.inside)
    if acc.product is not None and acc.product.grid.overflow is Overflow.SATURATE:
        return True
    term_by_term = acc.order in ("sequential", "pairwise", "kahan") and not acc.wrap
    return term_by_term and acc.sum.grid.overflow is Overflow.SATURATE


def _apart(sizes: Any, stride: Any, dilation: Any) -> bool:
    """Whether a pooling's windows share no element, so that its backward pass adds nothing up."""
    steps = [*stride] or [*sizes]
    sizes = [*sizes] * (len(steps) // len(sizes))
    steps = steps * (len(sizes) // len(steps))
    return all(d == 1 for d in dilation) and all(k <= s for k, s in zip(sizes, steps, strict=True))


def _pool_backward(func: Any) -> _Sum:
    def run(acc: Accumulator, grad: Tensor, x: Tensor, sizes: Any, stride: Any, *rest: Any) -> Tensor:
        dilation = rest[1] if "max_pool" in str(func) else (1,)
        if not _apart(sizes, stride, dilation):
            raise NotImplementedError(_refusal(func, "let its windows not overlap (stride at least kernel_size)"))
        alone: Tensor = func(grad, x, sizes, stride, *rest)
        return alone

    return run


_POOLS_BACKWARD = (
    aten.max_pool2d_with_indices_backward.default,
    aten.max_pool3d_with_indices_backward.default,
    aten.avg_pool2d_backward.default,
    aten.avg_pool3d_backward.default,
)

SUMS: dict[Any, _Sum] = {
    aten.sum.default: _sum,
    aten.sum.dim_IntList: _sum,
    aten.nansum.default: _nansum,
    aten.mean.default: _mean,
    aten.mean.dim: _mean,
    aten.cumsum.default: _cumsum,
    aten.var.correction: _var,
    aten.std.correction: _std,
    aten.var_mean.correction: _var_mean,
    aten.std_mean.correction: _std_mean,
    aten.linalg_vector_norm.default: _norm,
    aten.norm.Scalar: _norm_of,
    aten.norm.ScalarOpt_dim: _norm_of,
    aten.norm.ScalarOpt_dtype: _norm_of,
    aten.norm.ScalarOpt_dim_dtype: _norm_of,
    aten._foreach_norm.Scalar: _norms,
    aten.logsumexp.default: _logsumexp,
    aten.trace.default: _trace,
    aten._weight_norm_interface.default: _weight_norm,
    aten._weight_norm_interface_backward.default: _weight_norm_backward,
    aten.embedding_dense_backward.default: _embedding_backward,
    **{func: _pool_backward(func) for func in _POOLS_BACKWARD},
}

# What writes a sum into an argument: the op that computes it.
WRITTEN_SUMS = {
    aten.cumsum_.default: aten.cumsum.default,
    aten.cumsum.out: aten.cumsum.default,
    aten.sum.IntList_out: aten.sum.dim_IntList,
    aten.sum.out: aten.sum.default,
    aten.nansum.out: aten.nansum.default,
    aten.mean.out: aten.mean.dim,
    aten.mean.dtype_out: aten.mean.default,
    aten.var.correction_out: aten.var.correction,
    aten.std.correction_out: aten.std.correction,
    aten.linalg_vector_norm.out: aten.linalg_vector_norm.default,
    aten.norm.out: aten.norm.ScalarOpt_dim,
    aten.logsumexp.out: aten.logsumexp.default,
}

# Ops with a formula in simpler ones, of which the sums, means and variances are added up; see ``primitives``.
FORMULAS = frozenset(
    f"aten::{name}"
    for name in """
    _softmax _softmax_backward_data _log_softmax _log_softmax_backward_data _safe_softmax
    native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    native_batch_norm _native_batch_norm_legit _batch_norm_with_update native_batch_norm_backward
    batch_norm_backward cudnn_batch_norm cudnn_batch_norm_backward _fused_rms_norm _fused_rms_norm_backward
    mse_loss smooth_l1_loss huber_loss binary_cross_entropy binary_cross_entropy_with_logits soft_margin_loss
    multi_margin_loss nll_loss_forward nll_loss2d_forward affine_grid_generator
    """.split()
)

# Ops that add up, in an order of their own.
_REFUSED = frozenset(
    f"aten::{name}"
    for name in """
    avg_pool1d avg_pool2d avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d _adaptive_avg_pool2d_backward
    _adaptive_avg_pool3d_backward adaptive_max_pool2d_backward adaptive_max_pool3d_backward
    fractional_max_pool2d_backward fractional_max_pool3d_backward
    upsample_linear1d upsample_bilinear2d upsample_trilinear3d upsample_bicubic2d _upsample_bilinear2d_aa
    _upsample_bicubic2d_aa upsample_linear1d_backward upsample_bilinear2d_backward upsample_trilinear3d_backward
    upsample_bicubic2d_backward upsample_nearest1d_backward upsample_nearest2d_backward
    upsample_nearest3d_backward _upsample_bilinear2d_aa_backward _upsample_bicubic2d_aa_backward
    _upsample_nearest_exact1d_backward _upsample_nearest_exact2d_backward _upsample_nearest_exact3d_backward
    _upsample_lanczos2d_aa _upsample_lanczos2d_aa_backward
    reflection_pad1d_backward reflection_pad2d_backward reflection_pad3d_backward replication_pad1d_backward
    replication_pad2d_backward replication_pad3d_backward grid_sampler_2d grid_sampler_2d_backward
    grid_sampler_3d grid_sampler_3d_backward col2im unfold_backward
    _unsafe_masked_index_put_accumulate _sparse_mm_reduce_impl sparse_sampled_addmm
    index_add scatter_add scatter_reduce index_reduce segment_reduce
    _embedding_bag _embedding_bag_forward_only _embedding_bag_dense_backward _embedding_bag_per_sample_weights_backward
    logcumsumexp cumprod prod renorm embedding_renorm dist histc histogram bincount
    _histogramdd_from_bin_cts _histogramdd_from_bin_tensors
    _cdist_forward _cdist_backward _euclidean_dist _pdist_forward _pdist_backward _ctc_loss _ctc_loss_backward
    multi_margin_loss_backward multilabel_margin_loss_forward multilabel_margin_loss_backward
    miopen_batch_norm miopen_batch_norm_backward _thnn_fused_lstm_cell_backward_impl _thnn_fused_gru_cell_backward
    _scaled_dot_product_flash_attention _scaled_dot_product_efficient_attention
    _scaled_dot_product_cudnn_attention _trilinear conv_tbc conv_tbc_backward
    linalg_solve_triangular triangular_solve linalg_lu_factor_ex linalg_lu linalg_lu_solve _linalg_solve_ex
    linalg_inv_ex linalg_cholesky_ex cholesky cholesky_inverse cholesky_solve linalg_qr geqrf ormqr
    linalg_householder_product _linalg_svd _linalg_eigh _linalg_det _linalg_slogdet linalg_matrix_exp
    linalg_lstsq linalg_pinv linalg_ldl_factor_ex linalg_ldl_solve _fft_r2c _fft_c2r _fft_c2c
    """.split()
)


# Overloads of these that have no row, most of which write into an argument, are not left to torch either.
_ADDED_UP = frozenset(_compat.schema(func).name for func in SUMS) | FORMULAS | {"aten::softmax", "aten::log_softmax"}


def refuse_sum(func: Any, args: Sequence[Any]) -> None:
    """Raise if ``func`` adds up numbers in a way that no accumulator stands for."""
    base = _compat.schema(func).name.removesuffix("_")
    accumulates = base.endswith("index_put") or base.endswith("_index_put_impl") or base == "aten::put"
    reduces = base == "aten::scatter" and "reduce" in _compat.schema(func).overload_name
    if base in _ADDED_UP:
        raise NotImplementedError(_refusal(func, "call it without out="))
    if base in _REFUSED or reduces or accumulates and len(args) > 3 and args[3]:
        raise NotImplementedError(_refusal(func, "compute it on .dequantize()d tensors"))


def _refusal(func: Any, way_out: str) -> str:
    return (
        f"{func} accumulates numbers, and there is no accumulator for it: {way_out}, or give the tensors an arithmetic "
        "without one (.to_lp(...), or for a module a path rule of convert)"
    )
