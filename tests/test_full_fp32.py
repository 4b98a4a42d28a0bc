"""Products are computed in fp32, and the settings for TF32 and BF16 are afterwards what they were."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lptensor import BF16, E4M3, Arithmetic, Gemm
from lptensor.dispatch import make_runner
from lptensor.full_fp32 import full_fp32, in_full_fp32, settings
from lptensor.tensor import LPTensor

ON_GPU = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
ON_CPU = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn)
aten = torch.ops.aten
REDUCTIONS = (aten.sum.dim_IntList, aten.mean.default) if hasattr(torch.Tag, "reduction") else ()


def precisions() -> list[str]:
    return [kind.fp32_precision for kind in (*ON_GPU, *ON_CPU)]


@pytest.fixture(autouse=True)
def _settings_survive() -> Iterator[None]:
    before = precisions()
    yield
    for kind, precision in zip((*ON_GPU, *ON_CPU), before, strict=True):
        kind.fp32_precision = precision
    settings.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, gpu: bool, units: bool) -> None:
    """A torch that is built with CUDA or not, on a CPU that has units for BF16 or not."""
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: gpu)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": units})
    settings.cache_clear()


@pytest.fixture
def built_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, gpu=True, units=False)


@pytest.mark.parametrize(
    ("gpu", "before"),
    [
        (True, ("none", "tf32", "tf32")),
        (True, ("tf32", "tf32", "tf32")),
        (True, ("ieee", "none", "tf32")),
        (False, ("bf16", "none", "ieee")),
        (False, ("tf32", "bf16", "bf16")),
    ],
)
def test_inside_nothing_has_fewer_bits_and_afterwards_all_is_as_before(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, before: tuple[str, ...]
) -> None:
    machine(monkeypatch, gpu, not gpu)
    kinds = ON_GPU if gpu else ON_CPU
    for kind, precision in zip(kinds, before, strict=True):
        kind.fp32_precision = precision
    with full_fp32, full_fp32:
        assert {kind.fp32_precision for kind in kinds} <= {"ieee", "none"}
    assert [kind.fp32_precision for kind in kinds] == list(before)
    with pytest.raises(ZeroDivisionError), full_fp32:
        raise ZeroDivisionError
    assert [kind.fp32_precision for kind in kinds] == list(before)


FOLLOWING = """
import itertools, os
import torch
from lptensor import full_fp32

KINDS = "matmul", "conv", "rnn"
read, write = torch._C._get_fp32_precision_getter, torch._C._set_fp32_precision_setter
WHERE = [("generic", "all"), *itertools.product(("cuda", "mkldnn"), ("all", *KINDS))]

def seen(uses, backend, general, own):  # what is read after each of some changes, perhaps with products between them
    changes = [("generic", "all", general), *([(backend, own, "tf32")] if own else [])]
    changes += [("generic", "all", precision) for precision in ("ieee", "none", "tf32")] + [(backend, "all", "ieee")]
    full_fp32.settings = lambda: [(backend, kind) for kind in KINDS]
    for change in (None, *changes):
        if change:
            write(*change)
        if uses:
            with full_fp32.full_fp32:
                assert not {read(*setting) for setting in full_fp32.settings()} & {"tf32", "bf16"}
        yield [read(*place) for place in WHERE]

for case in itertools.product(("cuda", "mkldnn"), ("none", "tf32", "bf16"), ("all", "matmul", None)):
    results = []
    for uses in (True, False):  # each in a process of its own: nothing gives a kind that was set its first setting back
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.write(writing, repr(list(seen(uses, *case))).encode())
            os._exit(0)
        os.close(writing)
        results.append(os.read(reading, 65536))
        os.wait()
    assert results[0] == results[1] != b"", (case, results)
"""


def test_what_follows_another_setting_does_so_afterwards_too() -> None:
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", FOLLOWING], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr


def test_threads_that_overlap_leave_the_settings_as_they_were(built_with_cuda: None) -> None:
    ON_GPU[0].fp32_precision = "tf32"
    before, inside, left = precisions(), threading.Event(), threading.Event()

    def other() -> None:
        with full_fp32:
            inside.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with full_fp32:
        thread.start()
        assert inside.wait(10)
    assert "tf32" not in precisions()  # the other one computes still
    left.set()
    thread.join()
    assert precisions() == before


@pytest.mark.parametrize("gpu", [True, False])
def test_ops_that_may_take_fewer_bits_run_in_all_of_them(monkeypatch: pytest.MonkeyPatch, gpu: bool) -> None:
    machine(monkeypatch, gpu, not gpu)
    kind, seen = (ON_GPU if gpu else ON_CPU)[0], []

    def product(*args: Any) -> Any:
        seen.append(kind.fp32_precision)
        return args

    torch.set_float32_matmul_precision("medium")
    asked = kind.fp32_precision
    try:
        assert asked in ("tf32", "bf16") and in_full_fp32(product)(1, 2) == (1, 2)
        assert seen == ["ieee"] and kind.fp32_precision == asked
    finally:
        torch.set_float32_matmul_precision("highest")
    wrapped = in_full_fp32(aten.mm.default)
    assert str(wrapped) == "aten.mm.default" and wrapped.name() == "aten::mm"  # type: ignore[attr-defined]


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("units", [True, False])
def test_nothing_is_paid_for_where_nothing_changes(monkeypatch: pytest.MonkeyPatch, gpu: bool, units: bool) -> None:
    machine(monkeypatch, gpu, units)
    assert (in_full_fp32(aten.mm.default) is aten.mm.default) == (not gpu and not units)
    assert all(in_full_fp32(func) is func for func in (aten.add.Tensor, aten.relu.default, *REDUCTIONS))


@pytest.mark.parametrize("func", [aten.mm.default, aten.addmm.default, aten.convolution.default, aten.bmm.default])
def test_lptensors_compute_products_in_full_fp32(
    built_with_cuda: None, monkeypatch: pytest.MonkeyPatch, func: Any
) -> None:
    entered = []
    monkeypatch.setattr(type(full_fp32), "__enter__", lambda self: entered.append(self))
    monkeypatch.setattr(type(full_fp32), "__exit__", lambda *_: None)
    x = torch.ones(2, 2).to_lp(BF16)  # type: ignore[attr-defined]
    y = torch.ones(1, 2, 2).to_lp(BF16)  # type: ignore[attr-defined]
    z = torch.ones(1, 1, 2, 2).to_lp(BF16)  # type: ignore[attr-defined]
    args = {
        "mm": (x, x),
        "addmm": (x, x, x),
        "bmm": (y, y),
        "convolution": (z, z, None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1),
    }[func.overloadpacket.__name__]
    assert isinstance(make_runner(func, LPTensor)(args, {}), LPTensor) and entered == [full_fp32]


def test_products_of_rounded_operands_are_computed_in_full_fp32(
    built_with_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    monkeypatch.setattr(type(full_fp32), "__enter__", lambda self: entered.append(self))
    monkeypatch.setattr(type(full_fp32), "__exit__", lambda *_: None)
    x = torch.ones(2, 2).to_lp(Arithmetic(BF16, operands=Gemm(E4M3)))  # type: ignore[attr-defined]
    assert isinstance(x @ x, LPTensor) and entered == [full_fp32]
