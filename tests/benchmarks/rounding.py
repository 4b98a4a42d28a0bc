"""How long rounding takes beside a copy of the same tensor, and beside other libraries: `make bench`.

A figure is a ratio of two times, measured in turns in one process: medians, quartiles in parentheses. `--check`
says which fell below their targets by more than the spread; the targets are in rows.py.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from measure import Figure, as_json, machine, memory_kept, ratio
from picture import save
from rich.console import Console
from rich.table import Table
from rows import PEERS, ROWS, Peer

COPY, NEW, KEPT = "copy / work, {} thread", "peer / ours, new memory", "peer / ours, memory kept"


def beside_a_copy(side: int, turns: int, counts: list[int]) -> list[Figure]:
    x = torch.randn(side, side)
    y = x.clone()
    figures = []
    for threads in counts:
        torch.set_num_threads(threads)
        for row in ROWS:
            target = row.target if threads == 1 else None
            figures.append(
                ratio(
                    COPY.format(threads),
                    row.name,
                    lambda: y.copy_(x),
                    lambda row=row: row.work(x, y),
                    turns,
                    row.share,
                    target,
                )
            )
    torch.set_num_threads(1)
    return figures


def beside_peers(side: int, turns: int) -> tuple[list[Figure], list[str]]:
    x = torch.randn(side, side)
    present: list[tuple[Peer, Any]] = []
    absent = []
    for peer in PEERS:
        try:
            present.append((peer, peer.peer(importlib.import_module(peer.package))))
        except ImportError:
            absent.append(peer.name)

    def all_of(group: str, which: int) -> list[Figure]:
        figures = []
        for peer, theirs in present:
            part = x[: int(side * peer.share)]
            base, work = functools.partial(theirs, part), functools.partial(peer.ours, part)
            figures.append(ratio(group, peer.name, base, work, turns, 1.0, peer.targets[which]))
        return figures

    figures = all_of(NEW, 0)  # first: memory that is kept once is not given back
    with memory_kept(x) as kept:
        if kept:
            figures += all_of(KEPT, 1)
    return figures, absent


def tables(figures: list[Figure], absent: list[str]) -> list[Table]:
    made = []
    copies, peers = tuple(dict.fromkeys(f.group for f in figures if f.group.startswith("copy"))), (NEW, KEPT)
    for groups, title in ((copies, "copy / rounding: 1 is the speed of a copy"), (peers, "time of others / ours")):
        table = Table(title=title, title_justify="left")
        for column in ("work", *groups, "target"):
            table.add_column(column, justify="left" if column == "work" else "right")
        names = dict.fromkeys(figure.name for figure in figures if figure.group in groups)
        for name in names:
            found = {figure.group: figure for figure in figures if figure.name == name}
            targets = [f"{found[group].target:g}" for group in groups if group in found and found[group].target]
            table.add_row(name, *(str(found.get(group, "")) for group in groups), ", ".join(targets))
        if groups == peers:
            for name in absent:
                table.add_row(name, "not installed", "", "")
        made.append(table)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=11)
    parser.add_argument("--side", type=int, default=4096, help="of the square tensor")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="write the figures to this file too")
    parser.add_argument("--plot", type=Path, help="draw them into this file")
    parser.add_argument("--check", action="store_true", help="end with an error where a target is missed")
    options = parser.parse_args()
    where = machine()
    torch.set_num_threads(1)
    figures = beside_a_copy(options.side, options.turns, options.threads)
    others, absent = beside_peers(options.side, max(3, options.turns // 3))
    figures += others
    console = Console(width=120)
    console.print(
        f"{options.side**2 >> 20}M float32 on {where['processor']}, {where['kernels']}, torch {where['torch']}"
    )
    for table in tables(figures, absent):
        console.print(table)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        content = {"machine": where, "elements": options.side**2, "figures": as_json(figures), "not installed": absent}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        options.plot.parent.mkdir(parents=True, exist_ok=True)
        save(figures, where, options.plot)
    missed = [figure for figure in figures if figure.missed]
    if options.check:
        for figure in missed:
            console.print(f"missed: {figure.name}, {figure.group}: {figure} where {figure.target:g} is wanted")
        console.print(f"{len(missed)} of {sum(figure.target is not None for figure in figures)} targets missed")
        sys.exit(bool(missed))


if __name__ == "__main__":
    main()
