"""What hardware counters say of a run, as a terminal shows it: a table, and a sentence of what limits each profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console
from rich.text import Text

from norm_fusion.evidence.limiting import Limit, limit, traffic
from norm_fusion.records import Counters
from norm_fusion.report.notes import printable
from norm_fusion.report.rows import duration
from norm_fusion.report.sheet import NOTHING, Column, Group, Line, Sheet, print_sheet
from norm_fusion.spec import ROOF, Matmul

NOT = "not collected: "
TITLE = "Hardware counters of one cold call (profiled apart from all timing: its duration is no latency)"


def show_counters(console: Console, counters: Sequence[Counters]) -> None:
    """Print the table, why rows of it are empty, and what limits each profile; nothing where there are no counters."""
    if not counters:
        return
    collected = [one for one in counters if one.kernels or one.traced_kernels is not None]
    if collected:
        print_sheet(console, _sheet(collected))
    console.print()
    for said in missing(counters):
        console.print(f"- {printable(said)}", soft_wrap=True)
    for one, found in limits(counters):
        line = Text(f"- {one.profile} at {one.case}: ")
        line.append(found.kind, "bold")
        console.print(line + Text(printable(found.sentence.removeprefix(found.kind))), soft_wrap=True)


def limits(counters: Sequence[Counters]) -> list[tuple[Counters, Limit]]:
    """What limits each profile that has counters, the copy of its case as yardstick."""
    roofs = {one.case: one for one in counters if one.profile == ROOF}
    return [(one, limit(one, roofs.get(one.case))) for one in counters if one.kernels and one.profile != ROOF]


def missing(counters: Sequence[Counters]) -> list[str]:
    """Why counters were not collected: a sentence for each reason, and whom it concerns."""
    why: dict[tuple[str, str], list[str]] = {}
    for one in counters:
        if not one.kernels:
            why.setdefault((one.reason or "no reason was kept", one.remedy or ""), []).append(
                f"{one.profile} at {one.case}"
            )
    said = []
    for (reason, remedy), who in why.items():
        whom = f" of all {len(who)}" if len(who) == len(counters) else f" of {', '.join(who[:2])}"
        more = f" and {len(who) - 2} more" if len(who) > 2 and len(who) < len(counters) else ""
        why_not = f"{reason.removeprefix(NOT)}{f'; {remedy}' if remedy else ''}"
        said.append(f"hardware counters{whom}{more} were not collected: {why_not}")
    reasons = {reason for reason, _ in why}
    untraced = dict.fromkeys(
        one.traced_reason for one in counters if one.traced_reason and one.traced_reason not in reasons
    )
    return [*said, *(f"kernels were not traced: {reason.removeprefix(NOT)}" for reason in untraced)]


def _sheet(counters: Sequence[Counters]) -> Sheet:
    lines: list[Line] = []
    of: list[Counters | None] = []
    for case in dict.fromkeys(one.case for one in counters):
        lines.append(Line(printable(case), heading=True))
        of.append(None)
        for one in (one for one in counters if one.case == case):
            lines.append(Line(f"  {printable(one.profile)}", "dim" if one.profile == ROOF else ""))
            of.append(one)
    tensor = any(one.case.startswith(f"{Matmul.op}-") for one in counters)

    def column(head: str, said: Callable[[Counters], str | None]) -> Column:
        def cell(i: int) -> tuple[str, str]:
            one = of[i]
            return ("" if one is None else said(one) or NOTHING), ""

        return head, cell

    main = [
        column("kernels", lambda one: _whole(len(one.kernels) or one.traced_kernels)),
        column("DRAM", lambda one: _percent(one.dram_pct)),
        column("moved", lambda one: None if one.dram_bytes is None else f"{one.dram_bytes / 1e6:,.1f} MB"),
        column("of needed", lambda one: None if (found := traffic(one)) is None else f"{found.ratio:.2f}x"),
        column("occupancy", lambda one: _percent(one.occupancy_pct)),
        column("L2 hits", lambda one: _percent(one.l2_hit_pct)),
        *([column("tensor", lambda one: _percent(one.tensor_pct))] if tensor else []),
    ]
    more = [
        column("registers", lambda one: _whole(one.registers)),
        column("SM", lambda one: _percent(one.sm_pct)),
        column("replayed", lambda one: None if one.duration_ms is None else duration(one.duration_ms)),
        column("traced", lambda one: None if one.traced_ms is None else duration(one.traced_ms)),
    ]
    return Sheet(TITLE, "case / profile", lines, [Group(main), Group(more)])


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}%"


def _whole(value: int | None) -> str | None:
    return None if value is None else f"{value}"
