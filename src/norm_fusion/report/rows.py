"""Records joined for a reader: one row per case and profile, and how its figures are written. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from norm_fusion.records import Manifest, Record, Status, Timer
from norm_fusion.spec import BASELINE, BASELINE_OF, Case, Op, SpecError

# Which series answers what, the best one first: on a CPU there is wall alone.
LATENCY: tuple[Timer, ...] = ("device", "graph", "wall")
RATIO: tuple[Timer, ...] = ("graph", "wall")

OP_LABEL: Mapping[Op, str] = {Op.RMSNORM: "RMSNorm", Op.LAYERNORM: "LayerNorm"}

# Share of the copy above which a figure is doubted: the copy's own spread between runs is 2%.
ABOVE_ROOF = 1.02


@dataclass(frozen=True)
class Row:
    """One profile's results for one case, over all its series."""

    case: str
    profile: str
    series: Mapping[Timer, Record] = field(repr=False)

    @property
    def any(self) -> Record:
        """A record of the row: status, correctness and the case's fields are the same in all."""
        return next(iter(self.series.values()))

    @property
    def status(self) -> Status:
        return self.any.status

    @property
    def latency(self) -> Record | None:
        """The series that p50, p95 and the noise ratio are quoted from; none where the result is wrong."""
        return self._first(LATENCY)

    @property
    def ratio(self) -> Record | None:
        """The series that speedup, GB/s and TFLOP/s are quoted from; none where the result is wrong."""
        return self._first(RATIO)

    def ms(self, timer: Timer) -> float | None:
        record = self.series.get(timer)
        return None if record is None else record.p50_ms

    def _first(self, timers: Iterable[Timer]) -> Record | None:
        if self.status is Status.WRONG:
            return None
        return next((self.series[t] for t in timers if t in self.series and self.series[t].p50_ms is not None), None)


def join(records: Iterable[Record]) -> list[Row]:
    """One row per case and profile (the roof included), in the order in which they first appear."""
    groups: dict[tuple[str, str], dict[Timer, Record]] = {}
    for record in records:
        groups.setdefault((record.case, record.profile), {})[record.timer] = record
    return [Row(case, profile, series) for (case, profile), series in groups.items()]


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
    torch_rows = [row for row in rows if row.profile.startswith("torch-") and row.status is Status.OK]
    for timer in RATIO:
        timed = [(ms, row) for row in torch_rows if (ms := row.ms(timer)) is not None]
        if timed:
            return min(timed, key=lambda pair: pair[0])[1]
    return None


def baselines(rows: Sequence[Row]) -> list[str]:
    """The profiles that some row has a speedup over, in the order of the rows."""
    compared = {name for row in rows if row.ratio for name in row.ratio.speedup} - {BASELINE}
    return [name for name in dict.fromkeys(row.profile for row in rows) if name in compared]


def above_roof(row: Row) -> bool:
    """Is the row faster than the copy of the same bytes, by more than copies differ?"""
    return row.ratio is not None and (row.ratio.roof_share or 0) > ABOVE_ROOF


def noisy_series(row: Row) -> list[Timer]:
    """The series that the row's figures are quoted from and that are too noisy for a precise claim."""
    quoted = {record.timer: record for record in (row.latency, row.ratio) if record is not None}
    return [timer for timer, record in quoted.items() if record.noise == "rerun"]


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
    try:
        case = Case.parse(name)
    except SpecError:
        return name
    return f"{OP_LABEL[case.op]} {case.rows}x{case.cols} {case.dtype}"


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
