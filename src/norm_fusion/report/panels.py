"""The plots of the page: a panel is data plus one function from rows to a chart, or to None: nothing to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import altair as alt

from norm_fusion.evidence.verdicts import DELTA
from norm_fusion.records import Record, Status, Timer
from norm_fusion.report import rows as joined
from norm_fusion.report.chart import (
    INK,
    LABEL_COLOURS,
    TINT,
    Line,
    band,
    colour,
    dots,
    drawn,
    grid,
    headed,
    listed,
    log_scale,
    log_steps,
    rings,
    stem,
    tick_axis,
    vertical,
)
from norm_fusion.report.quotes import Quote, claims
from norm_fusion.report.rows import Row, baseline_of, case_title, cases, duration, fastest_torch, rate, times, usual
from norm_fusion.spec import ROOF

NOISE_LIMIT = 2.0  # the noise axis ends here; a line's figure says how far beyond a series is
AROUND_ONE = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.98, 1, 1.02, 1.1, 1.25, 1.5, 2, 5, 10, 20, 50, 100)  # ticks
APART_LIMIT = 0.10  # so does that of processes: a process further from the mean is drawn at the edge

NOT_DRAWN = {
    Status.CHECKED: "correct in the interpreter, not timed",
    Status.WRONG: "wrong: not quoted",
    Status.FAILED: "failed: see the table",
    Status.UNAVAILABLE: "unavailable: see the table",
}


@dataclass(frozen=True)
class Panel:
    """One plot: its title, a sentence that explains it, its key, how it is drawn, and why it may be missing."""

    title: str
    explanation: str
    key: tuple[tuple[str, str], ...]  # (mark, meaning); the marks are drawn by the template
    draw: Callable[[Sequence[Row]], alt.LayerChart | None]
    otherwise: str


def timed(row: Row, timer: Timer | None = None) -> Record | None:
    """The series to quote a correct row's latency from, or the one named; a wrong row has no figures."""
    if row.status is not Status.OK:
        return None
    record = row.latency if timer is None else row.series.get((timer, "cold"))
    return record if record is not None and record.p50_ms is not None and record.p50_ms > 0 else None


def latency(rows: Sequence[Row]) -> alt.LayerChart | None:
    """p50 as a dot, p95 as a whisker's end, the copy as a line through its case."""
    found = [r for row in rows if (r := timed(row))]
    if not found:
        return None
    largest, common = max(r.p95_ms or 0.0 for r in found), usual(found)
    unit, scale = ("µs", 1e3) if largest < 10 else ("ms", 1.0)

    def line(row: Row) -> Line:
        r = timed(row)
        if r is None or r.p50_ms is None or r.p95_ms is None:
            return Line(row.profile, excuse=_excuse(row))
        mark = {"x": r.p50_ms * scale, "x2": r.p95_ms * scale, "colour": colour(row.profile)}
        if row.hot is not None and row.hot.p50_ms:
            mark["hot"] = row.hot.p50_ms * scale
        return Line(row.profile, duration(r.p50_ms) + _fell(r, common), mark=mark, record=r.key)

    def roof(row: Row) -> float | None:
        r = timed(row) if row.profile == ROOF else None
        return None if r is None or r.p50_ms is None else r.p50_ms * scale

    hot = [row.hot.p50_ms * scale for row in rows if timed(row) and row.hot and row.hot.p50_ms]
    steps = log_steps([*hot, *(r.p50_ms * scale for r in found if r.p50_ms)], max(*hot, largest * scale, 0.0))
    x = alt.X("x:Q", title=f"time per call, {unit}, log: left is faster", scale=log_scale(steps), axis=tick_axis(steps))
    lines, roofs = listed(rows, line, roof)
    return grid(
        lines, roofs, x, lambda chart: [stem(chart, "x2"), dots(chart), *([rings(chart, "hot")] if hot else [])]
    )


def throughput(rows: Sequence[Row]) -> alt.LayerChart | None:
    """GB/s as a bar from zero, the measured copy as a line through its case."""

    def gbps(row: Row) -> float | None:
        return row.ratio.gbps if row.status is Status.OK and row.ratio is not None else None

    found = [value for row in rows if (value := gbps(row))]
    if not found:
        return None
    common = usual(row.ratio for row in rows)

    def line(row: Row) -> Line:
        value, r = gbps(row), row.ratio
        if value is None or r is None:
            return Line(row.profile, excuse=_excuse(row))
        figure = rate(value) if r.roof_share is None else f"{rate(value)} · {r.roof_share:.1%}"
        mark = {"x": value, "zero": 0, "colour": colour(row.profile)}
        return Line(row.profile, figure + _fell(r, common), mark=mark, record=r.key)

    scale, axis = alt.Scale(domain=[0, max(found) * 1.04], nice=False), alt.Axis(tickCount=5, format=",~r")
    x = alt.X("x:Q", title="GB/s: right is better", scale=scale, axis=axis)
    lines, roofs = listed(rows, line, lambda row: gbps(row) if row.profile == ROOF else None)
    return grid(lines, roofs, x, lambda chart: [chart.mark_bar(height=9).encode(x2="zero:Q", color=TINT)])


