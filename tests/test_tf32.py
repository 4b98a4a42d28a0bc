"""Products on a GPU are computed in fp32, and the settings for TF32 are afterwards what they were."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from lptensor import BF16, E4M3, Arithmetic, Gemm
from lptensor.dispatch import make_runner
from lptensor.tensor import LPTensor
from lptensor.tf32 import full_fp32, without_tf32

KINDS = (torch.backends.cuda.matmul, torch.backends.cudnn.conv, torch.backends.cudnn.rnn)
aten = torch.ops.aten


def settings() -> list[str]:
    return [kind.fp32_precision for kind in KINDS]


@pytest.fixture(autouse=True)
def _settings_survive() -> Iterator[None]:
    before = settings()
    yield
    for kind, precision in zip(KINDS, before, strict=True):
        kind.fp32_precision = precision


@pytest.fixture
def built_with_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)


@pytest.mark.parametrize("before", [("none", "tf32", "tf32"), ("tf32", "tf32", "tf32"), ("ieee", "none", "tf32")])
def test_inside_nothing_is_tf32_and_afterwards_all_is_as_before(before: tuple[str, ...]) -> None:
    for kind, precision in zip(KINDS, before, strict=True):
        kind.fp32_precision = precision
    with full_fp32, full_fp32:
        assert "tf32" not in settings()
    assert settings() == list(before)
    with pytest.raises(ZeroDivisionError), full_fp32:
        raise ZeroDivisionError
    assert settings() == list(before)


def test_threads_that_overlap_leave_the_settings_as_they_were() -> None:
    KINDS[0].fp32_precision = "tf32"
    before, inside, left = settings(), threading.Event(), threading.Event()

    def other() -> None:
        with full_fp32:
            inside.set()
            left.wait(10)

    thread = threading.Thread(target=other)
    with full_fp32:
        thread.start()
        assert inside.wait(10)
    assert "tf32" not in settings()  # the other one computes still
    left.set()
    thread.join()
    assert settings() == before


def test_ops_that_may_use_tf32_run_without_it(built_with_cuda: None) -> None:
    seen = []

    def product(*args: Any) -> Any:
        seen.append(settings())
        return args

    KINDS[0].fp32_precision = "tf32"
    assert without_tf32(product)(1, 2) == (1, 2)
    assert seen[0].count("tf32") == 0 and settings()[0] == "tf32"
    wrapped = without_tf32(aten.mm.default)
    assert str(wrapped) == "aten.mm.default" and wrapped.name() == "aten::mm"  # type: ignore[attr-defined]


def test_nothing_is_paid_for_where_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    for built, func in ((False, aten.mm.default), (True, aten.add.Tensor), (True, aten.relu.default)):
        monkeypatch.setattr(torch.backends.cuda, "is_built", lambda built=built: built)
        assert without_tf32(func) is func


@pytest.mark.parametrize("func", [aten.mm.default, aten.addmm.default, aten.convolution.default, aten.bmm.default])
def test_lptensors_compute_products_without_tf32(
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


def test_products_of_rounded_operands_are_computed_without_tf32(
    built_with_cuda: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered = []
    monkeypatch.setattr(type(full_fp32), "__enter__", lambda self: entered.append(self))
    monkeypatch.setattr(type(full_fp32), "__exit__", lambda *_: None)
    x = torch.ones(2, 2).to_lp(Arithmetic(BF16, operands=Gemm(E4M3)))  # type: ignore[attr-defined]
    assert isinstance(x @ x, LPTensor) and entered == [full_fp32]
