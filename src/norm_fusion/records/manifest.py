"""What a run was asked, where it ran and how it ended."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat

from norm_fusion.records.base import SCHEMA, Stored
from norm_fusion.records.environment import Conditions, Environment


class Manifest(Stored):
    """What a run was asked, where it ran and how it ended."""

    schema_version: int = SCHEMA
    run_id: str
    title: str
    question: str
    suite: str | None = None
    command: list[str]
    cases: list[str]
    profiles: list[str]
    device: str
    quick: bool
    seed: int
    fewest: int = 1  # processes: how many at least, how many at most
    most: int = 1
    precision: FiniteFloat = 0.01  # half-width of an interval at which no further process is added
    budget_s: FiniteFloat | None = None
    processes: int = 1  # how many there were, reruns not counted
    contestants: list[str] = Field(default_factory=list)  # the user's own, module:function
    profiled: list[tuple[str, str]] = Field(default_factory=list)  # whose hardware counters: case and profile
    model: str | None = None  # of GPU that was asked for, on a cluster
    source: str | None = None  # hash of the package's files that asked
    commit: str | None = None
    dirty: bool | None = None
    started_at: str
    finished_at: str | None = None
    # partial: not all cases are done, and nothing is being measured; blocked: none, for the reason in the notes.
    state: Literal["running", "finished", "interrupted", "partial", "blocked"] = "running"
    done: list[str] = Field(default_factory=list)  # cases that need no further process
    cut: list[str] = Field(default_factory=list)  # files of records that an interruption cut short
    environment: Environment | None = None
    further: list[Environment] = Field(default_factory=list)  # of the other cards
    before: Conditions | None = None
    after: Conditions | None = None
    notes: list[str] = Field(default_factory=list)  # what went wrong with the run itself

    @property
    def environments(self) -> list[Environment]:
        """Of all cards that took part, in the order in which they began."""
        return [*([self.environment] if self.environment is not None else []), *self.further]

    def environment_of(self, fingerprint: str) -> Environment | None:
        """That of a record with this fingerprint; the first where no other has it."""
        began = fingerprint.partition(",")[0]  # "a, then b": it changed meanwhile
        return next((one for one in self.environments if one.fingerprint == began), self.environment)

    @property
    def whole(self) -> bool:
        """Does no case need a further process?"""
        return set(self.cases) <= set(self.done)
