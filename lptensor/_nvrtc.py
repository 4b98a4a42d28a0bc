"""The same kernels compiled while the program runs, by the NVRTC of torch's CUDA wheels: for installs without nvcc.

Elements only; blocks take reference.py here. What a kernel gets of a format is made on the device, by
the same header as elsewhere, and kept: the first rounding to a format compiles and waits, later ones do not.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lptensor import _cuda, _native
from lptensor.formats import Grid
from lptensor.posits import PositBits
from lptensor.rounding import Rounding
from lptensor.tables import Table

_THREADS = 256
_TYPES = {torch.float32: "float", torch.float64: "double"}
# By kind: the struct that a format comes as, what a kernel calls for an element, and how that is made.
_KINDS = {
    "grid": ("lpt_grid", "lpt_to_grid<{type}, {mode}, LPT_RARE>", "{{lpt_make_cell<{type}>(form, rule, 0)}}"),
    "posit": ("lpt_posit", "lpt_to_posit<{type}, {mode}>", "{{form, lpt_make_odds(rule.bits)}}"),
    "table": ("lpt_table<{type}>", "lpt_to_table<{type}, {mode}>", "{{form, lpt_make_odds(rule.bits)}}"),
}
_SOURCE = """
#include "elements.h"
#include "device_formats.h"
typedef {work} work;
extern "C" __global__ void prepare({form} form, lpt_rule rule, work *out) {{ *out = {made}; }}
"""
# NVRTC has no headers of C's.
_STANDARD = {
    "stdint.h": "typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t;\n"
    "typedef unsigned long long uint64_t; typedef unsigned long long uintptr_t;\n",
    "string.h": "",
}


class _Draw(ctypes.Structure):
    _fields_ = (
        ("seed", ctypes.c_uint64),
        ("offset", ctypes.c_uint64),
        ("drawn", ctypes.c_void_p),
        ("mask", ctypes.c_uint32),
    )


@functools.cache
def headers() -> dict[str, str]:
    """The texts of the kernels, by name; empty where they were not installed."""
    folder = _native.installed("csrc")
    return {} if folder is None else {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.h")}


@functools.cache
def library() -> Any:
    """NVRTC, or None where this torch brings none or the kernels' texts are missing."""
    if torch.version.cuda is None or not headers():
        return None
    major = torch.version.cuda.split(".")[0]
    name = f"nvrtc64_{major}0_0.dll" if sys.platform == "win32" else f"libnvrtc.so.{major}"
    folders = sorted(Path(torch.__file__).parents[1].glob("nvidia/*/lib"))
    return next(filter(None, (load(path) for path in (Path(name), *(folder / name for folder in folders)))), None)


def load(path: Path) -> Any:
    """NVRTC from a file, or by its mere name; None where there is none."""
    try:
        for builtins in path.parent.glob("libnvrtc-builtins.so*") if path.is_absolute() else ():
            ctypes.CDLL(str(builtins))  # NVRTC asks for it by name, and would not look here
        return ctypes.CDLL(str(path))
    except OSError:
        return None


