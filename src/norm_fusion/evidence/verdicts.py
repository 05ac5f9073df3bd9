"""The rule: what may be said of a claim, from pooled and single records alone. Pure, and versioned.

    invalid        wrong, failed, above the physical ceiling, or measured by different software
    rerun noise    the noise gate or the A/A control fails, an event of the machine, or the contestants' clocks differ
    supported      the speedup's 95% interval lies above 1 + DELTA
    regression     it lies below 1 / (1 + DELTA)
    no difference  it lies between the two
    inconclusive   it straddles one of them, or has too few processes to be trusted

The first that matches decides (protocol, "Labels"). Undecided is a label; an error is not, and is never made one.
A change of any rule or number here is a new RULE: `norm-fusion judge` then says which calls it changed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from norm_fusion.evidence.claims import Claim, claims, needs_rerun, widest
from norm_fusion.evidence.pool import ENOUGH, SeriesKey, by_series, pool, processes, ratios, standing
from norm_fusion.metrics import CLOCK, GATES, half_width
from norm_fusion.records import Call, Code, Conclusions, Environment, Label, Manifest, Record, Samples, Status
from norm_fusion.spec import BASELINE, BASELINE_OF, CONTROL, ITEMSIZE, Op, SpecError

__all__ = [
    "ABOVE_CEILING",
    "CLOCKS_WITHIN",
    "DELTA",
    "RULE",
    "Side",
    "conclude",
    "decided",
    "judge",
    "needs_rerun",
    "verdict",
    "widest",
]

RULE = 3
# The smallest difference that is worth a word: fixed before any run.
DELTA = 0.02
# The copies that ceilings are measured with differ by 2% between processes: more than that above one is no speed.
ABOVE_CEILING = 1.02
# How far the clock probes of two contestants may lie apart, as a share. A CPU's is code beside other tenants' code.
CLOCKS_WITHIN: Mapping[str, float] = {"cuda": 0.01, "cpu": 0.05}

Found = tuple[Label, str, str]  # label, reason code, reason


@dataclass(frozen=True)
class Side:
    """One side of a claim, with what there is to doubt it by."""

    record: Record  # pooled, in the claim's series
    rows: Sequence[Record]  # pooled, of the same attempt of its case
    single: Sequence[Record]  # a process each, all series
    environment: Environment


def judge(pooled: Sequence[Record], records: Iterable[Record], manifest: Manifest) -> list[Call]:
    """A call for each claim of a run: none of a quick one, nor of a case that one process measured.

    A claim is judged by the attempt of its case that is quoted; its calls by the other attempts are in `earlier`.
    """
    if manifest.quick or manifest.environment is None:
        return []
    singles = list(records)
    counted, series = processes(singles), by_series(singles)
    groups: dict[tuple[str, int], list[Record]] = {}
    for record in pooled:
        groups.setdefault((record.case, record.attempt), []).append(record)
    made: dict[tuple[str, ...], list[Call]] = {}
    for key, rows in groups.items():
        if counted.get(key, 0) < 2:
            continue
        for claim in claims(rows, manifest):
            call = _call(claim, rows, series, manifest, _card_of(rows, manifest))
            made.setdefault(call.claim, []).append(call)
    attempts = standing(pooled)

    def last(call: Call) -> tuple[bool, int]:
        return call.attempt == attempts[call.case], call.attempt

    ordered = [sorted(calls, key=last) for calls in made.values()]
    return [calls[-1].model_copy(update={"earlier": calls[:-1]}) for calls in ordered]


def conclude(records: Iterable[Record], samples: Callable[[Record], Samples], manifest: Manifest) -> Conclusions:
    """Pool a run's records and judge its claims; the pooled records carry the labels of their speedups.

    `samples` reads a record's raw samples, and is asked only where a series has more than one process.

    Raises:
        SpecError: the manifest does not say where the run took place.
    """
    singles = list(records)
    if not singles:
        return Conclusions(rule=RULE, pooled=[], calls=[])
    if manifest.environment is None:
        raise SpecError(f"run {manifest.run_id!r} does not say where it took place: it cannot be judged")
    pooled = []
    for environment, mine in by_card(singles, manifest):
        pooled += pool(mine, samples, environment)
    calls = judge(pooled, singles, manifest)
    labels: dict[SeriesKey, dict[str, str]] = {}
    for one in [*calls, *(earlier for call in calls for earlier in call.earlier)]:
        labels.setdefault((one.case, one.profile, one.timer, one.cache, one.attempt), {})[one.baseline] = one.label
    return Conclusions(rule=RULE, pooled=[_labelled(record, labels) for record in pooled], calls=calls)


def by_card(records: Iterable[Record], manifest: Manifest) -> list[tuple[Environment, list[Record]]]:
    """A run's records, by the card on which their case was measured: that of its first record."""
    cards = {environment.fingerprint: environment for environment in manifest.environments}
    card_of: dict[str, str] = {}
    found: dict[str, list[Record]] = {}
    for record in records:
        if record.case not in card_of:
            environment = manifest.environment_of(record.fingerprint)
            card_of[record.case] = environment.fingerprint if environment is not None else ""
        found.setdefault(card_of[record.case], []).append(record)
    return [(cards[name], mine) for name, mine in found.items() if name in cards]


