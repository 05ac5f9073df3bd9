"""Hosts a worker: answers it, times it from outside, has its outputs judged elsewhere, and outlives it.

The worker runs contestants' code, which may crash, hang, or lie. What it says is amended here by what the parent's own
clock and the verifier found, before anything is kept.
"""

from __future__ import annotations

import json
import queue
import random
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from norm_fusion import backends
from norm_fusion.engine.processes import START_S, Unjudged, Verifier, Worker
from norm_fusion.metrics import percentile
from norm_fusion.records import Code, Event, Measurement, Series, Status
from norm_fusion.runs.files import StoreError
from norm_fusion.spec import ROOF, Case, Shard, odd_kind

# After a request to stop, a worker may still be inside a compiler: it gets this long before it is killed.
GRACE_S = 30
# A signal that arrives just before Python waits is seen when it wakes: it wakes this often.
LOOK_UP_S = 1
# Rows shown of one output, and bytes of them: enough that a contestant which skips rows is found, few enough to send.
SHOWN_ROWS, SHOWN_BYTES = 16, 2**21
# The parent's clock around calls back to back may show so much more than the median that the worker tells: on an H200
# it shows 0.97 to 1.00 of a graph's, 0.8 to 1.1 of synchronous calls'; on a busy CPU these have a long tail.
OUTSIDE_UP_TO = {("cuda", "graph"): 1.1, ("cuda", "wall"): 1.4, ("cpu", "wall"): 2.0}
OUTSIDE_SLACK_MS = 0.5
# The parent's clock over the worker's own, around the same calls.
CLOCKS_UP_TO = 1.1
BRACKETS = 8

Take = Callable[[dict[str, Any]], None]


class Fault(Exception):
    """What a worker said or did that ends it."""

    def __init__(self, reason: str, code: Code = Code.CRASHED) -> None:
        super().__init__(reason)
        self.code = code


@dataclass
class Fate:
    """How a worker ended: well, or with whose code running and why."""

    well: bool
    code: Code = Code.CRASHED
    reason: str = ""
    case: str | None = None  # that it was on
    profile: str | None = None  # whose code ran last
    refusal: str | None = None
    log: str = ""


@dataclass
class _Bracket:
    case: str
    profile: str
    timer: str
    p50_ms: float
    began_s: float


@dataclass
class _Bracketed:
    """What one request for a bracket found: a few tries, of which the quietest counts."""

    outside_ms: list[float] = field(default_factory=list)  # a call, less what messages may take
    rates: list[float] = field(default_factory=list)  # our clock over the worker's
    over: bool = False


