"""The conditions while a run went on: a strip a reading over time, clocks, heat, power, load. Altair, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import numpy as np

from norm_fusion.nvml import POWER, THERMAL
from norm_fusion.records import Conditions, Environment

HEIGHT_PX = 64
POINTS = 240  # of a strip: more readings share a point, whose range is drawn


@dataclass(frozen=True)
class Reading:
    """What is read: its name, unit, how it is taken from conditions, and the limit that it belongs to."""

    name: str
    unit: str
    take: Callable[[Conditions], float | None]
    limit: Callable[[Environment], float | None] = lambda environment: None


READINGS: tuple[Reading, ...] = (
    Reading("SM clock", "MHz", lambda c: c.sm_clock_mhz, lambda e: e.sm_clock_max_mhz),
    Reading("Temperature", "°C", lambda c: c.temperature_c),
    Reading("Power", "W", lambda c: c.power_w, lambda e: e.power_limit_w),
    Reading("Other compute processes", "", lambda c: c.other_processes or None),
    Reading("Load over 1 min", "", lambda c: c.load_1m, lambda e: e.threads),
    Reading("Time given to other guests", "%", lambda c: None if c.steal is None else c.steal * 100),
)


def strips(conditions: Iterable[Conditions], environment: Environment | None) -> list[tuple[str, str, alt.LayerChart]]:
    """A title, a sentence and a chart for each reading that there is; none without readings."""
    taken = [c for c in conditions if c.monotonic_s is not None]
    if len(taken) < 2:
        return []
    start = min(c.monotonic_s or 0.0 for c in taken)
    held = [(c.monotonic_s or 0.0) - start for c in taken if c.throttle_bits & (THERMAL | POWER)]
    made = []
    for reading in READINGS:
        series = [((c.monotonic_s or 0.0) - start, value) for c in taken if (value := reading.take(c)) is not None]
        if len(series) < 2:
            continue
        values = [value for _, value in series]
        limit = reading.limit(environment) if environment is not None else None
        title = f"{reading.name}, {reading.unit}" if reading.unit else reading.name
        made.append((title, _said(values, limit), _chart(series, held if reading.name == "SM clock" else [])))
    return made


def _said(values: Sequence[float], limit: float | None) -> str:
    low, high, middle = min(values), max(values), float(np.median(values))
    said = f"{low:,.4g} throughout" if low == high else f"median {middle:,.4g}, from {low:,.4g} to {high:,.4g}"
    return f"{said}; limit {limit:,.4g}" if limit else said


def _chart(series: Sequence[tuple[float, float]], held: Sequence[float]) -> alt.LayerChart:
    points = _thinned(series)
    low, high = min(p["low"] for p in points), max(p["high"] for p in points)
    room = max((high - low) * 0.15, abs(high) * 0.01, 0.05)
    scale = alt.Scale(domain=[low - room if low > room else 0, high + room], nice=False)
    seconds = alt.X("s:Q", title="seconds", axis=alt.Axis(tickCount=6, format="~r"), scale=alt.Scale(nice=False))
    y = alt.Y("low:Q", title=None, scale=scale, axis=alt.Axis(tickCount=3, format=",~r", minExtent=42, maxExtent=42))
    chart = alt.Chart(alt.InlineData(values=points)).encode(x=seconds)
    layers: list[alt.Chart] = [
        chart.mark_area(opacity=0.25, color="var(--blue)").encode(y=y, y2="high:Q"),
        chart.mark_line(strokeWidth=1.5, color="var(--blue)").encode(y=alt.Y("middle:Q", scale=scale, title=None)),
    ]
    if held:
        marks: list[dict[str, Any]] = [{"s": s} for s in dict.fromkeys(round(s, 1) for s in held)]
        ticks = alt.Chart(alt.InlineData(values=marks)).mark_tick(color="var(--bad)", thickness=2, height=8)
        layers.append(ticks.encode(x=seconds, y=alt.value(4)))
    made: alt.LayerChart = alt.layer(*layers).resolve_axis(y="shared")
    return made.properties(width="container", height=HEIGHT_PX)


def _thinned(series: Sequence[tuple[float, float]]) -> list[dict[str, float]]:
    """At most POINTS points: of the readings that share one, smallest, median and largest, so that no dip is lost."""
    size = -(-len(series) // POINTS)
    shared = [series[i : i + size] for i in range(0, len(series), size)]
    return [
        {
            "s": round(float(np.mean([s for s, _ in part])), 2),
            "low": min(v for _, v in part),
            "middle": float(np.median([v for _, v in part])),
            "high": max(v for _, v in part),
        }
        for part in shared
    ]
