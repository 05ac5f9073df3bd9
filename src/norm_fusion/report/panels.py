"""The plots of the page: a panel is data plus one function from rows to a chart, or to None: nothing to draw.

Every chart has a line per case and profile, named at its left and its figure written at its right, so that nothing
hangs on telling colours apart. Colours are the page's CSS variables: one chart serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import altair as alt

from norm_fusion.metrics import GOOD_UP_TO, WARN_UP_TO
from norm_fusion.records import Record, Status, Timer
from norm_fusion.report.rows import Row, baseline_of, case_title, cases, duration, fastest_torch, rate, times, usual
from norm_fusion.spec import ROOF

LINE_PX = 18
LABEL_PX = 7.2  # the widest common system font, per character at 12 px: room for the names, headings start at its left
LABEL_MAX = 28
FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"

CONFIG: dict[str, Any] = {
    "font": FONT,
    "background": None,
    "padding": {"left": 0, "top": 4, "right": 4, "bottom": 4},
    "aria": False,  # the page describes each chart, and its table holds the figures
    "view": {"stroke": None},
    "axis": {
        "titleFontWeight": "normal",
        "titleAnchor": "end",
        "titlePadding": 8,
        "labelSeparation": 8,
        **{f"{part}FontSize": 12 for part in ("label", "title")},
        **{f"{part}Color": "var(--muted)" for part in ("label", "title")},
        **{f"{part}Color": "var(--rule)" for part in ("grid", "domain", "tick")},
    },
    "text": {"fontSize": 12, "align": "left", "stroke": "var(--page)", "strokeWidth": 4},  # a halo: see style.css
}

# Okabe and Ito's palette, told apart by colour-blind readers too; templates/style.css holds a shade for each scheme.
COLOURS = {
    ROOF: "var(--roof)",
    "torch-eager": "var(--grey)",
    "torch-native": "var(--blue)",
    "torch-compile": "var(--green)",
    "torch-compile-max": "var(--purple)",
    "triton-fused-rmsnorm": "var(--accent)",
    "triton-fused-layernorm": "var(--accent)",
}
PEER_COLOURS = ("var(--sky)", "var(--yellow)", "var(--orange)")
INK = "var(--ink)"
TINT = alt.Color("colour:N", scale=None)

NOISE_LIMIT = 2.0  # the noise axis ends here; a line's figure says how far beyond a series is


Marks = Callable[[alt.Chart], list[alt.Chart]]

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


@dataclass(frozen=True)
class Line:
    """One line of a chart: a case's heading, or a name with its marks and the figure at its right."""

    label: str = ""
    figure: str = ""
    heading: str = ""
    excuse: str = ""  # in place of marks: why there are none
    mark: dict[str, Any] = field(default_factory=dict)


def colour(profile: str) -> str:
    """The colour that a profile has on the whole page."""
    return COLOURS.get(profile) or PEER_COLOURS[crc32(profile.encode()) % len(PEER_COLOURS)]


def timed(row: Row, timer: Timer | None = None) -> Record | None:
    """The series to quote a correct row's latency from, or the one named; a wrong row has no figures."""
    if row.status is not Status.OK:
        return None
    record = row.latency if timer is None else row.series.get(timer)
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
        return Line(row.profile, duration(r.p50_ms) + _fell(r, common), mark=mark)

    def roof(row: Row) -> float | None:
        r = timed(row) if row.profile == ROOF else None
        return None if r is None or r.p50_ms is None else r.p50_ms * scale

    steps = _steps([r.p50_ms * scale for r in found if r.p50_ms], largest * scale)
    x = alt.X("x:Q", title=f"time per call, {unit}, log: left is faster", scale=_log(steps), axis=_ticks(steps))
    lines, roofs = _lines(rows, line, roof)
    return _grid(lines, roofs, x, lambda chart: [_rule(chart, "x2"), _dots(chart)])


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
        return Line(row.profile, figure + _fell(r, common), mark={"x": value, "zero": 0, "colour": colour(row.profile)})

    scale, axis = alt.Scale(domain=[0, max(found) * 1.04], nice=False), alt.Axis(tickCount=5, format=",~r")
    x = alt.X("x:Q", title="GB/s: right is better", scale=scale, axis=axis)
    lines, roofs = _lines(rows, line, lambda row: gbps(row) if row.profile == ROOF else None)
    return _grid(lines, roofs, x, lambda chart: [chart.mark_bar(height=9).encode(x2="zero:Q", color=TINT)])


