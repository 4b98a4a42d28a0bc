"""The train command: what it prints and writes, and what it says to wrong input."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from lptensor.cli import app
from lptensor.demo.data import Digits
from lptensor.demo.experiments import EXPERIMENTS
from lptensor.demo.papers import PAPERS
from lptensor.demo.recipes import RECIPES
from lptensor.demo.run import Run, train
from lptensor.demo.task import TEXT

BY_NAME = {recipe.name: recipe for recipe in RECIPES}


def invoke(*arguments: str, columns: int = 100) -> Any:
    return CliRunner().invoke(app, ("train", *arguments), env={"COLUMNS": str(columns)})


class TestCommand:
    QUICK = ("--epochs", "1", "--seeds", "2", "--batch-size", "450", "--lr", "0.1")

    def test_it_writes_a_table_curves_and_json(self, tmp_path: Path) -> None:
        out = tmp_path / "new" / "folder"
        result = invoke(*self.QUICK, "--recipe", "poster", "--out", str(out))
        assert result.exit_code == 0, result.output
        assert sorted(path.name for path in out.iterdir()) == ["curves.png", "results.json"]
        assert (out / "curves.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        kept = json.loads((out / "results.json").read_text())
        assert [recipe["name"] for recipe in kept["recipes"]] == ["fp32", "poster"]
        assert kept["settings"] == {"epochs": 1, "batch_size": 450, "lr": 0.1, "seeds": [0, 1]}
        for recipe in kept["recipes"]:
            shown = f"{recipe['accuracy']:.2f} ± {recipe['deviation']:.2f}"
            assert any(recipe["name"] in line and shown in line for line in result.stdout.splitlines())

    def test_it_trains_on_one_thread_and_gives_the_others_back(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        threads = []

        def watched(*arguments: Any, **named: Any) -> Run:
            threads.append(torch.get_num_threads())
            return train(*arguments, **named)

        monkeypatch.setattr("lptensor.cli.train.train_once", watched)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        try:
            assert invoke(*self.QUICK, "--recipe", "fp32", "--out", str(tmp_path)).exit_code == 0
            threads.append(torch.get_num_threads())
        finally:
            torch.set_num_threads(before)
        assert threads == [1, 1, 2]

    def test_the_same_seed_gives_the_same_accuracies(self, tmp_path: Path) -> None:
        arguments = (*self.QUICK, "--recipe", "poster", "--recipe", "convert", "--seed", "4")
        kept = []
        for name in ("a", "b"):
            assert invoke(*arguments, "--out", str(tmp_path / name)).exit_code == 0
            kept.append(json.loads((tmp_path / name / "results.json").read_text()))
        runs = [
            [(run["seed"], run["accuracies"], run["losses"]) for r in k["recipes"] for run in r["runs"]] for k in kept
        ]
        assert runs[0] == runs[1]
        assert [seed for seed, _, _ in runs[0]] == [4, 5] * 3

    def test_format_and_rounding_replace_the_recipes_own(self) -> None:
        table = invoke("--list", "--format", "e4m3", "--rounding", "nearest").stdout
        assert "Recipes of papers" not in table and "Experiments" not in table
        rows = [line.split() for line in table.splitlines() if "E4M3" in line]
        assert [row[0] for row in rows] == ["poster", "narrow", "convert"]  # what has become the same is listed once
        assert [row[2:] for row in rows] == [["E4M3", sums, "nearest", "E4M3"] for sums in ("FP16", "E4M3", "FP16")]

    def test_the_list_names_every_recipe_and_writes_nothing(self, tmp_path: Path) -> None:
        result = invoke("--list", "--out", str(tmp_path / "none"))
        rows = [line.split() for line in result.stdout.splitlines() if line.strip()]
        heads = ("Recipes", "Experiments", "recipe")
        named = [row[0] for row in rows if row[0] not in heads and not row[0].startswith("─")]
        assert named == [*BY_NAME, *(row.name for row in (*PAPERS, *EXPERIMENTS))]
        assert max(map(len, result.stdout.splitlines())) <= 100
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("arguments", "says"),
        [
            (("--recipe", "posta"), "unknown recipe 'posta'; known: all, papers, experiments, fp32, poster,"),
            (("--format", "fp33"), "unknown format 'fp33'. Did you mean"),
            (("--format", "fixed(99, 4)"), "wl must be from 1 to 53"),
            (("--rounding", "sr"), "unknown rounding 'sr'; known: nearest,"),
            (("--text", "--recipe", "poster"), "'poster' is for the digits; --text takes papers, gupta,"),
            (("--text", "--recipe", "ibm8"), "'ibm8' is for the digits; --text takes papers, gupta,"),
            (("--epochs", "0"), "got 0"),
            (("--seeds", "0"), "got 0"),
            (("--seed", "-1"), "got -1"),
            (("--batch-size", "1348"), "got 1348"),
            (("--lr", "0"), "expected a positive number, got 0"),
            (("--lr", "nan"), "expected a positive number, got nan"),
            (("--lr", "inf"), "expected a positive number, got inf"),
            (("--lr", "fast"), "expected a positive number, got fast"),
            (("--turbo",), "No such option: --turbo"),
            (("extra",), "unexpected extra argument"),
        ],
    )
    def test_wrong_options_are_named_and_nothing_is_written(
        self, arguments: tuple[str, ...], says: str, tmp_path: Path
    ) -> None:
        result = invoke(*arguments, "--out", str(tmp_path / "out"), columns=1000)
        assert result.exit_code == 2
        assert says in result.output
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_cannot_be_made_stops_it_before_the_training(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("lptensor.cli.train._run", lambda *_: pytest.fail("it trained"))
        (tmp_path / "file").touch()
        result = invoke("--recipe", "fp32", "--out", str(tmp_path / "file" / "out"))
        assert result.exit_code == 1 and "Not a directory" in result.output

    def test_each_gap_is_to_fp32_on_the_same_network(self, tmp_path: Path) -> None:
        names = ("lp_train", "ibm8", "poster", "fp32-vgg", "lp_train")
        recipes = [part for name in names for part in ("--recipe", name)]
        result = invoke(*self.QUICK, *recipes, "--out", str(tmp_path))
        assert result.exit_code == 0, result.output
        rows = json.loads((tmp_path / "results.json").read_text())["recipes"]
        wanted = [("fp32-vgg", "lp_train"), ("fp32-preresnet", "ibm8"), ("fp32", "poster")]
        assert [row["name"] for row in rows] == [name for pair in wanted for name in pair]
        for base, row in zip(rows[::2], rows[1::2], strict=True):
            assert base["network"] == row["network"]
            assert row["gap"] == pytest.approx(row["accuracy"] - base["accuracy"], abs=1e-9)
            (line,) = [line for line in result.stdout.splitlines() if f" {row['name']} " in line]
            assert f"{row['gap']:+.2f}" in line.split()

    def test_where_a_mean_is_tested_the_table_shows_the_last_weights_too(self, tmp_path: Path) -> None:
        result = invoke(*self.QUICK, "--recipe", "swalp", "--out", str(tmp_path))
        assert result.exit_code == 0, result.output
        assert "iterate" in result.stdout
        rows = json.loads((tmp_path / "results.json").read_text())["recipes"]
        assert [row["name"] for row in rows] == ["fp32-swa", "swalp"]
        for row in rows:
            last = [run["iterates"][-1] for run in row["runs"]]
            assert row["iterate"] == pytest.approx(sum(last) / 2)
            (line,) = [line for line in result.stdout.splitlines() if f" {row['name']} " in line]
            assert f"{row['iterate']:.2f}" in line.split()

    def test_text_is_learned_by_a_papers_recipe(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        few = Digits(*(t[:32] for t in TEXT.load()))
        monkeypatch.setattr("lptensor.cli.train.TEXT", replace(TEXT, load=lambda: few))
        options = ("--epochs", "1", "--seeds", "1", "--batch-size", "16", "--out", str(tmp_path))
        result = invoke("--text", "--recipe", "mxfp8", *options)
        assert result.exit_code == 0, result.output
        assert "Next characters" in result.stdout and "test characters" in result.stdout
        kept = json.loads((tmp_path / "results.json").read_text())
        assert [recipe["name"] for recipe in kept["recipes"]] == ["fp32", "mxfp8"]
        assert [recipe["lr"] for recipe in kept["recipes"]] == [3e-3, 3e-3]

    def test_a_file_in_the_place_of_the_folder_is_refused_before_training(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("mine")
        result = invoke("--out", str(tmp_path / "out"), columns=1000)
        assert result.exit_code == 2 and "is a file" in result.output
        assert (tmp_path / "out").read_text() == "mine"

    @pytest.mark.parametrize(("module", "library"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
    def test_a_missing_library_is_named_before_training(
        self, module: str, library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for loaded in [name for name in sys.modules if name.split(".")[0] == module]:
            monkeypatch.delitem(sys.modules, loaded)
        monkeypatch.setitem(sys.modules, module, None)
        result = invoke("--out", str(tmp_path / "out"))
        assert result.exit_code == 1
        assert result.stderr == f"Error: this needs {library}, which is not installed: pip install 'lptensor[train]'\n"
        assert list(tmp_path.iterdir()) == []


def test_numbers_and_names_are_whole_on_a_narrow_terminal(tmp_path: Path) -> None:
    result = invoke(
        "--recipe",
        "convert-nearest",
        "--recipe",
        "swalp",
        "--epochs",
        "1",
        "--seeds",
        "2",
        "--out",
        str(tmp_path),
        columns=80,
    )
    lines = result.stdout.splitlines()
    table = lines[: next(i for i, line in enumerate(lines) if line.startswith("Wrote"))]
    assert max(map(len, table)) <= 80 and "\u2026" not in result.stdout
    assert any(line.strip().startswith("convert-nearest") and " \u00b1 " in line for line in lines)
    listed = invoke("--list", columns=80).stdout
    assert "\u2026" not in listed and "fp32-preresnet" in listed
