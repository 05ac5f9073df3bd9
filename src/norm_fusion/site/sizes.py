"""Plots over shapes: speedup by rows and columns, latency and GB/s against size. Altair, no data.

A facet is an operator, pass and dtype. Facets are stacked in one chart (series.Stack), with heights in px from its top.

A line connects cases only where each next one has at least as many rows and as many columns as the one before: what
lies between them then is of both kinds. 64 and 8,192 rows, with many columns each, have cases of the same bytes that
do not take the same time; where the cases of a facet are no such chain, each number of rows gets a facet of its own.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeVar

import altair as alt

from norm_fusion.records import Label, Status
from norm_fusion.report.chart import INK, LABEL_COLOURS, LABEL_MAX, TINT, colour, drawn, log_steps
from norm_fusion.report.panels import Panel, timed
from norm_fusion.report.quotes import quote
from norm_fusion.report.rows import Row, baseline_of, case_title, cases, fastest_torch, fused, label_of, times, usual
from norm_fusion.site.series import LINE_PX, MUTED, RULE, SMALL, SMALL_PX, Data, Marks, Stack, spread, ticks
from norm_fusion.spec import CONTROL, ROOF, Case, SpecError

MOST = 16  # facets of a chart: of more, those with the fewest cases are left out, and the chart says how many
ACROSS = 5  # columns that a telephone has room for: where there are more, the fewer of rows and columns go across
GAP_PX = 16
CELL_PX, BARE_CELL_PX = 38, 26
CURVES_PX = 132  # height of a facet's plot, at least: more profiles need more room for their names
NAME_PX = 14  # between two names
TICK_ROOM_PX = 50
TICKS_APART = 0.42  # of the plot's width, those that a telephone has room for the text of
NO_BASELINE = "no baseline"
# In cells too narrow for the word itself.
SHORT: Mapping[str, str] = {
    Label.NO_DIFFERENCE.value: "no diff.",
    Label.INCONCLUSIVE.value: "inconcl.",
    Label.RERUN_NOISE.value: "noise",
    NO_BASELINE: "no base",
    "not called": "no call",
}

Over = Literal["fastest", "baseline"]
Facet = TypeVar("Facet")


def by_facet(rows: Sequence[Row]) -> dict[str, dict[Case, list[Row]]]:
    """The rows of each operator, pass and dtype, by case, smallest first; what is named like no case is left out."""
    facets: dict[str, dict[Case, list[Row]]] = {}
    for name, mine in cases(rows).items():
        try:
            case = Case.parse(name)
        except SpecError:
            continue
        if case.name == name:  # 04096 is 4096: a name that no case is given
            facets.setdefault(f"{label_of(case.op, case.pass_)} {case.dtype}", {})[case] = mine
    return {title: {c: found[c] for c in sorted(found, key=_size)} for title, found in facets.items()}


def speedups(rows: Sequence[Row], over: Over) -> alt.LayerChart | None:
    """The fused kernel's speedup at each number of rows and columns; its call is the cell's word and colour."""
    tables: list[tuple[str, dict[Case, Data]]] = []
    for title, shapes in by_facet(rows).items():
        found = {case: cell for case, group in shapes.items() if (cell := _cell(group, over)) is not None}
        tables += [(title, found)] if found else []
    shown, left_out = _most(tables, lambda table: len(table[1]))
    if all(cell["word"] == NO_BASELINE for _, found in shown for cell in found.values()):
        return None
    sides = {side: sorted({getattr(case, side) for _, found in shown for case in found}) for side in ("rows", "cols")}
    turned = len(sides["cols"]) > ACROSS and len(sides["rows"]) < len(sides["cols"])
    across, down = ("rows", "cols") if turned else ("cols", "rows")
    cells = [cell for _, found in shown for cell in found.values()]
    bare = "" if all(cell["word"] for cell in cells) else "; without a word: one process alone"
    tall = CELL_PX if any(cell["word"] and cell["text"] for cell in cells) else BARE_CELL_PX
    stack = Stack(left=SMALL_PX * max(len(str(n)) for n in [*sides[down], down]) + 10)
    stack.remark(f"{down} down, {across} across{bare}")
    marks: Marks = defaultdict(list)
    for title, found in shown:
        stack.heading(title)
        stack.side(stack.y + LINE_PX / 2, down)
        at = {str(getattr(case, across)): None for case in sorted(found, key=lambda case: getattr(case, across))}
        marks["heads"] += [{"x": n, "y": stack.y + LINE_PX / 2, "text": n, "colour": MUTED} for n in at]
        stack.y += LINE_PX
        for n in sorted({getattr(case, down) for case in found}):
            stack.side(stack.y + tall / 2, str(n))
            for case, cell in found.items():
                if getattr(case, down) == n:
                    _place_cell(marks, str(getattr(case, across)), stack.y, stack.y + tall - 2, cell)
            stack.y += tall
        stack.y += GAP_PX
    stack.y -= GAP_PX
    stack.remark(left_out)
    return stack.chart(*_cells(stack, marks, [str(n) for n in sides[across]]))


def _cell(group: Sequence[Row], over: Over) -> Data | None:
    """What a case's cell says; None where its fused kernel was not timed."""
    row = fused(group)
    if row is None or not (row.status is Status.OK or row.status.bad):
        return None
    best = fastest_torch(group)
    baseline = baseline_of(row.any.op) if over == "baseline" else best.profile if best else None
    one = None if baseline is None else quote(row, baseline)
    if row.status.bad:
        invalid = one is not None and one.label is Label.INVALID
        return {"text": "", "word": Label.INVALID.value if invalid else row.status.value, "colour": "var(--bad)"}
    if one is None or (one.speedup is None and one.label is None):
        return {"text": "", "word": NO_BASELINE, "colour": MUTED}
    text = "" if one.speedup is None else times(one.speedup)
    if one.label is None:
        return {"text": text, "word": "" if (row.any.processes or 1) == 1 else "not called", "colour": MUTED}
    return {"text": text, "word": one.label.value, "colour": LABEL_COLOURS[one.label]}


