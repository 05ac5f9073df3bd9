"""The rows of a claim: for each case and model of GPU the run that speaks for it, and how it stands."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.claims import fastest
from norm_fusion.evidence.decisions import COUNTED, FASTEST, RATED, SERIES, SPEEDUP, Cases, Claimed, Decision
from norm_fusion.evidence.examples import Example
from norm_fusion.evidence.selection import Selected, older, refusals, select, unheard
from norm_fusion.evidence.verdicts import RULES, Side
from norm_fusion.records import Call, Code, DecidedRow, Label, Otherwise, Record, Standing, Status

DECIDED = (Label.SUPPORTED, Label.REGRESSION, Label.NO_DIFFERENCE, Label.INCONCLUSIVE)  # by their interval
# Without these nobody knows which PyTorch is the fastest: the operator as it is, and compiled.
CONTENDERS = ("torch-native", "torch-compile")
TOLD = 3  # refused runs that are named where none may speak
# A profile that ended so tells of the run, not of itself.
NOT_ITS_OWN = (Code.INTERRUPTED, Code.UNREADABLE)


@dataclass(frozen=True)
class Evidence:
    """Where decisions take their rows from: the runs, and examples by name."""

    archive: Archive
    examples: Mapping[str, Example]


def rows_of(
    decision: Decision, claim: Claimed, evidence: Evidence
) -> tuple[list[DecidedRow], list[Selected | Example]]:
    """A claim's rows, and what they are of.

    Raises:
        SpecError: it names a case that no run measured, or that no run may speak for; says which file and key.
    """
    if claim.example is not None:
        example = _example(decision, claim, evidence)
        return [_of_example(claim, example)], [example]
    found = _selected(decision, claim, evidence)
    rows = []
    for one in found:
        others = [_row(claim, other) for other in older(one, _needed(claim, one.case))]
        told = [Otherwise(run=row.run, value=row.value, label=row.label, standing=row.standing) for row in others]
        rows.append(_row(claim, one).model_copy(update={"others": told}))
    return rows, [*found]


def _selected(decision: Decision, claim: Claimed, evidence: Evidence) -> list[Selected]:
    """The runs that speak for each case of a claim; every part of its selector has to be measured."""
    runs = evidence.archive.runs
    made: dict[tuple[str, str], Selected] = {}
    key = f"claims.{claim.name}.cases"
    for wanted, names in _measured(claim, evidence).items():
        if not names:
            raise decision.wrong(key, f"names {wanted.text!r}, which no run has measured", at=wanted.text)
        found = [one for case in names for one in select(runs, case, _needed(claim, case), claim.counted)]
        if not found:
            each = chain.from_iterable(refusals(runs, c, _needed(claim, c), claim.counted) for c in names)
            why = list(dict.fromkeys(each))
            more = f"; and {len(why) - TOLD} more" if len(why) > TOLD else ""
            said = f"names {wanted.text!r}, for which no run may speak: {'; '.join(why[:TOLD])}{more}"
            raise decision.wrong(key, said, at=wanted.text)
        made |= {(one.case, one.gpu): one for one in found}
    return sorted(made.values(), key=lambda one: _in_order(one.case))


def _measured(claim: Claimed, evidence: Evidence) -> dict[Cases, list[str]]:
    """By each part of a claim's selector the cases that any run measured, or read counters of."""
    runs = [run.manifest for run in evidence.archive.runs]
    each = [[case for case, _ in run.profiled] if claim.counted else run.cases for run in runs]
    known = dict.fromkeys(chain.from_iterable(each))
    return {wanted: [case for case in known if wanted.takes(case)] for wanted in claim.cases}


