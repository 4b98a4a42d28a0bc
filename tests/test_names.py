"""The names that lptensor shows: to help(), to tab completion, to a star import."""

from __future__ import annotations

import importlib.metadata
import pydoc

import pytest
from typer.testing import CliRunner

import lptensor
from lptensor.cli import app


def test_what_runs_from_its_source_has_help_and_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert not hasattr(lptensor, "__version__")
    assert pydoc.render_doc(lptensor).startswith("Python Library Documentation: package lptensor")
    assert CliRunner().invoke(app, ["--version"]).stdout == "lptensor from its source\n"
