"""The command: its tables and what it says to wrong input."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from typer.testing import CliRunner

import lptensor
from lptensor import formats
from lptensor.blocks import MX, BlockFloatingPoint
from lptensor.cli import app
from lptensor.cli.names import _SPELLINGS, parse_format, short
from lptensor.formats import BF16, E4M3, E5M2, FP16, FixedPoint, FloatingPoint, Format
from lptensor.names import ROWS, Row, named_formats
from lptensor.posits import Posit

# Rows with a type of the same name, overflow included; E4M3 is apart, since the row saturates.
ORACLES: dict[str, type] = {
    "BF16": ml_dtypes.bfloat16,
    "FP16": np.float16,
    "E5M2": ml_dtypes.float8_e5m2,
    "E5M2FNUZ": ml_dtypes.float8_e5m2fnuz,
    "E4M3FNUZ": ml_dtypes.float8_e4m3fnuz,
    "E4M3B11FNUZ": ml_dtypes.float8_e4m3b11fnuz,
    "E3M4": ml_dtypes.float8_e3m4,
    "E3M2": ml_dtypes.float6_e3m2fn,
    "E2M3": ml_dtypes.float6_e2m3fn,
    "E2M1": ml_dtypes.float4_e2m1fn,
}


def run(*arguments: str, columns: int = 100) -> str:
    """What the command prints when all is well."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": str(columns)})
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: str) -> str:
    """What the command says to wrong usage, without its frame."""
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "1000"})
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    return result.output


