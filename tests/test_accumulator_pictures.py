"""The pictures of docs/accumulators.md show what the page says."""

from __future__ import annotations

from pathlib import Path

import pytest

from accumulator_pictures import PICTURES, SERIES, WAYS, errors, harmonic, main

figure = pytest.importorskip("matplotlib.figure")
DOCS = Path(__file__).parents[1] / "docs"


def test_the_errors_of_each_way_stand_beside_the_bounds() -> None:
    ax = figure.Figure().subplots()
    errors(ax, trials=5, count=2**11)
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert set(lines) == {*WAYS, "n u", "sqrt(n) u"}
    last = {name: values[-1] for name, values in lines.items()}
    assert last["sqrt(n) u"] < last["to nearest"] < last["n u"]
    assert max(last["chunks of 64"], last["pairwise"], last["Kahan"]) < 4
    assert last["stochastic"] < last["sqrt(n) u"]


def test_the_series_stops_where_the_dots_are() -> None:
    ax = figure.Figure().subplots()
    harmonic(ax, 600)
    dots = {int(line.get_xdata()[0]): line.get_ydata()[0] for line in ax.lines if len(line.get_xdata()) == 1}
    assert dots == {65: 5.0625, 513: 7.0859375, 9: 3.0, 5: 2.0}
    assert {*SERIES, "exact"} == {text.get_text() for text in ax.get_legend().get_texts()}


def test_the_page_shows_every_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (DOCS / "accumulators.md").read_text(encoding="utf-8")
    for name in PICTURES:
        assert f"(measured/{name}.svg)" in page and (DOCS / "measured" / f"{name}.svg").exists()
        monkeypatch.setitem(PICTURES, name, lambda ax: None)
    (tmp_path / "measured").mkdir()
    main([str(tmp_path)])
    assert {path.stem for path in (tmp_path / "measured").iterdir()} == set(PICTURES)
