"""A run as one HTML page that needs nothing but itself: the answer, the figures, the plots, the conditions, the limits.

`render` is pure. What records hold is data: the template escapes text, charts get it as JSON with `<` escaped, and the
page's own policy allows no script but the one written here and no request at all.
"""

from __future__ import annotations

import re
import shlex
from base64 import b64encode
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from hashlib import sha256
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import vl_convert
from markupsafe import Markup

from norm_fusion import metrics
from norm_fusion.records import Manifest, Record, Status, Timer
from norm_fusion.report.answer import answer
from norm_fusion.report.panels import CONFIG, PANELS, Panel, colour
from norm_fusion.report.rows import (
    Row,
    above_roof,
    baseline_of,
    baselines,
    case_title,
    cases,
    company,
    duration,
    fastest_torch,
    fused,
    join,
    noisy_series,
    rate,
    times,
    usual,
)
from norm_fusion.runs.store import RunStore, in_order, write_whole
from norm_fusion.spec import ROOF, Case, Op, SpecError

STATIC_PX = 400  # width of a plot, its names and figures excepted, that a reader without JavaScript sees

# The figures of the answer that a reader is after; split on, every second part is one.
RATIO = re.compile(r"(?<!worst )(\b\d+\.\d+x)")

# NVML's bits for why a clock is not at its maximum.
THROTTLE = {
    0x1: "idle", 0x2: "application clocks", 0x4: "software power cap", 0x8: "hardware slowdown", 0x10: "sync boost",
    0x20: "software thermal slowdown", 0x40: "hardware thermal slowdown", 0x80: "power brake", 0x100: "display clocks",
}  # fmt: skip


class Timers(NamedTuple):
    """The series that latency, and that rates and speedups, are quoted from in most rows."""

    latency: Timer | None
    ratio: Timer | None


@dataclass(frozen=True)
class Cell:
    """A figure, or why there is none; `mark` says how loudly."""

    text: str = ""
    why: str = ""
    mark: str = ""


@dataclass(frozen=True)
class Entry:
    """One line of the results table. `said` stands in for the figures of a row that may not be quoted."""

    row: Row
    tags: list[str]
    figures: list[Cell]
    errors: list[Cell]
    verdict: str
    said: str = ""
    remedy: str = ""

    @property
    def colour(self) -> str:
        return colour(self.row.profile)

    @property
    def kind(self) -> str:
        if self.row.profile == ROOF:
            return "roof"
        return "fused" if self.row.profile.startswith("triton-") else ""


def write(store: RunStore, path: Path) -> Path:
    """The page of a stored run, written to `path` whole or not at all."""
    manifest = store.manifest()
    page = render(manifest, join(in_order(store.records(), manifest)))
    write_whole(path, page.encode())
    return path


