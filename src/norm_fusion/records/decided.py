"""What a rule makes of a decision: a status, from the calls and figures that its claims rest on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum

from pydantic import Field, FiniteFloat

from norm_fusion.records.base import SCHEMA, Stored


class Standing(StrEnum):
    """What one row of the evidence says of a claim."""

    HOLDS = "holds"  # by its call: an interval, past the gates of noise and of the control
    SHOWN = "shown"  # by a figure that no rule calls: a counter, a rate, an example that no gate lets pass
    OPEN = "undecided"  # inconclusive, too noisy, over an invalid baseline, or not collected
    FAILS = "does not hold"  # the interval or the figure is on the other side, or what is claimed of is wrong or failed


class DecisionStatus(StrEnum):
    """Of a decision."""

    SUPPORTED = "Supported"
    MEASURED = "Measured"
    CAVEATED = "Caveated"
    REJECTED = "Rejected"


class Otherwise(Stored):
    """What else there is to a row: an older run that passes the same gates, or another series of the same run."""

    run: str
    value: FiniteFloat | None = None
    label: str | None = None
    standing: Standing


class DecidedRow(Stored):
    """One case on one model of GPU, as a claim's evidence."""

    case: str
    gpu: str
    run: str  # the run that was selected; of an example its name
    profile: str
    baseline: str | None = None  # what it really was, where the claim says "fastest" or "torch-baseline"
    value: FiniteFloat | None = None
    low: FiniteFloat | None = None  # 95% interval
    high: FiniteFloat | None = None
    label: str | None = None  # the call's
    processes: int = 0
    standing: Standing
    reason: str
    others: list[Otherwise] = Field(default_factory=list)
    alone: Otherwise | None = None  # by the kernels' own time, where that stands otherwise than in a CUDA graph

    @property
    def disputed(self) -> list[Otherwise]:
        """Those of the others that decide it, and not as it stands."""
        deciding = (Standing.HOLDS, Standing.SHOWN, Standing.FAILS)
        return [one for one in self.others if one.standing in deciding and one.standing is not self.standing]


def tally(rows: Sequence[DecidedRow]) -> str:
    """`holds in 3 of 5 rows, is undecided in 1, does not hold in 1`."""
    words = {Standing.SHOWN: "is shown", Standing.OPEN: "is undecided", Standing.FAILS: "does not hold"}
    counted = Counter(row.standing for row in rows)
    others = "".join(f", {said} in {counted[one]}" for one, said in words.items() if counted[one])
    return f"holds in {counted[Standing.HOLDS]} of {len(rows)} row{'' if len(rows) == 1 else 's'}{others}"


class DecidedClaim(Stored):
    """A claim with its rows."""

    name: str
    says: str
    boundary: bool  # where the decision ends: it does not rest on this
    metric: str
    series: str
    baseline: str = ""  # as it is claimed: "fastest", "torch-baseline", a profile; empty of what has none
    threshold: FiniteFloat
    at_most: bool = False
    rows: list[DecidedRow]

    def count(self, *standings: Standing) -> int:
        """Rows that stand so."""
        return sum(row.standing in standings for row in self.rows)


class Decided(Stored):
    """A decision, its computed status, and what that follows from."""

    name: str
    title: str
    domain: str
    statement: str
    owner: str
    status: DecisionStatus
    why: str
    claims: list[DecidedClaim]
    software: dict[str, list[str]] = Field(default_factory=dict)  # gpu, driver, torch, triton: of the evidence
    oldest: str | None = None  # when the evidence was measured, ISO 8601
    latest: str | None = None
    unheard: list[str] = Field(default_factory=list)  # cases of its claims that no run may speak for, and why

    def rows(self, boundary: bool) -> list[DecidedRow]:
        """Those of the claims that it rests on, or of its boundary."""
        return [row for claim in self.claims if claim.boundary is boundary for row in claim.rows]


class Ledger(Stored):
    """All decisions as they were last decided, and by which versions of the rules."""

    schema_version: int = SCHEMA
    deciding: int
    selection: int
    rule: int  # of calls
    decisions: list[Decided]
