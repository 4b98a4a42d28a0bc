"""The table of formats, the number line and the bits of a code, as rows and as pictures."""

from __future__ import annotations

import itertools
import json
import math
import sys
from collections.abc import Callable, Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

import lptensor
from formats_page import page
from lptensor import blocks, names, study
from lptensor.blocks import MXFP4, BlockFloatingPoint, BlockFormat
from lptensor.codebooks import NF4, UDYNAMIC8, Codebook, LogNumber
from lptensor.codes import decode
from lptensor.extra import MissingExtra, need
from lptensor.formats import (
    BF16,
    E2M1,
    E2M3,
    E3M2,
    E3M4,
    E4M3,
    E4M3B11FNUZ,
    E4M3FNUZ,
    E5M2,
    E5M2FNUZ,
    E8M0,
    FP16,
    FP32,
    INT4,
    INT8,
    TF32,
    FixedPoint,
    FloatingPoint,
    Format,
    ScalarFormat,
)
from lptensor.hifloat import HIF8
from lptensor.names import named_formats
from lptensor.p3109 import P3109
from lptensor.posits import Posit
from lptensor.study import (
    bit_layout,
    exponent_histogram,
    format_table,
    number_line,
    plot_bit_layout,
    plot_number_line,
    relative_error,
)
from lptensor.study.format_table import count_values, element_of
from oracles import posit

ML_DTYPES: dict[Format, Any] = {
    BF16: ml_dtypes.bfloat16,
    FP16: np.float16,
    E5M2: ml_dtypes.float8_e5m2,
    E4M3: ml_dtypes.float8_e4m3fn,
    E5M2FNUZ: ml_dtypes.float8_e5m2fnuz,
    E4M3FNUZ: ml_dtypes.float8_e4m3fnuz,
    E4M3B11FNUZ: ml_dtypes.float8_e4m3b11fnuz,
    E3M4: ml_dtypes.float8_e3m4,
    E3M2: ml_dtypes.float6_e3m2fn,
    E2M3: ml_dtypes.float6_e2m3fn,
    E2M1: ml_dtypes.float4_e2m1fn,
}
KINDS = [
    E5M2,
    E4M3,
    E4M3FNUZ,
    E2M1,
    E8M0,
    INT8,
    FixedPoint(6, 9, signed=False),
    FixedPoint(6, -2, symmetric=True),
    FloatingPoint(4, 3, subnormals=False),
    FloatingPoint(3, 4, signed=False),
    FloatingPoint(1, 3, specials="none"),
    P3109(8, 3),
    P3109(7, 7),
    P3109(8, 1, signed=False, extended=False),
    FP16,
]
LISTED = [*KINDS, NF4, UDYNAMIC8, Codebook([-3.0, 1.0, 1.5]), LogNumber(8), HIF8, Posit(8), Posit(10, 0)]
by_kind = pytest.mark.parametrize("format", KINDS, ids=repr)
by_listed = pytest.mark.parametrize("format", LISTED, ids=repr)


def row_of(format: Format) -> dict[str, Any]:
    (row,) = format_table([format])
    return row


