"""Tensors of one device while new ones are made on another, as after torch.set_default_device("cuda")."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from typing import Any

import pytest
import torch

from backends import BACKENDS, run
from lptensor import E4M3, MX, P3109, Arithmetic, Codebook, FixedPoint, FloatingPoint, Format, Posit, decode, encode
from lptensor.blocks import BlockFloatingPoint, TwoLevel
from lptensor.hadamard import Hadamard
from lptensor.ops import draw_key
from lptensor.study import flip_bits

MAKE = [  # none that another test may have prepared for its kernel
    lambda: FloatingPoint(exp=4, man=2, bias=6),
    lambda: FloatingPoint(exp=8, man=0, subnormals=False, specials="fn", signed=False, zero=False),
    lambda: FixedPoint(9, 11),
    lambda: BlockFloatingPoint(7, dim=0),
    lambda: MX(FloatingPoint(exp=3, man=2), block_size=8),
    lambda: TwoLevel(FloatingPoint(exp=2, man=1, specials="none"), block_size=8),
    lambda: Posit(9, 1),
    lambda: P3109(7, 3),
    lambda: Codebook([-1.5, 0.0, 0.625, 2.0]),
]
ELSEWHERE = torch.device("meta")  # without values: what is made there by mistake is seen


def both(work: Any) -> tuple[Any, Any]:
    with ELSEWHERE:
        there = work()
    return there, work()


@pytest.mark.parametrize("make", MAKE, ids=lambda make: repr(make()))
@pytest.mark.parametrize("rounding", ["nearest", "up", "stochastic"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rounding(backend: str, rounding: str, make: Any) -> None:
    x = torch.randn(6, 16)
    there, here = both(lambda: run(backend, x, make(), rounding))
    assert torch.equal(there.view(torch.int32), here.view(torch.int32))


@pytest.mark.parametrize("make", MAKE, ids=lambda make: repr(make()))
def test_codes_and_values(make: Any) -> None:
    def all_of(format: Format) -> list[list[float]]:
        values: Any = getattr(format, "values", None)
        kept = [] if values is None else [values().tolist()]
        return kept if isinstance(format, (BlockFloatingPoint, MX, TwoLevel)) else [*kept, through_codes(format)]

    def through_codes(format: Format) -> list[float]:
        listed: list[float] = decode(encode(x, format), format).nan_to_num().tolist()
        return listed

    x = make().values()[:4].float() if hasattr(make(), "values") else torch.zeros(1)
    there, here = both(lambda: all_of(make()))
    assert there == here


def test_draws_come_from_the_cpu() -> None:
    torch.manual_seed(3)
    drawn = []
    for device in ("cpu", "meta"):
        torch.manual_seed(3)
        with torch.device(device):
            drawn.append(draw_key())
    assert drawn[0] == drawn[1]


def test_an_lptensor_trains() -> None:
    def step() -> list[Any]:
        torch.manual_seed(0)
        w, x = (torch.randn(4, 4, device="cpu").to_lp(arithmetic) for _ in range(2))
        w.requires_grad_()
        (x @ w).relu().sum().backward()
        return [(x @ w).tolist(), w.grad.tolist()]

    arithmetic = Arithmetic(FloatingPoint(8), rounding="stochastic")
    there, here = both(step)
    assert there == here


DEFAULT_DTYPE = """
import sys, torch
torch.set_default_dtype(getattr(torch, sys.argv[1]))
import lptensor
from lptensor.study import flip_bits
from lptensor.delayed import DelayedScaling
x = torch.linspace(-2, 2, 999, dtype=torch.float32)
delayed = DelayedScaling(lptensor.E4M3).to("cpu")
delayed(x)
print(lptensor.NF4.values().double().tolist(), lptensor.DYNAMIC8.values().double().tolist())
print(delayed(x).double().tolist(), [t.dtype for t in delayed.state_dict().values()])
print(flip_bits(x, lptensor.E4M3, 0.25, generator=torch.Generator().manual_seed(0)).double().tolist())
wide = lptensor.Arithmetic(lptensor.FP16, compute=torch.float64)
print((x.to_lp(wide) + 0.1).dequantize().double().tolist())
"""


def test_torchs_default_dtype_is_nobodys_business() -> None:
    def printed(dtype: str) -> str:
        run = subprocess.run([sys.executable, "-c", DEFAULT_DTYPE, dtype], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr
        return run.stdout

    printed_here = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed_here):
        patch.setattr(sys, "argv", ["", "float32"])  # torch's own default
        exec(DEFAULT_DTYPE, {})
    single = printed_here.getvalue()
    assert "torch.float64" not in single
    assert all(printed(dtype) == single for dtype in ("float64", "bfloat16"))


def test_operands_and_faults_lie_on_the_cpu_whatever_the_default_device() -> None:
    x, transform = torch.randn(3, 16), Hadamard(16)
    with torch.device("meta"):
        assert transform.apply(x, transform.draw(x)).device.type == "cpu"
        for rate in (0.5, 1e-3):
            assert flip_bits(torch.ones(2**17, device="cpu"), E4M3, rate).device.type == "cpu"
