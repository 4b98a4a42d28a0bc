"""Rounding of plain tensors: the one place that chooses between kernel and reference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat, _cuda, _native, _nvrtc, library, observe, reference
from lptensor.base import check_dense, check_tensor, wrong_format
from lptensor.blocks import BlockFormat
from lptensor.formats import Format, Grid
from lptensor.rounding import Mode, Rounding, as_rounding


def round(
    x: Tensor,
    format: Format,
    rounding: Rounding | Mode | str = "nearest",
    *,
    generator: torch.Generator | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """``x`` rounded to ``format``: a plain tensor of the same shape, dtype and device.

    In memory its axes have the order of those of ``x``, without gaps. The gradient passes straight
    through. What NaN, infinities, -0 and overflow become depends on the format (see its docstring).
    A value that the format already has never moves, except in formats that compute their scales anew from what is
    rounded: ``TwoLevel``, ``Scaled`` by a maximum or a range, and ``MX`` with the rule "even" or with elements such
    as INT8 (the named MX formats and ``BlockFloatingPoint`` move none).

    Args:
        x: float32 or float64, dense, of any shape and strides. float64 is rounded once, never through fp32.
        format: any; one of more than 24 significant bits needs float64.
        rounding: a name ("nearest", "nearest_away", "nearest_up", "toward_zero", "down", "up", "odd",
            "stochastic", "stochastic_equal"), a ``Mode`` or a ``Rounding``, such as ``Stochastic(8)``.
        generator: where stochastic rounding draws its key; torch's CPU generator by default, so
            that ``torch.manual_seed`` repeats it, on any device and number of threads.
        out: a tensor like ``x`` to write into, ``x`` itself included; it takes no part in autograd.

    Raises:
        TypeError: x is not a dense float32 or float64 tensor, or format not a Format.
        ValueError: unknown rounding, a format wider than the dtype carries, an ``out`` that does not fit.

    >>> from lptensor import E4M3
    >>> round(torch.tensor([0.1, 1.0, 500.0]), E4M3).tolist()
    [0.1015625, 1.0, 448.0]
    """
    if torch.compiler.is_dynamo_compiling() and isinstance(x, Tensor):
        node: Tensor = _lptensor_round(x, format, as_rounding(rounding), generator=generator, out=out)
        return node
    rule = as_rounding(rounding)
    check_roundable(x, format)
    _check_plain(x)
    if generator is not None:
        check_generator(generator)
    if out is not None:
        return _into(x, format, rule, generator, out)
    if differentiates(x):
        return straight_through(x, format, rule, generator)
    return round_fresh(x, format, rule, generator)


@_compat.graph_node
def _lptensor_round(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    return round(x, *args, **kwargs)


def backend(device: torch.device | str = "cpu") -> str:
    """Which code rounds the tensors of a device here, and why: "native", "cuda", "nvrtc" or "torch", then the reason.

    Args:
        device: as torch takes it; the device itself need not be there.

    Raises:
        TypeError, RuntimeError: what torch knows no device by.

    >>> backend().split(":")[0] in ("native", "torch")
    True
    >>> backend("cuda").split(":")[0] in ("cuda", "nvrtc", "torch")
    True
    """
    kind = torch.device(device).type
    if kind == "cuda":
        lib = _cuda.library()
        if lib is not None and not _nvrtc.launches(lib):
            return "cuda: the kernels that nvcc compiled when lptensor was installed"
        if lib is not None:
            return "nvrtc: installed without nvcc; torch's NVRTC compiles each kernel at its first use"
        missing = "torch brings no NVRTC" if _nvrtc.library() is None else "without a C++ compiler"
        return f"torch: installed without nvcc, and {missing}; reference.py rounds, slowly, to the same bits"
    if kind != "cpu":
        return f"torch: there are no kernels for {kind} tensors; reference.py rounds, slowly, to the same bits"
    lib = _native.library()
    if lib is None:
        return "torch: installed without a C++ compiler; reference.py rounds, slowly, to the same bits"
    return f"native: {lib.lpt_build_name().decode().removeprefix('lpt_')} build of the C++ kernels"


def differentiates(x: Tensor) -> bool:
    """Whether somebody may ask for a derivative by ``x``: only then it takes an autograd function, which costs more."""
    return torch.is_grad_enabled() and x.requires_grad or _compat.transforming() or _compat.differentiating_forward()


class StraightThrough(torch.autograd.Function):
    """What rounds the first of its arguments, and has a derivative that is taken to be one."""

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Tensor) -> None:
        ctx.others = len(inputs) - 1

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *[None] * ctx.others

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        return tangent.clone()  # torch takes the tangent itself for a view of the input's


class _Round(StraightThrough):
    @staticmethod
    @_compat.known_signature
    def forward(x: Tensor, format: Format, rounding: Rounding, generator: Any) -> Tensor:
        return round_fresh(x, format, rounding, generator)

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, format: Format, rounding: Rounding, generator: Any) -> Any:
        if rounding.stochastic:
            check_samples_draw(info, "stochastic rounding")
        samples = x.movedim(in_dims[0], 0)
        if isinstance(format, BlockFormat):  # the blocks are those of each sample
            return torch.stack([straight_through(sample, format, rounding, generator) for sample in samples]), 0
        return straight_through(samples, format, rounding, generator), 0


def check_samples_draw(info: Any, what: str) -> None:
    """Refuse to draw one word for all samples of a vmap, of which ``info`` tells, or to hide that each has its own."""
    if info.randomness != "different":
        raise RuntimeError(
            f'{what} draws new random bits for each sample of a vmap; say torch.vmap(..., randomness="different"), '
            "also in the place of jacrev and hessian, which are a vmap of vjp"
        )


def straight_through(x: Tensor, format: Format, rounding: Rounding, generator: Any = None) -> Tensor:
    """``x`` rounded, with a derivative, under every transformation of torch.func."""
    rounded: Tensor = _Round.apply(x, format, rounding, generator)  # type: ignore[no-untyped-call]
    return rounded


def check_format(format: Any, dtype: torch.dtype = torch.float32) -> None:
    """Refuse what is not a format, and one that has values which a tensor of ``dtype`` does not hold."""
    if not isinstance(format, Format):
        raise wrong_format(format)
    format.check_carrier(dtype)


def check_roundable(x: Any, format: Any) -> None:
    """Refuse what cannot be rounded, naming it."""
    if not isinstance(format, Format):
        raise wrong_format(format)
    check_tensor(x)
    if x.dtype not in (torch.float32, torch.float64):
        way = "round .real and .imag" if x.is_complex() else "convert with .float() first"
        if not x.is_complex() and torch.is_autocast_enabled(x.device.type):
            way += ", or turn torch.autocast off, which has made it"
        raise TypeError(f"only float32 and float64 tensors are rounded, got {x.dtype}; {way}")
    check_dense(x, "rounding takes")
    format.check_carrier(x.dtype)


def _check_plain(x: Tensor) -> None:
    """Refuse an LPTensor, which would round the result once more, to its own format."""
    if type(x) is not Tensor and hasattr(x, "arithmetic"):
        raise TypeError("rounding takes plain tensors, got an LPTensor; recast it with .to_lp(), or say .dequantize()")


def check_generator(generator: object) -> None:
    """Refuse what draws nothing, also where nothing is to be drawn."""
    if not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, such as torch.Generator(), got {generator!r}")


def draw_key(generator: torch.Generator | None = None) -> tuple[int, int]:
    """A fresh key for stochastic rounding: seed and offset from torch's CPU generator."""
    words: Tensor | None = getattr(_local, "words", None)
    if words is None or _compat.transforming():  # in which nothing may be written to that is from outside
        words = torch.empty(2, dtype=torch.int64, device="cpu")
        if type(words) is Tensor and not words.is_inference():
            _local.words = words
    seed, offset = words.random_(generator=generator).tolist()
    return seed, offset


