"""Decisions as a terminal shows them: the matrix, or one with its claims, its evidence and its boundary. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from norm_fusion.evidence.boundary import Bound, named
from norm_fusion.evidence.selection import Selected
from norm_fusion.records import Decided, DecidedClaim, DecidedRow, DecisionStatus, Standing
from norm_fusion.report.notes import printable
from norm_fusion.report.rows import duration, span, times
from norm_fusion.report.sheet import NOTHING, Cell, Column, Group, Line, Sheet, print_sheet

STATUS_STYLE = {
    DecisionStatus.SUPPORTED: "green",
    DecisionStatus.MEASURED: "cyan",
    DecisionStatus.CAVEATED: "yellow",
    DecisionStatus.REJECTED: "red",
}
HEADS = {
    "dram_pct": "DRAM",
    "occupancy_pct": "occupancy",
    "sm_pct": "SM",
    "tensor_pct": "tensor pipes",
    "l2_hit_pct": "L2 hits",
    "roof_share": "share of copy",
    "gbps": "GB/s",
    "p50_ms": "p50",
    "max_rel_error": "max rel error",
}
STANDING_STYLE = {Standing.HOLDS: "green", Standing.SHOWN: "cyan", Standing.OPEN: "", Standing.FAILS: "red"}


def show_matrix(console: Console, decisions: Sequence[Decided]) -> None:
    """A line each, by domain: its status, how many rows hold of what it rests on, and of its boundary."""
    lines: list[Line] = []
    of: list[Decided | None] = []
    for domain in dict.fromkeys(one.domain for one in decisions):
        lines.append(Line(printable(domain), heading=True))
        of.append(None)
        for one in (one for one in decisions if one.domain == domain):
            lines.append(Line(f"  {printable(one.title)}"))
            of.append(one)

    def column(head: str, said: object) -> Column:
        def cell(i: int) -> Cell:
            one = of[i]
            made: Cell = ("", "") if one is None else said(one)  # type: ignore[operator]
            return made

        return head, cell

    columns = [
        column("status", lambda one: (one.status.value, STATUS_STYLE[one.status])),
        column("rests on", lambda one: (held(one, boundary=False), "")),
        column("boundary", lambda one: (held(one, boundary=True), "")),
        column("evidence of", lambda one: ((one.latest or NOTHING)[:10], "")),
        column("name", lambda one: (one.name, "dim")),
    ]
    print_sheet(console, Sheet("Decisions", "domain / decision", lines, [Group(columns, ("status", "name"))]))
    console.print()
    for one in decisions:
        if one.status is not DecisionStatus.SUPPORTED:
            _line(console, f"{one.title} is {one.status.value}: {one.why}.")


def held(one: Decided, boundary: bool) -> str:
    """`5 of 5`: the rows that hold, or are shown, of the claims that it rests on, or of its boundary."""
    rows = one.rows(boundary)
    return f"{sum(r.standing in (Standing.HOLDS, Standing.SHOWN) for r in rows)} of {len(rows)}" if rows else NOTHING


def show_decision(
    console: Console, one: Decided, boundary: Sequence[Bound], expires: str, selected: Sequence[Selected] = ()
) -> None:
    """One decision, whole; `selected`: the runs that speak."""
    console.print(Text(printable(one.title), "bold"), end="  ")
    console.print(Text(one.status.value, STATUS_STYLE[one.status]), end="  ")
    console.print(Text(printable(f"{one.domain} · owner {one.owner} · {one.name}"), "dim"))
    _line(console, one.statement)
    _line(console, f"{one.status.value}: {one.why}.")
    for claim in one.claims:
        print_sheet(console, _sheet(claim))
    if selected:
        console.print()
        console.print(Text("Selected runs", "bold"))
    for run, cases in _speaking(selected).items():
        over = {other.name: why for each in selected if each.run.name == run for other, why in each.passed_over}
        told = "; ".join(f"{name} {why}" for name, why in over.items())
        _line(console, f"- {run} speaks for {named(cases)}.{f' Passed over: {told}.' if told else ''}")
    console.print()
    console.print(Text("Evidence boundary", "bold"))
    for bound in boundary:
        _line(console, f"- {bound.sentence}")
    _line(console, f"- {expires}")


def _speaking(selected: Sequence[Selected]) -> dict[str, list[str]]:
    """By run the cases that it speaks for."""
    found: dict[str, list[str]] = {}
    for one in selected:
        found.setdefault(one.run.name, []).append(one.case)
    return found


def _sheet(claim: DecidedClaim) -> Sheet:
    rows = claim.rows

    def column(head: str, said: object) -> Column:
        def cell(i: int) -> Cell:
            made: Cell = said(rows[i])  # type: ignore[operator]
            return made

        return head, cell

    columns = [
        column(metric(claim), lambda row: (value(claim, row), "")),
        column("95%", lambda row: (NOTHING if row.low is None or row.high is None else span(row.low, row.high), "")),
        column("over", lambda row: (printable(row.baseline or NOTHING), "")),
        column("call", lambda row: (row.label or NOTHING, "")),
        column("claim", lambda row: (row.standing.value, STANDING_STYLE[row.standing])),
        column("run", lambda row: (printable(row.run), "dim")),
    ]
    if len({row.gpu for row in rows}) > 1:
        columns.append(column("GPU", lambda row: (printable(row.gpu), "")))
    left = ("over", "call", "claim", "run", "GPU")
    title = f"{'Boundary' if claim.boundary else 'Rests on'}: {claim.says} ({wanted(claim)})"
    return Sheet(printable(title), "case", [Line(printable(row.case)) for row in rows], [Group(columns, left)])


def wanted(claim: DecidedClaim) -> str:
    """`speedup at least 1.02 in kernels`."""
    where = {"kernel": " in kernels", "eager": " in eager calls"}.get(claim.series, "")
    unit = "%" if claim.metric.endswith("_pct") else ""
    return f"{metric(claim)} at {'most' if claim.at_most else 'least'} {claim.threshold:.4g}{unit}{where}"


def metric(claim: DecidedClaim) -> str:
    """What is claimed, as the head of a column."""
    return HEADS.get(claim.metric, claim.metric)


def value(claim: DecidedClaim, row: DecidedRow) -> str:
    """A row's figure, as its metric is written."""
    if row.value is None:
        return NOTHING
    if claim.metric == "speedup":
        return times(row.value)
    if claim.metric.endswith("_pct"):
        return f"{row.value:.1f}%"
    if claim.metric.endswith("_ms"):
        return duration(row.value)
    return f"{row.value:.3g}"


def _line(console: Console, text: str) -> None:
    console.print(Text(printable(text)), soft_wrap=console.width >= 200)
