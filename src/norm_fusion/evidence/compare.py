"""Two runs, row by row: what became faster, what slower, and what cannot be told. Unlike runs are refused by name.

Their processes are not paired: nothing that drifted during one run drifted with the other. So the ratio of two rows
is that of the means of log medians, a process each, with Welch's interval (metrics.welch), and is judged by the same
two boundaries as a claim within a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from norm_fusion import metrics
from norm_fusion.evidence.claims import JUDGED
from norm_fusion.evidence.pool import by_series, quoted
from norm_fusion.evidence.verdicts import disturbed, failed, noisy, verdict, wrong
from norm_fusion.records import Cache, Label, Manifest, Record, Timer
from norm_fusion.runs.store import in_order
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
    """The rows that both runs have, and how many only one of them has."""

    rows: Sequence[Row]
    only_a: int
    only_b: int


def compare(a: Side, b: Side, allowed: Iterable[str] = ()) -> Comparison:
    """B against A, in the order of A: device, graph and wall series that both have timed.

    Raises:
        Unlike: they differ in what is not among `allowed` (names of MUST_MATCH, or "all").
        SpecError: a name in `allowed` is unknown, or the runs have no row in common.
    """
    check_alike(a.manifest, b.manifest, allowed)
    ours, theirs = _rows(a), _rows(b)
    # A control is that of one contestant: of another one it is another kernel.
    both = [key for key in ours if key in theirs and ours[key].control_of == theirs[key].control_of]
    if not both:
        raise SpecError(f"the runs have no row in common: {_listed(a, ours)}; {_listed(b, theirs)}")
    singles = [by_series(side.records) for side in (a, b)]
    rows = []
    for key in both:
        pair = ours[key], theirs[key]
        times = [
            [p50 for record in series[*key, one.attempt] if (p50 := record.p50_ms) is not None]
            for series, one in zip(singles, pair, strict=True)
        ]
        rows.append(_row(pair, times))
    return Comparison(rows, only_a=len(ours) - len(both), only_b=len(theirs) - len(both))


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
    said = {Label.SUPPORTED: "faster", Label.REGRESSION: "slower"}
    parts = [f"{counted[label]} {said.get(label, label.value)}" for label in Label if counted[label]]
    found = f"{b} against {a}, {total} row{'' if total == 1 else 's'}: {', '.join(parts) or 'none but the roof'}"
    roofs = Counter(row.label for row in comparison.rows if row.profile == ROOF)
    moved = roofs[Label.SUPPORTED] + roofs[Label.REGRESSION]
    if moved:
        found += f"; the roof itself changed in {moved} of {sum(roofs.values())} series, so the machine did too"
    for count, name in ((comparison.only_a, a), (comparison.only_b, b)):
        if count:
            found += f"; {count} row{' is' if count == 1 else 's are'} in {name} alone"
    return f"{found}."


def _rows(side: Side) -> dict[tuple[str, str, Timer, Cache], Record]:
    timed = [record for record in quoted(side.pooled) if (record.timer, record.cache) in JUDGED]
    return {(r.case, r.profile, r.timer, r.cache): r for r in in_order(timed, side.manifest)}


def _row(pair: tuple[Record, Record], times: Sequence[Sequence[float]]) -> Row:
    a_ms, b_ms = (metrics.geometric_mean(mine) for mine in times)
    ratio, low, high = a_ms / b_ms, None, None
    found = next((found for rule in (wrong, failed, noisy, disturbed) for side in pair if (found := rule(side))), None)
    if min(map(len, times)) >= 2:
        ratio, low, high = metrics.welch(times[0], times[1])
        found = found or verdict(low, high)
    label, code, reason = found or (
        Label.INCONCLUSIVE,
        "processes",
        f"{len(times[0])} and {len(times[1])} processes: an interval needs two or more in each run",
    )
    one = pair[0]
    return Row(
        case=one.case,
        profile=one.profile,
        timer=one.timer,
        cache=one.cache,
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
        mine, theirs = (_fact(manifest, fact) for manifest in (a, b))
        if mine != theirs:
            said.append(f"{fact} {'none' if mine is None else mine} / {'none' if theirs is None else theirs}")
    return said


def _fact(manifest: Manifest, name: str) -> object:
    if name == "quick":
        return manifest.quick
    if manifest.environment is None:
        raise SpecError(f"run {manifest.run_id!r} does not say where it took place: it cannot be compared")
    return getattr(manifest.environment, name)


def _listed(side: Side, rows: Mapping[tuple[str, str, Timer, Cache], Record]) -> str:
    cases = list(dict.fromkeys(key[0] for key in rows))
    profiles = list(dict.fromkeys(key[1] for key in rows))
    if not rows:
        return f"{side.manifest.run_id} has no timed row"
    return f"{side.manifest.run_id} has {', '.join(profiles)} at {', '.join(cases)}"
