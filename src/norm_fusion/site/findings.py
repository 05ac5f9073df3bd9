"""What an experiment found, for who has a minute: verdicts, winners, the largest speedups, where they do not hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from norm_fusion.records import Counters, Label, Status
from norm_fusion.report.cells import OPERATOR
from norm_fusion.report.quotes import Quote, overall, quote
from norm_fusion.report.rows import (
    WALL,
    Row,
    baseline_of,
    case_title,
    cases,
    duration,
    fastest_torch,
    fastest_wall,
    fused,
    label_of,
    span,
    times,
)
from norm_fusion.spec import Op

TILES = 4  # of speedups
# How a time was taken, in a reader's words.
TAKEN = {
    "graph": "a call in a CUDA graph",
    "device": "the kernels of a call alone",
    "wall": "a synchronized call",
    "host": "until a call is enqueued",
    "none": "not timed",
}
# Over whom: what the original experiment compared with, what most would call instead, the fastest in CUDA graphs, and
# the fastest in eager calls.
BASE, OWN, FASTEST, EAGER = (
    "torch-baseline",
    "PyTorch's operator",
    "the fastest PyTorch",
    "the fastest PyTorch, in eager calls",
)
AGAINST = (BASE, OWN, FASTEST, EAGER)


@dataclass(frozen=True)
class Verdict:
    """The fused kernel of an operator against one baseline, over all cases, in words; calls with their counts."""

    figure: str
    within: str
    calls: Sequence[tuple[str, str]]
    worst: str
    key: str  # of the record of the worst case


@dataclass(frozen=True)
class Answer:
    """Of an operator and a pass: whether to adopt it, and the verdict over each of AGAINST; None: not measured."""

    label: str
    cases: int
    plain: Sequence[tuple[str, str]]  # `Yes in CUDA graphs`, and how often; as the calls make it
    verdicts: Sequence[Verdict | None]


def answered(rows: Sequence[Row]) -> Iterator[Answer]:
    """An answer for each operator and pass."""
    for op, way in dict.fromkeys((row.any.op, row.any.pass_) for row in rows):
        groups = [group for group in cases(rows).values() if (group[0].any.op, group[0].any.pass_) == (op, way)]
        asked = [asked_of(group) for group in groups]
        quotes = {name: [one for each in asked if (one := each.get(name)) is not None] for name in AGAINST}
        if baseline_of(op) == OPERATOR:
            quotes[OWN] = quotes[BASE]
        made = [_verdict(quotes[name]) for name in AGAINST]
        if any(made) and op in set(Op):
            yield Answer(label_of(Op(op), way), len(groups), list(_plain(quotes)), made)


def _plain(quotes: Mapping[str, Sequence[Quote]]) -> Iterator[tuple[str, str]]:
    graph = [(name, quotes[name]) for name in (OWN, FASTEST) if quotes[name]]
    if graph:
        than = ", ".join(f"than {name} {_supported(those)}" for name, those in graph)
        yield f"{_adopt(graph[0][1]).capitalize()} in CUDA graphs", f"faster {than}"
    if quotes[EAGER]:
        said = f"{_adopt(quotes[EAGER])} in eager calls"
        slower = sum(_below(one) for one in quotes[EAGER])
        noisy = f", and slower in {slower} that are too noisy or too few to be called" if slower else ""
        yield said if graph else said.capitalize(), f"faster than {FASTEST} {_supported(quotes[EAGER])}{noisy}"


def _below(one: Quote) -> bool:
    """Its interval lies below 1, and no call says so."""
    return one.label is not Label.REGRESSION and one.interval is not None and one.interval[1] < 1


def _adopt(quotes: Sequence[Quote]) -> str:
    labels = [one.label for one in quotes]
    if Label.SUPPORTED in labels:
        return "yes" if {*labels} == {Label.SUPPORTED} else "in part"
    if Label.REGRESSION in labels:
        return "no"
    return "probably not" if 2 * sum(map(_below, quotes)) > len(quotes) else "not shown"


def _supported(quotes: Sequence[Quote]) -> str:
    return f"in {sum(one.label is Label.SUPPORTED for one in quotes)} of {len(quotes)}"


def asked_of(group: Sequence[Row]) -> dict[str, Quote]:
    """What a case's fused kernel claims over each of AGAINST, where that was measured."""
    mine = fused(group)
    if mine is None:
        return {}
    best, eager = fastest_torch(group), fastest_wall(group)
    base = baseline_of(mine.any.op)
    named = (
        (base, None),
        (OPERATOR if base != OPERATOR else None, None),
        (best.profile if best else None, None),
        (eager.profile if eager and mine.ratio is not None and mine.ratio.timer != WALL[0] else None, WALL),
    )
    found = [quote(mine, name, series) if name else None for name, series in named]
    return {over: one for over, one in zip(AGAINST, found, strict=True) if one is not None}


