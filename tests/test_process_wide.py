"""Settings of the whole process, changed by threads that overlap."""

from __future__ import annotations

import importlib
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses import FakeTensorMode

from lptensor import E4M3, FP32, Accumulator, Arithmetic, Gemm, LPTensor, _compat, convert, lower
from lptensor.composites import step_by_step
from lptensor.process_wide import ProcessWide, without_onednn


class Setting:
    """A switch, and a context in which it is off."""

    def __init__(self) -> None:
        self.on = True
        self.other = ProcessWide(self.turn_off, self.turn)

    def turn_off(self) -> bool:
        before, self.on = self.on, False
        return before

    def turn(self, on: bool) -> None:
        self.on = on


def test_the_last_out_takes_back_what_the_first_in_has_changed() -> None:
    setting = Setting()
    with setting.other, setting.other:
        assert not setting.on
    assert setting.on
    setting.other.__enter__()
    with setting.other:
        pass
    assert not setting.on
    setting.other.__exit__()
    assert setting.on


def test_a_setting_that_somebody_changes_meanwhile_is_another_for_who_comes_in_then() -> None:
    setting = Setting()
    with setting.other:
        setting.on = True
        with setting.other:
            assert not setting.on


def test_ctrl_c_on_the_way_in_takes_the_change_back() -> None:
    class Broken:
        """A lock that Ctrl-C breaks off once it is free again."""

        def __enter__(self) -> None:
            pass

        def __exit__(self, *_: object) -> None:
            if not setting.on:
                raise KeyboardInterrupt

    setting = Setting()
    setting.other._lock = Broken()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt), setting.other:
        raise AssertionError("nobody is inside")
    assert setting.on and setting.other._inside == 0


def test_a_plain_model_moves_while_another_thread_converts(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = nn.Linear(2, 2)
    loss = plain(torch.ones(2, requires_grad=True)).sum()  # holds the weight, which torch cannot swap then

    def enter(*args: Any) -> LPTensor:
        with ThreadPoolExecutor(1) as other:
            assert other.submit(plain.double).result().weight.dtype is torch.float64
        return entering(*args)

    module = importlib.import_module("lptensor.convert")  # not the function of that name
    entering = module.enter
    monkeypatch.setattr(module, "enter", enter)
    convert(nn.Linear(2, 2), E4M3)
    assert loss.requires_grad and not torch.__future__.get_swap_module_params_on_conversion()


@pytest.mark.parametrize("swaps", [True, False])
def test_torchs_setting_for_swaps_holds_outside_of_a_conversion(swaps: bool) -> None:
    torch.__future__.set_swap_module_params_on_conversion(swaps)
    try:
        convert(nn.Linear(2, 2), E4M3)
        assert torch.__future__.get_swap_module_params_on_conversion() is swaps
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def test_threads_share_a_lowered_layer_and_leave_onednn_on() -> None:
    """What a call puts in the place of the parameters is that call's alone."""
    torch.manual_seed(0)
    layer, x = lower(nn.LSTM(4, 4), ["rnn"], operands=Gemm(E4M3)), torch.randn(6, 2, 4)
    want = layer(x)[0].detach()
    wrong: list[object] = []

    def run() -> None:
        for grads in (True, False) * 5:
            with torch.set_grad_enabled(grads):
                try:
                    y = layer(x)[0]
                    if not torch.equal(y, want) or y.requires_grad != grads:
                        wrong.append(y)
                except RuntimeError as error:
                    wrong.append(error)

    threads = [threading.Thread(target=run) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and torch.backends.mkldnn.enabled and without_onednn._inside == 0
    assert all(type(p) is nn.Parameter for p in layer.parameters()) and "weight_ih_l0" not in vars(layer)


def test_a_recurrent_layer_leaves_onednns_other_settings_to_the_general_ones() -> None:
    general, before = ("generic", "all"), torch.backends.fp32_precision
    try:
        _compat.set_fp32_precision(*general, "tf32")
        convert(nn.LSTM(2, 2), E4M3)(torch.ones(1, 1, 2))
        _compat.set_fp32_precision(*general, "ieee")
        assert torch.backends.mkldnn.rnn.fp32_precision == "ieee"
    finally:
        _compat.set_fp32_precision(*general, before)


def test_a_recurrent_layer_on_a_gpu_does_without_cudnn() -> None:
    with FakeTensorMode():
        low = LPTensor(torch.empty(2, 1, 3, device="cuda"), Arithmetic(E4M3))
    batch_sizes = torch.tensor([1, 1])
    for state in (low, [low, low]):
        for args in ((low, state, [low]), (low, batch_sizes, state, [low])):
            with step_by_step(LPTensor, args):
                assert not torch.backends.cudnn.enabled
            assert torch.backends.cudnn.enabled
    with step_by_step(LPTensor, (torch.ones(2), [torch.ones(2)], [torch.ones(2)])):
        assert torch.backends.cudnn.enabled and torch.backends.mkldnn.enabled


def test_a_call_that_fails_early_leaves_that_of_another_thread_alone() -> None:
    """Torch calls what comes after a layer also where a hook before ours has raised, and we have not begun."""
    layer = lower(nn.Linear(3, 3), ["linear"], accumulator=Accumulator(FP32))
    inside, go_on, seen = threading.Event(), threading.Event(), []

    def refuse(*_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            raise ZeroDivisionError

    def wait(*_: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(10)
            seen.append("weight" in vars(layer))

    layer.register_forward_pre_hook(refuse, prepend=True)
    layer.register_forward_pre_hook(wait)  # after ours
    thread = threading.Thread(target=lambda: seen.append(layer(torch.ones(3)).shape))
    thread.start()
    assert inside.wait(10)
    with pytest.raises(ZeroDivisionError):
        layer(torch.ones(3))
    go_on.set()
    thread.join()
    assert seen == [True, (3,)] and "weight" not in vars(layer)
