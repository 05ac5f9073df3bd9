"""Which claims a run makes: who is compared with whom, in which series; and which of them an answer rests on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from norm_fusion import metrics
from norm_fusion.records import Cache, Call, Label, Manifest, Record, Status, Timer
from norm_fusion.spec import BASELINE_OF, CONTROL, ROOF, Op

Series = tuple[Timer, Cache]

# What is judged, best first. Enqueueing never is: a kernel that is enqueued sooner is not a faster kernel.
JUDGED: tuple[Series, ...] = (
    ("graph", "cold"),
    ("device", "cold"),
    ("device", "hot"),
    ("graph", "hot"),
    ("wall", "cold"),
    ("wall", "hot"),
)
# Where a speedup is quoted from: a graph's time on a GPU, a wall clock's on a CPU.
PRIMARY: tuple[Series, ...] = (("graph", "cold"), ("wall", "cold"))


@dataclass(frozen=True)
class Claim:
    """`subject` is faster than `baseline`, two pooled records; in a series that a failed one of them may lack."""

    subject: Record
    baseline: Record
    timer: Timer
    cache: Cache


def claims(rows: Sequence[Record], manifest: Manifest) -> Iterator[Claim]:
    """The claims that the pooled records of one attempt of a case make.

    The control is compared with its original; a torch profile with the one that torch-baseline names; any other one
    with every torch profile; and in a run without PyTorch everything with the first profile that was asked for.
    """
    by_profile = _series_of(rows)
    for subject, mine in by_profile.items():
        for baseline in _baselines(subject, next(iter(mine.values())), by_profile, manifest):
            yield from _claims_of(mine, by_profile[baseline])


def _series_of(rows: Iterable[Record]) -> dict[str, dict[Series, Record]]:
    by_profile: dict[str, dict[Series, Record]] = {}
    for record in rows:
        by_profile.setdefault(record.profile, {})[record.timer, record.cache] = record
    return by_profile


def _baselines(subject: str, row: Record, present: Iterable[str], manifest: Manifest) -> list[str]:
    there = [name for name in present if name != subject]
    if subject == ROOF:
        return []
    if subject == CONTROL:
        return [name for name in there if name == row.control_of]
    torch = [name for name in there if name.startswith("torch-")]
    if subject.startswith("torch-"):
        return [name for name in torch if row.op in set(Op) and name == BASELINE_OF[Op(row.op)]]
    if torch or any(name.startswith("torch-") for name in manifest.profiles):
        return torch
    first = next((name for name in manifest.profiles if name in {*there, subject}), None)
    return [name for name in there if name == first]


def _claims_of(mine: Mapping[Series, Record], theirs: Mapping[Series, Record]) -> Iterator[Claim]:
    one, other = next(iter(mine.values())), next(iter(theirs.values()))
    if {one.status, other.status} & {Status.UNAVAILABLE, Status.CHECKED}:
        return
    for series in JUDGED:
        # What is wrong or failed may have no series at all: the claim is made where the other side has one.
        subject = mine.get(series) or (None if one.status is Status.OK else one)
        baseline = theirs.get(series) or (None if other.status is Status.OK else other)
        if subject is not None and baseline is not None and (series in mine or series in theirs):
            yield Claim(subject, baseline, *series)


def needs_rerun(calls: Iterable[Call]) -> list[str]:
    """The cases of which a claim that an answer rests on was too noisy: graph cold on a GPU, wall cold on a CPU.

    The control's own call counts by what it does to the others: where it fails, so do they.
    """
    by_pair: dict[tuple[str, str, str], dict[Series, Call]] = {}
    for call in calls:
        if call.profile != CONTROL:
            by_pair.setdefault((call.case, call.profile, call.baseline), {})[call.timer, call.cache] = call
    noisy: dict[str, None] = {}
    for (case, _, _), found in by_pair.items():
        primary = next((found[series] for series in PRIMARY if series in found), None)
        if primary is not None and primary.label is Label.RERUN_NOISE:
            noisy[case] = None
    return list(noisy)


def widest(pooled: Iterable[Record], case: str) -> float | None:
    """The largest half-width (0.01 is 1%) among the headline claims of the newest attempt of a case; None without any.

    Headline claims: every timed profile that is not PyTorch's over the one that torch-baseline names and over the
    fastest correct PyTorch; where none was timed, as on a CPU, every torch profile over the baseline; in a run
    without PyTorch everything over the first profile.

    It is what a run stops by (protocol step 13): the width alone, never whether a difference is significant, as
    stopping "once significant" raises false positives from 5% to 20%.
    """
    rows = [record for record in pooled if record.case == case]
    newest = max((record.attempt for record in rows), default=0)
    by_profile = _series_of(record for record in rows if record.attempt == newest)
    timed = {
        profile: primary
        for profile, found in by_profile.items()
        if profile not in (ROOF, CONTROL)
        if (primary := next((found[series] for series in PRIMARY if series in found), None)) is not None
        if primary.status is Status.OK
    }
    torch = {name: record for name, record in timed.items() if name.startswith("torch-")}
    others = {name: record for name, record in timed.items() if name not in torch}
    if torch:
        op = next(iter(torch.values())).op
        named = {BASELINE_OF[Op(op)]} if op in set(Op) else set()
        by_series = ({name: r for name, r in torch.items() if (r.timer, r.cache) == one} for one in PRIMARY)
        baselines = named | {fastest(next(filter(None, by_series)))} if others else named
    else:
        baselines = set(list(timed)[:1])
    widths = [
        metrics.half_width(*record.interval[baseline])
        for record in (others or timed).values()
        for baseline in baselines
        if baseline in record.interval
    ]
    return max(widths, default=None)


def fastest(found: Mapping[str, Record]) -> str:
    """The fastest of some PyTorchs' records of one series: the one over which another's speedup is smallest.

    So by the speedups over the one that torch-baseline names, which are means over processes; where that is not among
    them by p50.
    """
    op = next(iter(found.values())).op
    named = BASELINE_OF[Op(op)] if op in set(Op) else ""
    if named in found and all(name == named or named in record.speedup for name, record in found.items()):
        return max(found, key=lambda name: found[name].speedup.get(named, 1.0))
    return min(found, key=lambda name: found[name].p50_ms or math.inf)
