"""Libraries that only the demo needs: the extra ``train``."""

from __future__ import annotations

import importlib
from types import ModuleType


class MissingExtra(ImportError):
    """A library of the extra ``train`` is not installed."""


def need(module: str) -> ModuleType:
    """The module, or an error that says how to get it.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # it is there and broken
        library = error.name.partition(".")[0]
        name = {"sklearn": "scikit-learn"}.get(library, library)
        raise MissingExtra(f"training needs {name}: pip install 'lptensor[train]'") from None
