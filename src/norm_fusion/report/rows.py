"""Records joined for a reader: one row per case and profile, and how its figures are written. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from norm_fusion.evidence.claims import fastest
from norm_fusion.evidence.pool import quoted
from norm_fusion.metrics import GATES, half_width
from norm_fusion.records import Cache, Call, Conclusions, Manifest, Record, Status, Timer
from norm_fusion.runs.order import in_order
from norm_fusion.spec import BASELINE_OF, CONTROL, ROOF, Case, Op, Pass

Series = tuple[Timer, Cache]

# Which series answers what, the best one first: on a CPU there is wall alone.
LATENCY: tuple[Series, ...] = (("device", "cold"), ("graph", "cold"), ("wall", "cold"))
RATIO: tuple[Series, ...] = (("graph", "cold"), ("wall", "cold"))
HOT: tuple[Series, ...] = (("device", "hot"), ("graph", "hot"), ("wall", "hot"))
WALL: Series = ("wall", "cold")

OP_LABEL: Mapping[Op, str] = {
    Op.RMSNORM: "RMSNorm",
    Op.LAYERNORM: "LayerNorm",
    Op.ADD_RMSNORM: "add + RMSNorm",
    Op.ADD_LAYERNORM: "add + LayerNorm",
}
# What is no contestant, by what it is to a reader.
ROLES: Mapping[str, str] = {ROOF: "copy (the roof)", CONTROL: "control (A/A)"}

# Share of the copy above which a figure is doubted: the copy's own spread between runs is 2%.
ABOVE_ROOF = 1.02


@dataclass(frozen=True)
class Row:
    """One profile's results for one case, over all its series, and the calls of its claims."""

    case: str
    profile: str
    series: Mapping[Series, Record] = field(repr=False)
    calls: Sequence[Call] = field(default=(), repr=False)

    @property
    def any(self) -> Record:
        """A record of the row: status, correctness and the case's fields are the same in all."""
        return next(iter(self.series.values()))

    @property
    def status(self) -> Status:
        return self.any.status

    @property
    def name(self) -> str:
        return ROLES.get(self.profile, self.profile)

    @property
    def contestant(self) -> bool:
        return self.profile not in ROLES

    @property
    def latency(self) -> Record | None:
        """The series that p50, p95 and the noise ratio are quoted from; none where the result is wrong."""
        return self._first(LATENCY)

    @property
    def ratio(self) -> Record | None:
        """The series that speedup, GB/s and TFLOP/s are quoted from; none where the result is wrong."""
        return self._first(RATIO)

    @property
    def hot(self) -> Record | None:
        """The series of calls whose input the producer has just left in the cache; never mixed with a cold one."""
        return self._first(HOT)

    @property
    def regime(self) -> str | None:
        return None if self.status is Status.WRONG else self.any.regime

    def ms(self, timer: Timer, cache: Cache = "cold") -> float | None:
        record = self.series.get((timer, cache))
        return None if record is None else record.p50_ms

    def call(self, baseline: str, series: Series | None = None) -> Call | None:
        """The call of this row over a baseline: in one series, or where none is named in the one that is quoted."""
        mine = {(call.timer, call.cache): call for call in self.calls if call.baseline == baseline}
        return next((mine[one] for one in ([series] if series else RATIO) if one in mine), None)

    def _first(self, wanted: Iterable[Series]) -> Record | None:
        if self.status is Status.WRONG:
            return None
        return next((self.series[s] for s in wanted if s in self.series and self.series[s].p50_ms is not None), None)


def join(records: Iterable[Record], calls: Iterable[Call] = ()) -> list[Row]:
    """One row per case and profile (roof and control included), in the order in which they first appear.

    Of a case that was measured again only the attempt that is quoted; what the others said is in its calls' `earlier`.
    """
    groups: dict[tuple[str, str], dict[Series, Record]] = {}
    for record in quoted(list(records)):
        groups.setdefault((record.case, record.profile), {})[record.timer, record.cache] = record
    made: dict[tuple[str, str], list[Call]] = {}
    for call in calls:
        made.setdefault((call.case, call.profile), []).append(call)
    return [Row(*key, series, made.get(key, ())) for key, series in groups.items()]


def rows_of(conclusions: Conclusions, manifest: Manifest) -> list[Row]:
    """The rows of a run as a rule concluded, in the order in which it was asked."""
    return join(in_order(conclusions.pooled, manifest), conclusions.calls)


