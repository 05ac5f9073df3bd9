"""How a plot is built: lines of names, marks and figures on one grid; colours, scales and axes. Altair, no data.

Every chart has a line per case and profile, named at its left and its figure written at its right, so that nothing
hangs on telling colours apart. Colours are the page's CSS variables: one chart serves light and dark.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import altair as alt

from norm_fusion.records import Label
from norm_fusion.report.rows import Row, case_title, cases
from norm_fusion.spec import CONTROL, ROOF

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
    CONTROL: "var(--roof)",
}
PEER_COLOURS = ("var(--sky)", "var(--yellow)", "var(--orange)")
INK = "var(--ink)"
TINT = alt.Color("colour:N", scale=None)
LABEL_COLOURS: Mapping[Label, str] = {
    Label.SUPPORTED: "var(--good)",
    Label.REGRESSION: "var(--bad)",
    Label.INVALID: "var(--bad)",
    Label.RERUN_NOISE: "var(--alert)",
    Label.NO_DIFFERENCE: "var(--ink)",
    Label.INCONCLUSIVE: "var(--muted)",
}

Marks = Callable[[alt.Chart], list[alt.Chart]]
Link = Callable[[str], str | None]  # from the key of a record to where a reader finds it


@dataclass(frozen=True)
class Line:
    """One line of a chart: a case's heading, or a name with its marks and the figure at its right.

    Under the name and under the figure there is room for a word each, where the next line is a blank one.
    """

    label: str = ""
    figure: str = ""
    heading: str = ""
    excuse: str = ""  # in place of marks: why there are none
    mark: dict[str, Any] = field(default_factory=dict)
    tag: str = ""  # under the name
    word: str = ""  # under the figure
    tint: str = INK  # of the word
    record: str = ""  # the key of what its marks are of


def colour(profile: str) -> str:
    """The colour that a profile has on the whole page."""
    return COLOURS.get(profile) or PEER_COLOURS[crc32(profile.encode()) % len(PEER_COLOURS)]


def headed(title: str, before: Sequence[Line]) -> list[Line]:
    """A heading, with a blank line above it where it is not the first."""
    return [Line(), Line(heading=title)] if before else [Line(heading=title)]


def listed(
    rows: Sequence[Row], line: Callable[[Row], Line], through: Callable[[Row], float | None] = lambda row: None
) -> tuple[list[Line], list[dict[str, Any]]]:
    """A heading and the lines of each case's contestants, and the vertical that runs through them."""
    lines: list[Line] = []
    roofs: list[dict[str, Any]] = []
    for case, group in cases(rows).items():
        lines += headed(case_title(case), lines)
        first = len(lines)
        lines += [line(row) for row in group if row.contestant]
        x = next((x for row in group if (x := through(row))), None)
        if x is not None and len(lines) > first:
            roofs.append({"x": x, "first": first, "last": len(lines) - 1})
    return lines, roofs


def grid(lines: Sequence[Line], roofs: Sequence[dict[str, Any]], x: alt.X, marks: Marks) -> alt.LayerChart:
    """Lines as the bands of a y axis. A band's key is `number|figure|label`: data, never part of an expression."""
    keys = [f"{i}|{line.figure}|{line.label}" for i, line in enumerate(lines)]
    scale = alt.Scale(domain=keys, paddingInner=0, paddingOuter=0.2)
    rest = "slice(datum.value, indexof(datum.value, '|') + 1)"
    label, figure = f"slice({rest}, indexof({rest}, '|') + 1)", f"slice({rest}, 0, indexof({rest}, '|'))"
    room = LABEL_PX * min(max(max(len(line.label), len(line.tag)) for line in lines), LABEL_MAX)
    right = LABEL_PX * max(max(len(line.figure), len(line.word)) for line in lines)
    wide = {"minExtent": room, "maxExtent": room, "labelLimit": room}

    def axis(orient: str, shown: str, **more: float) -> alt.Y:
        bare = {"domain": False, "ticks": False, "grid": False, "title": None, "labelPadding": 8}
        return alt.Y("y:N", scale=scale, axis=bare | more | {"orient": orient, "labelExpr": shown, "labelColor": INK})

    def chart(values: list[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=values))

    numbered = list(zip(keys, lines, strict=True))
    through = [{"x": roof["x"], "y": keys[roof["first"]], "y2": keys[roof["last"]]} for roof in roofs]
    bands = {"y": alt.Y("y:N", scale=scale, axis=None, bandPosition=0), "y2": alt.Y2("y2:N", bandPosition=1)}
    pointed = [{"tip": tip, "record": line.record} for tip, line in zip(told(lines), lines, strict=True)]
    marked = chart([{"y": key, **pointed[i], **line.mark} for i, (key, line) in enumerate(numbered) if line.mark])
    marked = marked.encode(tooltip="tip:N")
    layers = [
        chart(through).mark_rule(color="var(--roof)", strokeWidth=1.5).encode(x=x, **bands),
        *marks(marked.encode(x=x, y=alt.Y("y:N", scale=scale, axis=None))),
        chart([{"y": key, "text": line.heading} for key, line in numbered if line.heading])
        .mark_text(fontWeight=600, color=INK)
        .encode(x=alt.value(-room), y=axis("left", label, **wide), text="text:N"),
        chart([{"y": key, "text": line.excuse} for key, line in numbered if line.excuse])
        .mark_text(fontStyle="italic", color="var(--muted)", limit=alt.ExprRef("width - 8"))
        .encode(x=alt.value(6), y=axis("right", figure, minExtent=right), text="text:N"),
        *_under(numbered, scale, room),
    ]
    made: alt.LayerChart = alt.layer(*layers).resolve_axis(y="independent")
    return made.properties(width="container", height=LINE_PX * len(lines))


