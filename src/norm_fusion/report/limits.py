"""What a run does not show, from the run itself: the page's list of limits. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from norm_fusion.records import Manifest, Status
from norm_fusion.report.cells import Timers, sentence
from norm_fusion.report.notes import effort, noted
from norm_fusion.report.rows import Row, above_roof, case_title, company, gates, noisy_series, processes
from norm_fusion.spec import ROOF


def limits(manifest: Manifest, rows: Sequence[Row], timers: Timers) -> Iterator[str]:
    """A sentence each."""
    environment = manifest.environment
    measured = [row for row in rows if row.profile != ROOF]
    ok = [row for row in measured if row.status is Status.OK]
    yield from _effort(manifest, measured)
    if lacking := [name for name in manifest.cases if name not in {row.case for row in rows}]:
        yield f"Not measured: {'; '.join(case_title(name) for name in lacking)}."
    if noisy := [row for row in ok if row.contestant and noisy_series(row)]:
        series = sorted({timer for row in noisy for timer in noisy_series(row)})
        yield (
            f"Too noisy for a precise claim (p95/p50 above {gates(rows)[1]} in the series {' or '.join(series)}), "
            f"rerun: {_named(noisy)}."
        )
    if unsettled := [row for row in ok if any(r.settled is False for r in row.series.values())]:
        yield f"Warm-up did not settle within 1% before the time was up: {_named(unsettled)}."
    if fell := [row for row in ok if row.latency and row.latency.timer != timers.latency]:
        yield f"Marked †, latency is from another series than {timers.latency}: {_named(fell)}."
    if fell := [row for row in ok if row.ratio and row.ratio.timer != timers.ratio]:
        yield f"Marked †, rates and speedups are from another series than {timers.ratio}: {_named(fell)}."
    for note, those in noted(rows).items():
        yield f"{_named(those)}: {sentence(note)}"
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
        cards = len({one.device_uuid for one in manifest.environments})
        count = "One GPU" if cards == 1 else f"{cards} GPUs"
        yield f"{count}, {environment.device_name}: nothing here says how another model would do."
    if environment and environment.dirty:
        yield "The checkout had uncommitted changes: its commit alone does not reproduce this run."
    if environment and {row.any.fingerprint for row in rows} - {one.fingerprint for one in manifest.environments}:
        yield "Some records carry a fingerprint of no environment of this run: they were measured elsewhere."
    yield from company(manifest)
    if measured:
        passes = " and ".join(sorted({row.any.pass_ for row in measured}, reverse=True)).capitalize()
        yield f"{passes} pass, random values with a few large channels; no other shape or dtype was timed."


def _effort(manifest: Manifest, measured: Sequence[Row]) -> Iterator[str]:
    if not measured:
        return
    if processes(measured) > 1:
        yield f"{sentence(effort(manifest, measured))} One machine, one day: the intervals do not cover another."
        return
    yield (
        "One process measured everything, so there is no confidence interval and no call: another process may differ "
        "by more than the noise ratio says, and a difference of a few percent between two profiles is not a finding."
    )
    if manifest.quick:
        yield "It was a quick run: one process, so no intervals and no calls."


def _named(rows: Iterable[Row]) -> str:
    return "; ".join(f"{row.profile} at {case_title(row.case)}" for row in rows)