def cases(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each case."""
    grouped: dict[str, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row.case, []).append(row)
    return grouped


def fused(rows: Sequence[Row]) -> Row | None:
    """The Triton row of one case."""
    return next((row for row in rows if row.profile.startswith("triton-")), None)


def fastest_torch(rows: Sequence[Row]) -> Row | None:
    """The fastest correct PyTorch among the rows of one case, all by one series: the best that any of them has."""
    return next((best for series in RATIO if (best := _fastest_by(rows, series)) is not None), None)


def fastest_wall(rows: Sequence[Row]) -> Row | None:
    """The fastest correct PyTorch among the rows of one case in eager calls, by wall time."""
    return _fastest_by(rows, WALL)


def _fastest_by(rows: Sequence[Row], series: Series) -> Row | None:
    torch = {row.profile: row for row in rows if row.profile.startswith("torch-") and row.status is Status.OK}
    timed = {name: r for name, row in torch.items() if (r := row.series.get(series)) is not None and r.p50_ms}
    return torch[fastest(timed)] if timed else None


def above_roof(row: Row) -> bool:
    """Is the row faster than the copy of the same bytes, by more than copies differ?"""
    return row.ratio is not None and (row.ratio.roof_share or 0) > ABOVE_ROOF


def processes(rows: Iterable[Row]) -> int:
    """How many processes the figures are of: the most that any row has. Runs of schema 1 had one."""
    return max((record.processes or 1 for row in rows for record in row.series.values()), default=1)


def noisy_series(row: Row) -> list[Timer]:
    """The series that the row's figures are quoted from and that are too noisy for a precise claim."""
    relied_on = {record.timer: record for record in (row.latency, row.ratio) if record is not None}
    return [timer for timer, record in relied_on.items() if record.noise == "rerun"]


def gates(rows: Iterable[Row]) -> tuple[float, float]:
    """p95/p50 up to which a series is good, and above which too noisy: a run without a GPU's series is of a CPU."""
    timers = {timer for row in rows for timer, _ in row.series}
    return GATES["cuda" if {"device", "graph", "host"} & timers else "cpu"]


def company(manifest: Manifest) -> Iterator[str]:
    """Who else used the machine, as far as was seen: a sentence each."""
    for when, seen in (("before", manifest.before), ("after", manifest.after)):
        if seen and seen.other_processes:
            yield f"{seen.other_processes} other compute process(es) were on the card {when} the run."
    threads = manifest.environment.threads if manifest.environment else None
    load = manifest.before.load_1m if manifest.before else None
    if threads and load is not None and load > threads / 4:
        yield f"The machine was busy when the run began, load {load:.1f} on {threads} threads: run it again when idle."


def usual(records: Iterable[Record | None]) -> Timer | None:
    """The series that most rows are quoted from; a row that fell back to another has to say so."""
    timers = Counter(record.timer for record in records if record is not None)
    return timers.most_common(1)[0][0] if timers else None


def baseline_of(op: str) -> str | None:
    """What `torch-baseline` names for an operator; None for one that this version does not know."""
    return BASELINE_OF[Op(op)] if op in set(Op) else None


def case_title(name: str) -> str:
    """`RMSNorm 4096x8192 float16`; a name that is no case's stands as it is."""
    case = Case.of(name)
    return name if case is None else f"{label_of(case.op, case.pass_)} {case.rows}x{case.cols} {case.dtype}"


def label_of(op: Op, pass_: str) -> str:
    """`add + RMSNorm backward`."""
    return OP_LABEL[op] + (" backward" if pass_ == Pass.BACKWARD else "")


def duration(ms: float) -> str:
    """Three significant figures and the unit: `17.6 µs`."""
    for scale, unit in ((1e-6, "ns"), (1e-3, "µs"), (1.0, "ms")):
        if ms / scale < 999.5:
            return f"{f'{ms / scale:#.3g}'.rstrip('.')} {unit}"
    return f"{f'{ms / 1e3:#.3g}'.rstrip('.')} s"


def rate(value: float) -> str:
    """GB/s or TFLOP/s, without the unit."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:#.2g}"


def times(speedup: float) -> str:
    """`1.34x`, as the answer writes it."""
    return f"{speedup:.2f}x"


def span(low: float, high: float) -> str:
    """`[1.33, 1.35]`: two places, three where these do not tell the two ends apart."""
    places = 2 if f"{low:.2f}" != f"{high:.2f}" else 3
    return f"[{low:.{places}f}, {high:.{places}f}]"


def give_or_take(low: float, high: float) -> str:
    """`±0.4%`: half the width of an interval of ratios; one that spans a doubling has no use for more words."""
    width = half_width(low, high)
    return f"±{width:.1%}" if width < 0.1 else f"±{width:.0%}" if width < 1 else ">±100%"
