"""Kernels compiled while the program runs: what is compiled, and what is launched. Nothing here needs a device."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import itertools
import shutil
import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from emulation import build, built, emulated
from lptensor import E4M3, HIF8, MX, MXFP8_E4M3, NF4, NVFP4, Format, _cuda, _cuda_gemm, _native, _nvrtc, backend, ops
from lptensor.accumulator import Accumulator
from lptensor.formats import BF16
from lptensor.rounding import Beyond, Mode, Rounding, Stochastic
from rounders import assert_same_bits
from test_emulation import BLOCKS, DTYPES, FORMATS, KEY, call, numbers
from test_emulation_gemm import IN_TILES, OTHERS
from test_gemm import operands

CSRC = Path(__file__).parents[1] / "csrc"


def nvrtc_files() -> list[Path]:
    """NVRTC of the package nvidia-cuda-nvrtc, which torch's CUDA wheels bring too."""
    spec = importlib.util.find_spec("nvidia")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [file for folder in folders for file in sorted(Path(folder).glob("*/lib/libnvrtc.so.*"))]


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_nvrtc, "headers", lambda: {path.name: path.read_text() for path in CSRC.glob("*.h")})


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return built(tmp_path_factory)


@pytest.mark.native
@pytest.mark.gpu  # no device, but NVRTC, which comes with a torch for one
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("capability", [(7, 5), (9, 0), (12, 0)], ids=str)
def test_nvrtc_compiles_every_kernel(
    monkeypatch: pytest.MonkeyPatch, texts: None, emulation: Any, capability: tuple[int, int]
) -> None:
    nvrtc = _nvrtc.load(nvrtc_files()[-1])
    monkeypatch.setattr(_nvrtc, "library", lambda: nvrtc)
    kernels = emulation.lpt_emulate_kernels().decode().split()
    assert len(kernels) > 100
    for kernel in kernels:
        code, name = _nvrtc.compile(kernel, _nvrtc.architecture(*capability))
        assert code.startswith(b"\x7fELF") and name in code
    with pytest.raises(RuntimeError, match="could not compile missing for sm_90:\n.*error"):
        _nvrtc.compile("missing", "sm_90")


Launch = ctypes.CFUNCTYPE(
    ctypes.c_int32, ctypes.c_void_p, *(ctypes.c_uint,) * 7, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
)
Fill = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_uint64, ctypes.c_ubyte, ctypes.c_size_t, ctypes.c_void_p)
Number = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_int32), ctypes.c_int32)
Retain = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.POINTER(ctypes.c_void_p), ctypes.c_int32)
Enter = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)
Text = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.POINTER(ctypes.c_char_p))


class Driver:
    """CUDA's driver, whose kernels the emulation has; it counts what it is asked for, and fails where it is told to."""

    def __init__(self, emulation: Any) -> None:
        self.emulation = emulation
        self.asked: Counter[Any] = Counter()
        self.fails: dict[str, int] = {}
        self.context: int | None = None
        self.streams: list[int | None] = []
        self.cuDeviceGet = Number(self._number)
        self.cuDevicePrimaryCtxRetain = Retain(self._retain)
        self.cuCtxSetCurrent = Enter(self._enter)
        self.cuLaunchKernel = Launch(self._launch)
        self.cuMemsetD8Async = Fill(self._fill)
        self.cuGetErrorString = Text(self._text)

    def load(self, kernel: str, device: int) -> int | None:
        """In place of NVRTC."""
        self.asked[kernel, device] += 1
        assert self.context == 1000 + device
        found = ctypes.c_void_p()
        assert self.emulation.lpt_emulate_compile(kernel.encode(), device, ctypes.byref(found)) == 0, kernel
        return found.value

    def _number(self, number: Any, ordinal: int) -> int:
        number[0] = ordinal
        return self._done("cuDeviceGet")

    def _retain(self, context: Any, number: int) -> int:
        context[0] = 1000 + number
        return self._done("cuDevicePrimaryCtxRetain")

    def _enter(self, context: int | None) -> int:
        self.context = context
        return self._done("cuCtxSetCurrent")

    def _launch(self, kernel: int, *how: Any) -> int:
        blocks, *others, stream, args, extra = how
        assert others == [1, 1, 256, 1, 1, 0] and extra is None
        self.streams.append(stream)
        done: int = self.emulation.lpt_emulate_launch(
            ctypes.c_void_p(kernel), blocks, *others, ctypes.c_void_p(stream), ctypes.c_void_p(args), None
        )
        return self._done("cuLaunchKernel") or done

    def _fill(self, memory: int, byte: int, count: int, stream: int | None) -> int:
        ctypes.memset(memory, byte, count)
        self.streams.append(stream)
        return self._done("cuMemsetD8Async")

    def _text(self, code: int, text: Any) -> int:
        text[0] = b"an illegal memory access was encountered"
        return 0

    def _done(self, name: str) -> int:
        self.asked[name] += 1
        return self.fails.get(name, 0)


