"""Speedups as they may be quoted: with interval, call and reason, or with why there is none. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from norm_fusion import metrics
from norm_fusion.evidence.claims import widest
from norm_fusion.records import Call, Label, Status
from norm_fusion.report.rows import RATIO, Row, Series, baseline_of, cases, give_or_take, span, times
from norm_fusion.spec import CONTROL, ROOF


@dataclass(frozen=True)
class Quote:
    """How many times faster a row is than another one of its case, in one series.

    Without a call (a run of one process) there is a speedup alone; an invalid one has no speedup that may be quoted.
    """

    row: Row
    baseline: str
    series: Series
    speedup: float | None
    interval: tuple[float, float] | None = None
    call: Call | None = None

    @property
    def label(self) -> Label | None:
        return None if self.call is None else self.call.label

    @property
    def key(self) -> str:
        """Of the record that it is quoted from; empty where that is not kept."""
        return self.row.series[self.series].key if self.series in self.row.series else ""

    @property
    def words(self) -> str:
        """`1.34x [1.33, 1.35]`, as a sentence has it."""
        if self.speedup is None:
            return "no speedup"
        return times(self.speedup) if self.interval is None else f"{times(self.speedup)} {span(*self.interval)}"

    @property
    def width(self) -> str:
        """`±0.4%`, or nothing where one process measured."""
        return "" if self.interval is None or self.speedup is None else give_or_take(*self.interval)

    @property
    def ratios(self) -> Sequence[float]:
        """The speedup in each process; none of what is invalid."""
        return [] if self.call is None or self.speedup is None else self.call.ratios


def quote(row: Row, baseline: str, series: Series | None = None) -> Quote | None:
    """The speedup of a row over a profile, in one series, else in the one that is quoted; None where no claim is."""
    for one in [series] if series else RATIO:
        call, record = row.call(baseline, one), row.series.get(one)
        if call is not None:
            said = None if call.label is Label.INVALID else call.speedup
            ends = None if said is None or call.low is None or call.high is None else (call.low, call.high)
            return Quote(row, baseline, one, said, ends, call)
        if record is not None and row.status is Status.OK and baseline in record.speedup:
            return Quote(row, baseline, one, record.speedup[baseline], record.interval.get(baseline))
    return None


def claims(group: Sequence[Row], everyone: bool = False) -> list[tuple[Row, list[Quote]]]:
    """What a case's rows claim, in the series that is quoted: those that an answer rests on, and the control.

    Who is not PyTorch over every PyTorch; where nobody else was timed, or `everyone` is wanted, every PyTorch over the
    baseline too.
    """
    found = [(row, mine) for row in group if row.profile != ROOF and (mine := _over_others(row, group))]
    others = [(row, mine) for row, mine in found if not row.profile.startswith("torch-")]
    ours = [row for row, mine in others if row.profile != CONTROL and any(one.speedup is not None for one in mine)]
    return others if ours and not everyone else found


def _over_others(row: Row, group: Sequence[Row]) -> list[Quote]:
    """A PyTorch is compared with what torch-baseline names alone, the control with what it is a second time."""
    made = [quote(row, other.profile) for other in group if other.contestant and other.profile != row.profile]
    called = {call.baseline for call in row.calls}
    if row.profile.startswith("torch-") and not called:
        called = {baseline_of(row.any.op) or ""}
    return [one for one in made if one is not None and (not called or one.baseline in called)]


@dataclass(frozen=True)
class Overall:
    """The geometric mean of the speedups of some cases, with its interval where there is one, and how they were called.

    The interval is Student's, of the geometric means of each process (protocol step 12): a process that is slow in one
    case may be so in all. Of cases of unequal numbers of processes the first ones count that all of them have.
    """

    quotes: Sequence[Quote]  # those with a speedup
    invalid: int

    @property
    def speedup(self) -> float:
        return metrics.geometric_mean([one.speedup for one in self.quotes if one.speedup is not None])

    @property
    def interval(self) -> tuple[float, float] | None:
        if len(self.quotes) == 1:
            return self.quotes[0].interval
        shared = min((len(one.ratios) for one in self.quotes), default=0)
        if shared < 2:
            return None
        means = [metrics.geometric_mean([one.ratios[k] for one in self.quotes]) for k in range(shared)]
        low, high = metrics.interval(means)
        shift = self.speedup / math.sqrt(low * high)  # about the mean of all processes
        return low * shift, high * shift

    @property
    def worst(self) -> Quote:
        return min(self.quotes, key=lambda one: one.speedup or 0.0)

    @property
    def words(self) -> str:
        """`12.8x [12.7, 12.8]`; without the interval, which promises too much, where a part of it is noise."""
        if any(one.label is Label.RERUN_NOISE for one in self.quotes):
            return f"about {times(self.speedup)}"
        ends = self.interval
        return times(self.speedup) if ends is None else f"{times(self.speedup)} {span(*ends)}"

    @property
    def called(self) -> str:
        """`supported`, or of several cases `supported in 2 of 3 cases, inconclusive in 1`; empty without calls."""
        counted = Counter(one.label for one in self.quotes if one.label is not None)
        if self.invalid:
            counted[Label.INVALID] += self.invalid
        total = sum(counted.values())
        found = [label for label in Label if counted[label]]
        if total < 2:
            return "".join(label.value for label in found)
        first, *rest = (f"{label.value} in {counted[label]}" for label in found)
        return ", ".join([f"{first} of {total} cases", *rest])


def overall(quotes: Iterable[Quote | None]) -> Overall | None:
    """Those of a comparison over several cases made one; None where no case has a speedup."""
    there = [one for one in quotes if one is not None]
    sound = [one for one in there if one.speedup is not None]
    return Overall(sound, len(there) - len(sound)) if sound else None


def precision(rows: Sequence[Row]) -> float | None:
    """The widest half-width among the claims that a run stops by (0.01 is 1%); None without intervals."""
    found = [
        width
        for case, group in cases(rows).items()
        if (width := widest([record for row in group for record in row.series.values()], case)) is not None
    ]
    return max(found, default=None)