_local = threading.local()  # two words of each thread: making them anew costs more than drawing


def call_key(x: Tensor, generator: torch.Generator | None) -> _cuda.Key:
    """The key of a stochastic rounding of ``x``; while a CUDA graph is captured, a part of the graph that draws one."""
    if not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return draw_key(generator)
    if generator is not None and generator.device.type != "cuda":
        raise RuntimeError(
            "a CUDA graph cannot draw from a CPU generator: leave generator= out, or give a CUDA generator "
            "that is registered with the graph"
        )
    return torch.empty(2, dtype=torch.int64, device=x.device).random_(generator=generator)


def call_keys(xs: Sequence[Tensor]) -> list[int] | Tensor:
    """The keys that roundings of ``xs`` in turn would have, tensors of one device."""
    if xs[0].is_cuda and torch.cuda.is_current_stream_capturing():
        return torch.empty(2 * len(xs), dtype=torch.int64, device=xs[0].device).random_()
    return [word for _ in xs for word in draw_key(None)]


def _kernels(device: torch.device) -> Any:
    """The module whose compiled kernels round the tensors of a device, or None."""
    if device.type == "cpu":
        return _native if _native.library() is not None else None
    return _cuda if device.type == "cuda" and _cuda.library() is not None else None


@_compat.run_by_python
def round_fresh(x: Tensor, format: Format, rounding: Rounding, generator: Any = None) -> Tensor:
    """A rounded copy of a plain tensor, without autograd."""
    x = x.detach()
    if type(x) is not Tensor or _compat.traced():
        _check_plain(x)
        if generator is not None:
            raise ValueError(
                "a graph cannot draw from a generator of its own: in torch.compile and torch.export leave generator= "
                "out and use torch.manual_seed, and give clamping_grad_zero a deterministic rounding"
            )
        return library.traced_round(x, format, rounding)
    if _compat.transforming():  # of torch.func, whose tensors have no memory
        return straight_through(x, format, rounding, generator)
    return round_into(x, _new_like(x), format, rounding, generator)


