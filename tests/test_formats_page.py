"""The page docs/formats.md and its pictures: what is committed is what the formats say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from format_picture import save_picture
from formats_page import page, picture_name, shown_formats, write
from lptensor.codebooks import NF4
from lptensor.formats import Format
from lptensor.posits import Posit

DOCS = Path(__file__).parents[1] / "docs"


def test_the_page_is_what_the_formats_say() -> None:
    written = (DOCS / "formats.md").read_text(encoding="utf-8")
    assert written == page(), "docs/formats.md is out of date: make pages"


def test_every_format_has_a_picture_and_every_picture_a_format() -> None:
    there = {path.name for path in (DOCS / "pictures").iterdir()}
    assert there == {picture_name(name) for name in shown_formats()}
    assert set(re.findall(r"\(pictures/(.+?)\)", page())) == there
    assert sum(path.stat().st_size for path in (DOCS / "pictures").iterdir()) < 1.5e6


@pytest.mark.parametrize(("format", "text"), [(NF4, "= 0.723"), (Posit(8), "= 2^-12")], ids=repr)
def test_a_picture_keeps_its_text(format: Format, text: str, tmp_path: Path) -> None:
    save_picture(format, tmp_path / "picture.svg")
    assert f">{text}</text>" in (tmp_path / "picture.svg").read_text(encoding="utf-8")


def test_every_kind_of_format_is_shown() -> None:
    kinds = {type(format).__name__ for format in shown_formats().values()}
    assert {"FloatingPoint", "FixedPoint", "P3109", "Posit", "LogNumber", "Codebook", "BlockFloatingPoint"} <= kinds
    assert {"MX", "TwoLevel", "HiFloat8"} <= kinds


def test_writing_twice_gives_the_same_files_and_drops_old_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: shown_formats()[name] for name in ("E4M3", "FP16")}
    monkeypatch.setattr("formats_page.shown_formats", lambda: few)
    write(tmp_path)
    first = {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()}
    (tmp_path / "pictures" / "old.svg").write_text("gone")
    write(tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / "pictures").iterdir()} == first
    assert sorted(first) == ["e4m3.svg", "fp16.svg"]