def speedups(rows: Sequence[Row]) -> alt.LayerChart | None:
    """What is claimed: the speedup as a dot, its interval as a bar, the band that is no difference, and the call."""
    lines = _claimed(rows, _interval)
    ends = ("x", "low", "high")
    found = [math.exp(line.mark[end]) for line in lines for end in ends if end in line.mark]
    if not found:
        return None
    # Logarithms, stretched about 1x: 2% is as plain to see as ten times.
    low, high = min(*found, 1 / (1 + 2 * DELTA)), max(*found, 1 + 2 * DELTA)
    scale = alt.Scale(type="symlog", constant=DELTA, domain=[math.log(low * 0.98), math.log(high * 1.15)], nice=False)
    axis = alt.Axis(
        values=[math.log(value) for value in AROUND_ONE if low * 0.98 <= value <= high * 1.15],
        labelExpr="format(exp(datum.value), '.3~r') + 'x'",
        labelOverlap="greedy",
    )
    x = alt.X("x:Q", title="right of 1x is faster; log, stretched about 1x", scale=scale, axis=axis)

    def marks(chart: alt.Chart) -> list[alt.Chart]:
        ends = chart.encode(x="low:Q", x2="high:Q", color=TINT)
        return [
            band(-math.log1p(DELTA), math.log1p(DELTA), x),
            vertical(0.0, x),
            drawn(chart.encode(x2="one:Q", color=TINT), "rule", strokeWidth=1, opacity=0.4),
            drawn(ends, "rule", strokeWidth=7, opacity=0.45),
            dots(chart, 30),
        ]

    return grid(lines, [], x, marks)


def _claimed(rows: Sequence[Row], mark: Callable[[Quote], Line]) -> list[Line]:
    """Two lines for each claim of who is not PyTorch, and for the control's: marks, and a word under them."""
    lines: list[Line] = []
    for case, group in cases(rows).items():
        found = claims(group)
        timed_here = [row for row, _ in found if row.contestant and not row.profile.startswith("torch-")]
        best = fastest_torch(group)
        for row, quotes in found if timed_here else []:
            if row.contestant:
                several = f", {row.profile}" if len(timed_here) > 1 else ""
                lines += headed(case_title(case) + several, lines)
            for one in quotes:
                tags = {"baseline": baseline_of(row.any.op), "fastest": best and best.profile}
                tag = ", ".join(tag for tag, name in tags.items() if name == one.baseline and row.contestant)
                made = mark(one)
                word = "" if one.label is None else one.label.value
                tint = INK if one.label is None else LABEL_COLOURS[one.label]
                name = one.baseline if row.contestant else row.name
                lines.append(replace(made, label=name, tag=tag, word=word, tint=tint, record=one.key))
                lines += [Line()] if tag or word else []
    return lines


def _interval(one: Quote) -> Line:
    if one.speedup is None or one.speedup <= 0:
        return Line(excuse=_refused(one))
    mark = {"x": math.log(one.speedup), "one": 0, "colour": colour(one.row.profile)}
    if one.interval is not None:
        mark |= {"low": math.log(one.interval[0]), "high": math.log(one.interval[1])}
    return Line(figure=f"{times(one.speedup)} {one.width}".strip(), mark=mark)


def _refused(one: Quote) -> str:
    return f"no figure: {one.call.code}" if one.call is not None else "no figure"


