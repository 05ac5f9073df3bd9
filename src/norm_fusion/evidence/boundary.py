"""The evidence boundary: what the evidence of a decision or an experiment does not cover, a sentence each.

Generated from the records alone, so that nobody forgets a line: rows that are noisy or undecided, shapes, dtypes,
passes, GPUs and baselines that were not measured, age, and how the harness stood when it was measured.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime

from norm_fusion.evidence.archive import Archive
from norm_fusion.evidence.selection import Selected
from norm_fusion.records import Decided, HarnessReport, Standing
from norm_fusion.spec import ITEMSIZE, TORCH, Case, Pass, SpecError

# Older evidence is said to be old; a decision may expire sooner.
OLD_DAYS = 180
NAMED = 6


@dataclass(frozen=True)
class Bound:
    """One line of the boundary: what it is about, and the sentence."""

    about: str
    sentence: str


def of_decision(decided: Decided, selected: Sequence[Selected], archive: Archive, as_of: date) -> list[Bound]:
    """What a decision's evidence does not cover."""
    made = [Bound("undecided", said) for said in _standing(decided)]
    baselines = [row.baseline for claim in decided.claims for row in claim.rows if row.baseline]
    if selected:
        made += covered(selected, baselines, archive, as_of)
    return made


def _standing(decided: Decided) -> Iterator[str]:
    for claim in decided.claims:
        for standing in (Standing.FAILS, Standing.OPEN):
            rows = [row for row in claim.rows if row.standing is standing]
            if rows:
                labels = "".join(
                    f" ({label})" for label in [", ".join(sorted({r.label for r in rows if r.label}))] if label
                )
                of = "" if len(rows) == len(claim.rows) else f" of {len(claim.rows)}"
                count = "everywhere" if not of else f"in {len(rows)}{of} rows"
                yield f"“{claim.says}”: {standing.value} {count}{labels}: {named([row.case for row in rows])}."


def covered(selected: Sequence[Selected], baselines: Iterable[str], archive: Archive, as_of: date) -> list[Bound]:
    """What the cases and runs that speak do not cover. `selected` holds at least one."""
    cases = [case for one in selected if (case := _case(one.case)) is not None]
    gpus = sorted({one.gpu for one in selected})
    made = [*(_shapes(cases)), *_kinds(cases)]
    only = f"Only {gpus[0]} was measured" if len(gpus) == 1 else f"{', '.join(gpus)} were measured"
    made.append(Bound("GPUs", f"{only}: nothing here says how another model of GPU would do."))
    made += _baselines({*baselines})
    made += _software(selected)
    made += [_age(selected, as_of), *(_harness(gpu, selected, archive) for gpu in gpus)]
    return made


def _case(name: str) -> Case | None:
    try:
        return Case.parse(name)
    except SpecError:
        return None


def _shapes(cases: Sequence[Case]) -> Iterator[Bound]:
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.op + (" backward" if case.pass_ is Pass.BACKWARD else ""), []).append(case)
    for name, those in groups.items():
        shapes = sorted({(case.rows, case.cols) for case in those})
        rows, cols = ({shape[i] for shape in shapes} for i in (0, 1))
        if len(shapes) == 1:
            said = f"{name} at {shapes[0][0]:,} rows of {shapes[0][1]:,} columns alone"
        else:
            said = f"{name} at {len(shapes)} shapes, {_span(rows)} rows of {_span(cols)} columns"
        yield Bound("shapes", f"Measured was {said}; no shape beyond or between them.")


def _span(sizes: Iterable[int]) -> str:
    ends = sorted(sizes)
    return f"{ends[0]:,}" if ends[0] == ends[-1] else f"{ends[0]:,} to {ends[-1]:,}"


def _kinds(cases: Sequence[Case]) -> Iterator[Bound]:
    if not cases:
        return
    ops = sorted({case.op for case in cases})
    for op in ops:
        mine = [case for case in cases if case.op == op]
        if lacking := [dtype for dtype in ITEMSIZE if dtype not in {case.dtype for case in mine}]:
            yield Bound("dtypes", f"{op} was not measured in {' nor in '.join(lacking)}.")
        if lacking := [way.value for way in Pass if way not in {case.pass_ for case in mine}]:
            yield Bound("passes", f"The {lacking[0]} pass of {op} was not measured.")


def _baselines(there: set[str]) -> Iterator[Bound]:
    if not there:
        return
    torch = [name for name in TORCH if name not in there]
    if torch and there & {*TORCH}:
        yield Bound("baselines", f"Not compared with {', '.join(torch)}.")
    if not any(not name.startswith("torch-") for name in there):
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


def day(moment: str) -> date:
    """The day of an ISO 8601 time; the first of all days where it is none."""
    try:
        return datetime.fromisoformat(moment).date()
    except ValueError:
        return date.min


def _age(selected: Sequence[Selected], as_of: date) -> Bound:
    days = sorted({day(one.run.manifest.started_at) for one in selected})
    old = max((as_of - days[0]).days, 0)
    when = f"on {days[0]}" if days[0] == days[-1] else f"from {days[0]} to {days[-1]}"
    aged = f", and is old: more than {OLD_DAYS} days" if old > OLD_DAYS else ""
    before = {0: "the same day as", 1: "a day before"}.get(old, f"{old} days before")
    return Bound("age", f"Measured {when}, {before} {as_of}{aged}.")


def _harness(gpu: str, selected: Sequence[Selected], archive: Archive) -> Bound:
    """Of each check of the lab on that model the one nearest in time to the newest of the evidence."""
    at = max(day(one.run.manifest.started_at) for one in selected if one.gpu == gpu)
    nearest: dict[str, tuple[HarnessReport, bool | None]] = {}
    reports = [report for report in archive.harness if report.environment.device_name == gpu and not report.reduced]
    for report in sorted(reports, key=lambda report: abs((day(report.started_at) - at).days), reverse=True):
        for check in report.checks:
            group = check.name.partition(":")[0]  # "A/A: raw intervals, device" is one of many of its group
            same = nearest.get(group)
            failed = same is not None and same[0] is report and same[1] is not True
            nearest[group] = (report, same[1] if same is not None and failed else check.passed)
    if not nearest:
        return Bound("harness", f"The lab itself was not checked on {gpu}: no check-harness is kept.")
    when: dict[tuple[date, bool | None], list[str]] = {}
    for name, (report, passed) in nearest.items():
        when.setdefault((day(report.started_at), passed), []).append(name)
    words: Mapping[bool | None, str] = {True: "passed", False: "FAILED", None: "could not be tried"}
    parts = [
        f"{', '.join(sorted(names))} {words[passed]} on {at}" for (at, passed), names in sorted(when.items(), key=str)
    ]
    return Bound("harness", f"Checks of the lab on {gpu}: {'; '.join(parts)}.")


def named(cases: Sequence[str]) -> str:
    """Some names, and how many more there are."""
    each = list(dict.fromkeys(cases))
    more = f" and {len(each) - NAMED} more" if len(each) > NAMED else ""
    return ", ".join(each[:NAMED]) + more