def specified(chart: Mapping[str, Any], link: Link | None = None) -> dict[str, Any]:
    """A chart's specification as a page has it; its marks lead where `link` says that the records of theirs are."""

    def linked(part: Any) -> Any:
        if isinstance(part, list):
            return [linked(one) for one in part]
        if not isinstance(part, dict):
            return part
        made = {key: linked(value) for key, value in part.items() if key != "record"}
        if link is not None and "tooltip" in part:  # an encoding
            made["href"] = {"field": "href"}
        if link is not None and (record := part.get("record")) and (address := link(record)):
            made["href"] = address
        return made

    made: dict[str, Any] = linked({key: value for key, value in chart.items() if key != "$schema"})
    return made | {"config": CONFIG}


def told(lines: Sequence[Line]) -> list[str]:
    """What a line says to who points at its marks: its case, its name, its figure and the words under them."""
    said, heading = [], ""
    for line in lines:
        heading = line.heading or heading
        said.append(" · ".join(filter(None, (heading, line.label, line.tag, line.figure, line.word))))
    return said


def _under(numbered: Sequence[tuple[str, Line]], scale: alt.Scale, room: float) -> list[alt.Chart]:
    """The words under names and figures, half a line further down than these."""
    y = alt.Y("y:N", scale=scale, axis=None)
    tags = [{"y": key, "text": line.tag} for key, line in numbered if line.tag]
    words = [{"y": key, "text": line.word, "colour": line.tint} for key, line in numbered if line.word]
    below = {"dy": LINE_PX * 0.8, "fontSize": 11}
    left = alt.Chart(alt.InlineData(values=tags)).encode(x=alt.value(-8), y=y, text="text:N")
    right = alt.Chart(alt.InlineData(values=words)).encode(
        x=alt.value(alt.ExprRef("width + 8")), y=y, text="text:N", color=TINT
    )
    return [
        *([drawn(left, "text", align="right", color="var(--muted)", limit=room, **below)] if tags else []),
        *([drawn(right, "text", **below)] if words else []),
    ]


def vertical(at: float, x: alt.X) -> alt.Chart:
    """A line through the whole chart."""
    chart = alt.Chart(alt.InlineData(values=[{"x": at}])).encode(x=x)
    return drawn(chart, "rule", color="var(--roof)", strokeDash=[3, 3])


def band(low: float, high: float, x: alt.X) -> alt.Chart:
    """A shaded range through the whole chart."""
    chart = alt.Chart(alt.InlineData(values=[{"x": low, "x2": high}])).encode(x=x, x2="x2:Q")
    return drawn(chart, "rect", color="var(--roof)", opacity=0.14)


def dots(chart: alt.Chart, size: float = 62) -> alt.Chart:
    return drawn(chart.encode(color=TINT), "point", filled=True, size=size, opacity=1)


def rings(chart: alt.Chart, at: str) -> alt.Chart:
    return drawn(chart.encode(x=f"{at}:Q", color=TINT), "point", size=46, strokeWidth=1.6, opacity=1)


def stem(chart: alt.Chart, to: str) -> alt.Chart:
    return drawn(chart.encode(x2=f"{to}:Q", color=TINT), "rule", strokeWidth=2)


def drawn(chart: alt.Chart, mark: str, **how: Any) -> alt.Chart:
    return chart.properties(mark={"type": mark, **how})


def log_steps(values: Sequence[float], top: float) -> list[float]:
    """1, 2, 5, 10, ... from the last at or below the smallest value to the first at or above `top`."""
    low = math.floor(math.log10(min(values)))
    steps = [m * 10.0**p for p in range(low, math.ceil(math.log10(top)) + 1) for m in (1, 2, 5)]
    first = max(i for i, step in enumerate(steps) if step <= min(values))
    last = min(i for i, step in enumerate(steps) if step >= top)
    return steps[first : max(last, first + 1) + 1]


def log_scale(steps: Sequence[float]) -> alt.Scale:
    return alt.Scale(type="log", domain=[steps[0], steps[-1]], nice=False)


def tick_axis(steps: Sequence[float]) -> alt.Axis:
    return alt.Axis(values=list(steps), format=",~r")
