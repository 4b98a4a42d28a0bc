"""``lptensor train``: the demo's recipes side by side, as a table, curves and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

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
from lptensor.demo.experiments import EXPERIMENTS
from lptensor.demo.papers import PAPERS
from lptensor.demo.recipes import RECIPES, Recipe
from lptensor.demo.run import Run, Settings, train as train_once
from lptensor.demo.summary import Summary, summarize, to_json
from lptensor.demo.task import TEXT
from lptensor.extra import MissingExtra, need
from lptensor.formats import Format
from lptensor.rounding import Rounding, as_rounding

_DEFAULT, _TRAIN_SIZE = Settings(), 1797 - TEST_SIZE
_GROUPS = {"all": RECIPES, "papers": PAPERS, "experiments": EXPERIMENTS}


def train(
    recipe: Annotated[
        list[str],
        typer.Option(
            metavar="NAME",
            help="A name of --list, or `all` (its first table), `papers`, `experiments`; may be repeated; "
            "fp32 on the same network always runs.",
        ),
    ] = ["all"],  # noqa: B006  # typer copies it
    format: Annotated[
        Format | None,
        typer.Option(
            parser=edge(parse_format), metavar="FORMAT", help="In place of the recipes' own; papers keep theirs."
        ),
    ] = None,
    rounding: Annotated[
        Rounding | None,
        typer.Option(
            parser=edge(as_rounding), metavar="MODE", help="In place of the recipes' own; papers keep theirs."
        ),
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
        typer.Option(
            parser=edge(positive), metavar="FLOAT", help="Learning rate to begin with, in place of the task's."
        ),
    ] = None,
    text: Annotated[
        bool, typer.Option("--text", help="Learn Python's help texts, character by character, by the papers' recipes.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option(metavar="FOLDER", help="Where results.json and curves.png go.", file_okay=False, writable=True),
    ] = Path("out"),
    list_recipes: Annotated[bool, typer.Option("--list", help="Only show the recipes.")] = False,
) -> None:
    """Train a small network on 1,797 real digits in several number systems, and compare them."""
    if text and recipe == ["all"]:
        recipe = ["papers"]
    recipes = _chosen(recipe, format, rounding, text)
    if list_recipes:
        stdout().print(_recipe_table(recipes))
        if recipe == ["all"] and format is None and rounding is None:
            stdout().print(_paper_table())
            stdout().print(_experiment_table())
        return
    try:
        need("matplotlib.figure")  # before the work, not after
        samples = recipes[0].task.load()  # the tasks on the digits share them
        out.mkdir(parents=True, exist_ok=True)
    except (MissingExtra, OSError) as missing:
        typer.echo(f"Error: {missing}", err=True)
        raise typer.Exit(1) from None
    settings = Settings(epochs, batch_size, lr)
    summaries = summarize(_run(recipes, settings, range(seed, seed + seeds), samples))
    results, curves = out / "results.json", out / "curves.png"
    results.write_text(json.dumps(to_json(summaries, settings), indent=1, allow_nan=False) + "\n")
    plot_curves(summaries, curves, recipes[0].task.title)
    console = stdout()
    console.print(_result_table(summaries, console.width < _ROOM))
    typer.echo(f"Wrote {results} and {curves}.")


def _chosen(names: Sequence[str], format: Format | None, rounding: Rounding | None, text: bool) -> list[Recipe]:
    """The recipes named, task by task, fp32 first, each once, also where an option has made two the same."""
    rows = [row for group in _GROUPS.values() for row in group]
    named = {**_GROUPS, **{row.name: (row,) for row in rows}}
    if unknown := [name for name in names if name not in named]:
        raise _refusal(f"unknown recipe {unknown[0]!r}; known: {', '.join(named)}")
    wanted = [row for name in names for row in named[name]]
    if text:
        if others := [row.name for row in wanted if row not in (RECIPES[0], *PAPERS)]:
            known = ", ".join(["papers", *(row.name for row in PAPERS)])
            raise _refusal(f"{others[0]!r} is for the digits; --text takes {known}")
        wanted = [replace(row, task=TEXT) for row in wanted]
    if format is not None or rounding is not None:
        baselines = [next(row for row in rows if row.task == task) for task in dict.fromkeys(row.task for row in rows)]
        if own := [row.name for row in wanted if row.number is None and row not in baselines]:
            raise _refusal(f"{own[0]!r} has the formats and roundings of its paper; leave --format and --rounding out")
    chosen: list[Recipe] = []
    for task in dict.fromkeys(row.task for row in wanted):
        baseline = next((row for row in rows if row.task == task), replace(RECIPES[0], task=task))
        for recipe in (baseline, *(row.instead(format, rounding) for row in wanted if row.task == task)):
            if not any(recipe.same_arithmetic(other) for other in chosen):
                chosen.append(recipe)
    for recipe in chosen if format is not None else ():  # before any of them has trained
        try:
            with torch.random.fork_rng(devices=[]):
                recipe.apply(recipe, recipe.task.net(), recipe.task.optimizer(recipe.task.lr))
        except (TypeError, ValueError) as error:
            raise typer.BadParameter(f"{recipe.name!r} cannot take it: {error}", param_hint="'--format'") from None
    return chosen


def _refusal(why: str) -> typer.BadParameter:
    return typer.BadParameter(why, param_hint="'--recipe'")


def _run(
    recipes: Sequence[Recipe], settings: Settings, seeds: Sequence[int], samples: Digits
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
                    runs.append(train_once(recipe, settings, seed, samples, lambda: progress.advance(bar)))
    finally:
        torch.set_num_threads(threads)
    return results


def _result_table(summaries: Sequence[Summary], narrow: bool) -> Table:
    runs, task = summaries[0].runs, summaries[0].recipe.task
    averaged = any(s.iterate is not None for s in summaries)
    counts = (len(runs), "seed"), (len(runs[0].losses), "epoch")
    seeds, epochs = (f"{count} {what}{'s' * (count > 1)}" for count, what in counts)
    notes = f"{seeds}, {epochs}, {task.tests}. "
    notes += "train --list describes the recipes." if narrow else "sums: the format in which updates add to weights."
    if averaged:
        notes += " iterate: the last weights, where accuracy is that of their mean."
    table = Table(title=task.title, caption=notes, **_LOOK)
    table.padding = (0, int(not narrow), 0, 1)
    described = ("recipe", "number, paper") if narrow else ("recipe", "how", "number", "sums", "rounding")
    _add_texts(table, described)
    for title in ("accuracy (%)", *["iterate"] * averaged, "to fp32", "time"):
        table.add_column(title, justify="right", no_wrap=True)
    baselines = {s.recipe.task: s for s in reversed(summaries)}
    for s in summaries:
        if s is baselines[s.recipe.task]:
            table.add_section()
        spread = "" if s.deviation is None else f" ± {s.deviation:.2f}"
        iterate = ["" if s.iterate is None else f"{s.iterate:.2f}"] * averaged
        gap = "" if s is baselines[s.recipe.task] else f"{s.gap:+.2f}"
        name, how, number, *rest = _described(s.recipe)
        texts = (name, how if s.recipe.number is None else number) if narrow else (name, how, number, *rest)
        table.add_row(*texts, f"{s.accuracy:.2f}{spread}", *iterate, gap, f"{s.slowdown:.1f} x")
    return table


_ROOM = 116  # columns of a terminal in which all of a result has room
# Numbers, and the names that people type, are whole on a terminal of 80 columns; what describes them folds.
_LOOK: dict[str, Any] = {"box": SIMPLE_HEAD, "header_style": "bold", "padding": (0, 0, 0, 1)}


def _add_texts(table: Table, titles: Sequence[str]) -> None:
    for title in titles:
        table.add_column(title, no_wrap=title == "recipe", overflow="fold")


def _recipe_table(recipes: Sequence[Recipe]) -> Table:
    table = Table(title="Recipes", **_LOOK)
    _add_texts(table, ("recipe", "how", "number", "sums", "rounding", "gradients"))
    for recipe in recipes:
        table.add_row(*_described(recipe), short(recipe.gradient or recipe.number))
    return table


def _paper_table() -> Table:
    table = Table(title="Recipes of papers", **_LOOK)
    _add_texts(table, ("recipe", "paper", "layers in fp32"))
    for recipe in PAPERS:
        table.add_row(recipe.name, recipe.how, ", ".join(recipe.exempt) or "-")
    return table


def _experiment_table() -> Table:
    table = Table(title="Experiments of QPyTorch", **_LOOK)
    _add_texts(table, ("recipe", "after", "network", "number", "sums", "rounding"))
    for recipe in EXPERIMENTS:
        name, how, *numbers = _described(recipe)
        table.add_row(name, how, recipe.task.network, *numbers)
    return table


def _described(recipe: Recipe) -> tuple[str, ...]:
    if recipe.number is None:
        return recipe.name, recipe.how, "-", "-", "-"
    sums = "fp32" if recipe.accumulator is None else short(recipe.accumulator)
    return recipe.name, recipe.how, short(recipe.number), sums, recipe.rounding.name
