"""Shadow execution against exact rationals, and replicas against exact probabilities."""

from __future__ import annotations

import math
import statistics
from contextlib import nullcontext
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings, strategies as st
from torch import nn

from lptensor import observe
from lptensor.arithmetic import Arithmetic
from lptensor.blocks import MXFP8_E4M3
from lptensor.convert import convert
from lptensor.formats import BF16, E4M3, E5M2, FP16, FP32, FloatingPoint
from lptensor.lower import lower
from lptensor.operands import Gemm
from lptensor.ops import round as round_to
from lptensor.optim import OptimLP
from lptensor.study import replicas, shadow

PARAMETERS = {BF16: (8, -126, 127), FP16: (11, -14, 15), E4M3: (4, -6, 8)}  # precision, emin, emax


def spacing(x: Fraction, format: Any) -> Fraction:
    """One unit in the last place of x, from the definition; beyond the largest number, of that."""
    precision, exponent, emax = PARAMETERS[format]
    while exponent < emax and abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    return Fraction(2) ** (exponent - precision + 1)


def low(value: float, format: Any = BF16, rounding: str = "nearest") -> Any:
    return torch.tensor([value]).to_lp(format, rounding)  # type: ignore[attr-defined]


OPS = {"add.Tensor": Fraction.__add__, "sub.Tensor": Fraction.__sub__, "mul.Tensor": Fraction.__mul__}


