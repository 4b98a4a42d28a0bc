"""PyTorch's own samples for every op, and how a result of ours is compared with another's."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from lptensor import LPTensor

# Results are uninitialised memory, or the op exists on CUDA only.
UNCHECKABLE = ("empty", "new_empty", "jiterator")


@functools.cache
def op_database() -> list[Any]:
    """The entries of ``op_db`` that take float32 on a CPU and have a definite result."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal.common_methods_invocations import op_db

    return [op for op in op_db if torch.float32 in op.dtypes and not op.name.startswith(UNCHECKABLE)]


@functools.cache
def foreach_database() -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch.testing._internal import common_methods_invocations as known

    return [
        *known.foreach_unary_op_db,
        *known.foreach_binary_op_db,
        *known.foreach_pointwise_op_db,
        *known.foreach_reduce_op_db,
        *known.foreach_other_op_db,
    ]


def full_name(op: Any) -> str:
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


DEVICE = "cpu"  # where samples are made
_SAMPLES: dict[Any, list[tuple[Any, Any, Any]]] = {}  # making them takes longer than what is tested


@contextlib.contextmanager
def _without_looking_for_the_test() -> Iterator[None]:
    """torch asks which unittest wants a sample, and reads the sources of all modules there are: minutes, for none."""
    from torch.testing._internal import common_utils
    from torch.testing._internal.opinfo import core

    with pytest.MonkeyPatch.context() as patch:
        for module in (common_utils, core):
            patch.setattr(module, "extract_test_fn", lambda: None)
        yield


def samples_of(op: Any, count: int, requires_grad: bool = False) -> list[tuple[Any, Any, Any]]:
    """The first ``count`` samples of an op as (input, args, kwargs), the same on every call."""
    key = full_name(op), count, requires_grad, DEVICE
    if key not in _SAMPLES:
        torch.manual_seed(0)
        with _without_looking_for_the_test():
            found = op.sample_inputs(DEVICE, torch.float32, requires_grad=requires_grad)
            _SAMPLES[key] = [
                (s.input, tuple(s.args), dict(s.kwargs)) for _, s in zip(range(count), found, strict=False)
            ]
    return _SAMPLES[key]


def is_operand(x: Any) -> bool:
    return isinstance(x, Tensor) and x.dtype is torch.float32 and x.layout is torch.strided


def lowered(sample: Any, low: Callable[[Tensor], Tensor]) -> Any:
    """A sample with every fp32 tensor put in low precision; leaves stay leaves that require grad."""
    return tree_map(lambda x: low(x.detach()).requires_grad_(x.requires_grad) if is_operand(x) else x, sample)


def tensors(tree: Any) -> list[Tensor]:
    return [x for x in tree_leaves(tree) if isinstance(x, Tensor)]


def attempt(run: Callable[[], Any], seed: int = 1) -> tuple[Any, Exception | None]:
    """What ``run`` gives, or how it fails: an op that refuses a sample must refuse it on both sides."""
    torch.manual_seed(seed)
    try:
        return run(), None
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError, AssertionError) as error:
        return None, error


def plain(x: Any) -> Any:
    return x._inner if type(x) is LPTensor else x


def bits(x: Tensor) -> Tensor:
    """The values as integers: -0 apart from 0, every NaN the same."""
    if x.layout is not torch.strided:
        x = x.to_dense()
    x = x.detach().resolve_conj().resolve_neg()
    if x.is_complex():
        x = torch.view_as_real(x)
    if not x.is_floating_point():
        return x
    x = torch.where(x.isnan(), torch.full_like(x, torch.nan), x)
    return x.contiguous().view({2: torch.int16, 4: torch.int32, 8: torch.int64}[x.element_size()])


def difference(ours: Any, theirs: Any) -> str:
    """What tells two results apart, empty if nothing does. Layout of wrapper and values is looked at too."""
    if type(ours) is LPTensor and (ours.shape != ours._inner.shape or ours.stride() != ours._inner.stride()):
        return f"wrapper {tuple(ours.shape)} {ours.stride()}, values {tuple(ours._inner.shape)} {ours._inner.stride()}"
    a, b = plain(ours), plain(theirs)
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return "" if a == b or (a != a and b != b) else f"{a} and {b}"
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return f"{a.dtype} {tuple(a.shape)} on {a.device} and {b.dtype} {tuple(b.shape)} on {b.device}"
    apart = bits(a) != bits(b)
    return f"{int(apart.sum())} of {apart.numel()} values differ" if apart.any() else ""


def differences(ours: Any, theirs: Any) -> list[str]:
    a, b = tree_leaves(ours), tree_leaves(theirs)
    if len(a) != len(b):
        return [f"{len(a)} and {len(b)} results"]
    return [d for x, y in zip(a, b, strict=True) if (d := difference(x, y))]


def places(ours: Tensor, theirs: Tensor) -> int:
    """How many values of the 16-bit dtype of ``theirs`` lie between the two, at worst."""

    def rank(x: Tensor) -> Tensor:
        code = x.detach().to(theirs.dtype).contiguous().view(torch.int16).int()
        return torch.where(code < 0, -(code & 0x7FFF), code)

    far = (rank(plain(ours)) - rank(theirs)).abs()
    far[plain(ours).isnan() & theirs.isnan()] = 0
    return int(far.max()) if far.numel() else 0


def report(failures: dict[str, str], total: int, what: str) -> str:
    """Say ``N of M`` and what failed."""
    lines = [f"{what}: {total - len(failures)} of {total}"]
    return "\n".join(lines + [f"  {name}: {why}" for name, why in failures.items()])


def each(ops: Iterable[Any], check: Callable[[Any], str | None]) -> tuple[dict[str, str], int]:
    """Run ``check`` on every op: None if it does not apply, else the failure or an empty string."""
    failures, total = {}, 0
    for op in ops:
        why = check(op)
        if why is not None:
            total += 1
            if why:
                failures[full_name(op)] = why
    return failures, total