def _place_cell(marks: Marks, x: str, y: float, y2: float, cell: Data) -> None:
    """A cell, its speedup and its word: above each other, or in the middle where it has one of them alone."""
    middle, both = (y + y2) / 2, bool(cell["text"] and cell["word"])
    tint = {"colour": cell["colour"], "opacity": 0.1 if cell["colour"] in (INK, MUTED) else 0.17}
    marks["cells"].append({"x": x, "y": y, "y2": y2} | tint)
    if cell["text"]:
        marks["texts"].append(
            {"x": x, "y": middle - 6 * both, "text": cell["text"], "colour": INK if cell["word"] else MUTED}
        )
    if word := cell["word"]:
        said = {"text": word, "short": SHORT.get(word, word), "colour": cell["colour"]}
        marks["words"].append({"x": x, "y": middle + 8 * both} | said)


def _cells(stack: Stack, marks: Marks, domain: Sequence[str]) -> Iterator[alt.Chart]:
    x = alt.X("x:N", scale=alt.Scale(domain=list(domain), paddingInner=0.02, paddingOuter=0), axis=None)
    room = f"width / {len(domain)} - 4"
    opacity = alt.Opacity("opacity:Q", scale=None)
    yield drawn(stack.at(marks["cells"]).encode(x=x, y2="y2:Q", color=TINT, opacity=opacity), "rect")
    # `no difference` is 7.5 times as wide as its font is high.
    word, narrow = f"clamp(({room}) / 7.5, 9, {SMALL})", f"({room}) / 7.5 < 9"
    texts: tuple[tuple[str, Any, Data], ...] = (
        ("heads", "text:N", {"fontSize": SMALL}),
        ("texts", "text:N", {"fontWeight": 600}),
        ("words", alt.condition(narrow, alt.value(""), "text:N"), {"fontSize": alt.ExprRef(word)}),
        ("words", alt.condition(narrow, "short:N", alt.value("")), {"fontSize": 10}),
    )
    for name, text, font in texts:
        chart = stack.at(marks[name]).encode(x=x, text=text, color=TINT)
        yield drawn(chart, "text", align="center", strokeWidth=0, limit=alt.ExprRef(room), **font)