def unspoken(claims: Iterable[Claimed], evidence: Evidence) -> Iterator[str]:
    """The measured cases of claims that no run may speak for, on a model of GPU: a sentence for each reason."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for claim in claims:
        for case in chain.from_iterable(_measured(claim, evidence).values()):
            over = unheard(evidence.archive.runs, case, _needed(claim, case), claim.counted)
            for gpu, (run, why) in over.items():
                found.setdefault((gpu, f"{run.name} {why}"), {})[case] = None
    for (gpu, why), cases in found.items():
        yield f"No run may speak for {', '.join(sorted(cases, key=_in_order))} on {gpu}: {why}."


def _in_order(case: str) -> tuple[str, int, int, str]:
    """By dtype, then by columns, as a sweep is read."""
    head, shape, dtype = case.rsplit("-", 2)
    rows, *_, cols = (int(size) for size in shape.split("x"))
    return f"{head} {dtype}", cols, rows, case


def _needed(claim: Claimed, case: str) -> list[str]:
    """Whom a run has to have measured to speak for a claim."""
    named = claim.baseline_at(case)
    return [claim.profile_at(case), *(CONTENDERS if named == FASTEST else [named] if named else [])]


def _row(claim: Claimed, one: Selected) -> DecidedRow:
    if claim.counted:
        return _of_counters(claim, one)
    bad = next((r for r in one.rows if r.profile == claim.profile_at(one.case) and r.status.bad), None)
    if bad is not None and bad.code not in NOT_ITS_OWN:
        reason = f"{bad.profile} {'is wrong' if bad.status is Status.WRONG else 'failed'}: {bad.reason or bad.status}"
        told = {"label": Label.INVALID.value, "processes": bad.processes or 1}
        return _made(claim, one, Standing.FAILS, reason).model_copy(update=told)
    return _of_call(claim, one) if claim.metric == SPEEDUP else _of_record(claim, one)


def _of_call(claim: Claimed, one: Selected) -> DecidedRow:
    """By the call of the claim in the series that it names."""
    timer = SERIES[claim.series]
    profile, baseline = claim.profile_at(one.case), claim.baseline_at(one.case)
    if baseline == FASTEST:
        torch = {r.profile: r for r in one.rows if _timed_torch(r, timer)}
        if not torch:
            return _open(claim, one, "no correct PyTorch was timed in this series")
        baseline = fastest(torch)
    made = one.run.conclusions
    calls = {tuple(map(str, c.claim)): c for c in (made.calls if made is not None else [])}
    call = calls.get((one.case, profile, baseline, timer, "cold"))
    if call is None:
        return _open(claim, one, f"no call over {baseline} in this series", baseline)
    standing, reason = _by_interval(claim, call)
    alone = calls.get((one.case, profile, baseline, "device", "cold")) if timer == "graph" else None
    bad = call.label is Label.INVALID
    told = {
        "value": None if bad else call.speedup,
        "low": None if bad else call.low,
        "high": None if bad else call.high,
        "label": call.label.value,
        "processes": call.processes,
        "alone": _alone(claim, one, alone, standing),
    }
    return _made(claim, one, standing, reason, baseline).model_copy(update=told)


def _alone(claim: Claimed, one: Selected, call: Call | None, standing: Standing) -> Otherwise | None:
    """What a call by the kernels' own time says, without what lies between them, where it decides otherwise."""
    if call is None:
        return None
    found, _ = _by_interval(claim, call)
    if found in (standing, Standing.OPEN):
        return None
    return Otherwise(run=one.run.name, value=call.speedup, label=call.label.value, standing=found)


def _timed_torch(r: Record, timer: str) -> bool:
    return r.profile.startswith("torch-") and r.status is Status.OK and (r.timer, r.cache) == (timer, "cold")


def _by_interval(claim: Claimed, call: Call) -> tuple[Standing, str]:
    """An interval beyond the threshold, of a call that is one of its interval."""
    if call.label not in DECIDED or call.code == "processes" or call.low is None or call.high is None:
        return Standing.OPEN, call.reason
    said = f"95% interval {call.low:.3f} to {call.high:.3f}"
    return _beyond(claim, call.low, call.high, said)


