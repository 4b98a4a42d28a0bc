"""The names that lptensor shows: to help(), to tab completion, to a star import."""

from __future__ import annotations

import builtins
import importlib.metadata
import inspect
import pydoc
import re
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

import lptensor
from lptensor import study, training
from lptensor.cli import app
from lptensor.training import recipes


def test_what_runs_from_its_source_has_help_and_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert not hasattr(lptensor, "__version__")
    assert pydoc.render_doc(lptensor).startswith("Python Library Documentation: package lptensor")
    assert CliRunner().invoke(app, ["--version"]).stdout == "lptensor from its source\n"


def test_help_names_every_verb_that_a_star_import_leaves_out() -> None:
    verbs = {name for name in dir(lptensor) if not name.startswith("_")} - set(lptensor.__all__)
    assert verbs == set(re.findall(r"``(?:lptensor\.)?([a-z_]+)``", lptensor.__doc__ or "")) - {"lower", "quantizer"}


def test_tab_completion_shows_what_is_public_and_no_files() -> None:
    shown = {module.__name__: {n for n in dir(module) if not n.startswith("_")} for module in (lptensor, *PACKAGES)}
    modules = {n for n in shown["lptensor"] if isinstance(getattr(lptensor, n), ModuleType)}
    assert modules == {"study", "training"} and set(lptensor.__all__) < shown["lptensor"]
    assert {"round", "convert", "encode", "finfo", "trace"} <= shown["lptensor"]
    for package in PACKAGES:
        assert shown[package.__name__] == set(package.__all__)
    exported = {n for n, value in vars(study).items() if not n.startswith("_") and not isinstance(value, ModuleType)}
    assert exported == set(study.__all__)


PACKAGES: Any = study, training, recipes


@pytest.mark.parametrize("module", [lptensor, *PACKAGES], ids=lambda module: module.__name__)
def test_a_star_import_brings_what_there_is_and_shadows_no_builtin(module: Any) -> None:
    brought: dict[str, Any] = {}
    exec(f"from {module.__name__} import *", brought)
    assert set(brought) - {"__builtins__"} == set(module.__all__) and not set(module.__all__) & set(dir(builtins))


def test_recipes_are_the_functions_of_their_module_that_return_one() -> None:
    made = {name for name, f in vars(recipes).items() if inspect.isfunction(f) and not name.startswith("_")}
    made = {name for name in made if inspect.signature(getattr(recipes, name)).return_annotation == "Recipe"}
    assert made | {"Recipe"} == set(recipes.__all__)


def test_generators_go_by_name_as_torchs_do() -> None:
    functions = [f for module in (lptensor, study) for f in map(vars(module).get, dir(module)) if inspect.isfunction(f)]
    given = [p for f in functions for p in inspect.signature(f).parameters.values() if p.name == "generator"]
    assert len(given) == 5 and all(p.kind is p.KEYWORD_ONLY and p.default is None for p in given)
