"""round() and quantizers under torch.func: what each sample, gradient and tangent would be alone."""

from __future__ import annotations

import pytest
import torch

from lptensor import E4M3, MXFP8_E4M3, BlockFloatingPoint, Format, Stochastic, quantizer, round as lp_round

FORMATS = [E4M3, MXFP8_E4M3, BlockFloatingPoint(5), BlockFloatingPoint(5, dim=0)]


@pytest.mark.parametrize("format", FORMATS, ids=repr)
@pytest.mark.parametrize("dim", [0, 1, 2])
def test_a_vmap_rounds_each_sample_as_if_alone(format: Format, dim: int) -> None:
    x = torch.randn(3, 4, 5) * torch.tensor([1.0, 1e3, 1e-3, 7.0, 1e6])
    mapped = torch.vmap(lambda t: lp_round(t, format), in_dims=dim, out_dims=dim)(x)
    assert torch.equal(mapped, torch.stack([lp_round(t, format) for t in x.unbind(dim)], dim))


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own use of it
def test_derivatives_pass_straight_through() -> None:
    x, v = torch.randn(3, 4), torch.randn(3, 4)
    gradient = torch.func.grad(lambda t: (lp_round(t, E4M3) ** 2).sum())(x)
    assert torch.equal(gradient, 2 * lp_round(x, E4M3))
    value, tangent = torch.func.jvp(lambda t: lp_round(t, E4M3), (x,), (v,))
    assert torch.equal(value, lp_round(x, E4M3)) and torch.equal(tangent, v)
    jacobian = torch.func.jacrev(lambda t: lp_round(t, E4M3))(x[0])
    assert torch.equal(jacobian, torch.eye(4))
    per_sample = torch.vmap(torch.func.grad(lambda t: (lp_round(t, E4M3) ** 2).sum()))(x)
    assert torch.equal(per_sample, gradient)


def test_stochastic_rounding_in_a_vmap_draws_anew_for_each_sample() -> None:
    x = torch.full((2, 4096), 1.03)

    def f(t: torch.Tensor) -> torch.Tensor:
        return lp_round(t, E4M3, Stochastic())

    with pytest.raises(RuntimeError, match="different"):
        torch.vmap(f)(x)
    first, second = torch.vmap(f, randomness="different")(x)
    assert (first != second).any() and set(first.unique().tolist()) == {1.0, 1.125}


def test_a_quantizer_may_be_mapped() -> None:
    x = torch.randn(3, 8)
    q = quantizer(E4M3, E4M3, "nearest", "nearest")
    assert torch.equal(torch.vmap(q)(x), lp_round(x, E4M3))
    gradient = torch.vmap(torch.func.grad(lambda t: (q(t) * t).sum()))(x)
    assert torch.equal(gradient, lp_round(x, E4M3) + lp_round(x, E4M3))
