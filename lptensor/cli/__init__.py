"""The ``lptensor`` command: one file per subcommand."""

from lptensor.cli.app import app as app, main as main