def compile(source: str, expression: str, architecture: str) -> tuple[bytes, bytes]:
    """Machine code for a device such as "sm_90" from a text that may include the headers, and a kernel's name in it.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    nvrtc = library()
    texts = {**_STANDARD, **headers()}
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    names, bodies = ((ctypes.c_char_p * len(texts))(*(t.encode() for t in part)) for part in (texts, texts.values()))
    _done(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"round.cu", len(texts), bodies, names))
    try:
        _done(nvrtc.nvrtcAddNameExpression(program, expression.encode()))
        options = (b"--std=c++17", b"--fmad=false", f"--gpu-architecture={architecture}".encode())
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            _done(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _done(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"NVRTC could not compile {expression} for {architecture}:\n{log.value.decode()}")
        _done(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code, name = ctypes.create_string_buffer(size.value), ctypes.c_char_p()
        _done(nvrtc.nvrtcGetCUBIN(program, code))
        _done(nvrtc.nvrtcGetLoweredName(program, expression.encode(), ctypes.byref(name)))
        return code.raw, name.value or b""
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _done(code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC failed with error {code}")


def architecture(major: int, minor: int) -> str:
    """What is compiled for a device: its own capability, or the closest one below, which it runs too.

    Devices may be younger than the NVRTC that torch brings, and torch run on them nevertheless.
    """
    count = ctypes.c_int()
    _done(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _done(library().nvrtcGetSupportedArchs(known))
    own = 10 * major + minor
    return f"sm_{max((other for other in known if 10 * major <= other <= own), default=own)}"


def program(kind: str, dtype: torch.dtype, rounding: Rounding) -> tuple[str, str]:
    """The text of the kernels for a kind of format, and the name of the one that rounds."""
    form, work, made = (part.format(type=_TYPES[dtype], mode=int(rounding.mode)) for part in _KINDS[kind])
    loop = "lpt_map_drawn<1" if rounding.stochastic else "lpt_map<16"
    return _SOURCE.format(form=form, work=work, made=made), f"{loop}, {_TYPES[dtype]}, work>"


# -- on the device -------------------------------------------------------------------------------------------


@functools.cache
def _driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _check(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code}: {(text.value or b'unknown').decode()}")


@functools.cache
def _context(device: int) -> Any:
    """The context that torch has on a device."""
    number, context = ctypes.c_int(), ctypes.c_void_p()
    _check(_driver().cuDeviceGet(ctypes.byref(number), ctypes.c_int(device)))
    _check(_driver().cuDevicePrimaryCtxRetain(ctypes.byref(context), number))
    return context


@functools.cache
def _kernels(kind: str, dtype: torch.dtype, rounding: Rounding, device: int) -> tuple[Any, Any]:
    """The kernel that prepares a format and the one that rounds to it, loaded on a device."""
    code, name = compile(*program(kind, dtype, rounding), architecture(*torch.cuda.get_device_capability(device)))
    module, prepare, loop = (ctypes.c_void_p() for _ in range(3))
    _check(_driver().cuModuleLoadData(ctypes.byref(module), code))
    _check(_driver().cuModuleGetFunction(ctypes.byref(prepare), module, b"prepare"))
    _check(_driver().cuModuleGetFunction(ctypes.byref(loop), module, name))
    return prepare, loop


def _launch(kernel: Any, blocks: int, threads: int, stream: int, *args: Any) -> None:
    values = (ctypes.c_void_p * len(args))(*(ctypes.addressof(arg) for arg in args))
    one, none = ctypes.c_uint(1), ctypes.c_uint(0)
    grid = ctypes.c_uint(blocks)
    _check(
        _driver().cuLaunchKernel(
            kernel, grid, one, one, ctypes.c_uint(threads), one, one, none, ctypes.c_void_p(stream), values, None
        )
    )


@functools.lru_cache(maxsize=256)
def _work(
    kind: str, form: Any, dtype: torch.dtype, rounding: Rounding, device: torch.device
) -> tuple[Any, tuple[Tensor, ...]]:
    """What the kernel gets of a format, made on the device and kept here; and the tensors that it points into."""
    held: tuple[Tensor, ...] = ()
    if kind == "table":
        struct, held = _cuda.table_struct(form, rounding.mode, dtype, device)
    else:
        struct = _native.grid_struct(form) if kind == "grid" else _native.posit_struct(form)
    prepare, _ = _kernels(kind, dtype, rounding, device.index)
    out = torch.zeros(1024, dtype=torch.uint8, device=device)  # more than any of them takes
    stream = torch.cuda.current_stream(device).cuda_stream
    _launch(prepare, 1, 1, stream, struct, _native.rule(rounding, (0, 0)), ctypes.c_void_p(out.data_ptr()))
    return ctypes.create_string_buffer(bytes(out.tolist()), 1024), held


def _round(kind: str, x: Tensor, y: Tensor, form: Any, rounding: Rounding, key: _cuda.Key) -> None:
    with torch.cuda.device(x.device):
        device, stream = _cuda.where(x)
        _check(_driver().cuCtxSetCurrent(_context(device)))  # a thread has none before torch runs a kernel of its own
        work, held = _work(kind, form, x.dtype, rounding, x.device)
        _cuda.keep_captured(held)
        _, kernel = _kernels(kind, x.dtype, rounding, device)
        tensors = (ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr()), ctypes.c_int64(x.numel()))
        blocks, more = plan(x, y, rounding, key)
        _launch(kernel, blocks, _THREADS, stream, *tensors, *more, work)


def plan(x: Tensor, y: Tensor, rounding: Rounding, key: _cuda.Key) -> tuple[int, tuple[Any, ...]]:
    """Thread blocks, and the arguments between the tensors and the format; csrc/elements.h has the same in C."""
    if rounding.stochastic:
        seed, offset = (0, 0) if key is None or isinstance(key, Tensor) else key
        drawn = key.data_ptr() if isinstance(key, Tensor) else None
        draw = _Draw(seed, offset, drawn, 0xFFFFFFFF << (32 - rounding.bits) & 0xFFFFFFFF)
        return _blocks(x.numel(), 4 * _THREADS), (draw,)
    size = x.element_size()
    lead, wide = x.data_ptr() % 16 // size, x.data_ptr() % 16 == y.data_ptr() % 16
    return _blocks(x.numel() + lead, 16 // size * _THREADS), (ctypes.c_int32(lead), ctypes.c_int32(wide))


def _blocks(elements: int, chunk: int) -> int:
    return min(-(-elements // chunk), 1 << 20)


def round_grid(x: Tensor, y: Tensor, grid: Grid, rounding: Rounding, key: _cuda.Key) -> None:
    """``x`` rounded into ``y``: CUDA tensors of one device, dtype and memory layout, without gaps; they may be one."""
    _round("grid", x, y, grid, rounding, key)


def round_posit(x: Tensor, y: Tensor, posit: PositBits, rounding: Rounding, key: _cuda.Key) -> None:
    """``x`` rounded into ``y``, as in ``round_grid``."""
    _round("posit", x, y, posit, rounding, key)


def round_table(x: Tensor, y: Tensor, table: Table, rounding: Rounding, key: _cuda.Key) -> None:
    """``x`` rounded into ``y``, as in ``round_grid``."""
    _round("table", x, y, table, rounding, key)
