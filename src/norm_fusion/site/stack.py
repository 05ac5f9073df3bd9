"""How facets are put into one chart: Vega-Lite gives the width of its container to no chart of several.

Heights are computed, in px from the top; a facet's heading, its ticks and their text are marks. A facet is an operator,
pass and dtype (by_facet), or a profile's strip of samples.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import altair as alt

from norm_fusion.report.chart import INK, drawn
from norm_fusion.report.rows import Row, cases, label_of
from norm_fusion.spec import Case

HEADING_PX, LINE_PX, GAP_PX = 26, 20, 16
SMALL, SMALL_PX = 11, 6.6  # font size of names and ticks, and the room for a character: see chart.LABEL_PX
MUTED, RULE = "var(--muted)", "var(--rule)"
MOST = 16  # facets of a chart: of more, those with the fewest cases are left out, and the chart says how many

Data = dict[str, Any]
Marks = defaultdict[str, list[Data]]  # by layer
Facet = TypeVar("Facet")


@dataclass
class Stack:
    """Facets from the top down: what has been placed so far, in px, and how much room there is beside the plot."""

    left: float
    right: float = 0
    y: float = 0
    headings: list[Data] = field(default_factory=list)
    remarks: list[Data] = field(default_factory=list)  # from the left edge, like headings
    sides: list[Data] = field(default_factory=list)  # left of the plot

    def heading(self, text: str) -> None:
        self.headings.append({"y": self.y + 11, "text": text})
        self.y += HEADING_PX

    def remark(self, text: str) -> None:
        if text:
            self.remarks.append({"y": self.y + LINE_PX / 2, "text": text})
            self.y += LINE_PX

    def side(self, y: float, text: str) -> None:
        self.sides.append({"y": y, "text": text})

    def at(self, values: Sequence[Data]) -> alt.Chart:
        """A layer of marks in px, to be made once all facets are placed."""
        return alt.Chart(alt.InlineData(values=list(values))).encode(y=self.across("y"))

    def chart(self, *layers: alt.Chart) -> alt.LayerChart:
        """The layers, under headings, remarks and what stands beside the plot."""
        limit = alt.ExprRef(f"width + {self.left + self.right}")
        own = [
            (self.headings, {"fontWeight": 600, "limit": limit}, -self.left, INK, self._room("left", self.left)),
            (self.remarks, {"fontSize": SMALL, "limit": limit}, -self.left, MUTED, self._room("right", self.right)),
            (self.sides, {"fontSize": SMALL, "align": "right"}, -8, MUTED, None),
        ]
        texts = [
            drawn(
                self.at(values).encode(x=alt.value(x), y=self.across("y", axis), text="text:N"),
                "text",
                color=tint,
                **how,
            )
            for values, how, x, tint, axis in own
        ]
        made: alt.LayerChart = alt.layer(*layers, *texts).resolve_axis(y="independent")
        return made.properties(width="container", height=self.y)

    def across(self, name: str, axis: alt.Axis | None = None) -> alt.Y:
        """Heights that a field holds."""
        return alt.Y(f"{name}:Q", scale=alt.Scale(domain=[0, self.y], nice=False, zero=False, reverse=True), axis=axis)

    def _room(self, orient: Literal["left", "right"], px: float) -> alt.Axis:
        bare: Data = {"domain": False, "ticks": False, "grid": False, "labels": False, "title": None, "values": []}
        return alt.Axis(**bare, orient=orient, minExtent=px, maxExtent=px)


def spread(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Positions as near as can be to those that are wanted, at least so far apart, in their order, between two ends."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    pools: list[list[float]] = []  # less the room that those before take, they must not fall: what does is made even
    for place, i in enumerate(order):
        pools.append([wanted[i] - place * apart])
        while len(pools) > 1 and sum(pools[-2]) / len(pools[-2]) > sum(pools[-1]) / len(pools[-1]):
            last = pools.pop()
            pools[-1] += last
    even = [sum(pool) / len(pool) for pool in pools for _ in pool]
    most = max(high - apart * (len(wanted) - 1), low)
    placed = {i: round(min(max(even[k], low), most) + k * apart, 1) for k, i in enumerate(order)}
    return [placed[i] for i in range(len(wanted))]


def by_facet(rows: Sequence[Row]) -> dict[str, dict[Case, list[Row]]]:
    """The rows of each operator, pass and dtype, by case, smallest first; what is named like no case is left out."""
    facets: dict[str, dict[Case, list[Row]]] = {}
    for name, mine in cases(rows).items():
        case = Case.of(name)
        if case is not None and case.name == name:  # 04096 is 4096: a name that no case is given
            facets.setdefault(f"{label_of(case.op, case.pass_)} {case.dtype}", {})[case] = mine
    return {title: {c: found[c] for c in sorted(found, key=size)} for title, found in facets.items()}


def most(every: Sequence[Facet], cases_of: Callable[[Facet], int]) -> tuple[list[Facet], str]:
    """At most so many facets, in their order, and what is said of the others."""
    kept = sorted(sorted(range(len(every)), key=lambda i: -cases_of(every[i]))[:MOST])
    more = len(every) - len(kept)
    return [every[i] for i in kept], f"{more} more, of fewer cases, are not drawn: see the table" if more else ""


def size(case: Case) -> tuple[int, int]:
    return case.compulsory_bytes, case.rows


def ticks(low: float, high: float, steps: int = 1) -> list[tuple[float, str]]:
    """As few round values as are so many steps, and how they are written, so that they can be told apart."""
    power = math.floor(math.log10(high - low))
    round_ = [m * 10.0**p for p in (power, power - 1) for m in (5, 2, 1)]
    step = next(s for s in round_ if math.floor(high / s) - math.ceil(low / s) >= steps)
    places = max(0, -math.floor(math.log10(step) + 1e-9))
    return [(step * i, f"{step * i:,.{places}f}") for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
