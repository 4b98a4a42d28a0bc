"""The site's pages: the API lists every public name once, and every page is reachable from its front."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import lptensor
from lptensor.names import named_formats

DOCS = Path(__file__).parents[1] / "docs"


def public(module: ModuleType) -> set[str]:
    """What a module offers by its own word: names that are neither private nor modules."""
    return {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and not isinstance(value, ModuleType | lptensor.Format)
    }


def listed(prefix: str) -> list[str]:
    text = "".join(page.read_text() for page in sorted((DOCS / "api").glob("*.md")))
    return re.findall(rf"^\.\. auto(?:class|function|data):: {re.escape(prefix)}\.(\w+)$", text, re.MULTILINE)


def test_the_api_lists_every_public_name_once() -> None:
    for module in (lptensor, lptensor.study, lptensor.training):
        names = listed(module.__name__)
        assert sorted(names) == sorted(public(module)), module.__name__


def test_named_formats_stand_on_the_page_of_formats() -> None:
    page = (DOCS / "formats.md").read_text()
    rows = {name for name, value in vars(lptensor).items() if isinstance(value, lptensor.Format)}
    assert not {name for name in rows if f"`{name}`" not in page and f"## {name}" not in page}


def test_every_format_that_has_a_name_is_public() -> None:
    assert {name for name, row in named_formats().items() if getattr(lptensor, name, None) is not row} == set()
    assert set(named_formats()) <= set(lptensor.__all__)


def test_the_map_of_the_code_has_every_file_once() -> None:
    page = (DOCS / "extending.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\|[^|]*\|([^|]*)\|$", page.partition("## Where things are")[2].partition("\n`training/`")[0], re.M
    )
    named = re.findall(r"`(\w+)`", " ".join(rows))
    files = [path.stem for path in Path(lptensor.__file__).parent.glob("*.py") if not path.stem.startswith("__")]
    assert sorted(named) == sorted(files)
