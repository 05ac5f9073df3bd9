"""Tables on a terminal: columns in groups that are read together, as many groups a table as the terminal is wide for.

Nothing is ever cut: what does not fit beside the names continues in a table below.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.text import Text

from norm_fusion.records import Label

NOTHING = "-"
GAP = "  "
PIPE_WIDTH = 200  # a pipe has no width: wide enough that all figures of a row share a line
CALL_STYLE: Mapping[Label, str] = {
    Label.SUPPORTED: "green",
    Label.REGRESSION: "red",
    Label.INVALID: "bold red",
    Label.RERUN_NOISE: "yellow",
    Label.INCONCLUSIVE: "",
    Label.NO_DIFFERENCE: "",
}

Cell = tuple[str, str]  # text and style
Column = tuple[str, Callable[[int], Cell]]  # a heading, and what it says of a line


@dataclass(frozen=True)
class Line:
    """A line of a table: its name, and whether it has figures or is a heading."""

    name: str
    style: str = ""
    heading: bool = False


@dataclass(frozen=True)
class Group:
    """Columns that are read together. Without `needed` they are left out where the terminal is not wide enough."""

    columns: Sequence[Column]
    left: Sequence[str] = ()  # headings of columns that are aligned at their left
    needed: bool = True


@dataclass(frozen=True)
class Sheet:
    """A table before it is cut to a terminal's width."""

    title: str
    first: str  # the heading of the names
    lines: Sequence[Line]
    groups: Sequence[Group]


def print_sheet(console: Console, sheet: Sheet) -> None:
    """Print a sheet, if it has lines, as one table or as many as its groups need."""
    for line in _printed(sheet, console.width) if sheet.lines else ():
        console.print(line, soft_wrap=True)


def _printed(sheet: Sheet, width: int) -> Iterator[Text]:
    names = max(len(sheet.first), *(len(line.name) for line in sheet.lines if not line.heading))
    waiting = [group for group in sheet.groups if group.columns]
    title = sheet.title
    while waiting:
        room = width - names - (taken := _width(waiting[0], sheet.lines))
        chosen = [waiting.pop(0)]
        while waiting and (more := _width(waiting[0], sheet.lines)) <= room:
            room, taken = room - more, taken + more
            chosen.append(waiting.pop(0))
        while waiting and not waiting[0].needed:
            waiting.pop(0)
        yield Text()
        yield Text(title, "bold")
        yield from _table(sheet, chosen, names, names + taken)
        title = f"{sheet.title}, continued"


def _width(group: Group, lines: Sequence[Line]) -> int:
    return sum(len(GAP) + _column(column, lines) for column in group.columns)


def _column(column: Column, lines: Sequence[Line]) -> int:
    head, cell = column
    return max(len(head), *(len(cell(i)[0]) for i, line in enumerate(lines) if not line.heading))


def _table(sheet: Sheet, groups: Sequence[Group], names: int, width: int) -> Iterator[Text]:
    columns = [(column, _column(column, sheet.lines), column[0] in g.left) for g in groups for column in g.columns]

    def placed(text: str, size: int, left: bool) -> str:
        return text.ljust(size) if left else text.rjust(size)

    head = GAP.join([sheet.first.ljust(names), *(placed(column[0], size, left) for column, size, left in columns)])
    yield Text(head.rstrip())
    yield Text("─" * width)
    for i, line in enumerate(sheet.lines):
        if line.heading and i and not sheet.lines[i - 1].heading:
            yield Text()
        made = Text(line.name if line.heading else line.name.ljust(names), "bold" if line.heading else line.style)
        for (_, cell), size, left in columns if not line.heading else ():
            text, style = cell(i)
            made.append(GAP)
            made.append(placed(text, size, left), style)
        made.rstrip()
        yield made