_LARGE = 4 << 20  # bytes, at most half of which large pages of 2 MiB cannot cover


def _new_like(x: Tensor) -> Tensor:
    """New memory for a rounded copy of ``x``: of large pages where it is large and the system has them."""
    y = torch.empty_like(x)
    if y.nbytes >= _LARGE and y.is_cpu:
        _native.ask_for_large_pages(y)
    return y


def round_into(x: Tensor, y: Tensor, format: Format, rounding: Rounding, generator: Any = None) -> Tensor:
    """``x`` rounded into ``y``, which has its shape and dtype and may be ``x`` itself.

    A meta tensor, which has no values, draws no words either.
    """
    grid = format.lowered
    if type(grid) is Grid and not rounding.stochastic and not observe.anyone and _in_order(x, y):
        _native.round_grid(x, y, grid, rounding, None)  # nearly always, and in small networks what is asked counts
        return y
    if x.numel() == 0 or x.is_meta:
        return y
    if _compat.is_zero_tensor(x):
        x = x.clone()
    observers = observe.observers() if observe.anyone else []
    if not observers:
        return _round_into(x, y, format, rounding, generator)
    if len(observers) == 1 and observers[0].round(x, y, format, rounding, generator):
        return y
    before = x.clone() if x.data_ptr() == y.data_ptr() else x
    _round_into(x, y, format, rounding, generator)
    observe.show(observers, before, y, format, rounding)
    return y


def _in_order(x: Tensor, y: Tensor) -> bool:
    """Whether the CPU's kernels take both from the first element to the last."""
    alike = y is x or y.is_contiguous() and not y.is_neg()
    lies = alike and x.is_contiguous() and not x.is_neg() and not _compat.is_zero_tensor(x)
    return lies and _kernels(x.device) is _native


