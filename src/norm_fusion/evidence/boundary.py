"""The evidence boundary: what the evidence of a decision or an experiment does not cover, a sentence each.

Generated from the records alone, so that nobody forgets a line: rows that are noisy or undecided, shapes, dtypes,
passes, GPUs and baselines that were not measured, age, and how the harness stood when it was measured. Each speaks of
the runs that were selected, and of no others that there may be.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date

from norm_fusion.evidence.archive import Archive, moment
from norm_fusion.evidence.deciding import Judged
from norm_fusion.evidence.decisions import FASTEST
from norm_fusion.evidence.selection import Selected
from norm_fusion.records import Decided, HarnessReport, Standing, Status
from norm_fusion.spec import CONTROL, FUSED_OF, ITEMSIZE, ROOF, TORCH, Case, Pass, is_users

# Older evidence is said to be old; a decision may expire sooner.
OLD_DAYS = 180
NAMED = 6
LONGEST = 300  # characters of a reason
# What is measured beside PyTorch and is no other library's.
OURS = {*FUSED_OF.values(), CONTROL, ROOF}


@dataclass(frozen=True)
class Bound:
    """One line of the boundary: what it is about, and the sentence."""

    about: str
    sentence: str


def of_decision(judged: Judged, archive: Archive, as_of: date) -> list[Bound]:
    """What a decision's evidence does not cover."""
    decided, selected = judged.decided, judged.selected
    made = [Bound("undecided", said) for said in _standing(decided)]
    made += [Bound("series", said) for said in _alone(decided)]
    made += [Bound("runs", said) for said in _disputed(decided)]
    made += [Bound("runs", said) for said in decided.unheard]
    made += _of_examples(judged, archive, as_of)
    if selected:
        made += _covered(selected, _compared(decided, selected), archive, as_of)
    return made


def _standing(decided: Decided) -> Iterator[str]:
    for claim in decided.claims:
        for standing in (Standing.FAILS, Standing.OPEN):
            rows = [row for row in claim.rows if row.standing is standing]
            if rows:
                why = ", ".join(sorted({r.label or r.reason[:LONGEST] for r in rows}))
                everywhere = {Standing.FAILS: "holds nowhere", Standing.OPEN: "undecided everywhere"}[standing]
                part = f"{standing.value} in {len(rows)} of {len(claim.rows)} rows"
                count = everywhere if len(rows) == len(claim.rows) else part
                yield f"“{claim.says}”: {count} ({why}): {named([row.case for row in rows])}."


def _alone(decided: Decided) -> Iterator[str]:
    """The rows that stand otherwise by the kernels' own time: a CUDA graph has what lies between them, too."""
    for claim in decided.claims:
        for row in claim.rows:
            if row.alone is not None and row.alone.value is not None:
                told = f"{row.standing.value} in CUDA graphs, and {row.alone.standing.value} by the kernels' own time"
                yield f"“{claim.says}” at {row.case}: {told} ({row.alone.value:.3g}x, {row.alone.label})."


def _disputed(decided: Decided) -> Iterator[str]:
    """The rows of which an older run that passes the gates says otherwise: the newest speaks, whatever it says."""
    for claim in decided.claims:
        for row in claim.rows:
            for standing in dict.fromkeys(one.standing for one in row.disputed):
                those = [one for one in row.disputed if one.standing is standing]
                told = [one.run + ("" if one.value is None else f" ({one.value:.3g})") for one in those]
                now = f"{row.standing.value} by {row.run}, the newest run"
                yield f"“{claim.says}” at {row.case}: {now}; {standing.value} by the older {named(told)}."


def _compared(decided: Decided, selected: Sequence[Selected]) -> dict[str, set[str]]:
    """By baseline the cases at which something is claimed over it; who is the fastest was compared with all."""
    there = {(one.run.name, one.case): one for one in selected}
    found: dict[str, set[str]] = {}
    for claim in decided.claims:
        for row in claim.rows:
            one = there.get((row.run, row.case))  # None: of an example
            names = {row.baseline} if row.baseline and one is not None else set()
            if claim.baseline == FASTEST and one is not None:
                names |= {r.profile for r in one.rows if r.profile in TORCH and r.status is Status.OK}
            for name in names:
                found.setdefault(name, set()).add(row.case)
    return found


def covered(selected: Sequence[Selected], baselines: Iterable[str], archive: Archive, as_of: date) -> list[Bound]:
    """What the cases and runs that speak do not cover. `selected` holds at least one."""
    return _covered(selected, {name: {one.case for one in selected} for name in baselines}, archive, as_of)