def speedups(rows: Sequence[Row]) -> alt.LayerChart | None:
    """How many times faster the fused kernel is than each PyTorch: a line from 1 to the ratio."""
    lines: list[Line] = []
    for case, group in cases(rows).items():
        fused = next((row for row in group if row.profile.startswith("triton-") and row.status is Status.OK), None)
        best = fastest_torch(group)
        if fused is None or fused.ratio is None or best is None:
            continue
        lines += _heading(case, lines)
        for row in (row for row in group if row.profile.startswith("torch-")):
            value = fused.ratio.speedup.get(row.profile, 0.0)
            if row.status is Status.OK and value > 0:
                tags = {"baseline": baseline_of(fused.any.op), "fastest": best.profile}
                label = " · ".join([row.profile, *(tag for tag, name in tags.items() if name == row.profile)])
                lines.append(Line(label, times(value), mark={"x": value, "one": 1, "colour": colour(fused.profile)}))
            else:
                lines.append(Line(row.profile, excuse=_excuse(row)))
    found = [line.mark["x"] for line in lines if line.mark]
    if not found:
        return None
    steps = _steps([*found, 1.0], max(*found, 1.0))
    axis = alt.Axis(values=steps, labelExpr="datum.label + 'x'", format="~r")
    x = alt.X("x:Q", title="log: right of 1x is faster", scale=_log(steps), axis=axis)
    return _grid(lines, [], x, lambda chart: [_vertical(1.0, x), _rule(chart, "one"), _dots(chart)])


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
        return Line(row.profile, figure, mark={"x": r.max_rel_error, "colour": colour(row.profile)})

    decades = [10.0**p for p in range(math.floor(math.log10(min(found))), math.ceil(math.log10(max(found))) + 1)]
    axis = alt.Axis(values=decades, format=".0e")
    x = alt.X("x:Q", title="log: left of the line is correct", scale=_log(decades), axis=axis)
    lines, roofs = _lines(rows, line, lambda row: row.any.tolerance)
    return _grid(lines, roofs, x, lambda chart: [_dots(chart)])


def noise(rows: Sequence[Row]) -> alt.LayerChart | None:
    """p95/p50 of the latency series, with the gates."""
    found = [r.noise_ratio for row in rows if row.profile != ROOF and (r := timed(row)) and r.noise_ratio]
    if not found:
        return None
    end = min(max(*found, 1.2), NOISE_LIMIT)

    def line(row: Row) -> Line:
        r = timed(row)
        if r is None or r.noise_ratio is None:
            return Line(row.profile, excuse=_excuse(row))
        mark = {"x": min(r.noise_ratio, end), "one": 1, "colour": colour(row.profile)}
        return Line(row.profile, f"{r.noise_ratio:.2f} {r.noise or ''}", mark=mark)

    axis = alt.Axis(values=[v for v in (1, GOOD_UP_TO, WARN_UP_TO, 1.3, 1.5, 1.75, 2) if v <= end], format=".2f")
    x = alt.X("x:Q", title="p95/p50: left is steadier", scale=alt.Scale(domain=[1, end], nice=False), axis=axis)
    gates = [_vertical(GOOD_UP_TO, x), _vertical(WARN_UP_TO, x)]
    return _grid(_lines(rows, line)[0], [], x, lambda chart: [*gates, _rule(chart, "one"), _dots(chart)])


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
        return Line(row.profile, figure, mark=mark | {"x": min(mark.values()), "colour": colour(row.profile)})

    steps = _steps(found, max(found))
    x = alt.X("x:Q", title="time per call, µs, log; figures: wall", scale=_log(steps), axis=_ticks(steps))

    def marks(chart: alt.Chart) -> list[alt.Chart]:
        return [
            chart.mark_rule(strokeWidth=1, opacity=0.45).encode(x2="wall:Q", color=TINT),
            _dots(chart).encode(x="kernel:Q"),
            chart.mark_point(size=46, strokeWidth=1.6, opacity=1).encode(x="enqueue:Q", color=TINT),
            chart.mark_tick(thickness=2.5, height=11, opacity=1).encode(x="wall:Q", color=TINT),
        ]

    return _grid(_lines(rows, line)[0], [], x, marks)


PANELS: tuple[Panel, ...] = (
    Panel(
        "Latency",
        "The median of one call's time on cold inputs, with a whisker to the 95th percentile.",
        (("dot", "p50"), ("whisker", "to p95"), ("roof", "p50 of a copy of the same bytes: the practical floor")),
        latency,
        "No row of this run was timed, so there is no latency to draw.",
    ),
    Panel(
        "Speedup of the fused kernel",
        "How many times faster the Triton kernel is than each PyTorch; torch-baseline and the fastest are marked.",
        (("stem", "ratio in the same series, rounds paired"), ("gate", "1x: no difference")),
        speedups,
        "No correct Triton kernel was timed beside a correct PyTorch in this run (a CPU checks it in the interpreter), "
        "so there is no speedup to draw.",
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
        "95th over 50th percentile of the latency series; above the second line it is too noisy for a precise claim.",
        (("stem", "p95 / p50"), ("gate", f"good up to {GOOD_UP_TO}, rerun above {WARN_UP_TO}")),
        noise,
        "No row of this run was timed, so there is no noise to draw.",
    ),
)


def _excuse(row: Row) -> str:
    return NOT_DRAWN.get(row.status) or next(iter(row.any.notes), "not in this series")


