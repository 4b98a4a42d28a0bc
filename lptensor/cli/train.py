"""``lptensor train``: the demo's recipes side by side, as a table, curves and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from lptensor.cli.edge import edge, positive, whole
from lptensor.cli.names import parse_format, short
from lptensor.cli.output import stdout
from lptensor.demo.curves import plot_curves
from lptensor.demo.data import TEST_SIZE, Digits
from lptensor.demo.papers import PAPERS
from lptensor.demo.recipes import RECIPES, Recipe
from lptensor.demo.run import DIGITS, TEXT, Run, Settings, Task, train as train_once
from lptensor.demo.summary import Summary, summarize, to_json
from lptensor.extra import MissingExtra, need
from lptensor.formats import Format
from lptensor.rounding import Rounding, as_rounding

_BASELINE, _DEFAULT = RECIPES[0], Settings()
_TRAIN_SIZE, _TEXT_LR = 1797 - TEST_SIZE, 3e-3


def train(
    recipe: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A recipe of --list, all of the first table, or papers; may be repeated; fp32 always runs.",
        ),
    ] = ["all"],  # noqa: B006  # typer copies it
    format: Annotated[
        Format | None, typer.Option(parser=edge(parse_format), metavar="FORMAT", help="In place of the recipes' own.")
    ] = None,
    rounding: Annotated[
        Rounding | None, typer.Option(parser=edge(as_rounding), metavar="MODE", help="In place of the recipes' own.")
    ] = None,
    epochs: Annotated[int, typer.Option(parser=whole(1, 10_000), metavar="INT")] = _DEFAULT.epochs,
    seeds: Annotated[int, typer.Option(parser=whole(1, 1000), metavar="INT", help="How many runs of each recipe.")] = 3,
    seed: Annotated[
        int, typer.Option(parser=whole(0, 2**62), metavar="INT", help="The first run's seed; the others count up.")
    ] = 0,
    batch_size: Annotated[
        int, typer.Option(parser=whole(1, _TRAIN_SIZE), metavar="INT", help="Images per step.")
    ] = _DEFAULT.batch_size,
    lr: Annotated[
        float | None,
        typer.Option(parser=edge(positive), metavar="FLOAT", help="Learning rate, which then falls to zero."),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Learn Python's help texts, character by character, by the papers' recipes.")
    ] = False,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where results.json and curves.png go.", file_okay=False)
    ] = Path("out"),
    list_recipes: Annotated[bool, typer.Option("--list", help="Only show the recipes.")] = False,
) -> None:
    """Train a small network on 1,797 real digits in several number systems, and compare them."""
    if text and recipe == ["all"]:
        recipe = ["papers"]
    recipes = _chosen(recipe, format, rounding)
    if list_recipes:
        stdout().print(_recipe_table(recipes))
        if recipe == ["all"] and format is None and rounding is None:
            stdout().print(_paper_table())
        return
    if text and (others := [r.name for r in recipes[1:] if r not in PAPERS]):
        known = ", ".join(["papers", *(paper.name for paper in PAPERS)])
        raise typer.BadParameter(f"{others[0]!r} is for the digits; --text takes {known}", param_hint="'--recipe'")
    task = TEXT if text else DIGITS
    lr = lr or (_TEXT_LR if text else _DEFAULT.lr)
    try:
        need("matplotlib.figure")  # before the work, not after
        samples = task.load()
    except MissingExtra as missing:
        typer.echo(f"Error: {missing}", err=True)
        raise typer.Exit(1) from None
    settings = Settings(epochs, batch_size, lr)
    summaries = summarize(_run(recipes, settings, range(seed, seed + seeds), samples, task))
    out.mkdir(parents=True, exist_ok=True)
    results, curves = out / "results.json", out / "curves.png"
    results.write_text(json.dumps(to_json(summaries, settings), indent=1, allow_nan=False) + "\n")
    plot_curves(summaries, curves, task.title)
    stdout().print(_result_table(summaries, task))
    typer.echo(f"Wrote {results} and {curves}.")


def _chosen(names: Sequence[str], format: Format | None, rounding: Rounding | None) -> list[Recipe]:
    """The recipes named, the baseline first, each once, also where an option has made two the same."""
    rows = {row.name: row for row in (*RECIPES, *PAPERS)}
    groups = {"all": [row.name for row in RECIPES], "papers": [row.name for row in PAPERS]}
    for name in names:
        if name not in rows and name not in groups:
            known = ", ".join([*groups, *rows])
            raise typer.BadParameter(f"unknown recipe {name!r}; known: {known}", param_hint="'--recipe'")
    wanted = [_BASELINE.name, *(row for name in names for row in groups.get(name, [name]))]
    chosen: list[Recipe] = []
    for name in wanted:
        recipe = rows[name].instead(format, rounding)
        if not any(recipe.same_arithmetic(other) for other in chosen):
            chosen.append(recipe)
    return chosen


def _run(
    recipes: Sequence[Recipe], settings: Settings, seeds: Sequence[int], samples: Digits, task: Task
) -> dict[Recipe, list[Run]]:
    """All runs, seed by seed, so that a machine that slows down slows all recipes.

    On one thread: the tensors are too small to share, and how a sum is split would show in the results.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    results: dict[Recipe, list[Run]] = {recipe: [] for recipe in recipes}
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn(), TimeRemainingColumn())
    try:
        with Progress(
            TextColumn("{task.description}"), *columns, console=Console(stderr=True), transient=True
        ) as progress:
            bar = progress.add_task("", total=len(recipes) * len(seeds) * settings.epochs)
            for seed in seeds:
                for recipe, runs in results.items():
                    progress.update(bar, description=f"{recipe.name}, seed {seed}")
                    runs.append(train_once(recipe, settings, seed, samples, lambda: progress.advance(bar), task))
    finally:
        torch.set_num_threads(threads)
    return results


