"""One shard on one card of this machine, measured to its end; what is found is told, not kept.

The process that measures is never the process that judges: it sends raw samples, figures are derived here. K of them
measure the whole shard, each fresh and in an order of its own; more are added until the intervals are narrow enough,
and what was noisy is run again. One that dies or hangs costs the contestant that it was on, or the case where that is
not known.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import Any

from norm_fusion import backends
from norm_fusion.engine import messages as m
from norm_fusion.engine import processes, suitable
from norm_fusion.engine.absent import Absent, failures
from norm_fusion.engine.host import Fate, Host
from norm_fusion.engine.monitor import Monitor, events
from norm_fusion.evidence import verdicts
from norm_fusion.evidence.pool import ENOUGH, pool
from norm_fusion.records import Conclusions, Conditions, Environment, Measurement, Record, Samples
from norm_fusion.runs.derive import records_of
from norm_fusion.runs.plan import SPENT
from norm_fusion.spec import Case, Shard

# One that waits for its turn imports PyTorch beside the one that measures: where there are processors to spare.
STANDBY_CPUS = 4

Tell = Callable[[m.Message], None]


class _Stopped(Exception):
    """A signal came while counters were read."""


class Session:
    """A shard in progress: the worker at work, the cases still to do, what was found so far.

    `worker`: the first one, where it was started already.
    """

    def __init__(self, task: m.Task, tell: Tell, worker: processes.Worker | None = None) -> None:
        self.task, self.plan, self.tell = task, task.plan, tell
        self.device = task.plan.shard.device
        self.interrupted: int | None = None  # the signal that ended it early
        self.refused = False
        self.environment: Environment | None = None
        self.host: Host | None = None
        self.standby = worker  # the next one
        self.verifier = processes.Verifier()
        self.monitor: Monitor | None = None
        self.held = ExitStack()  # what must not outlive it
        self.held.callback(self.verifier.close)
        self.began_s = time.monotonic()
        self.longest_s = 0.0  # of a process, per case
        self.short: list[str] = []  # cases that the budget ended before they had their fewest processes
        self._start_from(task.earlier)

    def _start_from(self, earlier: list[m.Made]) -> None:
        self.records: list[Record] = [record for record, _ in earlier]
        self._samples: dict[str, Samples] = {record.key: taken for record, taken in earlier if taken is not None}
        self.absent = Absent()
        self.absent.remember(self.records)

    def measure(self) -> None:
        """Measure the shard to its end, or until it is stopped; leaves no process behind."""
        try:
            self.verifier.start()
            try:
                self._attempts()
            except suitable.Unsuitable as odd:
                self.tell(m.Refused(message=str(odd)))
                self.refused = True
            except suitable.Elsewhere as elsewhere:
                self.tell(m.Anew(cases=elsewhere.cases, reason=str(elsewhere)))
                kept = [record for record in self.records if record.case not in elsewhere.cases]
                self._start_from([(record, self._samples.get(record.key)) for record in kept])
                self._attempts()
            for case in [case for case in self.plan.cases if case.name in self.absent.untold]:
                assert self.host is not None
                self._keep(case, [], self.host.shard, self._fingerprint)  # of the process that was interrupted
            if self.interrupted is None and self._where is not None and not self.refused:
                self.tell(m.Done(cases=[case.name for case in self.plan.cases], short=self.short))
                self._profile()
        finally:
            self.close()
        self.tell(m.Finished(interrupted=self.interrupted))

    def stop(self, number: int) -> None:
        """First signal: end after the current round and keep what is there. Second: at once."""
        again, self.interrupted = self.interrupted is not None, number
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

    @property
    def _where(self) -> Environment | None:
        """Where this takes place, or took place before it was interrupted."""
        return self.environment or self.task.environment

    @property
    def _fingerprint(self) -> str:
        return self._where.fingerprint if self._where is not None else ""

    def _attempts(self) -> None:
        """All cases; then those that were noisy once more."""
        cases = self.plan.cases
        self._attempt(0, cases)
        for attempt in range(1, self.plan.reruns + 1):
            noisy = self._noisy(attempt)
            cases = tuple(case for case in cases if case.name in noisy)
            if not cases or self.refused:
                break
            if not self._may_go_on(len(cases) * self.plan.fewest):
                noisy_ones = "1 noisy case was" if len(cases) == 1 else f"{len(cases)} noisy cases were"
                said = f"{noisy_ones} not run again: the budget of {self.plan.budget_s:g} s has no room for it"
                self._note(f"{said}, --budget raises it")
                break
            self._attempt(attempt, cases)

    def _attempt(self, attempt: int, cases: tuple[Case, ...]) -> None:
        """Processes over these cases, at least `fewest`; then over those whose intervals are still too wide."""
        remaining = cases
        if attempt:
            begun = {record.case for record in self.records if record.attempt == attempt}
            self.absent.tell_again(case for case in cases if case.name not in begun)
        widths: dict[Case, float | None] = {}
        for number in range(self.plan.most):
            if self.interrupted is not None:
                return
            if number >= max(2, self.plan.fewest):  # one process has no width
                # Their width alone decides, never what they say.
                remaining = tuple(case for case in remaining if (widths[case] or 0) > self.plan.precision)
            if not remaining:
                return
            if self._left(remaining, number, attempt):
                if number > 0 and not self._may_go_on(len(remaining)):
                    self._spent(number, attempt, remaining)
                    return
                if not self._whole_process(number, attempt, remaining):
                    return
            widths = {case: self._widest(case, attempt) for case in remaining}
            if attempt == 0:
                self.tell(m.Processes(count=number + 1))

    def _whole_process(self, number: int, attempt: int, cases: tuple[Case, ...]) -> bool:
        """One replicate; False where that is the end."""
        began = time.monotonic()
        self._process(number, attempt, cases)
        if self.environment is None:
            return False  # it was refused, or interrupted before it began
        took = time.monotonic() - began
        self.longest_s = max(self.longest_s, took / len(cases))
        if self.interrupted is not None:
            if any((r.replicate, r.attempt) == (number, 0) for r in self.records):
                self.tell(m.Processes(count=number + 1))
            return False
        widths = [width for case in cases if (width := self._widest(case, attempt)) is not None]
        self.tell(m.Ended(number=number, took_s=took, widest=max(widths, default=None)))
        if (number, attempt) == (0, 0):
            self._foresee((self.plan.fewest - 1) * len(cases))
        return True

    def _foresee(self, lacking: int) -> None:
        """Say, as soon as it shows, that the budget ends before the fewest processes that were asked for."""
        if self._may_go_on(lacking):
            return
        said = f"{self.plan.fewest} processes need about {self._needed_s(lacking):.0f} s, more than the budget of "
        said += f"{self.plan.budget_s:g} s: once it is spent, the same command with its --run-id goes on"
        self.tell(m.Note(text=said, passing=True))

    def _left(self, cases: tuple[Case, ...], number: int, attempt: int) -> list[Case]:
        """Which of them have no records of this process yet."""
        done = {r.case for r in self.records if (r.replicate, r.attempt) == (number, attempt)}
        return [case for case in cases if case.name not in done]

    def _may_go_on(self, case_processes: int) -> bool:
        """Is there time for so many more cases x processes?"""
        return self.plan.budget_s is None or self._needed_s(case_processes) <= self.plan.budget_s

    def _needed_s(self, case_processes: int) -> float:
        """What it takes with so many more cases x processes, as long as the slowest took so far."""
        return time.monotonic() - self.began_s + case_processes * self.longest_s

    def _spent(self, number: int, attempt: int, cases: tuple[Case, ...]) -> None:
        """Say that time, not precision, ended it."""
        asked = f" of at least {self.plan.fewest}" if number < self.plan.fewest else ""
        during = f" of rerun {attempt}" if attempt else ""
        if asked and not attempt:
            self.short = [case.name for case in cases]
        said = f"the budget of {self.plan.budget_s:g} s {SPENT} {number}{asked} processes{during}"
        self._note(f"{said}: --budget raises it, fewer cases need less")

    def _process(self, number: int, attempt: int, cases: tuple[Case, ...]) -> None:
        """One replicate: a fresh worker over the cases; each that dies is followed by one for the cases left."""
        # Fresh inputs and a fresh order in each process, all of them from the run's one seed.
        seed = random.Random(f"{self.plan.shard.seed} {attempt} {number}").randrange(2**31)
        remaining = self._left(cases, number, attempt)
        while remaining and self.interrupted is None:
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
            remaining = self._left(tuple(remaining), number, attempt)
            if not remaining or self.interrupted is not None:
                return
            if fate.well and shard.skip != self.absent.skip:
                continue  # cases whose clock a contestant had tampered with, now without it
            if fate.well:
                fate = replace(fate, reason="ended without a word", case=None)
            if self.environment is None:
                log = fate.log.strip()[-2000:]
                died = f"the measuring process {fate.reason} before it could say where it runs:\n{log}"
                self.tell(m.Refused(message=fate.refusal or died))
                self.refused = True
                return
            self._lose(fate, remaining, shard)

    def _host(self, shard: Shard) -> Fate:
        """Run one worker to its end."""

        def take(event: dict[str, Any]) -> None:
            self._take(event, shard)

        if self.standby is not None and self.standby.gone:
            self._dismiss()  # it ran nobody's code: nobody is to blame
        self.host = Host(shard, self.verifier, take, self.plan.timeout_s, self._quiet, self.standby)
        self.standby = None
        if self.interrupted is not None:
            self.host.stop(at_once=False)  # asked for meanwhile
        fate = self.host.run()
        if self.environment is not None:
            self.tell(m.Log(text=fate.log))
            self._tell_readings()
        return fate

    def _take(self, event: dict[str, Any], shard: Shard) -> None:
        match event["event"]:
            case "environment":
                self._begin(Environment.model_validate(event["environment"]), event, shard)
            case "progress":
                self._have_one_ready(shard)
                self.tell(m.Step(case=event["case"], what=event["what"]))
            case "case":
                after = Environment.model_validate(event["environment"]).fingerprint
                # Two of them in one record are never those of another: the judge sees that something changed.
                fingerprint = self._fingerprint if after == self._fingerprint else f"{self._fingerprint}, then {after}"
                liars = self.absent.liars(event["case"], event["measurements"])
                self.absent.leave_out(liars)
                if not liars:
                    self._keep(event["case"], event["measurements"], shard, fingerprint)
            case "done":
                self.tell(m.After(conditions=Conditions.model_validate(event["conditions"])))

    def _have_one_ready(self, shard: Shard) -> None:
        """Start the next worker while this one prepares: importing what compiles takes up to ten seconds."""
        wanted = self.device != "cpu" and shard.replicate + 1 < self.plan.fewest and self.interrupted is None
        if wanted and self.standby is None and len(os.sched_getaffinity(0)) >= STANDBY_CPUS:
            self.standby = processes.Worker(standby=True)

    def _quiet(self) -> None:
        """The clocks of the host run next: who waits for its turn shall be waiting."""
        if self.standby is not None:
            self.standby.ready()

    def _begin(self, environment: Environment, event: dict[str, Any], shard: Shard) -> None:
        """The first worker says where this takes place; what is different for a successor is kept as a note."""
        if self.environment is None:
            self._settle(environment, Conditions.model_validate(event["conditions"]))
            suitable.compare(self.task, self.records, environment)
        elif environment != self.environment:
            odd = suitable.unlike(self.environment, environment)
            self._note(f"process {shard.replicate + 1} found another environment than the first: {odd}")
        of = (self.plan.fewest, self.plan.most)
        cases, attempt = len(shard.cases), shard.attempt
        self.tell(m.Process(number=shard.replicate + 1, of=of, cases=cases, attempt=attempt, steps=event["total"]))

    def _settle(self, environment: Environment, before: Conditions) -> None:
        suitable.check(self.task, environment)
        self.environment = environment
        self.device = "cpu" if environment.device == "cpu" else f"cuda:{environment.device_index}"
        self.monitor = self.held.enter_context(Monitor(environment, self._pids))
        self.tell(m.Began(environment=environment, before=before))

    def _pids(self) -> set[int]:
        worker = self.host.worker if self.host is not None else None
        return {os.getpid()} | ({worker.pid} if worker is not None else set())

    def _keep(self, case: Case, measurements: list[Measurement], shard: Shard, fingerprint: str) -> None:
        readings = list(self.monitor.readings) if self.monitor is not None else []
        happened = [
            m_.model_copy(
                update={"series": [s.model_copy(update={"events": s.events + events(s, readings)}) for s in m_.series]}
            )
            for m_ in measurements
        ]
        happened += self.absent.told(case, {one.profile for one in happened})
        made = records_of(
            case,
            happened,
            run_id=shard.run_id,
            fingerprint=fingerprint,
            replicate=shard.replicate,
            attempt=shard.attempt,
        )
        self.records += [record for record, _ in made]
        self._samples |= {record.key: taken for record, taken in made if taken is not None}
        cut = self.interrupted is not None
        attempt, replicate = shard.attempt, shard.replicate
        self.tell(m.Measured(case=case.name, attempt=attempt, replicate=replicate, made=made, cut=cut))

    def _tell_readings(self) -> None:
        if self.monitor is not None:
            readings, self.monitor.readings = self.monitor.readings, []
            self.tell(m.Readings(readings=readings))

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
        self._keep(lost, failures(fate, lost, names, names, self.device), shard, self._fingerprint)

    def _profile(self) -> None:
        """Hardware counters, apart from all timing."""
        if not self.plan.profiled:
            return
        from norm_fusion import profiling

        self._dismiss()
        rows = profiling.profile(
            self.plan.profiled,
            run_id=self.plan.shard.run_id,
            device=self.device,
            seed=self.plan.shard.seed,
            fingerprint=self._fingerprint,
            timeout_s=self.plan.timeout_s,
            progress=self._profiling,
        )
        with suppress(_Stopped):
            for counters in rows:
                self.tell(m.Counted(counters=counters))

    def _profiling(self, case: str, what: str) -> None:
        """Tell what is profiled next; once that is not wanted, what is raised ends the profiler's process."""
        if self.interrupted is not None:
            raise _Stopped
        self.tell(m.Step(case=case, what=what))

    def _noisy(self, attempt: int) -> list[str]:
        """The cases to run again, by what the attempts before say; what there is of this one decides nothing."""
        if self.interrupted is not None or self._where is None or self.plan.most < ENOUGH:
            return []  # of so few there is no call that a rerun could mend
        return verdicts.needs_rerun(self._conclude(attempt).calls)

    def _widest(self, case: Case, attempt: int) -> float | None:
        assert self._where is not None
        mine = [r for r in self.records if r.case == case.name and r.attempt == attempt]
        return verdicts.widest(pool(mine, self._samples_of, self._where), case.name)

    def _conclude(self, attempt: int) -> Conclusions:
        manifest = self.task.manifest.model_copy(update={"environment": self._where, "further": []})
        before = [record for record in self.records if record.attempt < attempt]
        return verdicts.conclude(before, self._samples_of, manifest)

    def _samples_of(self, record: Record) -> Samples:
        return self._samples[record.key]

    def _note(self, text: str) -> None:
        self.tell(m.Note(text=text))