def _beyond(claim: Claimed, low: float, high: float, said: str) -> tuple[Standing, str]:
    edge = claim.threshold
    holds, fails = (high <= edge, low > edge) if claim.at_most else (low >= edge, high < edge)
    wanted = f"{'at most' if claim.at_most else 'at least'} {edge:.4g}"
    if holds:
        return Standing.HOLDS, f"{said}, {wanted} is claimed"
    if fails:
        return Standing.FAILS, f"{said}, and {wanted} is claimed"
    return Standing.OPEN, f"{said} straddles {edge:.4g}"


def _of_record(claim: Claimed, one: Selected) -> DecidedRow:
    """A rate or an error of the pooled record: no rule calls it, and what a call would be doubted by leaves it open."""
    series = SERIES[claim.series], "cold"
    record = next(
        (r for r in one.rows if r.profile == claim.profile_at(one.case) and (r.timer, r.cache) == series), None
    )
    if record is None or record.status is not Status.OK or (value := RATED[claim.metric](record)) is None:
        return _open(claim, one, "it was not measured in this series")
    side = Side(record, one.rows, (), one.environment)
    if (doubt := next((found for rule in RULES if (found := rule(side)) is not None), None)) is not None:
        return _open(claim, one, doubt[2])
    return _shown(claim, one, value, record.processes or 1)


def _of_counters(claim: Claimed, one: Selected) -> DecidedRow:
    found = next(c for c in one.run.counters if (c.case, c.profile) == (one.case, claim.profile_at(one.case)))
    value = COUNTED[claim.metric](found)
    if value is None:
        return _open(claim, one, found.reason or "this counter was not collected")
    return _shown(claim, one, value, 1)


def _shown(claim: Claimed, one: Selected, value: float, processes: int) -> DecidedRow:
    holds, reason = _beyond(claim, value, value, f"it is {value:.4g}")
    standing = Standing.SHOWN if holds is Standing.HOLDS else holds
    return _made(claim, one, standing, reason).model_copy(update={"value": value, "processes": processes})


def _open(claim: Claimed, one: Selected, reason: str, baseline: str | None = None) -> DecidedRow:
    return _made(claim, one, Standing.OPEN, reason, baseline)


def _made(claim: Claimed, one: Selected, standing: Standing, reason: str, baseline: str | None = None) -> DecidedRow:
    return DecidedRow(
        case=one.case,
        gpu=one.gpu,
        run=one.run.name,
        profile=claim.profile_at(one.case),
        baseline=baseline,
        standing=standing,
        reason=reason,
    )


def _example(decision: Decision, claim: Claimed, evidence: Evidence) -> Example:
    assert claim.example is not None
    found = evidence.examples.get(claim.example)
    if found is None:
        there = ", ".join(evidence.examples) or "none"
        said = f"names {claim.example!r}, and the evidence has {there}"
        raise decision.wrong(f"claims.{claim.name}.example", said)
    for name in (claim.profile, claim.baseline):
        if name not in found.contestants(SERIES[claim.series]):
            there = ", ".join(found.contestants(SERIES[claim.series])) or "nobody in this series"
            raise decision.wrong(f"claims.{claim.name}", f"compares {name!r}, and the example has {there}")
    return found


def _of_example(claim: Claimed, example: Example) -> DecidedRow:
    """By an interval over the example's processes, as any claim's; where a gate of runs would not let it pass, no call.

    It has no control, and no clock beside its blocks.
    """
    call = example.called(claim.profile, claim.baseline, SERIES[claim.series])
    standing, reason = _by_interval(claim, call)
    if example.short_of:
        standing = Standing.SHOWN if standing is Standing.HOLDS else standing
        reason = f"{reason}; it {example.short_of}"
    return DecidedRow(
        case=example.case,
        gpu=example.environment.device_name,
        run=example.name,
        profile=claim.profile,
        baseline=claim.baseline,
        value=call.speedup,
        low=call.low,
        high=call.high,
        label=None if example.short_of else call.label.value,
        processes=call.processes,
        standing=standing,
        reason=reason,
    )
