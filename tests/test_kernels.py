"""Kernels and reference against exact rationals: every value, every midpoint and what lies beside them."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lptensor import _native, _native_census, _native_gemm
from lptensor.accumulator import ORDERS, Accumulator
from lptensor.blocks import MXFP8_E4M3, NVFP4
from lptensor.codebooks import NF4
from lptensor.formats import (
    BF16,
    E2M1,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    FP32,
    TF32,
    FixedPoint,
    FloatingPoint,
    Format,
)
from lptensor.grid import Overflow, Subnormals
from lptensor.names import named_formats
from lptensor.ops import round_into
from lptensor.posits import Posit
from lptensor.rounding import Beyond, Mode, Rounding
from oracles import exact
from oracles.exact import MODES
from oracles.table import table_of
from rounders import assert_same, assert_same_bits, judge, run
from strategies import small_floats

NARROW = {
    **{n: row for n, row in named_formats().items() if isinstance(row, FloatingPoint) and row.bits <= 8},
    "E4M3, overflow to nan": FloatingPoint(4, 3, specials="fn"),
    "E4M3 of IEEE 754": FloatingPoint(4, 3),
    "E5M2, saturating": FloatingPoint(5, 2, overflow="saturate"),
    "E5M2, saturating, but for infinities": FloatingPoint(5, 2, overflow="propagate"),
    "1-4-3 bias 4": FloatingPoint(4, 3, bias=4),
    "1-4-3 bias 11": FloatingPoint(4, 3, bias=11, specials="none"),  # HFP8, Sun et al., NeurIPS 2019
    "1-6-9": FloatingPoint(6, 9),  # DLFloat, Agrawal et al., ARITH 2019
    "no subnormals": FloatingPoint(4, 3, subnormals=False),
    "flush to zero": FloatingPoint(4, 3, subnormals="flush"),
    "unsigned": FloatingPoint(4, 4, signed=False, specials="fn"),
    "unsigned, saturating": FloatingPoint(4, 3, signed=False, specials="none"),
    "unsigned, saturating, no zero": FloatingPoint(4, 3, signed=False, specials="none", zero=False, subnormals=False),
    "subnormal carrier": FloatingPoint(4, 3, bias=140),
    "top of the carrier": FloatingPoint(4, 3, bias=-113),
}
WIDE = {"FP16": FP16, "BF16": BF16}


@pytest.mark.parametrize("name", NARROW)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_value_and_midpoint_rounds_as_exact_rationals(name: str, dtype: type, rounder: str) -> None:
    format = NARROW[name]
    table = table_of(judge(format))
    x = table.points(dtype)
    for mode in MODES:
        assert_same(run(rounder, torch.from_numpy(x), format, mode), table.round(x.astype(np.float64), mode), x, mode)


@pytest.mark.parametrize("name", WIDE)
def test_every_value_of_16_bits_rounds_as_exact_rationals(name: str, rounder: str) -> None:
    table = table_of(judge(WIDE[name]))
    x = table.points()
    for mode in MODES:
        y = run(rounder, torch.from_numpy(x), WIDE[name], mode)
        assert_same(y, table.round(x.astype(np.float64), mode), x, mode)


def test_every_small_format_rounds_as_exact_rationals(rounder: str) -> None:
    """All choices of exp + man up to 5 bits, specials, overflow, subnormals, sign and zero."""
    count = 0
    for values in small_floats():
        table = table_of(values)
        x = table.points()
        format = FloatingPoint(**vars(values))
        for mode in MODES:
            assert_same(
                run(rounder, torch.from_numpy(x), format, mode),
                table.round(x.astype(np.float64), mode),
                x,
                (format, mode),
            )
        count += 1
    assert count > 500


@pytest.mark.parametrize("format", [E4M3, E5M2, BF16, FP16, TF32, FP32, E8M0, E2M1], ids=repr)
def test_random_bit_patterns_round_as_exact_rationals(format: FloatingPoint, rounder: str) -> None:
    bits = torch.randint(-(2**31), 2**31, (800,), dtype=torch.int64).to(torch.int32)
    x = bits.view(torch.float32)
    for mode in MODES:
        expected = [exact.rounded(judge(format), v, mode) for v in x.tolist()]
        assert_same(run(rounder, x, format, mode), expected, x, mode)


@pytest.mark.parametrize("mode", MODES)
def test_subnormal_inputs_and_results_survive_a_machine_that_flushes_them(
    mode: str, rounder: str, flush_denormal: None
) -> None:
    bits = torch.arange(1, 2**23, 40009, dtype=torch.int32)
    x = torch.cat([bits, bits - 2**31, torch.arange(1, 24, dtype=torch.int32)]).view(torch.float32)
    subnormal = (FP32, TF32, BF16, FloatingPoint(4, 3, bias=140), FloatingPoint(8, 3, subnormals="flush"), E8M0)
    for format in (*subnormal, E4M3, FixedPoint(8, 94), FixedPoint(8, 122)):
        y = run(rounder, x, format, mode)
        torch.set_flush_denormal(False)
        values = judge(format)
        as_integers = x.view(torch.int32).numpy().view(np.float32).astype(np.float64)
        expected = np.array([exact.rounded(values, float(v), mode) for v in as_integers], np.float64)
        assert_same(y.numpy().astype(np.float64), expected, as_integers, (format, mode))
        torch.set_flush_denormal(True)


@pytest.mark.parametrize("rounding", MODES)
def test_nan_comes_out_as_one_canonical_quiet_nan(rounding: str, rounder: str) -> None:
    patterns = torch.tensor([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7FA12345], dtype=torch.int32)
    x = torch.cat([patterns, patterns - 2**31]).view(torch.float32)
    for format in (E4M3, FP32, E2M1, E8M0):
        y = run(rounder, x, format, rounding)
        assert_same_bits(y, torch.full_like(x, torch.nan))


@pytest.mark.parametrize("n", [0, 1, 2, 3, 7, 15, 16, 17, 31, 33, 64, 100, 127, 129, 1000])
def test_the_length_of_a_tensor_does_not_matter(n: int, rounder: str) -> None:
    x = torch.linspace(-3, 3, 1000)
    assert_same_bits(run(rounder, x[:n].clone(), E4M3), run(rounder, x, E4M3)[:n])


@pytest.mark.native
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32], ids=str)
@pytest.mark.parametrize("format", [E4M3, Posit(8), NF4, MXFP8_E4M3, NVFP4], ids=repr)
def test_no_kernel_reads_a_tensor_of_another_dtype(format: Format, dtype: torch.dtype) -> None:
    x = torch.ones(64, dtype=dtype)
    with pytest.raises(TypeError, match=str(dtype)):
        round_into(x, torch.zeros_like(x), format, Rounding())


@pytest.mark.native
def test_a_library_of_another_version_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_native, "ABI_VERSION", -1)
    with pytest.raises(ImportError, match="another version"):
        _native.library.__wrapped__()


def test_every_kernel_is_told_how_many_threads_torch_has(monkeypatch: pytest.MonkeyPatch) -> None:
    told = []

    def kernel(*given: Any) -> int:
        told.append(given[-1])
        return 0

    monkeypatch.setattr(_native, "_kernels", lambda name: {torch.float32: kernel})
    monkeypatch.setattr(_native, "library", lambda: SimpleNamespace(lpt_odd_sums=kernel))
    for module in (_native_gemm, _native_census):
        monkeypatch.setattr(module, "_kernel", lambda *name: kernel)
    torch.set_num_threads(3)
    x, rule, grid = torch.ones(8, 8), Rounding(), E4M3.grid
    matrices = _native.matrices_of((8, 8), (1, 8))
    seen, moved = _native_census.CensusStruct(), _native_census.UpdatesStruct()
    rounder = _native_census.Rounder(grid, rule, x.dtype)
    calls = (
        lambda: _native.round_grid(x, x, grid, rule, None),
        lambda: _native.round_table(x, x, NF4.lowered, rule, None),
        lambda: _native.round_matrices(x, x, matrices, grid, rule, None),
        lambda: _native.round_blocks(x, x, NVFP4.lowered, (1, 8), rule, None),
        lambda: _native.round_turned_blocks(x.t(), x.t(), NVFP4.lowered, (1, 8), rule, None),
        lambda: _native.compensate("kahan", x, x, x, grid),
        lambda: _native.odd("sums", x, x),
        lambda: _native_gemm.gemm(x[None], x[None], x[None], Accumulator(BF16), None, None, False),
        lambda: _native_census.census(x, x, seen),
        lambda: _native_census.updates(x, x, x, moved),
        lambda: rounder.round(x, x, None, seen),
        lambda: rounder.updates(x, x, (), moved),
    )
    for call in calls:
        call()
    assert told == [3] * len(calls)


# What Python hands over as numbers: by the enum's name, its header and the numbers of the rows.
NUMBERED: dict[str, tuple[str, dict[str, int]]] = {
    "lpt_mode": ("grid.h", Mode.__members__),
    "lpt_beyond": ("grid.h", {f"beyond_{name}": number for name, number in Beyond.__members__.items()}),
    "lpt_overflow": ("grid.h", Overflow.__members__),
    "lpt_subnormals": ("grid.h", Subnormals.__members__),
    "lpt_order": ("gemm.h", ORDERS),
    "lpt_update": ("updates.h", {f"update_{name}": number for number, name in enumerate(_native.COMPENSATED)}),
    "lpt_of_elements": ("library.cpp", {name: number for number, name in enumerate(_native.OF_ELEMENTS)}),
}


@pytest.mark.parametrize("enum", NUMBERED)
def test_the_numbers_of_the_kernels_are_those_of_the_rows(enum: str) -> None:
    file, rows = NUMBERED[enum]
    text = (Path(__file__).parents[1] / "csrc" / file).read_text()
    numbers = re.findall(r"LPT_(\w+) = (-?\d+)", text.split(f"enum {enum} {{")[1].split("}")[0])
    assert {name.lower(): int(number) for name, number in numbers} == {n.lower(): int(v) for n, v in rows.items()}


@pytest.mark.parametrize("file", ["gemm_rows.h", "gemm_element.h"])
def test_the_kernels_have_a_case_for_each_order(file: str) -> None:
    text = (Path(__file__).parents[1] / "csrc" / file).read_text()
    (cases,) = re.findall(r"switch \(\(lpt_order\).*?\n        }", text, re.DOTALL)
    assert {name.lower() for name in re.findall(r"case LPT_(\w+):", cases)} == set(ORDERS) and "default" not in cases
