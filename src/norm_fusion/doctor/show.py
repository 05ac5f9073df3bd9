"""Findings as a terminal shows them: a mark, a name, what was seen; below what is not ok, what it means and what to do.

Marks are words: they survive a pipe, a log, `grep` and a reader who sees no colours.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.text import Text

from norm_fusion.doctor import Report
from norm_fusion.doctor.finding import Finding, State

STYLE: dict[State, str] = {"ok": "green", "limited": "yellow", "missing": "red", "unknown": "cyan"}
MARK = max(len(state) for state in STYLE)
WIDEST = 110  # longer lines are hard to read, however wide the terminal is
PIPE_WIDTH = 100
NARROWEST = 24
ARROW = "-> "


def show(console: Console, report: Report) -> None:
    """Print the findings by group, and the sentence that sums them up."""
    width = min(console.width, WIDEST)
    for line in lines(report.findings, width):
        _print(console, line)
    _print(console, Text())
    for part in textwrap.wrap(report.summary, width, break_on_hyphens=False, break_long_words=False):
        _print(console, Text(part, "bold"))


def lines(findings: Sequence[Finding], width: int) -> Iterator[Text]:
    """The findings as lines of at most `width` characters, single long words apart."""
    names = max((len(finding.name) for finding in findings), default=0)
    indent = 2 + MARK + 2 + names + 2
    room = max(width - indent, NARROWEST)
    group = None
    for finding in findings:
        if finding.group != group:
            if group is not None:
                yield Text()
            group = finding.group
            yield Text(group, "bold")
        head = Text.assemble("  ", (f"{finding.state:{MARK}}", STYLE[finding.state]), f"  {finding.name:{names}}  ")
        first, *rest = _wrapped(finding.seen, room) or [""]
        yield head + Text(first)
        for part in rest:
            yield Text(" " * indent + part)
        for part in _wrapped(finding.means or "", room):
            yield Text(" " * indent + part, "dim")
        for i, part in enumerate(_wrapped(finding.remedy or "", room - len(ARROW))):
            yield Text(" " * indent + (" " * len(ARROW) if i else ARROW) + part, STYLE[finding.state])


def _wrapped(text: str, width: int) -> list[str]:
    # Paths and commands stay whole, to be copied.
    return textwrap.wrap(text, width, break_on_hyphens=False, break_long_words=False)


def _print(console: Console, line: Text) -> None:
    # A terminal that knows ASCII alone shows a question mark rather than a traceback.
    line.plain = line.plain.rstrip().encode(console.encoding, "replace").decode(console.encoding)
    console.print(line, soft_wrap=True, highlight=False)
