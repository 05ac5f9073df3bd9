"""Hosts a worker: starts it, answers it, times it from outside, has its outputs judged elsewhere, and outlives it.

The worker runs contestants' code, which may crash, hang, or lie. What it says is amended here by what the parent's own
clock and the verifier found, before anything is kept.
"""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from norm_fusion import backends
from norm_fusion.metrics import percentile
from norm_fusion.records import Code, Event, Measurement, Series, Status
from norm_fusion.runs.store import StoreError
from norm_fusion.spec import CRUMB, CRUMB_BYTES, ROOF, Case, Shard

WORKER = [sys.executable, "-m", "norm_fusion.measure.worker"]
VERIFIER = [sys.executable, "-m", "norm_fusion.measure.verifier"]
# After a request to stop, a worker may still be inside a compiler: it gets this long before it is killed.
GRACE_S = 30
# Before its first case it imports PyTorch, which on a slow disk takes longer than any contestant should.
START_S = 120
# The verifier judges a few rows: longer than this and it hangs.
VERIFIER_S = 120
# A message is at most a few rows in base64, or the samples of a case: longer is rubbish.
MAX_LINE = 2**30
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
class Host:
    """Runs one shard in one worker. `verifier` judges; `take` is told of environment, progress, cases and the end."""

    shard: Shard
    verifier: Verifier
    take: Take
    timeout_s: float
    worker: subprocess.Popen[bytes] | None = None
    stopped: bool = False
    case: str | None = None
    device: str = "cuda"
    bracket: _Bracket | None = None
    drawn: dict[tuple[str, str], int] = field(default_factory=dict)
    asked: dict[str, Any] | None = None
    outside: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    rates: dict[tuple[str, str], dict[str, list[float]]] = field(default_factory=dict)
    told: set[str] = field(default_factory=set)
    shown: set[tuple[str, str]] = field(default_factory=set)
    wrong: dict[tuple[str, str], tuple[str, Code]] = field(default_factory=dict)
    refusal: str | None = None
    blamed: tuple[str, str] | None = None

    def run(self) -> Fate:
        """Run the worker to its end."""
        printed = _Tail()
        with tempfile.TemporaryDirectory() as folder:
            crumb = Path(folder) / "crumb"
            crumb.write_bytes(bytes(CRUMB_BYTES))
            # A session of its own: the terminal's Ctrl-C reaches us alone, and we decide.
            self.worker = worker = subprocess.Popen(
                WORKER,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=os.environ | {CRUMB: str(crumb)},
            )
            if self.stopped:
                self.stop(at_once=False)  # asked for while it was being started
            reader = threading.Thread(target=printed.read, args=(worker.stderr,), daemon=True)
            reader.start()
            fault: Fault | None = Fault("was given up")
            try:
                fault = self._converse(worker)
            finally:
                if fault is not None:
                    _kill(worker)
            code = worker.wait()
            _kill(worker)  # what it started and left behind would hold our end of its stderr open
            reader.join(timeout=5)
            _close(worker)
            left = crumb.read_bytes().rstrip(b"\0").decode(errors="replace").split("\n")
        if fault is None and code == 0:
            return Fate(well=True, log=printed.text)
        culprit = self.blamed or ((left[0], left[1]) if len(left) == 2 else None)
        known = culprit is not None and culprit[0] == self.case
        return Fate(
            well=False,
            code=fault.code if fault is not None else Code.CRASHED,
            reason=str(fault) if fault is not None else _fate(code),
            case=self.case,
            profile=culprit[1] if known and culprit is not None else None,
            refusal=self.refusal,
            log=printed.text,
        )

    def stop(self, at_once: bool) -> None:
        """Ask the worker to end after the current round, or end it."""
        self.stopped = True
        if self.worker is not None:
            self.worker.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
            timer = threading.Timer(GRACE_S, self.worker.kill)
            timer.daemon = True
            timer.start()

    def _converse(self, worker: subprocess.Popen[bytes]) -> Fault | None:
        """Hand the shard over and follow what the worker says to its last word; what it did wrong, if anything."""
        lines: queue.Queue[tuple[float, bytes]] = queue.Queue()
        threading.Thread(target=_read, args=(worker.stdout, lines), daemon=True).start()
        self._answer(self.shard.to_dict())
        while True:
            patience = self.timeout_s if self.case is not None else max(self.timeout_s, START_S)
            try:
                at, line = lines.get(timeout=patience)
            except queue.Empty:
                return Fault(f"gave no sign of life for {patience:.0f} s", Code.HUNG)
            if not line:
                return None
            try:
                self._follow(json.loads(line), at)
            except Fault as fault:
                return fault
            except StoreError:
                raise
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError, RecursionError):
                return Fault("sent a message that is not of its protocol")

    def _answer(self, message: dict[str, Any]) -> None:
        assert self.worker is not None
        assert self.worker.stdin is not None
        try:
            self.worker.stdin.write(json.dumps(message).encode() + b"\n")
            self.worker.stdin.flush()
        except BrokenPipeError:
            pass  # it died meanwhile: its exit code says so

    def _follow(self, event: dict[str, Any], at: float) -> None:
        match event["event"]:
            case "beat":
                pass
            case "bracket":
                named, profile, timer = (str(event[name]) for name in ("case", "profile", "timer"))
                self.bracket = _Bracket(named, profile, timer, float(event["p50_ms"]), time.monotonic())
                self._answer({})
            case "bracket-end":
                self._answer({"again": self._bracketed(int(event["calls"]), float(event["told_ms"]), at)})
            case "draw":
                self._answer({"seed": self._drawn(event)})
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
                self.told.add(case.name)
                amended = [self._amended(Measurement.model_validate(m)) for m in event["measurements"]]
                self.take(event | {"case": case, "measurements": amended})
            case "environment":
                self.device = str(event["environment"]["device"])
                self.take(event)
            case "progress":
                self.case = str(event["case"])
                self.take(event)
            case "done":
                self.take(event)
            case other:
                raise ValueError(f"event {other!r} is unknown")

    def _bracketed(self, calls: int, told_ms: float, ended_s: float) -> bool:
        """Take a bracket in. Once more, if it took longer than it should: on a busy machine an honest one may."""
        if self.bracket is None or calls < 1:
            raise ValueError("a bracket ended that had not begun")
        took, self.bracket = self.bracket, None
        ms = max(0.0, (ended_s - took.began_s) * 1e3 - OUTSIDE_SLACK_MS)
        key = took.case, took.profile
        found = self.outside.setdefault(key, {}).setdefault(took.timer, [])
        found.append(ms / calls)
        # Two clocks around the same calls agree, whatever disturbs these: up to what passes between the messages.
        rates = self.rates.setdefault(key, {}).setdefault(took.timer, [])
        rates.append(ms / told_ms if told_ms > 0 else float("inf"))
        slow = min(found) > took.p50_ms * self._tolerance(took.timer)
        return len(found) < BRACKETS and (slow or min(rates) > CLOCKS_UP_TO)

    def _tolerance(self, timer: str) -> float:
        return OUTSIDE_UP_TO.get((self.device, timer), 1.4)

    def _drawn(self, event: dict[str, Any]) -> int:
        """The seed of an input that is about to be examined: chosen here, so that no output of it exists yet."""
        seed = random.SystemRandom().randrange(2**31)
        self.drawn[Case.parse(event["case"]).name, str(event["profile"])] = seed
        return seed

    def _choose(self, event: dict[str, Any]) -> list[int]:
        """Which rows of an output the worker has to show: chosen here, after it was made."""
        case, profile = Case.parse(event["case"]), str(event["profile"])
        seed = self.drawn.pop((case.name, profile))  # shown once: the next output is of another input
        self.shown.add((case.name, profile))
        device = {"cuda": "cuda", "cpu": "cpu"}[self.device]
        expected = {"type": "Tensor", "shape": [case.rows, case.cols], "dtype": case.dtype, "device": device}
        if event["kind"] != expected:
            odd = ", ".join(f"{k} {event['kind'].get(k)}" for k in expected if event["kind"].get(k) != expected[k])
            self._found(case.name, profile, f"output has {odd} ({event['when']})", Code.WRONG_KIND)
            return []
        count = max(2, min(SHOWN_ROWS, SHOWN_BYTES * case.rows // case.input_bytes))
        rows = sorted(random.SystemRandom().sample(range(case.rows), min(count, case.rows)))
        self.asked = {"case": case.name, "profile": profile, "when": str(event["when"]), "seed": seed, "rows": rows}
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
        outside = {timer: min(found) for timer, found in self.outside.get(key, {}).items()}
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
        for timer, rates in self.rates.get((told.case, told.profile), {}).items():
            if min(rates) > CLOCKS_UP_TO:
                said = f"its clock for {timer} runs at {1 / min(rates):.2f} of the speed of the parent's"
                return said, Code.TIMER
        sampled = any(series.timer in ("graph", "host", "wall") for series in told.series)
        # A control is judged as what it is a copy of, if that is one of the profiles asked for.
        original = told.control_of if told.control_of in self.shard.profiles else None
        judged = backends.judged(original or told.profile) and not self.stopped
        if sampled and judged and (told.case, told.profile) not in self.shown:
            return "no output of it was shown to the verifier", Code.WRONG_OUTPUT
        return None


class Verifier:
    """The process that judges rows of outputs: started once, asked many times."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Begin, so that it is ready when it is needed: it imports torch."""
        if self.process is None:
            self.process = subprocess.Popen(
                VERIFIER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )

    def judge(self, request: dict[str, Any]) -> dict[str, Any]:
        """What is wrong with some rows: `wrong` and `code`. One that died is started again, once."""
        for _ in range(2):
            self.start()
            assert self.process is not None
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            patience = threading.Timer(VERIFIER_S, self.process.kill)
            patience.start()
            try:
                self.process.stdin.write(json.dumps(request).encode() + b"\n")
                self.process.stdin.flush()
                line = self.process.stdout.readline()
            except BrokenPipeError:
                line = b""
            finally:
                patience.cancel()
            if line:
                verdict: dict[str, Any] = json.loads(line)
                return verdict
            self.close()
        raise Fault("could not be judged: the verifier died twice; its last words are above")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            _close(self.process)
            self.process = None


class _Tail:
    """What a worker printed, the last megabyte of it."""

    def __init__(self) -> None:
        self.text = ""

    def read(self, stream: Any) -> None:
        while data := stream.read1(2**16):
            self.text = (self.text + data.decode(errors="replace"))[-(2**20) :]


def _read(stream: Any, lines: queue.Queue[tuple[float, bytes]]) -> None:
    """Lines with the moment of their arrival; an empty one at the end."""
    while line := stream.readline(MAX_LINE):
        lines.put((time.monotonic(), line))
    lines.put((time.monotonic(), b""))


def _kill(worker: subprocess.Popen[bytes]) -> None:
    """The worker and whatever it started."""
    try:
        os.killpg(worker.pid, signal.SIGKILL)
    except ProcessLookupError:
        worker.kill()


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()


def _fate(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