class TestShadow:
    def test_twins_lie_in_memory_as_what_they_stand_for(self) -> None:
        """The gradient of attention whose operands round is contiguous, where one kernel's is not."""
        arithmetic = Arithmetic(BF16, operands=Gemm(forward=(E4M3, E4M3)))
        layer, x = convert(nn.MultiheadAttention(8, 2, batch_first=True), arithmetic), torch.randn(2, 3, 8)
        results = []
        for context in (nullcontext(), shadow()):
            with context:
                y = layer(x, x, x, need_weights=False)[0]
                results.append((y, *torch.autograd.grad(y.sum(), list(layer.parameters()))))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)

    @pytest.mark.parametrize("of", [torch.linalg.eigh, torch.linalg.svd, torch.linalg.svdvals, torch.linalg.eigvalsh])
    def test_vectors_of_either_sign_have_that_of_low_precision(self, of: Any) -> None:
        """LAPACK gives some with one sign in fp32 and with the other in float64."""
        torch.manual_seed(0)
        (q, r), d = torch.linalg.qr(torch.randn(2, 3, 16, 16)).Q, torch.arange(1.0, 17.0)
        x = (q * d @ (q if "eig" in of.__name__ else r).mT).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            found = of(x)
        assert all(row["born"] < 2 and row["relative"] < 2**-8 for row in seen.rows())
        if of is torch.linalg.svd:
            u, s, v = map(seen.twin, found)
            torch.testing.assert_close(u @ torch.diag_embed(s) @ v, x.dequantize().double())

    @pytest.mark.parametrize("shape", [(64, 9, 9), (64, 16, 9), (64, 9, 16)])
    def test_rows_are_exchanged_as_in_low_precision(self, shape: tuple[int, ...]) -> None:
        """Of what rounds, other rows are the largest; and pivots, which are integers, have no twin."""
        torch.manual_seed(0)
        x = torch.randn(shape).to_lp(E4M3)  # type: ignore[attr-defined]
        with shadow() as seen:
            y = x * 1.1 + 0.3
            found = torch.linalg.lu(y)
            factors, pivots = torch.linalg.lu_factor(y)
        right = x.dequantize().double() * 1.1 + 0.3
        assert not torch.linalg.lu(right).P.equal(found.P)
        for p, below, above in (map(seen.twin, found), torch.lu_unpack(seen.twin(factors), pivots)):
            assert torch.equal(p, found.P.dequantize().double())
            torch.testing.assert_close(p @ below @ above, right)

    def test_a_solution_by_factors_has_the_twin_of_the_system(self) -> None:
        torch.manual_seed(0)
        x, b = torch.randn(64, 9, 9).to_lp(E4M3), torch.randn(64, 9, 1).to_lp(E4M3)  # type: ignore[attr-defined]
        with shadow() as seen:
            solved = torch.linalg.lu_solve(*torch.linalg.lu_factor(x * 1.1 + 0.3), b)
        right = torch.linalg.solve(x.dequantize().double() * 1.1 + 0.3, b.dequantize().double())
        torch.testing.assert_close(seen.twin(solved), right)

    @pytest.mark.parametrize("transposed", [False, True])
    @pytest.mark.parametrize("of", [torch.linalg.solve, torch.linalg.det, torch.linalg.slogdet])
    def test_a_gradient_by_kept_factors_has_the_twin_of_the_system(self, of: Any, transposed: bool) -> None:
        torch.manual_seed(0)
        a, b = torch.randn(64, 9, 9).to_lp(E4M3), [torch.randn(64, 9, 1).to_lp(E4M3)]  # type: ignore[attr-defined]
        b = b if of is torch.linalg.solve else []

        def gradient(x: Any, *b: Any) -> Any:
            y = x.detach().requires_grad_()
            found = of((y.mT if transposed else y) * 1.1, *b)
            return torch.autograd.grad(found[-1].sum() if of is torch.linalg.slogdet else found.sum(), y)[0]

        with shadow() as seen:
            low = gradient(a, *b)
        torch.testing.assert_close(seen.twin(low), gradient(*(x.dequantize().double() for x in (a, *b))))

    def test_what_torch_asks_of_shapes_alone_has_no_twin(self) -> None:
        layer, x = convert(nn.Linear(3, 2), BF16), torch.randn(4, 3).to_lp(BF16)  # type: ignore[attr-defined]
        with torch.no_grad(), shadow() as seen:
            _, tangent = torch.func.jvp(layer, (x,), (x,))
        assert torch.equal(tangent.dequantize(), torch.func.jvp(layer, (x,), (x,))[1].dequantize()) and seen.rows()

    @settings(max_examples=40)
    @given(
        st.sampled_from([BF16, FP16, E4M3]),
        st.lists(st.tuples(st.sampled_from(sorted(OPS)), st.integers(-63, 63)), min_size=1, max_size=4),
    )
    @example(E4M3, [("add.Tensor", 18), *(("mul.Tensor", k) for k in (31, 44, 55))])  # goes beyond 448
    def test_errors_of_a_chain_are_those_of_exact_rationals(self, format: Any, chain: Any) -> None:
        x = low(1.25, format)
        exact = value = Fraction(5, 4)
        with shadow() as seen:
            for name, k in chain:
                operand = Fraction(k, 8)  # an fp32 number, which an op on an LPTensor uses exactly
                exact, right = OPS[name](exact, operand), OPS[name](value, operand)
                x = getattr(x, {"a": "add", "s": "sub", "m": "mul"}[name[0]])(torch.tensor([float(operand)]))
                value = Fraction(x.item())
                row = seen.rows()[-1]
                assert row["op"] == name
                assert row["error"] == pytest.approx(float(abs(value - exact) / spacing(exact, format)), abs=1e-12)
                assert row["born"] == pytest.approx(float(abs(value - right) / spacing(right, format)), abs=1e-12)
                assert seen.twin(x).item() == float(exact)
                assert seen.error(x).item() == row["error"]

    def test_groups_of_rows_have_twins_though_torch_has_no_float64_for_them(self) -> None:
        a, b = torch.randn(8, 4).to_lp(BF16), torch.randn(2, 4, 8).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            y = torch.ops.aten._grouped_mm(a, b, torch.tensor([3, 8], dtype=torch.int32))
        wide = [x.dequantize().double() for x in (a, b)]
        assert torch.equal(seen.twin(y), torch.cat([wide[0][:3] @ wide[1][0], wide[0][3:] @ wide[1][1]]))

    def test_finds_where_an_error_is_born_and_where_it_grows(self) -> None:
        x = low(1.0)
        with shadow() as seen:
            y = (x + 300.0) * 2.0  # 301 is born as 300 or 302
            z = y - 600.0  # and nothing is born here, but grows
        assert seen.births(1)[0]["op"] == "add.Tensor"
        assert seen.growths(1)[0]["op"] == "sub.Tensor" and seen.rows()[-1]["born"] == 0
        assert seen.twin(z).item() == 2.0

    def test_finds_the_first_infinity_and_its_line(self) -> None:
        x = low(200.0, E5M2)
        with shadow() as seen:
            y = x * 2
            planted = y * 400  # 160000 is beyond 57344
            planted - planted
        row = seen.first_nonfinite
        assert row is not None and row["op"] == "mul.Tensor" and row["nonfinite"] == 1
        line = int(row["where"].rpartition(":")[2])
        with open(__file__) as source:
            assert "planted = y * 400" in source.readlines()[line - 1]
        assert seen.rows()[-1]["nonfinite"] == 1  # inf - inf is NaN
        assert "mul.Tensor" in str(seen)

    def test_a_nan_is_a_finding_also_where_float64_has_one(self) -> None:
        with shadow() as seen:
            low(0.0) / low(0.0)
        assert [row["nonfinite"] for row in seen.rows()] == [0, 0, 1]

    def test_growth_is_that_of_the_relative_error(self) -> None:
        x = low(1.0)
        with shadow() as seen:
            x / 3 - 0.25
        first, second = seen.rows()
        assert first["growth"] is None and second["growth"] == second["relative"] / first["relative"]
        with shadow() as seen:
            x / 3 * low(1.0)  # the worst operand counts, not the exact one
        assert seen.rows()[-1]["growth"] == 1

    def test_units_in_the_last_place_are_those_of_the_twin(self) -> None:
        with shadow() as seen:
            y = low(255.0) + 0.75  # becomes 256, from where on they are twice as large
        assert y.item() == 256.0 and seen.error(y).item() == seen.rows()[-1]["error"] == 0.25

    def test_a_dtype_that_is_named_does_not_round_the_twin(self) -> None:
        x = torch.tensor([1.0, 2.0**-30]).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            y = x.sum(dtype=torch.float32)
        assert seen.twin(y).item() == 1 + 2.0**-30

    def test_a_gradient_has_the_ulps_of_its_own_format(self) -> None:
        x = torch.tensor([1.0]).to_lp(BF16, grad=E5M2).requires_grad_()  # type: ignore[attr-defined]
        with shadow() as seen:
            (x * 1.3).backward()
        (row,) = (row for row in seen.rows() if row["op"] == "mul.Tensor" and row["backward"])
        assert (row["format"], row["error"]) == ("E5M2", pytest.approx((1.3 - 1.25) / 0.25))

    def test_what_should_be_zero_and_is_not_is_wrong_without_end(self) -> None:
        with shadow() as seen:
            low(1.0) / 3 - 1 / 3
        assert seen.rows()[-1]["relative"] == math.inf

    def test_an_infinity_that_float64_has_too_is_no_finding(self) -> None:
        with shadow() as seen:
            low(1.0) * float("inf")
        assert seen.first_nonfinite is None

    def test_finds_the_module_where_a_model_overflows_also_backward(self) -> None:
        model = convert(nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Tanh(), nn.Linear(2, 1))), E5M2)
        with torch.no_grad():
            model[0].weight.fill_(1.0)
            model[0].bias.fill_(0.0)
            model[1][1].weight.fill_(4.0)
        with shadow() as seen:
            y = model(torch.ones(1, 2).to_lp(E5M2))  # type: ignore[attr-defined]
            y.backward(torch.full_like(y, 40000.0))  # 40000 * 4 is beyond 57344
        row = seen.first_nonfinite
        assert row is not None
        assert (row["op"], row["backward"], row["module"]) == ("mm", True, "Sequential.1.1")

    def test_twins_follow_a_training_step(self) -> None:
        torch.manual_seed(3)
        plain = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        with torch.no_grad():
            for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                p.copy_(round_to(p, BF16))
                q.copy_(p)
        convert(model, BF16)
        x = round_to(torch.randn(5, 3), BF16)
        optimizers = [torch.optim.SGD(m.parameters(), lr=0.125, momentum=0.5) for m in (plain, model)]
        with shadow() as seen:
            for _ in range(3):
                for m, optimizer, inputs in (
                    (plain, optimizers[0], x.double()),
                    (model, optimizers[1], x.to_lp(BF16)),  # type: ignore[attr-defined]
                ):
                    optimizer.zero_grad()
                    m(inputs).square().mean().backward()
                    optimizer.step()
            for p, q in zip(plain.parameters(), model.parameters(), strict=True):
                assert torch.allclose(seen.twin(q), p.detach(), rtol=1e-12, atol=1e-14)
                assert not torch.equal(q.detach().dequantize().double(), p.detach())  # type: ignore[operator]

    def test_sees_the_roundings_of_lowered_layers_and_of_optimizers(self) -> None:
        model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
        lower(model, "linear", E4M3, E5M2)
        exact = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).double()
        exact.load_state_dict(model.state_dict())
        optimizer = OptimLP(torch.optim.SGD(model.parameters(), lr=0.1), weight_quant=E4M3)
        x = torch.randn(6, 3)
        with shadow() as seen:
            y = model(x)
            twin = seen.twin(y)
            y.sum().backward()
            optimizer.step()
        assert torch.allclose(twin, exact(x.double()).detach(), rtol=1e-12)
        names = [(row["op"], row["format"], row["backward"]) for row in seen.rows()]
        assert names.count(("round", "E4M3", False)) == 2
        assert names.count(("round", "E5M2", True)) == 2
        assert names.count(("round weight", "E4M3", False)) == 4

    def test_views_and_writes_in_place_keep_their_twins(self) -> None:
        x = torch.zeros(2, 2).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            x[0] = torch.tensor([1.0, 257.0])  # 257 becomes 256
            x.t()[1].mul_(3)
        assert seen.twin(x).tolist() == [[1.0, 771.0], [0.0, 0.0]]
        assert x.tolist() == [[1.0, 768.0], [0.0, 0.0]]
        assert [row["op"] for row in seen.rows()].count("mul_.Tensor") == 1

    @pytest.mark.parametrize("axis", [0, 1])
    @pytest.mark.parametrize("op", [torch.sort, torch.max, torch.median, torch.cummax, lambda x, d: x.topk(2, d)])
    def test_values_chosen_by_index_are_those_that_low_precision_chose(self, op: Any, axis: int) -> None:
        x = torch.ones(4, 5).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            x = x + torch.rand(4, 5, generator=torch.Generator().manual_seed(0)) / 1024  # all 1, but not in float64
            values, indices = op(x, axis)
        index = indices if indices.dim() == 2 else indices.unsqueeze(axis)
        assert torch.equal(seen.twin(values), seen.twin(x).gather(axis, index).reshape(values.shape))

    def test_pooling_takes_the_element_that_low_precision_took(self) -> None:
        x = torch.ones(1, 2, 4, 4).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            x = x + torch.arange(32.0).reshape(1, 2, 4, 4) / 2**14
            y = nn.functional.max_pool2d(x, 2)
        assert torch.equal(seen.twin(y), seen.twin(x)[..., ::2, ::2])

    def test_a_result_of_another_shape_than_in_float64_starts_anew(self) -> None:
        x = torch.tensor([1.0, 1.0, 2.0]).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            y = (x + torch.tensor([0.001, 0.002, 0.0])).unique()  # three numbers in float64
        assert seen.twin(y).tolist() == y.tolist() == [1.0, 2.0]

    def test_random_ops_draw_once(self) -> None:
        x = torch.ones(64).to_lp(BF16)  # type: ignore[attr-defined]
        with shadow() as seen:
            y = nn.functional.dropout(x, 0.5)
        assert torch.equal(seen.twin(y), y.dequantize().double())

    def test_values_are_those_without_a_shadow(self) -> None:
        def step() -> list[Any]:
            torch.manual_seed(0)
            model = convert(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Dropout(0.3)), E4M3)
            model(torch.randn(2, 1, 5, 5).to_lp(E4M3, "stochastic")).sum().backward()  # type: ignore[attr-defined]
            return [x.tolist() for x in model.state_dict().values()] + [p.grad.tolist() for p in model.parameters()]

        bare = step()
        with shadow():
            watched = step()
        assert watched == bare and observe.anyone == 0

    def test_tensors_that_are_gone_leave_no_twin(self) -> None:
        with shadow() as seen:
            x = low(1.0)
            for _ in range(20):
                x = x + 1
            del x
            low(1.0)
        assert len(seen._twins) < 5

    def test_block_formats_have_relative_errors_alone(self) -> None:
        x = torch.randn(64).to_lp(MXFP8_E4M3)  # type: ignore[attr-defined]
        with shadow() as seen:
            y = x * 1.1
        (row,) = seen.rows()
        assert row["error"] is None and 0 < row["relative"] < 0.1
        with pytest.raises(TypeError, match="scalar format"):
            seen.error(y)

    def test_one_object_is_not_entered_within_itself(self) -> None:
        shadows, x = shadow(), low(1.0)
        for _ in range(2):  # but again afterwards
            with shadows as seen:
                with pytest.raises(RuntimeError, match="another shadow"), shadows:
                    pass
                x + 1
            x + 2
            assert len(seen.rows()) == 1 and observe.anyone == 0

    def test_of_two_that_cross_the_inner_one_is_left_first(self) -> None:
        outer, inner = shadow(), shadow()
        first, x = outer.__enter__(), low(1.0)
        second = inner.__enter__()
        with pytest.raises(RuntimeError, match="open still; leave it first"):
            outer.__exit__(None, None, None)
        x = x * 3.0
        inner.__exit__(None, None, None)
        x = x * 3.0
        outer.__exit__(None, None, None)
        x = x * 3.0
        assert [row["op"] for row in first.rows()] == ["round", "mul.Tensor", "mul.Tensor"]
        assert [row["op"] for row in second.rows()] == ["mul.Tensor"]

    def test_the_picture_has_the_errors(self) -> None:
        x = low(1.0)
        with shadow() as seen:
            y = x / 3
            y * 7
        axes = __import__("matplotlib.figure").figure.Figure().subplots()
        seen.rows().plot(axes)
        assert axes.lines[0].get_ydata().tolist() == [row["error"] for row in seen.rows()]
        with pytest.raises(ValueError, match="nothing ran"):
            type(seen)().rows().plot(axes)

    def test_the_picture_leaves_out_ops_without_an_error_in_ulps(self) -> None:
        x, blocks = low(1.0), torch.randn(64).to_lp(MXFP8_E4M3)  # type: ignore[attr-defined]
        with shadow() as seen:
            blocks * 1.1
            x / 3
        axes = __import__("matplotlib.figure").figure.Figure().subplots()
        seen.rows().plot(axes)
        (error,) = axes.lines[0].get_ydata()
        assert error == seen.rows()[1]["error"] and [text.get_text() for text in axes.get_xticklabels()] == [
            "div.Tensor"
        ]