def in_place(format: Format, rounding: Rounding) -> Callable[[Tensor], None]:
    """``round_into(x, x, ...)`` as a function of ``x``, by the shortest way where nothing is special.

    The result of every op of an LPTensor comes by here.
    """
    grid = format.lowered
    other = rounding.stochastic or type(grid) is not Grid
    on_cpu: Callable[[Tensor], None] | None = None

    def run(x: Tensor) -> None:
        nonlocal on_cpu
        special = other or observe.anyone or x.is_neg() or not x.is_contiguous()
        if not special and x.is_cpu and _native.library() is not None:
            if on_cpu is None:  # now that the library is there
                on_cpu = _native.in_place(grid, rounding)
            on_cpu(x)
        elif not special and x.is_cuda and x.numel() and _cuda.library() is not None:
            _cuda.round_grid(x, x, grid, rounding, None)
        else:
            round_into(x, x, format, rounding)

    return run


def round_all_in_place(xs: Sequence[Tensor], format: Format, rounding: Rounding) -> None:
    """``round_into(x, x, ...)`` of each: those on a GPU by one launch, where nothing is special."""
    grid = format.lowered
    if len(xs) > 1 and type(grid) is Grid and not observe.anyone and _kernels(xs[0].device) is _cuda:
        device = xs[0].device
        if all(x.device == device and x.is_contiguous() and not x.is_neg() for x in xs):
            some = [x for x in xs if x.numel()]  # no key is drawn for none
            if some:
                _cuda.round_grids(some, grid, rounding, call_keys(some) if rounding.stochastic else None)
            return
    for x in xs:
        round_into(x, x, format, rounding)


def _round_into(x: Tensor, y: Tensor, format: Format, rounding: Rounding, generator: Any) -> Tensor:
    key = call_key(x, generator) if rounding.stochastic else None
    lowered = format.lowered
    kernels = _kernels(x.device)
    loop = getattr(kernels, lowered.loop, None)  # of one's own formats there may be none
    if loop is None:
        if kernels is None and x.device.type == "cpu":
            _native.warn_missing()
        if isinstance(key, Tensor):
            why = backend("cuda") if kernels is None else f"it has no kernel that rounds to {format!r}"
            raise RuntimeError("rounding stochastically in a CUDA graph needs lptensor's CUDA library: " + why)
        return y.copy_(_reference(x.resolve_neg(), format, lowered, rounding, key))

    # Random words and blocks go by position in contiguous order; else any order without gaps will do.
    elementwise = not isinstance(format, BlockFormat) and key is None
    # The imaginary part of a conjugate: memory holds the negatives.
    negated = x.is_neg() or y is not x and y.is_neg()
    alike = y is x or x.stride() == y.stride()
    same = alike and (x.is_contiguous() or elementwise and is_dense(x)) and not negated
    if not same and alike and not negated and _in_another_order(kernels, loop, x, y, format, rounding, key):
        return y
    source = x if same else x.resolve_neg().contiguous()
    target = y if same or y.is_contiguous() and not negated else torch.empty_like(source)
    loop(source, target, lowered, *_shape_of(format, x), rounding, key)
    if target is not y:  # in the order in which y lies, in which torch is faster
        order = _memory_order(y)
        y.permute(order).copy_(target.permute(order))
    return y


def _memory_order(x: Tensor) -> list[int]:
    """The axes of a tensor, that along which its elements lie furthest apart first."""
    return sorted(range(x.dim()), key=x.stride().__getitem__, reverse=True)