@pytest.fixture(scope="session")
def launching(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CSRC / "launch.cpp", tmp_path_factory)


@contextlib.contextmanager
def calls_reach(launching: Path, driver: Driver | None, emulation: Any, folder: Path) -> Iterator[None]:
    """Calls of the CUDA library reach one that launches by a driver, and has launched nothing yet."""
    library = _cuda.load(str(shutil.copy(launching, folder / "launching.so")))
    with emulated(emulation), pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "library", lambda: library)
        patch.setattr(_nvrtc, "_driver", lambda: driver)
        _nvrtc.start(library)
        yield


@pytest.fixture
def driver(emulation: Any, launching: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(emulation)
    monkeypatch.setattr(_nvrtc, "_loaded", driver.load)
    emulation.lpt_emulate_launched()
    with calls_reach(launching, driver, emulation, tmp_path):
        yield driver


def assert_same_launches(driver: Driver, work: Callable[[], Tensor]) -> None:
    """The kernels, thread blocks and bits of the library that nvcc compiles."""
    results, launches = [], []
    with pytest.MonkeyPatch.context() as patch:
        for _ in range(2):
            results.append(work())
            launches.append(driver.emulation.lpt_emulate_launched())
            patch.setattr(_cuda, "library", lambda: driver.emulation)
    assert launches[0] == launches[1] != b""
    assert_same_bits(*results)


def rounded(x: Tensor, format: Format, rule: Rounding) -> Tensor:
    y = torch.full_like(x, 7.0)
    call(_cuda, x, y, format, rule, KEY if rule.stochastic else None)
    return y


@pytest.mark.native
@pytest.mark.parametrize("rule", [*map(Rounding, Mode), Stochastic(5, "pre_rounded")], ids=repr)
@pytest.mark.parametrize("format", [*FORMATS, *BLOCKS], ids=repr)
def test_launches_are_those_of_nvccs_library(driver: Driver, format: Format, rule: Rounding) -> None:
    for dtype in DTYPES:
        for x in (*(numbers(shape, dtype) for shape in [(5001,), (3, 40, 33), (64, 256)]), numbers((5002,), dtype)[1:]):
            assert_same_launches(driver, lambda x=x: rounded(x, format, rule))


@pytest.mark.native
@pytest.mark.parametrize("format", [MXFP8_E4M3, NVFP4, MX(E4M3, 1 << 16), MX(E4M3, axis=0)], ids=repr)
def test_launches_of_few_large_blocks_are_those_of_nvccs_library(driver: Driver, format: Format) -> None:
    for shape in ((1 << 17,), (300, 70)):
        for rule in (Rounding(), Stochastic()):
            assert_same_launches(
                driver, lambda shape=shape, rule=rule: rounded(numbers(shape, DTYPES[0]), format, rule)
            )


@pytest.mark.native
@pytest.mark.parametrize("acc", [*IN_TILES, *OTHERS], ids=repr)
def test_launches_of_products_are_those_of_nvccs_library(driver: Driver, acc: Accumulator) -> None:
    def product(dtype: torch.dtype) -> Tensor:
        a, b, c = (t[None] for t in operands(1, 70, 9, 66, 4, dtype))
        y = torch.full((1, 70, 66), 7.0, dtype=dtype)
        _cuda_gemm.gemm(a, b, y, acc, c, KEY, False)
        return y

    for dtype in DTYPES if acc.compute == acc.inside.compute == "exact" else DTYPES[:1]:
        assert_same_launches(driver, lambda dtype=dtype: product(dtype))


UP = "lpt_map<16,float,lpt_to_grid<float, 4, 0>>"


def round_up(x: Tensor, device: int = 0, stream: int = 77) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "where", lambda x: (device, stream))
        _cuda.round_grid(x, x, E4M3.grid, Rounding(Mode.UP), None)


