"""What a run was asked, where it ran and how it ended."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Literal

from pydantic import Field, FiniteFloat

from norm_fusion.records.base import SCHEMA, Count, Stored
from norm_fusion.records.counted import Counters
from norm_fusion.records.environment import Conditions, Environment, began_at


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
    processes: Count = 1  # how many there were, reruns not counted
    contestants: list[str] = Field(default_factory=list)  # the user's own, module:function
    profiled: list[tuple[str, str]] = Field(default_factory=list)  # whose hardware counters: case and profile
    model: str | None = None  # of GPU that was asked for, on a cluster
    source: str | None = None  # hash of the package's files that asked
    commit: str | None = None
    dirty: bool | None = None
    started_at: str
    finished_at: str | None = None
    worked_s: FiniteFloat | None = None  # until it was written last, in all that went on with it; not what lies between
    # partial: not all cases are done, and nothing is being measured; blocked: none, for the reason in the notes.
    state: Literal["running", "finished", "interrupted", "partial", "blocked"] = "running"
    done: list[str] = Field(default_factory=list)  # cases that need no further process
    short: list[str] = Field(default_factory=list)  # those of them that the budget ended in fewer than `fewest`
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
        began = began_at(fingerprint)
        return next((one for one in self.environments if one.fingerprint == began), self.environment)

    def alike(self, told: Callable[[Environment], str]) -> list[str]:
        """What is told of its cards, each text once, after how many cards it is of: "2 x NVIDIA H200"."""
        cards: dict[str, set[str | None]] = {}
        for one in self.environments:
            cards.setdefault(told(one), set()).add(one.device_uuid)
        return [f"{len(those)} x {text}" if len(those) > 1 else text for text, those in cards.items()]

    def uncounted(self, counters: Iterable[Counters]) -> tuple[tuple[str, str], ...]:
        """The cells whose counters are to be read, and are not among these."""
        there = {(one.case, one.profile) for one in counters}
        return tuple(cell for cell in self.profiled if cell not in there)

    @property
    def took_s(self) -> float | None:
        """How long it was worked on, in seconds; of runs that did not write that down, from first to last."""
        if self.worked_s is not None or self.finished_at is None:
            return self.worked_s
        try:
            return (datetime.fromisoformat(self.finished_at) - datetime.fromisoformat(self.started_at)).total_seconds()
        except (ValueError, TypeError):
            return None

    @property
    def whole(self) -> bool:
        """Does no case need a further process?"""
        return set(self.cases) <= set(self.done)