def _covered(
    selected: Sequence[Selected], compared: Mapping[str, set[str]], archive: Archive, as_of: date
) -> list[Bound]:
    found = {one.case: Case.of(one.case) for one in selected}
    cases = [case for case in found.values() if case is not None]
    others = [name for name, case in found.items() if case is None]
    gpus = sorted({one.gpu for one in selected})
    made = [*_shapes(cases, others), *_kinds(cases), *_gpus(selected, gpus), *_baselines(compared, selected)]
    made += _software(selected)
    made += [_age(selected, as_of), *(_harness(gpu, _newest(selected, gpu), archive) for gpu in gpus)]
    return made


def _of_examples(judged: Judged, archive: Archive, as_of: date) -> Iterator[Bound]:
    """Of rows that no run tells of: an example is of one size and one machine."""
    measured = {one.gpu for one in judged.selected}
    for one in judged.examples:
        gpu, count = one.environment.device_name, len(one.runs)
        said = f"The example {one.name} is of {one.case}, in {count} process{'' if count == 1 else 'es'}"
        yield Bound("shapes", f"{said}, and of no other size; it has no control, and no correctness is judged.")
        yield Bound("GPUs", f"It was measured on {gpu} alone: nothing here says how another model of GPU would do.")
        dated = _aged([day(one.started_at)], as_of) if one.started_at else None
        yield dated or Bound("age", "Nothing tells when it was measured: its age is not judged.")
        if gpu not in measured:
            yield _harness(gpu, as_of if one.started_at is None else day(one.started_at), archive)


def _kind(case: Case) -> str:
    return case.op + (" backward" if case.pass_ is Pass.BACKWARD else "")


def _shapes(cases: Sequence[Case], others: Sequence[str]) -> Iterator[Bound]:
    for kind in dict.fromkeys(map(_kind, cases)):
        mine = [case for case in cases if _kind(case) == kind]
        dtypes: dict[tuple[tuple[int, int], ...], list[str]] = {}  # those that were measured at the same shapes
        for dtype in ITEMSIZE:
            if shapes := sorted((case.rows, case.cols) for case in mine if case.dtype == dtype):
                dtypes.setdefault(tuple(shapes), []).append(dtype)
        told = "; ".join(f"in {' and '.join(names)} {_span(shapes)}" for shapes, names in dtypes.items())
        beyond = "no other shape" if len({(c.rows, c.cols) for c in mine}) == 1 else "no shape between or beyond these"
        yield Bound("shapes", f"Its evidence of {kind} is {told}: of {beyond}.")
    if others:
        yield Bound("shapes", f"Its evidence of matrix products is of {named(others)}: of no other.")


def _span(shapes: Sequence[tuple[int, int]]) -> str:
    if len(shapes) == 1:
        return f"at {shapes[0][0]:,} rows of {shapes[0][1]:,} columns"
    rows, cols = (sorted({shape[i] for shape in shapes}) for i in (0, 1))
    return f"at {len(shapes)} shapes, {_ends(rows)} rows of {_ends(cols)} columns"


def _ends(sizes: Sequence[int]) -> str:
    return f"{sizes[0]:,}" if sizes[0] == sizes[-1] else f"{sizes[0]:,} to {sizes[-1]:,}"


def _kinds(cases: Sequence[Case]) -> Iterator[Bound]:
    for kind in dict.fromkeys(map(_kind, cases)):
        there = {case.dtype for case in cases if _kind(case) == kind}
        if lacking := [dtype for dtype in ITEMSIZE if dtype not in there]:
            yield Bound("dtypes", f"None of it is of {kind} in {' or '.join(lacking)}.")
    for op in dict.fromkeys(case.op for case in cases):
        there = {case.pass_ for case in cases if case.op == op}
        if lacking := [way.value for way in Pass if way not in there]:
            yield Bound("passes", f"None of it is of the {lacking[0]} pass of {op}.")


def _gpus(selected: Sequence[Selected], gpus: Sequence[str]) -> Iterator[Bound]:
    yield Bound("GPUs", f"All of it is of {' and '.join(gpus)}: nothing here says how another model of GPU would do.")
    cases = dict.fromkeys(one.case for one in selected)
    for gpu in gpus:
        there = {one.case for one in selected if one.gpu == gpu}
        if lacking := [case for case in cases if case not in there]:
            yield Bound("GPUs", f"Not measured on {gpu}: {named(lacking)}.")