class TestFormats:
    def test_every_row_is_listed(self) -> None:
        table = run("formats")
        rows = [name for name in dir(formats) if isinstance(getattr(formats, name), Format)]
        assert len(rows) > 10
        assert all(any(line.split()[:1] == [name] for line in table.splitlines()) for name in rows)

    def test_a_new_row_appears_by_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ROWS, "E4M2", Row(FloatingPoint(4, 2)))
        assert "E4M2" in run("formats")
        assert parse_format("e4m2") == FloatingPoint(4, 2)

    @pytest.mark.parametrize("columns", [80, 100])
    def test_a_terminal_shows_a_row_per_line(self, columns: int) -> None:
        lines = run("formats", columns=columns).splitlines()
        assert max(map(len, lines)) <= columns
        around = 6  # title, head of 2 lines, rule, note of 2
        assert len([line for line in lines if line.strip()]) == len(named_formats()) + around

    def test_a_pipe_gets_the_width_that_the_table_needs(self) -> None:
        piped = CliRunner().invoke(app, ["formats"], env={"COLUMNS": None}).output
        assert piped == run("formats", columns=100)

    def test_a_narrow_terminal_cuts_nothing_off(self) -> None:
        assert "…" not in run("formats", columns=60)

    @pytest.mark.parametrize("name", ORACLES)
    def test_limits_are_those_of_the_type_of_the_same_name(self, name: str) -> None:
        (row,) = [row for row in json.loads(run("formats", "--json")) if row["name"] == name]
        info = ml_dtypes.finfo(ORACLES[name])
        limits = [row[key] for key in ("bits", "precision", "max", "min", "smallest_normal", "smallest_subnormal")]
        expected = [info.bits, info.nmant + 1, info.max, info.min, info.smallest_normal, info.smallest_subnormal]
        assert limits == [float(value) for value in expected]
        assert math.frexp(row["smallest_normal"])[1] - 1 == row["emin"]
        assert math.frexp(row["max"])[1] - 1 == row["emax"]
        assert ("inf" in row["specials"]) == np.isinf(np.array(np.inf).astype(ORACLES[name]).astype(float))

    def test_json_has_the_same_keys_for_every_row(self) -> None:
        rows = json.loads(run("formats", "--json"))
        assert [row["name"] for row in rows] == list(named_formats())
        assert len({tuple(row) for row in rows}) == 1

    def test_a_posit_has_limits_and_no_exponents(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ROWS, "P8", Row(Posit(8, 1)))
        (row,) = [row for row in json.loads(run("formats", "--json")) if row["name"] == "P8"]
        assert (row["kind"], row["bits"], row["emin"], row["max"]) == ("posit", 8, None, 2**12)

    def test_what_a_format_lacks_is_a_dash(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ROWS, "POSIT8", Row(Posit(8)))
        table = run("formats")
        (posit,) = [line.split() for line in table.splitlines() if line.split()[:1] == ["POSIT8"]]
        assert "-" in posit and "None" not in table

    def test_a_block_format_shows_its_elements(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(ROWS, "BLOCKS", Row(BlockFloatingPoint(8)))
        (row,) = [row for row in json.loads(run("formats", "--json")) if row["name"] == "BLOCKS"]
        assert (row["kind"], row["precision"], row["smallest_normal"]) == ("block", 7, None)


class TestNames:
    @pytest.mark.parametrize(
        ("text", "format"),
        [
            ("e4m3", E4M3),
            (" Fp16 ", FP16),
            ("e5m10", FP16),
            ("e6m9", FloatingPoint(6, 9)),
            ("fixed(8,4)", FixedPoint(8, 4)),
            ("FixedPoint(8, fl=4, clamp=False)", FixedPoint(8, 4, clamp=False)),
            ("floatingpoint(8)", E5M2),
            ("FloatingPoint(4, 3, specials='fn', overflow='saturate')", E4M3),
            ("BlockFloatingPoint(8, dim=0)", BlockFloatingPoint(8, dim=0)),
            ("fixed(8, -2)", FixedPoint(8, -2)),
            ("torch.bfloat16", BF16),
            ("e4m3fn", E4M3),
        ],
    )
    def test_a_text_names_a_format(self, text: str, format: Format) -> None:
        assert parse_format(text) == format

    @pytest.mark.parametrize(
        "format", [*named_formats().values(), FixedPoint(6, 9), BlockFloatingPoint(5, 1, 16), MX(E4M3, 24)]
    )
    def test_what_is_shown_can_be_typed(self, format: Format) -> None:
        assert parse_format(short(format)) == parse_format(repr(format)) == format

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "8",
            "e4m",
            "list(3)",
            "fixed",
            "__import__('os')",
            "fixed(8,4).grid",
            "lp.fixed(8, 4)",
            "a b",
            "float64",
            "int64",
        ],
    )
    def test_what_names_none_is_refused_with_the_known_ones(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"unknown format .*Known: FP32, .*; or eXmY .*MX\(E4M3, 16\)"):
            parse_format(text)

    @pytest.mark.parametrize("text", re.findall(r"\w+\(.+?\)", _SPELLINGS.partition(": ")[2]))
    def test_the_spellings_that_it_names_are_formats(self, text: str) -> None:
        assert isinstance(parse_format(text), Format)

    @pytest.mark.parametrize(("text", "close"), [("e4m3n", "E4M3"), ("pf16", "FP16"), ("FixPoint(8, 4)", "FixedPoint")])
    def test_a_slip_is_met_with_a_suggestion(self, text: str, close: str) -> None:
        with pytest.raises(ValueError, match=f"Did you mean {close}"):
            parse_format(text)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("fixed(8)", "fl"),
            ("fixed('8', 4)", "wl must be"),
            ("fixed(88, 4)", "wl must be from 1 to 53"),
            ("e12m3", "exp must be from 1 to 8"),
            ("fixed(8, open('x'))", "unknown format"),
            ("fixed(8, 2 ** 9)", "got '2 \\*\\* 9'"),
            ("FixedPoint(8, 4, colour=1)", "colour"),
            ("fixed(*[8], 4)", "numbers, names or formats"),
            ("fixed(**{'wl': 8})", "missing a required argument: 'wl'"),
        ],
    )
    def test_wrong_parameters_are_named_and_nothing_is_evaluated(self, text: str, why: str) -> None:
        with pytest.raises(ValueError, match=rf"is not a format: .*{why}"):
            parse_format(text)