class TestReplicas:
    @pytest.mark.parametrize("at_once", [True, False])
    def test_the_spread_of_one_rounding_is_the_exact_one(self, at_once: bool) -> None:
        count = 4000 if at_once else 400
        found = replicas(lambda x: x / 3, low(1.0, BF16, "stochastic"), count=count, at_once=at_once)
        unit = Fraction(1, 2**9)  # of 1/3 in bfloat16
        below = Fraction(1, 3) // unit
        part = Fraction(1, 3) / unit - below
        deviation = float(unit) * math.sqrt(part * (1 - part))
        assert set(found.samples.flatten().tolist()) == {float(below * unit), float((below + 1) * unit)}
        assert abs(found.mean.item() - 1 / 3) < 4 * deviation / math.sqrt(count)
        assert found.deviation.item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * count))
        assert found.trusted == pytest.approx(-math.log10(deviation * 3), abs=2 / math.sqrt(count))

    def test_the_digits_are_those_of_the_samples(self) -> None:
        """By the definition, in Python's exact statistics; a spread larger than the mean leaves no digit."""
        x = torch.tensor([1.0, 3.0, 5.0]).to_lp(BF16, "stochastic")  # type: ignore[attr-defined]
        found = replicas(lambda x: torch.cat([x / 3, (x / 3 + 100) - (100 + x / 3)]), x, count=3)
        for i, samples in enumerate(found.samples.T.tolist()):
            mean, deviation = statistics.mean(samples), statistics.stdev(samples)
            assert found.mean[i].item() == pytest.approx(mean, rel=1e-12, abs=1e-300)
            assert found.deviation[i].item() == pytest.approx(deviation, rel=1e-12)
            ratio = deviation / abs(mean) if mean else math.inf
            digits = math.inf if deviation == 0 else max(-math.log10(ratio), 0.0) if ratio < math.inf else 0.0
            assert found.digits[i].item() == pytest.approx(digits, rel=1e-12)

    def test_finds_the_cancellation(self) -> None:
        x = low(1.0, BF16, "stochastic")
        sound = replicas(lambda x: x / 3, x, count=64)
        planted = replicas(lambda x: (x / 3 + 100) - 100, x, count=64)
        assert sound.trusted > 2 and planted.trusted < 0.6

    def test_replicas_are_independent(self) -> None:
        x = torch.full((3,), 1 / 3).to_lp(BF16, "stochastic")  # type: ignore[attr-defined]
        found = replicas(lambda x: x / 1.3, x, count=64)
        assert found.samples.shape == (64, 3) and found.mean.shape == (3,)
        assert len({tuple(row) for row in found.samples.tolist()}) > 2

    @pytest.mark.parametrize("at_once", [True, False])
    def test_each_replica_draws_its_own_random_numbers(self, at_once: bool) -> None:
        found = replicas(lambda x: x + torch.rand(()), low(1.0, FP16, "stochastic"), count=8, at_once=at_once)
        assert len(found.samples.unique()) > 2

    @pytest.mark.parametrize("at_once", [True, False])
    def test_what_is_written_in_place_is_a_copy(self, at_once: bool) -> None:
        x = low(1.0, BF16, "stochastic")
        found = replicas(lambda x: x.div_(3), x, count=64, at_once=at_once)
        assert len(found.samples.unique()) == 2 and x.item() == 1.0

    def test_a_result_in_memory_that_is_used_again_is_a_sample(self) -> None:
        out = low(0.0, BF16, "stochastic")
        found = replicas(lambda x: out.copy_(x / 3), low(1.0, BF16, "stochastic"), count=64, at_once=False)
        assert len(found.samples.unique()) == 2

    def test_what_never_moves_has_every_digit(self) -> None:
        found = replicas(lambda x: x * 2, low(1.5, FloatingPoint(8), "stochastic"))
        assert found.trusted == math.inf and found.deviation.item() == 0
        assert replicas(lambda x: x * math.inf - math.inf, low(1.0, FP16, "stochastic")).digits.isnan().all()

    def test_fp32_is_drawn_from_float64(self) -> None:
        """Of 1/3 between its fp32 neighbours, and of what Parker's formula gives for those two."""
        x = torch.ones(1).to_lp(Arithmetic(FP32, rounding="stochastic", compute=torch.float64))  # type: ignore[attr-defined]
        found = replicas(lambda x: x / 3, x, count=64)
        assert set(found.samples.flatten().tolist()) == {11184810 / 2**25, 11184811 / 2**25}
        assert 7 < found.trusted < 8

    def test_what_is_refused(self) -> None:
        with pytest.raises(TypeError, match="stochastic"):
            replicas(lambda x: x, low(1.0))
        with pytest.raises(TypeError, match="compute=torch.float64"):  # fp32 leaves nothing to round
            replicas(lambda x: x / 3, low(1.0, FP32, "stochastic"))
        with pytest.raises(ValueError, match="1"):
            replicas(lambda x: x, low(1.0, BF16, "stochastic"), count=1)
        with pytest.raises(TypeError, match="one tensor"):
            replicas(lambda x: (x, x), low(1.0, BF16, "stochastic"))
