"""The tables of the page: every cell a figure, or why there is none. No torch, no HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from norm_fusion.records import Label, Record, Status, Timer
from norm_fusion.report.chart import colour
from norm_fusion.report.notes import attempts, noted
from norm_fusion.report.quotes import Quote, claims, quote
from norm_fusion.report.rows import (
    HOT,
    WALL,
    Row,
    baseline_of,
    case_title,
    cases,
    duration,
    fastest_torch,
    fastest_wall,
    fused,
    rate,
    span,
    times,
)
from norm_fusion.spec import CONTROL, ROOF, Case

OPERATOR = "torch-native"  # what most would call: PyTorch's own operator
# How a label is shown: its class in templates/style.css.
MARKS = {label: label.value.replace(" ", "-") for label in Label}


class Timers(NamedTuple):
    """The series that latency, and that rates and speedups, are quoted from in most rows."""

    latency: Timer | None
    ratio: Timer | None


@dataclass(frozen=True)
class Cell:
    """A figure, or why there is none; `mark` says how loudly, `key` is that of the record that it is of."""

    text: str = ""
    why: str = ""
    mark: str = ""
    key: str = ""


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
        if not self.row.contestant:
            return "roof"
        return "fused" if self.row.profile.startswith("triton-") else ""


@dataclass(frozen=True)
class Heading:
    """One group of columns of the results table: its title and the columns' heads."""

    title: str
    heads: Sequence[str]

    @property
    def width(self) -> int:
        return len(self.heads)


def headings(rows: Sequence[Row]) -> list[Heading]:
    """The columns that this run has figures for."""
    hot, eager, spread, regime = _there(rows)
    time = ["p50", "p95", "p95/p50", *["hot p50"] * hot, *["host", "wall"] * eager, *["spread"] * spread]
    bound = ["regime"] * regime
    return [Heading("Time per call", [*time, *bound]), Heading("Throughput", ["GB/s", "of copy", "TFLOP/s"])]


def _there(rows: Sequence[Row]) -> tuple[bool, bool, bool, bool]:
    return (
        any(row.hot for row in rows),
        any(row.ms("host") is not None for row in rows),
        any(row.latency and row.latency.process_spread is not None for row in rows),
        any(row.regime for row in rows),
    )


def entry(row: Row, group: Sequence[Row], rows: Sequence[Row], timers: Timers) -> Entry:
    """A row of the results table."""
    r = row.any
    best = fastest_torch(group)
    tags = ["baseline"] if row.profile == baseline_of(r.op) else []
    tags += ["fastest"] if best is not None and row.profile == best.profile else []
    if row.status is not Status.OK:
        code = f"{r.code.value}: " if r.code else ""
        said = f"{code}{sentence(r.reason or 'no reason kept')}"
        return Entry(row, [], [], _errors(r), r.status.value, said, r.remedy or "")
    verdict = {ROOF: "the roof", CONTROL: "control"}.get(row.profile, "correct")
    return Entry(row, tags, [*_latency(row, rows, timers), *_rates(row, timers)], _errors(r), verdict)


def _quoted(text: str, timer: Timer, common: Timer | None, key: str = "") -> Cell:
    """A figure, marked where it is from another series than its neighbours."""
    if timer == common:
        return Cell(text, key=key)
    return Cell(text, f"from the {timer} series, others from {common}", "fell", key)


def _latency(row: Row, rows: Sequence[Row], timers: Timers) -> Iterator[Cell]:
    r = row.latency
    hot, eager, spread, regime = _there(rows)
    if r is None or r.p50_ms is None or r.p95_ms is None:
        yield from [Cell(why="no series of this row was timed")] * (3 + hot + 2 * eager + spread + regime)
        return
    loud = {"warn": "warn", "rerun": "rerun"}.get(r.noise or "", "")
    said = f"{r.noise_ratio:.2f} {loud}".strip() if r.noise_ratio is not None else ""
    yield _quoted(duration(r.p50_ms), r.timer, timers.latency, r.key)
    yield _quoted(duration(r.p95_ms), r.timer, timers.latency, r.key)
    yield Cell(said, "" if said else "no ratio was recorded", loud, r.key)
    if hot:
        yield _time(row.hot, "no hot series of this row")
    if eager:
        yield _time(row.series.get(("host", "cold")), "no host series of this row")
        yield _time(row.series.get(WALL), "no wall series of this row")
    if spread:
        apart = r.process_spread
        yield Cell(why="one process measured it") if apart is None else Cell(f"{apart - 1:.1%}", key=r.key)
    if regime:
        yield Cell(row.regime or "", "" if row.regime else "what bounds it is not known", "word")