@pytest.mark.native
def test_a_kernel_is_compiled_once_for_each_device(driver: Driver) -> None:
    for device in (0, 0, 1, 1, 0):
        round_up(torch.zeros(3), device)
    assert driver.asked[UP, 0] == driver.asked[UP, 1] == 1
    assert driver.asked["cuDevicePrimaryCtxRetain"] == 2 and driver.asked["cuCtxSetCurrent"] == 5
    assert driver.streams == [77] * 5


@pytest.mark.native
def test_memory_is_cleared_on_the_stream_of_the_kernels(driver: Driver) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "where", lambda x: (0, 77))
        rounded(numbers((1 << 17,), torch.float32), NVFP4, Rounding())
    assert driver.asked["cuMemsetD8Async"] == 1 and driver.streams == [77] * 3


@pytest.mark.native
@pytest.mark.parametrize("name", ["cuDeviceGet", "cuDevicePrimaryCtxRetain", "cuCtxSetCurrent", "cuLaunchKernel"])
def test_a_failure_of_the_driver_raises_and_passes(driver: Driver, name: str) -> None:
    driver.fails = {name: 700}
    message = "lpt_cuda_round_f32 failed on cpu with CUDA error 700: an illegal memory access"
    for _ in range(2):
        with pytest.raises(RuntimeError, match=message):
            round_up(torch.zeros(3))
    driver.fails = {}
    round_up(torch.zeros(3))


@pytest.mark.native
def test_scratch_memory_that_cannot_be_cleared_raises(driver: Driver) -> None:
    driver.fails = {"cuMemsetD8Async": 1}
    with pytest.raises(RuntimeError, match="lpt_cuda_round_scaled_f32 failed on cpu with CUDA error 1"):
        rounded(numbers((1 << 17,), torch.float32), NVFP4, Rounding())


@pytest.mark.native
@pytest.mark.parametrize("kind", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_stops_a_compilation_is_raised_by_the_call(
    driver: Driver, monkeypatch: pytest.MonkeyPatch, kind: type[BaseException]
) -> None:
    def stop(kernel: str, device: int) -> int:
        raise kind(f"{kernel} on {device}")

    monkeypatch.setattr(_nvrtc, "_loaded", stop)
    for _ in range(2):
        with pytest.raises(kind, match="^lpt_map<.* on 0$"):
            round_up(torch.zeros(3))
    x = torch.zeros(1, 20, 20)
    with pytest.raises(kind, match="^lpt_gemm_tile<.* on 0$"):
        _cuda_gemm.gemm(x, x, x.clone(), Accumulator(BF16), None, None, False)
    monkeypatch.setattr(_nvrtc, "_loaded", driver.load)
    round_up(torch.zeros(3))


@pytest.mark.native
def test_without_a_driver_a_call_says_so(launching: Path, emulation: Any, tmp_path: Path) -> None:
    message = "lpt_cuda_round_f32 failed on cpu with CUDA error 35: there is no CUDA driver"
    with calls_reach(launching, None, emulation, tmp_path), pytest.raises(RuntimeError, match=message):
        round_up(torch.zeros(3))


@pytest.mark.native
@pytest.mark.parametrize("capturing", [False, True])
def test_a_table_that_a_captured_graph_reads_is_never_freed(driver: Driver, capturing: bool) -> None:
    """The caches give up the tables of old codebooks; a graph would go on reading where they were."""
    formats, cpu = (NF4, HIF8), torch.device("cpu")
    for format in formats:
        rounded(torch.zeros(3), format, Rounding())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_cuda, "capturing", lambda: capturing)
        patch.setattr(_cuda, "_captured", {})
        alive = []
        for format in formats:
            rounded(torch.zeros(3), format, Rounding())
            _, held = _cuda.table_struct(format.table, Mode.NEAREST, torch.float32, cpu, Beyond.OVERFLOW)
            alive += [weakref.ref(tensor) for tensor in held]
        del held
        for cache in (_cuda.table_struct, _native.table_struct):
            cache.cache_clear()
        gc.collect()
        assert [tensor() is not None for tensor in alive] == [capturing] * 12