class TestRound:
    def test_neighbours_choice_and_reason_are_shown(self) -> None:
        (line,) = [line for line in run("round", "0.1", "--format", "e4m3").splitlines() if "nearer" in line]
        assert [cell.strip() for cell in line.strip("│").split("│")] == [
            "0.1",
            "0.09375",
            "0.1015625",
            f"{0.1 - 0.09375:.4g}",
            f"{0.1015625 - 0.1:.4g}",
            "0.1015625",
            "nearer",
        ]

    def test_values_may_be_negative_hexadecimal_or_special(self) -> None:
        output = run("round", "-0.1", "0x1.8p-3", "-inf", "nan", "-0", "-1e-3", "-0x1p-2", "--format", "E4M3")
        rows = [line.split("│")[1].strip() for line in output.splitlines() if line.startswith("│")]
        assert rows == ["-0.1", "0.1875", "-inf", "nan", "-0.0", "-0.001", "-0.25"]

    def test_options_may_come_first(self) -> None:
        assert "0.1015625" in run("round", "--format", "e4m3", "--rounding", "up", "0.1")

    def test_stochastic_rounding_shows_chances_and_repeats(self) -> None:
        arguments = ("round", "17", "16.5", "--format", "e4m3", "--rounding", "stochastic", "--seed", "3")
        output = run(*arguments)
        assert "50 %" in output and "25 %" in output and "75 %" in output
        assert run(*arguments) == output

    @pytest.mark.parametrize(
        "arguments", [("0.1", "-2.7", "1e9"), ("0.1", "1e9", "--hex"), ("0.1", "--rounding", "up")]
    )
    def test_no_number_is_cut_on_a_terminal_of_80_columns(self, arguments: tuple[str, ...]) -> None:
        shown = set(run("round", *arguments, "--format", "e4m3", columns=80).replace("│", " ").split())
        write = float.hex if "--hex" in arguments else repr
        for number in [float(a) for a in arguments if a[-1].isdigit()] + [0.09375, 0.1015625]:
            assert write(number) in shown

    def test_chances_are_shown_on_narrow_terminals_too(self) -> None:
        for columns in range(60, 120, 4):
            output = run("round", "-0.1", "1e-3", "--format", "e4m3", "--rounding", "stochastic", columns=columns)
            assert "P(lower)" in output and "P(upper)" in output

    def test_narrow_terminals_lack_both_distances_or_none(self) -> None:
        tables = [run("round", "0.1", "-2.7", "--format", "e4m3", columns=columns) for columns in range(60, 120, 4)]
        assert {"to lower" in table for table in tables} == {True, False}
        assert all(("to lower" in table) == ("to upper" in table) for table in tables)

    def test_what_never_happens_has_a_chance_too(self) -> None:
        output = run("round", repr(16 + 2.0**-40), "--format", "e4m3", "--rounding", "stochastic")
        assert "100 %" in output and " 0 %" in output

    def test_the_step_beyond_the_largest_value_is_explained_where_it_is_shown(self) -> None:
        assert "in brackets" in run("round", "450", "--format", "e4m3")
        assert "in brackets" not in run("round", "440", "--format", "e4m3")

    def test_numbers_in_hexadecimal(self) -> None:
        assert "0x1.a000000000000p-4" in run("round", "0.1", "--format", "e4m3", "--hex", columns=200)

    def test_a_detour_through_float32_is_told_where_it_matters(self) -> None:
        x = 1.0625 + 2.0**-40  # just above the middle; in float32 it is the middle, a tie to 1.0
        assert "As float32" in run("round", repr(x), "--format", "e4m3")
        assert "As float32" not in run("round", "0.1", "nan", "--format", "e4m3")

    def test_a_mode_that_a_format_does_not_know_is_wrong_usage(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object) -> None:
            raise ValueError("codebooks have no odd values")

        monkeypatch.setattr("lptensor.round", refuse)
        assert "codebooks have no odd values" in refused("round", "1", "--format", "e4m3", "--rounding", "odd")

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("0.1",), "Missing option '--format'"),
            (("--format", "e4m3"), "Missing argument"),
            (("x", "--format", "e4m3"), "'x' is not a number"),
            (("0x1.8q", "--format", "e4m3"), "'0x1.8q' is not a number"),
            (("0x1p99999", "--format", "e4m3"), "beyond the largest float64"),
            (("1e400", "--format", "e4m3"), "'1e400' is beyond the largest float64"),
            (("1", "--format", "e4m33x"), "unknown format 'e4m33x'. Did you mean E4M3?"),
            (("1", "--format", "fixed(80,4)"), "wl must be from 1 to 53"),
            (
                ("1", "--format", "e4m3", "--rounding", "nearst"),
                "rounding 'nearst' (did you mean 'nearest'?); known:",
            ),
            (("1", "--format", "e4m3", "--bits=3"), "'--bits=3' is not an option"),
            (("1", "--format", "e4m3", "--seed", "x"), "expected a whole number from 0 to 9223372036854775807, got x"),
        ],
    )
    def test_wrong_input_is_named(self, arguments: tuple[str, ...], says: str) -> None:
        assert says in refused("round", *arguments)