class TestFormatTable:
    @pytest.mark.parametrize(("format", "dtype"), ML_DTYPES.items(), ids=str)
    def test_rows_agree_with_ml_dtypes(self, format: Format, dtype: Any) -> None:
        row, info = row_of(format), ml_dtypes.finfo(dtype)
        for key in ("bits", "max", "min", "eps", "smallest_normal", "smallest_subnormal"):
            assert row[key] == float(getattr(info, key)), key
        assert row["precision"] == info.nmant + 1
        every = np.arange(2**info.bits, dtype=np.uint16 if info.bits == 16 else np.uint8)
        with np.errstate(invalid="ignore"):  # some NaNs signal
            values = every.view(dtype).astype(np.float64)
        assert row["values"] == len(set(values[np.isfinite(values)].tolist()))
        assert ("inf" in row["specials"], "NaN" in row["specials"]) == (np.isinf(values).any(), np.isnan(values).any())
        assert ("no -0" in row["specials"]) == (not (np.signbit(values) & (values == 0)).any())

    @pytest.mark.parametrize(("format", "dtype"), [(FP32, torch.float32), (BF16, torch.bfloat16)], ids=str)
    def test_rows_agree_with_torch(self, format: Format, dtype: torch.dtype) -> None:
        row, info = row_of(format), torch.finfo(dtype)
        assert [row[k] for k in ("bits", "max", "min", "eps")] == [info.bits, info.max, info.min, info.eps]
        assert row["smallest_normal"] == info.smallest_normal

    def test_float32_has_all_its_numbers_but_infinities_nans_and_a_second_zero(self) -> None:
        assert row_of(FP32)["values"] == 2**32 - 2 * 2**23 - 1

    @by_listed
    def test_rows_agree_with_the_list_of_values(self, format: Any) -> None:
        row, values = row_of(format), format.values().tolist()
        positive = [v for v in values if v > 0]
        assert (row["max"], row["min"], row["values"]) == (values[-1], values[0], len(values))
        assert row["smallest_subnormal"] == positive[0]
        assert row["binades"] == pytest.approx(math.log2(positive[-1] / positive[0]))
        assert row["decibels"] == pytest.approx(20 * math.log10(positive[-1] / positive[0]))
        if 1.0 in values and values[-1] > 1:
            assert row["eps"] == next(v for v in values if v > 1) - 1

    @by_kind
    def test_values_are_counted_as_they_are_listed(self, format: ScalarFormat) -> None:
        assert count_values(format) == len(format.values())

    def test_a_format_without_1_has_no_distance_to_the_next(self) -> None:
        rows = format_table([FixedPoint(8, 7), FixedPoint(8, 6), Codebook([0.5, 2.0]), Codebook([1.0, 2.5])])
        assert [row["eps"] for row in rows] == [None, 2.0**-6, None, 1.5]

    def test_values_without_zero_have_both_signs(self) -> None:
        format = FloatingPoint(3, 2, specials="none", subnormals=False, zero=False)
        assert count_values(format) == len(format.values()) == 64

    def test_every_named_format_has_a_row_with_the_same_keys_and_a_source(self) -> None:
        rows = format_table()
        assert [row["name"] for row in rows] == list(named_formats())
        assert {"E4M3", "NF4", "MXFP4", "NVFP4", "INT8"} <= {row["name"] for row in rows}
        assert len({tuple(row) for row in rows}) == 1
        assert all(row["source"] for row in rows)
        json.dumps(rows, allow_nan=False)

    def test_a_new_row_appears_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(names.ROWS, "NEW", names.ROWS["E4M3"])  # which is undone, with what follows
        format = names.row("NEW", FloatingPoint(4, 2), "A paper", "For tests.")
        (row,) = (row for row in format_table() if row["name"] == "NEW")
        assert row["max"] == format.max == 224.0 and row["source"] == "A paper" and names.name_of(format) == "NEW"
        assert "### NEW\n\nFor tests. `FloatingPoint(exp=4, man=2)`." in page() and "pictures/new.svg" in page()

    @pytest.mark.parametrize(
        "call",
        [
            "MX(element=E2M1, block_size=24)",
            "TwoLevel(element=E2M1, scale=E5M2)",
            "Scaled(E4M3, CurrentMaximum(tile=Channel(0)))",
            "Scaled(INT8, CurrentMaximum(scale=E8M0))",
            "Scaled(E4M3, PowerOfTwo(-3))",
        ],
    )
    def test_in_a_format_without_a_name_its_element_and_its_scale_go_by_theirs(self, call: str) -> None:
        assert repr(eval(call, dict(vars(lptensor)))) == call

    @pytest.mark.parametrize("format", [FloatingPoint(4, 2), BlockFloatingPoint(4), Posit(6)], ids=repr)
    def test_a_row_without_a_source_shows_none(self, format: Format, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(names.ROWS, "NEW", names.Row(format))
        assert format_table({"NEW": format})[0]["source"] is None
        assert format_table({"mine": format})[0]["source"] == format.kind_source

    def test_a_block_format_shows_its_elements(self) -> None:
        row = row_of(BlockFloatingPoint(5))
        assert (row["kind"], row["bits"], row["max"], row["eps"], row["values"]) == ("block", 5, 1.875, 0.125, 31)
        for format in (blocks.MXFP8_E5M2, blocks.NVFP4):
            element = row_of(format.element)
            assert row_of(format) == row_of(format) | {
                key: element[key] for key in ("bits", "max", "values", "eps", "binades", "specials")
            }
            assert row_of(format)["overflow"] == "saturate"

    def test_the_picture_of_ranges_without_an_end_and_without_a_length(self) -> None:
        rows = format_table([FixedPoint(8, 4, clamp=False), FixedPoint(1, 0)])
        bars = rows.plot(__import__("matplotlib.figure").figure.Figure().subplots()).patches
        assert [(bar.get_x(), bar.get_width()) for bar in bars] == [(-4.0, 132.0), (0.0, 0.0)]

    def test_names_may_be_given(self) -> None:
        rows = format_table({"mine": FloatingPoint(3, 3), "yours": E4M3})
        assert [(row["name"], row["bits"]) for row in rows] == [("mine", 7), ("yours", 8)]
        assert [row["name"] for row in format_table([FloatingPoint(8), Posit(8)])] == ["E5M2", "Posit(nbits=8)"]

    def test_it_prints_within_a_terminal_and_names_the_columns_that_it_leaves_out(self) -> None:
        rows = format_table()
        lines = str(rows).splitlines()
        assert max(map(len, lines)) <= 80
        shown, left_out = lines[0].split(), " ".join(lines[len(rows) + 1 :])
        assert {"name", "bits", "max"} < set(shown)
        assert [key for key in rows[0] if key not in shown and key not in left_out] == []
        assert str(rows.only("source", "name")).splitlines()[0].split() == ["source", "name"]
        with pytest.raises(ValueError, match="no column 'nam'; the rows have name, kind, "):
            rows.only("nam")

    def test_what_is_no_format_is_named(self) -> None:
        with pytest.raises(TypeError, match="expected a number format such as .* got 'E4M3'"):
            format_table({"E4M3": "E4M3"})  # type: ignore[dict-item]

    @pytest.mark.parametrize("format", [*KINDS, FixedPoint(8, -2), FixedPoint(8, 7), FixedPoint(8, 6)], ids=repr)
    def test_eps_is_the_step_from_one_to_the_next_value(self, format: Any) -> None:
        values = format.values().tolist()
        above = [value for value in values if value > 1]
        assert row_of(format)["eps"] == (above[0] - 1 if above and 1.0 in values else None)

    def test_there_is_no_eps_without_one(self) -> None:
        assert row_of(FixedPoint(8, -2))["eps"] is row_of(FixedPoint(8, -2, clamp=False))["eps"] is None

    def test_some_of_the_rows_print_and_are_drawn_as_all_are(self) -> None:
        rows = format_table([E4M3, FP16, BF16])
        some = rows[:2]
        assert isinstance(some, study.Rows) and list(some) == list(rows)[:2] and rows[-1]["name"] == "BF16"
        assert str(some).splitlines()[-1] == str(rows).splitlines()[-1]  # of the columns not shown
        assert [text.get_text() for text in some.plot(AXES).get_yticklabels()] == ["E4M3", "FP16"]


class TestNumberLine:
    @by_listed
    def test_a_row_for_each_value_with_its_code_and_the_gap_behind_it(self, format: Any) -> None:
        rows, values = number_line(format), format.values().tolist()
        assert [row["value"] for row in rows] == values
        codes = torch.tensor([row["code"] for row in rows])
        assert decode(codes, format).double().tolist() == values
        assert [row["gap"] for row in rows] == [b - a for a, b in itertools.pairwise(values)] + [None]

    @pytest.mark.parametrize("format", [E5M2, E4M3, E5M2FNUZ, E8M0, INT4, E2M1, P3109(8, 4), Posit(8)], ids=repr)
    def test_no_finite_code_is_missing(self, format: Any) -> None:
        every = decode(torch.arange(2**format.bits), format)
        assert [row["value"] for row in number_line(format)] == sorted(set(every[every.isfinite()].tolist()))

    @pytest.mark.parametrize(("format", "dtype"), ML_DTYPES.items(), ids=str)
    def test_subnormals_are_those_of_the_type(self, format: Format, dtype: Any) -> None:
        least = float(ml_dtypes.finfo(dtype).smallest_normal)
        for row in number_line(format):
            kind = "zero" if row["value"] == 0 else "subnormal" if abs(row["value"]) < least else "normal"
            assert row["kind"] == kind

    @pytest.mark.parametrize("format", [INT8, NF4, Posit(8), LogNumber(6), BlockFloatingPoint(4)], ids=repr)
    def test_without_subnormals_there_are_values_and_zero(self, format: Format) -> None:
        assert {row["kind"] for row in number_line(format)} == {"value", "zero"}

    @pytest.mark.parametrize(
        ("format", "beyond"),
        [(E5M2, "inf"), (E4M3, "saturate"), (E4M3FNUZ, "nan"), (INT8, "saturate"), (NF4, "saturate"), (HIF8, "inf")],
        ids=str,
    )
    def test_both_ends_say_what_lies_beyond(self, format: Format, beyond: str) -> None:
        rows = number_line(format)
        assert [row["beyond"] for row in rows] == [beyond, *[None] * (len(rows) - 2), beyond]

    @pytest.mark.parametrize("format", [E8M0, UDYNAMIC8, FixedPoint(4, 0, signed=False)], ids=repr)
    def test_a_format_without_sign_has_one_end(self, format: Format) -> None:
        *others, top = number_line(format)
        assert top["beyond"] and not any(row["beyond"] for row in others)

    def test_blocks_saturate_whatever_their_element_does(self) -> None:
        assert number_line(blocks.MXFP8_E5M2)[-1]["beyond"] == "saturate"

    @pytest.mark.parametrize(("lo", "hi"), [(-1.0, 2.0), (0.3, 0.3), (-math.inf, -0.0), (0.0, 448.0), (3.0, 2.0)])
    def test_a_part_is_the_rows_between_its_ends(self, lo: float, hi: float) -> None:
        part = number_line(E4M3, lo, hi)
        expected = [row for row in number_line(E4M3) if lo <= row["value"] <= hi]
        assert [(r["code"], r["value"], r["kind"]) for r in part] == [
            (r["code"], r["value"], r["kind"]) for r in expected
        ]

    @pytest.mark.parametrize(
        ("lo", "hi"), [(-(2.0**-147), 2.0**-148), (1 - 2.0**-22, 1 + 2.0**-21), (-3.0, -3 + 2.0**-20), (3.3e38, 3.3e38)]
    )
    def test_a_part_of_float32_is_what_nextafter_walks_through(self, lo: float, hi: float) -> None:
        walked, x = [], np.nextafter(np.float32(lo), np.float32(-np.inf))
        while float(x) <= hi:
            walked += [float(x)] if float(x) >= lo else []
            x = np.nextafter(x, np.float32(np.inf))
        rows = number_line(FP32, lo, hi)
        assert [row["value"] for row in rows] == sorted(set(walked))
        bits = np.array(sorted(set(walked)), np.float32).view(np.uint32) if walked else np.empty(0, np.uint32)
        assert [row["code"] for row in rows if row["value"]] == [int(b) for b in bits if b & 0x7FFFFFFF]

    def test_a_part_of_wide_fixed_point_and_wide_posits(self) -> None:
        assert [r["value"] for r in number_line(FixedPoint(24, 8), -(2.0**-8), 2.0**-7)] == [
            k / 256 for k in (-1, 0, 1, 2)
        ]
        ends = [float(posit.value(c, 20, 2) or 0) for c in (2**18 - 2, 2**18 + 3)]
        part = number_line(Posit(20), *ends)
        assert [r["code"] for r in part] == list(range(2**18 - 2, 2**18 + 4))
        assert [r["value"] for r in part] == [float(posit.value(r["code"], 20, 2) or 0) for r in part]

    def test_a_wide_format_asks_for_ends(self) -> None:
        with pytest.raises(ValueError, match=r"has 2\*\*32 codes; give both lo= and hi="):
            number_line(FP32, 0)
        with pytest.raises(ValueError, match=r"has 8388609 values from 1 to 2; take a part"):
            number_line(FP32, 1, 2)
        with pytest.raises(ValueError, match=rf"has {2**20 + 1} values"):  # one more than are listed
            number_line(FP32, 1, 1 + 2.0**-3)
        assert number_line(E2M1, -(2**70), 2**70) == number_line(E2M1)
        with pytest.raises(ValueError, match="ends of a number line are numbers, got NaN"):
            number_line(E4M3, math.nan)


def parsed(format: FloatingPoint, fields: dict[str, str]) -> float:
    """The value of a floating-point code by the definition: IEEE 754-2019 section 3.4."""
    exponent, fraction = int(fields["exponent"], 2), int(fields.get("mantissa", "0"), 2) / 2**format.man
    sign = (-1.0) ** int(fields.get("sign", "0"))
    if exponent == 0:
        return sign * 2.0 ** (1 - format.bias) * fraction
    return sign * 2.0 ** (exponent - format.bias) * (1 + fraction)


class TestBitLayout:
    @pytest.mark.parametrize("format", [*named_formats().values(), *LISTED, BlockFloatingPoint(9), TF32], ids=repr)
    def test_the_fields_fill_the_code(self, format: Format) -> None:
        element: Any = element_of(format)
        rows = [row for row in bit_layout(format) if not row["shared"]]
        assert sum(row["bits"] for row in rows) == element.bits == sum(len(row["code"]) for row in rows)
        assert (len(rows) < len(bit_layout(format))) == isinstance(format, BlockFormat)

    @pytest.mark.parametrize("format", [E5M2, E4M3, FP16, BF16, FP32, E2M1, FloatingPoint(4, 3, signed=False)], ids=str)
    @pytest.mark.parametrize("value", [0.75, 1.0, 2.0, 6.0, 0.0])
    def test_the_fields_of_a_float_say_its_value(self, format: FloatingPoint, value: float) -> None:
        rows = bit_layout(format, value)
        assert [row["bits"] for row in rows] == [1] * format.signed + [format.exp, format.man]
        assert parsed(format, {row["field"]: row["code"] for row in rows}) == (
            1.0 if (value, format) == (0.75, E2M1) else value
        )

    def test_the_fields_of_fixed_point_are_split_at_the_point(self) -> None:
        def widths(format: Format) -> dict[str, int]:
            return {row["field"]: row["bits"] for row in bit_layout(format)}

        assert widths(FixedPoint(8, 3)) == {"sign": 1, "integer": 4, "fraction": 3}
        assert widths(INT8) == widths(FixedPoint(8, -2)) == {"sign": 1, "integer": 7}
        assert widths(FixedPoint(8, 7)) == widths(FixedPoint(8, 12)) == {"sign": 1, "fraction": 7}
        assert widths(FixedPoint(8, 3, signed=False)) == {"integer": 5, "fraction": 3}
        assert widths(P3109(8, 3)) == {"sign": 1, "exponent": 5, "mantissa": 2}
        assert widths(P3109(7, 7)) == {"sign": 1, "magnitude": 6}
        assert widths(E8M0) == {"exponent": 8}

    @pytest.mark.parametrize("es", [0, 2, 3])
    def test_the_fields_of_a_posit_are_those_of_the_standard(self, es: int) -> None:
        for code in range(1, 128):
            value = float(posit.value(code, 8, es) or 0)
            rows, negative = bit_layout(Posit(8, es), value), bit_layout(Posit(8, es), -value)
            fields = {row["field"]: row["code"] for row in rows}
            run = fields["regime"].rstrip("0") if fields["regime"][0] == "1" else fields["regime"].rstrip("1")
            regime = len(run) - 1 if run[0] == "1" else -len(run)
            exponent = int(fields.get("exponent", "").ljust(es, "0") or "0", 2)
            fraction = fields.get("fraction", "")
            mantissa = 1 + (int(fraction, 2) / 2 ** len(fraction) if fraction else 0)
            assert 2.0 ** (regime * 2**es + exponent) * mantissa == value
            assert [row["bits"] for row in negative] == [row["bits"] for row in rows]
            assert int("".join(row["code"] for row in negative), 2) == 256 - code
        for special, code in ((0.0, "0000000"), (math.nan, "0000000"), (2.0 ** (6 * 2**es), "1111111")):
            assert [(row["bits"], row["code"]) for row in bit_layout(Posit(8, es), special)][1:] == [(7, code)]

    def test_a_block_formats_scale_comes_first(self) -> None:
        def first(format: Format) -> tuple[str, int | None]:
            row = bit_layout(format)[0]
            assert row["shared"] and row["code"] is None
            return row["field"], row["bits"]

        assert first(blocks.MXFP4) == ("shared exponent", 8)
        assert first(blocks.NVFP4) == ("shared scale", 8)
        assert first(BlockFloatingPoint(8)) == ("shared exponent", None)
        assert [row["field"] for row in bit_layout(BlockFloatingPoint(8))[1:]] == ["sign", "magnitude"]

    def test_a_block_format_of_ones_own_says_what_its_scales_are(self) -> None:
        class Unbounded(BlockFormat):
            element = E2M1
            tile = blocks.MX(E2M1, 4).tile

        class Short(Unbounded):
            scale = E3M2

        first = [bit_layout(format)[0] for format in (Unbounded(), Short())]
        assert [(row["field"], row["bits"]) for row in first] == [("shared exponent", None), ("shared scale", 6)]
        assert study.bits_per_value(Unbounded(), (3, 6)) == 4 + 8 / 3
        assert study.bits_per_value(Short(), (3, 6)) == 4 + 6 / 3


@pytest.fixture
def ax() -> Iterator[Any]:
    yield need("matplotlib.figure").Figure().subplots()


class TestPlots:
    def test_ticks_stand_at_the_values_of_their_kind(self, ax: Any) -> None:
        rows = number_line(E4M3)
        plot_number_line(rows, ax)
        drawn = {line.get_label(): sorted(set(x for x in line.get_xdata() if x == x)) for line in ax.get_lines()}
        for kind in ("normal", "subnormal"):
            assert drawn[f"{kind}s"] == [row["value"] for row in rows if row["kind"] == kind]
        assert drawn["zero"] == [0]

    def test_kinds_differ_in_form_as_well_as_in_colour(self, ax: Any) -> None:
        plot_number_line(number_line(E4M3), ax)
        lines = {line.get_label(): line for line in ax.get_lines()}
        heights = {name: np.nanmax(lines[name].get_ydata()) for name in ("normals", "subnormals")}
        assert heights["subnormals"] == 0 < heights["normals"]
        assert lines["normals"].get_color() != lines["subnormals"].get_color()

    @pytest.mark.parametrize(("format", "markers"), [(E5M2, "<>"), (E4M3, "ss"), (E4M3FNUZ, "xx")], ids=str)
    def test_marks_at_the_ends_say_what_lies_beyond(self, format: Format, markers: str, ax: Any) -> None:
        plot_number_line(number_line(format), ax)
        marks = {line.get_xdata()[0]: line.get_marker() for line in ax.get_lines() if line.get_ydata()[0] > 1}
        top = row_of(format)["max"]
        assert marks == {-top: markers[0], top: markers[1]}

    def test_a_log_axis_has_the_positive_values(self, ax: Any) -> None:
        plot_number_line(number_line(E4M3), ax, log=True)
        drawn = {x for line in ax.get_lines() for x in line.get_xdata() if x == x}
        assert drawn == {row["value"] for row in number_line(E4M3) if row["value"] > 0}
        with pytest.raises(ValueError, match="at least one value above zero"):
            plot_number_line(number_line(E4M3, -1, 0), ax, log=True)

    def test_a_box_for_each_bit_with_its_digit(self, ax: Any) -> None:
        rows = bit_layout(FP16, 0.75)
        plot_bit_layout(rows, ax)
        boxes = sorted(patch.get_x() for patch in ax.patches)
        assert boxes == list(range(16))
        texts = [text.get_text() for text in ax.texts]
        assert "".join(t for t in texts if t in ("0", "1")) == "".join(row["code"] for row in rows)
        assert {"sign", "exponent", "mantissa", "1 bit", "5 bits", "10 bits"} <= set(texts)
        assert len({patch.get_facecolor() for patch in ax.patches}) == 3

    @pytest.mark.parametrize("plot", [plot_number_line, plot_bit_layout])
    def test_without_matplotlib_the_extra_is_named(self, plot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        for loaded in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, "matplotlib", None)
        with pytest.raises(MissingExtra, match=r"pip install 'lptensor\[train\]'"):
            plot(number_line(E2M1) if plot is plot_number_line else bit_layout(E2M1))


@pytest.mark.parametrize("values", [[-1.0, -0.5], [-1.0, 0.0], [0.0]])
def test_a_codebook_without_positive_values_has_rows_and_pictures(values: list[float]) -> None:
    format = Codebook(values)
    rows = format_table([format])
    assert [rows[0][key] for key in ("smallest_subnormal", "binades", "decibels")] == [None] * 3
    rows.plot(need("matplotlib.figure").Figure().subplots())
    line = number_line(format)
    assert [row["value"] for row in line] == values
    assert [row["beyond"] for row in line] == ["saturate"] * len(values)
    line.plot(need("matplotlib.figure").Figure().subplots())
    found = exponent_histogram(torch.tensor([-4.0, -1.0, -0.125]), format)
    middle = "overflow normal underflow".split() if values[0] else ["underflow"] * 3
    assert [row["region"] for row in reversed(found)] == middle
    found.plot(need("matplotlib.figure").Figure().subplots())


def test_the_range_of_a_codebook_of_negative_values_is_negative() -> None:
    rows = relative_error(Codebook([-1.0, -0.5]))
    assert rows[0]["x"] == -0.125 and rows[-1]["x"] == -4.0
    assert {row["region"] for row in rows} == {"normal", "overflow"}
    rows.plot(need("matplotlib.figure").Figure().subplots())
    with pytest.raises(ValueError, match="no value but zero"):
        relative_error(Codebook([0.0]))


def test_the_most_negative_value_is_no_overflow() -> None:
    """Of two's complement, which lies a binade above the largest."""
    found = exponent_histogram(torch.tensor([-128.0, -256.0, 127.0]), INT8)
    assert {row["binade"]: row["region"] for row in found} == {6: "normal", 7: "normal", 8: "overflow"}


MODEL = torch.nn.Linear(1, 1)
ONES = torch.ones(3)
AXES = need("matplotlib.figure").Figure().subplots()
FLAGS: dict[str, Callable[[Any], object]] = {
    "progress": lambda yes: study.accumulation_error(ONES, BF16, progress=yes),
    "progress of sums": lambda yes: study.accumulation_error(ONES, BF16, "stochastic", progress=yes),
    "progress of runs": lambda yes: study.bisect(lambda: 1.0, progress=yes),
    "progress of layers": lambda yes: study.sensitivity(MODEL, lambda m: m(torch.ones(1, 1)).sum(), E4M3, progress=yes),
    "progress of a search": lambda yes: study.format_search(MODEL, lambda m: 1.0, [E4M3, BF16], progress=yes),
    "quantize_terms": lambda yes: study.accumulation_error(ONES, BF16, quantize_terms=yes),
    "at_once": lambda yes: study.replicas(lambda x: x, ONES.to_lp(BF16, "stochastic"), at_once=yes),  # type: ignore[attr-defined]
    "log": lambda yes: study.plot_number_line(number_line(E4M3), AXES, log=yes),
    "log of curves": lambda yes: study.plot_training({"a": [1.0]}, AXES, log=yes),
}


@pytest.mark.parametrize("name", FLAGS)
def test_a_flag_is_true_or_false(name: str) -> None:
    for given in ("no", 0, None):
        with pytest.raises(TypeError, match=f"^{name.split()[0]} must be True or False, got {given!r}"):
            FLAGS[name](given)


LINES = [{"bits": 4.0, "loss": 0.5, "rules": {}}]
UNFIT: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "trials": (lambda: study.rounding_bias("nearest", trials=-3), ValueError, "trials must be from 0 .* got -3"),
    "count": (lambda: study.relative_error(E4M3, count=0), ValueError, "count must be from 1 .* got 0"),
    "searches": (lambda: study.exactness(E4M3, "mul", trials=-1), ValueError, "trials must be from 0 .* got -1"),
    "rate": (lambda: study.faults("x"), TypeError, "rate must be a number, got 'x'"),  # type: ignore[arg-type]
    "run": (lambda: study.bisect(3), TypeError, "run must be a function .* got 3"),  # type: ignore[arg-type]
    "loss": (lambda: study.sensitivity(MODEL, 3, E4M3), TypeError, "loss must be a function"),  # type: ignore[arg-type]
    "searched": (
        lambda: study.format_search(MODEL, 3, [E4M3, BF16]),  # type: ignore[arg-type]
        TypeError,
        "loss must be a function",
    ),
    "model": (lambda: study.bisect(lambda: 1.0, 3), TypeError, "model must be a torch.nn.Module, got int"),  # type: ignore[arg-type]
    "share": (lambda: study.bisect(lambda: 1.0, recovered="x"), TypeError, "recovered must be a number, got 'x'"),  # type: ignore[arg-type]
    "no share": (lambda: study.bisect(lambda: 1.0, recovered=0), ValueError, "above 0 and up to 1, got 0"),
    "share above one": (lambda: study.bisect(lambda: 1.0, recovered=1.5), ValueError, "above 0 and up to 1, got 1.5"),
    "target": (lambda: study.bisect(lambda: 1.0, target="x"), TypeError, "target must be a number, got 'x'"),  # type: ignore[arg-type]
    "replica": (lambda: study.replicas(3, ONES), TypeError, "f must be a function that returns one tensor, got 3"),  # type: ignore[arg-type]
    "seed": (lambda: study.exactness(FP16, "fma", seed="x"), TypeError, "seed must be an integer .* got 'x'"),  # type: ignore[arg-type]
    "words": (lambda: study.faults(0.1, bits="yes"), TypeError, "a bit must be an integer .* got 'y'"),  # type: ignore[arg-type]
    "negative bit": (lambda: study.faults(0.1, bits=[-1]), ValueError, "a bit must be from 0 to 63, got -1"),
    "path": (lambda: study.faults(0.1, model=MODEL, path=()), TypeError, r"path is a shell pattern .* got \(\)"),  # type: ignore[arg-type]
    "rules": (lambda: study.Front(LINES).rules(bits="8"), TypeError, "bits must be a number, got '8'"),  # type: ignore[arg-type]
    "rules of a loss": (lambda: study.Front(LINES).rules(loss="8"), TypeError, "loss must be a number"),  # type: ignore[arg-type]
    "births": (lambda: study.Shadow().births(-1), ValueError, "count must be from 0 .* got -1"),
    "growths": (lambda: study.Shadow().growths("2"), TypeError, "count must be an integer .* got '2'"),  # type: ignore[arg-type]
    "twin": (lambda: study.Shadow().twin(None), TypeError, "expected a tensor, got NoneType"),  # type: ignore[arg-type]
    "census": (lambda: study.Census("E4M3"), TypeError, "expected a number format .* got 'E4M3'"),  # type: ignore[arg-type]
    "shape": (lambda: study.bits_per_value(MXFP4, (-4, 8)), ValueError, "a size must be from 0 .* got -4"),
    "no formats": (lambda: study.format_table([]), ValueError, r"at least one format, got \[\]"),
    "no formats of a tensor": (lambda: study.sqnr(ONES, []), ValueError, "at least one format"),
    "no formats of a model": (
        lambda: study.sensitivity(MODEL, lambda m: m.bias, {}),
        ValueError,
        "at least one format",
    ),
    "bits": (lambda: study.bits_per_value("x"), TypeError, "expected a number format"),  # type: ignore[arg-type]
    "formats": (lambda: study.format_table(3), TypeError, "expected a number format"),  # type: ignore[arg-type]
    "end": (lambda: study.number_line(E4M3, "a"), TypeError, "must be a number, got 'a'"),  # type: ignore[arg-type]
    "value": (lambda: study.bit_layout(E4M3, "a"), TypeError, "value must be a number"),  # type: ignore[arg-type]
    "curves": (lambda: study.plot_training({"a": 3}), TypeError, "lists of values by name"),  # type: ignore[dict-item]
}


@pytest.mark.parametrize("name", UNFIT)
def test_an_argument_that_is_none_is_named(name: str) -> None:
    call, kind, says = UNFIT[name]
    with pytest.raises(kind, match=says):
        call()