def _time(record: Record | None, why: str) -> Cell:
    if record is None or record.p50_ms is None:
        return Cell(why=why)
    return Cell(duration(record.p50_ms), key=record.key)


def _rates(row: Row, timers: Timers) -> list[Cell]:
    r = row.ratio
    if r is None:
        return [Cell(why=f"no series to take a rate from{because(row)}")] * 3
    is_roof = row.profile == ROOF
    share = Cell(why="this is the copy itself" if is_roof else "no copy was timed in this series")
    work = "a copy computes nothing" if is_roof else "not derived for this series"
    return [
        Cell(why="not derived for this series")
        if r.gbps is None
        else _quoted(rate(r.gbps), r.timer, timers.ratio, r.key),
        share if r.roof_share is None else _quoted(f"{r.roof_share:.1%}", r.timer, timers.ratio, r.key),
        Cell(why=work) if r.tflops is None else _quoted(rate(r.tflops), r.timer, timers.ratio, r.key),
    ]


def because(row: Row) -> str:
    return f": {'; '.join(notes)}" if (notes := list(noted([row]))) else ""


def _errors(r: Record) -> list[Cell]:
    none = "a copy is not judged" if r.profile == ROOF else f"not compared with the reference: {r.reason or r.status}"
    values = (r.max_abs_error, r.max_rel_error, r.tolerance)
    return [Cell(why=none) if v is None else Cell(f"{v:.1e}" if v else "0", key=r.key) for v in values]


# Claims


@dataclass(frozen=True)
class Claimed:
    """A claim in one series, as the claims table has it: three cells."""

    speedup: Cell
    interval: Cell
    call: Cell


@dataclass(frozen=True)
class Claim:
    """One line of the claims table: a baseline, in the series that is quoted, in eager calls, and hot."""

    baseline: str
    tags: list[str]
    series: list[Claimed]
    processes: Cell


@dataclass(frozen=True)
class Subject:
    """Who claims something of a case, and the claims."""

    row: Row
    lines: list[Claim]
    kind: str  # "fused": who the question is about; "aside": PyTorch beside these, and the control

    @property
    def colour(self) -> str:
        return colour(self.row.profile)


def subjects(rows: Sequence[Row], timers: Timers) -> list[tuple[str, list[Subject]]]:
    """The claims of every case: those of who is not PyTorch first."""
    made = []
    for case, group in cases(rows).items():
        found = claims(group, everyone=True)
        found.sort(key=lambda pair: (not pair[0].contestant, pair[0].profile.startswith("torch-")))
        asked = any(row.contestant and not row.profile.startswith("torch-") for row, _ in found)
        lines = []
        for row, quotes in found:
            kind = "fused" if not row.profile.startswith("torch-") else "aside" if asked else ""
            lines.append(
                Subject(row, [_claim(one, group, timers) for one in quotes], kind if row.contestant else "aside")
            )
        if lines:
            made.append((case_title(case), lines))
    return made


class Shown(NamedTuple):
    """Which columns of the claims table this run has figures for."""

    calls: bool
    eager: bool
    hot: bool


def shown(claimed: Sequence[tuple[str, list[Subject]]]) -> Shown:
    lines = [line for _, subjects in claimed for subject in subjects for line in subject.lines]

    def there(place: int) -> bool:
        return any(line.series[place].speedup.text or line.series[place].call.text for line in lines)

    return Shown(any(line.series[0].call.text for line in lines), there(1), there(2))


def _claim(one: Quote, group: Sequence[Row], timers: Timers) -> Claim:
    best = fastest_torch(group)
    tags = ["baseline"] if one.baseline == baseline_of(one.row.any.op) else []
    tags += ["fastest"] if best is not None and best.profile == one.baseline else []
    tags = tags if one.row.contestant else []
    wall = quote(one.row, one.baseline, WALL) if one.series != WALL else None
    hot = next((found for s in HOT if (found := quote(one.row, one.baseline, s)) is not None), None)
    each = ", ".join(times(ratio) for ratio in one.ratios)
    counted = Cell(f"{len(one.ratios)}", each) if one.ratios else Cell(why="the processes' ratios are not kept")
    return Claim(one.baseline, tags, [_three(one, timers.ratio), _three(wall, "wall"), _three(hot, None)], counted)


