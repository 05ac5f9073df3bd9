"""Plots of one case: its raw samples in time order, and what hardware counters say of it. Altair, no torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from norm_fusion.evidence.verdicts import DELTA
from norm_fusion.records import Counters, Record, Samples, Status
from norm_fusion.report.chart import TINT, Line, colour, dots, drawn, grid, headed, rings
from norm_fusion.report.counters import limits
from norm_fusion.report.rows import ROLES, Series, case_title
from norm_fusion.runs.store import RunStore
from norm_fusion.site.stack import LINE_PX, MUTED, RULE, SMALL, Data, Marks, Stack, ticks
from norm_fusion.spec import ROOF

TICK_ROOM_PX = 58
STRIP_PX, STRIP_GAP_PX = 64, 12
# Of a profile: as many smallest, median and largest values are 600 points. Of many profiles fewer each.
BUCKETS, BUCKETS_OF_ALL = 200, 800
LABELS = 6  # of processes, that a telephone has room for
TAIL = 4  # a strip ends at twice the median, or so many times as far from it as the 95th percentile is


@dataclass(frozen=True)
class Strip:
    """A profile's samples: of each process, in ms and time order, with the place of that process along x."""

    profile: str
    taken: Sequence[tuple[int, np.ndarray[Any, np.dtype[np.float64]]]]

    @property
    def all(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.concatenate([values for _, values in self.taken])

    def ends(self) -> tuple[float, float]:
        """Of its axis: at least twice the band that is no difference, so that a steady series looks steady."""
        low, middle, p95, high = map(float, np.percentile(self.all, [0, 50, 95, 100]))
        least = max(2 * DELTA * middle, 1e-9)
        return min(low, middle - least), min(max(high, middle + least), max(2 * middle, middle + TAIL * (p95 - middle)))


def samples(
    kept: Mapping[str, Sequence[tuple[Record, Samples]]], series: Series = ("device", "cold")
) -> tuple[alt.LayerChart | None, str]:
    """The raw samples of one case in one series, a strip a profile in the order given, and what is to be known of it.

    Processes stand side by side; within one, x is the sample's place among those of its process, so that rounds that
    were measured together stand below each other. Samples carry no time of day: readings of clock and heat cannot be
    laid beside them. `kept`: by profile, what is stored of each process. Records of another series are left out, and
    so is a profile that was wrong or failed in any process, as nothing of it may be quoted.
    """
    bad = [profile for profile, pairs in kept.items() if any(record.status.bad for record, _ in pairs)]
    found = {
        profile: [
            (record, raw)
            for record, raw in pairs
            if record.status is Status.OK and (record.timer, record.cache) == series and any(raw.blocks)
        ]
        for profile, pairs in kept.items()
        if profile not in bad
    }
    mine = {profile: pairs for profile, pairs in found.items() if pairs}
    if not mine:
        return None, f"No samples of the series {' '.join(series)} are kept of this case, so there is nothing to draw."
    keys = sorted({(record.attempt, record.replicate or 0) for pairs in mine.values() for record, _ in pairs})
    strips = [
        Strip(
            profile,
            [
                (
                    keys.index((record.attempt, record.replicate or 0)),
                    np.concatenate([np.asarray(b) for b in raw.blocks]),
                )
                for record, raw in pairs
            ],
        )
        for profile, pairs in mine.items()
    ]
    attempts = len({attempt for attempt, _ in keys}) > 1
    labels = [f"p{replicate + 1}{f' a{attempt}' if attempts else ''}" for attempt, replicate in keys]
    stack = Stack(left=TICK_ROOM_PX)
    marks: Marks = defaultdict(list)
    buckets = min(BUCKETS, BUCKETS_OF_ALL // len(strips))
    sizes = [_place_strip(stack, marks, strip, labels, buckets) for strip in strips]
    chart = stack.chart(*_layers(stack, marks, [colour(strip.profile) for strip in strips], len(labels)))
    said = _said([raw for pairs in mine.values() for _, raw in pairs], max(sizes), bool(marks["beyond"]))
    said += ["a1 and on are reruns"] if attempts else []
    said += [f"nothing of what was not correct: {', '.join(bad)}"] if bad else []
    return chart, f"{'; '.join(said)}."


def _place_strip(stack: Stack, marks: Marks, strip: Strip, labels: Sequence[str], buckets: int) -> int:
    """Put a strip below the others; returns how many samples share a point at most."""
    number = len(stack.headings)
    stack.y += STRIP_GAP_PX if number else 0
    every, (low, high) = strip.all, strip.ends()
    scale, unit = (1e3, "µs") if float(np.median(every)) < 1 else (1.0, "ms")
    stack.heading(ROLES.get(strip.profile, strip.profile))
    beyond = int(np.sum(every > high))
    smallest, p50, largest = (f"{v * scale:,.4g}" for v in np.percentile(every, [0, 50, 100]))
    more = f"; {beyond:,} beyond the edge" if beyond else ""
    stack.remark(f"p50 {p50} {unit}, from {smallest} to {largest}{more}")
    top, foot = stack.y + 4, stack.y + 4 + STRIP_PX

    def px(ms: float) -> float:
        return round(foot - STRIP_PX * (min(ms, high) - low) / (high - low), 1)

    for value, text in ticks(low * scale, high * scale):
        marks["across"].append({"y": px(value / scale)})
        stack.side(px(value / scale), f"{text} {unit}")
    size = -(-len(every) // buckets)
    for place, values in strip.taken:
        middle = px(float(np.median(values)))
        marks["medians"].append({"x": place, "x2": place + 1, "y": middle, "colour": colour(strip.profile)})
        for at in range(0, len(values), size):
            part = values[at : at + size]
            x = round(place + (at + len(part) / 2) / len(values), 3)
            ends = {"a": px(float(part.min())), "b": px(float(part.max()))} if len(part) > 1 else {}
            marks[f"strip {number}"].append({"x": x, "y": px(float(np.median(part)))} | ends)
            marks["beyond"] += [{"x": x, "y": top + 2}] if part.max() > high else []
    for place, label in enumerate(labels):
        everywhere = place % -(-len(labels) // LABELS) == 0
        marks["labels"].append({"x": place + 0.5, "y": foot + 10, "text": label, "everywhere": everywhere})
        marks["walls"] += [{"x": place, "y": top, "y2": foot + 14}] if place else []
    stack.y = foot + LINE_PX
    return size


def _layers(stack: Stack, marks: Marks, colours: Sequence[str], processes: int) -> Iterator[alt.Chart]:
    x = alt.X("x:Q", scale=alt.Scale(domain=[0, processes], nice=False, zero=False), axis=None)

    def layer(name: str, mark: str, channels: Data, **how: Any) -> alt.Chart:
        return drawn(stack.at(marks[name]).encode(x=x, **channels), mark, **how)

    yield drawn(stack.at(marks["across"]).encode(x=alt.value(0), x2=alt.value("width")), "rule", color=RULE)
    yield layer("walls", "rule", {"y2": "y2:Q"}, color=MUTED, strokeWidth=1, opacity=0.6)
    text = alt.condition(f"width > {40 * processes} || datum.everywhere", "text:N", alt.value(""))
    yield layer("labels", "text", {"text": text}, fontSize=SMALL, color=MUTED, align="center")
    for number, tint in enumerate(colours):
        name = f"strip {number}"
        if any("a" in mark for mark in marks[name]):
            yield layer(name, "rule", {"y": stack.across("a"), "y2": "b:Q"}, color=tint, strokeWidth=1.5, opacity=0.45)
        yield layer(name, "point", {}, color=tint, filled=True, size=7, opacity=0.8)
    yield layer("medians", "rule", {"x2": "x2:Q", "color": TINT}, strokeWidth=1.2, opacity=0.9)
    yield layer("beyond", "point", {}, shape="triangle-up", filled=True, size=28, color="var(--bad)", opacity=1)


def _said(raw: Sequence[Samples], size: int, beyond: bool) -> list[str]:
    """What a reader has to know: how many samples a point is, what a sample is, and what is not drawn."""
    count = sum(len(block) for one in raw for block in one.blocks)
    said = [f"{count:,} samples: each dot is one, in time order within its process"]
    if size > 1:
        median = f"the median of up to {size} in a row, its line goes from the smallest of them to the largest"
        said = [f"{count:,} samples: each dot is {median}, so that no outlier is lost"]
    calls = sorted({one.calls_per_sample for one in raw})
    if calls[-1] > 1:
        said.append(
            f"a sample is the mean of {' to '.join(f'{n:,}' for n in dict.fromkeys((calls[0], calls[-1])))} calls"
        )
    said.append("the thin lines are the medians of the processes")
    if beyond:
        said.append("a triangle stands where samples lie beyond the edge")
    warm = sum(len(one.warmup) for one in raw)
    said.append(
        f"{warm:,} samples of warm-up are left out" if warm else "no samples of warm-up are kept of this series"
    )
    return said


# What the marks of `counters_chart` mean, as a panel's key has it.
COUNTERS_KEY = (
    ("dot", "DRAM, % of its peak"),
    ("ring", "SM, % of its peak"),
    ("tick", "occupancy, % of the warps"),
    ("roof", "DRAM of a copy of the same bytes"),
)


def counters_chart(counters: Sequence[Counters]) -> alt.LayerChart | None:
    """How busy memory and multiprocessors are and how many warps are resident; at the right what limits the profile."""
    found = limits(counters)
    if not any(one.dram_pct is not None for one in counters if one.profile != ROOF):
        return None
    lines: list[Line] = []
    roofs: list[Data] = []
    for case in dict.fromkeys(one.case for one in counters):
        mine = [one for one in counters if one.case == case and one.profile != ROOF]
        if not mine:
            continue
        lines += headed(case_title(case), lines)
        first = len(lines)
        for one in mine:
            limit = found.get((case, one.profile))
            at = {"x": one.dram_pct, "sm": one.sm_pct, "occupancy": one.occupancy_pct}
            mark = {name: min(max(pct, 0.0), 100.0) for name, pct in at.items() if pct is not None}
            if limit is None or "x" not in mark:
                lines.append(Line(one.profile, excuse="not collected"))
            else:
                file = RunStore.counters_file(one.case, one.profile)
                lines.append(Line(one.profile, limit.kind, mark=mark | {"colour": colour(one.profile)}, record=file))
        copy = next((one.dram_pct for one in counters if (one.case, one.profile) == (case, ROOF)), None)
        roofs += [] if copy is None else [{"x": copy, "first": first, "last": len(lines) - 1}]
    axis = alt.Axis(values=[0, 25, 50, 75, 100])
    x = alt.X("x:Q", title="% of peak; at the right: what limits it", scale=alt.Scale(domain=[0, 100]), axis=axis)

    def marks(chart: alt.Chart) -> list[alt.Chart]:
        tick = chart.encode(x="occupancy:Q", color=TINT)
        return [drawn(tick, "tick", thickness=2.5, height=11, opacity=1), rings(chart, "sm"), dots(chart)]

    return grid(lines, roofs, x, marks)
