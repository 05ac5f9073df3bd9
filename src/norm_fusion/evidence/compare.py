"""Two runs, row by row: what became faster, what slower, and what cannot be told. Unlike runs are refused by name.

Their processes are not paired: nothing that drifted during one run drifted with the other. So the ratio of two rows
is that of the means of log medians, a process each, with Welch's interval (metrics.welch). It is judged by the rules
of a claim within a run: whatever makes a row of either run doubtful there makes it so here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from norm_fusion import metrics
from norm_fusion.evidence import verdicts
from norm_fusion.evidence.claims import JUDGED
from norm_fusion.evidence.pool import by_series, quoted
from norm_fusion.records import Cache, Environment, Label, Manifest, Record, Timer
from norm_fusion.runs.order import in_order
from norm_fusion.spec import CONTROL, ROOF, SpecError

# What must be alike, by the name under which a difference is allowed: facts of the environment, `quick` of the
# manifest. Two dirty trees of one commit are told apart by `source`, which hashes the package's files.
MUST_MATCH: Mapping[str, tuple[str, ...]] = {
    "device": ("device", "device_name", "compute_capability", "sm_count", "cache_bytes", "mig", "ecc", "threads"),
    "machine": ("device_uuid", "memory_bytes", "platform"),
    "clocks": ("sm_clock_max_mhz", "memory_clock_max_mhz", "power_limit_w"),
    "driver": ("driver",),
    "torch": ("torch", "cuda"),
    "triton": ("triton",),
    "inductor": ("inductor",),
    "peers": ("peers",),
    "python": ("python",),
    "commit": ("norm_fusion", "source", "commit", "dirty"),
    "quick": ("quick",),
}
EVERYTHING = "all"

Rows = dict[tuple[str, str, Timer, Cache], Record]

# What --fail-on takes: the labels, and a word for a difference in either direction.
FAILURES: Mapping[str, frozenset[Label]] = {
    "regression": frozenset({Label.REGRESSION}),
    "difference": frozenset({Label.REGRESSION, Label.SUPPORTED}),
    "supported": frozenset({Label.SUPPORTED}),
    "no-difference": frozenset({Label.NO_DIFFERENCE}),
    "inconclusive": frozenset({Label.INCONCLUSIVE}),
    "rerun-noise": frozenset({Label.RERUN_NOISE}),
    "invalid": frozenset({Label.INVALID}),
}


class Unlike(SpecError):
    """Two runs that may not be compared. The message names each difference, and what would allow it."""


@dataclass(frozen=True)
class Side:
    """A run: what it was asked, its pooled records, and the single ones that they were made of."""

    manifest: Manifest
    pooled: Sequence[Record]
    records: Sequence[Record]

    @property
    def environment(self) -> Environment:
        if self.manifest.environment is None:
            raise SpecError(f"run {self.manifest.run_id!r} does not say where it took place: it cannot be compared")
        return self.manifest.environment


class Seen:
    """What there is to doubt the rows of a run by."""

    def __init__(self, run: Side) -> None:
        self.manifest, self.by_series = run.manifest, by_series(run.records)
        self.rows: dict[tuple[str, int], list[Record]] = {}  # pooled, of a case's attempt
        self.single: dict[tuple[str, str, int], list[Record]] = {}  # of a profile there
        for record in run.pooled:
            self.rows.setdefault((record.case, record.attempt), []).append(record)
        for record in run.records:
            self.single.setdefault((record.case, record.profile, record.attempt), []).append(record)

    def of(self, r: Record) -> tuple[verdicts.Side, list[float]]:
        """A pooled record as a side of a comparison, and its median in each process."""
        rows, single = self.rows[r.case, r.attempt], self.single[r.case, r.profile, r.attempt]
        group = self.by_series[r.case, r.profile, r.timer, r.cache, r.attempt]
        medians = [record.p50_ms for record in group if record.p50_ms is not None]
        where = self.manifest.environment_of(rows[0].fingerprint)  # a case is measured on one card of several
        assert where is not None, "Side.environment has seen to it"
        return verdicts.Side(r, rows, single, where), medians


@dataclass(frozen=True)
class Row:
    """One series of both runs. `speedup` is A's time over B's: above 1, B is faster; times are means over processes."""

    case: str
    profile: str
    timer: Timer
    cache: Cache
    a_ms: float
    b_ms: float
    a_processes: int
    b_processes: int
    speedup: float
    low: float | None  # 95% interval of the speedup
    high: float | None
    label: Label
    code: str
    reason: str

    @property
    def counts(self) -> bool:
        """Does --fail-on look at it? The roof and the control tell of the machine, not of what it ran."""
        return self.profile not in (ROOF, CONTROL)

    @property
    def decided(self) -> bool:
        """Does its label say whether there is a difference?"""
        return self.label in (Label.SUPPORTED, Label.REGRESSION, Label.NO_DIFFERENCE)


@dataclass(frozen=True)
class Comparison:
    """The rows that both runs have, and how many only one of them has.

    `lost`: a sentence for each contestant that A has timed and B, which was asked for it too, has not, or not in all
    series.
    """

    rows: Sequence[Row]
    only_a: int
    only_b: int
    lost: Sequence[str] = ()

    def refused(self, labels: Collection[Label]) -> list[str]:
        """Why a gate that looks for these labels does not let B pass: a sentence each.

        A row that is invalid, or lost, never passes; and where nothing could be decided there was nothing to look at.
        """
        rows = [row for row in self.rows if row.counts]
        found = [row for row in rows if row.label in {*labels, Label.INVALID}]
        said = [f"{row.profile} at {row.case} ({row.timer} {row.cache}) is {became(row.label)}" for row in found]
        if not any(row.decided for row in rows):
            said.append("no row could be decided: measure both runs in five processes, and what was noisy again")
        return [*said, *self.lost]


def became(label: Label) -> str:
    """What B is, seen from A."""
    return {Label.SUPPORTED: "faster", Label.REGRESSION: "slower"}.get(label, label.value)


def compare(a: Side, b: Side, allowed: Iterable[str] = ()) -> Comparison:
    """B against A, in the order of A: device, graph and wall series that both have timed.

    Raises:
        Unlike: they differ in what is not among `allowed` (names of MUST_MATCH, or "all").
        SpecError: a name in `allowed` is unknown, or the runs have no row in common.
    """
    check_alike(a.manifest, b.manifest, allowed)
    ours, theirs = rows_of(a), rows_of(b)
    # A control is that of one contestant: of another one it is another kernel.
    both = [key for key in ours if key in theirs and ours[key].control_of == theirs[key].control_of]
    lost = list(_lost(ours, theirs, b))
    if not both and not lost:
        raise SpecError(f"the runs have no row in common: {_listed(a, ours)}; {_listed(b, theirs)}")
    mine, other = Seen(a), Seen(b)
    rows = [_row(mine.of(ours[key]), other.of(theirs[key])) for key in both]
    return Comparison(rows, only_a=len(ours) - len(both), only_b=len(theirs) - len(both), lost=lost)


def check_alike(a: Manifest, b: Manifest, allowed: Iterable[str] = ()) -> None:
    """Raises Unlike where the two runs differ in what is not allowed to."""
    names = set(allowed)
    for name in sorted(names - {*MUST_MATCH, EVERYTHING}):
        raise SpecError(f"--allow {name!r} is unknown: choose from {', '.join([*MUST_MATCH, EVERYTHING])}")
    if EVERYTHING in names:
        return
    odd = {name: said for name in MUST_MATCH if name not in names and (said := _differences(name, a, b))}
    if odd:
        listed = "; ".join(each for said in odd.values() for each in said)
        remedy = " ".join(f"--allow {name}" for name in odd) + (f" (or --allow {EVERYTHING})" if len(odd) > 1 else "")
        raise Unlike(f"{a.run_id} and {b.run_id} are unlike: {listed}. To compare them all the same add {remedy}")


def summary(comparison: Comparison, a: str, b: str) -> str:
    """One sentence: how many rows became what, and whether the machine itself did."""
    counted = Counter(row.label for row in comparison.rows if row.counts)
    total = sum(counted.values())
    parts = [f"{counted[label]} {became(label)}" for label in Label if counted[label]]
    found = f"{b} against {a}, {total} row{'' if total == 1 else 's'}: {', '.join(parts) or 'none that counts'}"
    roofs = Counter(row.label for row in comparison.rows if row.profile == ROOF)
    moved = roofs[Label.SUPPORTED] + roofs[Label.REGRESSION]
    if moved:
        found += f"; the roof itself changed in {moved} of {sum(roofs.values())} series, so the machine did too"
    for count, name in ((comparison.only_a, a), (comparison.only_b, b)):
        if count:
            found += f"; {count} row{' is' if count == 1 else 's are'} in {name} alone"
    return f"{found}."


def rows_of(side: Side) -> Rows:
    """The series of a run that are compared, each by the attempt that is quoted, in the order in which it was asked."""
    timed = [record for record in quoted(side.pooled) if (record.timer, record.cache) in JUDGED]
    return {(r.case, r.profile, r.timer, r.cache): r for r in in_order(timed, side.manifest)}


def reasons(side: Side) -> dict[tuple[str, str], str]:
    """By case and profile, what a run says of it, should it not be timed there; empty where it says nothing."""
    why: dict[tuple[str, str], str] = {}
    for r in side.pooled:
        why.setdefault((r.case, r.profile), r.reason or "; ".join(r.notes))
    return why


def _lost(ours: Rows, theirs: Rows, b: Side) -> Iterator[str]:
    why = reasons(b)
    missing: dict[tuple[str, str], list[str]] = {}
    there = {key[:2] for key in theirs}
    for case, profile, timer, cache in ours:
        asked = case in b.manifest.cases and profile in b.manifest.profiles
        if asked and (case, profile, timer, cache) not in theirs:
            missing.setdefault((case, profile), []).append(f"{timer} {cache}")
    for (case, profile), series in missing.items():
        named = "" if (case, profile) not in there else f" in the series {', '.join(series)}"
        yield f"{profile} at {case} was not timed in B{named}: {why.get((case, profile)) or 'it has no record there'}"


def _row(one: tuple[verdicts.Side, list[float]], two: tuple[verdicts.Side, list[float]]) -> Row:
    times = one[1], two[1]
    fewest = min(map(len, times))
    a = one[0].record
    a_ms, b_ms = (metrics.geometric_mean(mine) for mine in times)
    ratio, low, high = a_ms / b_ms, None, None
    if fewest >= 2:
        ratio, low, high = metrics.welch(*times)
    where, there = one[0].environment, two[0].environment
    one_card = where.device == "cuda" and where.device_uuid == there.device_uuid
    # Two cards have clocks of their own, and each its right one.
    probes = (a.probe_ms, two[0].record.probe_ms) if one_card else (None, None)
    label, code, reason = verdicts.decided(one[0], two[0], fewest, low, high, probes)
    return Row(
        case=a.case,
        profile=a.profile,
        timer=a.timer,
        cache=a.cache,
        a_ms=a_ms,
        b_ms=b_ms,
        a_processes=len(times[0]),
        b_processes=len(times[1]),
        speedup=ratio,
        low=low,
        high=high,
        label=label,
        code=code,
        reason=reason,
    )


def _differences(name: str, a: Manifest, b: Manifest) -> list[str]:
    """`driver 580.95 / 580.159`, for each fact under a name in which the two differ."""
    said = []
    for fact in MUST_MATCH[name]:
        mine, theirs = (fact_of(manifest, fact) for manifest in (a, b))
        if mine != theirs:
            said.append(f"{fact} {'none' if mine is None else mine} / {'none' if theirs is None else theirs}")
    return said


def fact_of(manifest: Manifest, name: str) -> object:
    """What a run says of one of the facts in MUST_MATCH."""
    if name == "quick":
        return manifest.quick
    return getattr(Side(manifest, (), ()).environment, name)


def _listed(side: Side, rows: Rows) -> str:
    cases = list(dict.fromkeys(key[0] for key in rows))
    profiles = list(dict.fromkeys(key[1] for key in rows))
    if not rows:
        return f"{side.manifest.run_id} has no timed row"
    return f"{side.manifest.run_id} has {', '.join(profiles)} at {', '.join(cases)}"
