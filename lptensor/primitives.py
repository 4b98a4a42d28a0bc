"""The contract "primitive": ops that have a formula in simpler ones run by it, forward and backward."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat
from lptensor.contracts import contract
from lptensor.rules import Kind, rule_for
from lptensor.tensor import LPTensor

# Ops of more than one step. Products, convolutions, sums, roots and elementary functions (exp, log, tanh, erf
# ...) are primitives, and so is what an optimizer calls: its foreach ops would round otherwise.
_WHOLE = frozenset(
    f"aten::{name}"
    for name in """
    _softmax _softmax_backward_data _log_softmax _log_softmax_backward_data _safe_softmax logsumexp logaddexp
    native_layer_norm native_layer_norm_backward native_group_norm native_group_norm_backward
    native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training _batch_norm_with_update
    native_batch_norm_backward batch_norm_backward _fused_rms_norm _fused_rms_norm_backward
    mean var var_mean std std_mean linalg_vector_norm norm dist
    sigmoid sigmoid_backward tanh_backward log_sigmoid_forward log_sigmoid_backward silu silu_backward
    gelu gelu_backward elu elu_backward selu celu mish mish_backward softplus softplus_backward
    hardswish hardswish_backward hardsigmoid hardsigmoid_backward leaky_relu leaky_relu_backward
    glu glu_backward native_dropout native_dropout_backward
    mse_loss mse_loss_backward smooth_l1_loss smooth_l1_loss_backward huber_loss huber_loss_backward
    binary_cross_entropy binary_cross_entropy_backward binary_cross_entropy_with_logits
    soft_margin_loss soft_margin_loss_backward multi_margin_loss
    nll_loss_forward nll_loss_backward nll_loss2d_forward nll_loss2d_backward
    """.split()
)

# Where these have the order of their norm, and its name.
_ORDERS = {"aten::linalg_vector_norm": (1, "ord"), "aten::norm": (1, "p"), "aten::dist": (2, "p")}


def _variance(x: Tensor, dims: Sequence[int] | None = None, correction: float | None = 1, **_: Any) -> Tensor:
    """Torch's formulas end in a variance, which has steps too: mean, difference, square, sum, quotient."""
    over = list(range(x.dim())) if dims is None else list(dims)
    count = math.prod(x.shape[dim] for dim in over)
    deviation = x - x.sum(over, keepdim=True) / count
    return (deviation * deviation).sum(over) / max(count - (1 if correction is None else correction), 0)


class Primitives(_compat.TorchDispatchMode):
    """Takes ops on LPTensors apart before they run, as long as the contract is "primitive"."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = _formula(func, args, kwargs) if contract() == "primitive" and LPTensor in types else None
        if formula is None:
            return func(*args, **kwargs)
        with self:
            return formula(*args, **kwargs)


def _formula(func: Any, args: Any, kwargs: Any) -> Callable[..., Any] | None:
    if not _compat.is_operator(func):
        return None
    name = _compat.schema(func).name
    if (order := _ORDERS.get(name)) and (args[order[0]] if len(args) > order[0] else kwargs.get(order[1], 2)) == 0:
        return None  # it counts what is not zero: its formula adds truth values up, to a plain sum
    if name == "prims::var":
        return _variance
    if name in _WHOLE:
        return _compat.decomposition(func)
    if name.endswith("_") and name[:-1] in _WHOLE:
        return _in_place(getattr(getattr(torch.ops.aten, name[6:-1]), _compat.schema(func).overload_name or "default"))
    if rule_for(func).kind is Kind.DECOMPOSE:
        return lambda *args, **kwargs: _compat.decompose(func, args, kwargs)
    return None


def _in_place(func: Any) -> Callable[..., Any]:
    def run(target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return target.copy_(func(target, *args, **kwargs))

    return run
