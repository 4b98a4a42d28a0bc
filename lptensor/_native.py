"""The compiled library, called through ctypes; absent where the package was installed without a compiler."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from lptensor.blocks import Blocks, ScaledBlocks
from lptensor.formats import Grid
from lptensor.posits import PositBits
from lptensor.ranges import Ranges
from lptensor.rounding import Beyond, Mode, Rounding
from lptensor.tables import Table, buckets

ABI_VERSION = 17
MAX_DIMS = 16  # csrc/block.h
_DTYPES = (torch.float32, torch.float64)


class GridStruct(ctypes.Structure):
    """A ``Grid`` as the kernels get it: struct lpt_grid in csrc/grid.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("precision", "emin", "emax", "overflow", "subnormals")),
        *((name, ctypes.c_int32) for name in ("zero", "negative_zero", "ties_to_even_code")),
        ("max", ctypes.c_double),
        ("min", ctypes.c_double),
    )


class _Blocks(ctypes.Structure):
    _fields_ = (
        ("element", GridStruct),
        ("bump", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("emax", "low", "high", "saturate")),
    )


class _ScaledBlocks(ctypes.Structure):
    _fields_ = (
        *((name, GridStruct) for name in ("element", "scale")),
        *((name, ctypes.c_double) for name in ("top", "whole", "floor", "ceiling")),
        *((name, ctypes.c_int32) for name in ("reciprocal", "saturate")),
    )


class _Ranges(ctypes.Structure):
    _fields_ = (
        ("steps", GridStruct),
        *((name, ctypes.c_double) for name in ("min", "max")),
        *((name, ctypes.c_int32) for name in ("preserve_zero", "reciprocal")),
    )


class _Layout(ctypes.Structure):
    _fields_ = (
        ("dims", ctypes.c_int32),
        ("shape", ctypes.c_int64 * MAX_DIMS),
        ("block", ctypes.c_int64 * MAX_DIMS),
    )


class _Table(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("binades", "first", "step", "value", "exact", "ends")),
        *((name, ctypes.c_int32) for name in ("depth", "last")),
    )


class _Posit(ctypes.Structure):
    _fields_ = (("nbits", ctypes.c_int32), ("es", ctypes.c_int32))


class Rule(ctypes.Structure):
    """The C struct of a rounding: its mode, and for a stochastic one the random bits and the key."""

    _fields_ = (
        ("mode", ctypes.c_int32),
        ("bits", ctypes.c_int32),
        ("beyond", ctypes.c_int32),
        ("unused", ctypes.c_int32),
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
    )


def installed(name: str) -> Path | None:
    """What the build has put into the package: beside this file, or where an editable install has it."""
    folders = sys.modules["lptensor"].__path__  # an editable install has two: the sources, and what was built
    return next((path for folder in folders if (path := Path(folder, name)).exists()), None)


def find(library: str) -> Path | None:
    """The file of a compiled library, if it was built."""
    return installed(f"lib{library}.{ {'win32': 'dll', 'darwin': 'dylib'}.get(sys.platform, 'so') }")


@functools.cache
def library() -> Any:
    """The loaded library, or None; the reason is ``why_not()``. Loaded at first use, built at install."""
    path = find("lptensor")
    if path is None:
        return None
    lib = ctypes.CDLL(str(path))
    lib.lpt_build_name.restype = ctypes.c_char_p
    if lib.lpt_abi_version() != ABI_VERSION:
        raise ImportError(f"{path} is of another version of lptensor: install the package again")
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    for suffix in ("f32", "f64"):
        getattr(lib, f"lpt_round_{suffix}").argtypes = (pointer, pointer, number, pointer, pointer, ctypes.c_int32)
        getattr(lib, f"lpt_round_{suffix}").restype = None
        for kind in ("table", "posit"):
            kernel = getattr(lib, f"lpt_round_{kind}_{suffix}")
            kernel.argtypes, kernel.restype = getattr(lib, f"lpt_round_{suffix}").argtypes, None
        for kind in ("blocks", "scaled", "ranges", "turned_blocks", "turned_scaled"):
            getattr(lib, f"lpt_round_{kind}_{suffix}").argtypes = (*(pointer,) * 5, ctypes.c_int32)
        for kind in ("blocks", "scaled", "ranges"):
            getattr(lib, f"lpt_scales_of_{kind}_{suffix}").argtypes = (*(pointer,) * 4, ctypes.c_int32)
        matrices = getattr(lib, f"lpt_round_matrices_{suffix}")
        matrices.argtypes, matrices.restype = (*(pointer,) * 3, ctypes.c_int32, pointer, pointer, ctypes.c_int32), None
        step = getattr(lib, f"lpt_compensate_{suffix}")
        step.argtypes, step.restype = (ctypes.c_int32, *(pointer,) * 5, number, pointer, ctypes.c_int32), None
    for kind in ("sums", "products"):
        odd = getattr(lib, f"lpt_odd_{kind}")
        odd.argtypes = (*(pointer, ctypes.c_int32) * 2, pointer, number, ctypes.c_int32)
        odd.restype = None if kind == "sums" else ctypes.c_int32
    lib.lpt_large_pages.argtypes = (pointer, number)
    lib.lpt_random_word.argtypes = (ctypes.c_uint64, pointer)
    lib.lpt_random_word.restype = ctypes.c_uint32
    lib.lpt_philox_words.argtypes = (ctypes.c_uint64, pointer, pointer)
    lib.lpt_philox_words.restype = None
    return lib