def render(manifest: Manifest, rows: Sequence[Row]) -> str:
    """The page of a run: HTML that works from a file, without a network."""
    script = Markup(_script())
    shown = [_figure(i, panel, rows) for i, panel in enumerate(PANELS)]
    timers = Timers(usual(row.latency for row in rows), usual(row.ratio for row in rows))
    compared = baselines(rows)
    return _template().render(
        policy=f"default-src 'none'; script-src 'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'; "
        "style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'",
        style=Markup(_asset("style.css")),
        script=script,
        specs={figure["id"]: figure["spec"] for figure in shown if figure["spec"]},
        figures=[figure for figure in shown if figure["spec"]],
        undrawn=[figure["panel"] for figure in shown if not figure["spec"]],
        manifest=manifest,
        answers=[RATIO.split(said) for op in Op if (said := answer([row for row in rows if row.any.op == op]))],
        took=_took(manifest),
        command=shlex.join(manifest.command),
        glance=list(_glance(rows, timers)),
        baselines=[name.removeprefix("torch-") for name in compared],
        groups=[
            (case_title(case), _bytes(case), [_entry(row, group, compared, timers) for row in _roof_last(group)])
            for case, group in cases(rows).items()
        ],
        timers=timers,
        limits=list(_limits(manifest, rows, timers)),
        records=[record for row in rows for record in row.series.values()],
        metrics=metrics,
    )


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("norm_fusion.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"duration": duration, "moment": _moment, "reading": _reading}
    return environment.get_template("page.html")


def _asset(name: str) -> str:
    return (files("norm_fusion.report") / "templates" / name).read_text(encoding="utf-8")


@cache
def _script() -> str:
    """Vega, Vega-Lite and vega-embed, bundled offline with the few lines that draw this page's charts."""
    bundle = vl_convert.javascript_bundle(_asset("draw.js"))
    return bundle.replace("</script", "<\\/script").replace("<!--", "\\x3c!--")


def _figure(i: int, panel: Panel, rows: Sequence[Row]) -> dict[str, Any]:
    """A panel, its chart for the script, and the same chart as it stands for a reader without JavaScript."""
    chart = panel.draw(rows)
    if chart is None:
        return {"id": f"plot-{i}", "panel": panel, "spec": None, "svg": None}
    spec: dict[str, Any] = chart.to_dict() | {"config": CONFIG}
    del spec["$schema"]
    svg = vl_convert.vegalite_to_svg(spec | {"width": STATIC_PX}, allowed_base_urls=[])
    return {"id": f"plot-{i}", "panel": panel, "spec": spec, "svg": Markup(svg)}


def _roof_last(group: Sequence[Row]) -> list[Row]:
    return sorted(group, key=lambda row: row.profile == ROOF)


def _entry(row: Row, group: Sequence[Row], compared: Sequence[str], timers: Timers) -> Entry:
    r = row.any
    best = fastest_torch(group)
    tags = ["baseline"] if row.profile == baseline_of(r.op) else []
    tags += ["fastest"] if best is not None and row.profile == best.profile else []
    if row.status is not Status.OK:
        return Entry(row, [], [], _errors(r), r.status.value, _sentence(r.reason or "no reason kept"), r.remedy or "")
    figures = [
        *_latency(row, timers),
        *_rates(row, timers),
        *(_speedup(row, group, name, timers) for name in compared),
    ]
    return Entry(row, tags, figures, _errors(r), "the roof" if row.profile == ROOF else "correct")


def _quoted(text: str, timer: Timer, common: Timer | None) -> Cell:
    """A figure, marked where it is from another series than its neighbours."""
    return Cell(text) if timer == common else Cell(text, f"from the {timer} series, others from {common}", "fell")


def _latency(row: Row, timers: Timers) -> list[Cell]:
    r = row.latency
    if r is None or r.p50_ms is None or r.p95_ms is None:
        return [Cell(why="no series of this row was timed")] * 3
    loud = {"warn": "warn", "rerun": "rerun"}.get(r.noise or "", "")
    said = f"{r.noise_ratio:.2f} {loud}".strip() if r.noise_ratio is not None else ""
    return [
        _quoted(duration(r.p50_ms), r.timer, timers.latency),
        _quoted(duration(r.p95_ms), r.timer, timers.latency),
        Cell(said, "" if said else "no ratio was recorded", loud),
    ]


def _rates(row: Row, timers: Timers) -> list[Cell]:
    r = row.ratio
    if r is None:
        return [Cell(why=f"no series to take a rate from{_because(row)}")] * 3
    is_roof = row.profile == ROOF
    share = Cell(why="this is the copy itself" if is_roof else "no copy was timed in this series")
    work = "a copy computes nothing" if is_roof else "not derived for this series"
    return [
        _quoted(rate(r.gbps), r.timer, timers.ratio) if r.gbps is not None else Cell(why="not derived for this series"),
        share if r.roof_share is None else _quoted(f"{r.roof_share:.1%}", r.timer, timers.ratio),
        _quoted(rate(r.tflops), r.timer, timers.ratio) if r.tflops is not None else Cell(why=work),
    ]


def _speedup(row: Row, group: Sequence[Row], baseline: str, timers: Timers) -> Cell:
    if row.profile == ROOF:
        return Cell(why="a copy is no contestant")
    if row.profile == baseline:
        return Cell(why="the same implementation")
    if row.ratio is None:
        return Cell(why=f"no series to take a ratio from{_because(row)}")
    other = next((other for other in group if other.profile == baseline), None)
    if other is None:
        return Cell(why=f"{baseline} did not run on this case")
    if other.status is not Status.OK:
        return Cell(why=f"{baseline} is {other.status.value} here")
    if baseline in row.ratio.speedup:
        return _quoted(times(row.ratio.speedup[baseline]), row.ratio.timer, timers.ratio)
    return Cell(why=f"{baseline} was not timed in the {row.ratio.timer} series")


def _because(row: Row) -> str:
    return f": {'; '.join(row.any.notes)}" if row.any.notes else ""


def _errors(r: Record) -> list[Cell]:
    none = "a copy is not judged" if r.profile == ROOF else f"not compared with the reference: {r.reason or r.status}"
    values = (r.max_abs_error, r.max_rel_error, r.tolerance)
    return [Cell(why=none) if value is None else Cell(f"{value:.1e}" if value else "0") for value in values]


def _glance(rows: Sequence[Row], timers: Timers) -> Iterator[dict[str, Any]]:
    """One line a case for who has a minute: the fused kernel, the copy, the two baselines, noise. Timed cases only."""
    for case, group in cases(rows).items():
        mine = fused(group)
        if (
            mine is None
            or mine.status is not Status.OK
            or mine.ratio is None
            or mine.latency is None
            or mine.latency.p50_ms is None
        ):
            continue
        best, baseline = fastest_torch(group), baseline_of(mine.any.op)
        involved = [mine, *(row for row in group if row.profile in (baseline, best and best.profile))]
        loud = [row for row in involved if row.latency and row.latency.noise in ("warn", "rerun")]
        rerun = any(row.latency and row.latency.noise == "rerun" for row in loud)
        yield {
            "case": case_title(case),
            "p50": _quoted(duration(mine.latency.p50_ms), mine.latency.timer, timers.latency),
            "share": _rates(mine, timers)[1],
            "baseline": _speedup(mine, group, baseline, timers) if baseline else Cell(why="no baseline is known"),
            "baseline_name": baseline,
            "fastest": _speedup(mine, group, best.profile, timers) if best else Cell(why="no correct PyTorch"),
            "fastest_name": best.profile if best else "",
            "noise": Cell("rerun", mark="rerun") if rerun else Cell("warn", mark="warn") if loud else Cell("good"),
            "loud": ", ".join(dict.fromkeys(row.profile for row in loud)),
        }


def _reading(value: float | str | None) -> str | None:
    """A condition as read: a number to two places at most, NVML's reasons by name."""
    if isinstance(value, str):
        try:
            bits = int(value, 16)
        except ValueError:
            return value
        return f"{', '.join(name for bit, name in THROTTLE.items() if bits & bit) or 'nothing'} ({bits:#x})"
    return None if value is None else f"{round(value, 2):,}"


def _moment(text: str) -> str:
    """`22 Nov 2026, 12:40:02 UTC`; what is no ISO 8601 time stands as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    zone = "UTC" if moment.utcoffset() == timedelta(0) else moment.strftime("%z")
    return f"{moment.day} {moment:%b %Y, %H:%M:%S} {zone}".strip()


def _sentence(text: str) -> str:
    return f"{text.rstrip('. ')}."


def _took(manifest: Manifest) -> str:
    """`2 min 17 s`, or nothing where the run's end is not known."""
    try:
        span = datetime.fromisoformat(manifest.finished_at or "") - datetime.fromisoformat(manifest.started_at)
    except (ValueError, TypeError):
        return ""
    minutes, seconds = divmod(round(span.total_seconds()), 60)
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _bytes(case: str) -> str:
    """The case's traffic: compulsory bytes, the same for every contestant."""
    try:
        nbytes = Case.parse(case).compulsory_bytes
    except SpecError:
        return ""
    return f"{nbytes / 2**20:,.1f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:,.1f} KiB"


def _limits(manifest: Manifest, rows: Sequence[Row], timers: Timers) -> Iterator[str]:
    """What this run does not show, from the run itself."""
    environment = manifest.environment
    measured = [row for row in rows if row.profile != ROOF]
    ok = [row for row in measured if row.status is Status.OK]
    if measured:
        yield (
            "One process measured everything, so there is no confidence interval: another process may differ by more "
            "than the noise ratio says, and a difference of a few percent between two profiles is not yet a finding."
        )
    if lacking := [name for name in manifest.cases if name not in {row.case for row in rows}]:
        yield f"Not measured: {'; '.join(case_title(name) for name in lacking)}."
    if manifest.quick:
        yield "It was a quick run: half the samples of a full one."
    if noisy := [row for row in ok if noisy_series(row)]:
        series = sorted({timer for row in noisy for timer in noisy_series(row)})
        yield (
            f"Too noisy for a precise claim (p95/p50 above {metrics.WARN_UP_TO} in the series {' or '.join(series)}), "
            f"rerun: {_named(noisy)}."
        )
    if unsettled := [row for row in ok if any(r.settled is False for r in row.series.values())]:
        yield f"Warm-up did not settle within 1% before the time was up: {_named(unsettled)}."
    if fell := [row for row in ok if row.latency and row.latency.timer != timers.latency]:
        yield f"Marked †, latency is from another series than {timers.latency}: {_named(fell)}."
    if fell := [row for row in ok if row.ratio and row.ratio.timer != timers.ratio]:
        yield f"Marked †, rates and speedups are from another series than {timers.ratio}: {_named(fell)}."
    for note, those in _notes(rows):
        yield f"{_named(those)}: {_sentence(note)}"
    if above := [row for row in ok if above_roof(row)]:
        yield f"Above the measured copy, which is then no roof, or the inputs were not cold: {_named(above)}."
    if odd := [row for row in measured if row.status not in (Status.OK, Status.CHECKED)]:
        names = (f"{row.profile} at {case_title(row.case)} ({row.status})" for row in odd)
        yield f"Not in any comparison: {'; '.join(names)}."
    if environment and environment.device == "cpu":
        yield (
            "A CPU does not time Triton: its kernels are verified in the interpreter on a sample of the rows, "
            "and nothing here says how fast they are on a GPU."
        )
    elif environment:
        yield f"One GPU, {environment.device_name}: nothing here says how another model would do."
    if environment and environment.dirty:
        yield "The checkout had uncommitted changes: its commit alone does not reproduce this run."
    if environment and {row.any.fingerprint for row in rows} - {environment.fingerprint}:
        yield "Some records carry another fingerprint than this environment: they were measured elsewhere."
    yield from company(manifest)
    if measured:
        yield "Forward pass, cold inputs, random values with a few large channels; no other shape or dtype was timed."


def _notes(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    said: dict[str, list[Row]] = {}
    for row in rows:
        for note in row.any.notes:
            said.setdefault(note, []).append(row)
    return list(said.items())


def _named(rows: Iterable[Row]) -> str:
    return "; ".join(f"{row.profile} at {case_title(row.case)}" for row in rows)