def _three(one: Quote | None, common: Timer | None) -> Claimed:
    if one is None:
        return Claimed(*[Cell(why="this series makes no claim")] * 3)
    call = Cell(why="one process makes no call")
    if one.call is not None:
        earlier = f"; {attempts(one)}" if one.call.earlier else ""
        call = Cell(one.call.label.value, f"{one.call.code}: {one.call.reason}{earlier}", MARKS[one.call.label])
    if one.speedup is None:
        none = Cell(why=one.call.reason if one.call is not None else "no speedup was derived")
        return Claimed(none, none, call)
    within = f"95% interval {span(*one.interval)}" if one.interval is not None else ""
    speedup = Cell(times(one.speedup), within, key=one.key)
    if common is not None and one.series[0] != common:
        speedup = _quoted(times(one.speedup), one.series[0], common, one.key)
    if one.interval is None:
        return Claimed(speedup, Cell(why="one process has no interval"), call)
    return Claimed(speedup, Cell(span(*one.interval), one.width), call)


def glance(rows: Sequence[Row], timers: Timers) -> Iterator[dict[str, object]]:
    """One line a case for who has a minute: the fused kernel, both baselines, eager calls, noise. Timed cases only."""
    for case, group in cases(rows).items():
        mine = fused(group)
        if mine is None or mine.status is not Status.OK or mine.ratio is None or mine.latency is None:
            continue
        if mine.ratio.p50_ms is None:
            continue
        best, baseline, eager = fastest_torch(group), baseline_of(mine.any.op), fastest_wall(group)
        involved = [mine, *(row for row in group if row.profile in (baseline, best and best.profile))]
        loud = [row for row in involved if row.latency and row.latency.noise in ("warn", "rerun")]
        rerun = any(row.latency and row.latency.noise == "rerun" for row in loud)
        gpu = mine.ratio.timer != "wall"
        yield {
            "case": case_title(case),
            "name": case,
            "p50": _quoted(duration(mine.ratio.p50_ms), mine.ratio.timer, timers.ratio, mine.ratio.key),
            "share": _rates(mine, timers)[1],
            "baseline": _brief(mine, baseline, group),
            "operator": _brief(mine, OPERATOR, group) if baseline != OPERATOR else None,
            "fastest": _brief(mine, best.profile if best else None, group),
            "eager": _brief(mine, eager.profile if eager else None, group, eager=True) if gpu else None,
            "regime": mine.regime or "",
            "noise": Cell("rerun", mark="rerun") if rerun else Cell("warn", mark="warn") if loud else Cell("good"),
            "loud": ", ".join(dict.fromkeys(row.profile for row in loud)),
        }


def _brief(row: Row, name: str | None, group: Sequence[Row], eager: bool = False) -> dict[str, object]:
    """A speedup with its width, its call and its baseline; or why there is none."""
    one = quote(row, name, WALL if eager else None) if name else None
    if one is None:
        return {"cell": Cell(why=_no_speedup(row, name, group)), "width": "", "name": name or "", "call": None}
    made = _three(one, None)
    call = made.call if made.call.text else None
    return {"cell": made.speedup, "width": one.width, "name": name or "", "call": call}


def _no_speedup(row: Row, name: str | None, group: Sequence[Row]) -> str:
    if name is None:
        return "no correct PyTorch was timed"
    if row.ratio is None:
        return f"no series to take a ratio from{because(row)}"
    other = next((other for other in group if other.profile == name), None)
    if other is None:
        return f"{name} did not run on this case"
    if other.status is not Status.OK:
        return f"{name} is {other.status.value} here"
    return f"{name} was not timed in the {row.ratio.timer} series"


def sentence(text: str) -> str:
    return f"{text.rstrip('. ')}."


def traffic(case: str) -> str:
    """The case's traffic: compulsory bytes, the same for every contestant."""
    asked = Case.of(case)
    if asked is None:
        return ""
    nbytes = asked.compulsory_bytes
    return f"{nbytes / 2**20:,.1f} MiB" if nbytes >= 2**20 else f"{nbytes / 2**10:,.1f} KiB"