@functools.cache
def warn_missing() -> None:
    """Say once that rounding is slow here, and how to mend it."""
    warnings.warn(
        "lptensor was installed without a C++ compiler and rounds with torch operations: the same bits, "
        "many times slower. Install a compiler and then: "
        "pip install --force-reinstall --no-deps --no-cache-dir lptensor",
        RuntimeWarning,
        stacklevel=2,
    )


@functools.lru_cache(maxsize=256)
def grid_struct(grid: Grid) -> GridStruct:
    """The C struct of a grid."""
    return GridStruct(**grid._asdict())


@functools.lru_cache(maxsize=256)
def grid_reference(grid: Grid) -> Any:
    """A pointer to the C struct of a grid, kept for each grid."""
    return ctypes.byref(grid_struct(grid))


@functools.lru_cache(maxsize=256)
def blocks_struct(blocks: Blocks | ScaledBlocks | Ranges) -> _Blocks | _ScaledBlocks | _Ranges:
    """The C struct of the blocks of a format."""
    grids = {name: grid_struct(value) for name, value in blocks._asdict().items() if isinstance(value, Grid)}
    structs: dict[str, type[_Blocks | _ScaledBlocks | _Ranges]] = {
        "round_blocks": _Blocks,
        "round_scaled": _ScaledBlocks,
        "round_ranges": _Ranges,
    }
    return structs[blocks.loop](**{**blocks._asdict(), **grids})


@functools.lru_cache(maxsize=256)
def posit_struct(posit: PositBits) -> _Posit:
    """The C struct of a posit."""
    return _Posit(*posit)


# By mode, since a lookup by number takes a tenth of the time of one by the hash of a Rounding; -1 is the last place.
_RULES = tuple(Rule(mode, 32, 0, 0, 0, 0) for mode in sorted(Mode, key=lambda mode: mode % len(Mode)))


def rule(rounding: Rounding, key: tuple[int, int] | None) -> Rule:
    """The C struct of a rounding: one that is kept for each deterministic mode, a fresh one for each key."""
    if key is None:
        return _RULES[rounding.mode]
    return Rule(rounding.mode, rounding.bits, rounding.beyond, 0, *key)


_RULE_REFERENCES = tuple(ctypes.byref(struct) for struct in _RULES)


def rule_reference(rounding: Rounding, key: tuple[int, int] | None) -> Any:
    """A pointer to the C struct of a rounding."""
    return _RULE_REFERENCES[rounding.mode] if key is None else ctypes.byref(rule(rounding, key))


class _ByDtype(dict[torch.dtype, Any]):
    def __missing__(self, dtype: torch.dtype) -> NoReturn:
        raise TypeError(f"the kernels take float32 and float64, got {dtype}; convert with .float() first")


@functools.cache
def _kernels(name: str) -> _ByDtype:
    """The loops of one name for each dtype that has them: any other would be read beyond its end."""
    lib = library()
    return _ByDtype((dtype, getattr(lib, f"lpt_{name}_f{torch.finfo(dtype).bits}")) for dtype in _DTYPES)


COMPENSATED = ("kahan", "expansion")  # by number, as in csrc/updates.h


