"""From what a worker measured to records: every derived figure is computed here, from raw samples. No torch.

Series meet by timer *and* cache: a cold one is never compared with a hot one, nor a graph with a wall clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from norm_fusion import metrics
from norm_fusion.records import Measurement, Record, Samples, Series, Status
from norm_fusion.spec import BASELINE, BASELINE_OF, CONTROL, ROOF, Case


def records_of(
    case: Case,
    measurements: Sequence[Measurement],
    *,
    run_id: str,
    fingerprint: str,
    replicate: int,
    attempt: int = 0,
) -> list[tuple[Record, Samples | None]]:
    """The records of a case, one per profile and series; a profile without series has one record with its reason."""
    made: list[tuple[Record, Samples | None]] = []
    for measurement in measurements:
        base = Record(
            run_id=run_id,
            case=case.name,
            op=case.op,
            pass_=case.pass_,  # type: ignore[call-arg]
            rows=case.rows,
            cols=case.cols,
            dtype=case.dtype,
            profile=measurement.profile,
            resolved_backend=measurement.resolved_backend,
            control_of=measurement.control_of,
            status=measurement.status,
            code=measurement.code,
            reason=measurement.reason,
            remedy=measurement.remedy,
            attempt=attempt,
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
                probes_ms=series.probes_ms,
            )
            made.append((record, samples))
    return made


_CEILINGS = ("read_gbps", "write_gbps")


def made_again(records: Sequence[Record], samples: Callable[[Record], Samples]) -> list[Record]:
    """The records of one case in one process, derived once more from their samples and from what the worker told.

    Raises:
        ValueError: what they say cannot be of one case and process, or their samples are none.
    """
    first = records[0]
    if len({(r.run_id, r.case, r.attempt, r.replicate, r.fingerprint) for r in records}) > 1:
        raise ValueError("they are of several cases or processes")
    by_profile: dict[str, list[Record]] = {}
    for record in records:
        by_profile.setdefault(record.profile, []).append(record)
    made = records_of(
        Case.parse(first.case),
        [_measurement(mine, samples) for mine in by_profile.values()],
        run_id=first.run_id,
        fingerprint=first.fingerprint,
        replicate=first.replicate or 0,
        attempt=first.attempt,
    )
    return [record for record, _ in made]


def _measurement(records: Sequence[Record], samples: Callable[[Record], Samples]) -> Measurement:
    """What the worker told of a profile."""
    one = records[0]
    told = one.model_dump(include=set(Measurement.model_fields) & set(Record.model_fields) - {"outside_ms"})
    return Measurement(
        **told | {name: next((v for r in records if (v := getattr(r, name)) is not None), None) for name in _CEILINGS},
        outside_ms={r.timer: r.outside_ms for r in records if r.outside_ms is not None},
        series=[_series(r, samples(r)) for r in records if r.timer != "none"],
    )


def _series(r: Record, raw: Samples) -> Series:
    return Series(
        timer=r.timer,
        cache=r.cache,
        blocks=raw.blocks,
        positions=raw.positions,
        calls_per_sample=raw.calls_per_sample,
        warmup=raw.warmup,
        probes_ms=raw.probes_ms,
        settled=r.settled,
        rotation=r.rotation,
        events=r.events,
    )


def _correct(measurement: Measurement) -> bool | None:
    if measurement.profile == ROOF or (measurement.max_rel_error is None and measurement.status is not Status.WRONG):
        return None
    if measurement.status in (Status.FAILED, Status.UNAVAILABLE):
        return None
    return measurement.status is not Status.WRONG


def _figures(case: Case, mine: Measurement, series: Series, everyone: Sequence[Measurement]) -> dict[str, object]:
    p50, p95 = metrics.percentile(series.blocks, 50), metrics.percentile(series.blocks, 95)
    peers = {other.profile: found for other in everyone if (found := _like(series, other)) is not None}
    figures: dict[str, object] = {
        "timer": series.timer,
        "cache": series.cache,
        "p50_ms": p50,
        "p95_ms": p95,
        "noise_ratio": p95 / p50,
        "noise": metrics.noise_gate(p50, p95, series.timer),
        "n_samples": sum(len(block) for block in series.blocks),
        "events": series.events,
        "settled": series.settled,
        "rotation": series.rotation,
        "outside_ms": mine.outside_ms.get(series.timer),
        "probe": _probe(series, list(peers.values())),
        "probe_ms": float(np.median(series.probes_ms)) if series.probes_ms else None,
    }
    if series.timer != "host":  # enqueueing moves no bytes
        # A copy reads and writes its own bytes, without the parameters that it never touches.
        nbytes = case.moved_bytes if mine.profile == ROOF else case.compulsory_bytes
        figures["gbps"] = metrics.gbps(nbytes, p50)
        if series.cache == "cold":
            figures |= {"read_gbps": mine.read_gbps, "write_gbps": mine.write_gbps}
    if mine.profile == ROOF:
        return figures
    if series.timer != "host":
        figures["tflops"] = metrics.tflops(case.flops, p50)
        if ROOF in peers:
            roof_gbps = metrics.gbps(case.moved_bytes, metrics.percentile(peers[ROOF].blocks, 50))
            figures |= {"roof_gbps": roof_gbps, "roof_share": metrics.gbps(case.compulsory_bytes, p50) / roof_gbps}
    if mine.status is Status.OK:
        figures["speedup"] = _speedups(case, mine, series, everyone)
    return figures


def _speedups(case: Case, mine: Measurement, series: Series, everyone: Sequence[Measurement]) -> dict[str, float]:
    """Over every other correct contestant in the same series, and under the alias torch-baseline.

    Nothing is compared with the roof, which computes nothing, nor with the control, which is there to be compared: it
    has a speedup over its original alone.
    """
    found = {
        other.profile: metrics.speedup(peer.blocks, series.blocks)
        for other in everyone
        if other.status is Status.OK and other.profile not in (mine.profile, ROOF, CONTROL)
        if mine.profile != CONTROL or other.profile == mine.control_of
        if (peer := _like(series, other)) is not None
    }
    if BASELINE_OF[case.op] in found and mine.profile != CONTROL:
        found[BASELINE] = found[BASELINE_OF[case.op]]
    return found


def _probe(series: Series, peers: Sequence[Series]) -> float | None:
    """The clock probe beside this series' blocks, over that beside everyone's: above 1 the clock was slower."""
    if not series.probes_ms:
        return None
    everyones = [probe for peer in peers for probe in peer.probes_ms]
    return float(np.median(series.probes_ms) / np.median(everyones))


def _like(series: Series, other: Measurement) -> Series | None:
    """The other contestant's series by the same timer, with the cache in the same state."""
    same = (theirs for theirs in other.series if (theirs.timer, theirs.cache) == (series.timer, series.cache))
    return next(same, None)
