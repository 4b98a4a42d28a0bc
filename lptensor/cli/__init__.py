"""The ``lptensor`` command: one file per subcommand."""

from lptensor.cli.command import app as app, main as main
