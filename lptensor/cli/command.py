"""The command's entry point, and the list of its subcommands."""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

import lptensor
from lptensor.cli.formats import formats
from lptensor.cli.round import round
from lptensor.cli.train import train

app = typer.Typer(
    name="lptensor",
    help="Low-precision arithmetic on PyTorch: number formats, rounding, and training compared.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"lptensor {getattr(lptensor, '__version__', 'from its source')}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print it and exit."),
) -> None:
    pass


app.command()(formats)
# Values may be negative: what looks like an unknown option is left to the parser of values.
app.command(context_settings={"ignore_unknown_options": True})(round)
app.command()(train)


def main() -> None:
    """Run the command on ``sys.argv`` and exit with its status: 0, 1 for a failure, 2 for bad usage."""
    _show_warnings_once()
    try:
        app()
    except OSError as error:  # where the output goes there is no room, say
        typer.echo(f"lptensor: {error}", err=True)
        sys.stdout = None  # what is left in it would fail once more at the exit
        sys.exit(1)


def _show_warnings_once() -> None:
    """The same warning from each of many steps says nothing new.

    The filter "once" is no help: it forgets what it has shown whenever filters change, as torch makes them do.
    """
    show, shown = warnings.showwarning, set()

    def show_once(message: Warning | str, category: type[Warning], *place: Any, **rest: Any) -> None:
        if (category, str(message)) not in shown:
            shown.add((category, str(message)))
            show(message, category, *place, **rest)

    warnings.showwarning = show_once
