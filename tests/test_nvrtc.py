"""Kernels compiled while the program runs: what is compiled, and what is launched. Nothing here needs a device."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import itertools
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from lptensor import E4M3, MXFP8_E4M3, NF4, _cuda, _native, _nvrtc, backend, ops
from lptensor.rounding import Mode, Rounding, Stochastic

CSRC = Path(__file__).parents[1] / "csrc"
DTYPES = [torch.float32, torch.float64]


def nvrtc_files() -> list[Path]:
    """NVRTC of the package nvidia-cuda-nvrtc, which torch's CUDA wheels bring too."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [file for folder in folders for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"))]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "headers", lambda: {path.name: path.read_text() for path in CSRC.glob("*.h")})


@pytest.mark.gpu  # no device, but NVRTC, which comes with a torch for one
def test_nvrtc_compiles_the_same_texts(monkeypatch: pytest.MonkeyPatch, texts: None) -> None:
    nvrtc = _nvrtc.load(nvrtc_files()[-1])
    monkeypatch.setattr(_nvrtc, "library", lambda: nvrtc)
    for kind, dtype, rounding in itertools.product(
        _nvrtc._KINDS, DTYPES, [Rounding(), Rounding(Mode.UP), Stochastic()]
    ):
        code, name = _nvrtc.compile(*_nvrtc.program(kind, dtype, rounding), _nvrtc.architecture(9, 0))
        assert code.startswith(b"\x7fELF") and name in code and b"prepare" in code
    with pytest.raises(RuntimeError, match="could not compile missing"):
        _nvrtc.compile("", "missing", "sm_90")


TENSORS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
# What the parameters of a kernel are, by their number.
PARAMETERS = {3: (), 5: (*TENSORS, _nvrtc._Draw), 6: (*TENSORS, ctypes.c_int32, ctypes.c_int32)}


class Driver:
    """A driver that notes what it is told to launch, and launches nothing, without a context not even that."""

    def __init__(self) -> None:
        self.launched: list[tuple[Any, ...]] = []
        self.current: int | None = None

    def cuDeviceGet(self, number: Any, ordinal: Any) -> int:  # noqa: N802
        number._obj.value = ordinal.value
        return 0

    def cuDevicePrimaryCtxRetain(self, context: Any, number: Any) -> int:  # noqa: N802
        context._obj.value = 1000 + number.value
        return 0

    def cuCtxSetCurrent(self, context: Any) -> int:  # noqa: N802
        self.current = context.value
        return 0

    def cuLaunchKernel(self, kernel: Any, *rest: Any) -> int:  # noqa: N802
        assert self.current == 1000
        *shape, values, _ = (getattr(arg, "value", arg) for arg in rest)
        found = [kind.from_address(at) for kind, at in zip(PARAMETERS[len(values)], values, strict=False)]
        read = [
            tuple(getattr(arg, name) for name, *_ in arg._fields_) if isinstance(arg, ctypes.Structure) else arg.value
            for arg in found
        ]
        self.launched.append((kernel, shape, *read))
        return 0