def _fell(record: Record, common: Timer | None) -> str:
    return "" if record.timer == common else f" ({record.timer})"


def _heading(case: str, before: Sequence[Line]) -> list[Line]:
    """A case's heading, with a blank line above it where it is not the first."""
    heading = Line(heading=case_title(case))
    return [Line(), heading] if before else [heading]


def _lines(
    rows: Sequence[Row], line: Callable[[Row], Line], through: Callable[[Row], float | None] = lambda row: None
) -> tuple[list[Line], list[dict[str, Any]]]:
    """A heading and the lines of each case, and the vertical that runs through them."""
    lines: list[Line] = []
    roofs: list[dict[str, Any]] = []
    for case, group in cases(rows).items():
        lines += _heading(case, lines)
        first = len(lines)
        lines += [line(row) for row in group if row.profile != ROOF]
        x = next((x for row in group if (x := through(row))), None)
        if x is not None and len(lines) > first:
            roofs.append({"x": x, "first": first, "last": len(lines) - 1})
    return lines, roofs


def _grid(lines: Sequence[Line], roofs: Sequence[dict[str, Any]], x: alt.X, marks: Marks) -> alt.LayerChart:
    """Lines as the bands of a y axis. A band's key is `number|figure|label`: data, never part of an expression."""
    keys = [f"{i}|{line.figure}|{line.label}" for i, line in enumerate(lines)]
    scale = alt.Scale(domain=keys, paddingInner=0, paddingOuter=0.2)
    rest = "slice(datum.value, indexof(datum.value, '|') + 1)"
    label, figure = f"slice({rest}, indexof({rest}, '|') + 1)", f"slice({rest}, 0, indexof({rest}, '|'))"
    room = LABEL_PX * min(max(len(line.label) for line in lines), LABEL_MAX)
    wide = {"minExtent": room, "maxExtent": room, "labelLimit": room}

    def axis(orient: str, shown: str, **more: float) -> alt.Y:
        bare = {"domain": False, "ticks": False, "grid": False, "title": None, "labelPadding": 8}
        return alt.Y("y:N", scale=scale, axis=bare | more | {"orient": orient, "labelExpr": shown, "labelColor": INK})

    def chart(values: list[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=values))

    numbered = list(zip(keys, lines, strict=True))
    through = [{"x": roof["x"], "y": keys[roof["first"]], "y2": keys[roof["last"]]} for roof in roofs]
    bands = {"y": alt.Y("y:N", scale=scale, axis=None, bandPosition=0), "y2": alt.Y2("y2:N", bandPosition=1)}
    marked = chart([{"y": key, **line.mark} for key, line in numbered if line.mark])
    layers = [
        chart(through).mark_rule(color="var(--roof)", strokeWidth=1.5).encode(x=x, **bands),
        *marks(marked.encode(x=x, y=alt.Y("y:N", scale=scale, axis=None))),
        chart([{"y": key, "text": line.heading} for key, line in numbered if line.heading])
        .mark_text(fontWeight=600, color=INK)
        .encode(x=alt.value(-room), y=axis("left", label, **wide), text="text:N"),
        chart([{"y": key, "text": line.excuse} for key, line in numbered if line.excuse])
        .mark_text(fontStyle="italic", color="var(--muted)", limit=alt.ExprRef("width - 8"))
        .encode(x=alt.value(6), y=axis("right", figure), text="text:N"),
    ]
    made: alt.LayerChart = alt.layer(*layers).resolve_axis(y="independent")
    return made.properties(width="container", height=LINE_PX * len(lines))


def _vertical(at: float, x: alt.X) -> alt.Chart:
    """A line through the whole chart."""
    chart = alt.Chart(alt.InlineData(values=[{"x": at}])).encode(x=x)
    return _drawn(chart, "rule", color="var(--roof)", strokeDash=[3, 3])


def _dots(chart: alt.Chart) -> alt.Chart:
    return _drawn(chart.encode(color=TINT), "point", filled=True, size=62, opacity=1)


def _rule(chart: alt.Chart, to: str) -> alt.Chart:
    return _drawn(chart.encode(x2=f"{to}:Q", color=TINT), "rule", strokeWidth=2)


def _drawn(chart: alt.Chart, mark: str, **how: Any) -> alt.Chart:
    return chart.properties(mark={"type": mark, **how})


def _steps(values: Sequence[float], top: float) -> list[float]:
    """1, 2, 5, 10, ... from the last at or below the smallest value to the first at or above `top`."""
    low = math.floor(math.log10(min(values)))
    steps = [m * 10.0**p for p in range(low, math.ceil(math.log10(top)) + 1) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= min(values))
    last = min(i for i, step in enumerate(steps) if step >= top)
    return steps[first : max(last, first + 1) + 1]


def _log(steps: Sequence[float]) -> alt.Scale:
    return alt.Scale(type="log", domain=[steps[0], steps[-1]], nice=False)


def _ticks(steps: Sequence[float]) -> alt.Axis:
    return alt.Axis(values=list(steps), format=",~r")