class Compiler:
    """NVRTC, which counts what it compiles."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int] = (13, 0)) -> None:
        self.count, self.version = 0, version
        monkeypatch.setattr(_nvrtc, "library", lambda: self)
        monkeypatch.setattr(_nvrtc, "compile", self.compile)

    def compile(self, kernel: str, architecture: str) -> tuple[bytes, bytes]:
        self.count += 1
        return b"\x7fELF\n\0" + architecture.encode(), kernel.encode()

    def nvrtcVersion(self, major: Any, minor: Any) -> int:
        major._obj.value, minor._obj.value = self.version
        return 0

    def of(self, kernel: str = "one", architecture: str = "sm_90") -> int:
        """Of a kernel that a new process asks for, how often it was compiled."""
        self.count = 0
        _nvrtc.machine_code.cache_clear()
        for _ in range(2):
            code = _nvrtc.machine_code(kernel, architecture)
            assert code == (b"\x7fELF\n\0" + architecture.encode(), kernel.encode())
        return self.count


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, texts: None, tmp_path: Path) -> Path:
    """The folder where torch keeps kernels."""
    for name in ("USE_PYTORCH_KERNEL_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PYTORCH_KERNEL_CACHE_PATH", str(tmp_path / "kernels"))
    return tmp_path / "kernels"


def test_a_kernel_is_compiled_once_for_all_processes(monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    compiler = Compiler(monkeypatch)
    assert [compiler.of(), compiler.of()] == [1, 0] and len(list(kept.iterdir())) == 1
    assert [compiler.of("another"), compiler.of("one", "sm_80"), compiler.of()] == [1, 1, 0]
    for version in ((13, 1), (14, 1)):
        newer = Compiler(monkeypatch, version)
        assert [newer.of(), newer.of()] == [1, 0]
    others = {"headers": lambda: {"device.h": "text"}, "_OPTIONS": ("--std=c++20",), "_SOURCE": "another"}
    for name, value in [*others.items(), ("headers", lambda: {"device.h": "another text"})]:
        monkeypatch.setattr(_nvrtc, name, value)
        assert [newer.of(), newer.of()] == [1, 0]
    assert len(list(kept.iterdir())) == 9


def test_a_kernel_that_was_not_kept_whole_is_compiled(monkeypatch: pytest.MonkeyPatch, kept: Path) -> None:
    compiler = Compiler(monkeypatch)
    compiler.of()
    (file,) = kept.iterdir()
    whole = file.read_bytes()
    for part in (b"", whole[:-1], whole[1:]):
        file.write_bytes(part)
        assert [compiler.of(), compiler.of()] == [1, 0] and file.read_bytes() == whole
    file.unlink()
    file.mkdir()  # what cannot be read
    assert compiler.of() == 1


def test_kernels_are_kept_where_torch_keeps_its_own(
    monkeypatch: pytest.MonkeyPatch, kept: Path, tmp_path: Path
) -> None:
    compiler = Compiler(monkeypatch)
    monkeypatch.delenv("PYTORCH_KERNEL_CACHE_PATH")
    assert [compiler.of(), compiler.of()] == [1, 1]  # there is no such place
    for name, folder in {"HOME": ".cache/torch/kernels", "XDG_CACHE_HOME": "torch/kernels"}.items():
        monkeypatch.setenv(name, str(tmp_path / name))
        assert [compiler.of(), compiler.of()] == [1, 0] and len(list((tmp_path / name / folder).iterdir())) == 1
    monkeypatch.setenv("PYTORCH_KERNEL_CACHE_PATH", str(kept))
    monkeypatch.setenv("USE_PYTORCH_KERNEL_CACHE", "1")
    assert [compiler.of(), compiler.of()] == [1, 0] and len(list(kept.iterdir())) == 1
    monkeypatch.setenv("USE_PYTORCH_KERNEL_CACHE", "0")
    assert [compiler.of(), compiler.of()] == [1, 1]


def test_a_folder_that_takes_no_files_keeps_nothing(
    monkeypatch: pytest.MonkeyPatch, kept: Path, tmp_path: Path
) -> None:
    compiler = Compiler(monkeypatch)
    (tmp_path / "file").touch()
    monkeypatch.setenv("PYTORCH_KERNEL_CACHE_PATH", str(tmp_path / "file" / "kernels"))
    assert [compiler.of(), compiler.of()] == [1, 1]


def test_code_is_loaded_while_a_graph_is_captured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver refuses that in the mode in which torch captures, and must be in that mode again afterwards."""
    captured_in, relaxed = 0, 2  # CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED
    modes, loaded = [captured_in], []

    class Capturing:
        error = missing = 0

        def cuThreadExchangeStreamCaptureMode(self, mode: Any) -> int:
            modes[0], mode._obj.value = mode._obj.value, modes[0]
            return 0

        def cuModuleLoadData(self, module: Any, code: bytes) -> int:
            loaded.append(code)
            return self.error if modes[0] == relaxed else 900

        def cuModuleGetFunction(self, function: Any, module: Any, name: bytes) -> int:
            function._obj.value = 5
            return self.missing

        def cuGetErrorString(self, code: int, text: Any) -> int:
            return 0

    driver = Capturing()
    monkeypatch.setattr(_nvrtc, "_driver", lambda: driver)
    monkeypatch.setattr(_nvrtc, "architecture", lambda major, minor: f"sm_{major}{minor}")
    monkeypatch.setattr(_nvrtc, "machine_code", lambda kernel, architecture: (architecture.encode(), b"name"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, device))
    assert _nvrtc._loaded("kernel", 3) == 5 and loaded == [b"sm_93"] and modes == [captured_in]
    for what, code in {"missing": 500, "error": 209}.items():
        setattr(driver, what, code)
        with pytest.raises(RuntimeError, match=f"CUDA error {code}"):
            _nvrtc._loaded("kernel", 3)
        assert modes == [captured_in]


