"""From what a worker measured to records: every derived figure is computed here, from raw samples. No torch."""

from __future__ import annotations

from collections.abc import Sequence

from norm_fusion import metrics
from norm_fusion.records import Measurement, Record, Samples, Series, Status, Timer
from norm_fusion.spec import BASELINE, BASELINE_OF, ROOF, Case


def records_of(
    case: Case, measurements: Sequence[Measurement], run_id: str, fingerprint: str, replicate: int
) -> list[tuple[Record, Samples | None]]:
    """The records of a case, one per profile and series; a profile without series has one record with its reason."""
    made: list[tuple[Record, Samples | None]] = []
    for measurement in measurements:
        base = Record(
            run_id=run_id,
            case=case.name,
            op=case.op,
            rows=case.rows,
            cols=case.cols,
            dtype=case.dtype,
            profile=measurement.profile,
            resolved_backend=measurement.resolved_backend,
            status=measurement.status,
            reason=measurement.reason,
            remedy=measurement.remedy,
            replicate=replicate,
            correct=_correct(measurement),
            max_abs_error=measurement.max_abs_error,
            max_rel_error=measurement.max_rel_error,
            tolerance=None if measurement.profile == ROOF else case.tolerance,
            checked_rows=measurement.checked_rows,
            fingerprint=fingerprint,
            notes=measurement.notes,
        )
        if not measurement.series:
            made.append((base, None))
        for series in measurement.series:
            record = base.model_copy(update=_figures(case, measurement, series, measurements))
            samples = Samples(
                key=record.key,
                blocks=series.blocks,
                positions=series.positions,
                calls_per_sample=series.calls_per_sample,
                warmup=series.warmup,
            )
            made.append((record, samples))
    return made


def _correct(measurement: Measurement) -> bool | None:
    if measurement.profile == ROOF or (measurement.max_rel_error is None and measurement.status is not Status.WRONG):
        return None
    if measurement.status in (Status.FAILED, Status.UNAVAILABLE):
        return None
    return measurement.status is not Status.WRONG


def _figures(case: Case, mine: Measurement, series: Series, everyone: Sequence[Measurement]) -> dict[str, object]:
    p50, p95 = metrics.percentile(series.blocks, 50), metrics.percentile(series.blocks, 95)
    figures: dict[str, object] = {
        "timer": series.timer,
        "cache": series.cache,
        "p50_ms": p50,
        "p95_ms": p95,
        "noise_ratio": p95 / p50,
        "noise": metrics.noise_gate(p50, p95),
        "n_samples": sum(len(block) for block in series.blocks),
        "settled": series.settled,
        "rotation": series.rotation,
    }
    if mine.profile == ROOF:
        # A copy reads and writes once: its own bytes, without the parameters that it never touches.
        return figures | {"gbps": metrics.gbps(2 * case.input_bytes, p50)}
    if series.timer != "host":  # enqueueing moves no bytes
        figures |= {"gbps": metrics.gbps(case.compulsory_bytes, p50), "tflops": metrics.tflops(case.flops, p50)}
        roof = _blocks(everyone, ROOF, series.timer)
        if roof is not None:
            roof_gbps = metrics.gbps(2 * case.input_bytes, metrics.percentile(roof, 50))
            figures |= {"roof_gbps": roof_gbps, "roof_share": metrics.gbps(case.compulsory_bytes, p50) / roof_gbps}
    if mine.status is Status.OK:
        figures["speedup"] = _speedups(case, mine, series, everyone)
    return figures


def _speedups(case: Case, mine: Measurement, series: Series, everyone: Sequence[Measurement]) -> dict[str, float]:
    """Over every correct torch profile but itself, in the same series; and under the alias torch-baseline."""
    found = {
        other.profile: metrics.speedup(blocks, series.blocks)
        for other in everyone
        if other.profile.startswith("torch-") and other.profile != mine.profile and other.status is Status.OK
        if (blocks := _blocks(everyone, other.profile, series.timer)) is not None
    }
    if BASELINE_OF[case.op] in found:
        found[BASELINE] = found[BASELINE_OF[case.op]]
    return found


def _blocks(everyone: Sequence[Measurement], profile: str, timer: Timer) -> metrics.Blocks | None:
    for measurement in everyone:
        if measurement.profile == profile:
            for series in measurement.series:
                if series.timer == timer:
                    return series.blocks
    return None
