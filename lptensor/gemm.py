"""Matrix products and sums of plain tensors as an accumulator forms them: the choice of kernel or reference."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat, _cuda, _cuda_gemm, _native, _native_gemm, accumulate, ops
from lptensor.accumulator import Accumulator
from lptensor.base import as_int, check_dense, check_tensor
from lptensor.gemm_op import implement, traced_sums


def gemm(
    a: Tensor,
    b: Tensor,
    accumulator: Accumulator,
    c: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """``a @ b``, plus ``c``, each output added up by the accumulator: [..., m, k] x [..., k, n] -> [..., m, n].

    ``c`` (a bias, or what a product goes on from) is the initial value of the running sum, rounded
    to its format; in the order "pairwise" it is added to the root of the tree, in "exact" it is one more exact
    term. So ``gemm(a1, b1, acc, gemm(a0, b0, acc))`` is the product of the joined matrices, where k is
    added in sequence. k may be 0: the result is then R(c), or zero.

    The sum that an output is depends on its row of ``a``, its column of ``b`` and its ``c`` alone, with
    k ascending. Under stochastic rounding the n-th rounding of output e (in contiguous order) draws a
    word that depends on key, n, e and the number of outputs. Leading axes broadcast. No autograd.

    Args:
        a, b, c: plain tensors of one dtype (float32 or float64) and device; any strides.
        generator: where stochastic rounding draws its key; torch's CPU generator by default.

    Raises:
        TypeError, ValueError: tensors that do not go together, or that cannot hold the sums.

    >>> from lptensor import FP16
    >>> a, b = torch.tensor([[2.0**-12, 1.5]]), torch.tensor([[2.0**-12], [683 / 1024]])
    >>> gemm(a, b, Accumulator(FP16)).item(), gemm(a, b, Accumulator(FP16, compute="fp32")).item()
    (1.0009765625, 1.0)
    """
    _check(accumulator, a, b, *([] if c is None else [c]))
    if a.dim() < 2 or b.dim() < 2 or a.shape[-1] != b.shape[-2]:
        raise ValueError(f"gemm() takes [..., m, k] and [..., k, n], got {tuple(a.shape)} and {tuple(b.shape)}")
    m, n = a.shape[-2], b.shape[-1]
    leading = [t.shape[:-2] for t in (a, b, c) if t is not None]
    batch = common_shape(*leading)
    if batch is None:
        raise ValueError(f"leading axes must broadcast, got {', '.join(str(tuple(s)) for s in leading)}")
    a, b = (_batched(t, batch, *t.shape[-2:]) for t in (a, b))
    if c is not None:
        if c.dim() < 2 or c.shape[-2] not in (1, m) or c.shape[-1] not in (1, n):
            raise ValueError(f"the addend must broadcast to {(*batch, m, n)}, got shape {tuple(c.shape)}")
        c = _batched(c, batch, m, n)
    return _run(a, b, accumulator, c, generator).reshape(*batch, m, n)


def reduce(
    x: Tensor,
    dim: int | Sequence[int] | None,
    accumulator: Accumulator,
    keepdim: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The sum of ``x`` along axes, added up by the accumulator in contiguous order of those axes.

    Terms take the place of products and are exact: a sum has none to round. ``dim=None`` adds all, as does
    an empty tuple; a tensor without axes is one term, for dim 0 and -1 too.

    >>> from lptensor import BF16
    >>> reduce(torch.full((1000,), 1.0), 0, Accumulator(BF16))
    tensor(256.)
    """
    _check(accumulator, x)
    reduced = axes_of(dim, x.dim())
    kept = [d for d in range(x.dim()) if d not in reduced]
    shape = [x.shape[d] for d in kept]
    terms = x.permute([*reduced, *kept]).reshape(1, math.prod(x.shape[d] for d in reduced), math.prod(shape))
    sums = _column_sums(terms, _of_terms(accumulator), generator)
    return sums.reshape([1 if d in reduced else n for d, n in enumerate(x.shape)] if keepdim else shape)


