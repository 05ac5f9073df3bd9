"""Calls and comparisons as a terminal shows them. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from norm_fusion.evidence.compare import Comparison, Row, summary
from norm_fusion.records import Cache, Call, Conclusions, Label, Timer
from norm_fusion.report.rows import ROLES, duration

NOTHING = "-"
LISTED = 8  # reasons in a terminal
STYLE: Mapping[Label, str] = {
    Label.SUPPORTED: "green",
    Label.REGRESSION: "red",
    Label.INVALID: "bold red",
    Label.RERUN_NOISE: "yellow",
    Label.INCONCLUSIVE: "",
    Label.NO_DIFFERENCE: "",
}

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
    none = "a quick run and a run of one process have none"
    _line(console, f"{len(made.calls)} calls by rule {made.rule}: {parts or none}")
    if stored is None:
        for call in made.calls:
            _line(console, f"{_claim(call)}: {call.label.value}: {call.reason}", STYLE[call.label])
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

    "B faster by" is A's time over B's.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for head in ("case / profile", "series"):
        table.add_column(head, overflow="fold")
    for head in (_printable(f"A {a}"), _printable(f"B {b}"), "B faster by", "95% interval"):
        table.add_column(head, justify="right", overflow="fold")
    table.add_column("B is")
    case = None
    for row in comparison.rows:
        if row.case != case:
            case = row.case
            table.add_section()
            table.add_row(Text(_printable(case), "bold"))
        table.add_row(*_cells(row), style=None if row.counts else "dim")
    console.print(table)
    console.print()
    for note in _notes(comparison.rows):
        _line(console, f"- {note}")
    console.print(_printable(summary(comparison, a, b)), style="bold", markup=False, highlight=False, soft_wrap=True)


def _notes(rows: Iterable[Row]) -> Iterator[str]:
    """Why rows have a label that is not by their interval: those that share a reason share a line."""
    shared: dict[tuple[Label, str], list[str]] = {}
    for row in rows:
        if row.label in (Label.INVALID, Label.RERUN_NOISE) or row.code == "processes":
            place = f"{row.profile} at {row.case} ({row.timer} {row.cache})"
            shared.setdefault((row.label, row.reason), []).append(place)
    for (label, reason), places in list(shared.items())[:LISTED]:
        yield f"{label.value}: {places[0]}{f' and {len(places) - 1} more' if len(places) > 1 else ''}: {reason}"
    if len(shared) > LISTED:
        yield f"and {len(shared) - LISTED} more reasons: --json has them all"


def _cells(row: Row) -> list[Text | str]:
    said = {Label.SUPPORTED: "faster", Label.REGRESSION: "slower"}.get(row.label, row.label.value)
    series = row.timer if row.cache == "cold" else f"{row.timer} {row.cache}"
    return [
        Text(_printable(f"  {ROLES.get(row.profile, row.profile)}")),
        series,
        duration(row.a_ms),
        duration(row.b_ms),
        f"{row.speedup:.3f}x",
        NOTHING if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}",
        Text(said, STYLE[row.label]),
    ]


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
    console.print(_printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def _printable(text: str) -> str:
    """Records are data: what would steer the terminal is dropped."""
    return "".join(c for c in text if c.isprintable())
