"""Which of several settings holds: blocks of threads overlap, and end in whatever order."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch

from lptensor import E4M3, Arithmetic, escape, escapes


@pytest.fixture(autouse=True)
def _undo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(escape, "_said", [])
    monkeypatch.setattr(escape, "_setting", "error")
    yield


def test_blocks_of_two_threads_that_overlap_leave_the_setting_as_it_was() -> None:
    begun, ended, held = threading.Event(), threading.Event(), []

    def allow() -> None:
        with escapes("allow"):
            begun.set()
            assert ended.wait(10)
            held.append(escape._setting)

    thread = threading.Thread(target=allow)
    with escapes("warn"):
        thread.start()
        assert begun.wait(10)
        held.append(escape._setting)
    ended.set()
    thread.join()
    assert held == ["allow", "allow"] and escape._setting == "error"


def test_blocks_that_are_made_before_any_begins_end_in_whatever_order() -> None:
    escapes("warn")
    a, b = escapes("allow"), escapes("error")
    with a:
        b.__enter__()
        assert escape._setting == "error"
    assert escape._setting == "error"
    b.__exit__()
    del a, b
    assert escape._setting == "warn"


def test_one_object_says_the_same_at_each_block() -> None:
    allow = escapes("allow")
    for _ in range(2):
        with allow:
            with escapes("warn"), allow:
                assert escape._setting == "allow"
            assert escape._setting == "allow"
        assert escape._setting == "error"


def test_calls_without_a_block_hold_until_the_next_and_do_not_add_up() -> None:
    for setting in ("warn", "allow") * 3:
        escapes(setting)
        assert escape._setting == setting
    assert len(escape._said) <= 2


@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
def test_a_sparse_product_is_an_escape_whatever_an_arithmetic_computes_in(compute: torch.dtype) -> None:
    x = torch.ones(3, 3).to_lp(Arithmetic(E4M3, compute=compute))  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="gives a plain torch.sparse_coo tensor"):
        x * torch.eye(3).to_sparse()


def test_a_named_dtype_is_an_escape_only_of_a_gradient() -> None:
    x = torch.ones(3).to_lp(E4M3).requires_grad_()  # type: ignore[attr-defined]
    with pytest.raises(RuntimeError, match="gives a plain float64 tensor.*Its gradient would come back plain"):
        x.double()
    with pytest.raises(RuntimeError, match="gives a plain torch.sparse_coo tensor.*Its gradient would come back plain"):
        x.to_sparse()
    for made in (x.new_zeros(3, dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64), x.detach().double()):
        assert type(made) is torch.Tensor and made.dtype is torch.float64
    with torch.no_grad():
        assert type(x.double()) is torch.Tensor
