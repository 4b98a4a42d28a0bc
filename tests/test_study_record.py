"""The recording of what rounding does: counts against counting by hand, and faults that were planted."""

from __future__ import annotations

import contextlib
import copy
import gc
import json
import math
import pickle
import sys
import warnings
import weakref
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from backends import BUILDS, chosen
from lptensor import Gemm, Hadamard, observe
from lptensor._native_census import Rounder
from lptensor.arithmetic import Arithmetic
from lptensor.blocks import MX, MXFP4, NVFP4, BlockFloatingPoint
from lptensor.codebooks import NF4, Codebook
from lptensor.convert import convert
from lptensor.extra import MissingExtra
from lptensor.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    INT8,
    FixedPoint,
    FloatingPoint,
    Format,
)
from lptensor.lower import lower
from lptensor.ops import round as round_to
from lptensor.optim import OptimLP
from lptensor.posits import Posit
from lptensor.quantizer import quantizer
from lptensor.rounding import Stochastic, as_rounding
from lptensor.study import Rows, exponent_histogram, faults, places, plot_layer_map, record
from lptensor.study.census import Census
from lptensor.study.updates import Updates
from lptensor.training import round_layers
from lptensor.training.recipes import quartet, quartet2
from own_formats import Multiples, in_steps, teach

ENDS = {  # largest, smallest, smallest normal: IEEE 754-2019 table 3.5, OCP OFP8, and two's complement
    E4M3: (448.0, -448.0, 2.0**-6),
    E5M2: (57344.0, -57344.0, 2.0**-14),
    FP16: (65504.0, -65504.0, 2.0**-14),
    E2M1: (6.0, -6.0, 1.0),
    INT8: (127.0, -128.0, 0.0),
    FixedPoint(8, 4): (127 / 16, -8.0, 0.0),
    FloatingPoint(3, 4, signed=False): (31.0 * 2.0**-4 * 2.0**3, 0.0, 2.0**-2),
    FloatingPoint(4, 3, signed=False, specials="none"): (15.0 * 2.0**-3 * 2.0**8, 0.0, 2.0**-6),
    Posit(8): (2.0**24, -(2.0**24), 0.0),
    NF4: (1.0, -1.0, 0.0),
    Codebook([-0.5, 0.0, 1.0]): (1.0, -0.5, 0.0),
    MXFP4: (math.inf, -math.inf, 0.0),
    NVFP4: (math.inf, -math.inf, 0.0),
    BlockFloatingPoint(8, block_size=16): (math.inf, -math.inf, 0.0),
}
SPECIAL = [0.0, -0.0, math.nan, math.inf, -math.inf, 2.0**-149, -(2.0**-140), 3.4e38, -3.4e38, 2.0**-6, 448.0, 449.0]
SPECIAL += [-127.75, -7.96875]  # beyond the largest value of two's complement, not beyond the smallest


def counted(x: list[float], y: list[float], ends: tuple[float, float, float]) -> dict[str, int]:
    """The counts of the docstring, one value after the other."""
    high, low, tiny = ends
    found = dict.fromkeys(("zero", "underflow", "subnormal", "saturated", "overflow", "nonfinite"), 0)
    for a, b in zip(x, y, strict=True):
        found["zero"] += b == 0
        found["underflow"] += b == 0 and a != 0 and math.isfinite(a)
        found["subnormal"] += 0 < abs(b) < tiny
        found["saturated"] += math.isfinite(a) and math.isfinite(b) and not low <= a <= high
        found["overflow"] += math.isfinite(a) and not math.isfinite(b)
        found["nonfinite"] += not math.isfinite(a)
    return found


def binades(x: list[float]) -> dict[int, int]:
    found: dict[int, int] = {}
    for a in x:
        if math.isfinite(a) and a != 0:
            e = min(max(math.frexp(a)[1] - 1, -150), 128)
            found[e] = found.get(e, 0) + 1
    return found


def decibels(x: list[float], y: list[float]) -> float | None:
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    signal, noise = math.fsum(a * a for a, _ in pairs), math.fsum((a - b) ** 2 for a, b in pairs)
    if signal == 0:
        return None
    return math.inf if noise == 0 else 10 * math.log10(signal / noise)


ROUNDINGS = ("nearest", "up", "stochastic", Stochastic(bits=5))
# One build after the other; the best one while it rounds, without the rounded tensor or in place; torch's ops.
WAYS = (*BUILDS, "asked", "rounded", "torch")


def counts_of(row: dict[str, Any], n: int) -> dict[str, int]:
    names = ("zero", "underflow", "subnormal", "saturated", "overflow", "nonfinite")
    return {name: round(row[name] * n) for name in names}


