"""How Sphinx makes the site: `make docs`."""

from __future__ import annotations

import shutil
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent

project = "lptensor"
author = copyright = "lptensor contributors"
version = release = installed_version("lptensor")

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "myst_nb"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "lptensor"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

# Notebooks show what they printed when they were written; the tests run them.
nb_execution_mode = "off"
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

autodoc_typehints = "none"  # the docstrings say shapes, dtypes and units, which types do not
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False  # what torch says of every nn.Module says nothing of ours
napoleon_google_docstring = True
napoleon_numpy_docstring = False

# Sphinx reads only what lies below its folder.
shutil.rmtree(HERE / "notebooks", ignore_errors=True)
shutil.copytree(HERE.parent / "notebooks", HERE / "notebooks", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))


def _plain_bars(app: object, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Docstrings write |x| for a magnitude; reStructuredText would take it for the name of a substitution."""
    for i, line in enumerate(lines):
        code = line.split("``")
        lines[i] = "``".join(part if j % 2 else part.replace("|", r"\|") for j, part in enumerate(code))


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", _plain_bars)