def _card_of(rows: Sequence[Record], manifest: Manifest) -> Environment:
    found = manifest.environment_of(rows[0].fingerprint)
    assert found is not None, "a run that is judged says where it took place"
    return found


def _labelled(record: Record, labels: Mapping[SeriesKey, Mapping[str, str]]) -> Record:
    mine = dict(labels.get((record.case, record.profile, record.timer, record.cache, record.attempt), {}))
    named = BASELINE_OF[Op(record.op)] if record.op in set(Op) else None
    if named in mine and record.profile != CONTROL:
        mine[BASELINE] = mine[named]
    return record.model_copy(update={"call": mine})


def _call(
    claim: Claim,
    rows: Sequence[Record],
    series: Mapping[SeriesKey, Sequence[Record]],
    manifest: Manifest,
    environment: Environment,
) -> Call:
    subject, baseline = claim.subject, claim.baseline
    mine = series.get((subject.case, subject.profile, claim.timer, claim.cache, subject.attempt), ())
    found_ratios = ratios(mine, baseline.profile) if baseline.profile in subject.speedup else []
    low, high = subject.interval.get(baseline.profile, (None, None))
    single = [
        record
        for (case, profile, _, _, attempt), group in series.items()
        if (case, attempt) == (subject.case, subject.attempt)
        if profile in (subject.profile, baseline.profile)
        for record in group
    ]
    sides = Side(subject, rows, single, environment), Side(baseline, rows, single, environment)
    label, code, reason = decided(*sides, len(found_ratios), low, high, (subject.probe, baseline.probe))
    if manifest.state == "interrupted" and len(found_ratios) < manifest.fewest:
        reason += f"; the run was interrupted, and this is of {len(found_ratios)} processes"
    return Call(
        case=subject.case,
        profile=subject.profile,
        baseline=baseline.profile,
        timer=claim.timer,
        cache=claim.cache,
        label=label,
        code=code,
        reason=reason,
        rule=RULE,
        attempt=subject.attempt,
        processes=len(found_ratios),
        speedup=subject.speedup.get(baseline.profile),
        low=low,
        high=high,
        ratios=list(found_ratios),
    )


def verdict(low: float, high: float) -> Found:
    """The label of an interval of a speedup, with its reason."""
    top, bottom = 1 + DELTA, 1 / (1 + DELTA)
    said = f"95% interval {low:.3f} to {high:.3f}"
    if low > top:
        return Label.SUPPORTED, "above-delta", f"{said} lies above {top:.3f}"
    if high < bottom:
        return Label.REGRESSION, "below-delta", f"{said} lies below {bottom:.3f}"
    if bottom <= low and high <= top:
        return Label.NO_DIFFERENCE, "within-delta", f"{said} lies between {bottom:.3f} and {top:.3f}"
    straddled = " and ".join(f"{edge:.3f}" for edge in (bottom, top) if low <= edge <= high)
    reached = f"a precision of {half_width(low, high):.1%}"
    return Label.INCONCLUSIVE, "straddles", f"{said} straddles {straddled}, at {reached}"


def decided(
    one: Side,
    other: Side,
    processes: int,
    low: float | None,
    high: float | None,
    probes: tuple[float | None, float | None],
) -> Found:
    """What may be said of one side over the other, by the first rule that says anything; by the interval last.

    `probes`: how long a fixed amount of work took beside each, in one unit; None where that cannot be compared.
    """
    found = next((found for rule in RULES for side in (one, other) if (found := rule(side)) is not None), None)
    found = found or _clock(probes, one.environment) or _few(processes)
    if found is None:
        assert low is not None and high is not None  # noqa: PT018 - `_few` has seen to it
        found = verdict(low, high)
    return found