@dataclass
class Host:
    """Runs one shard in one worker. `verifier` judges; `take` is told of environment, progress, cases and the end.

    `quiet` returns once nothing of ours runs beside the worker any more; `worker`: one that is there already.
    """

    shard: Shard
    verifier: Verifier
    take: Take
    timeout_s: float
    quiet: Callable[[], None] = lambda: None
    worker: Worker | None = None
    stopped: bool = False
    done: bool = False
    case: str | None = None
    device: str = "cuda"
    bracket: _Bracket | None = None
    changes: dict[tuple[str, str], int] = field(default_factory=dict)
    asked: dict[str, Any] | None = None
    brackets: dict[tuple[str, str], dict[str, list[_Bracketed]]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    shown: set[tuple[str, str]] = field(default_factory=set)
    wrong: dict[tuple[str, str], tuple[str, Code]] = field(default_factory=dict)
    refusal: str | None = None
    blamed: tuple[str, str] | None = None

    def run(self) -> Fate:
        """Run the worker to its end."""
        self.worker = worker = self.worker or Worker()
        if self.stopped:
            self.stop(at_once=False)  # asked for while it was being started
        fault: Fault | None = Fault("was given up")
        try:
            fault = self._converse(worker)
        finally:
            if fault is not None:
                worker.kill()
            left = worker.end()
        if fault is None and self.done:
            return Fate(well=True, log=left.log)
        culprit = self.blamed or left.last
        known = culprit is not None and culprit[0] == self.case
        return Fate(
            well=False,
            code=fault.code if fault is not None else Code.CRASHED,
            reason=str(fault) if fault is not None else _fate(left.code),
            case=self.case,
            profile=culprit[1] if known and culprit is not None else None,
            refusal=self.refusal,
            log=left.log,
        )

    def stop(self, at_once: bool) -> None:
        """Ask the worker to end after the current round, or end it."""
        self.stopped = True
        if self.worker is not None:
            self.worker.stop(at_once, GRACE_S)

    def _converse(self, worker: Worker) -> Fault | None:
        """Hand the shard over and follow what the worker says to its last word; what it did wrong, if anything."""
        worker.tell(self.shard.to_dict())
        while True:
            patience = self.timeout_s if self.case is not None else max(self.timeout_s, START_S)
            heard = _heard(worker, patience)
            if heard is None:
                return Fault(f"gave no sign of life for {patience:.0f} s", Code.HUNG)
            at, line = heard
            if not line:
                return None
            try:
                self._follow(json.loads(line), at)
                if self.done:
                    return None  # a child that it left behind may hold the channel open
            except Fault as fault:
                return fault
            except Unjudged as unjudged:
                return Fault(str(unjudged))
            except StoreError:
                raise
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
                return Fault("sent a message that is not of its protocol")

    def _answer(self, message: dict[str, Any]) -> None:
        assert self.worker is not None
        self.worker.tell(message)

    def _follow(self, event: dict[str, Any], at: float) -> None:
        match event["event"]:
            case "beat" | "ready":
                pass
            case "quiet":
                self.quiet()
                self._answer({})
            case "bracket":
                named, profile, timer = (str(event[name]) for name in ("case", "profile", "timer"))
                self.bracket = _Bracket(named, profile, timer, float(event["p50_ms"]), time.monotonic())
                self._answer({})
            case "bracket-end":
                self._answer({"again": self._bracketed(int(event["calls"]), float(event["told_ms"]), at)})
            case "change":
                self._answer({"seed": self._changed(event)})
            case "output":
                self._answer({"rows": self._choose(event)})
            case "rows":
                self._judge(event)
                self._answer({})
            case "broken":
                self.blamed = str(event["case"]), str(event["profile"])
                raise Fault(f"left the device unusable: {event['reason']}")
            case "refused":
                self.refusal = str(event["message"])
                raise Fault(f"refused to go on ({event['message']})")
            case "case":
                case = Case.parse(event["case"])
                if case not in self.shard.cases or case.name in self.told:
                    raise ValueError(f"case {case.name} was not asked for, or told already")
                measured = [Measurement.model_validate(m) for m in event["measurements"]]
                if not self.stopped and any(m.code is Code.INTERRUPTED for m in measured):
                    raise Fault("was sent a signal that is not ours")
                self.told.add(case.name)
                amended = [self._amended(m) for m in measured]
                self.take(event | {"case": case, "measurements": amended})
            case "environment":
                self.device = str(event["environment"]["device"])
                self.take(event)
            case "progress":
                self.case = str(event["case"])
                self.take(event)
            case "done":
                if not self.stopped and {case.name for case in self.shard.cases} - self.told:
                    raise Fault("said that it was done, and was not")
                self.take(event)
                self.done = True
            case other:
                raise ValueError(f"event {other!r} is unknown")

    def _bracketed(self, calls: int, told_ms: float, ended_s: float) -> bool:
        """Take a bracket in. Once more, if it took longer than it should: on a busy machine an honest one may."""
        if self.bracket is None or calls < 1:
            raise ValueError("a bracket ended that had not begun")
        took, self.bracket = self.bracket, None
        ms = max(0.0, (ended_s - took.began_s) * 1e3 - OUTSIDE_SLACK_MS)
        groups = self.brackets.setdefault((took.case, took.profile), {}).setdefault(took.timer, [])
        # A series that begins anew is bracketed anew, and none takes an earlier one back: a forged one least of all.
        if not groups or groups[-1].over:
            groups.append(_Bracketed())
        found = groups[-1]
        found.outside_ms.append(ms / calls)
        # Two clocks around the same calls agree, whatever disturbs these: up to what passes between the messages.
        found.rates.append(ms / told_ms if told_ms > 0 else float("inf"))
        slow = min(found.outside_ms) > took.p50_ms * self._tolerance(took.timer)
        found.over = len(found.rates) >= BRACKETS or not (slow or min(found.rates) > CLOCKS_UP_TO)
        return not found.over

    def _tolerance(self, timer: str) -> float:
        return OUTSIDE_UP_TO.get((self.device, timer), 1.4)

    def _changed(self, event: dict[str, Any]) -> int:
        """The seed of a change to an input about to be examined: chosen here, so that no output of it exists yet."""
        seed = random.SystemRandom().randrange(2**31)
        self.changes[Case.parse(event["case"]).name, str(event["profile"])] = seed
        return seed

    def _choose(self, event: dict[str, Any]) -> list[int]:
        """Which rows of an output the worker has to show: chosen here, after it was made."""
        case, profile = Case.parse(event["case"]), str(event["profile"])
        change = self.changes.pop((case.name, profile))  # shown once: the next output is of another input
        self.shown.add((case.name, profile))
        device = {"cuda": "cuda", "cpu": "cpu"}[self.device]
        odd = odd_kind(event["kind"], case, device)
        if odd is not None:
            self._found(case.name, profile, f"{odd} ({event['when']})", Code.WRONG_KIND)
            return []
        count = max(2, min(SHOWN_ROWS, SHOWN_BYTES * case.rows // case.input_bytes))
        rows = sorted(random.SystemRandom().sample(range(case.rows), min(count, case.rows)))
        about = {"case": case.name, "profile": profile, "when": str(event["when"])}
        self.asked = about | {"seed": self.shard.seed + 1 + int(event["input"]), "change": change, "rows": rows}
        return rows

    def _judge(self, event: dict[str, Any]) -> None:
        if self.asked is None:
            raise ValueError("rows that nobody asked for")
        asked, self.asked = self.asked, None
        verdict = self.verifier.judge(asked | {"operands": self.shard.seed, "x": event["x"], "y": event["y"]})
        if verdict["wrong"]:
            said = f"{verdict['wrong']} ({asked['when']})"
            self._found(asked["case"], asked["profile"], said, Code(verdict["code"]))

    def _found(self, case: str, profile: str, wrong: str, code: Code) -> None:
        self.wrong.setdefault((case, profile), (wrong, code))

    def _amended(self, told: Measurement) -> Measurement:
        """What the worker says of a contestant, and what was found here: the worse of the two is kept."""
        key = told.case, told.profile
        brackets = self.brackets.get(key, {})
        outside = {timer: max(min(one.outside_ms) for one in groups) for timer, groups in brackets.items()}
        told = told.model_copy(update={"outside_ms": outside, "series": [self._seen(s, outside) for s in told.series]})
        if told.status is not Status.OK:
            return told
        wrong = self.wrong.get(key)
        if wrong is None and told.profile != ROOF:
            wrong = self._unlikely(told)
        if wrong is None:
            return told
        return told.model_copy(update={"status": Status.WRONG, "reason": wrong[0], "code": wrong[1]})

    def _seen(self, series: Series, outside: Mapping[str, float]) -> Series:
        """Doubted, where our clock around many calls shows far more than its samples say.

        That the worker's clock agrees on those calls is checked apart from this: so either the machine was disturbed,
        or the samples are not of such calls.
        """
        doubts: list[Event] = []
        seen = outside.get(series.timer)
        if seen is not None and series.cache == "cold":
            p50 = percentile(series.blocks, 50)
            if seen > p50 * self._tolerance(series.timer):
                said = f"its samples say {p50:.4g} ms a call, the parent's clock around many says {seen:.4g} ms"
                doubts.append(Event(kind="outside", detail=said))
        return series.model_copy(update={"events": doubts})

    def _unlikely(self, told: Measurement) -> tuple[str, Code] | None:
        """What the parent's clock, or its eyes, contradict."""
        for timer, groups in self.brackets.get((told.case, told.profile), {}).items():
            rate = max(min(one.rates) for one in groups)
            if rate > CLOCKS_UP_TO:
                return f"its clock for {timer} runs at {1 / rate:.2f} of the speed of the parent's", Code.TIMER
        sampled = any(series.timer in ("graph", "host", "wall") for series in told.series)
        # A control is judged as what it is a copy of, if that is one of the profiles asked for.
        original = told.control_of if told.control_of in self.shard.profiles else None
        judged = backends.judged(original or told.profile) and not self.stopped
        if sampled and judged and (told.case, told.profile) not in self.shown:
            return "no output of it was shown to the verifier", Code.WRONG_OUTPUT
        return None


def _heard(worker: Worker, patience_s: float) -> tuple[float, bytes] | None:
    """When the worker spoke and what it said; None if it said nothing for so long."""
    until = time.monotonic() + patience_s
    while True:
        try:
            return worker.lines.get(timeout=min(LOOK_UP_S, patience_s))
        except queue.Empty:
            if time.monotonic() >= until:
                return None


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