def test_the_module_runs_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "lptensor", "round", "-0.1", "--format", "e4m3"]
    package = str(Path(formats.__file__).parents[1])
    result = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={"PYTHONPATH": package, "COLUMNS": "100"}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert "-0.1015625" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_warning_of_many_steps_is_shown_once() -> None:
    code = (
        "import warnings, lptensor.cli.command as command\n"
        "def steps():\n"
        "    for _ in range(3):\n"
        "        warnings.warn('rounding is slow here', RuntimeWarning)\n"
        "        with warnings.catch_warnings(): pass  # forgets what was shown, as torch does\n"
        "command.app = steps\n"
        "command.main()"
    )
    package = str(Path(formats.__file__).parents[1])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=package, check=True)
    assert result.stderr.count("RuntimeWarning: rounding is slow here") == 1


def test_importing_the_package_leaves_the_commands_libraries_out() -> None:
    code = "import sys, lptensor; print([m for m in ('typer', 'rich', 'matplotlib', 'sklearn') if m in sys.modules])"
    package = str(Path(formats.__file__).parents[1])
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=package, check=True)
    assert result.stdout == "[]\n"


def test_the_version_is_printed_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(vars(lptensor), "__version__", "1.2.3")
    assert run("--version") == "lptensor 1.2.3\n"


def test_no_subcommand_shows_the_help() -> None:
    output = refused()
    assert all(name in output for name in ("formats", "round", "train"))


def test_a_format_that_a_recipe_cannot_take_is_refused_before_anything_trains(tmp_path: Path) -> None:
    said = refused("train", "--recipe", "convert", "--format", "e8m0", "--out", str(tmp_path / "out"))
    assert "--format" in said and "'convert' cannot take it" in said and "no negative numbers" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("text", "got"), [("MX(E4M3, 1/0)", "1 / 0"), ("fixed(*[8, 4])", "*[8, 4]")])
def test_arguments_that_are_no_literals_are_shown(text: str, got: str) -> None:
    with pytest.raises(ValueError, match="arguments are numbers, names or formats") as error:
        parse_format(text)
    assert got in str(error.value)


@pytest.mark.skipif(sys.platform != "linux", reason="a device that is always full")
def test_output_that_has_no_room_is_a_line_and_not_a_traceback() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lptensor", "formats"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1 and done.stderr == "lptensor: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("option", [("--format", "e4m3"), ("--rounding", "nearest")])
@pytest.mark.parametrize("recipe", ["mxfp4", "papers"])
def test_a_paper_keeps_its_formats(recipe: str, option: tuple[str, str]) -> None:
    assert "leave --format and --rounding out" in refused("train", "--recipe", recipe, *option)
