"""DeepSeek-V3's sums: Hopper's tensor cores for so many products, fp32 from there on; by hand in exact rationals."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import torch
from torch import Tensor, nn

from lptensor import hardware_sums
from lptensor.training import recipes


def product(x: Tensor, w: Tensor, promote_every: int | None) -> Tensor:
    layer = nn.Linear(w.shape[1], w.shape[0], bias=False)
    with torch.no_grad():
        layer.weight.copy_(w)
    return recipes.deepseek(promote_every).model(layer)(x).detach()


def tensor_core(pairs: list[tuple[float, float]]) -> Fraction:
    """32 products at once with the sum so far, digits more than 13 places below the largest exponent cut off.

    The exponent of a product is the sum of its factors', although its fraction may reach 4.
    """

    def exponent(v: float) -> int:
        return math.frexp(v)[1] - 1

    total = Fraction(0)
    for start in range(0, len(pairs), 32):
        terms = [
            (Fraction(a) * Fraction(b), exponent(a) + exponent(b)) for a, b in pairs[start : start + 32] if a and b
        ]
        terms += [(total, exponent(float(total)))] if total else []
        place = Fraction(2) ** (max(e for _, e in terms) - 13)
        cut = sum((math.trunc(t / place) * place for t, _ in terms), Fraction(0))
        place = Fraction(2) ** (exponent(float(cut)) - 13) if cut else Fraction(1)
        total = math.trunc(cut / place) * place  # 13 stored bits
    return total


def test_promoted_sums_are_the_tensor_cores_every_128_and_fp32_between() -> None:
    """Each tile has 448 as its largest magnitude, so that all scales are one and the operands E4M3's values."""

    def with_scales_of_one(t: Tensor) -> Tensor:
        t = (t * 100).clamp(-448, 448).to(torch.float8_e4m3fn).float()
        t[:, ::128] = 448.0
        return t

    x, w = with_scales_of_one(torch.randn(5, 300)), with_scales_of_one(torch.randn(7, 300))
    wanted = torch.zeros(5, 7)
    for i in range(5):
        for j in range(7):
            pairs = list(zip(x[i].tolist(), w[j].tolist(), strict=True))
            for start in range(0, 300, 128):
                wanted[i, j] += torch.tensor(float(tensor_core(pairs[start : start + 128])))
    assert torch.equal(product(x, w, 128), wanted)
    assert not torch.equal(product(x, w, None), wanted) and not torch.equal(product(x, w, 64), wanted)


def test_promotion_keeps_long_sums_from_losing_digits() -> None:
    """DeepSeek-V3, section 3.5.2: in 14 bits 4096 products err by percents.

    Of 32 positive products and the sum so far, each loses less than 2**-13 of the sum, and the
    result as much: 34 times. Promoted every 128, that happens 4 times before fp32 takes over; else 128 times.
    """
    x, w = torch.rand(8, 4096), torch.rand(8, 4096)
    exact, promoted = product(x, w, None), product(x, w, 128)
    layer = nn.Linear(4096, 8, bias=False)
    layer.weight.data = w
    recipe = replace(recipes.deepseek(), accumulator=hardware_sums.tensor_core("hopper_fp8"))
    never = recipe.model(layer)(x).detach()

    def error(got: Tensor) -> float:
        return float(((got - exact) / exact).abs().max())

    assert 0 < error(promoted) < 4 * 34 * 2**-13
    assert error(never) > 10 * error(promoted)