@dataclass(frozen=True)
class Point:
    """A profile at a case: its value, and where its band ends."""

    nbytes: int
    value: float
    end: float | None = None
    apart: bool = False  # of another series than most


Curves = dict[str, list[Point]]  # by profile, smallest case first
Read = Callable[[Row, Case], Point | None]


@dataclass(frozen=True)
class Ticks:
    """A facet's own y axis between two heights: its ends, and its ticks as they are written."""

    low: float
    high: float
    at: Sequence[tuple[float, str]]
    log: bool = False
    top: float = 0
    foot: float = 1

    def px(self, value: float) -> float:
        """Where a value lies."""
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return round(self.foot - (self.foot - self.top) * (value - low) / (high - low), 1)


def latency(rows: Sequence[Row]) -> alt.LayerChart | None:
    """p50 of a call over the bytes that it has to move, with a band to p95; the copy as the roof."""
    common = usual(row.latency for row in rows)

    def read(row: Row, case: Case) -> Point | None:
        r = timed(row)
        if r is None or r.p50_ms is None:
            return None
        return Point(case.compulsory_bytes, r.p50_ms, r.p95_ms, r.timer != common)

    return _curves(rows, read, _durations, "time per call, log: lower is faster")


def throughput(rows: Sequence[Row], cache_bytes: int | None = None) -> alt.LayerChart | None:
    """GB/s over the bytes that a call has to move; the copy as the roof, and where the cache ends."""
    common = usual(row.ratio for row in rows)

    def read(row: Row, case: Case) -> Point | None:
        r = row.ratio if row.status is Status.OK else None
        return Point(case.compulsory_bytes, r.gbps, apart=r.timer != common) if r is not None and r.gbps else None

    return _curves(rows, read, _rates, "GB/s: higher is better", cache_bytes or None)


def _curves(
    rows: Sequence[Row], read: Read, ticked: Callable[[Sequence[float]], Ticks], said: str, cache: int | None = None
) -> alt.LayerChart | None:
    every = [facet for title, shapes in by_facet(rows).items() for facet in _chains(title, shapes, read)]
    shown, left_out = _most(every, lambda facet: max(map(len, facet[1].values())))
    if not shown:
        return None
    sizes = [p.nbytes for _, curves in shown for mine in curves.values() for p in mine] + ([cache] if cache else [])
    margin = max((max(sizes) / min(sizes)) ** 0.04, 1.6)
    ends = min(sizes) / margin, max(sizes) * margin
    names = {row.profile: row.name for row in rows}
    longest = max(len(names[profile]) for _, curves in shown for profile in curves)
    stack = Stack(left=TICK_ROOM_PX, right=SMALL_PX * min(longest, LABEL_MAX) + 14)
    gpu = any(timer in ("device", "graph", "host") for row in rows for timer, _ in row.series)
    marks: Marks = defaultdict(list)
    stack.remark(said)
    for title, curves in shown:
        stack.heading(title)
        top = stack.y + (NAME_PX if cache else 4)
        foot = top + max(CURVES_PX, NAME_PX * (len(curves) + 1))
        values = [v for mine in curves.values() for p in mine for v in (p.value, p.end) if v is not None]
        axis = replace(ticked(values), top=top, foot=foot)
        _place_curves(marks, curves, names, axis)
        for tick, text in axis.at:
            marks["across"].append({"y": axis.px(tick)})
            stack.side(axis.px(tick), text)
        for power, everywhere in _powers(*ends):
            marks["down"].append({"x": 2**power, "y": top, "y2": foot})
            marks["feet"].append({"x": 2**power, "y": foot + 11, "text": _binary(power), "everywhere": everywhere})
        if cache:
            marks["cache"].append({"x": cache, "y": top, "y2": foot})
            told = f"{'L2' if gpu else 'cache'} {cache / 2**20:,.4g} MiB"
            marks["told"].append({"x": cache, "y": top - NAME_PX / 2, "text": told})
        stack.y = foot + LINE_PX + GAP_PX
    stack.y -= GAP_PX
    stack.remark("bytes that a call has to read and write, log")
    stack.remark(left_out)
    return stack.chart(*_lines(stack, marks, alt.Scale(type="log", domain=list(ends), nice=False)))