def cumsum(x: Tensor, dim: int, accumulator: Accumulator, generator: torch.Generator | None = None) -> Tensor:
    """The running sums of ``x`` along an axis; the last one is ``reduce``'s. For the order "sequential", chunk 1.

    >>> from lptensor import E4M3
    >>> cumsum(torch.ones(20), 0, Accumulator(E4M3))[-5:]
    tensor([16., 16., 16., 16., 16.])
    """
    _check(accumulator, x)
    if accumulator.order != "sequential" or accumulator.chunk != 1:
        raise ValueError(
            f'cumsum() adds term by term, got {accumulator!r}; use order="sequential" and chunk=1, or sum() for a total'
        )
    axes = axes_of(dim, x.dim())
    if x.dim() == 0:
        return reduce(x, None, accumulator, generator=generator)
    if len(axes) != 1:
        raise ValueError(f"cumsum() goes along one axis, got {dim!r}")
    (axis,) = axes
    moved = x.movedim(axis, 0)
    terms = moved.reshape(1, x.shape[axis], math.prod(moved.shape[1:]))
    sums = _column_sums(terms, _of_terms(accumulator), generator, running=True)
    return sums.reshape(moved.shape).movedim(0, axis)


def _column_sums(terms: Tensor, acc: Accumulator, generator: Any, running: bool = False) -> Tensor:
    """The sums of [1, k, n] over k. Kernels add up neighbouring columns at once: chunks of one long column are such."""
    count, columns = terms.shape[1:]
    # A tree of pairs is one of chunks as well, if their size is a power of two.
    size = acc.chunk if acc.nested else _LEAVES if acc.order == "pairwise" else count
    apart = not acc.stochastic and not _compat.traced()  # each chunk's sum is of its own
    if apart and columns == 1 and count >= max(_LONG, _FEW * size) and size >= _SHORT:
        chunks, left = divmod(count, size)
        whole, rest = terms.split([chunks * size, left], 1)
        parts = [whole.reshape(chunks, size, columns).transpose(0, 1).reshape(1, size, -1), rest][: 1 + bool(left)]
        sums = [_column_sums(part, acc.inside, None).reshape(1, -1, columns) for part in parts]
        return _column_sums(torch.cat(sums, 1), replace(acc, chunk=1, inner=None), None)
    ones = torch.ones((), dtype=terms.dtype, device=terms.device).expand(1, 1, count)
    return _run(ones, terms, acc, None, generator, running)


# Below these it costs more than it saves: terms in all, chunks, terms of a chunk. And the terms of a leaf.
_LONG, _FEW, _SHORT, _LEAVES = 4096, 16, 8, 64


def _run(a: Tensor, b: Tensor, acc: Accumulator, c: Tensor | None, generator: Any, running: bool = False) -> Tensor:
    """The kernel or the reference, on three axes each; ``running``: every sum, [batch, m, k, n]."""
    if generator is not None:
        ops.check_generator(generator)
    a, b, c = _in_memory(a), _in_memory(b), None if c is None else _in_memory(c)
    if type(a) is Tensor and type(b) is Tensor and not _compat.traced():
        return _added_up(a, b, acc, c, running, generator)
    if generator is not None:
        raise ValueError(
            "a graph cannot draw from a generator of its own: leave generator= out in torch.compile and torch.export, "
            "and use torch.manual_seed"
        )
    return traced_sums(a, b, acc, c, running)


def _in_memory(x: Tensor) -> Tensor:
    """``x`` as a kernel reads it: z.conj().imag has memory with the other sign, a zero tensor has none."""
    x = x.detach()
    return x.clone() if _compat.is_zero_tensor(x) else x.resolve_neg()