def test_a_device_younger_than_nvrtc_gets_code_that_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Old:
        def nvrtcGetNumSupportedArchs(self, count: Any) -> int:
            count._obj.value = 6
            return 0

        def nvrtcGetSupportedArchs(self, known: Any) -> int:
            known[:] = [75, 80, 86, 90, 100, 101]
            return 0

    monkeypatch.setattr(_nvrtc, "library", Old)
    capabilities = [(7, 2), (8, 6), (8, 9), (9, 0), (10, 3), (12, 1)]
    assert [_nvrtc.architecture(*c) for c in capabilities] == ["sm_72", "sm_86", "sm_80", "sm_90", "sm_100", "sm_121"]


def test_nvrtc_stands_in_where_nvcc_was_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    choose: Any = _cuda.library
    started: list[Any] = []
    monkeypatch.setattr(_nvrtc, "start", started.append)
    nvccs, launching = object(), SimpleNamespace(lpt_launch_by=None)
    device = torch.device("cuda", 0)
    for compiled, launches, nvrtc in itertools.product([False, True], repeat=3):
        found = {"lptensor_cuda": nvccs if compiled else None, "lptensor_launch": launching if launches else None}
        monkeypatch.setattr(_native, "find", lambda name, found=found: name if found[name] else None)
        monkeypatch.setattr(_cuda, "load", lambda path, found=found: found[path])
        monkeypatch.setattr(_nvrtc, "library", lambda nvrtc=nvrtc: object() if nvrtc else None)
        started.clear()
        library = choose.__wrapped__()
        assert library is (nvccs if compiled else launching if launches and nvrtc else None)
        assert started == ([launching] if library is launching else [])
        monkeypatch.setattr(_cuda, "library", lambda library=library: library)
        assert ops._kernels(device) is (None if library is None else _cuda)
        assert backend(device).split(":")[0] == ("cuda" if compiled else "nvrtc" if library else "torch")
        assert ("no NVRTC" in backend(device), "C++ compiler" in backend(device)) == (
            (not nvrtc, nvrtc) if library is None else (False, False)
        )


