"""Calls and comparisons as a terminal shows them. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console

from norm_fusion.evidence.compare import Comparison, Row, became, summary
from norm_fusion.records import Cache, Call, Conclusions, Label, Timer
from norm_fusion.report.notes import printable
from norm_fusion.report.rows import ROLES, duration, give_or_take
from norm_fusion.report.sheet import CALL_STYLE, NOTHING, Cell, Column, Group, Line, Sheet, print_sheet

Claimed = tuple[str, str, str, Timer, Cache]


def changes(made: Conclusions, stored: Conclusions | None) -> list[tuple[Call | None, Call | None]]:
    """The calls whose label, code or figure is not what it was, as (stored, made); None where one is new, or gone."""
    before: dict[Claimed, Call] = {} if stored is None else {call.claim: call for call in stored.calls}
    after = {call.claim: call for call in made.calls}
    pairs = [(before.get(claim), after.get(claim)) for claim in dict.fromkeys([*after, *before])]
    return [(was, now) for was, now in pairs if was is None or now is None or _said(was) != _said(now)]


def show_calls(console: Console, made: Conclusions, stored: Conclusions | None) -> None:
    """How many calls there are, and which are not what they were; all of them where none were stored."""
    counted = Counter(call.label for call in made.calls)
    parts = ", ".join(f"{counted[label]} {label.value}" for label in Label if counted[label])
    none = "there are none of a quick run, of one process, or of damaged records"
    _line(console, f"{len(made.calls)} calls by rule {made.rule}: {parts or none}")
    if stored is None:
        for call in made.calls:
            _line(console, f"{_claim(call)}: {call.label.value}: {call.reason}", CALL_STYLE[call.label])
        return
    changed = changes(made, stored)
    if not changed:
        _line(console, f"nothing changed against the stored calls, by rule {stored.rule}")
    for was, now in changed:
        claim = "".join({_claim(each): None for each in (was, now) if each is not None})
        told = _figure if was is not None and now is not None and _labelled(was) == _labelled(now) else _labelled
        old, new = ("no call" if each is None else told(each) for each in (was, now))
        why = "" if now is None else f": {now.reason}"
        _line(console, f"{claim}: {old} -> {new}, rule {stored.rule} -> {made.rule}{why}")


def show_comparison(console: Console, comparison: Comparison, a: str, b: str) -> None:
    """A table of the rows that two runs share, why some have no label by their interval, and one sentence.

    "B speedup" is A's time over B's.
    """
    lines: list[Line] = []
    rows: list[Row | None] = []
    case = None
    for row in comparison.rows:
        if row.case != case:
            case = row.case
            lines.append(Line(printable(case), heading=True))
            rows.append(None)
        name = ROLES.get(row.profile, row.profile)
        lines.append(Line(f"  {printable(name)}", "" if row.counts else "dim"))
        rows.append(row)

    def column(head: str, cell: Callable[[Row], Cell]) -> Column:
        return head, lambda i: ("", "") if (row := rows[i]) is None else cell(row)

    columns = [
        column("series", lambda row: (row.timer if row.cache == "cold" else f"{row.timer} {row.cache}", "")),
        column("A", lambda row: (duration(row.a_ms), "")),
        column("B", lambda row: (duration(row.b_ms), "")),
        column("B speedup", lambda row: (f"{row.speedup:.3f}x", "")),
        column("95%", lambda row: (_width(row), "")),
        column("B is", lambda row: (became(row.label), CALL_STYLE[row.label])),
    ]
    title = f"A is {printable(a)}, B is {printable(b)}; 95% intervals over the processes of each"
    print_sheet(console, Sheet(title, "case / profile", lines, [Group(columns, left=("series", "B is"))]))
    console.print()
    for note in (*_notes(comparison.rows), *comparison.lost):
        _line(console, f"- {note}")
    console.print(printable(summary(comparison, a, b)), style="bold", markup=False, highlight=False, soft_wrap=True)


def _notes(rows: Iterable[Row]) -> Iterator[str]:
    """Why rows have a label that is not by their interval: those that share a reason's code share a line."""
    shared: dict[tuple[Label, str], list[Row]] = {}
    for row in rows:
        if row.label in (Label.INVALID, Label.RERUN_NOISE) or row.code == "processes":
            shared.setdefault((row.label, row.code), []).append(row)
    for (label, code), those in shared.items():
        first = those[0]
        place = f"{first.profile} at {first.case} ({first.timer} {first.cache})"
        count = f" in {len(those)} rows, the first" if len(those) > 1 else ""
        yield f"{label.value} ({code}){count}: {place}: {first.reason}"


def _width(row: Row) -> str:
    return NOTHING if row.low is None or row.high is None else give_or_take(row.low, row.high)


def _said(call: Call) -> tuple[str, str]:
    return _labelled(call), _figure(call)


def _labelled(call: Call) -> str:
    return f"{call.label.value} ({call.code})"


def _figure(call: Call) -> str:
    speedup = "no speedup" if call.speedup is None else f"{call.speedup:.4f}x"
    return f"{speedup} of {call.processes} processes of attempt {call.attempt + 1}"


def _claim(call: Call) -> str:
    return f"{call.case} {call.profile} over {call.baseline}, {call.timer} {call.cache}"


def _line(console: Console, text: str, style: str = "") -> None:
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)
