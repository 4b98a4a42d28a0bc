"""The page docs/formats.md: every format in words, in numbers and in a picture.

``python docs/pages/formats_page.py docs`` writes it, and its pictures into docs/pictures.
"""

from __future__ import annotations

import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from format_picture import save_picture
from formats_words import EXAMPLES, HEAD, KINDS, NUMBERS
from lptensor.blocks import BlockFormat
from lptensor.formats import Format
from lptensor.names import ROWS, named_formats
from lptensor.posits import Posit
from lptensor.study.format_table import format_table, shown


def shown_formats() -> dict[str, Format]:
    """What the page shows, by section: the named formats, and examples where a kind has constructors alone."""
    every = named_formats() | {_spelled(format): format for format in EXAMPLES}
    rows = format_table(every)
    order = {kind: i for i, kind in enumerate(KINDS)}
    rows.sort(key=lambda row: order.get(row["kind"], len(order)))
    return {row["name"]: every[row["name"]] for row in rows}


def _spelled(format: Format) -> str:
    """A constructor as one types it: P3109(8, 3)."""
    kind, _, rest = format.spelled().partition("(")
    return f"{kind}({', '.join(part.partition('=')[2] for part in rest[:-1].split(', '))})"


def page() -> str:
    """The text of the page."""
    formats = shown_formats()
    rows = format_table(formats)
    parts = [HEAD, _table(rows, _RANGE), NUMBERS, _table(rows, _CODES)]
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    for kind in kinds:
        title, words = KINDS.get(kind, (kind, ""))
        parts += [f"## {title}", *([words] if words else [])]
        parts += [_section(row, formats[row["name"]]) for row in rows if row["kind"] == kind]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _section(row: dict[str, Any], format: Format) -> str:
    name = row["name"]
    made = "" if row["made"].startswith(name.partition("(")[0]) else f"`{row['made']}`. "
    words = ROWS[name].words if name in ROWS else EXAMPLES.get(format, "")
    facts = [*([words] if words else []), *_blocks(row, format)]
    facts.append(f"{made}{_specials(row, format)} {_overflow(row, format)}")
    source = f"Source: {row['source']}." if row["source"] else ""
    text = textwrap.fill(" ".join([*facts, source]).strip(), 108, break_long_words=False, break_on_hyphens=False)
    picture = f"![The bits and the number line of {name}](pictures/{picture_name(name)})"
    return f"### {name}\n\n{text}\n\n{picture}"


def _blocks(row: dict[str, Any], format: Format) -> list[str]:
    if not isinstance(format, BlockFormat) or format.scale is None or None in (format.tile.others, *format.tile.widths):
        return []
    count = math.prod(width or 1 for width in format.tile.widths)
    mean = row["bits"] + format.scale.bits / count
    return [f"{count} elements share a scale in {format.scale}: {mean:g} bits for each number."]


def _specials(row: dict[str, Any], format: Format) -> str:
    if isinstance(format, BlockFormat):
        infinite = 'infinite="saturate" holds infinities instead'
        return f"A block with NaN or an infinity becomes NaN ({infinite}), one of zeros stays zero."
    codes = {"inf": "infinities", "NaN": "NaN"}
    has = [word for key, word in codes.items() if key in row["specials"]]
    lacks = [word for key, word in codes.items() if key not in row["specials"]]
    zeros = {"no -0": "one zero", ">= 0": "no sign", "> 0": "neither sign nor zero"}
    zero = next((words for key, words in zeros.items() if row["specials"].endswith(key)), "-0")
    listed = " and ".join([", ".join([*has, zero][:-1]), zero] if has else [zero])
    said = f"There {'are' if 'infinities' in has else 'is'} {listed}"
    return said + (f", and no code for {' or '.join(lacks)}." if lacks else ".")


def _overflow(row: dict[str, Any], format: Format) -> str:
    beyond = {
        "inf": "What rounds beyond the largest value becomes infinite.",
        "nan": "What rounds beyond the largest value becomes NaN, infinities included.",
        "saturate": "What lies beyond the largest value becomes that value, infinities included.",
        "propagate": "What lies beyond the largest value becomes that value, but infinities stay.",
    }[row["overflow"]]
    if isinstance(format, Posit):
        return "What lies beyond the largest value becomes that value, and infinities NaN."
    if isinstance(format, BlockFormat):
        return "What rounds beyond an element's largest value is held there."
    if row["min"] >= 0:
        below = "zero" if row["overflow"] in ("saturate", "propagate") else "NaN"
        beyond += f" Negative numbers become {below}."
    return beyond


# The columns of the two tables: what stands above, and which key of a row below.
_RANGE = {
    "format": "name",
    "bits": "bits",
    "p": "precision",
    "emin": "emin",
    "emax": "emax",
    "max": "max",
    "smallest normal": "smallest_normal",
    "smallest": "smallest_subnormal",
    "eps": "eps",
    "values": "values",
    "binades": "binades",
    "dB": "decibels",
}
_CODES = {
    "format": "name",
    "kind": "kind",
    "specials": "specials",
    "overflow": "overflow",
    "source": "source",
}


def _table(rows: Sequence[dict[str, Any]], columns: dict[str, str]) -> str:
    words = {"name", "kind", "specials", "overflow", "source"}
    lines = ["| " + " | ".join(columns) + " |"]
    lines.append("|" + "|".join("---" if key in words else "--:" for key in columns.values()) + "|")
    for row in rows:
        lines.append("| " + " | ".join(shown(row[key], key) for key in columns.values()) + " |")
    return "\n".join(lines)


def picture_name(name: str) -> str:
    """The file of a format's picture.

    >>> picture_name("P3109(8, 3)")
    'p3109_8_3.svg'
    """
    return "_".join("".join(c if c.isalnum() else " " for c in name.lower()).split()) + ".svg"


def write(folder: Path) -> None:
    """Write formats.md and pictures/*.svg into a folder; pictures of formats that are gone are deleted."""
    pictures = folder / "pictures"
    pictures.mkdir(parents=True, exist_ok=True)
    formats = shown_formats()
    for path in set(pictures.glob("*.svg")) - {pictures / picture_name(name) for name in formats}:
        path.unlink()
    for name, format in formats.items():
        save_picture(format, pictures / picture_name(name))
    (folder / "formats.md").write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