def _wrong(side: Side) -> Found | None:
    r = side.record
    if r.status is not Status.WRONG:
        return None
    return Label.INVALID, (r.code or Code.WRONG_OUTPUT).value, f"{r.profile} is wrong: {r.reason or 'no reason kept'}"


def _failed(side: Side) -> Found | None:
    r = side.record
    if r.status is not Status.FAILED:
        return None
    did = "is not to be believed" if r.code is Code.UNREADABLE else "failed"
    return Label.INVALID, (r.code or Code.RAISED).value, f"{r.profile} {did}: {r.reason or 'no reason kept'}"


def _fingerprint(side: Side) -> Found | None:
    # That the run took place where it says; an environment of schema 1 had other fields.
    here = {side.environment.fingerprint} if any(record.schema_version > 1 for record in side.single) else set()
    seen = sorted({record.fingerprint for record in side.single} | here)
    if len(seen) < 2:
        return None
    return Label.INVALID, "fingerprint", f"device or software changed during the run: fingerprints {', '.join(seen)}"


def _ceiling(side: Side) -> Found | None:
    """More than can be read is not fast: what was quoted was not read, or not from memory."""
    r = side.record
    if r.cache != "cold" or r.gbps is None or r.read_gbps is None or r.dtype not in ITEMSIZE:
        return None
    rotated = (r.rotation or 0) * 2 * r.rows * r.cols * ITEMSIZE[r.dtype]
    # Reading is the fastest of the three on a GPU; on a CPU a copy may be streamed past the cache.
    ceiling = max(r.read_gbps, r.write_gbps or 0.0, r.roof_gbps or 0.0)
    if rotated < side.environment.cache_bytes or r.gbps <= ceiling * ABOVE_CEILING:
        return None
    said = f"{r.profile} would move {r.gbps:,.0f} GB/s, this memory moves {ceiling:,.0f}"
    return Label.INVALID, "above-ceiling", f"{said}: it did not do all of its work, or not from memory"


def _noisy(side: Side) -> Found | None:
    """By the claim's own series: of a graph's calls one in eight may be slow each time, and their mean steady."""
    r = side.record
    if r.noise != "rerun":
        return None
    gate = GATES[CLOCK[r.timer]][1]
    seen = f"p95/p50 of {r.profile} is above {gate:g} in most processes ({r.noise_ratio or 0:.2f} of all samples)"
    return Label.RERUN_NOISE, "noise", f"{seen} in the series {r.timer} {r.cache}: too noisy for a precise claim"


def _control(side: Side) -> Found | None:
    """A contestant differs from itself: whatever made it differ was at work on the others too."""
    series = side.record.timer, side.record.cache
    control = next((r for r in side.rows if r.profile == CONTROL and (r.timer, r.cache) == series), None)
    if control is None or control.control_of is None:
        return None
    measured = control.speedup.get(control.control_of)
    if measured is None or 1 / (1 + DELTA) <= measured <= 1 + DELTA:
        return None
    said = f"{control.control_of} measured twice differs from itself, {measured:.3f}x"
    return Label.RERUN_NOISE, "control", f"{said}: so may anything here"


def _disturbed(side: Side) -> Found | None:
    r = side.record
    if not r.events:
        return None
    first = r.events[0]
    more = f" (and {len(r.events) - 1} more)" if len(r.events) > 1 else ""
    return Label.RERUN_NOISE, first.kind, f"while {r.profile} was sampled: {first.detail}{more}"


def _clock(probes: tuple[float | None, float | None], environment: Environment) -> Found | None:
    """Their clocks differ: so would their times, of the same kernel."""
    one, other = probes
    allowed = CLOCKS_WITHIN[environment.device]
    if one is None or other is None or max(one, other) / min(one, other) <= 1 + allowed:
        return None
    apart = max(one, other) / min(one, other) - 1
    return Label.RERUN_NOISE, "clock", f"the clocks beside the two were {apart:.1%} apart, {allowed:.0%} is allowed"


def _few(processes: int) -> Found | None:
    """An interval of so few processes is not to be trusted."""
    if processes >= ENOUGH:
        return None
    said = f"{processes} of at least {ENOUGH} processes: too few for an interval to trust"
    return Label.INCONCLUSIVE, "processes", said


RULES: tuple[Callable[[Side], Found | None], ...] = (
    _wrong,
    _failed,
    _fingerprint,
    _ceiling,
    _noisy,
    _control,
    _disturbed,
)