def _chains(title: str, shapes: Mapping[Case, Sequence[Row]], read: Read) -> Iterator[tuple[str, Curves]]:
    """The curves of a facet; where its cases do not grow in rows and columns alike, those of each number of rows."""
    found: dict[Case, dict[str, Point]] = {}
    for case, group in shapes.items():
        points = {row.profile: p for row in group if row.profile != CONTROL and (p := read(row, case)) is not None}
        if points.keys() - {ROOF}:
            found[case] = points
    grows = all(a.rows <= b.rows and a.cols <= b.cols for a, b in pairwise(found))
    parts = [list(found)] if grows else [[c for c in found if c.rows == n] for n in sorted({c.rows for c in found})]
    for part in filter(None, parts):
        curves: Curves = {ROOF: []}  # drawn first, below the others
        for case in part:
            for profile, point in found[case].items():
                curves.setdefault(profile, []).append(point)
        alike = f", {part[0].rows} rows" if len({case.rows for case in part}) == 1 else ""
        told = case_title(part[0].name) if len(part) == 1 else title + alike
        yield told, {profile: points for profile, points in curves.items() if points}


def _place_curves(marks: Marks, curves: Curves, names: Mapping[str, str], axis: Ticks) -> None:
    """The lines of a facet, and their names right of its largest case."""
    right = max(p.nbytes for mine in curves.values() for p in mine)
    ends = [axis.px(mine[-1].value) for mine in curves.values()]
    beside = spread(ends, NAME_PX, axis.top + NAME_PX / 2, axis.foot - NAME_PX / 2)
    for (profile, mine), end, label in zip(curves.items(), ends, beside, strict=True):
        tint = {"colour": colour(profile), "line": len(marks["names"])}
        for p in mine:
            kind = ROOF if profile == ROOF else "apart" if p.apart else "usual"
            placed = {"x": p.nbytes, "y": axis.px(p.value), "y2": axis.px(p.end or p.value)} | tint
            marks["points"].append(placed)
            marks[kind].append(placed)
        marks["lone"] += marks["points"][-1:] if len(mine) == 1 else []  # one point has no band
        marks["names"].append({"x": right, "y": label, "text": names[profile]})
        marks["leaders"].append({"x": mine[-1].nbytes, "x2": right, "y": end, "y2": label, "colour": tint["colour"]})


def _lines(stack: Stack, marks: Marks, scale: alt.Scale) -> Iterator[alt.Chart]:
    """Grid, bands, lines, dots and names, in this order."""

    def over(name: str, mark: str, channels: Data, **how: Any) -> alt.Chart:
        return drawn(stack.at(marks[name]).encode(x=alt.X("x:Q", scale=scale, axis=None), **channels), mark, **how)

    said = {"fontSize": SMALL, "align": "center"}
    tinted: Data = {"color": TINT}
    line = tinted | {"detail": "line:N"}
    banded = any(p["y"] != p["y2"] for p in marks["points"])
    wide = alt.condition("width > 330 || datum.everywhere", "text:N", alt.value(""))
    yield drawn(stack.at(marks["across"]).encode(x=alt.value(0), x2=alt.value("width")), "rule", color=RULE)
    yield over("down", "rule", {"y2": "y2:Q"}, color=RULE)
    yield over("feet", "text", {"text": wide}, color=MUTED, **said)
    yield over("cache", "rule", {"y2": "y2:Q"}, color="var(--roof)", strokeDash=[3, 3])
    yield over("told", "text", {"text": "text:N"}, color=INK, **said)
    if banded:
        yield over("points", "area", line | {"y2": "y2:Q"}, opacity=0.18)
        yield over("lone", "rule", tinted | {"y2": "y2:Q"}, strokeWidth=2)
    yield over("points", "line", line, strokeWidth=1.8)
    yield over("leaders", "rule", tinted | {"x2": "x2:Q", "y2": "y2:Q"}, opacity=0.55, x2Offset=12)
    yield over(ROOF, "point", tinted, shape="stroke", strokeWidth=1.8, size=90, opacity=1)
    yield over("apart", "point", tinted, strokeWidth=1.6, size=46, opacity=1)
    yield over("usual", "point", tinted, filled=True, size=42, opacity=1)
    yield over("names", "text", {"text": "text:N"}, fontSize=SMALL, color=INK, dx=15, limit=SMALL_PX * LABEL_MAX)