def test_a_torch_without_cuda_brings_no_nvrtc(monkeypatch: pytest.MonkeyPatch, texts: None) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    assert _nvrtc.library.__wrapped__() is None
    assert _nvrtc.load(Path("libnvrtc-of-no-version.so")) is None


def test_the_kernels_texts_are_the_headers_that_were_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("grid.h", "round.cu"):
        (tmp_path / name).write_text(f"// {name}")
    monkeypatch.setattr(_native, "installed", {"csrc": tmp_path}.get)
    assert _nvrtc.headers.__wrapped__() == {"grid.h": "// grid.h"}
    monkeypatch.setattr(_native, "installed", lambda name: None)
    assert _nvrtc.headers.__wrapped__() == {}


def test_nvrtc_is_looked_for_by_its_name_and_then_in_the_packages_beside_torch(
    monkeypatch: pytest.MonkeyPatch, texts: None, tmp_path: Path
) -> None:
    asked: list[Path] = []
    monkeypatch.setattr(_nvrtc, "load", lambda path: asked.append(path) or (path if path == found else None))
    monkeypatch.setattr(torch.version, "cuda", "13.1")
    monkeypatch.setattr(torch, "__file__", str(tmp_path / "torch" / "__init__.py"))
    monkeypatch.setattr(sys, "platform", "linux")
    folders = [tmp_path / "nvidia" / name / "lib" for name in ("cu13", "nccl")]
    for folder in folders:
        folder.mkdir(parents=True)
    places = [folder / "libnvrtc.so.13" for folder in (Path(), *folders)]
    for number, found in enumerate([*places, None], 1):
        assert _nvrtc.library.__wrapped__() == found and asked == places[:number]
        asked.clear()
    monkeypatch.setattr(_nvrtc, "headers", dict)
    assert _nvrtc.library.__wrapped__() is None and not asked


def test_what_nvrtc_asks_for_by_name_is_loaded_from_beside_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loaded: list[str] = []
    monkeypatch.setattr(ctypes, "CDLL", loaded.append)
    monkeypatch.chdir(tmp_path)
    builtins, file = tmp_path / "libnvrtc-builtins.so.13.0", tmp_path / "libnvrtc.so.13"
    builtins.touch()
    _nvrtc.load(file)
    _nvrtc.load(Path(file.name))
    assert loaded == [str(builtins), str(file), file.name]


def test_a_machine_without_cudas_driver_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert _nvrtc._driver.__wrapped__() is None


class FakeNvrtc:
    """NVRTC by its documentation, which compiles nothing; it fails where it is told to."""

    code, log = b"\x7fELF\0\0code", b"line 1: no such kernel"

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.programs = 0

    def __getattr__(self, name: str) -> Any:
        return lambda *given: getattr(self, f"_{name.removeprefix('nvrtc')}")(*given) or 6 * (name == self.fails)

    def _CreateProgram(self, program: Any, source: bytes, name: bytes, count: int, texts: Any, names: Any) -> None:
        program._obj.value = 77
        self.programs += self.fails != "nvrtcCreateProgram"
        self.source, self.headers = source, dict(zip(names, texts, strict=True))
        assert count == len(self.headers)

    def _AddNameExpression(self, program: Any, kernel: bytes) -> None:
        assert program.value == 77
        self.kernel = kernel

    def _CompileProgram(self, program: Any, count: int, options: Any) -> None:
        self.options = list(options)
        assert count == len(self.options)

    def _GetProgramLogSize(self, program: Any, size: Any) -> None:
        size._obj.value = len(self.log) + 1

    def _GetProgramLog(self, program: Any, log: Any) -> None:
        log.value = self.log

    def _GetCUBINSize(self, program: Any, size: Any) -> None:
        size._obj.value = len(self.code)

    def _GetCUBIN(self, program: Any, code: Any) -> None:
        code.raw = self.code

    def _GetLoweredName(self, program: Any, kernel: bytes, name: Any) -> None:
        name._obj.value = b"_Z" + kernel

    def _DestroyProgram(self, program: Any) -> None:
        self.programs -= 1


