"""What a shard's session is asked, and what it tells as it happens: alike across a call, a pipe and a cluster.

A task goes one way as a line of JSON, messages come back the other, a line each; `read` tells them apart by `kind`.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from norm_fusion.records import Conditions, Counters, Environment, Manifest, Record, Samples
from norm_fusion.runs.plan import Plan

# How often a shard's process says that it is there.
BEAT_S = 5.0

Made = tuple[Record, Samples | None]


class _Said(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Task(_Said):
    """A shard to be measured to its end.

    `earlier`: what was measured of it before it was interrupted; what of that was not measured on this very card is
    measured anew. `environment`: where the last of it was. `model`: words that the name of the card must have.
    """

    plan: Plan
    manifest: Manifest
    earlier: list[Made] = Field(default_factory=list)
    environment: Environment | None = None
    model: str | None = None


class Began(_Said):
    """Where it takes place."""

    kind: Literal["began"] = "began"
    environment: Environment
    before: Conditions


class Process(_Said):
    """A process begins: its number, from 1, of at least and at most so many; how many steps it will tell."""

    kind: Literal["process"] = "process"
    number: int
    of: tuple[int, int]
    cases: int
    attempt: int
    steps: int


class Step(_Said):
    """What is being done now."""

    kind: Literal["step"] = "step"
    case: str
    what: str


class Measured(_Said):
    """The records of one case in one process. `cut`: it was interrupted, and is to be measured again."""

    kind: Literal["measured"] = "measured"
    case: str
    attempt: int
    replicate: int
    made: list[Made]
    cut: bool = False


class Ended(_Said):
    """A process ended: how long it took, and the widest interval that is left."""

    kind: Literal["ended"] = "ended"
    number: int
    took_s: float
    widest: float | None


class Processes(_Said):
    """How many processes there were, reruns not counted."""

    kind: Literal["processes"] = "processes"
    count: int


class Counted(_Said):
    """The hardware counters of one profile of one case."""

    kind: Literal["counted"] = "counted"
    counters: Counters


class Readings(_Said):
    """Conditions beside the samples."""

    kind: Literal["readings"] = "readings"
    readings: list[Conditions]


class After(_Said):
    """Conditions at the end of a process."""

    kind: Literal["after"] = "after"
    conditions: Conditions


class Log(_Said):
    """What a worker printed."""

    kind: Literal["log"] = "log"
    text: str


class Note(_Said):
    """What went wrong with the run itself; what is `passing` is shown, and not kept."""

    kind: Literal["note"] = "note"
    text: str
    passing: bool = False


class Anew(_Said):
    """What was measured of these cases before was measured elsewhere: they begin anew."""

    kind: Literal["anew"] = "anew"
    cases: list[str]
    reason: str


class Refused(_Said):
    """The shard cannot be measured here at all."""

    kind: Literal["refused"] = "refused"
    message: str


class Blocked(_Said):
    """Nothing can be measured: there is no card for it."""

    kind: Literal["blocked"] = "blocked"
    reason: str


class Done(_Said):
    """These cases need no further process. `short`: those of them that a budget ended before their fewest."""

    kind: Literal["done"] = "done"
    cases: list[str]
    short: list[str] = Field(default_factory=list)


class Finished(_Said):
    """The last message. `interrupted`: the signal that ended it early."""

    kind: Literal["finished"] = "finished"
    interrupted: int | None = None


class Beat(_Said):
    """Still there."""

    kind: Literal["beat"] = "beat"


Message = (
    Began
    | Process
    | Step
    | Measured
    | Ended
    | Processes
    | Counted
    | Readings
    | After
    | Log
    | Note
    | Anew
    | Refused
    | Blocked
    | Done
    | Finished
    | Beat
)
_MESSAGE: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def read(line: str | bytes) -> Message:
    """A message of a line of JSON; raises ValueError where it is none."""
    return _MESSAGE.validate_json(line)
