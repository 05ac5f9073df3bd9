"""Keeps a run: what its shards tell becomes files, at once, and at the end conclusions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from norm_fusion.engine import messages as m
from norm_fusion.evidence import verdicts
from norm_fusion.evidence.cards import disagreement
from norm_fusion.records import Conclusions, Counters, Manifest, Record
from norm_fusion.runs import aside
from norm_fusion.runs.store import RunStore, now
from norm_fusion.spec import SpecError

# Told of everything that happens: on which card, and what. Records come as they were kept.
Listener = Callable[[str, m.Message], None]


@dataclass
class Outcome:
    """How a run ended."""

    records: list[Record] = field(default_factory=list)
    counters: list[Counters] = field(default_factory=list)
    conclusions: Conclusions | None = None
    manifest: Manifest | None = None
    interrupted: int | None = None  # the signal that ended it early
    kept: bool = False  # is there a folder?
    problem: str | None = None  # why it could not be kept to the end

    @property
    def exit_code(self) -> int:
        """0: all rows ok or unavailable; 1: a row is wrong or failed, a user's not there, or not all of it kept; 3: not
        all of it measured, the same run id goes on with it; 128 + signal: interrupted.
        """
        if self.interrupted is not None:
            return 128 + self.interrupted
        if (self.kept and self.problem is not None) or any(record.amiss for record in self.records):
            return 1
        return 0 if self.manifest is None or self.manifest.state == "finished" else 3


class Keeper:
    """A run's folder, its manifest, and what is in it so far."""

    def __init__(self, manifest: Manifest, create: Callable[[], RunStore], listener: Listener) -> None:
        self.manifest, self.create, self.listener = manifest, create, listener
        self.began_s, self.before_s = time.monotonic(), manifest.worked_s or 0.0
        self.store: RunStore | None = None
        self.refused: list[tuple[str, m.Refused]] = []  # where, before there was a folder
        self.outcome = Outcome()

    def take(self, where: str, message: m.Message) -> None:
        """Keep what a shard told; `where` names its card, and is empty where there is one alone."""
        match message:
            case m.Began():
                self._begin(where, message)
            case m.Measured():
                message = self._measured(where, message)
            case m.Counted():
                counters = self._stored.keep_counters(message.counters)
                self.outcome.counters.append(counters)
                told = {"case": counters.case, "profile": counters.profile, "status": counters.status}
                self.event("counted", where=where, **told)
            case m.Processes() if message.count > self.manifest.processes:
                self._update(processes=message.count)
            case m.After():
                self._update(after=message.conditions)
            case m.Readings():
                self._stored.append_conditions(message.readings)
            case m.Log():
                self._stored.append_log(message.text)
            case m.Note() if not message.passing:
                self.note(_at(where, message.text))
            case m.Anew():
                self._anew(where, message)
            case m.Refused():
                self._refused(where, message)
            case m.Blocked():
                self.open()
                self.note(message.reason)
                self.event("blocked", reason=message.reason)
            case m.Done():
                self.open()
                done, short = {*self.manifest.done, *message.cases}, {*self.manifest.short, *message.short}
                self._update(
                    done=[name for name in self.manifest.cases if name in done],
                    short=[name for name in self.manifest.cases if name in short],
                )
                self.event("done", where=where, cases=message.cases)
        self.listener(where, message)

    def note(self, text: str) -> None:
        if text not in self.manifest.notes:
            self._update(notes=[*self.manifest.notes, text])

    def event(self, what: str, **more: Any) -> None:
        """Add a line to the run's event log, once there is a folder."""
        if self.store is not None:
            self.store.append_event(what, **more)

    def open(self) -> None:
        """Make the folder, or take the one that is there."""
        if self.store is None:
            self.store = self.create()
            self.outcome.kept = True
            self.store.write_manifest(self.manifest)
            self.store.drop_conclusions()
            self.outcome.records = list(self.store.records())
            self.outcome.counters = list(self.store.counters())
            for where, refusal in self.refused:
                self._refused(where, refusal)

    def failed(self, error: OSError) -> None:
        """It cannot be kept: what is in memory is all that there will be."""
        self.outcome.problem = f"the run could not be kept to its end: {error.strerror or error}"

    def finish(self) -> None:
        """Say how it ended, and what follows from it."""
        try:
            if self.store is None:
                refused = "; ".join(_at(where, one.message) for where, one in self.refused)
                self.outcome.problem = self.outcome.problem or refused or None
                self._update(state="interrupted" if self.outcome.interrupted is not None else "blocked")
            elif self.outcome.problem is None:
                self._finish(self.store)
        except OSError as error:
            self.failed(error)
        self.outcome.manifest = self.manifest

    def _finish(self, store: RunStore) -> None:
        state = "interrupted" if self.outcome.interrupted is not None else self._state()
        for said in disagreement(self.outcome.records, self.manifest):
            self.note(said)
        self._update(state=state, finished_at=now())
        self.event(state)
        self.outcome.conclusions = verdicts.conclude(self.outcome.records, store.samples, self.manifest)
        self.outcome.conclusions = store.write_conclusions(self.outcome.conclusions)

    def _state(self) -> str:
        if self.manifest.whole and not self.manifest.uncounted(self.outcome.counters):
            return "finished"
        return "partial" if self.outcome.records else "blocked"

    @property
    def _stored(self) -> RunStore:
        assert self.store is not None, "nothing is kept before a shard began"
        return self.store

    def _begin(self, where: str, message: m.Began) -> None:
        self.open()
        found, known = message.environment, self.manifest.environments
        if not known:
            self._update(environment=found, before=message.before)
        elif found not in known:
            self._update(further=[*self.manifest.further, found])
        self.event("began", where=where, device=found.device_name, uuid=found.device_uuid, commit=found.commit)

    def _measured(self, where: str, message: m.Measured) -> m.Measured:
        """At least once: what is there already stays, and the other is logged."""
        case, attempt, replicate = message.case, message.attempt, message.replicate
        told = {"where": where, "case": case, "attempt": attempt, "process": replicate + 1}
        if self._stored.has(case, attempt, replicate):
            self.event("twice", **told)
            return message.model_copy(update={"made": []})
        kept = self._stored.keep(case, attempt, replicate, message.made)
        self.outcome.records += kept
        self.event("measured", **told, rows=len(kept), cut=message.cut)
        if message.cut and kept:
            self._update(cut=[*self.manifest.cut, self._stored.name_of(case, attempt, replicate)])
        return message.model_copy(update={"made": [(record, None) for record in kept]})

    def _anew(self, where: str, message: m.Anew) -> None:
        gone = set(aside.set_aside(self._stored, lambda record: record.case in message.cases))
        self.outcome.records = [r for r in self.outcome.records if r.key not in gone]
        said = f"{len(message.cases)} case(s) measured anew, after {message.reason}"
        self.note(f"{said}: what there was of them lies in aside/")
        self.event("anew", where=where, cases=message.cases, reason=message.reason)

    def _refused(self, where: str, message: m.Refused) -> None:
        """Here it is the user's to mend, if nothing was measured yet; elsewhere the run goes on without this shard."""
        if self.store is None and not where:
            raise SpecError(message.message)
        if self.store is None:
            self.refused.append((where, message))
            return
        self.note(_at(where, message.message))
        self.event("refused", where=where, message=message.message)

    def _update(self, **changes: Any) -> None:
        worked_s = round(self.before_s + time.monotonic() - self.began_s, 1)
        self.manifest = self.manifest.model_copy(update={"worked_s": worked_s} | changes)
        if self.store is not None:
            self.store.write_manifest(self.manifest)


def _at(where: str, text: str) -> str:
    """A sentence, after the card that it is of where there are several."""
    return f"{where}: {text}" if where else text
