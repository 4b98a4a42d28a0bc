"""DoReFa's quantizers and Madam's steps against their formulas."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch import nn

from lptensor import BF16, OptimLP
from lptensor.training import DoReFaActivation, DoReFaGradient, DoReFaWeight, Madam


class TestDoReFa:
    def test_weights_and_their_gradient_are_the_papers(self) -> None:
        w = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
        g = torch.randn(6, 5, dtype=torch.float64)
        for bits in (2, 4):
            w.grad = None
            out = DoReFaWeight(bits)(w)
            t = w.detach().tanh()
            m, n = t.abs().max(), 2**bits - 1
            assert torch.allclose(out.detach(), 2 * ((t / (2 * m) + 0.5) * n).round() / n - 1, rtol=1e-12)
            out.backward(g)
            smooth = w.detach().clone().requires_grad_()
            (smooth.tanh() / smooth.tanh().abs().max()).backward(g)
            assert w.grad is not None and smooth.grad is not None and torch.allclose(w.grad, smooth.grad, rtol=1e-9)
        one = DoReFaWeight(1)(w)
        assert torch.allclose(one.abs(), w.abs().mean()) and torch.equal(one.sign(), w.sign())

    def test_weights_of_one_bit_have_one_magnitude_exactly(self) -> None:
        w = torch.randn(100, 16).requires_grad_()
        for row in w:
            assert torch.equal(DoReFaWeight(1)(row), row.detach().sign() * row.detach().abs().mean())
        DoReFaWeight(1)(w).sum().backward()
        assert torch.equal(w.grad, torch.ones(100, 16))  # type: ignore[arg-type]

    def test_activations_clip_and_pass_their_gradient_inside_only(self) -> None:
        a = torch.tensor([-0.5, 0.1, 0.5, 0.9, 1.5], requires_grad=True)
        out = DoReFaActivation(2)(a)
        assert torch.allclose(out.detach() * 3, torch.tensor([0.0, 0.0, 2.0, 3.0, 3.0]))
        out.sum().backward()
        assert a.grad is not None and a.grad.tolist() == [0, 1, 1, 1, 0]

    def test_gradients_are_unbiased_on_a_grid_of_each_sample(self) -> None:
        g = torch.randn(3, 40) * torch.tensor([[1.0], [1e-3], [10.0]])
        m = g.abs().amax(1, keepdim=True)
        draws = torch.stack([DoReFaGradient(4)(g) for _ in range(2000)])
        steps = (draws / (2 * m) + 0.5) * 15
        assert torch.allclose(steps, steps.round(), atol=1e-4)
        assert bool(((draws.mean(0) - g).abs() < 5 * draws.std(0) / math.sqrt(2000) + 1e-6 * m).all())
        assert DoReFaGradient(4)(torch.zeros(2, 2)).tolist() == [[0, 0], [0, 0]]

    def test_shapes_stay_where_little_is_left_of_them(self) -> None:
        for shape in ((), (0,), (0, 3), (3, 0), (2, 0, 3), (1,), (2, 3, 1)):
            for quantize in (DoReFaWeight(1), DoReFaWeight(3), DoReFaActivation(2), DoReFaGradient(2)):
                assert quantize(torch.ones(shape)).shape == shape
        g = torch.randn(2, 3, 4)
        m = g.abs().flatten(1).amax(1)
        assert torch.equal(DoReFaGradient(1)(g).abs(), m.view(2, 1, 1).expand(2, 3, 4))  # a bit: -m or m


class TestMadam:
    def test_steps_are_their_formula(self) -> None:
        w = nn.Parameter(torch.randn(20, dtype=torch.float64))
        optim = Madam([w], lr=0.1, beta=0.9, limit=1.5, bound=2.0)
        hand, v = w.detach().clone(), torch.zeros(20, dtype=torch.float64)
        top = 2 * hand.square().mean().sqrt()
        for t in range(1, 8):
            g = torch.randn(20, dtype=torch.float64)
            w.grad = g
            optim.step()
            v = 0.9 * v + 0.1 * g**2
            direction = (g / (v / (1 - 0.9**t)).sqrt()).clamp(-1.5, 1.5)
            hand = (hand * torch.exp(-0.1 * hand.sign() * direction)).clamp(-top, top)
            assert torch.allclose(w.detach(), hand, rtol=1e-12)

    def test_a_step_in_logarithms_is_independent_of_the_magnitude(self) -> None:
        w = nn.Parameter(torch.tensor([1e-6, 1.0, 1e6]))
        w.grad = torch.tensor([1e6, 1.0, 1e-6])
        Madam([w], lr=0.5).step()
        assert torch.allclose(w.detach() / torch.tensor([1e-6, 1.0, 1e6]), torch.tensor(math.exp(-0.5)))

    def test_optimlp_knows_its_states(self) -> None:
        w = nn.Parameter(torch.ones(3))
        w.grad = torch.ones(3)
        bare = Madam([w])
        bare.step()
        for key in bare.state[w]:
            OptimLP(Madam([w]), momentum_quant={key: BF16})
        with pytest.raises(ValueError, match=re.escape(f"'exp_avg', Madam keeps {sorted(bare.state[w])}")):
            OptimLP(Madam([w]), momentum_quant={"exp_avg": BF16})

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_a_gradient_that_is_no_number_reaches_its_weight(self, bad: float) -> None:
        """As in every optimizer of torch: a mean of squares that is NaN would else hold the weight for good, unsaid."""
        w = nn.Parameter(torch.ones(2))
        w.grad = torch.tensor([bad, 1.0])
        Madam([w]).step()
        assert w.isnan().tolist() == [True, False]

    def test_sparse_gradients_are_named_before_any_weight_moves(self) -> None:
        dense, table = nn.Parameter(torch.ones(2)), nn.Embedding(3, 2, sparse=True)
        optim = Madam([dense, table.weight])
        (table(torch.tensor([1])).sum() + dense.sum()).backward()
        with pytest.raises(TypeError, match="Madam takes dense gradients, got torch.sparse_coo; .* sparse=False"):
            optim.step()
        assert dense.tolist() == [1.0, 1.0] and not optim.state

    def test_zeros_and_bad_input(self) -> None:
        w = nn.Parameter(torch.zeros(2))
        w.grad = torch.tensor([0.0, 1.0])
        Madam([w]).step()
        assert w.tolist() == [0.0, 0.0]
        for arguments in (dict(lr=0.0), dict(beta=1.0), dict(limit=-1.0), dict(bound=0.0)):
            with pytest.raises(ValueError, match=next(iter(arguments))):
                Madam([w], **arguments)