def test_nvrtc_is_given_the_headers_by_name_the_kernel_and_the_architecture(
    monkeypatch: pytest.MonkeyPatch, texts: None
) -> None:
    fake = FakeNvrtc()
    monkeypatch.setattr(_nvrtc, "library", lambda: fake)
    assert _nvrtc.compile("kernel<float>", "sm_90") == (fake.code, b"_Zkernel<float>") and fake.programs == 0
    included = {line.split('"')[1] for line in fake.source.decode().splitlines()}
    given = {name.decode(): text.decode() for name, text in fake.headers.items()}
    assert included | {"stdint.h", "string.h", "math.h"} <= given.keys()
    assert all(given[path.name] == path.read_text() for path in CSRC.glob("*.h"))
    assert fake.kernel == b"kernel<float>" and {b"--gpu-architecture=sm_90", b"--fmad=false"} <= {*fake.options}


@pytest.mark.parametrize("step", ["CreateProgram", "AddNameExpression", "GetCUBINSize", "GetCUBIN", "GetLoweredName"])
def test_a_step_of_nvrtc_that_fails_raises(monkeypatch: pytest.MonkeyPatch, texts: None, step: str) -> None:
    fake = FakeNvrtc(f"nvrtc{step}")
    monkeypatch.setattr(_nvrtc, "library", lambda: fake)
    with pytest.raises(RuntimeError, match="NVRTC failed with error 6"):
        _nvrtc.compile("kernel", "sm_90")
    assert fake.programs == 0


def test_a_kernel_that_does_not_compile_raises_what_the_compiler_says(
    monkeypatch: pytest.MonkeyPatch, texts: None
) -> None:
    fake = FakeNvrtc("nvrtcCompileProgram")
    monkeypatch.setattr(_nvrtc, "library", lambda: fake)
    with pytest.raises(RuntimeError, match="could not compile kernel for sm_90:\nline 1: no such kernel$"):
        _nvrtc.compile("kernel", "sm_90")
    assert fake.programs == 0


def test_each_thread_is_told_why_its_own_kernel_could_not_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(kernel: str, device: int) -> None:
        raise RuntimeError(kernel)

    monkeypatch.setattr(_nvrtc, "_loaded", stop)
    assert _nvrtc._find(b"mine", 0, []) == _nvrtc.FAILED
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(_nvrtc._find, b"another's", 0, []).result() == _nvrtc.FAILED
    assert str(_nvrtc.failure()) == "mine" and _nvrtc._failed.why is None


def test_a_capture_says_that_it_cannot_copy_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    _cuda.table_struct.cache_clear()
    monkeypatch.setattr(_cuda, "capturing", lambda: True)
    with pytest.raises(RuntimeError, match="16 values .* to cpu, .* before the capture"):
        _cuda.table_struct(NF4.table, Mode.NEAREST, torch.float32, device, Beyond.OVERFLOW)
    monkeypatch.setattr(_cuda, "capturing", lambda: False)
    before = _cuda.table_struct(NF4.table, Mode.NEAREST, torch.float32, device, Beyond.OVERFLOW)
    monkeypatch.setattr(_cuda, "capturing", lambda: True)
    assert _cuda.table_struct(NF4.table, Mode.NEAREST, torch.float32, device, Beyond.OVERFLOW) is before