def processes(rows: Sequence[Row]) -> alt.LayerChart | None:
    """The speedup of each process about the mean of all, in percent, and the interval that follows from them."""

    def apart(one: Quote) -> Line:
        if one.speedup is None or one.interval is None or len(one.ratios) < 2:
            return Line(excuse=_refused(one))
        ends = [(end / one.speedup - 1) * 100 for end in one.interval]
        dots_at = {f"p{i}": (ratio / one.speedup - 1) * 100 for i, ratio in enumerate(one.ratios)}
        mark = {"x": 0.0, "low": ends[0], "high": ends[1], "colour": colour(one.row.profile), **dots_at}
        return Line(figure=f"{len(one.ratios)} at {one.width}", mark=mark)

    lines = _claimed(rows, apart)
    values = [abs(v) for line in lines for k, v in line.mark.items() if k not in ("colour", "x")]
    if not values:
        return None
    most = max(sum(key.startswith("p") for key in line.mark) for line in lines)
    edge = min(max(*values, DELTA * 150), APART_LIMIT * 100)
    within = [replace(line, mark=_clamped(line.mark, edge)) for line in lines]
    axis = alt.Axis(tickCount=7, labelExpr="(datum.value > 0 ? '+' : '') + datum.label + '%'", format="~r")
    scale = alt.Scale(domain=[-edge, edge], nice=False)
    x = alt.X("x:Q", title="a process's speedup, from the mean of all", scale=scale, axis=axis)

    def marks(chart: alt.Chart) -> list[alt.Chart]:
        ends = chart.encode(x="low:Q", x2="high:Q", color=TINT)
        each = [dots(chart.encode(x=f"p{i}:Q"), 26) for i in range(most)]
        return [vertical(0.0, x), drawn(ends, "rule", strokeWidth=9, opacity=0.3), *each]

    return grid(within, [], x, marks)


def _clamped(mark: dict[str, float | str], edge: float) -> dict[str, float | str]:
    return {key: v if isinstance(v, str) else min(max(v, -edge), edge) for key, v in mark.items()}


def errors(rows: Sequence[Row]) -> alt.LayerChart | None:
    """The largest relative error as a dot, the case's tolerance as a line."""
    found = [e for row in rows for e in (row.any.max_rel_error, row.any.tolerance) if e]
    if not any(row.any.max_rel_error for row in rows) or not found:
        return None

    def line(row: Row) -> Line:
        r = row.any
        if r.max_rel_error is None:
            return Line(row.profile, excuse=_excuse(row))
        share = r.max_rel_error / r.tolerance if r.tolerance else None
        figure = f"{r.max_rel_error:.1e}"
        figure += "" if share is None else f" · {share:.0%}" if share < 10 else f" · {share:,.0f}x"
        if r.max_rel_error == 0:
            return Line(row.profile, figure, excuse="no error at all")
        return Line(row.profile, figure, mark={"x": r.max_rel_error, "colour": colour(row.profile)}, record=r.key)

    decades = [10.0**p for p in range(math.floor(math.log10(min(found))), math.ceil(math.log10(max(found))) + 1)]
    axis = alt.Axis(values=decades, format=".0e")
    x = alt.X("x:Q", title="log: left of the line is correct", scale=log_scale(decades), axis=axis)
    lines, roofs = listed(rows, line, lambda row: row.any.tolerance)
    return grid(lines, roofs, x, lambda chart: [dots(chart)])


def noise(rows: Sequence[Row]) -> alt.LayerChart | None:
    """p95/p50 of the latency series, with the gates."""
    found = [r.noise_ratio for row in rows if row.contestant and (r := timed(row)) and r.noise_ratio]
    if not found:
        return None
    end = min(max(*found, 1.2), NOISE_LIMIT)

    def line(row: Row) -> Line:
        r = timed(row)
        if r is None or r.noise_ratio is None:
            return Line(row.profile, excuse=_excuse(row))
        mark = {"x": min(r.noise_ratio, end), "one": 1, "colour": colour(row.profile)}
        return Line(row.profile, f"{r.noise_ratio:.2f} {r.noise or ''}", mark=mark, record=r.key)

    gates = [gate for gate in joined.gates(rows) if gate <= end]
    axis = alt.Axis(values=[v for v in sorted({1, *gates, 1.5, 1.75, 2}) if v <= end], format=".2f")
    x = alt.X("x:Q", title="p95/p50: left is steadier", scale=alt.Scale(domain=[1, end], nice=False), axis=axis)
    lines = [vertical(gate, x) for gate in gates]
    return grid(listed(rows, line)[0], [], x, lambda chart: [*lines, stem(chart, "one"), dots(chart)])


