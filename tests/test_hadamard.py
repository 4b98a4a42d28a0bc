"""The Hadamard transform of operands: orthogonal, and without effect on an exact product."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lptensor import FP32, MXFP4, Arithmetic, hadamard, round as lp_round
from lptensor.hadamard import Hadamard
from lptensor.operands import Gemm, Operand, Product


def kronecker(n: int) -> Tensor:
    """Sylvester's matrix of order n, from its definition."""
    h = torch.ones(1, 1, dtype=torch.float64)
    while len(h) < n:
        h = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), h)
    return h


@pytest.mark.parametrize("block", [2, 16, 32, 64, 128])
@pytest.mark.parametrize("signs", ["fixed", "random", "none"])
def test_it_is_sylvesters_matrix_times_signs_over_the_root(block: int, signs: str) -> None:
    h = Hadamard(block, signs)
    drawn = h.draw(torch.empty(0, dtype=torch.float64))
    rows = h.apply(torch.eye(block, dtype=torch.float64), drawn)
    diagonal = torch.eye(block, dtype=torch.float64) if drawn is None else torch.diag(drawn)
    torch.testing.assert_close(rows, diagonal @ kronecker(block) / block**0.5, rtol=0, atol=1e-15)
    torch.testing.assert_close(rows @ rows.T, torch.eye(block, dtype=torch.float64), rtol=0, atol=1e-14)
    assert drawn is None or block < 16 or set(drawn.tolist()) == {1.0, -1.0}


@pytest.mark.parametrize("k", [1, 15, 64, 100])
def test_a_product_keeps_its_value_whatever_the_length_of_its_contraction(k: int) -> None:
    a, b = torch.randn(3, 5, k, dtype=torch.float64), torch.randn(3, 7, k, dtype=torch.float64)
    for signs in ("fixed", "random", "none"):
        h = Hadamard(16, signs)
        drawn = h.draw(a)
        p, q = h.apply(a, drawn), h.apply(b, drawn)
        assert p.shape[-1] == -(-k // 16) * 16
        torch.testing.assert_close(p @ q.mT, a @ b.mT, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", [2, 16, 32, 128, 1024])
def test_a_device_makes_the_signs_that_the_cpu_copies(block: int) -> None:
    bits, like = hadamard._bits(block, 3), torch.zeros(1, dtype=torch.float64)
    made = hadamard._signs_there(block, bits, like)
    assert made.dtype == torch.float64 and made.tolist() == hadamard._signs(block, bits, like).tolist()
    assert sum(2**i for i, sign in enumerate(made.tolist()) if sign < 0) == bits


def test_every_sign_is_negative_under_half_of_the_seeds() -> None:
    like = torch.empty(0)
    drawn = torch.stack([Hadamard(16, seed=seed).draw(like) for seed in range(400)])  # type: ignore[misc]
    assert drawn.mean(0).abs().max() < 4.5 / 400**0.5


def test_fixed_signs_are_always_the_same_and_random_ones_come_with_the_seed() -> None:
    like = torch.empty(0)
    fixed, other, random = Hadamard(64), Hadamard(64, seed=1), Hadamard(64, "random")
    assert torch.equal(fixed.draw(like), fixed.draw(like))  # type: ignore[arg-type]
    assert not torch.equal(fixed.draw(like), other.draw(like))  # type: ignore[arg-type]
    torch.manual_seed(5)
    once, next_ = random.draw(like), random.draw(like)
    torch.manual_seed(5)
    assert torch.equal(random.draw(like), once) and not torch.equal(once, next_)  # type: ignore[arg-type]


def test_what_is_no_transform_is_named() -> None:
    with pytest.raises(ValueError, match="power of two such as 16, 32, 64 or 128, got 24"):
        Hadamard(24)
    with pytest.raises(ValueError, match="signs must be one of 'fixed', 'random', 'none', got 'free'"):
        Hadamard(16, "free")


def lp(x: Tensor, arithmetic: Arithmetic) -> Tensor:
    return x.to_lp(arithmetic)  # type: ignore[attr-defined, no-any-return]


@pytest.mark.parametrize("only", [product.value for product in Product])
def test_it_is_applied_in_the_products_that_are_named_and_in_no_other(only: str) -> None:
    h = Hadamard(32)
    pair = (MXFP4, MXFP4)
    arithmetic = Arithmetic(None, operands=Gemm(pair, pair, pair, transform={only: h}))
    a, b, g = torch.randn(40, 64), torch.randn(50, 64), torch.randn(40, 50)

    def by_hand(p: Tensor, q: Tensor, name: str) -> Tensor:  # both with the contraction last
        if name == only:
            p, q = (h.apply(t, h.draw(t)) for t in (p, q))
        return lp_round(p.contiguous(), MXFP4) @ lp_round(q.contiguous(), MXFP4).T

    x, w = lp(a, arithmetic).requires_grad_(), lp(b, arithmetic).requires_grad_()
    y = torch.nn.functional.linear(x, w)
    grads = torch.autograd.grad(y, (x, w), lp(g, arithmetic))
    wanted = by_hand(a, b, "forward"), by_hand(g, b.T, "grad_input"), by_hand(g.T, a.T, "grad_weight")
    for mine, true in zip((y, *grads), wanted, strict=True):
        torch.testing.assert_close(mine.dequantize().detach(), true)  # type: ignore[attr-defined]


def error(gemm: Gemm, x: Tensor, w: Tensor, draws: int = 1) -> float:
    arithmetic = Arithmetic(FP32, operands=gemm)
    true = x.double() @ w.double().T
    mean = sum((lp(x, arithmetic) @ lp(w, arithmetic).T).dequantize().double() for _ in range(draws)) / draws  # type: ignore
    return ((mean - true).square().mean().sqrt() / true.square().mean().sqrt()).item()


def test_outliers_cost_the_more_the_larger_the_block_but_not_after_a_random_transform() -> None:
    """Tseng et al. (2502.20586): the variance is O(block) without, O(log block) with it."""
    torch.manual_seed(0)
    x, w = (torch.randn(64, 4096) * torch.where(torch.rand(64, 4096) < 0.01, 10.0, 1.0) for _ in range(2))
    without, with_ = [], []
    for block in (32, 64, 128, 256):
        stochastic = Operand(type(MXFP4)(MXFP4.element, block, scale_rule="rceil"), "stochastic")
        without.append(error(Gemm(stochastic), x, w))
        with_.append(error(Gemm(stochastic, transform=Hadamard(block, "random")), x, w))
    assert without == sorted(without) and without[-1] > 1.7 * without[0]
    assert max(with_) < 1.2 * min(with_) and max(with_) < min(without)


def test_stochastic_products_are_unbiased_under_the_transform() -> None:
    """The error of a mean of eight falls by sqrt(8), as that of independent unbiased draws does."""
    torch.manual_seed(0)
    x, w = torch.randn(64, 1024), torch.randn(64, 1024)
    operand = Operand(type(MXFP4)(MXFP4.element, scale_rule="rceil"), "stochastic")  # clips nothing
    gemm = Gemm(operand, transform=Hadamard(32, "random"))
    single, mean = error(gemm, x, w), error(gemm, x, w, draws=8)
    assert 0.9 < single / mean / 8**0.5 < 1.1
