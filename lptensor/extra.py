"""Libraries that lptensor works without: its extras."""

from __future__ import annotations

import importlib
from types import ModuleType

# The extra of pyproject.toml that installs a module, and the module's name there.
_EXTRAS = {
    "matplotlib": ("train", "matplotlib"),
    "ml_dtypes": ("interop", "ml_dtypes"),
    "pandas": ("study", "pandas"),
    "safetensors": ("interop", "safetensors"),
    "sklearn": ("train", "scikit-learn"),
}


class MissingExtra(ImportError):
    """A library of an extra is not installed."""


def need(module: str) -> ModuleType:
    """The module, or an error that says how to get it.

    Raises:
        MissingExtra: it is not installed.

    >>> need("matplotlib.figure").__name__
    'matplotlib.figure'
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise  # it is there and broken
        extra, library = _EXTRAS[module.partition(".")[0]]
        raise MissingExtra(f"this needs {library}, which is not installed: pip install 'lptensor[{extra}]'") from None