def _verdict(quotes: Sequence[Quote]) -> Verdict | None:
    found = overall(quotes)
    if found is None:
        return None
    figure, _, within = found.words.removeprefix("about ").partition(" ")
    counted = Counter(one.label for one in quotes if one.label is not None)
    calls = [(label.value, f"{label.value} {counted[label]} of {len(quotes)}") for label in Label if counted[label]]
    worst = found.worst
    said = f"worst {worst.words.partition(' ')[0]} at {case_title(worst.row.case)}" if len(quotes) > 1 else ""
    names = dict.fromkeys(one.baseline for one in quotes)
    over = f"over {', '.join(names)}" if len(names) <= 2 else f"over the fastest of {len(names)}"
    if found.words.startswith("about "):
        within = f"{'' if found.interval is None else span(*found.interval)}, too noisy to be called,".removeprefix(
            ", "
        )
    return Verdict(figure, f"{within} {over}".strip(), calls, said, worst.key)


@dataclass(frozen=True)
class Winner:
    """Who is fastest and correct in a case, by the series that speedups are quoted from, and the records that say so.

    Several where no call tells them from the fastest: `word` is then "tie", of what is no difference, or "undecided".
    """

    word: str
    names: Sequence[tuple[str, str]]  # with the keys of their records


def winner(group: Sequence[Row]) -> Winner:
    """The winner, or those between whom it is not decided."""
    timed = [
        (row.ratio.p50_ms, row)
        for row in group
        if row.contestant and row.status is Status.OK and row.ratio is not None and row.ratio.p50_ms is not None
    ]
    if not timed:
        return Winner("", [])
    first, *others = [row for _, row in sorted(timed, key=lambda pair: pair[0])]
    labels = {row.profile: one.label for row in others if (one := _between(first, row)) is not None}
    open_ = [row for row in others if labels.get(row.profile) not in (None, Label.SUPPORTED, Label.REGRESSION)]
    tie = all(labels[row.profile] is Label.NO_DIFFERENCE for row in open_)
    named = [(row.profile, row.ratio.key if row.ratio is not None else "") for row in (first, *open_)]
    return Winner(("tie" if tie else "undecided") if open_ else "", named)


def _between(one: Row, other: Row) -> Quote | None:
    """The call of either over the other."""
    found = (quote(one, other.profile), quote(other, one.profile))
    return next((said for said in found if said is not None and said.call is not None), None)


def unheld(rows: Sequence[Row]) -> Iterator[tuple[str, str, list[str]]]:
    """Where a speedup of the fused kernel is not supported: over what, the label, and the cases, the worst first."""
    found: dict[tuple[str, Label], list[Quote]] = {}
    for group in cases(rows).values():
        for over, one in asked_of(group).items():
            if one.label is not None and one.label is not Label.SUPPORTED:
                found.setdefault((over, one.label), []).append(one)
    for (over, label), those in found.items():
        worst = sorted(those, key=lambda one: one.speedup or 0.0)
        yield over, label.value, [f"{case_title(one.row.case)} ({one.words})" for one in worst]


def headline(rows: Sequence[Row], counters: Sequence[Counters]) -> Iterator[tuple[str, str, str, str]]:
    """What, the figure, what it is of, and the record: per operator, pass and dtype the largest supported speedup."""
    best: dict[tuple[str, str, str], tuple[float, Row, Row]] = {}
    for group in cases(rows).values():
        mine = fused(group)
        other = next((row for row in group if mine is not None and row.profile == baseline_of(mine.any.op)), None)
        one = quote(mine, other.profile) if mine is not None and other is not None else None
        if one is None or mine is None or other is None or one.label is not Label.SUPPORTED or one.speedup is None:
            continue
        key = (mine.any.op, mine.any.pass_, mine.any.dtype)
        if key not in best or one.speedup > best[key][0]:
            best[key] = (one.speedup, mine, other)
    for (op, way, dtype), (speedup, mine, other) in list(best.items())[:TILES]:
        r, theirs = mine.ratio, other.ratio
        if r is None or theirs is None or r.p50_ms is None or theirs.p50_ms is None:
            continue
        what = f"{label_of(Op(op), way)} {dtype}, most over torch-baseline"
        times_taken = f"{duration(r.p50_ms)} against {duration(theirs.p50_ms)}"
        said = f"{r.rows}x{r.cols}: {times_taken} of {other.profile}, {TAKEN[r.timer]}"
        yield what, times(speedup), said, r.key
    fused_counted = [c for c in counters if c.profile.startswith("triton-fused") and c.dram_pct is not None]
    if fused_counted:
        most = max(fused_counted, key=lambda c: c.compulsory_bytes)
        occupancy = "" if most.occupancy_pct is None else f", with {most.occupancy_pct:.1f}% occupancy"
        yield "Profile of the largest case", f"{most.dram_pct:.1f}% DRAM", f"{case_title(most.case)}{occupancy}", ""