@implement
def _added_up(a: Tensor, b: Tensor, acc: Accumulator, c: Tensor | None, running: bool, generator: Any = None) -> Tensor:
    key = ops.call_key(a, generator) if acc.stochastic else None
    kernels = _kernels(a.device, acc)
    if kernels is None:
        if a.device.type == "cpu":
            _native.warn_missing()
        if isinstance(key, Tensor):
            raise RuntimeError(
                "adding stochastically in a CUDA graph needs lptensor's CUDA library, and no more than "
                f"{_cuda_gemm.DEEPEST} accumulators in one another; {ops.backend('cuda')}"
            )
        return accumulate.cumulate(b, acc, key) if running else accumulate.gemm(a, b, acc, c, key)
    shape = (*a.shape, b.shape[2]) if running else (*a.shape[:2], b.shape[2])
    y = torch.empty(shape, dtype=a.dtype, device=a.device)
    if y.numel():
        if a.shape[1] > 1 and b.shape[2] == 1:  # kernels work on neighbouring columns
            a, b, c, acc = b.mT, a.mT, None if c is None else c.mT, acc.turned
        kernels.gemm(a, b, y, acc, c, key, running)
    return y


def _kernels(device: torch.device, acc: Accumulator) -> Any:
    """The module whose compiled kernels add up on a device, or None."""
    if device.type == "cpu" and _native.library() is not None:
        return _native_gemm
    return _cuda_gemm if device.type == "cuda" and _cuda.library() is not None and _cuda_gemm.fits(acc) else None


def _of_terms(acc: Accumulator) -> Accumulator:
    """The accumulator where there are no products to round, and no factors."""
    acc = acc.naming(False, False)
    inner = None if acc.inner is None else _of_terms(acc.inner)
    return acc if acc.product is None and inner is acc.inner else replace(acc, product=None, inner=inner)


def common_shape(*shapes: Sequence[int]) -> tuple[int, ...] | None:
    """What shapes broadcast to, if they do: ``torch.broadcast_shapes`` imports sympy, which takes half a second."""
    axes = max(len(s) for s in shapes)
    aligned = [(*[1] * (axes - len(s)), *s) for s in shapes]
    sizes = [[n for n in given if n != 1] or [1] for given in zip(*aligned, strict=True)]
    return tuple(of[0] for of in sizes) if all(n == of[0] for of in sizes for n in of) else None


def _batched(t: Tensor, batch: tuple[int, ...], rows: int, columns: int) -> Tensor:
    wide = t.expand(*batch, rows, columns)
    return wide.reshape(math.prod(batch), rows, columns)


def axes_of(dim: Any, count: int) -> list[int]:
    """The axes that a sum goes over, counted from the front, ascending: all for None and for an empty tuple."""
    several = isinstance(dim, Iterable) and as_int(dim) is None
    given = [*dim] if several else [] if dim is None else [dim]
    known = max(count, 1)  # a number alone is summed along its only axis, 0 or -1
    axes = sorted(d + known if d < 0 else d for d in (_axis(d) for d in given or range(count)))
    if any(not 0 <= d < known for d in axes) or len(set(axes)) != len(axes):
        raise ValueError(f"dim must name different axes of {count}, got {tuple(given)}")
    return axes if count else []


def _axis(given: object) -> int:
    axis = as_int(given)
    if axis is None:
        raise TypeError(f"dim must be an integer, or a tuple of them, got {given!r}")
    return axis


def check_accumulator(given: object) -> None:
    """Refuse what is none."""
    if not isinstance(given, Accumulator):
        raise TypeError(f"expected an Accumulator, such as Accumulator(FloatingPoint(16)), got {given!r}")


def _check(accumulator: Any, *tensors: Any) -> None:
    check_accumulator(accumulator)
    if _compat.transforming():  # in which not even a result has memory
        raise RuntimeError(
            "gemm(), reduce() and cumsum() have no derivatives and no samples, and torch.func asks for them; "
            "use lptensor.matmul() and lptensor.sum()"
        )
    for t in tensors:
        check_tensor(t)
        check_dense(t, "sums are formed of")
        if hasattr(t, "arithmetic"):
            raise TypeError("expected plain tensors, got an LPTensor; its arithmetic names its accumulator")
        if t.dtype != tensors[0].dtype or t.device != tensors[0].device:
            raise ValueError(
                f"tensors must agree in dtype and device, got {t.dtype} on {t.device} beside "
                f"{tensors[0].dtype} on {tensors[0].device}"
            )
    accumulator.check_carrier(tensors[0].dtype)