def call(rows: Sequence[Row]) -> alt.LayerChart | None:
    """Kernel, enqueue and wall time of one call, where they differ."""
    timers: tuple[Timer, ...] = ("device", "graph", "host", "wall")
    found = [r.p50_ms * 1e3 for row in rows for t in timers if (r := timed(row, t)) and r.p50_ms]
    if not any(timed(row, "host") for row in rows):
        return None

    def line(row: Row) -> Line:
        kernel = timed(row, "device") or timed(row, "graph")
        at = {"kernel": kernel, "enqueue": timed(row, "host"), "wall": timed(row, "wall")}
        mark = {name: r.p50_ms * 1e3 for name, r in at.items() if r is not None and r.p50_ms is not None}
        if not mark:
            return Line(row.profile, excuse=_excuse(row))
        figure = duration(mark["wall"] / 1e3) if "wall" in mark else ""
        key = next(r.key for name in ("wall", "kernel", "enqueue") if (r := at[name]) is not None)
        placed = {"x": min(mark.values()), "colour": colour(row.profile)}
        return Line(row.profile, figure, mark=mark | placed, record=key)

    steps = log_steps(found, max(found))
    x = alt.X("x:Q", title="time per call, µs, log; figures: wall", scale=log_scale(steps), axis=tick_axis(steps))

    def marks(chart: alt.Chart) -> list[alt.Chart]:
        return [
            chart.mark_rule(strokeWidth=1, opacity=0.45).encode(x2="wall:Q", color=TINT),
            dots(chart).encode(x="kernel:Q"),
            rings(chart, "enqueue"),
            chart.mark_tick(thickness=2.5, height=11, opacity=1).encode(x="wall:Q", color=TINT),
        ]

    return grid(listed(rows, line)[0], [], x, marks)


PANELS: tuple[Panel, ...] = (
    Panel(
        "Speedup over PyTorch",
        "How many times faster the kernels of others are than each PyTorch, with what may be said of it; "
        "torch-baseline and the fastest are named. The control is one of the contestants a second time.",
        (
            ("stem", "ratio in the same series, rounds paired"),
            ("interval", "95% interval over the processes"),
            ("band", f"±{DELTA:.0%}: no difference"),
        ),
        speedups,
        "No correct kernel was timed beside a correct PyTorch in this run (a CPU checks Triton's in the interpreter), "
        "so there is no speedup to draw.",
    ),
    Panel(
        "Every process",
        "The same speedups in each fresh process, from the mean of all: what one process alone would have said.",
        (
            ("dot", f"a process; beyond {APART_LIMIT:.0%} at the edge"),
            ("interval", "95% interval of the mean"),
            ("gate", "the mean"),
        ),
        processes,
        "One process alone measured this run, or no kernel beside PyTorch, so there is no spread of processes to draw.",
    ),
    Panel(
        "Latency",
        "The median of one call's time on cold inputs, with a whisker to the 95th percentile.",
        (
            ("dot", "p50"),
            ("whisker", "to p95"),
            ("ring", "p50 where its producer has just left x in the cache"),
            ("roof", "p50 of a copy of the same bytes: the practical floor"),
        ),
        latency,
        "No row of this run was timed, so there is no latency to draw.",
    ),
    Panel(
        "Throughput against the measured copy",
        "Compulsory bytes over the median time; a normalization cannot do much better than a copy of its input.",
        (("bar", "GB/s, and its share of the copy's"), ("roof", "the copy, measured in the same rounds")),
        throughput,
        "No row of this run moved bytes under a timer, so there is no throughput to draw.",
    ),
    Panel(
        "What one call costs its caller",
        "Kernel time beside the time to enqueue it and the synchronized wall time: where enqueuing is longer, "
        "a faster kernel does not help an eager caller.",
        (("dot", "kernel (device series)"), ("ring", "enqueue (host)"), ("tick", "wall")),
        call,
        "This run has no device and no host series (a CPU has wall alone), so there is nothing to set side by side.",
    ),
    Panel(
        "Error against tolerance",
        "The largest error of an element against an fp64 reference, relative to |reference| + rms(reference's row).",
        (("dot", "max relative error, and its share of the tolerance"), ("roof", "tolerance")),
        errors,
        "No row of this run was compared with the reference, so there is no error to draw.",
    ),
    Panel(
        "Noise",
        "95th over 50th percentile of the latency series, of all processes' samples together; above the second line "
        "it is too noisy for a precise claim. The word is what most processes are by themselves.",
        (
            ("stem", f"p95 / p50; beyond {NOISE_LIMIT:g} at the edge"),
            ("gate", "good up to the first, rerun above the second"),
        ),
        noise,
        "No row of this run was timed, so there is no noise to draw.",
    ),
)


def _excuse(row: Row) -> str:
    return NOT_DRAWN.get(row.status) or next(iter(row.any.notes), "not in this series")


def _fell(record: Record, common: Timer | None) -> str:
    return "" if record.timer == common else f" ({record.timer})"
