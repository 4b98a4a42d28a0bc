"""Narrow optimizer states: 8-bit blockwise tables, and expansions."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import Adam

from lptensor import BF16, DYNAMIC8, E4M3, E5M2, UDYNAMIC8, Codebook, OptimLP
from lptensor.training import Blockwise, Expansion


class TestStates:
    def test_adams_second_moment_decays_as_an_expansion_only(self) -> None:
        """0.999 v rounds to v in BF16: bf16(0.999) is 1."""
        left = {}
        for name, rule in (("bf16", lambda x: x.bfloat16().float()), ("expansion", Expansion(BF16))):
            w = nn.Parameter(torch.ones(100))
            optim = OptimLP(Adam([w]), momentum_quant={"exp_avg_sq": rule})
            w.grad = torch.rand(100, generator=torch.Generator().manual_seed(0)) + 0.5
            optim.step()
            first = optim.state[w]["exp_avg_sq"].clone()
            for _ in range(300):
                w.grad = torch.zeros(100)
                optim.step()
            left[name] = optim.state[w]["exp_avg_sq"] / first
        assert (left["bf16"] == 1).all()
        assert torch.allclose(left["expansion"], torch.tensor(0.999**300), rtol=0.01)

    def test_an_expansion_is_the_sum_of_two_roundings(self) -> None:
        x = torch.randn(1000) * torch.logspace(-3, 3, 1000)
        high = x.bfloat16().float()
        assert torch.equal(Expansion(BF16)(x), high + (x - high).bfloat16().float())
        assert Expansion(E5M2)(torch.tensor([math.inf, 1e9, math.nan])).isfinite().logical_not().all()
        with pytest.raises(TypeError, match="bfloat16"):
            Expansion(BF16)(x.bfloat16())

    def test_a_table_of_e4m3_keeps_states_as_torchao_keeps_them_in_fp8(self) -> None:
        """Codes are (x / s).to(float8_e4m3fn), s being max|x| / 448 of each 256 values (torchao's OptimStateFp8)."""
        x = torch.randn(64, 100, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 0, 100)
        runs = x.flatten().view(-1, 256)
        scale = runs.abs().amax(1, keepdim=True) / E4M3.max
        kept = (runs / scale).to(torch.float8_e4m3fn).float() * scale
        ours = Blockwise(Codebook(E4M3.values() / E4M3.max))(x)
        torch.testing.assert_close(ours, kept.view_as(x), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("table", [DYNAMIC8, UDYNAMIC8], ids=repr)
    def test_blocks_round_as_a_search_through_the_table_does(self, table: Any) -> None:
        x = torch.randn(700) * torch.logspace(-4, 2, 700)
        x = x.abs() if table is UDYNAMIC8 else x
        listed = [float(v) for v in table.values()]
        want = []
        for start in range(0, 700, 256):
            run = x[start : start + 256]
            s = max(abs(v) for v in run.tolist())
            for q in (run / torch.tensor(s)).tolist():  # one division in fp32
                best = min(listed, key=lambda v: abs(Fraction(v) - Fraction(q)))
                want.append(float(torch.tensor(best) * torch.tensor(s)))
        got = Blockwise(table, 256, 1)(x.view(7, 100))
        assert got.shape == (7, 100) and got.flatten().tolist() == want

    def test_small_tensors_and_special_values(self) -> None:
        x = torch.randn(4095)
        assert torch.equal(Blockwise()(x), x)
        runs = torch.tensor([0.0, 0.0, math.inf, 1.0, math.nan, 1.0, 2.0])
        got = Blockwise(DYNAMIC8, 2, 0)(runs.double())
        assert got.dtype == torch.float64 and got[:2].tolist() == [0, 0] and got[2:6].isnan().all() and got[6] == 2
        assert Blockwise(min_size=0)(torch.empty(0)).numel() == 0

    @pytest.mark.parametrize(
        ("arguments", "error", "says"),
        [
            (dict(table=E4M3), TypeError, "got E4M3"),
            (dict(table=Codebook([0.0, 2.0])), ValueError, "largest value"),
            (dict(block_size=0), ValueError, "block_size must be from 1"),
            (dict(min_size=-1), ValueError, "min_size"),
            (dict(rounding="up and away"), ValueError, "unknown rounding"),
        ],
    )
    def test_bad_tables_are_named(self, arguments: dict[str, Any], error: type[Exception], says: str) -> None:
        with pytest.raises(error, match=says):
            Blockwise(**arguments)

    def test_adams_moments_are_on_the_tables_of_signed_and_unsigned_values(self) -> None:
        w = nn.Parameter(torch.randn(500))
        w.grad = torch.randn(500)
        optim = OptimLP(Adam([w]), momentum_quant=Blockwise.adam(block_size=500, min_size=1))
        optim.step()
        for key, table in (("exp_avg", DYNAMIC8), ("exp_avg_sq", UDYNAMIC8)):
            state = optim.state[w][key]
            assert set(state.tolist()) <= set((table.values().float() * state.abs().max()).tolist())

    def test_linear_second_moments_diverge_and_dynamic_ones_do_not(self) -> None:
        """Squares over four decades in one block: the linear map takes what is below 1/510 of the largest to zero."""
        linear = Codebook(torch.linspace(0, 1, 256))
        worst = {}
        for name, table in (("fp32", None), ("dynamic", UDYNAMIC8), ("linear", linear)):
            torch.manual_seed(0)
            curvature = torch.logspace(0, -2, 256)
            w = nn.Parameter(torch.randn(256))
            rules = (
                {}
                if table is None
                else {"exp_avg": Blockwise(DYNAMIC8, 256, 1), "exp_avg_sq": Blockwise(table, 256, 1)}
            )
            optim = OptimLP(Adam([w], lr=0.01), momentum_quant=rules)
            largest = 0.0
            for _ in range(300):
                w.grad = curvature * w.detach() + 0.01 * curvature * torch.randn(256)
                optim.step()
                largest = max(largest, float(w.detach().abs().max()))
            worst[name] = largest
        assert worst["dynamic"] < 1.5 * worst["fp32"]
        assert worst["linear"] > 100 * worst["fp32"]


def test_runs_of_subnormal_numbers_keep_their_largest() -> None:
    x = torch.tensor([2.0**-140, -(2.0**-149), 0.0, 0.0])
    once = Blockwise(DYNAMIC8, block_size=2, min_size=0)(x)
    assert once[0].item() == 2.0**-140 and once[2:].tolist() == [0.0, 0.0]


def test_a_tensor_of_just_the_least_size_is_rounded() -> None:
    x = torch.tensor([1.0, 0.3, 0.2, 0.1])
    assert torch.equal(Blockwise(DYNAMIC8, min_size=5)(x), x)
    assert not torch.equal(Blockwise(DYNAMIC8, min_size=4)(x), x)
