"""``python -m lptensor`` is the ``lptensor`` command."""

from lptensor.cli import main

if __name__ == "__main__":
    main()