def _in_another_order(
    kernels: Any, loop: Any, x: Tensor, y: Tensor, format: Format, rounding: Rounding, key: Any
) -> bool:
    """Round tensors without gaps where they lie, whose axes lie in another order, if there is a way."""
    if not isinstance(format, BlockFormat):
        matrices = _native.matrices_of(x.shape, x.stride()) if kernels is _native else None
        if matrices is not None:
            kernels.round_matrices(x, y, matrices, format.lowered, rounding, key)
        return matrices is not None
    shape = format.block_shape(x.shape)
    if key is not None:
        return kernels is _native and kernels.round_turned_blocks(x, y, format.lowered, shape, rounding, key)
    order = _memory_order(x)
    inside, outside = x.permute(order), y.permute(order)
    if not inside.is_contiguous():
        return False
    loop(inside, outside, format.lowered, tuple(shape[d] for d in order), rounding, None)
    return True


def _shape_of(format: Format, x: Tensor) -> tuple[Any, ...]:
    """The one argument more that blocks take: their shape."""
    return (format.block_shape(x.shape),) if isinstance(format, BlockFormat) else ()


@library.implement
def _rounded_copy(x: Tensor, format: Format, rounding: Rounding) -> Tensor:
    return round_into(x, _new_like(x), format, rounding)


def _reference(x: Tensor, format: Format, lowered: Any, rounding: Rounding, key: Any) -> Tensor:
    rounded: Tensor = getattr(reference, lowered.loop)(x, lowered, *_shape_of(format, x), rounding, key)
    return rounded


def is_dense(x: Tensor) -> bool:
    """Whether the elements fill their memory without gaps or overlaps, in some order of axes."""
    size = 1
    for stride, n in sorted(zip(x.stride(), x.shape, strict=True)):
        if n != 1:
            if stride != size:
                return False
            size *= n
    return True


def _overlaps_itself(x: Tensor) -> bool:
    """Whether two elements may lie in one place, as in an expanded tensor."""
    if x.is_contiguous():
        return False
    reach = 0
    for stride, n in sorted((stride, n) for stride, n in zip(x.stride(), x.shape, strict=True) if n > 1):
        if stride <= reach:
            return True
        reach += stride * (n - 1)
    return False


def _span(x: Tensor) -> tuple[int, int]:
    """The addresses of the first element and of the first byte behind the last."""
    if x.is_contiguous():
        return x.data_ptr(), x.data_ptr() + x.nbytes
    last = sum(stride * (n - 1) for stride, n in zip(x.stride(), x.shape, strict=True))
    return x.data_ptr(), x.data_ptr() + (last + 1) * x.element_size()


def _into(x: Tensor, format: Format, rounding: Rounding, generator: Any, out: Tensor) -> Tensor:
    if not isinstance(out, Tensor):
        raise TypeError(f"out must be a tensor, got {type(out).__name__}")
    _check_plain(out)
    check_dense(out, "rounding writes into")
    if out.shape != x.shape or out.dtype != x.dtype or out.device != x.device:
        wanted, got = ((tuple(t.shape), t.dtype, str(t.device)) for t in (x, out))
        raise ValueError(f"out must be like x, {wanted}, got {got}")
    if torch.is_grad_enabled() and (x.requires_grad or out.requires_grad):
        raise ValueError("out= takes no part in autograd: detach x and out, or give no out=")
    plain = type(out) is Tensor and type(x) is Tensor
    if not plain or _compat.traced_by_mode() or _compat.transforming():
        return out.copy_(round_fresh(x, format, rounding, generator))
    if _overlaps_itself(out):
        raise ValueError(
            f"out has elements that share memory, shape {tuple(out.shape)} with strides {out.stride()}; "
            "give a tensor of its own, such as torch.empty_like(x)"
        )
    (start, end), (out_start, out_end) = _span(x), _span(out)
    in_place = start == out_start and x.stride() == out.stride()
    if start < out_end and out_start < end and not in_place:  # writing out would change x before it is read
        x = x.clone()
    round_into(x, out, format, rounding, generator)
    if not out.is_inference():
        torch.autograd.graph.increment_version(out)  # as torch's own ops do: a graph may need what was there
    return out
