"""What a rule makes of records."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from norm_fusion.records.base import SCHEMA, Cache, Count, Positive, Stored, Timer
from norm_fusion.records.timed import Record


class Label(StrEnum):
    """What a rule says of a claim."""

    SUPPORTED = "supported"
    REGRESSION = "regression"
    NO_DIFFERENCE = "no difference"
    INCONCLUSIVE = "inconclusive"
    RERUN_NOISE = "rerun noise"
    INVALID = "invalid"


class Call(Stored):
    """The label of one claim: `profile` is faster than `baseline` on `case`, in one series."""

    case: str
    profile: str
    baseline: str
    timer: Timer
    cache: Cache
    label: Label
    code: str  # why, as one word that does not change
    reason: str  # why, as a sentence
    rule: int  # the version of the rule
    attempt: Count = 0  # which attempt it was judged from
    processes: Count = 0
    speedup: Positive | None = None
    low: Positive | None = None  # 95% interval of the speedup
    high: Positive | None = None
    ratios: list[Positive] = Field(default_factory=list)  # the speedup in each process
    earlier: list[Call] = Field(default_factory=list)  # the attempts before: all are kept

    @property
    def claim(self) -> tuple[str, str, str, Timer, Cache]:
        """What it is the label of."""
        return self.case, self.profile, self.baseline, self.timer, self.cache


class Conclusions(Stored):
    """What a rule made of a run's records. Derived: it can be made again from records and samples at any time."""

    schema_version: int = SCHEMA
    rule: int
    pooled: list[Record]
    calls: list[Call]
    digest: str | None = None  # of all above and of the files of records: what either was edited since is not believed
