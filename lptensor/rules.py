"""Rules that decide what happens to an op's results: derived from its schema, exceptions listed."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from lptensor import _compat


class Kind(enum.Enum):
    """What an op does to values."""

    DECOMPOSE = enum.auto()  # made of other ops, each of which rounds
    RESHAPE = enum.auto()  # changes shape or storage of its argument in place
    MUTATE = enum.auto()  # writes into arguments, in their formats
    VIEW = enum.auto()  # another look at the same memory
    KEEP = enum.auto()  # selects among its operands' values, never makes new ones
    ROUND = enum.auto()  # computes: every fresh fp32 result rounds once
    COLLECT = enum.auto()  # other processes take part: results are there once all have done so, and round then
    REFUSE = enum.auto()  # cannot round where it should; the reason says what to do


@dataclass(frozen=True)
class Rule:
    """How one operator overload is treated."""

    kind: Kind
    writes: tuple[int | str, ...] = ()  # arguments written to: positions, names where keyword-only
    returns: tuple[int | str | None, ...] = ()  # for each result the written argument it is, if any
    exact: frozenset[int] = frozenset()  # results that are statistics of the op: plain, never rounded
    selects: bool = False  # an in-place op that only selects values
    values: tuple[int | str, ...] = ()  # arguments whose values may become results: not masks, not indices
    scalars: tuple[int | str, ...] = ()  # arguments through which a number may become a value
    unsaid: tuple[Any, ...] = ()  # their defaults
    foreach: bool = False  # item i of each list belongs to item i of the results
    named_dtype: tuple[int | str, ...] = ()  # arguments by which a caller names dtype or layout
    names_layout: bool = False  # an op that is called for another layout, as to_sparse()
    resizes: bool = False  # may give its argument other memory
    reason: str = ""


# Composite ops that nevertheless have a kernel of their own per device are not decomposed.
_BACKENDS = ("CPU", "CUDA")

# They change the storage of their argument, and not all have the tag that says that they change it at all.
_RESHAPES = frozenset({"aten::resize_", "aten::resize_as_", "aten::set_"})

# Write to arguments without saying so in the schema: found by running every op on its samples.
_HIDDEN_WRITES = {
    "aten::native_batch_norm": (3, 4),
    "aten::cudnn_batch_norm": (3, 4),
    "aten::miopen_batch_norm": (3, 4),
    "aten::batch_norm_gather_stats": (3, 4),
    "aten::batch_norm_gather_stats_with_counts": (3, 4),
}

# Results that an op saves for its own backward (DESIGN of the contract: statistics are never rounded).
_STATISTICS = {
    "aten::native_layer_norm": {1, 2},
    "aten::native_group_norm": {1, 2},
    "aten::native_batch_norm": {1, 2},
    "aten::_native_batch_norm_legit": {1, 2},
    "aten::_native_batch_norm_legit_no_training": {1, 2},
    "aten::_batch_norm_with_update": {1, 2},
    "aten::_batch_norm_no_update": {1, 2},
    "aten::cudnn_batch_norm": {1, 2},
    "aten::miopen_batch_norm": {1, 2},
    "aten::batch_norm_stats": {0, 1},
    "aten::_fused_rms_norm": {1},
    "aten::_weight_norm_interface": {1},
    "aten::_scaled_dot_product_flash_attention_for_cpu": {1},
    "aten::_scaled_dot_product_flash_attention": {1},
    "aten::_scaled_dot_product_efficient_attention": {1},
    "aten::_scaled_dot_product_cudnn_attention": {1},
    "aten::log_sigmoid_forward": {1},
    "aten::nll_loss_forward": {1},
    "aten::nll_loss2d_forward": {1},
    "aten::_ctc_loss": {1},
    "aten::_cudnn_ctc_loss": {1},
    "aten::miopen_ctc_loss": {1},
}

_LAYER = "would round the work of a whole layer once: call lptensor.convert on the model, or "
# What another process sends is there only after the caller has waited for it, and then there is no op to round in.
_RECEIVES = "fills a tensor at a time that no op sees: receive into a plain tensor, wait, and round it with .to_lp()"
_NESTED = "makes a nested tensor, which has no format: say x.dequantize() first"
_REFUSED = {
    "aten::_transformer_encoder_layer_fwd": _LAYER + "torch.backends.mha.set_fastpath_enabled(False)",
    "aten::_native_multi_head_attention": _LAYER + "torch.backends.mha.set_fastpath_enabled(False)",
    "aten::mkldnn_rnn_layer": _LAYER + "run it under torch.backends.mkldnn.flags(enabled=False)",
    "c10d::recv_": _RECEIVES,
    "c10d::recv_any_source_": _RECEIVES,
    "_c10d_functional::irecv": _RECEIVES,
    "_c10d_functional::batch_p2p_ops": _RECEIVES,
    "aten::_nested_tensor_from_tensor_list": _NESTED,
    "aten::_nested_tensor_from_mask": _NESTED,
    "aten::_nested_view_from_buffer": _NESTED,
    "aten::_nested_view_from_buffer_copy": _NESTED,
    "aten::_nested_from_padded": _NESTED,
}

# Called for the layout they are named after, with an argument or without one.
_LAYOUTS = frozenset(
    f"aten::{name}"
    for name in """
        _to_sparse _to_sparse_csr _to_sparse_csc _to_sparse_bsr _to_sparse_bsc to_mkldnn sparse_mask
    """.split()
)

# What selecting ops call the tensors by which they select.
_SELECTORS = frozenset({"condition", "index", "indices", "lengths", "mask", "offsets", "random_samples"})

# The types of numbers in schemas, as their names.
_NUMBERS = frozenset({"number", "float", "Optional[number]", "Optional[float]"})

# Libraries of torch's own that say aten's names for what aten does.
_TORCH = frozenset({"aten", "prims", "fsdp"})

# Ops whose results are values of their operands, or zero: found by running every op on PyTorch's own
# samples, held by a property test. A fill value is looked at when the op runs.
_KEEP = frozenset(
    """
    _chunk_cat _index_put_impl _new_zeros_with_same_feature_meta _pack_padded_sequence _to_copy _unique2
    _unsafe_index_put _unsafe_masked_index _unsafe_view _upsample_nearest_exact1d _upsample_nearest_exact2d
    adaptive_max_pool2d adaptive_max_pool3d amax amin aminmax as_strided_scatter block_diag cat channel_shuffle
    clamp clamp.Tensor clamp_max.Tensor clamp_min clamp_min.Tensor clone constant_pad_nd cummax cummin diag_embed
    diagonal_backward diagonal_scatter embedding empty_like flip fmax fmin fractional_max_pool2d
    fractional_max_pool3d gather hardshrink hardshrink_backward hardtanh hardtanh_backward im2col index.Tensor
    index_copy index_fill.int_Scalar index_fill.int_Tensor index_put index_select kthvalue masked_fill.Scalar
    masked_fill.Tensor masked_scatter masked_scatter_backward masked_select max max.dim max_pool2d_with_indices
    max_pool3d_with_indices max_unpool2d max_unpool3d maximum median median.dim min min.dim minimum mode nan_to_num
    nanmedian nanmedian.dim new_empty new_empty_strided new_zeros pixel_shuffle pixel_unshuffle put reflection_pad1d
    reflection_pad2d reflection_pad3d relu repeat replication_pad1d replication_pad2d replication_pad3d roll rot90
    scatter.src scatter.value select_backward select_scatter slice_backward slice_scatter softshrink_backward sort
    sort.stable stack take threshold threshold_backward topk tril triu unique_consecutive unsafe_split.Tensor
    upsample_nearest1d upsample_nearest2d upsample_nearest3d where.self zeros_like
    """.split()
)


@cache
def rule_for(func: Any) -> Rule:
    """The rule of an operator overload; every one has one.

    >>> rule_for(torch.ops.aten.relu.default).kind.name, rule_for(torch.ops.aten.tanh.default).kind.name
    ('KEEP', 'ROUND')
    """
    schema = _compat.schema(func)
    name = schema.name
    arguments = [i if not a.kwarg_only else a.name for i, a in enumerate(schema.arguments)]
    named = tuple(p for p, a in zip(arguments, schema.arguments, strict=True) if a.name in ("dtype", "layout"))
    numbers = [(p, a.default_value) for p, a in zip(arguments, schema.arguments, strict=True) if _is_number(a)]
    values = tuple(
        p
        for p, a in zip(arguments, schema.arguments, strict=True)
        if "Tensor" in str(a.type) and a.name not in _SELECTORS
    )
    common: dict[str, Any] = {
        "values": values,
        "exact": frozenset(_STATISTICS.get(name, ())),
        "foreach": name.startswith("aten::_foreach_"),
        "named_dtype": named,
        "names_layout": name in _LAYOUTS,
        "scalars": tuple(place for place, _ in numbers),
        "unsaid": tuple(default for _, default in numbers),
    }
    if name in _REFUSED:
        return Rule(Kind.REFUSE, reason=_REFUSED[name])
    if name == "_c10d_functional::wait_tensor":
        return Rule(Kind.KEEP, **common)
    in_place = name.startswith("c10d::") and name.endswith("_") and bool(schema.returns)  # a barrier returns nothing
    if name.startswith("_c10d_functional::") or in_place:
        marked = _mutating(func, arguments, common).writes
        return Rule(Kind.COLLECT, writes=marked or ((0,) if in_place else ()), **common)
    composite = _compat.has_kernel(func, "CompositeImplicitAutograd")
    if composite and not any(_compat.has_kernel(func, key) for key in _BACKENDS):
        return Rule(Kind.DECOMPOSE, **common)
    if torch.Tag.inplace_view in func.tags or name in _RESHAPES:
        return Rule(Kind.RESHAPE, resizes=name in _RESHAPES, **common)
    if schema.is_mutable or name in _HIDDEN_WRITES:
        return _mutating(func, arguments, common)
    if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
        return Rule(Kind.VIEW, **common)
    if torch.Tag.view_copy in func.tags or _overload(func) in _KEEP:
        if name.endswith("_backward"):  # what the op was given, and its bounds, say which gradients are kept
            gradients = (p for p, a in zip(arguments, schema.arguments, strict=True) if a.name.startswith("grad"))
            common |= {"values": tuple(gradients), "scalars": (), "unsaid": ()}
        return Rule(Kind.KEEP, **common)
    return Rule(Kind.ROUND, **common)


def argument(place: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The argument of a call at a place as rules name it, None if it was left away."""
    if isinstance(place, str):
        return kwargs.get(place)
    return args[place] if place < len(args) else None


