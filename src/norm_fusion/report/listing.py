"""A list of runs, as a terminal shows it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from norm_fusion.report.notes import printable
from norm_fusion.report.sheet import NOTHING, Cell, Column, Group, Line, Sheet, print_sheet
from norm_fusion.runs.listing import Listed

LONGEST = 60  # characters of a cell: a manifest may hold texts of megabytes
STYLE = {"finished": "", "running": "cyan", "interrupted": "yellow", "partial": "yellow", "blocked": "red"}


def show_runs(console: Console, runs: Sequence[Listed]) -> None:
    """Print them, a line each."""

    def column(head: str, cell: Callable[[Listed], Cell | str]) -> Column:
        def said(i: int) -> Cell:
            made = cell(runs[i])
            return (printable(made)[:LONGEST], "") if isinstance(made, str) else made

        return head, said

    main = [
        column("state", lambda one: (one.state, STYLE.get(one.state, ""))),
        column("cases done", lambda one: f"{one.done}/{one.cases}"),
        column("processes", lambda one: str(one.processes)),
        column("started (UTC)", lambda one: one.started_at[:16].replace("T", " ")),
        column("took", _took),
    ]
    where = [
        column("device", lambda one: ", ".join(one.devices) or NOTHING),
        column("suite", lambda one: one.suite or NOTHING),
    ]
    lines = [Line(printable(one.run_id)) for one in runs]
    left = ("state", "device", "suite")
    print_sheet(console, Sheet("Runs", "run", lines, [Group(main, left), Group(where, left)]))


def _took(one: Listed) -> str:
    if one.took_s is None:
        return NOTHING
    return f"{one.took_s:.0f} s" if one.took_s < 600 else f"{one.took_s / 60:.0f} min"