def values(dtype: torch.dtype) -> Tensor:
    """Some of all kinds, then so many within most formats that the loops count a block without looking for others."""
    wild = torch.randn(600, dtype=dtype) * 2.0 ** torch.randint(-30, 12, (600,))
    calm = torch.randn(1500, dtype=dtype) / 8
    calm[::7], calm[-2:] = 0, torch.tensor([500, -(2.0**-140)])  # the end is a block of its own
    return torch.cat([torch.tensor(SPECIAL, dtype=dtype), wild, calm])


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("rounding", ROUNDINGS, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("format", ENDS, ids=repr)
def test_counts_are_those_of_a_loop(format: Format, dtype: torch.dtype, rounding: Any, way: str) -> None:
    x, draws = values(dtype), [torch.Generator().manual_seed(3) for _ in range(2)]
    y = round_to(x, format, rounding, generator=draws[0])
    census = Census(format)
    if way == "asked":
        census.ask(x, as_rounding(rounding), draws[1])
    elif way == "rounded":
        z = x.clone()
        if census.round(z, z, as_rounding(rounding), draws[1]):
            assert torch.equal(z.view(torch.uint8), y.view(torch.uint8))
        else:  # blocks
            census.add(x, y)
    elif way == "torch":
        census._add_with_torch(x, y)
        census.events, census.values = 1, x.numel()
    else:
        with chosen(way):
            census.add(x, y)
    a, b, row = x.double().tolist(), y.double().tolist(), census.row()
    assert counts_of(row, len(a)) == counted(a, b, ENDS[format])
    assert census.histogram() == binades(a)
    expected = decibels(a, b)
    assert row["snr"] == (expected if expected is None else pytest.approx(expected, rel=1e-12))


@pytest.mark.parametrize("build", BUILDS)
def test_a_number_beyond_the_nearer_end_alone_is_found_among_many(build: str) -> None:
    for format, beyond in ((FixedPoint(8, 4), 7.96875), (INT8, 127.5), (Codebook([-0.5, 0.0, 1.0]), -0.75)):
        for dtype in (torch.float32, torch.float64):
            x, census = torch.full((3000,), 0.25, dtype=dtype), Census(format)
            x[1500] = beyond
            with chosen(build):
                census.add(x, round_to(x, format))
            assert counts_of(census.row(), 3000)["saturated"] == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_or_becomes_infinite_in_any_of_many_parts_is_counted(dtype: torch.dtype) -> None:
    x, census = torch.randn(100_003, dtype=dtype) * 2.0 ** torch.randint(-30, 20, (100_003,)), Census(E5M2)
    x[::997], x[5::4999] = torch.inf, torch.nan
    y = round_to(x, E5M2)
    census.add(x, y)
    found = counted(x.tolist(), y.tolist(), ENDS[E5M2])
    assert counts_of(census.row(), x.numel()) == found and found["overflow"] > 100
    census.add(x[:300], y[:300])  # knows which of the infinities were counted before
    assert census.histogram() == binades([*x.tolist(), *x[:300].tolist()])


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("shape", [(300_001,), (3, 5, 7), (1,), (0,), ()], ids=str)
def test_asking_of_any_size_and_on_any_number_of_threads_counts_what_rounding_does(shape: Any, rounding: str) -> None:
    x, rule, found = torch.randn(shape) * 2.0 ** torch.randint(-20, 12, shape), as_rounding(rounding), []
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            asked, told = Census(E4M3), Census(E4M3)
            asked.ask(x, rule, torch.Generator().manual_seed(1))
            told.add(x, round_to(x, E4M3, rule, generator=torch.Generator().manual_seed(1)))
        finally:
            torch.set_num_threads(before)
        assert asked.row() == told.row() and asked.histogram() == told.histogram() == binades(x.flatten().tolist())
        found.append(asked.row())
    assert found[0] == found[1]  # the noise too, to the last bit


@pytest.mark.parametrize(
    ("way", "rounding"),
    [("native", "nearest"), ("asked", "nearest"), ("asked", "up"), ("asked", "stochastic"), ("torch", "nearest")],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("format", [E4M3, BF16, NF4, Posit(8), MXFP4], ids=repr)
def test_lost_updates_are_those_of_exact_rationals(format: Format, dtype: torch.dtype, way: str, rounding: str) -> None:
    start = torch.randn(3001, dtype=dtype)
    now = start + torch.randn(3001, dtype=dtype) * 2.0 ** torch.randint(-12, 2, (3001,))
    now[::5] = start[::5]
    draws = [torch.Generator().manual_seed(3) for _ in range(2)]
    held = round_to(start, format, rounding, generator=draws[0])
    wanted = held + (now - start)
    after = round_to(wanted, format, rounding, generator=draws[0])
    updates = Updates()
    if way == "asked":
        updates.ask(start, now, format, as_rounding(rounding), draws[1])
    else:
        (updates.add if way == "native" else updates._add_with_torch)(held, wanted, after)
    a, b, c = ([Fraction(v) for v in x.tolist()] for x in (held, wanted, after))
    moves = sum(x != y for x, y in zip(a, b, strict=True))
    lost = sum(x != y and z == x for x, y, z in zip(a, b, c, strict=True))
    edq = sum((z - x) * (y - x) for x, y, z in zip(a, b, c, strict=True)) / sum(
        (y - x) ** 2 for x, y in zip(a, b, strict=True)
    )
    row = updates.row()
    assert (row["wanted"], row["lost"]) == (moves, lost / moves) and 0 < lost < moves
    assert row["edq"] == pytest.approx(float(edq), rel=1e-6)  # the differences are of the carrier


def test_census_counts_strided_tensors_and_adds_up() -> None:
    x, census = torch.randn(8, 6), Census(E4M3)
    for part in (x, x.t(), x[:, ::2]):
        census.add(part, round_to(part, E4M3)) if part is x else census.ask(part, as_rounding("nearest"))
    again = [*x.flatten().tolist(), *x.flatten().tolist(), *x[:, ::2].flatten().tolist()]
    assert census.histogram() == binades(again)
    assert census.values == len(again) and census.events == 3


def test_what_is_counted_in_parts_that_are_merged_is_what_the_whole_has() -> None:
    x, start = values(torch.float32).nan_to_num(3.0, 600.0), torch.randn(values(torch.float32).shape)
    y = round_to(x, E4M3)

    def counted(*parts: slice) -> tuple[Census, Updates]:
        census, updates = Census(E4M3), Updates()
        for part in parts:
            census.add(x[part], y[part])
            updates.add(start[part], x[part], y[part])
        return census, updates

    whole, half, rest = (counted(part) for part in (slice(None), slice(700), slice(700, None)))
    for one, more in zip(half, rest, strict=True):
        one.merge(more)
    assert half[0].histogram() == binades(x.tolist())
    half[0].add(x, y)  # all once more, by the same ends
    ours, wanted = ({**census.row(), **updates.row(), "roundings": 0} for census, updates in (half, whole))
    assert ours.pop("values") == 2 * wanted.pop("values") == 2 * x.numel()
    assert ours == pytest.approx(wanted, rel=1e-6)


def test_one_census_is_asked_about_many_roundings_and_dtypes() -> None:
    x, census, found = torch.tensor([1 + 2.0**-12, 3.0]), Census(E4M3), []
    for rounding, dtype in (("nearest", torch.float32), ("up", torch.float32), ("up", torch.float64)):
        census.ask(x.to(dtype), as_rounding(rounding))
        found += round_to(x, E4M3, rounding).tolist()
    assert found == [1.0, 3.0, 1.125, 3.0, 1.125, 3.0]
    assert census.row()["snr"] == pytest.approx(decibels(x.tolist() * 3, found), rel=1e-9)


def test_zeros_have_no_ratio_of_signal_to_noise() -> None:
    for after in (0.0, 1.0):
        census = Census(E4M3)
        census.add(torch.zeros(3), torch.full((3,), after))
        assert census.row()["snr"] is None


@pytest.mark.parametrize(
    ("other", "error", "says"),
    [(torch.ones(1), ValueError, r"\(8,\), \(1,\)"), (torch.ones(8).double(), TypeError, "float64")],
)
def test_tensors_that_do_not_belong_together_are_not_read(other: Tensor, error: Any, says: str) -> None:
    x, census, updates = torch.ones(8), Census(E4M3), Updates()
    for count in (lambda: census.add(x, other), lambda: updates.add(x, other, x), lambda: updates.add(x, x, other)):
        with pytest.raises(error, match=says):
            count()
    with pytest.raises(TypeError, match="bfloat16"):
        census.add(x.bfloat16(), x.bfloat16())
    assert census.events == census.values == updates.wanted == 0


def test_zeros_of_a_format_without_zero_overflow() -> None:
    census, x = Census(E8M0), torch.zeros(2000)
    census.ask(x, as_rounding("nearest"))
    assert round_to(x, E8M0).isnan().all() and census.row()["overflow"] == 1.0


def test_what_the_loops_do_not_round_to_is_counted_as_it_is_rounded(monkeypatch: pytest.MonkeyPatch) -> None:
    teach(monkeypatch)
    format, x, now = Multiples(), torch.randn(3001), torch.randn(3001)
    y = in_steps(x, format.lowered)
    told, asked, updates, wanted = Census(format), Census(format), Updates(), Updates()
    told.add(x, y)
    asked.ask(x, as_rounding("nearest"))
    assert asked.row() == told.row() and asked.row()["zero"] == (y == 0).double().mean()
    assert not asked.round(x, x.clone(), as_rounding("nearest"))
    updates.ask(x, now, format, as_rounding("nearest"))
    wanted.add(y, y + (now - x), in_steps(y + (now - x), format.lowered))
    assert updates.row() == wanted.row()
    with pytest.raises(KeyError, match="round_step"):
        Rounder(format.lowered, as_rounding("nearest"), torch.float32)  # type: ignore[arg-type]


def test_census_under_flushed_subnormals(flush_denormal: None) -> None:
    census = Census(FP16)
    census.add(torch.tensor([2**9], dtype=torch.int32).view(torch.float32), torch.zeros(1))
    assert census.histogram() == {-140: 1} and census.row()["underflow"] == 1.0


class Net(nn.Module):
    """Two layers; the second's weights are a million times smaller: in 8 bits they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.faint, self.last = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 4)
        with torch.no_grad():
            self.faint.weight.mul_(1e-6)
            self.faint.bias.zero_()

    def forward(self, x: Tensor) -> Tensor:
        h: Tensor = self.last(self.faint(self.first(x)) + 1)
        return h


def one_step(model: nn.Module, optimizer: Any, x: Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


def find(rows: Any, **wanted: Any) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())]


class TestRecord:
    def test_finds_the_layer_that_underflows_in_a_plain_model(self) -> None:
        model = Net()
        with record(model, forward=E4M3) as log:
            model(torch.rand(16, 8))
        worst = max(find(log, role="activation"), key=lambda row: row["underflow"])
        assert worst["path"] == "faint" and worst["underflow"] == 1.0
        assert find(log, role="weight", path="faint.weight")[0]["underflow"] == 1.0
        assert find(log, role="weight", path="first.weight")[0]["underflow"] < 0.1

    def test_finds_the_layer_that_overflows_in_a_converted_model(self) -> None:
        model = convert(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), E5M2)
        with torch.no_grad():
            model[1].weight.fill_(40000.0)
        with record(model) as log:
            model(torch.ones(2, 4).to_lp(E5M2))  # type: ignore[attr-defined]
        assert [row["path"] for row in log if row["overflow"] > 0] == ["1"]
        (row,) = find(log, role="activation", path="0")
        assert row["overflow"] == 0 and row["values"] == 8

    def test_counts_of_a_converted_layer_are_those_of_a_loop(self) -> None:
        layer = convert(nn.Linear(6, 5), E4M3)
        x = torch.randn(7, 6).mul(1e-2).to_lp(E4M3)  # type: ignore[attr-defined]
        exact = nn.functional.linear(x.dequantize(), layer.weight.dequantize(), layer.bias.dequantize())
        model = nn.Sequential(layer)
        with record(model) as log:
            y = model(x)
        (row,) = log
        a, b = exact.flatten().double().tolist(), y.dequantize().flatten().double().tolist()
        assert {key: round(row[key] * 35) for key in counted(a, b, ENDS[E4M3])} == counted(a, b, ENDS[E4M3])
        assert row["binades"] == binades(a)
        assert (row["role"], row["path"], row["format"]) == ("activation", "0", "E4M3")

    @pytest.mark.parametrize("closure", [False, True])
    def test_finds_updates_that_bfloat16_loses(self, closure: bool) -> None:
        # 2**-10 is below half a unit of 1 in bfloat16 (2**-8), and above it of 2**-4.
        model = convert(nn.Linear(2, 1, bias=False), BF16)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 2.0**-4]]))
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-10)

        def loss() -> float:
            optimizer.zero_grad()
            value = model(torch.ones(1, 2).to_lp(BF16)).sum()  # type: ignore[attr-defined]
            value.backward()
            return value.item()

        with record(model, optimizer) as log:
            for _ in range(3):
                if closure:
                    optimizer.step(loss)
                else:
                    loss()
                    optimizer.step()
        (row,) = find(log, role="weight")
        assert (row["path"], row["wanted"], row["lost"], row["edq"]) == ("weight", 6, 0.5, 0.5)
        assert log.steps == 3

    def test_every_write_of_a_step_is_a_change_of_its_own(self) -> None:
        class Twice(torch.optim.Optimizer):
            @torch.no_grad()
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                for p in self.param_groups[0]["params"]:
                    p.add_(p.grad)  # from 1 to 2
                    p.add_(p.grad, alpha=2.0**-10)  # and this is lost

        model = convert(nn.Linear(2, 1, bias=False), BF16)
        with torch.no_grad():
            model.weight.fill_(1.0)
        optimizer = Twice(model.parameters(), {})
        model.weight.grad = torch.tensor([[1.0, 0.0]]).to_lp(BF16)  # type: ignore[attr-defined]
        with record(model, optimizer) as log:
            optimizer.step()
        (row,) = find(log, role="weight")
        assert (row["wanted"], row["lost"]) == (2, 0.5)

    def test_finds_the_lost_updates_of_an_accumulator_and_not_of_the_weights_it_feeds(self) -> None:
        model = nn.Linear(1, 1, bias=False)
        with torch.no_grad():
            model.weight.fill_(1.0)
        nearest = quantizer(FP16, forward_rounding="nearest")
        optimizer = OptimLP(torch.optim.SGD(model.parameters(), lr=2.0**-7), weight_quant=E4M3, acc_quant=nearest)
        with record(model, optimizer) as log:
            model(torch.ones(1, 1)).sum().backward()
            optimizer.step()
        assert [(row["role"], row["format"], row["lost"]) for row in log] == [
            ("weight", "E4M3", None),
            ("accumulator", "FP16", 0.0),
        ]

    @pytest.mark.parametrize("converted", [False, True])
    def test_roles_and_paths_of_an_optimizer_in_low_precision(self, converted: bool) -> None:
        model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1))
        if converted:
            convert(model, FP16)
        optimizer = OptimLP(
            torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            weight_quant=E4M3,
            grad_quant=BF16,
            momentum_quant=INT8,
            acc_quant=FP16,
        )
        with record(model, optimizer) as log:
            for _ in range(2):
                one_step(model, optimizer, torch.randn(4, 3))
        names = [name for name, _ in model.named_parameters()]
        for role, format in (("weight", "E4M3"), ("gradient", "BF16"), ("state", "INT8"), ("accumulator", "FP16")):
            found = find(log, role=role, format=format)
            assert {row["path"] for row in found} >= set(names), role
            assert role != "accumulator" or {row["roundings"] for row in found} == {4 if converted else 2}
        assert not find(log, role="update") or converted
        # What the step writes into an LPTensor is rounded to the accumulator's format, and is no weight yet.
        assert {row["format"] for row in find(log, role="weight")} == {"E4M3", *["FP16"] * converted}

    def test_states_of_all_parameters_are_known_in_the_step_that_makes_them(self) -> None:
        model = convert(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), BF16)
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        with record(model, optimizer) as log:
            one_step(model, optimizer, torch.randn(4, 3).to_lp(BF16))  # type: ignore[attr-defined]
        assert {row["path"] for row in find(log, role="state")} == {name for name, _ in model.named_parameters()}

    def test_what_a_closure_computes_within_a_step_has_the_roles_that_it_has_outside(self) -> None:
        model = convert(nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 1)), BF16)
        optimizer, x = torch.optim.SGD(model.parameters(), lr=0.125), torch.ones(4, 3).to_lp(BF16)  # type: ignore[attr-defined]
        with record(model, optimizer) as log:
            optimizer.step(lambda: model(x).sum().backward())  # type: ignore[arg-type]
        assert {"0", "1"} <= {row["path"] for row in find(log, role="activation")}
        assert {"0", "1"} <= {row["path"] for row in find(log, role="gradient")}

    def test_what_a_checkpoint_computes_a_second_time_counts_as_it_runs(self) -> None:
        model, x = convert(nn.Sequential(nn.Linear(3, 2), nn.Tanh()), BF16), torch.ones(4, 3).to_lp(BF16)  # type: ignore[attr-defined]
        with record(model) as log:
            checkpoint(model, x.requires_grad_(), use_reentrant=False).sum().backward()
        assert [row["values"] for row in find(log, role="activation", path="0")] == [2 * 4 * 2]

    def test_gradients_of_what_follows_a_child_belong_to_its_parent_also_after_many_steps(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Parent(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.child = nn.Linear(3, 2)

            def forward(self, x: Tensor) -> Tensor:
                y: Tensor = self.child(x) * 3
                return y

        monkeypatch.setattr(places, "_MOST_MARKS", 6)  # older ones are forgotten
        model, x = convert(nn.Sequential(Parent()), BF16), torch.ones(4, 3).to_lp(BF16)  # type: ignore[attr-defined]
        with record(model) as log:
            for _ in range(5):
                model.zero_grad()
                model(x).backward(torch.ones(4, 2).to_lp(BF16))  # type: ignore[attr-defined]
        known = {row["path"]: row["values"] for row in find(log, role="gradient")}
        assert known["0"] == 5 * 4 * 2 and known["0.child"] > 0 and known.keys() <= {"0", "0.child", "0.child.weight"}

    @pytest.mark.parametrize(("step", "lost"), [(0.05, 1.0), (-0.05, 0.0)])  # above 1 E4M3 has half the numbers
    def test_asking_tells_whether_the_step_would_move_a_narrow_weight(self, step: float, lost: float) -> None:
        model = nn.Linear(1, 1, bias=False)
        nn.init.ones_(model.weight)
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        with record(model, optimizer, forward=E4M3) as log:
            (model(torch.ones(1, 1)) * -step).sum().backward()
            optimizer.step()
        (row,) = find(log, role="weight")
        assert (row["wanted"], row["lost"]) == (1, lost)

    def test_counters_and_sparse_gradients_are_left_out(self) -> None:
        model = nn.Linear(3, 2)
        optimizer = torch.optim.Adam(model.parameters())
        with record(model, optimizer, forward=E4M3) as log:
            one_step(model, optimizer, torch.randn(4, 3))
        assert {row["path"]: row["values"] for row in find(log, role="state")} == {"weight": 2 * 6, "bias": 2 * 2}
        table = nn.Embedding(5, 2, sparse=True)
        with record(table, forward=E4M3) as log:
            table(torch.tensor([1, 3])).sum().backward()
        assert [(row["role"], row["path"]) for row in log] == [
            ("weight", "weight"),
            ("activation", ""),
            ("gradient", ""),
        ]

    def test_what_else_a_step_computes_is_an_update(self) -> None:
        model = convert(nn.Linear(3, 1, bias=False), BF16)
        optimizer = torch.optim.Adam(model.parameters(), eps=1e-3)
        with record(model, optimizer) as log:
            model(torch.ones(2, 3)).sum().backward()
            optimizer.step()
        (row,) = find(log, role="update")  # square roots and quotients, of no parameter that memory knows
        assert row["path"] == "" and row["values"] >= 6
        assert find(log, role="state", path="weight") and find(log, role="weight", path="weight")

    def test_a_lowered_model_shows_the_layers_that_were_lowered(self) -> None:
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2))
        lower(model, "conv", FloatingPoint(8), E4M3)
        with record(model) as log:
            model(torch.randn(3, 1, 4, 4)).sum().backward()
        shown = [(row["role"], row["path"], row["format"], row["values"]) for row in log]
        assert shown == [("activation", "0", "E5M2", 24), ("gradient", "0", "E4M3", 24)]

    def test_gradients_of_a_converted_model_belong_to_the_module_whose_ops_they_differentiate(self) -> None:
        model = convert(nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Tanh(), nn.Linear(3, 1))), E5M2)
        with record(model) as log:
            model(torch.randn(2, 3).to_lp(E5M2)).sum().backward()  # type: ignore[attr-defined]
        assert {row["path"] for row in find(log, role="gradient")} >= {"0", "1.0", "1.1"}
        (row,) = find(log, role="gradient", path="1.0")
        assert row["values"] == 6

    def test_asking_changes_nothing_and_counts_what_would_happen(self) -> None:
        runs = []
        for watch in (False, True):
            torch.manual_seed(1)
            model = Net()
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
            outputs: list[Tensor] = []
            model.first.register_forward_hook(lambda module, args, output, kept=outputs: kept.append(output.detach()))
            if watch:
                with record(model, optimizer, forward=E4M3, backward=E5M2, rounding="stochastic") as log:
                    torch.manual_seed(2)
                    one_step(model, optimizer, torch.rand(5, 8))
            else:
                torch.manual_seed(2)
                one_step(model, optimizer, torch.rand(5, 8))
            runs.append([p.detach().clone() for p in model.parameters()])
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        (row,) = find(log, role="activation", path="first")
        assert row["binades"] == binades(outputs[0].flatten().tolist())
        assert {r["role"] for r in log} == {"weight", "activation", "gradient", "state"}
        assert {r["format"] for r in find(log, role="gradient")} == {"E5M2"}

    @pytest.mark.parametrize("asked", [{"forward": E4M3}, {"forward": MXFP4}], ids=str)
    def test_asking_at_random_leaves_the_draws_of_the_model_alone(self, asked: Any) -> None:
        model, drawn = nn.Sequential(nn.Linear(8, 8), nn.Dropout(), nn.Linear(8, 8), nn.Dropout()), []
        optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        for watch in (False, True):
            torch.manual_seed(5)
            with record(model, optimizer, **asked, rounding="stochastic") if watch else contextlib.nullcontext():
                one_step(model, optimizer, torch.ones(4, 8))
                drawn.append(torch.cat([model(torch.ones(4, 8)), torch.rand(4, 8)]))
        assert torch.equal(*drawn)

    @pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # Dynamo's own look at it
    def test_asking_finds_the_underflow_of_a_compiled_model(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.ReLU())
        with torch.no_grad():
            model[0].weight.fill_(1e-6)
        torch.compiler.reset()
        compiled = torch.compile(model, backend="eager")
        with record(compiled, forward=E4M3) as log:
            compiled(torch.ones(2, 3)).sum().backward()
        torch.compiler.reset()
        assert [row["underflow"] for row in find(log, role="activation", path="0")] == [1.0]
        assert {row["path"] for row in log} == {"0", "0.weight", "1"}  # as without torch.compile

    @pytest.mark.filterwarnings("ignore:The .grad attribute")  # Dynamo looks, and hides what torch says to that
    def test_a_converted_model_has_the_paths_that_it_has_without_compiling(self) -> None:
        def paths(compiling: bool) -> set[tuple[str, str]]:
            torch.compiler.reset()
            model = convert(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1)), E4M3)
            run: Any = torch.compile(model, backend="eager") if compiling else model
            optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
            with record(run, optimizer) as log:
                run(torch.ones(2, 3)).backward(torch.ones(2, 1))
                optimizer.step()
            torch.compiler.reset()
            return {(row["role"], row["path"]) for row in log}

        assert paths(True) == paths(False) and ("weight", "0.weight") in paths(False)

    def test_outputs_of_any_nest_are_counted(self) -> None:
        class Nest(nn.Module):
            def forward(self, x: Tensor) -> Any:
                return {"a": (x, [x[:2], None]), "b": 3}

        with record(Nest(), forward=E4M3) as log:
            Nest()(torch.ones(5))
        assert not list(log)  # another model
        model = nn.Sequential(nn.LSTM(3, 2))
        with record(model, forward=E4M3) as log:
            model(torch.rand(5, 4, 3))
        (row,) = find(log, role="activation")
        assert row["values"] == 5 * 4 * 2 + 2 * (4 * 2)  # outputs, last output, last cell
        nest = Nest()
        with record(nest, forward=E4M3) as log:
            nest(torch.ones(5))
        assert find(log, role="activation")[0]["values"] == 7

    def test_a_model_in_half_precision_is_left_out(self) -> None:
        model = nn.Linear(2, 2).half()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with record(model, optimizer, forward=E4M3) as log:
            one_step(model, optimizer, torch.rand(4, 2).half())
        assert not list(log) and "float32 or float64" in str(log)

    def test_asking_tells_which_updates_a_narrow_weight_would_lose(self) -> None:
        model = nn.Linear(2, 1, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 2.0**-4]]))
        optimizer = torch.optim.SGD(model.parameters(), lr=2.0**-10)
        with record(model, optimizer, forward=BF16) as log:
            model(torch.ones(1, 2)).sum().backward()
            optimizer.step()
        (row,) = find(log, role="weight")
        assert (row["wanted"], row["lost"], row["edq"]) == (2, 0.5, 0.5)

    def test_memory_does_not_grow_and_nothing_stays_behind(self) -> None:
        model = convert(Net(), E5M2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with record(model, optimizer) as log:
            one_step(model, optimizer, torch.rand(5, 8))
            entries = len(log._counts)
            for _ in range(5):
                one_step(model, optimizer, torch.rand(5, 8))
            assert len(log._counts) == entries
        held = [value for census in log._counts.values() for value in vars(census).values()]
        assert not any(isinstance(value, Tensor) for value in held)
        before = str(log)
        one_step(model, optimizer, torch.rand(5, 8))
        assert str(log) == before and observe.anyone == 0
        assert all(not m._forward_pre_hooks and not m._forward_hooks for m in model.modules())

    def test_a_model_that_raises_closes_the_recording(self) -> None:
        model = convert(nn.Sequential(nn.Linear(2, 2)), E5M2)
        with pytest.raises(RuntimeError), record(model):
            model(torch.ones(3, 5).to_lp(E5M2))  # type: ignore[attr-defined]
        assert observe.anyone == 0 and not model._forward_hooks

    @pytest.mark.parametrize("forward", [None, E4M3], ids=repr)
    def test_one_object_is_not_entered_within_itself(self, forward: Any) -> None:
        model = nn.Linear(2, 1)
        recording = record(model, forward=forward)
        for _ in range(2):  # but again afterwards
            with recording:
                with pytest.raises(RuntimeError, match="another record"), recording:
                    pass
                assert model._forward_pre_hooks
            assert observe.anyone == 0 and not model._forward_hooks and not model._forward_pre_hooks
            assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())

    def test_a_model_without_values_is_left_out(self) -> None:
        model = nn.Linear(2, 1, device="meta")
        with record(model, forward=E4M3) as log:
            model(torch.ones(3, 2, device="meta"))
        assert log.rows() == [] and log.steps == 1

    def test_takes_formats_whatever_the_default_dtype(self) -> None:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.bfloat16)
        try:
            with record(nn.Linear(2, 1), forward=E4M3) as log:
                pass
        finally:
            torch.set_default_dtype(before)
        assert log.steps == 0

    def test_every_third_step(self) -> None:
        model = convert(nn.Linear(2, 1), E5M2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with record(model, optimizer, every=3) as log:
            for _ in range(7):
                one_step(model, optimizer, torch.ones(4, 2))
        assert log.steps == 3
        with record(model, optimizer) as once:
            one_step(model, optimizer, torch.ones(4, 2))
        assert [3 * row["values"] for row in once] == [row["values"] for row in log]

    @pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
    @pytest.mark.parametrize(
        "take", [Tensor.clone, Tensor.t, lambda x: x[:, ::2], lambda x: torch.complex(x, x)[:1, :1].conj().imag]
    )
    def test_changes_no_bit_whatever_the_memory_looks_like(self, take: Any, rounding: str) -> None:
        base, found = torch.randn(6, 8), []
        for recorded in (False, True):
            x, out = take(base), take(torch.zeros(6, 8))
            torch.manual_seed(0)
            with record(nn.Identity()) if recorded else contextlib.nullcontext() as log:
                found.append([round_to(x, E4M3, rounding).tolist(), round_to(x, E4M3, rounding, out=out).tolist()])
        assert found[0] == found[1]
        assert list(log)[0]["binades"] == binades([*x.flatten().tolist()] * 2)

    def test_two_recordings_see_the_same(self) -> None:
        model = convert(nn.Linear(2, 1), E5M2)
        with record(model) as outer, record(model) as inner:
            model(torch.ones(4, 2))
        assert list(outer) == list(inner) and len(list(inner)) == 1

    def test_without_anything_rounded_it_says_how_to_ask(self) -> None:
        model = nn.Linear(2, 1)
        with record(model) as log:
            model(torch.ones(4, 2))
        assert "forward=E4M3" in str(log)

    @pytest.mark.parametrize(
        ("kwargs", "error", "says"),
        [
            (dict(model=3), TypeError, "int"),
            (dict(optimizer=3), TypeError, "int"),
            (dict(forward="fp8"), TypeError, "fp8"),
            (dict(every=0), ValueError, "0"),
        ],
    )
    def test_what_is_refused(self, kwargs: Any, error: Any, says: str) -> None:
        with pytest.raises(error, match=says):
            record(**{"model": nn.Linear(1, 1), **kwargs})


class Writer:
    def __init__(self) -> None:
        self.scalars: dict[str, Any] = {}
        self.histograms: dict[str, Any] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag] = value, step

    def add_histogram_raw(self, tag: str, *numbers: Any) -> None:
        self.histograms[tag] = numbers


class TestLog:
    def recorded(self) -> Any:
        model = nn.Sequential(nn.Linear(4, 4))
        with record(model, forward=E4M3) as log:
            model(torch.ones(2, 4) * 1e-4).sum().backward()
        return log

    def test_json_holds_the_rows(self, tmp_path: Any) -> None:
        log = self.recorded()
        text = log.to_json(tmp_path / "log.json")
        read = json.loads((tmp_path / "log.json").read_text())
        assert json.loads(text) == read and read["steps"] == log.steps == 1
        for row, again in zip(log.rows(), read["rows"], strict=True):
            assert again["underflow"] == row["underflow"]
            assert {int(e): n for e, n in again["binades"].items()} == row["binades"]

    def test_tensorboard_gets_numbers_and_histograms(self) -> None:
        log, writer = self.recorded(), Writer()
        log.to_tensorboard(writer, 7)
        (row,) = find(log, role="activation")
        assert writer.scalars["activation/0/underflow"] == (row["underflow"], 7)
        low, high, count, total, squares, edges, counts, step = writer.histograms["activation/0/binades"]
        assert counts == [row["binades"].get(e, 0) for e in range(low, high)] and step == 7
        assert edges == [*range(low + 1, high + 1)]  # the upper ones
        assert total == sum(e * n for e, n in row["binades"].items())
        assert squares == sum(e**2 * n for e, n in row["binades"].items())
        exact = nn.Linear(2, 2)
        nn.init.ones_(exact.weight)
        with record(exact, forward=E4M3) as log:
            exact(torch.ones(1, 2))
        log.to_tensorboard(writer)  # nothing moved: an infinite ratio, which a chart has no place for
        assert "weight/weight/underflow" in writer.scalars and "weight/weight/snr" not in writer.scalars
        assert count == sum(row["binades"].values()) and low == min(row["binades"]) and high == max(row["binades"]) + 1

    def test_a_log_travels_through_pickle_and_copy(self) -> None:
        model = nn.Linear(3, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        with record(model, optimizer, forward=E4M3, rounding="stochastic") as log:
            model(torch.randn(4, 3)).sum().backward()
            optimizer.step()
        for other in (pickle.loads(pickle.dumps(log)), copy.deepcopy(log)):
            assert other.rows() == log.rows() and other.steps == log.steps == 1

    def test_rows_by_role_add_up(self) -> None:
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        with record(model, forward=E4M3) as log:
            for _ in range(3):
                model(torch.ones(2, 4) * 1e-4).sum().backward()
        assert [row["role"] for row in log.rows(by="role")] == ["weight", "activation", "gradient"]
        for row in log.rows(by="role"):
            parts = find(log, role=row["role"], format=row["format"])
            assert len(parts) >= 2 and row["roundings"] == sum(part["roundings"] for part in parts) > 0
            assert row["values"] == sum(part["values"] for part in parts)
            zeros = sum(part["zero"] * part["values"] for part in parts)
            assert row["zero"] * row["values"] == pytest.approx(zeros)
        with pytest.raises(ValueError, match="layer"):
            log.rows(by="layer")

    def test_histogram_of_one_place(self) -> None:
        log = self.recorded()
        found = log.histogram("weight", "0.weight")
        (row,) = find(log, path="0.weight", role="weight")
        assert {r["binade"]: r["count"] for r in found} == row["binades"]
        with pytest.raises(ValueError, match="there is .*weight"):
            log.histogram("state")

    def test_frame_needs_pandas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pandas", None)
        with pytest.raises(MissingExtra, match=r"lptensor\[study\]"):
            self.recorded().rows().frame()

    def test_frame_is_made_by_pandas(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pandas = type(sys)("pandas")
        pandas.DataFrame = lambda rows: ("frame", rows)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "pandas", pandas)
        assert Rows([{"a": 1}]).frame() == ("frame", [{"a": 1}])


class TestExponentHistogram:
    @pytest.mark.parametrize("format", [E4M3, E5M2, FP16, BF16, E2M1], ids=repr)
    def test_regions_are_where_the_format_has_its_values(self, format: Any) -> None:
        x = 1.5 * 2.0 ** torch.arange(-149, 127, dtype=torch.float64).float()
        values = format.values()
        positive = values[values > 0].tolist()
        normal = ENDS[format][2] if format in ENDS else 2.0**-126
        for row in exponent_histogram(x, format):
            low, high = 2.0 ** row["binade"], 2.0 ** (row["binade"] + 1)
            inside = [v for v in positive if low <= v < high]
            wanted = "normal" if inside and inside[0] >= normal else "subnormal" if inside else None
            if wanted is None:
                wanted = "underflow" if high <= positive[0] else "overflow"
            assert row["region"] == wanted, row

    def test_the_largest_value_is_that_of_either_sign(self) -> None:
        found = exponent_histogram(torch.tensor([-128.0, -256.0]), INT8)
        assert [row["region"] for row in found] == ["normal", "overflow"]

    def test_shares_are_of_all_values(self) -> None:
        found = exponent_histogram(torch.tensor([0.0, math.nan, 1.0, 1e9]), E4M3)
        assert found.zeros == 2 and found.share("normal") == found.share("overflow") == 0.25

    def test_a_block_format_has_no_regions(self) -> None:
        assert {row["region"] for row in exponent_histogram(torch.randn(64), MXFP4)} == {"value"}

    def test_without_clamping_nothing_overflows(self) -> None:
        found = exponent_histogram(torch.tensor([0.01, 1.0, -3.0, 1e9]), FixedPoint(8, 4, clamp=False))
        assert [row["region"] for row in found] == ["underflow"] + 3 * ["normal"]
        axes = found.plot(__import__("matplotlib.figure").figure.Figure().subplots())
        assert [line.get_xdata()[0] for line in axes.lines] == [-4.5, -4.5]  # no end to the right

    def test_the_picture_shows_the_rows(self) -> None:
        axes = __import__("matplotlib.figure").figure.Figure().subplots()
        rows = exponent_histogram(torch.tensor(np.exp(np.linspace(-20, 20, 99)), dtype=torch.float32), E4M3)
        rows.plot(axes)
        drawn = {round(p.get_x() + p.get_width() / 2): p.get_height() for p in axes.patches}
        assert drawn == {row["binade"]: pytest.approx(100 * row["share"]) for row in rows}
        assert sorted(line.get_xdata()[0] for line in axes.lines) == [-9.5, -6.5, 8.5]


def test_a_layer_map_shows_the_numbers_of_the_rows() -> None:
    model = Net()
    with record(model, forward=E4M3) as log:
        model(torch.rand(16, 8))
    axes = __import__("matplotlib.figure").figure.Figure().subplots()
    log.plot(axes, column="underflow")
    rows = log.rows()
    paths, roles = ([t.get_text() for t in labels] for labels in (axes.get_yticklabels(), axes.get_xticklabels()))
    image = axes.images[0].get_array()
    for row in rows:
        assert image[paths.index(row["path"]), roles.index(row["role"])] == pytest.approx(100 * row["underflow"])
    with pytest.raises(ValueError, match="nothing"):
        log.plot(axes, column="nothing")


def test_a_layer_map_shows_what_is_infinite_and_leaves_blank_what_was_not_recorded() -> None:
    rows = [
        {"role": "weight", "path": p, "values": 1, "snr": s} for p, s in (("a", 30.0), ("b", math.inf), ("c", None))
    ]
    axes = __import__("matplotlib.figure").figure.Figure().subplots()
    plot_layer_map(rows, axes, column="snr")
    image = axes.images[0].get_array()
    assert image.mask.ravel().tolist() == [False, False, True] and image[1, 0] == image[0, 0] == 30.0
    assert [t.get_text() for t in axes.texts] == ["30", "inf"] and axes.get_title("left") == "snr (dB)"


def test_a_cell_of_a_layer_map_shows_the_format_with_the_most_values_in_two_digits_that_can_be_read() -> None:
    shares = (("", 8, 0.125), ("", 4, 0.5), ("b", 1, 0.0123))
    rows = [{"role": "weight", "path": p, "values": n, "underflow": share} for p, n, share in shares]
    axes = __import__("matplotlib.figure").figure.Figure().subplots()
    plot_layer_map(rows, axes)
    assert [(t.get_text(), t.get_color()) for t in axes.texts] == [("12", "white"), ("1.2", "black")]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["(whole)", "b"]
    assert axes.get_title("left") == "underflow (%)"
    plot_layer_map(
        [{"role": "weight", "path": p, "values": 1, "change": c} for p, c in (("a", -2.0), ("b", 1.0))], axes, "change"
    )
    assert axes.images[-1].get_clim() == (0, 2)


def test_the_draws_of_random_signs_are_no_roundings_of_the_model() -> None:
    model = lower(nn.Sequential(nn.Linear(16, 1)), "linear", operands=Gemm(BF16, transform=Hadamard(16, "random")))
    with record(model) as log:
        model(torch.ones(2, 16))
    assert sum(row["values"] for row in log.rows()) == 2 * 16 + 16  # both operands, each once


# A format for each operand of each product, which so says what was rounded.
OPERANDS = dict(forward=(E4M3, E5M2), grad_input=(E3M4, E3M2), grad_weight=(E2M3, BF16))
ROLES = {"activation": (E4M3, BF16), "weight": (E5M2, E3M2), "gradient": (E3M4, E2M3)}


class Attention(nn.MultiheadAttention):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        key: Tensor = 2 * x  # takes the packed weight apart
        y: Tensor = super().forward(x, key, key)[0]
        return y


@pytest.mark.parametrize("blocks", [False, True])
@pytest.mark.parametrize("lowered", [True, False])
@pytest.mark.parametrize(
    ("layer", "transform"),
    [
        (nn.Linear(4, 4), None),
        (nn.Linear(4, 4), Hadamard(4)),
        (nn.Conv1d(3, 3, 2), None),
        (nn.ConvTranspose1d(3, 3, 2, stride=2), None),
        (nn.Conv1d(3, 3, 2), Hadamard(2)),
        (nn.LSTM(4, 3, batch_first=True), None),
    ],
    ids=str,
)
def test_operands_are_weights_activations_and_gradients(
    layer: nn.Module, transform: Any, lowered: bool, blocks: bool
) -> None:
    made = {name: tuple(MX(f, 2) for f in pair) if blocks else pair for name, pair in OPERANDS.items()}
    gemm = Gemm(**made, transform=transform)  # type: ignore[arg-type]
    model = nn.Sequential(nn.Identity(), copy.deepcopy(layer))
    model = lower(model, "all", operands=gemm) if lowered else convert(model, Arithmetic(operands=gemm))
    with record(model) as log:
        y = model(torch.randn(2, 3, 4, requires_grad=True))
        (y[0] if isinstance(y, tuple) else y).sum().backward()
    found = {(row["role"], row["format"]) for row in log.rows()}
    assert found == {(role, repr(MX(f, 2) if blocks else f)) for role, formats in ROLES.items() for f in formats}
    names = {f"1.{name}" for name, p in layer.named_parameters() if p.dim() > 1}
    assert {row["path"] for row in find(log, role="weight")} == names
    assert {row["path"] for row in log.rows() if row["role"] != "weight"} == {"1"}


@pytest.mark.parametrize("lowered", [True, False])
def test_parts_of_a_packed_weight_are_weights(lowered: bool) -> None:
    gemm, model = Gemm(**OPERANDS), nn.Sequential(Attention(4, 1, bias=False, batch_first=True))
    model = lower(model, "all", operands=gemm) if lowered else convert(model, Arithmetic(operands=gemm))
    with record(model) as log:
        model(torch.randn(2, 3, 4, requires_grad=True)).sum().backward()
    counts = {row["format"]: row["values"] for row in find(log, role="weight", path="0.in_proj_weight")}
    assert counts == {"E5M2": 3 * 16, "E3M2": 3 * 16}
    assert {row["format"] for row in find(log, role="gradient")} == {"E3M4", "E2M3"}


@pytest.mark.parametrize(("recipe", "format"), [(quartet, "E2M1"), (lambda: quartet2(32), "NVFP4")])
def test_the_operands_of_quartet_are_weights_activations_and_gradients(recipe: Any, format: str) -> None:
    """Each rounded twice: for the forward product, and what came of it, or the gradient, for one of the others."""
    model, x = recipe().model(nn.Sequential(nn.Linear(64, 32))), torch.randn(96, 64, requires_grad=True)
    with record(model) as log:
        model(x).square().sum().backward()
    counts = {(row["role"], row["path"]): row["values"] for row in log.rows()}
    assert counts == {("weight", "0.weight"): 2 * 2048, ("activation", "0"): 2 * 6144, ("gradient", "0"): 2 * 3072}
    assert {row["format"] for row in log.rows()} == {format}
    with record(model) as log, observe.unseen():
        model(x)
        round_to(x.detach(), BF16)
    assert not log.rows()
    with record(model) as log:
        y = torch.func.vmap(model)(x.detach().view(3, 32, 64))
    assert y.shape == (3, 32, 32)
    assert log.rows() or format == "NVFP4", "what studies see as one rounding is not seen in a vmap"


def test_what_a_parametrization_rounds_is_a_weight() -> None:
    """Also what is computed of it on the way, as under a scale."""
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    round_layers(model, lambda: quantizer(BF16), lambda: quantizer(E4M3, forward_rounding="nearest"), exempt=["1"])
    round_layers(model, weight=lambda: lambda w: round_to(w / 3, E5M2) * 3, exempt=["0"])
    with record(model) as log:
        model(torch.ones(2, 4))
    assert {(row["role"], row["path"], row["format"]) for row in log.rows()} == {
        ("activation", "0.rounded_input", "BF16"),
        ("weight", "0.parametrizations.weight.original", "E4M3"),
        ("weight", "1.parametrizations.weight.original", "E5M2"),
    }


def test_what_a_parametrization_makes_of_several_parameters_is_a_weight() -> None:
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 3, bias=False))
    model, x = convert(nn.Sequential(layer), BF16), torch.ones(2, 4).to_lp(BF16)  # type: ignore[attr-defined]
    with record(model) as log:
        model(x)
    found = {(row["role"], row["path"]) for row in log.rows()}
    assert found == {("weight", "0.parametrizations.weight"), ("activation", "0")}


def test_a_weight_that_is_widened_is_one_still() -> None:
    model = nn.Linear(4, 3, bias=False).half()
    with record(model) as log:
        w = model.weight.to_lp(Arithmetic(operands=Gemm((E4M3, E5M2))))  # type: ignore[attr-defined]
        nn.functional.linear(torch.ones(2, 4), w)
    assert {(row["role"], row["format"]) for row in log.rows()} == {("weight", "E5M2"), ("activation", "E4M3")}


def test_what_lies_where_a_copy_of_a_weight_did_is_none() -> None:
    model, memory = nn.Linear(2, 2), np.ones((2, 2), np.float32)
    follower, copy = places.Places(model, None).__enter__(), torch.from_numpy(memory)
    follower.copied(model.weight, copy)
    assert follower.of(copy, torch.ones(1)) == ("weight", "weight")
    del copy
    other = torch.from_numpy(memory)
    assert follower.of(other, torch.ones(1)) == ("activation", "")
    memories = [np.ones((2, 2), np.float32) for _ in range(3 * places._FEW)]  # of which none is free for the next
    for memory in memories:
        follower.copied(model.weight, torch.from_numpy(memory))
    assert len(follower._copies) <= places._FEW + 1
    follower.__exit__()


@pytest.mark.parametrize(
    "watch", [record, lambda model: record(model, forward=E4M3), lambda model: faults(0.5, model=model)]
)
@pytest.mark.parametrize("ends", [contextlib.nullcontext, lambda: pytest.raises(KeyboardInterrupt)])
def test_a_model_is_let_go_at_once_after_it_was_watched(watch: Any, ends: Any) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    known = weakref.ref(model)
    gc.disable()
    try:
        with ends() as broken, watch(model):
            model(torch.ones(4)).sum().backward()
            if broken is not None:
                raise KeyboardInterrupt
        del model, broken
        assert known() is None
    finally:
        gc.enable()


def test_every_other_call_begins_with_the_first() -> None:
    model = nn.Sequential(nn.Identity())
    with record(model, forward=E4M3, every=2) as log:
        for value in (1e-9, 1.0, 1e-9):
            model(torch.tensor([value]))
    (row,) = log.rows()
    assert log.steps == 2 and row["values"] == 2 and row["underflow"] == 1.0


ENTERED = {
    "what happens": lambda model, optimizer: record(model, optimizer),
    "what would happen": lambda model, optimizer: record(model, optimizer, forward=E4M3),
    "faults": lambda model, optimizer: faults(0.1, model=model),
}


@pytest.mark.parametrize("name", ENTERED)
@pytest.mark.parametrize("part", ["lazy", "ScriptModule"])
def test_a_model_that_cannot_be_followed_is_named_and_keeps_no_hooks(name: str, part: str) -> None:
    first: Any = nn.Linear(2, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit
        last: Any = nn.LazyLinear(2) if part == "lazy" else torch.jit.script(nn.Linear(2, 2))
    optimizer = torch.optim.SGD(first.parameters(), lr=0.1)
    with pytest.raises((TypeError, ValueError), match=f"'1.*' is (a )?{part}.*; (call the model|take what)"):
        ENTERED[name](nn.Sequential(first, last), optimizer).__enter__()
    assert not first._forward_hooks and not first._forward_pre_hooks
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in first.parameters())
    assert not optimizer._optimizer_step_post_hooks and observe.anyone == 0


@pytest.mark.parametrize("formats", [{}, {"forward": E4M3}])
def test_a_recording_that_cannot_begin_leaves_nothing_behind(formats: Any) -> None:
    model = nn.Sequential(nn.Linear(2, 2))

    class Closed(torch.optim.SGD):
        def register_step_pre_hook(self, hook: Any) -> Any:
            raise RuntimeError("no hooks here")

    with pytest.raises(RuntimeError, match="no hooks here"):
        record(model, Closed(model.parameters(), lr=0.1), **formats).__enter__()
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in model.modules()) and observe.anyone == 0
    assert not any(getattr(p, "_post_accumulate_grad_hooks", None) for p in model.parameters())


def test_sparse_parameters_and_states_are_passed_over() -> None:
    model = nn.ParameterDict({"a": torch.ones(2), "b": torch.eye(2).to_sparse()})
    optimizer = torch.optim.SGD([model["a"]], lr=0.1)
    optimizer.state[model["a"]]["seen"] = torch.eye(2).to_sparse()
    with record(model, optimizer) as log:
        round_to(model["a"], E4M3)
    assert [(row["role"], row["path"]) for row in log.rows()] == [("weight", "a")]
