"""Where the commands print their tables."""

from __future__ import annotations

import os

from rich.console import Console

_WIDTH = 100  # of the widest table


def stdout() -> Console:
    """Standard output; in a file or a pipe, where there is no width to ask for, tables get what they need."""
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _WIDTH
    return console
