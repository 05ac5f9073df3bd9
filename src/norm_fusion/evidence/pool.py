"""A run's processes made one: a pooled record per case x profile x timer x cache x attempt.

p50, p95 and what follows from them are of all samples of all processes; a speedup and its interval are of the
processes' own speedups, which are independent of each other, as iterations are not (protocol, "Why this shape").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from norm_fusion import metrics
from norm_fusion.records import Cache, Code, Environment, Record, Samples, Status, Timer
from norm_fusion.spec import BASELINE, BASELINE_OF, CONTROL, ITEMSIZE, ROOF, Op

SeriesKey = tuple[str, str, Timer, Cache, int]  # case, profile, timer, cache, attempt
# The worst of a profile's processes speaks for all: a kernel that dies in one of five may not be quoted. What cannot be
# timed is checked by the first alone.
SEVERITY = (Status.OK, Status.UNAVAILABLE, Status.CHECKED, Status.FAILED, Status.WRONG)
# An interval of fewer processes is wide and moves a lot: an attempt that was cut below does not replace a whole one.
ENOUGH = 3


def pool(records: Iterable[Record], samples: Callable[[Record], Samples], environment: Environment) -> list[Record]:
    """One record per case x profile x timer x cache x attempt, in the order of the records of the first process.

    `samples` reads a record's raw samples; it is asked where there is more than one process, and raises what it does.
    A profile that has no series in any process keeps one record with its reason.
    """
    rows = [record for record in records if record.replicate is not None]
    counted = processes(rows)
    said = {key: _verdict(mine, counted[key[0], key[2]]) for key, mine in _with_other_failures(rows).items()}
    series = by_series(rows)
    timed = {(case, profile, attempt) for case, profile, timer, _, attempt in series if timer != "none"}
    pooled = []
    for key, group in series.items():
        case, profile, timer, _, attempt = key
        if timer == "none" and (case, profile, attempt) in timed:
            continue  # it has figures of other processes: their records tell its fate
        made = group[0].model_copy(update=said[case, profile, attempt] | _identity(group))
        if timer != "none":
            made = made.model_copy(update=_figures(group, samples, environment))
        pooled.append(made)
    return _with_regimes(_with_speedups(_with_roofs(pooled), series), environment)


def by_series(records: Iterable[Record]) -> dict[SeriesKey, list[Record]]:
    """The records of each series, a process each, by process; those without figures under the timer "none"."""
    groups: dict[SeriesKey, list[Record]] = {}
    for record in sorted(records, key=lambda record: record.replicate or 0):
        timer: Timer = "none" if record.p50_ms is None else record.timer
        cache: Cache = "none" if record.p50_ms is None else record.cache
        groups.setdefault((record.case, record.profile, timer, cache, record.attempt), []).append(record)
    return groups


def processes(records: Iterable[Record]) -> dict[tuple[str, int], int]:
    """How many processes measured each attempt of a case; one that was interrupted before it began does not count."""
    seen: dict[tuple[str, int], set[int | None]] = {}
    for record in records:
        found = seen.setdefault((record.case, record.attempt), set())
        if record.code is not Code.INTERRUPTED:
            found.add(record.replicate)
    return {key: len(found) for key, found in seen.items()}


def standing(pooled: Iterable[Record]) -> dict[str, int]:
    """The attempt of each case that is quoted: the newest of three or more processes.

    Where none has as many, the newest of those with the most. It is a rule about counts, never about what was found.
    """
    counts: dict[str, dict[int, int]] = {}
    for record in pooled:
        mine = counts.setdefault(record.case, {})
        mine[record.attempt] = max(mine.get(record.attempt, 0), record.processes or 0)
    return {case: max(mine, key=lambda attempt: (min(mine[attempt], ENOUGH), attempt)) for case, mine in counts.items()}


def quoted(pooled: Sequence[Record]) -> list[Record]:
    """The pooled records of the attempts that are quoted."""
    attempts = standing(pooled)
    return [record for record in pooled if record.attempt == attempts[record.case]]


def _by_profile(rows: Iterable[Record]) -> dict[tuple[str, str, int], list[Record]]:
    groups: dict[tuple[str, str, int], list[Record]] = {}
    for record in rows:
        groups.setdefault((record.case, record.profile, record.attempt), []).append(record)
    return groups


def _with_other_failures(rows: Sequence[Record]) -> dict[tuple[str, str, int], list[Record]]:
    """The records of each profile in an attempt, and those that tell of its failures elsewhere.

    A control is the same code under another name: how it failed, the original did. And a rerun is no pardon: what was
    wrong or raised in an earlier attempt may not be quoted from a later one.
    """
    groups = _by_profile(rows)
    bad = [record for record in rows if record.status.bad]
    for record in bad:
        if record.profile == CONTROL and (record.case, record.control_of, record.attempt) in groups:
            said = f"{record.reason or record.status} (measured a second time, as the control)"
            groups[record.case, record.control_of or "", record.attempt].append(
                record.model_copy(update={"reason": said})
            )
    for (case, profile, attempt), mine in list(groups.items()):
        before = [r for r in bad if (r.case, r.profile) == (case, profile) and r.attempt < attempt]
        if before and not any(record.status.bad for record in mine):
            first = before[0]
            said = f"{first.reason or first.status} (in attempt {first.attempt + 1})"
            mine.append(first.model_copy(update={"reason": said}))
    return groups


def _verdict(rows: Sequence[Record], counted: int) -> dict[str, object]:
    """The worst status of a profile over its processes, and in how many of them."""
    # A process that was interrupted says nothing of a contestant that it did not come to.
    told = [record for record in rows if record.code is not Code.INTERRUPTED] or list(rows)
    worst = max(told, key=lambda record: SEVERITY.index(record.status))
    reason = worst.reason
    share = len({record.replicate for record in told if record.status is worst.status})
    if reason is not None and share < counted:
        reason = f"{reason} (in {share} of {counted} processes)"
    right = [record.correct for record in told]
    return {
        "status": worst.status,
        "code": worst.code,
        "reason": reason,
        "remedy": worst.remedy,
        "correct": False if False in right else True if right and None not in right else None,
        "max_abs_error": _most(record.max_abs_error for record in told),
        "max_rel_error": _most(record.max_rel_error for record in told),
    }


def _identity(group: Sequence[Record]) -> dict[str, object]:
    """What is not a figure: counts, notes, events; no samples of its own."""
    checked = [record.checked_rows for record in group if record.checked_rows is not None]
    settled = [record.settled for record in group if record.settled is not None]
    backends = dict.fromkeys(record.resolved_backend for record in group if record.resolved_backend is not None)
    return {
        "replicate": None,
        "processes": len({record.replicate for record in group}),
        "resolved_backend": "; ".join(backends) or None,
        "n_samples": sum(record.n_samples for record in group),
        "settled": all(settled) if settled else None,
        "checked_rows": min(checked, default=None),
        "notes": list(dict.fromkeys(note for record in group for note in record.notes)),
        "events": list({(e.kind, e.detail): e for record in group for e in record.events}.values()),
        "samples_file": None,
        "samples_sha256": None,
    }


def _figures(
    group: Sequence[Record], samples: Callable[[Record], Samples], environment: Environment
) -> dict[str, object]:
    medians = [record.p50_ms for record in group if record.p50_ms is not None]
    first, p50, p95 = group[0], medians[0], group[0].p95_ms
    if len(group) > 1:
        blocks = metrics.evened([samples(record).blocks for record in group])
        p50, p95 = metrics.percentile(blocks, 50), metrics.percentile(blocks, 95)
    figures: dict[str, object] = {
        "p50_ms": p50,
        "p95_ms": p95,
        "noise_ratio": None if p95 is None else p95 / p50,
        "noise": _typical_noise(group),
        "process_spread": max(medians) / min(medians) if len(group) > 1 else None,
    }
    # A rate times its time is what was moved: the same in every process, and now in another time.
    for name in ("gbps", "tflops"):
        rate = getattr(first, name)
        figures[name] = None if rate is None else rate * medians[0] / p50
    for name in ("read_gbps", "write_gbps", "outside_ms", "probe", "probe_ms"):
        found = [value for record in group if (value := getattr(record, name)) is not None]
        figures[name] = float(np.median(found)) if found else None
    return figures


def _typical_noise(group: Sequence[Record]) -> str | None:
    """The middle one of the processes' own labels: what differs between them is the interval's to tell, not noise."""
    order = [label.value for label in metrics.Noise]
    ranks = sorted(order.index(record.noise) for record in group if record.noise is not None)
    return order[ranks[len(ranks) // 2]] if ranks else None


def _with_roofs(pooled: Sequence[Record]) -> list[Record]:
    roofs = {(r.case, r.timer, r.cache, r.attempt): r.gbps for r in pooled if r.profile == ROOF and r.gbps}

    def shared(record: Record) -> Record:
        if record.profile == ROOF or record.gbps is None:
            return record
        roof = roofs.get((record.case, record.timer, record.cache, record.attempt))
        return record.model_copy(update={"roof_gbps": roof, "roof_share": roof and record.gbps / roof})

    return [shared(record) for record in pooled]


def _with_speedups(pooled: Sequence[Record], series: Mapping[SeriesKey, Sequence[Record]]) -> list[Record]:
    """Neither a profile that was wrong or failed in any process has a speedup, nor another one over it."""
    sound = {(r.case, r.profile, r.attempt) for r in pooled if r.status is Status.OK}

    def compared(record: Record) -> Record:
        group = series.get((record.case, record.profile, record.timer, record.cache, record.attempt), ())
        names = dict.fromkeys(name for process in group for name in process.speedup)
        found = {
            name: ratios(group, name)
            for name in names
            if (record.case, record.profile, record.attempt) in sound
            and (record.case, profile_of(name, record.op), record.attempt) in sound
        }
        return record.model_copy(
            update={
                "speedup": {name: metrics.geometric_mean(mine) for name, mine in found.items()},
                "interval": {name: metrics.interval(mine) for name, mine in found.items() if len(mine) > 1},
            }
        )

    return [compared(record) for record in pooled]


def ratios(group: Iterable[Record], baseline: str) -> list[float]:
    """The speedup over a baseline in each process that has both."""
    return [record.speedup[baseline] for record in group if baseline in record.speedup]


def profile_of(name: str, op: str) -> str:
    """The profile that a baseline's name means: itself, but for the alias torch-baseline."""
    return BASELINE_OF[Op(op)] if name == BASELINE and op in set(Op) else name


def _with_regimes(pooled: Sequence[Record], environment: Environment) -> list[Record]:
    attempts = standing(pooled)
    rows = _by_profile(record for record in pooled if record.status is Status.OK and record.profile != ROOF)
    regimes = {key: _regime(mine, environment) for key, mine in rows.items() if key[2] == attempts[key[0]]}
    return [
        record.model_copy(update={"regime": regimes.get((record.case, record.profile, record.attempt))})
        for record in pooled
    ]


def _regime(rows: Sequence[Record], environment: Environment) -> str | None:
    """What bounds a call: enqueueing it, the cache that holds its input and output, or memory."""
    cold = {record.timer: record.p50_ms for record in rows if record.cache == "cold" and record.p50_ms is not None}
    one = rows[0]
    if one.dtype not in ITEMSIZE:
        return None
    fits = 2 * one.rows * one.cols * ITEMSIZE[one.dtype] <= environment.cache_bytes
    if environment.device == "cpu":
        return None if "wall" not in cold else "cache-resident" if fits else "DRAM-bound"
    if "host" not in cold or "device" not in cold:
        return None
    if cold["host"] >= cold["device"]:
        return "launch-bound"
    return "L2-resident" if fits else "DRAM-bound"


def _most(values: Iterable[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