def _mutating(func: Any, arguments: list[int | str], common: dict[str, Any]) -> Rule:
    schema = _compat.schema(func)
    writes, written = [], {}  # the second by alias set, which torch leaves empty for lists
    for place, argument in zip(arguments, schema.arguments, strict=True):
        if argument.alias_info is not None and argument.alias_info.is_write:
            writes.append(place)
            written[frozenset(argument.alias_info.before_set)] = place
    returns = tuple(
        None if r.alias_info is None else written.get(frozenset(r.alias_info.before_set)) for r in schema.returns
    )
    hidden = _HIDDEN_WRITES.get(schema.name, ())
    name, _, overload = _overload(func).partition(".")
    base = name.removesuffix("_") + (f".{overload}" if overload else "")
    return Rule(
        Kind.MUTATE,
        writes=(*writes, *hidden),
        returns=returns,
        selects=base in _KEEP or base in ("copy", "zero"),
        **common,
    )


def _overload(func: Any) -> str:
    """The name of an overload as in _KEEP, ``relu`` or ``scatter.src``; of a user's library with the library's."""
    library, _, name = str(func).partition(".")
    return name.removesuffix(".default") if library in _TORCH else str(func)


def _is_number(argument: Any) -> bool:
    """Whether an argument is a number that an op may put into its result, or has an op add where it selects."""
    return str(argument.type) in _NUMBERS or argument.name == "accumulate"