def _result_table(summaries: Sequence[Summary], task: Task) -> Table:
    runs = summaries[0].runs
    seeds, epochs = f"{len(runs)} seed{'s' * (len(runs) > 1)}", len(runs[0].losses)
    notes = f"{seeds}, {epochs} epochs, {task.tests}. sums: the format in which weights add up."
    table = Table(title=task.title, caption=notes, box=SIMPLE_HEAD, header_style="bold")
    for title in ("recipe", "how", "number", "sums", "rounding"):
        table.add_column(title, no_wrap=title != "number", overflow="fold")
    for title in ("accuracy (%)", "to fp32", "time"):
        table.add_column(title, justify="right")
    for s in summaries:
        spread = "" if s.deviation is None else f" ± {s.deviation:.2f}"
        gap = "" if s.recipe == _BASELINE else f"{s.gap:+.2f}"
        table.add_row(*_described(s.recipe), f"{s.accuracy:.2f}{spread}", gap, f"{s.slowdown:.1f} x")
    return table


def _recipe_table(recipes: Sequence[Recipe]) -> Table:
    table = Table(title="Recipes", box=SIMPLE_HEAD, header_style="bold")
    for title in ("recipe", "how", "number", "sums", "rounding", "gradients"):
        table.add_column(title, no_wrap=title not in ("number", "gradients"), overflow="fold")
    for recipe in recipes:
        table.add_row(*_described(recipe), short(recipe.gradient or recipe.number))
    return table


def _paper_table() -> Table:
    table = Table(title="Recipes of papers", box=SIMPLE_HEAD, header_style="bold")
    for title in ("recipe", "paper", "layers in fp32"):
        table.add_column(title)
    for recipe in PAPERS:
        table.add_row(recipe.name, recipe.how, ", ".join(recipe.skip) or "-")
    return table


def _described(recipe: Recipe) -> tuple[str, ...]:
    if recipe.number is None:
        return recipe.name, recipe.how, "-", "-", "-"
    sums = "fp32" if recipe.accumulator is None else short(recipe.accumulator)
    return recipe.name, recipe.how, short(recipe.number), sums, recipe.rounding.name
