"""Runs a plan in processes of their own and keeps what they measure as it arrives.

The process that measures is never the process that judges: it sends raw samples, figures are derived here. K of them
measure the whole shard, each fresh and in an order of its own; more are added until the intervals are narrow enough,
and what was noisy is run again. One that dies or hangs costs the contestant that it was on, or the case where that is
not known.

processes.py  the processes themselves: one measures, one judges rows
host.py       a worker's conversation, its clock seen from outside, its end
absent.py     contestants that a run goes on without
monitor.py    clocks, heat, power and company beside the samples
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from norm_fusion import backends
from norm_fusion.engine.absent import Absent, failures
from norm_fusion.engine.host import Fate, Host
from norm_fusion.engine.monitor import Monitor, events
from norm_fusion.engine.processes import Verifier, Worker
from norm_fusion.evidence import verdicts
from norm_fusion.evidence.pool import ENOUGH, pool
from norm_fusion.records import Conclusions, Conditions, Environment, Manifest, Measurement, Record, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.runs.store import RunStore, now
from norm_fusion.spec import FEWEST, MOST, PRECISION, RERUNS, Case, Shard, SpecError

# One that waits for its turn imports PyTorch beside the one that measures: where there are processors to spare.
STANDBY_CPUS = 4


class Listener(Protocol):
    """Who watches a run."""

    def started(self, environment: Environment) -> None: ...
    def process(self, number: int, of: tuple[int, int], cases: int, attempt: int, steps: int) -> None: ...
    def step(self, case: str, what: str) -> None: ...
    def measured(self, records: Sequence[Record]) -> None: ...
    def ended(self, number: int, took_s: float, widest: float | None) -> None: ...


@dataclass(frozen=True)
class Plan:
    """How many processes measure a shard, and for how long."""

    shard: Shard
    fewest: int = FEWEST
    most: int = MOST
    precision: float = PRECISION  # half-width of the interval at which a case needs no further process
    budget_s: float | None = None  # no process is started that would end after it
    timeout_s: float = 300.0  # a worker that says nothing for so long is given up
    reruns: int = RERUNS


@dataclass
class Outcome:
    """How a run ended."""

    records: list[Record] = field(default_factory=list)
    conclusions: Conclusions | None = None
    manifest: Manifest | None = None
    interrupted: int | None = None  # the signal that ended it early
    kept: bool = False  # is there a folder?
    problem: str | None = None  # why it could not be kept to the end

    @property
    def exit_code(self) -> int:
        """0: all rows ok or unavailable; 1: a row is wrong or failed, a user's not there, or not all of it kept; 128 +
        signal: interrupted.
        """
        if self.interrupted is not None:
            return 128 + self.interrupted
        return int(self.problem is not None or any(_bad(record) for record in self.records))


def _bad(record: Record) -> bool:
    absent = record.status is Status.UNAVAILABLE and backends.is_users(record.profile)
    return record.status.bad or absent


def run(plan: Plan, manifest: Manifest, create: Callable[[], RunStore], listener: Listener) -> Outcome:
    """Measure a plan here. `create` makes the run's folder, once a worker has accepted the shard.

    Raises:
        SpecError: the worker cannot run the shard on this machine; nothing was kept.
    """
    session = _Session(plan, manifest, create, listener)
    with _signals_to(session):
        session.measure()
    return session.outcome


class _Session:
    """One run in progress: the store, the worker at work, and the cases still to do."""

    def __init__(self, plan: Plan, manifest: Manifest, create: Callable[[], RunStore], listener: Listener) -> None:
        self.plan, self.manifest, self.create, self.listener = plan, manifest, create, listener
        self.device = plan.shard.device
        self.store: RunStore | None = None
        self.outcome = Outcome()
        self.host: Host | None = None
        self.standby: Worker | None = None  # the next one
        self.verifier = Verifier()
        self.monitor: Monitor | None = None
        self.held = ExitStack()  # what must not outlive the run
        self.held.callback(self.verifier.close)
        self.absent = Absent()
        self.fingerprint = ""
        self.began_s = time.monotonic()
        self.longest_s = 0.0  # of a process, per case

    def measure(self) -> None:
        try:
            self.verifier.start()
            cases = self.plan.shard.cases
            self._attempt(0, cases)
            for attempt in range(1, self.plan.reruns + 1):
                noisy = self._noisy()
                cases = tuple(case for case in cases if case.name in noisy)
                if not cases:
                    break
                if not self._may_go_on(len(cases) * self.plan.fewest):
                    noisy_ones = "1 noisy case was" if len(cases) == 1 else f"{len(cases)} noisy cases were"
                    said = f"{noisy_ones} not run again: the budget of {self.plan.budget_s:g} s has no room for it"
                    self._note(f"{said}, --budget raises it")
                    break
                self._attempt(attempt, cases)
            self._finish()
        except OSError as error:  # a full disk, say: what is in memory is still shown
            self.outcome.problem = f"the run could not be kept to its end: {error.strerror or error}"
        finally:
            self.close()
        self.outcome.manifest = self.manifest

    def stop(self, number: int) -> None:
        """First signal: end after the current round and keep what is there. Second: at once."""
        again, self.outcome.interrupted = self.outcome.interrupted is not None, number
        if self.host is not None:
            self.host.stop(at_once=again)

    def close(self) -> None:
        """Leave no process behind."""
        self._dismiss()
        self.held.close()

    def _dismiss(self) -> None:
        """End the process that stands by, if there is one."""
        if self.standby is not None:
            self.standby.kill()
            self.standby.end()
            self.standby = None

    def _attempt(self, attempt: int, cases: tuple[Case, ...]) -> None:
        """Processes over these cases, at least `fewest`; then over those whose intervals are still too wide."""
        remaining = cases
        if attempt:
            self.absent.tell_again(cases)
        widths: dict[Case, float | None] = {}
        for number in range(self.plan.most):
            if self.outcome.interrupted is not None:
                return
            if number >= max(2, self.plan.fewest):  # one process has no width
                # Their width alone decides, never what they say.
                remaining = tuple(case for case in remaining if (widths[case] or 0) > self.plan.precision)
            if not remaining:
                return
            if number > 0 and not self._may_go_on(len(remaining)):
                self._spent(number, attempt)
                return
            began = time.monotonic()
            self._process(number, attempt, remaining)
            if self.store is None:
                return  # interrupted before it began
            took = time.monotonic() - began
            self.longest_s = max(self.longest_s, took / len(remaining))
            if attempt == 0:
                self._update(processes=number + 1)
            if self.outcome.interrupted is not None:
                return
            widths = {case: self._widest(case, attempt) for case in remaining}
            self.listener.ended(number, took, max((w for w in widths.values() if w is not None), default=None))

    def _may_go_on(self, case_processes: int) -> bool:
        """Is there time for so many cases x processes, as long as the slowest took so far?"""
        if self.plan.budget_s is None:
            return True
        return time.monotonic() - self.began_s + case_processes * self.longest_s <= self.plan.budget_s

    def _spent(self, number: int, attempt: int) -> None:
        """Say that time, not precision, ended it."""
        asked = f" of at least {self.plan.fewest}" if number < self.plan.fewest else ""
        during = f" of rerun {attempt}" if attempt else ""
        said = f"the budget of {self.plan.budget_s:g} s was spent after {number}{asked} processes{during}"
        self._note(f"{said}: --budget raises it, fewer cases need less")

    def _process(self, number: int, attempt: int, cases: tuple[Case, ...]) -> None:
        """One replicate: a fresh worker over the cases; each that dies is followed by one for the cases left."""
        # Fresh inputs and a fresh order in each process, all of them from the run's one seed.
        seed = random.Random(f"{self.plan.shard.seed} {attempt} {number}").randrange(2**31)
        remaining = list(cases)
        while remaining and self.outcome.interrupted is None:
            shard = replace(
                self.plan.shard,
                cases=tuple(remaining),
                device=self.device,
                replicate=number,
                attempt=attempt,
                seed=seed,
                skip=self.absent.skip,
            )
            fate = self._host(shard)
            done = {r.case for r in self.outcome.records if (r.replicate, r.attempt) == (number, attempt)}
            remaining = [case for case in remaining if case.name not in done]
            if not remaining or self.outcome.interrupted is not None:
                return
            if fate.well and shard.skip != self.absent.skip:
                continue  # cases whose clock a contestant had tampered with, now without it
            if fate.well:
                fate = replace(fate, reason="ended without a word", case=None)
            if fate.refusal is not None and self.store is None:
                raise SpecError(fate.refusal)
            if self.store is None:
                log = fate.log.strip()[-2000:]
                raise SpecError(f"the measuring process {fate.reason} before it could say where it runs:\n{log}")
            self._lose(fate, remaining, shard)

    def _host(self, shard: Shard) -> Fate:
        """Run one worker to its end."""

        def take(event: dict[str, Any]) -> None:
            self._take(event, shard)

        if self.standby is not None and self.standby.gone:
            self._dismiss()  # it ran nobody's code: nobody is to blame
        self.host = Host(shard, self.verifier, take, self.plan.timeout_s, self._quiet, self.standby)
        self.standby = None
        if self.outcome.interrupted is not None:
            self.host.stop(at_once=False)  # asked for meanwhile
        fate = self.host.run()
        if self.store is not None:
            self.store.append_log(fate.log)
            self._keep_conditions()
        return fate

    def _take(self, event: dict[str, Any], shard: Shard) -> None:
        match event["event"]:
            case "environment":
                self._begin(Environment.model_validate(event["environment"]), event, shard)
            case "progress":
                self._have_one_ready(shard)
                self.listener.step(event["case"], event["what"])
            case "case":
                after = Environment.model_validate(event["environment"]).fingerprint
                # Two of them in one record are never those of another: the judge sees that something changed.
                fingerprint = self.fingerprint if after == self.fingerprint else f"{self.fingerprint}, then {after}"
                liars = self.absent.liars(event["case"], event["measurements"])
                self.absent.leave_out(liars)
                if not liars:
                    self._keep(event["case"], event["measurements"], shard, fingerprint)
            case "done":
                self._update(after=Conditions.model_validate(event["conditions"]))

    def _have_one_ready(self, shard: Shard) -> None:
        """Start the next worker while this one prepares: importing what compiles takes up to ten seconds."""
        wanted = self.device != "cpu" and shard.replicate + 1 < self.plan.fewest and self.outcome.interrupted is None
        if wanted and self.standby is None and len(os.sched_getaffinity(0)) >= STANDBY_CPUS:
            self.standby = Worker(standby=True)

    def _quiet(self) -> None:
        """The clocks of the host run next: who waits for its turn shall be waiting."""
        if self.standby is not None:
            self.standby.ready()

    def _begin(self, environment: Environment, event: dict[str, Any], shard: Shard) -> None:
        """The first worker says where the run takes place; what is different for a successor is kept as a note."""
        self.fingerprint = environment.fingerprint
        if self.store is None:
            self.store = self.create()
            self.outcome.kept = True
            self.device = "cpu" if environment.device == "cpu" else f"cuda:{environment.device_index}"
            self._update(environment=environment, before=Conditions.model_validate(event["conditions"]))
            self.monitor = self.held.enter_context(Monitor(environment, self._pids))
            self.listener.started(environment)
        elif self.manifest.environment is not None and environment != self.manifest.environment:
            was, now_ = self.manifest.environment.model_dump(), environment.model_dump()
            odd = ", ".join(f"{key} was {was[key]}, is {now_[key]}" for key in was if was[key] != now_[key])
            note = f"process {shard.replicate + 1} found another environment than the first: {odd}"
            if note not in self.manifest.notes:
                self._note(note)
        of = (self.plan.fewest, self.plan.most)
        self.listener.process(shard.replicate + 1, of, len(shard.cases), shard.attempt, event["total"])

    def _pids(self) -> set[int]:
        worker = self.host.worker if self.host is not None else None
        return {os.getpid()} | ({worker.pid} if worker is not None else set())

    def _keep(self, case: Case, measurements: list[Measurement], shard: Shard, fingerprint: str) -> None:
        assert self.store is not None
        assert self.manifest.environment is not None
        readings = list(self.monitor.readings) if self.monitor is not None else []
        happened = [
            m.model_copy(
                update={"series": [s.model_copy(update={"events": s.events + events(s, readings)}) for s in m.series]}
            )
            for m in measurements
        ]
        happened += self.absent.told(case, {m.profile for m in happened})
        derived = records_of(
            case,
            happened,
            run_id=shard.run_id,
            fingerprint=fingerprint,
            replicate=shard.replicate,
            attempt=shard.attempt,
        )
        kept = self.store.keep(case.name, shard.attempt, shard.replicate, derived)
        self.outcome.records += kept
        self.listener.measured(kept)

    def _keep_conditions(self) -> None:
        if self.monitor is not None and self.store is not None:
            readings, self.monitor.readings = self.monitor.readings, []
            self.store.append_conditions(readings)

    def _lose(self, fate: Fate, remaining: list[Case], shard: Shard) -> None:
        """A worker died: whoever is blamed is left out from now on; where it is not known, the case is given up."""
        # Between two cases nobody is to blame: the next one is given up all the same, so that this ends.
        lost = next((case for case in remaining if case.name == fate.case), remaining[0])
        names = [name for name in shard.profiles if backends.serves(name, lost.op, lost.pass_)]
        losses = self.absent.blamed(fate, lost, names, self.device)
        if losses:
            self.absent.leave_out(losses)
            if set(names) - self.absent.of(lost):
                return
            names = []  # none is left: what is known of them is kept below
        remaining.remove(lost)
        self._keep(lost, failures(fate, lost, names, names, self.device), shard, self.fingerprint)

    def _noisy(self) -> list[str]:
        """The cases to run again."""
        if self.outcome.interrupted is not None or self.plan.most < ENOUGH:
            return []  # of so few there is no call that a rerun could mend
        return verdicts.needs_rerun(self._conclude().calls)

    def _widest(self, case: Case, attempt: int) -> float | None:
        assert self.store is not None
        assert self.manifest.environment is not None
        mine = [r for r in self.outcome.records if r.case == case.name and r.attempt == attempt]
        return verdicts.widest(pool(mine, self.store.samples, self.manifest.environment), case.name)

    def _conclude(self) -> Conclusions:
        assert self.store is not None
        return verdicts.conclude(self.outcome.records, self.store.samples, self.manifest)

    def _finish(self) -> None:
        for case in [case for case in self.plan.shard.cases if case.name in self.absent.untold]:
            assert self.host is not None
            self._keep(case, [], self.host.shard, self.fingerprint)  # of the process that was interrupted
        state = "interrupted" if self.outcome.interrupted is not None else "finished"
        self._update(state=state, finished_at=now())
        if self.store is not None:
            self.outcome.conclusions = self._conclude()  # to be shown even where it cannot be stored
            self.outcome.conclusions = self.store.write_conclusions(self.outcome.conclusions)

    def _note(self, text: str) -> None:
        self._update(notes=[*self.manifest.notes, text])

    def _update(self, **changes: Any) -> None:
        self.manifest = self.manifest.model_copy(update=changes)
        if self.store is not None:
            self.store.write_manifest(self.manifest)


@contextmanager
def _signals_to(session: _Session) -> Iterator[None]:
    """Ctrl-C and SIGTERM stop the session instead of this process, while it lasts."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda received, frame: session.stop(received))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        session.close()
