"""Every notebook runs in a kernel of its own, and prints what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def shown(cell: Any) -> str:
    """What a cell printed, and the text of its last value; pictures are for people."""
    text = []
    for output in cell.get("outputs", []):
        if output["output_type"] == "stream":
            text.append(output["text"])
        elif "image/png" not in output["data"]:
            text.append(output["data"]["text/plain"] + "\n")
    return "".join(text).strip()


@pytest.mark.filterwarnings("ignore:.*TCP without encryption")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_prints_what_it_shows(path: Path) -> None:
    written, run = nbformat.read(path, 4), nbformat.read(path, 4)
    NotebookClient(run, timeout=250, kernel_name="python3").execute(cwd=str(path.parent))
    for before, after in zip(written.cells, run.cells, strict=True):
        # Sums of products have another order on every processor: such cells carry the tag.
        if "varies" not in before.metadata.get("tags", []):
            assert shown(after) == shown(before), before.source
