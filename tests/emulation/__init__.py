"""Builds the device's kernels for the host, and rounds with them through the module that calls the CUDA library."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock  # torch needs it

from lptensor import _cuda

FLAGS = (
    *("-std=c++17", "-O1", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing", "-U_FORTIFY_SOURCE", "-w"),
    "-fvisibility=hidden",  # a process may load several of these libraries, which have memory of one name
)


def compiler() -> str | None:
    """The C++ compiler that a build would find."""
    names = [os.environ.get("CXX"), "c++", "g++", "clang++"]
    return next((path for name in names if name and (path := shutil.which(name))), None)


DEVICE, WATCH = (Path(__file__).parent / name for name in ("device.cpp", "watch.cpp"))


def made(name: str, factory: pytest.TempPathFactory, *arguments: str | Path) -> Path:
    """What the compiler makes of some arguments, once in this run of the tests."""
    with_what = compiler()
    assert with_what is not None, "a C++ compiler built the kernels to compare with: set CXX to it"
    own = factory.getbasetemp()
    folder = own.parent if own.name.startswith("popen-") else own  # pytest-xdist's processes share the parent
    file = folder / name
    with FileLock(folder / f"{name}.lock"):  # while one compiles, another waits
        if not file.exists():
            new = folder / f"new-{name}"
            done = subprocess.run([with_what, *FLAGS, "-o", new, *arguments], capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            new.replace(file)
    return file


def build(source: Path, factory: pytest.TempPathFactory) -> Path:
    """A library made of a source."""
    return made(f"{source.stem}.so", factory, "-shared", source)


def built(factory: pytest.TempPathFactory) -> Any:
    """The emulated library of this run of the tests."""
    return _loaded(build(DEVICE, factory))


def watched(factory: pytest.TempPathFactory) -> Any:
    """The same, and tells what its threads did to memory that no barrier put in order: see watch.cpp."""
    kernels = made("watched.o", factory, "-c", "-fsanitize=thread", "-DLPT_WATCHED", DEVICE)
    lib = _loaded(made("watched.so", factory, "-shared", "-DLPT_WATCHED", kernels, WATCH))
    lib.lpt_watch_found.restype = ctypes.c_char_p
    lib.lpt_watch_without.argtypes, lib.lpt_watch_without.restype = (ctypes.c_int32, ctypes.c_int32), None
    lib.lpt_watch_memory.argtypes, lib.lpt_watch_memory.restype = (ctypes.c_void_p, ctypes.c_int64), None
    return lib


def _loaded(path: Path) -> Any:
    lib = _cuda.load(str(path))
    lib.lpt_emulate.argtypes, lib.lpt_emulate.restype = (ctypes.c_int64, ctypes.c_int32), None
    lib.lpt_emulate_kernels.restype = lib.lpt_emulate_launched.restype = ctypes.c_char_p
    return lib


@contextlib.contextmanager
def emulated(lib: Any, blocks: int = 2**40, order: str = "forwards") -> Iterator[None]:
    """Calls of the CUDA library reach the emulated one, with CPU tensors.

    Kernels get at most ``blocks`` thread blocks and stride over the rest. Between two waiting points
    threads run from first to last, "backwards", or a warp runs "ahead" as far as it can before the next.

    What a test patches over this within, and takes back only when it ends, would install ``lib`` for all tests
    that follow: it is an error.
    """
    stand_ins = {
        "library": lambda: lib,
        "where": lambda x: (0, 0),
        "guard": contextlib.nullcontext,
        "capturing": lambda: False,
    }
    lib.lpt_emulate(blocks, ("forwards", "backwards", "ahead").index(order))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in stand_ins.items():
            patch.setattr(_cuda, name, value)
        yield
        for name, value in stand_ins.items():
            assert getattr(_cuda, name) is value, f"_cuda.{name} was patched within emulated(), and would come back"