def _baselines(compared: Mapping[str, set[str]], selected: Sequence[Selected]) -> Iterator[Bound]:
    if not compared:
        return
    cases = {case for those in compared.values() for case in those}
    if nowhere := [name for name in TORCH if name not in compared]:
        yield Bound("baselines", f"Not compared with {', '.join(nowhere)}.")
    for name in TORCH:
        if lacking := sorted(cases - compared.get(name, cases)):
            yield Bound("baselines", f"Not compared with {name} at {named(lacking)}.")
    profiles = {r.profile for one in selected for r in one.rows}
    if not any(not name.startswith("torch-") and name not in OURS and not is_users(name) for name in profiles):
        yield Bound("baselines", "No other library's kernel was measured beside PyTorch's.")


def _software(selected: Sequence[Selected]) -> Iterator[Bound]:
    environments = [one.environment for one in selected]
    told = {
        "PyTorch": {e.torch for e in environments},
        "Triton": {e.triton for e in environments if e.triton},
        "driver": {e.driver for e in environments if e.driver},
        "commit": {e.commit[:10] for e in environments if e.commit},
    }
    parts = [f"{name} {', '.join(sorted(versions))}" for name, versions in told.items() if versions]
    yield Bound("software", f"Measured with {'; '.join(parts)}: another version may do otherwise.")


def day(text: str) -> date:
    """The day of an ISO 8601 time; the first of all days where it is none."""
    found = moment(text)
    return date.min if found is None else found.date()


def _newest(selected: Sequence[Selected], gpu: str) -> date:
    return max(day(one.run.manifest.started_at) for one in selected if one.gpu == gpu)


def _age(selected: Sequence[Selected], as_of: date) -> Bound:
    return _aged(sorted({day(one.run.manifest.started_at) for one in selected}), as_of)


def _aged(days: Sequence[date], as_of: date) -> Bound:
    """`days`: when it was measured, sorted."""
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    if days[-1] > as_of:
        after = "after" if days[0] == days[-1] else "not wholly before"
        return Bound("age", f"Measured {when}, {after} {as_of}: as of that day it has no age.")
    old = (as_of - days[0]).days
    aged = f", and is old: more than {OLD_DAYS} days" if old > OLD_DAYS else ""
    first = "" if days[0] == days[-1] else "the first "
    before = {0: "the same day as", 1: f"{first}a day before"}.get(old, f"{first}{old} days before")
    return Bound("age", f"Measured {when}, {before} {as_of}{aged}.")


def _harness(gpu: str, at: date, archive: Archive) -> Bound:
    """Of each check of the lab on that model the one nearest in time to the newest of the evidence, that was tried.

    Of several on one day the newest; where a report has several of a name, as of one series each, the worst.
    """
    reports = [report for report in archive.harness if report.environment.device_name == gpu and not report.reduced]
    nearest: dict[str, tuple[HarnessReport, bool | None]] = {}
    for report in sorted(reports, key=lambda report: abs((day(report.started_at) - at).days)):
        for name, passed in _passed(report).items():
            if nearest.get(name, (report, None))[1] is None and (name not in nearest or passed is not None):
                nearest[name] = report, passed
    if not nearest:
        return Bound("harness", f"The lab itself was not checked on {gpu}: no whole check-harness is kept.")
    when: dict[tuple[date, bool | None], list[str]] = {}
    for name, (report, passed) in nearest.items():
        when.setdefault((day(report.started_at), passed), []).append(name)
    words: Mapping[bool | None, str] = {True: "passed", False: "FAILED", None: "could not be tried"}
    parts = [
        f"{', '.join(sorted(names))} {words[passed]} on {at}" for (at, passed), names in sorted(when.items(), key=str)
    ]
    return Bound("harness", f"Checks of the lab on {gpu}: {'; '.join(parts)}.")


def _passed(report: HarnessReport) -> dict[str, bool | None]:
    """By group of a report's checks the worst: "A/A: raw intervals, device" is one of many of its group."""
    found: dict[str, set[bool | None]] = {}
    for check in report.checks:
        found.setdefault(check.name.partition(":")[0], set()).add(check.passed)
    return {name: next(one for one in (False, None, True) if one in those) for name, those in found.items()}


def named(cases: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    each = list(dict.fromkeys(cases))
    more = f" and {len(each) - NAMED} more" if len(each) > NAMED else ""
    return ", ".join(each[:NAMED]) + more
