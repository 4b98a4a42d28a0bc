"""Square roots and quotients are correctly rounded, whatever torch's own fp32 kernels do."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from math import isqrt
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from backends import threads
from lptensor import BF16, FP16, FP32, FloatingPoint, Format
from lptensor.exact_ops import correct


def nearest_root(value: Fraction, precision: int) -> Fraction:
    """The square root to ``precision`` significant bits, ties to even, in integers."""
    exponent = 0  # value * 4**exponent between 4**precision and 4**(precision + 1)
    while value * Fraction(4) ** exponent < 4**precision:
        exponent += 1
    while value * Fraction(4) ** exponent >= 4 ** (precision + 1):
        exponent -= 1
    scaled = value * Fraction(4) ** exponent
    root = isqrt(scaled.numerator // scaled.denominator)  # precision + 1 bits
    exact = root * root == scaled
    half, kept = root & 1, root >> 1
    up = half and (not exact or kept & 1)
    return Fraction(kept + bool(up)) * 2 / Fraction(2) ** exponent


def in_place(x: Tensor) -> Tensor:
    return x.clone().sqrt_()


def into(x: Tensor) -> Tensor:
    return torch.sqrt(x, out=torch.empty_like(x))


def one_of_many(x: Tensor) -> Tensor:
    return torch._foreach_sqrt([x])[0]


def power(x: Tensor) -> Tensor:
    return x**0.5


def power_in_place(x: Tensor) -> Tensor:
    return x.clone().pow_(0.5)


def power_into(x: Tensor) -> Tensor:
    return torch.pow(x, 0.5, out=torch.empty_like(x))


def power_of_many(x: Tensor) -> Tensor:
    return torch._foreach_pow([x], 0.5)[0]


ROOTS = [torch.sqrt, in_place, into, one_of_many]


@pytest.mark.parametrize("root", [*ROOTS, power, power_in_place, power_into, power_of_many])
@pytest.mark.parametrize("format", [FP16, BF16, FloatingPoint(8, 5)], ids=repr)
def test_every_root_is_the_nearest_value(format: Format, root: Callable[[Tensor], Tensor]) -> None:
    values = format.values()  # type: ignore[attr-defined]
    values = values[values >= 2.0**-14][:: max(1, len(values) // 4000)].float()
    roots = root(values.to_lp(format)).dequantize()  # type: ignore[attr-defined]
    precision = format.grid.precision  # type: ignore[attr-defined]
    wanted = [float(nearest_root(Fraction(v), precision)) for v in values.tolist()]
    assert roots.tolist() == wanted


@pytest.mark.parametrize("times", [1, 1000])
def test_signs_and_specials_are_those_of_ieee_754(times: int) -> None:
    x = torch.tensor([0.0, -0.0, torch.inf, -1.0, torch.nan] * times).to_lp(FP16)  # type: ignore[attr-defined]
    for root in ROOTS:
        assert [str(v) for v in root(x).tolist()] == ["0.0", "-0.0", "inf", "nan", "nan"] * times


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "rows": lambda x: x,
    "columns": lambda x: x.t(),
    "every other": lambda x: x[:, ::2],
    "expanded": lambda x: x[:, :1].expand(64, 64),
    "negated": lambda x: torch.complex(x, x).conj().imag,
    "zeros": lambda x: torch._efficientzerotensor((64, 64)),
    "of inference": lambda x: torch.inference_mode()(torch.clone)(x),
}


@pytest.mark.parametrize("n", [1, 8])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_root_of_many_numbers_is_correct_however_they_lie(layout: str, n: int) -> None:
    root, x = correct(torch.ops.aten.sqrt.default), LAYOUTS[layout](torch.rand(64, 64) - 0.1)
    with threads(n):
        found = root(x)
    torch.testing.assert_close(found, x.double().sqrt().float(), rtol=0, atol=0, equal_nan=True)
    assert found.stride() == x.sqrt().stride()


def test_other_powers_are_those_of_torch() -> None:
    x = torch.rand(100).to_lp(FP16)  # type: ignore[attr-defined]
    for exponent in (2, 0, -0.5, 1.5, torch.tensor(0.5)):
        wanted = (x.dequantize() ** exponent).to_lp(FP16)  # type: ignore[attr-defined]
        assert torch.equal(x**exponent, wanted) and torch.equal(x.clone().pow_(exponent), wanted)
    assert torch.equal(2**x, (2 ** x.dequantize()).to_lp(FP16))  # type: ignore[attr-defined]


def test_a_root_is_written_to_what_grows_for_it() -> None:
    x = torch.rand(5000)
    out = torch.empty(0).to_lp(FP32)  # type: ignore[attr-defined]
    torch.sqrt(x.to_lp(FP32), out=out)  # type: ignore[attr-defined]
    assert torch.equal(out.dequantize(), x.double().sqrt().float())


@pytest.mark.parametrize("divisor", [0.3, 7, torch.tensor(0.3), torch.tensor(0.3, dtype=torch.float64)], ids=repr)
@pytest.mark.parametrize("ways", [{}, {"rounding_mode": "floor"}])
def test_what_divides_on_a_gpu_is_there(divisor: Any, ways: dict[str, Any]) -> None:
    """By numbers of the CPU, CUDA's kernels multiply with a reciprocal."""
    seen: list[Tensor] = []

    class Seen(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "div" in str(func):
                seen.append(args[1])
            return func(*args, **(kwargs or {}))

    div, suffix = torch.ops.aten.div, "_mode" if ways else ""
    calls = correct(getattr(div, "Tensor" + suffix)), correct(getattr(torch.ops.aten.div_, "Tensor" + suffix))
    with FakeTensorMode(allow_non_fake_inputs=True), Seen():
        for x in (torch.empty(3, device="cuda"), torch.empty((), device="cuda")):
            for call in calls:
                y = call(x, divisor, **ways)
                assert y.is_cuda and y.shape == x.shape
            correct(getattr(div, "out" + suffix))(x, divisor, out=torch.empty_like(x), **ways)
    assert len(seen) == 6 and all(d.is_cuda and d.dim() == 0 for d in seen)


def test_a_number_is_divided_too() -> None:
    x = torch.tensor([2.0, 4.0, 7.0]).to_lp(FP16)  # type: ignore[attr-defined]
    wanted = (3 / torch.tensor([2.0, 4.0, 7.0])).half().tolist()
    three: Any = 3.0
    assert torch.div(three, x).tolist() == torch.ops.aten.div(3, x).tolist() == wanted
    assert torch.div(three, x, rounding_mode="floor").tolist() == [1.0, 0.0, 0.0]
    with FakeTensorMode():
        assert correct(torch.ops.aten.div.Tensor)(3.0, torch.empty(2, device="cuda")).is_cuda
        complex_numbers = correct(torch.ops.aten.div.Tensor)(torch.empty(2, device="cuda"), 1j)
    assert complex_numbers.dtype is torch.complex64


@pytest.mark.gpu
def test_quotients_on_a_gpu_are_those_of_a_cpu() -> None:
    values = FP16.values().float()
    x = values[values.isfinite()].to_lp(FP16)  # type: ignore[attr-defined]
    for divisor in (0.3, 3, 7.1):
        assert torch.equal((x.cuda() / divisor).cpu().dequantize(), (x / divisor).dequantize())