def _most(every: Sequence[Facet], cases_of: Callable[[Facet], int]) -> tuple[list[Facet], str]:
    """At most so many facets, in their order, and what is said of the others."""
    kept = sorted(sorted(range(len(every)), key=lambda i: -cases_of(every[i]))[:MOST])
    more = len(every) - len(kept)
    return [every[i] for i in kept], f"{more} more, of fewer cases, are not drawn: see the table" if more else ""


def _size(case: Case) -> tuple[int, int]:
    return case.compulsory_bytes, case.rows


def _durations(values: Sequence[float]) -> Ticks:
    steps = log_steps(values, max(values))
    decades = [step for step in steps if round(math.log10(step), 6) % 1 == 0]
    at = steps if len(steps) <= 5 or len(decades) < 2 else decades[:: -(-len(decades) // 5)]
    return Ticks(steps[0], steps[-1], [(ms, f"{ms:g} ms" if ms >= 1 else f"{ms * 1e3:g} µs") for ms in at], log=True)


def _rates(values: Sequence[float]) -> Ticks:
    high = max(values) * 1.06
    return Ticks(0, high, ticks(0, high, steps=2))


def _powers(low: float, high: float) -> list[tuple[int, bool]]:
    """Powers of two between the ends, about six, KiB and MiB among them; has a telephone room for the text of each?"""
    first, last = math.ceil(math.log2(low)), math.floor(math.log2(high))
    step = next((step for step in (1, 2, 5, 10) if (last - first) / step < 6), 10)
    found = [power for power in range(first, last + 1) if power % step == 0]
    every = math.ceil(TICKS_APART * math.log2(high / low) / step)
    return [(power, i % every == 0) for i, power in enumerate(found)]


def _binary(power: int) -> str:
    """2**26 is `64 MiB`."""
    thousands = min(power // 10, 4)
    return f"{2 ** (power - 10 * thousands)} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[thousands]}"


def panels(cache_bytes: int | None = None) -> tuple[Panel, ...]:
    """The plots over shapes; `cache_bytes`: of the device that all rows are of, where it is one."""
    lines = (("dot", "a case"), ("ring", "a case by another timer than most"), ("whisker", "a copy of the same bytes"))
    cache = (("gate", "where the cache ends"),) if cache_bytes else ()
    return (
        Panel(
            "Speedup by shape, over the fastest PyTorch",
            "The fused kernel over the fastest correct PyTorch of each shape, and what may be said of it; a shape "
            "without a cell was not measured.",
            (),
            partial(speedups, over="fastest"),
            "No fused kernel was timed beside a correct PyTorch, so there is no speedup to draw over shapes.",
        ),
        Panel(
            "Speedup by shape, over torch-baseline",
            "The same over what the original experiment compared with: the composition for RMSNorm, F.layer_norm for "
            "LayerNorm.",
            (),
            partial(speedups, over="baseline"),
            "No fused kernel was timed beside torch-baseline, so there is no speedup over it to draw over shapes.",
        ),
        Panel(
            "Latency against size",
            "The median of one call's time on cold inputs, with a band to the 95th percentile. A line joins cases that "
            "grow in rows and columns; where these do not grow together, each number of rows stands alone.",
            lines,
            latency,
            "No row was timed, so there is no latency to draw over sizes.",
        ),
        Panel(
            "Throughput against size",
            "Compulsory bytes over the median time on cold inputs: a small call ends before memory is at its pace, and "
            "a large one can do little better than a copy.",
            (*lines, *cache),
            partial(throughput, cache_bytes=cache_bytes),
            "No row moved bytes under a timer, so there is no throughput to draw over sizes.",
        ),
    )


PANELS: tuple[Panel, ...] = panels()
