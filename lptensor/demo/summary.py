"""What the runs of a recipe amount to, against float32, and the JSON that keeps it."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
from dataclasses import asdict, dataclass
from typing import Any

import torch

import lptensor
from lptensor.demo.recipes import Recipe
from lptensor.demo.run import Run, Settings
from lptensor.demo.task import Task
from lptensor.describe import describe
from lptensor.formats import Format


@dataclass(frozen=True)
class Summary:
    """One recipe's runs and how they compare.

    ``accuracy`` is the mean of the test accuracies in percent and ``deviation`` their sample standard
    deviation (None for one seed); ``gap`` is points above float32, ``slowdown`` the ratio of the
    median processor time of an epoch to float32's. ``iterate`` is the mean accuracy of the last weights
    where the weights' mean is what is tested, else None. float32 is the first recipe of the same task.
    """

    recipe: Recipe
    runs: list[Run]
    accuracy: float
    deviation: float | None
    gap: float
    slowdown: float
    iterate: float | None = None


def summarize(results: dict[Recipe, list[Run]]) -> list[Summary]:
    """One summary per recipe; the first recipe of each task is the baseline of that task."""
    baselines: dict[Task, list[Run]] = {}
    for recipe, runs in results.items():
        baselines.setdefault(recipe.task, runs)
    return [_summary(recipe, runs, baselines[recipe.task]) for recipe, runs in results.items()]


def _summary(recipe: Recipe, runs: list[Run], baseline: list[Run]) -> Summary:
    return Summary(
        recipe,
        runs,
        accuracy=_mean_accuracy(runs),
        deviation=statistics.stdev(run.accuracy for run in runs) if len(runs) > 1 else None,
        gap=_mean_accuracy(runs) - _mean_accuracy(baseline),
        slowdown=_epoch_time(runs) / _epoch_time(baseline),
        iterate=statistics.fmean(run.iterates[-1] for run in runs) if runs[0].iterates else None,
    )


def _mean_accuracy(runs: list[Run]) -> float:
    return statistics.fmean(run.accuracy for run in runs)


def _epoch_time(runs: list[Run]) -> float:
    return statistics.median(seconds for run in runs for seconds in run.seconds)


def to_json(summaries: list[Summary], settings: Settings) -> dict[str, Any]:
    """All that is needed to repeat the runs, and what they gave; a loss that is not a number is None."""
    return {
        "versions": _versions(),
        "settings": asdict(settings) | {"seeds": [run.seed for run in summaries[0].runs]},
        "recipes": [
            {
                "name": s.recipe.name,
                "how": s.recipe.how,
                "network": s.recipe.task.network,
                "lr": settings.lr or s.recipe.task.lr,
                "number": _described(s.recipe.number),
                "gradient": _described(s.recipe.gradient or s.recipe.number),
                "accumulator": _described(s.recipe.accumulator),
                "rounding": s.recipe.rounding.name,
                "accuracy": s.accuracy,
                "deviation": s.deviation,
                "gap": s.gap,
                "slowdown": s.slowdown,
                "iterate": s.iterate,
                "runs": [
                    asdict(run)
                    | {"accuracy": run.accuracy, "losses": [x if math.isfinite(x) else None for x in run.losses]}
                    for run in s.runs
                ],
            }
            for s in summaries
        ],
    }


def _described(format: Format | None) -> dict[str, Any] | None:
    return None if format is None else describe(format)


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "torch": torch.__version__, "backend": lptensor.backend()}
    for library in ("lptensor", "numpy", "scikit-learn"):
        try:
            found[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:  # run from its source folder
            found[library] = "not installed"
    return found
