"""Records joined for a reader: one row per case and profile, and the one-sentence answer. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from norm_fusion.metrics import geometric_mean
from norm_fusion.records import Record, Status, Timer
from norm_fusion.spec import BASELINE, BASELINE_OF, ROOF, Case, Op, SpecError

# Which series answers what, the best one first: on a CPU there is wall alone.
LATENCY: tuple[Timer, ...] = ("device", "graph", "wall")
RATIO: tuple[Timer, ...] = ("graph", "wall")


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
        """The series that p50, p95 and the noise ratio are quoted from."""
        return self._first(LATENCY)

    @property
    def ratio(self) -> Record | None:
        """The series that speedup, GB/s and TFLOP/s are quoted from."""
        return self._first(RATIO)

    def ms(self, timer: Timer) -> float | None:
        record = self.series.get(timer)
        return None if record is None else record.p50_ms

    def _first(self, timers: Iterable[Timer]) -> Record | None:
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


def fastest_torch(rows: Sequence[Row]) -> Row | None:
    """The fastest correct PyTorch among the rows of one case, by the series that ratios are taken from."""
    timed = [row for row in rows if row.profile.startswith("torch-") and row.status is Status.OK and row.ratio]
    return min(timed, key=lambda row: row.ratio.p50_ms or 0.0, default=None) if timed else None  # type: ignore[union-attr]


def answer(rows: Sequence[Row]) -> str:
    """How much a fused kernel moves latency here, in one sentence a case group, with both baselines."""
    sentences = [_answer_of(op, [row for row in rows if row.any.op == op]) for op in Op]
    return " ".join(sentence for sentence in sentences if sentence)


def _answer_of(op: Op, rows: Sequence[Row]) -> str:
    label = {"rmsnorm": "RMSNorm", "layernorm": "LayerNorm"}[op]
    if not rows:
        return ""
    versus_baseline: dict[str, float] = {}
    versus_fastest: dict[str, float] = {}
    for case, group in cases(rows).items():
        fused = next((row for row in group if row.profile.startswith("triton-")), None)
        best = fastest_torch(group)
        if fused is None or fused.ratio is None or best is None or fused.status is not Status.OK:
            continue
        if BASELINE in fused.ratio.speedup:
            versus_baseline[case] = fused.ratio.speedup[BASELINE]
        versus_fastest[case] = fused.ratio.speedup[best.profile]
    if versus_baseline or versus_fastest:
        parts = []
        if versus_baseline:
            parts.append(f"{_ratio(versus_baseline)} against {BASELINE} ({BASELINE_OF[op]})")
        parts.append(f"{_ratio(versus_fastest)} against the fastest correct PyTorch of each case")
        return f"Fused {label}: {' and '.join(parts)}."
    checked = [row for row in rows if row.status is Status.CHECKED]
    wrong = [row for row in rows if row.status is Status.WRONG and row.profile != ROOF]
    best_of = {case: best for case, group in cases(rows).items() if (best := fastest_torch(group))}
    gains = {
        case: 1.0 if best.profile == BASELINE_OF[op] else best.ratio.speedup[BASELINE]
        for case, best in best_of.items()
        if best.ratio and (best.profile == BASELINE_OF[op] or BASELINE in best.ratio.speedup)
    }
    if wrong:
        return f"{label}: {', '.join(sorted({row.profile for row in wrong}))} is wrong here and gets no speedup."
    if gains:
        kernel = "the Triton kernel is correct but not timed here; " if checked else "no Triton kernel was timed; "
        return (
            f"{label}: {kernel}the fastest correct PyTorch is {_ratio(gains)} against {BASELINE} ({BASELINE_OF[op]})."
        )
    return f"{label}: no two correct implementations were timed, so there is no ratio."


def _ratio(by_case: Mapping[str, float]) -> str:
    """`5.90x`, or the geometric mean with the worst case by name."""
    if len(by_case) == 1:
        return f"{next(iter(by_case.values())):.2f}x"
    worst = min(by_case, key=lambda case: by_case[case])
    mean = geometric_mean(list(by_case.values()))
    return f"{mean:.2f}x (geometric mean of {len(by_case)}; worst {by_case[worst]:.2f}x at {worst.split('-', 1)[1]})"


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
    label = {Op.RMSNORM: "RMSNorm", Op.LAYERNORM: "LayerNorm"}[case.op]
    return f"{label} {case.rows}x{case.cols} {case.dtype}"


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