def compensate(update: str, weight: Tensor, kept: Tensor, step: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """A weight, and what is kept beside it, after a step: contiguous CPU tensors of one dtype and shape."""
    new = torch.empty_like(weight), torch.empty_like(weight)
    pointers = (x.data_ptr() for x in (weight, kept, step, *new))
    _kernels("compensate")[weight.dtype](
        COMPENSATED.index(update), *pointers, weight.numel(), grid_reference(grid), torch.get_num_threads()
    )
    return new


def odd(kind: str, x: Tensor, y: Tensor) -> Tensor | None:
    """The "sums" or "products" of float64 CPU tensors, rounded to odd; None where they are near an end.

    They have one shape and one order of memory without gaps, or one of them is a single number.
    """
    larger, lib = (y if x.numel() == 1 else x), library()
    made = torch.empty_like(larger)
    given = (step for t in (x, y) for step in (t.data_ptr(), int(t.numel() == larger.numel())))
    failed = getattr(lib, f"lpt_odd_{kind}")(*given, made.data_ptr(), made.numel(), torch.get_num_threads())
    return None if failed else made


def round_grid(x: Tensor, y: Tensor, grid: Grid, rounding: Rounding, key: tuple[int, int] | None) -> None:
    """``x`` rounded into ``y``: CPU tensors of one dtype and memory layout, without gaps; they may be one."""
    _kernels("round")[x.dtype](
        x.data_ptr(),
        y.data_ptr(),
        x.numel(),
        grid_reference(grid),
        rule_reference(rounding, key),
        torch.get_num_threads(),
    )


def in_place(grid: Grid, rounding: Rounding) -> Callable[[Tensor], None]:
    """What ``round_grid(x, x, grid, rounding, None)`` does, for many calls: all that depends on ``x`` alone is left."""
    kernels, struct, rule = _kernels("round"), grid_reference(grid), rule_reference(rounding, None)

    def run(x: Tensor) -> None:
        address = x.data_ptr()
        kernels[x.dtype](address, address, x.numel(), struct, rule, torch.get_num_threads())

    return run


@functools.lru_cache(maxsize=256)
def table_struct(table: Table, mode: Mode, dtype: torch.dtype, beyond: Beyond) -> tuple[_Table, Any]:
    """The C struct of a table, and the tensors that it points into."""
    held, depth = buckets(table, mode, dtype, beyond)
    return _Table(*(tensor.data_ptr() for tensor in held), depth, len(table.places()) - 1), held


class _Matrices(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_int64) for name in ("count", "rows", "columns"))


@functools.lru_cache(maxsize=4096)
def matrices_of(shape: tuple[int, ...], stride: tuple[int, ...]) -> _Matrices | None:
    """A tensor without gaps as matrices one behind the other, which lie column by column; None if it is not so."""
    cuts = _cuts(shape, stride)
    return None if cuts is None else _Matrices(*(math.prod(shape[cut]) for cut in cuts))


def _cuts(shape: tuple[int, ...], stride: tuple[int, ...]) -> tuple[slice, slice, slice] | None:
    """The axes of the matrices, of their rows and of their columns."""
    axes = [d for d, n in enumerate(shape) if n != 1]
    for first, second in itertools.combinations(axes, 2):
        cuts = slice(first), slice(first, second), slice(second, None)
        count, rows, columns = (range(len(shape))[cut] for cut in cuts)
        size = math.prod(shape)
        for d in (*count, *columns, *rows):
            size //= shape[d]
            if shape[d] != 1 and stride[d] != size:
                break
        else:
            return cuts
    return None


# By loop, as csrc/library.cpp numbers them: the struct of a format that rounds each element on its own, and its tables.
OF_ELEMENTS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "round_grid": lambda grid, rounding, dtype: (grid_struct(grid), None),
    "round_table": lambda table, rounding, dtype: table_struct(table, rounding.mode, dtype, rounding.beyond),
    "round_posit": lambda posit, rounding, dtype: (posit_struct(posit), None),
}


def round_table(
    x: Tensor, y: Tensor, lowered: Table | PositBits, rounding: Rounding, key: tuple[int, int] | None
) -> None:
    """``x`` rounded into ``y``, as in ``round_grid``."""
    kernel = _kernels(lowered.loop)[x.dtype]
    struct, _ = OF_ELEMENTS[lowered.loop](lowered, rounding, x.dtype)
    kernel(
        x.data_ptr(),
        y.data_ptr(),
        x.numel(),
        ctypes.byref(struct),
        rule_reference(rounding, key),
        torch.get_num_threads(),
    )


round_posit = round_table  # one call for both: what is lowered says which kernel it is


def round_matrices(
    x: Tensor,
    y: Tensor,
    matrices: _Matrices,
    lowered: Grid | Table | PositBits,
    rounding: Rounding,
    key: tuple[int, int] | None,
) -> None:
    """``x`` rounded into ``y``: CPU tensors of one dtype, which lie as ``matrices``; they may be one."""
    kind = list(OF_ELEMENTS).index(lowered.loop)
    struct, _ = OF_ELEMENTS[lowered.loop](lowered, rounding, x.dtype)
    _kernels("round_matrices")[x.dtype](
        x.data_ptr(),
        y.data_ptr(),
        ctypes.byref(matrices),
        kind,
        ctypes.byref(struct),
        rule_reference(rounding, key),
        torch.get_num_threads(),
    )


