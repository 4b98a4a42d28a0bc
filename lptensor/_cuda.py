"""The CUDA library, called through ctypes: its kernels were compiled by nvcc at install, or are by NVRTC when used."""

from __future__ import annotations

import contextlib
import ctypes
import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lptensor import _compat, _native, _nvrtc
from lptensor.blocks import Blocks, ScaledBlocks
from lptensor.formats import Grid
from lptensor.posits import PositBits
from lptensor.ranges import Ranges
from lptensor.rounding import Beyond, Mode, Rounding
from lptensor.tables import Table

ABI_VERSION = 7

# Seed and offset of a call's random words; under graph capture a tensor on the device that holds them.
Key = tuple[int, int] | Tensor | None


@functools.cache
def library() -> Any:
    """The loaded library, or None. It loads without a driver or a device; a call then raises."""
    if (path := _native.find("lptensor_cuda")) is not None:
        return load(str(path))
    if (path := _native.find("lptensor_launch")) is None or _nvrtc.library() is None:
        return None
    lib = load(str(path))
    _nvrtc.start(lib)
    return lib


def load(path: str) -> Any:
    """The library in a file, with the types of its functions."""
    lib = ctypes.CDLL(path)
    if lib.lpt_cuda_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} is of another version of lptensor: install the package again")
    pointer, integer = ctypes.c_void_p, ctypes.c_int32
    lib.lpt_cuda_error.argtypes, lib.lpt_cuda_error.restype = (integer,), ctypes.c_char_p
    for room in (lib.lpt_cuda_scratch, lib.lpt_cuda_range_scratch):
        room.argtypes, room.restype = (pointer,), ctypes.c_int64
    lib.lpt_cuda_round_many_f32.argtypes = (pointer, pointer, ctypes.c_int64, *(pointer,) * 4, integer, pointer)
    for suffix in ("f32", "f64"):
        for kind in ("", "table_", "posit_"):
            kernel = getattr(lib, f"lpt_cuda_round_{kind}{suffix}")
            kernel.argtypes = (pointer, pointer, ctypes.c_int64, *(pointer,) * 3, integer, pointer)
        for kind in ("blocks", "scaled", "ranges"):
            kernel = getattr(lib, f"lpt_cuda_round_{kind}_{suffix}")
            kernel.argtypes = (*(pointer,) * 7, integer, pointer)
        getattr(lib, f"lpt_cuda_gemm_{suffix}").argtypes = (*(pointer,) * 3, integer, pointer)
    return lib


_HERE = contextlib.nullcontext()


def guard(device: torch.device) -> AbstractContextManager[None]:
    """Where the current device is another one, makes it the current one after the call again.

    The library's own copy of the CUDA runtime chooses a device, which must not outlast the call for torch's.
    """
    return _HERE if device.index == torch.cuda.current_device() else torch.cuda.device(device)


capturing = torch.cuda.is_current_stream_capturing


def where(x: Tensor) -> tuple[int, int]:
    """The number of a tensor's device, and the handle of the stream that is current there."""
    device: int = x.device.index
    return device, _compat.current_raw_stream(device)


def _call(kind: str, x: Tensor, y: Tensor, *form: Any, rounding: Rounding, key: Key, scratch: Any = ()) -> None:
    lib = library()
    name = _names[kind, x.dtype]
    drawn = key if isinstance(key, Tensor) else None
    with guard(x.device):
        code = getattr(lib, name)(
            x.data_ptr(),
            y.data_ptr(),
            *form,
            _native.rule_reference(rounding, (0, 0) if isinstance(key, Tensor) else key),
            None if drawn is None else drawn.data_ptr(),
            *scratch,
            *where(x),
        )
    check(code, name, x.device)


def check(code: int, name: str, device: torch.device) -> None:
    """Raise what made a function of the library fail."""
    if code == _nvrtc.FAILED:
        raise _nvrtc.failure()
    if code:
        text = library().lpt_cuda_error(code).decode()
        raise RuntimeError(f"{name} failed on {device} with CUDA error {code}: {text}")


_names = {
    (kind, dtype): f"lpt_cuda_round_{kind}f{torch.finfo(dtype).bits}"
    for kind in ("", "table_", "posit_", "blocks_", "scaled_", "ranges_")
    for dtype in (torch.float32, torch.float64)
}


