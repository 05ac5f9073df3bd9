"""Plots over size: latency and GB/s against the bytes of a call; and all plots over shapes. Altair, no data.

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
from typing import Any

import altair as alt

from norm_fusion.records import Status
from norm_fusion.report.chart import INK, LABEL_MAX, TINT, colour, drawn, log_steps
from norm_fusion.report.panels import Panel, timed
from norm_fusion.report.rows import Row, case_title, duration, rate, usual
from norm_fusion.site.heatmap import speedups
from norm_fusion.site.stack import (
    GAP_PX,
    LINE_PX,
    MUTED,
    RULE,
    SMALL,
    SMALL_PX,
    Data,
    Marks,
    Stack,
    by_facet,
    most,
    spread,
    ticks,
)
from norm_fusion.spec import CONTROL, ROOF, Case

LONG_PX = 230  # that of one with lines, which lie close
CURVES_PX = 132  # height of a facet's plot, at least: more profiles need more room for their names
NAME_PX = 14  # between two names
TICK_ROOM_PX = 50
TICKS_APART = 0.42  # of the plot's width, those that a telephone has room for the text of


@dataclass(frozen=True)
class Point:
    """A profile at a case: its value, and where its band ends."""

    nbytes: int
    value: float
    end: float | None = None
    apart: bool = False  # of another series than most
    tip: str = ""  # what it says to who points at it
    record: str = ""  # and where that leads


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
        p95 = "" if r.p95_ms is None else f", p95 {duration(r.p95_ms)}"
        tip = f"{case_title(case.name)} · {row.name} · p50 {duration(r.p50_ms)}{p95} ({r.timer})"
        return Point(case.compulsory_bytes, r.p50_ms, r.p95_ms, r.timer != common, tip, r.key)

    return _curves(rows, read, _durations, "time per call, log: lower is faster")


def throughput(rows: Sequence[Row], cache_bytes: int | None = None) -> alt.LayerChart | None:
    """GB/s over the bytes that a call has to move; the copy as the roof, and where the cache ends."""
    common = usual(row.ratio for row in rows)

    def read(row: Row, case: Case) -> Point | None:
        r = row.ratio if row.status is Status.OK else None
        if r is None or not r.gbps:
            return None
        share = "" if r.roof_share is None else f", {r.roof_share:.1%} of the copy"
        tip = f"{case_title(case.name)} · {row.name} · {rate(r.gbps)} GB/s{share} ({r.timer})"
        return Point(case.compulsory_bytes, r.gbps, None, r.timer != common, tip, r.key)

    return _curves(rows, read, _rates, "GB/s: higher is better", cache_bytes or None)


def _curves(
    rows: Sequence[Row], read: Read, ticked: Callable[[Sequence[float]], Ticks], said: str, cache: int | None = None
) -> alt.LayerChart | None:
    every = [facet for title, shapes in by_facet(rows).items() for facet in _chains(title, shapes, read)]
    shown, left_out = most(every, lambda facet: max(map(len, facet[1].values())))
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
        drawn_px = LONG_PX if any(len(mine) > 1 for mine in curves.values()) else CURVES_PX
        foot = top + max(drawn_px, NAME_PX * (len(curves) + 1))
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
            shown = {"x": placed["x"], "y": placed["y"], "colour": tint["colour"]}
            marks[kind].append(shown | {"tip": p.tip, "record": p.record})
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
    pointed = tinted | {"tooltip": "tip:N"}
    yield over(ROOF, "point", pointed, shape="stroke", strokeWidth=1.8, size=90, opacity=1)
    yield over("apart", "point", pointed, strokeWidth=1.6, size=46, opacity=1)
    yield over("usual", "point", pointed, filled=True, size=42, opacity=1)
    yield over("names", "text", {"text": "text:N"}, fontSize=SMALL, color=INK, dx=15, limit=SMALL_PX * LABEL_MAX)


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