@functools.lru_cache(maxsize=4096)
def layout_struct(shape: tuple[int, ...], block: tuple[int, ...]) -> _Layout:
    """Shape and block with neighbouring axes merged where that changes nothing."""
    axes = [(1, 1)]
    for n, wide in zip(shape, block, strict=True):
        wide = min(wide, n)
        before, before_wide = axes[-1]
        if before == 1 or wide == n or before_wide == 1 and n % wide == 0:  # whole blocks, row after row
            axes[-1] = (before * n, before_wide * wide)
        else:
            axes.append((n, wide))
    if len(axes) > MAX_DIMS:
        raise ValueError(f"blocks of shape {block} on a tensor of shape {shape} need more than {MAX_DIMS} axes")
    layout = _Layout(len(axes))
    for d, (n, wide) in enumerate(axes):
        layout.shape[d], layout.block[d] = n, wide
    return layout


def round_blocks(
    x: Tensor,
    y: Tensor,
    blocks: Blocks | ScaledBlocks | Ranges,
    shape: Sequence[int],
    rounding: Rounding,
    key: tuple[int, int] | None,
) -> None:
    """``x`` rounded into ``y`` in blocks of ``shape``: contiguous CPU tensors of one dtype; they may be one."""
    kernel = _kernels(blocks.loop)[x.dtype]
    failed = kernel(
        x.data_ptr(),
        y.data_ptr(),
        ctypes.byref(layout_struct(tuple(x.shape), tuple(shape))),
        ctypes.byref(blocks_struct(blocks)),
        rule_reference(rounding, key),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for the scales of {x.numel()} elements in blocks of {tuple(shape)}")


round_scaled = round_ranges = round_blocks  # one call for all: the blocks say which kernel it is


def scales(x: Tensor, blocks: Blocks | ScaledBlocks | Ranges, shape: Sequence[int]) -> tuple[Tensor, ...]:
    """The scale of each block of a contiguous CPU tensor, and under ranges its zero point, as in ``reference``."""
    counts = [-(-n // wide) for n, wide in zip(x.shape, shape, strict=True)]
    found = torch.empty(1 + isinstance(blocks, Ranges), *counts, dtype=torch.float64)
    failed = _kernels(blocks.loop.replace("round_", "scales_of_"))[x.dtype](
        x.data_ptr(),
        found.data_ptr(),
        ctypes.byref(layout_struct(tuple(x.shape), tuple(shape))),
        ctypes.byref(blocks_struct(blocks)),
        torch.get_num_threads(),
    )
    if failed:
        raise MemoryError(f"no memory for the scales of {x.numel()} elements in blocks of {tuple(shape)}")
    return found.unbind()


class _TurnedBlocks(ctypes.Structure):
    _fields_ = (("matrices", _Matrices), ("row", ctypes.c_int64), ("wide", ctypes.c_int64))


@functools.lru_cache(maxsize=4096)
def _turned_blocks(shape: tuple[int, ...], stride: tuple[int, ...], block: tuple[int, ...]) -> _TurnedBlocks | None:
    """The matrices of a tensor whose blocks lie in their rows or in their columns; None if it is not so."""
    cuts = _cuts(shape, stride)
    if cuts is None:
        return None
    count, rows, columns = (layout_struct(shape[cut], block[cut]) for cut in cuts)
    last = columns.dims - 1
    matrices = _Matrices(*(math.prod(shape[cut]) for cut in cuts))
    if _single(count, 0) and _single(rows, 0) and _single(columns, 1):
        return _TurnedBlocks(matrices, columns.shape[last], columns.block[last])
    if _single(count, 0) and _single(columns, 0) and rows.dims == 1:
        return _TurnedBlocks(matrices, 0, rows.block[0])
    return None


def _single(layout: _Layout, but: int) -> bool:
    """Whether blocks are one wide along all axes but so many of the last."""
    return all(layout.block[d] == 1 for d in range(layout.dims - but))


def round_turned_blocks(
    x: Tensor,
    y: Tensor,
    blocks: Blocks | ScaledBlocks | Ranges,
    shape: Sequence[int],
    rounding: Rounding,
    key: tuple[int, int] | None,
) -> bool:
    """``round_blocks`` of tensors without gaps whose axes lie in another order, if there is a way."""
    turned = _turned_blocks(tuple(x.shape), x.stride(), tuple(shape))
    if turned is None or isinstance(blocks, Ranges):
        return False
    failed = _kernels(blocks.loop.replace("round_", "round_turned_"))[x.dtype](
        x.data_ptr(),
        y.data_ptr(),
        ctypes.byref(turned),
        ctypes.byref(blocks_struct(blocks)),
        rule_reference(rounding, key),
        torch.get_num_threads(),
    )
    return not failed


def ask_for_large_pages(y: Tensor) -> None:
    """Let the memory of a new CPU tensor, which nothing was written to yet, come in large pages, if it can."""
    lib = library()
    if lib is not None:
        lib.lpt_large_pages(y.data_ptr(), y.nbytes)
