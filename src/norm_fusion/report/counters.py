"""What hardware counters say of a run, as a terminal shows it: a table, and a sentence of what limits each profile."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from norm_fusion.evidence.limiting import Limit, limit, traffic
from norm_fusion.records import Counters, Manifest
from norm_fusion.report.notes import printable
from norm_fusion.report.rows import duration
from norm_fusion.report.sheet import NOTHING, Column, Group, Line, Sheet, print_sheet
from norm_fusion.spec import ROOF, Matmul

NOT = "not collected: "
# Whose sentences a terminal is spared: the page has all.
OTHERS = "torch-"
TITLE = "Hardware counters of one cold call (profiled apart from all timing: its duration is no latency)"


# What each column says; the page explains them in the same words.
Said = Callable[[Counters], str | None]
FIRST: tuple[tuple[str, Said], ...] = (
    ("kernels", lambda one: _whole(len(one.kernels) or one.traced_kernels)),
    ("DRAM", lambda one: _percent(one.dram_pct)),
    ("moved", lambda one: None if one.dram_bytes is None else f"{one.dram_bytes / 1e6:,.1f} MB"),
    ("over needed", lambda one: None if (found := traffic(one)) is None else f"{found.ratio:.2f}x"),
)
THEN: tuple[tuple[str, Said], ...] = (
    ("occupancy", lambda one: _percent(one.occupancy_pct)),
    ("L2 hits", lambda one: _percent(one.l2_hit_pct)),
    ("tensor", lambda one: _percent(one.tensor_pct)),
    ("registers", lambda one: _whole(one.registers)),
)
LAST: tuple[tuple[str, Said], ...] = (
    ("SM", lambda one: _percent(one.sm_pct)),
    ("replayed", lambda one: None if one.duration_ms is None else duration(one.duration_ms)),
    ("traced", lambda one: None if one.traced_ms is None else duration(one.traced_ms)),
)
COLUMNS = (*FIRST, *THEN, *LAST)
# A kernel that is replayed, alone, takes up to so much longer than in a trace; calls that are further apart than this,
# and this factor, are not of the same kernels.
ALONE_MS, ALIKE = 0.002, 1.2


@dataclass(frozen=True)
class Cell:
    """A profile of a case on the page: what each column says, and what limits it."""

    profile: str
    figures: tuple[str | None, ...]
    limit: Limit | None
    roof: bool


def show_counters(console: Console, counters: Sequence[Counters]) -> None:
    """Print the table, why rows of it are empty, and what limits our kernels; nothing where there are no counters."""
    if not counters:
        return
    found = limits(counters)
    if collected := _collected(counters):
        print_sheet(console, _sheet(collected, found))
    console.print()
    for said in missing(counters):
        console.print(f"- {printable(said)}", soft_wrap=True)
    for one in counters:
        if (one.case, one.profile) in found and not one.profile.startswith(OTHERS):
            sentence = found[one.case, one.profile].sentence
            console.print(f"- {printable(f'{one.profile} at {one.case}: {sentence}')}", soft_wrap=True)


def ordered(counters: Iterable[Counters], manifest: Manifest) -> list[Counters]:
    """As the run was asked: cases, then profiles, the copy last."""
    asked = {cell: i for i, cell in enumerate(manifest.profiled)}
    return sorted(counters, key=lambda one: asked.get((one.case, one.profile), len(asked)))


def cells(counters: Sequence[Counters]) -> list[tuple[str, list[Cell]]]:
    """The same for the page: the cells of each case."""
    found = limits(counters)
    groups: dict[str, list[Cell]] = {}
    for one in _collected(counters):
        figures = tuple(said(one) for _, said in COLUMNS)
        limit_ = found.get((one.case, one.profile))
        groups.setdefault(one.case, []).append(Cell(one.profile, figures, limit_, one.profile == ROOF))
    return list(groups.items())


def limits(counters: Sequence[Counters]) -> dict[tuple[str, str], Limit]:
    """What limits each profile that has counters, by case and profile; the copy of its case is the yardstick."""
    roofs = {one.case: one for one in counters if one.profile == ROOF}
    contestants = [one for one in counters if one.kernels and one.profile != ROOF]
    return {(one.case, one.profile): limit(one, roofs.get(one.case)) for one in contestants}


def missing(counters: Sequence[Counters]) -> list[str]:
    """Why counters were not collected: a sentence for each reason, and whom it concerns."""
    why: dict[tuple[str, str], list[str]] = {}
    for one in counters:
        if not one.kernels:
            reason = (one.reason or "no reason was kept").removeprefix(NOT)
            why.setdefault((reason, one.remedy or ""), []).append(f"{one.profile} at {one.case}")
    said = []
    for (reason, remedy), who in why.items():
        everybody = len(who) == len(counters)
        whom = f" of all {len(who)}" if everybody else f" of {', '.join(who[:2])}"
        more = f" and {len(who) - 2} more" if len(who) > 2 and not everybody else ""
        said.append(f"hardware counters{whom}{more} were not collected: {reason}{f'; {remedy}' if remedy else ''}")
    untraced = dict.fromkeys(one.traced_reason.removeprefix(NOT) for one in counters if one.traced_reason)
    reasons = {reason for reason, _ in why}
    said += _others(counters)
    return [*said, *(f"kernels were not traced: {reason}" for reason in untraced if reason not in reasons)]


def _others(counters: Sequence[Counters]) -> Iterator[str]:
    """What the figures do not say by themselves."""
    if any((found := traffic(one)) is not None and found.ratio < 1 for one in counters):
        said = "what L2 still held to be written when a kernel ended is not counted, nothing is saved"
        yield f"over needed below 1: {said}"
    odd = [
        f"{one.profile} at {one.case} (replayed {duration(one.duration_ms)}, traced {duration(one.traced_ms)})"
        for one in counters
        if one.duration_ms is not None and one.traced_ms
        if not one.traced_ms / ALIKE <= one.duration_ms <= one.traced_ms * ALIKE + ALONE_MS * len(one.kernels)
    ]
    if odd:
        yield f"counted and traced were not the same kernels, as what tunes itself chooses anew: {', '.join(odd)}"


def _collected(counters: Sequence[Counters]) -> list[Counters]:
    return [one for one in counters if one.kernels or one.traced_kernels is not None]


def _sheet(counters: Sequence[Counters], found: Mapping[tuple[str, str], Limit]) -> Sheet:
    lines: list[Line] = []
    of: list[Counters | None] = []
    for case in dict.fromkeys(one.case for one in counters):
        lines.append(Line(printable(case), heading=True))
        of.append(None)
        for one in (one for one in counters if one.case == case):
            lines.append(Line(f"  {printable(one.profile)}", "dim" if one.profile == ROOF else ""))
            of.append(one)

    def column(head: str, said: Said) -> Column:
        def cell(i: int) -> tuple[str, str]:
            one = of[i]
            return ("" if one is None else said(one) or NOTHING), ""

        return head, cell

    def kind(one: Counters) -> str | None:
        mine = found.get((one.case, one.profile))
        return None if mine is None else mine.kind

    tensor = any(one.case.startswith(f"{Matmul.op}-") for one in counters)
    first, then, last = (
        [column(head, said) for head, said in some if tensor or head != "tensor"] for some in (FIRST, THEN, LAST)
    )
    groups = [Group([*first, column("limit", kind)], left=("limit",)), Group(then), Group(last)]
    return Sheet(TITLE, "case / profile", lines, groups)


def _percent(value: float | None) -> str | None:
    return None if value is None else f"{value:.1f}%"


def _whole(value: int | None) -> str | None:
    return None if value is None else f"{value}"
