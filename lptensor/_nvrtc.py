"""The CUDA kernels compiled while the program runs, by the NVRTC of torch's CUDA wheels: for installs without nvcc.

csrc/launch.cpp decides which kernels to launch, as the library of nvcc does, and asks here for each when it is first
launched on a device.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lptensor import _native

_SOURCE = "".join(
    f'#include "{name}"\n'
    for name in ("range_kernels.h", "device_formats.h", "elements.h", "gemm_device_tile.h", "gemm_element.h")
)
_OPTIONS = ("--std=c++17", "--fmad=false", "--device-as-default-execution-space")
# NVRTC has no headers of C's.
_STANDARD = {
    "stdint.h": "typedef int int32_t; typedef unsigned int uint32_t; typedef long long int64_t;\n"
    "typedef unsigned long long uint64_t; typedef unsigned long long uintptr_t;\n",
    "string.h": "",
    "math.h": "",
}


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


def compile(kernel: str, architecture: str) -> tuple[bytes, bytes]:
    """Machine code of a kernel, such as "lpt_gemm_elements<float,1>", for an "sm_90", and its name in there.

    Raises:
        RuntimeError: it does not compile; the message is the compiler's.
    """
    nvrtc = library()
    texts = {**_STANDARD, **headers()}
    program, size = ctypes.c_void_p(), ctypes.c_size_t()
    names, bodies = ((ctypes.c_char_p * len(texts))(*(t.encode() for t in part)) for part in (texts, texts.values()))
    _done(nvrtc.nvrtcCreateProgram(ctypes.byref(program), _SOURCE.encode(), b"lptensor.cu", len(texts), bodies, names))
    try:
        _done(nvrtc.nvrtcAddNameExpression(program, kernel.encode()))
        options = [option.encode() for option in (*_OPTIONS, f"--gpu-architecture={architecture}")]
        if nvrtc.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options)):
            _done(nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size)))
            log = ctypes.create_string_buffer(size.value)
            _done(nvrtc.nvrtcGetProgramLog(program, log))
            raise RuntimeError(f"NVRTC could not compile {kernel} for {architecture}:\n{log.value.decode()}")
        _done(nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size)))
        code, name = ctypes.create_string_buffer(size.value), ctypes.c_char_p()
        _done(nvrtc.nvrtcGetCUBIN(program, code))
        _done(nvrtc.nvrtcGetLoweredName(program, kernel.encode(), ctypes.byref(name)))
        return code.raw, name.value or b""
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _done(code: int) -> None:
    if code:
        raise RuntimeError(f"NVRTC failed with error {code}")


@functools.cache
def machine_code(kernel: str, architecture: str) -> tuple[bytes, bytes]:
    """What ``compile`` makes, or made in a process before."""
    file = _file(kernel, architecture)
    if file is None:
        return compile(kernel, architecture)
    with contextlib.suppress(OSError):
        kept = file.read_bytes()
        if kept[:32] == hashlib.sha256(kept[32:]).digest():
            name, _, code = kept[32:].partition(b"\n")
            return code, name
    code, name = compile(kernel, architecture)
    kept = name + b"\n" + code
    with contextlib.suppress(OSError):  # a folder that takes nothing, or a disk that is full
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f"{file.name}-{os.getpid()}-{threading.get_ident()}")
        new.write_bytes(hashlib.sha256(kept).digest() + kept)
        new.replace(file)
    return code, name


def _file(kernel: str, architecture: str) -> Path | None:
    """Where a kernel is kept: beside those that torch compiles, as its environment variables say; or that none is."""
    folder, caches, home = map(os.environ.get, ("PYTORCH_KERNEL_CACHE_PATH", "XDG_CACHE_HOME", "HOME"))
    caches = caches or (home and f"{home}/.cache")
    folder = folder or (caches and f"{caches}/torch/kernels")
    if not folder or os.environ.get("USE_PYTORCH_KERNEL_CACHE") == "0":
        return None
    major, minor = ctypes.c_int(), ctypes.c_int()
    _done(library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)))
    made_of = (major.value, minor.value, _OPTIONS, architecture, _SOURCE, kernel, sorted(headers().items()))
    return Path(folder, f"lptensor_{hashlib.sha256(repr(made_of).encode()).hexdigest()}")


def architecture(major: int, minor: int) -> str:
    """What is compiled for a device: its own capability, or the first of its kind, which it runs too.

    Devices may be younger than the NVRTC that torch brings, and torch run on them nevertheless. What lies between
    may be embedded ones (8.7, 10.1), whose code others do not run.
    """
    count = ctypes.c_int()
    _done(library().nvrtcGetNumSupportedArchs(ctypes.byref(count)))
    known = (ctypes.c_int * count.value)()
    _done(library().nvrtcGetSupportedArchs(known))
    own = 10 * major + minor
    return f"sm_{own if own in known else min((other for other in known if 10 * major <= other < own), default=own)}"


# -- what csrc/launch.cpp calls --------------------------------------------------------------------------

FAILED = -1  # no error of CUDA's; what it was is kept for the call that asked for the kernel
_failed = threading.local()
_FUNCTIONS = (
    *("cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent"),
    *("cuLaunchKernel", "cuMemsetD8Async", "cuGetErrorString"),
)
_Compile = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_char_p, ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p))


class Driver(ctypes.Structure):
    """The addresses of the CUDA driver's functions, and of one that compiles: struct lpt_driver in csrc/launch.cpp."""

    _fields_ = (*((name, ctypes.c_void_p) for name in _FUNCTIONS), ("compile", _Compile))


def launches(lib: Any) -> bool:
    """Whether a library launches what is compiled here."""
    return hasattr(lib, "lpt_launch_by")


def start(lib: Any) -> None:
    """Give a library that launches the CUDA driver; without one, its calls say so."""
    driver = _driver()
    if driver is not None:
        addresses = [ctypes.cast(getattr(driver, name), ctypes.c_void_p) for name in _FUNCTIONS]
        lib.lpt_launch_by(ctypes.byref(Driver(*addresses, _compile)))


@functools.cache
def _driver() -> Any:
    try:
        return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")
    except OSError:
        return None


def _find(kernel: Any, device: Any, found: Any) -> int:
    try:
        found[0] = _loaded(kernel.decode(), device)
    except BaseException as failure:  # which cannot pass through C
        _failed.why = failure
        return FAILED
    return 0


_compile = _Compile(_find)


def failure() -> BaseException:
    """Why a kernel that this thread asked for could not be had."""
    why: BaseException = _failed.why
    _failed.why = None
    return why


def _loaded(kernel: str, device: int) -> int | None:
    """The address of a kernel in the context that is current, that of the device."""
    code, name = machine_code(kernel, architecture(*torch.cuda.get_device_capability(device)))
    module, function = ctypes.c_void_p(), ctypes.c_void_p()
    with _capture_goes_on():
        _check(_driver().cuModuleLoadData(ctypes.byref(module), code))
        _check(_driver().cuModuleGetFunction(ctypes.byref(function), module, name))
    return function.value


@contextlib.contextmanager
def _capture_goes_on() -> Iterator[None]:
    """Code may be loaded while a graph is captured, as torch's allocator then asks for memory: it is no part of it."""
    mode = ctypes.c_int(2)  # CU_STREAM_CAPTURE_MODE_RELAXED, and within what it was before
    _check(_driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)))
    try:
        yield
    finally:
        _check(_driver().cuThreadExchangeStreamCaptureMode(ctypes.byref(mode)))


def _check(code: int) -> None:
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        raise RuntimeError(f"CUDA error {code}: {(text.value or b'unknown').decode()}")