class Library:
    """In place of the CUDA library: every launch succeeds."""

    @staticmethod
    def lpt_cuda_round_table_f32(*args: Any) -> int:
        return 0


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    driver = Driver()
    monkeypatch.setattr(_nvrtc, "_driver", lambda: driver)
    monkeypatch.setattr(_nvrtc, "_kernels", lambda *how: ("prepare", "loop"))
    monkeypatch.setattr(_cuda, "where", lambda x: (0, 77))
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    monkeypatch.setattr(_cuda, "capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("Stream", (), {"cuda_stream": 77}))
    for cache in (_nvrtc._work, _nvrtc._context):
        cache.cache_clear()
    yield driver
    for cache in (_nvrtc._work, _nvrtc._context):
        cache.cache_clear()


def test_a_launch_gets_the_tensors_and_their_place(driver: Driver) -> None:
    x, y = torch.zeros(5001)[1:], torch.zeros(5000)
    for _ in range(2):
        _nvrtc.round_grid(x, y, E4M3.grid, Rounding(), None)
    assert [launch[0] for launch in driver.launched] == ["prepare", "loop", "loop"]  # prepared once
    shape = [5, 1, 1, 256, 1, 1, 0, 77]  # 5000 elements and one before them, 1024 a block; the stream
    assert driver.launched[1][1:] == (shape, x.data_ptr(), y.data_ptr(), 5000, 1, 0)


def test_stochastic_launches_get_the_key_or_where_it_lies(driver: Driver) -> None:
    x, key = torch.zeros(5000), torch.tensor([1, 2])
    for given, expected in (((3, 4), (3, 4, None)), (key, (0, 0, key.data_ptr()))):
        _nvrtc.round_grid(x, x, E4M3.grid, Stochastic(8), given)
        shape = [5, 1, 1, 256, 1, 1, 0, 77]
        assert driver.launched[-1][1:] == (shape, x.data_ptr(), x.data_ptr(), 5000, (*expected, 0xFF000000))


@pytest.mark.parametrize("capturing", [False, True])
def test_a_table_that_a_captured_graph_reads_is_never_freed(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, capturing: bool
) -> None:
    """The caches give up the tables of old codebooks; a graph would go on reading where they were."""
    monkeypatch.setattr(_cuda, "capturing", lambda: capturing)
    monkeypatch.setattr(_cuda, "_captured", {})
    monkeypatch.setattr(_cuda, "guard", contextlib.nullcontext)
    monkeypatch.setattr(_cuda, "library", lambda: Library)
    for round_table in (_cuda.round_table, _nvrtc.round_table):
        round_table(torch.zeros(3), torch.zeros(3), NF4.table, Rounding(), None)
        _, held = _cuda.table_struct(NF4.table, Mode.NEAREST, torch.float32, torch.device("cpu"))
        alive = [weakref.ref(tensor) for tensor in held]
        del held
        for cache in (_cuda.table_struct, _nvrtc._work, _native.table_struct):
            cache.cache_clear()
        gc.collect()
        assert [tensor() is not None for tensor in alive] == [capturing] * len(alive)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_failed_launch_raises(driver: Driver, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    class Broken(Driver):
        def cuLaunchKernel(self, *args: Any) -> int:  # noqa: N802
            return 700

        def cuGetErrorString(self, code: int, text: Any) -> int:  # noqa: N802
            text._obj.value = b"an illegal memory access was encountered"
            return 0

    monkeypatch.setattr(_nvrtc, "_driver", Broken)
    with pytest.raises(RuntimeError, match="CUDA error 700: an illegal memory access"):
        _nvrtc.round_grid(torch.zeros(3, dtype=dtype), torch.zeros(3, dtype=dtype), E4M3.grid, Rounding(), None)


def test_a_device_younger_than_nvrtc_gets_code_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def nvrtcGetNumSupportedArchs(self, count: Any) -> int:  # noqa: N802
            count._obj.value = 5
            return 0

        def nvrtcGetSupportedArchs(self, known: Any) -> int:  # noqa: N802
            known[:] = [75, 80, 86, 90, 100]
            return 0

    monkeypatch.setattr(_nvrtc, "library", Old)
    capabilities = [(8, 6), (8, 9), (9, 0), (10, 3), (12, 1)]
    assert [_nvrtc.architecture(*c) for c in capabilities] == ["sm_86", "sm_86", "sm_90", "sm_100", "sm_121"]


def test_nvrtc_stands_in_where_nvcc_was_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    for compiled, nvrtc in itertools.product([None, object()], repeat=2):
        monkeypatch.setattr(_cuda, "library", lambda compiled=compiled: compiled)
        monkeypatch.setattr(_nvrtc, "library", lambda nvrtc=nvrtc: nvrtc)
        expected = _cuda if compiled else _nvrtc if nvrtc else None
        assert ops._kernels(device, E4M3) is expected
        assert ops._kernels(device, MXFP8_E4M3) is (_cuda if compiled else None)
        assert backend(device).split(":")[0] == ("cuda" if compiled else "nvrtc" if nvrtc else "torch")


def test_a_torch_without_cuda_brings_no_nvrtc(monkeypatch: pytest.MonkeyPatch, texts: None) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _nvrtc.library.__wrapped__() is None
    assert _nvrtc.load(Path("libnvrtc-of-no-version.so")) is None