def round_grid(x: Tensor, y: Tensor, grid: Grid, rounding: Rounding, key: Key) -> None:
    """``x`` rounded into ``y``: CUDA tensors of one device, dtype and memory layout, without gaps; they may be one.

    All of these run on the stream that is current, wait for nothing and allocate through torch alone.
    """
    _call("", x, y, x.numel(), _native.grid_reference(grid), rounding=rounding, key=key)


def round_grids(xs: Sequence[Tensor], grid: Grid, rounding: Rounding, keys: Sequence[int] | Tensor | None) -> None:
    """Each of ``xs`` rounded where it lies: float32 tensors of one device, without gaps.

    ``keys`` are two words for each in a stochastic mode, in turn; under graph capture a tensor on the device.
    """
    addresses = (ctypes.c_void_p * len(xs))(*[x.data_ptr() for x in xs])
    sizes = (ctypes.c_int64 * len(xs))(*[x.numel() for x in xs])
    drawn = keys if isinstance(keys, Tensor) else None
    words = None if keys is None or drawn is not None else (ctypes.c_uint64 * len(keys))(*keys)
    device, name = xs[0].device, "lpt_cuda_round_many_f32"
    with guard(device):
        code = getattr(library(), name)(
            addresses,
            sizes,
            len(xs),
            _native.grid_reference(grid),
            _native.rule_reference(rounding, None if keys is None else (0, 0)),
            words,
            None if drawn is None else drawn.data_ptr(),
            *where(xs[0]),
        )
    check(code, name, device)


def round_posit(x: Tensor, y: Tensor, posit: PositBits, rounding: Rounding, key: Key) -> None:
    """``x`` rounded into ``y``, as in ``round_grid``."""
    struct = _native.posit_struct(posit)
    _call("posit_", x, y, x.numel(), ctypes.byref(struct), rounding=rounding, key=key)


def round_table(x: Tensor, y: Tensor, table: Table, rounding: Rounding, key: Key) -> None:
    """``x`` rounded into ``y``, as in ``round_grid``. The first use of a table on a device copies it there."""
    struct, held = table_struct(table, rounding.mode, x.dtype, x.device, rounding.beyond)
    keep_captured(held)
    _call("table_", x, y, x.numel(), ctypes.byref(struct), rounding=rounding, key=key)


@functools.lru_cache(maxsize=256)
def table_struct(
    table: Table, mode: Mode, dtype: torch.dtype, device: torch.device, beyond: Beyond
) -> tuple[Any, tuple[Tensor, ...]]:
    """The C struct of a table, and the tensors on a device that it points into.

    Raises:
        RuntimeError: a graph is being captured, which cannot copy the table.
    """
    if capturing():  # torch would say that the stream cannot be waited for, and break the capture off
        raise RuntimeError(
            f"rounding to a list of {len(table.values)} values for the first time copies the list to {device}, which a "
            "CUDA graph cannot capture: round once to the format, in the same mode and dtype, before the capture"
        )
    struct, held = _native.table_struct(table, mode, dtype, beyond)
    there = tuple(tensor.to(device) for tensor in held)
    return type(struct)(*(tensor.data_ptr() for tensor in there), struct.depth, struct.last), there


_captured: dict[int, tuple[Tensor, ...]] = {}


def keep_captured(held: tuple[Tensor, ...]) -> None:
    """Never free what a call points into if a graph is being captured: it reads there as often as it is replayed."""
    if capturing():
        _captured[id(held)] = held


def round_blocks(
    x: Tensor, y: Tensor, blocks: Blocks | ScaledBlocks | Ranges, shape: Sequence[int], rounding: Rounding, key: Key
) -> None:
    """``x`` rounded into ``y`` in blocks of ``shape``: contiguous tensors, else as in ``round_grid``."""
    layout = ctypes.byref(_native.layout_struct(tuple(x.shape), tuple(shape)))
    room = library().lpt_cuda_range_scratch if isinstance(blocks, Ranges) else library().lpt_cuda_scratch
    scratch = torch.empty(room(layout), dtype=x.dtype, device=x.device)
    kind = blocks.loop.removeprefix("round_") + "_"
    struct = ctypes.byref(_native.blocks_struct(blocks))
    _call(kind, x, y, layout, struct, rounding=rounding, key=key, scratch=(scratch.data_ptr(),))


round_scaled = round_ranges = round_blocks  # one call for all: the blocks say which kernel it is
