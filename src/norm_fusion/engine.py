"""Runs a shard in a process of its own and keeps what it measures as it arrives.

The process that measures is never the process that judges: it sends raw samples, figures are derived here. One that
dies costs the case that it was on; the others are measured by its successor.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from norm_fusion import backends
from norm_fusion.records import Conditions, Environment, Manifest, Measurement, Record, Status
from norm_fusion.runs.derive import records_of
from norm_fusion.runs.store import RunStore, StoreError, now
from norm_fusion.spec import Case, Shard, SpecError

# After a request to stop, a worker may still be inside a compiler: it gets this long before it is killed.
GRACE_S = 30
WORKER = [sys.executable, "-m", "norm_fusion.measure.worker"]


class Listener(Protocol):
    """Who watches a run."""

    def started(self, environment: Environment, steps: int) -> None: ...
    def step(self, case: str, what: str) -> None: ...
    def measured(self, records: list[Record]) -> None: ...


@dataclass
class Outcome:
    """How a run ended."""

    records: list[Record] = field(default_factory=list)
    manifest: Manifest | None = None
    interrupted: int | None = None  # the signal that ended it early
    kept: bool = False  # is there a folder?
    problem: str | None = None  # why it could not be kept to the end

    @property
    def exit_code(self) -> int:
        """0: all rows ok or unavailable; 1: a row is wrong or failed, or not kept; 128 + signal: interrupted."""
        if self.interrupted is not None:
            return 128 + self.interrupted
        return int(
            self.problem is not None or any(record.status in (Status.WRONG, Status.FAILED) for record in self.records)
        )


def run(shard: Shard, manifest: Manifest, create: Callable[[], RunStore], listener: Listener) -> Outcome:
    """Measure a shard here. `create` makes the run's folder, once the worker has accepted the shard.

    Raises:
        SpecError: the worker cannot run the shard on this machine; nothing was kept.
    """
    session = _Session(shard, manifest, create, listener)
    with _signals_to(session):
        session.measure()
    return session.outcome


class _Fault(Exception):
    """What a worker said that ends it."""


class _Session:
    """One run in progress: the worker at work, the store, and the cases still to do."""

    def __init__(self, shard: Shard, manifest: Manifest, create: Callable[[], RunStore], listener: Listener) -> None:
        self.shard, self.manifest, self.create, self.listener = shard, manifest, create, listener
        self.store: RunStore | None = None
        self.outcome = Outcome()
        self.worker: subprocess.Popen[bytes] | None = None
        self.at: str | None = None  # the case that the worker is on
        self.fault: str | None = None  # what the worker did wrong, where its exit code does not tell
        self.refusal: str | None = None  # why there is nothing to run here at all

    def measure(self) -> None:
        try:
            self._measure(list(self.shard.cases))
            self._finish()
        except OSError as error:  # a full disk, say: what is in memory is still shown
            self.outcome.problem = f"the run could not be kept to its end: {error.strerror or error}"
        self.outcome.manifest = self.manifest

    def _measure(self, remaining: list[Case]) -> None:
        """Run workers until every case has records; each that dies costs one case."""
        while remaining and self.outcome.interrupted is None:
            self.at = self.fault = None
            code, log = self._run_worker(replace(self.shard, cases=tuple(remaining)))
            done = {record.case for record in self.outcome.records}
            remaining = [case for case in remaining if case.name not in done]
            if not remaining or (code == 0 and self.fault is None) or self.outcome.interrupted is not None:
                return
            if self.refusal is not None:
                raise SpecError(self.refusal)
            if self.store is None:
                raise SpecError(f"the measuring process {self._fate(code)} before it could say where it runs:\n{log}")
            # Between two cases nobody is to blame: the next one is given up all the same, so that this ends.
            lost = next((case for case in remaining if case.name == self.at), remaining[0])
            self._keep_lost(lost, f"{self._fate(code)} {'on' if lost.name == self.at else 'before'} this case")
            remaining.remove(lost)

    def stop(self, number: int) -> None:
        """First signal: end after the current round and keep what is there. Second: at once."""
        if self.worker is not None:
            self.worker.send_signal(signal.SIGTERM if self.outcome.interrupted is None else signal.SIGKILL)
            timer = threading.Timer(GRACE_S, self.worker.kill)
            timer.daemon = True
            timer.start()
        self.outcome.interrupted = number

    def _run_worker(self, shard: Shard) -> tuple[int, str]:
        """Run one worker to its end; its exit code, and the end of what it printed."""
        printed = _Tail()
        # A session of its own: the terminal's Ctrl-C reaches us alone, and we decide.
        self.worker = worker = subprocess.Popen(
            WORKER, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        assert worker.stderr is not None
        reader = threading.Thread(target=printed.read, args=(worker.stderr,), daemon=True)
        reader.start()
        try:
            worker.stdin.write(json.dumps(shard.to_dict()).encode())
            worker.stdin.close()
        except BrokenPipeError:
            pass  # it died before it read its shard: its exit code says so below
        for line in worker.stdout:
            try:
                self._take(json.loads(line))
            except StoreError:
                raise
            except _Fault as fault:
                self.fault = str(fault)
            except (KeyError, TypeError, ValueError):
                self.fault = "sent a message that is not of its protocol"
            if self.fault is not None:
                worker.kill()
                break
        code = worker.wait()
        reader.join(timeout=5)
        if self.store is not None:
            self.store.append_log(printed.text)
        return code, printed.text.strip()[-2000:]

    def _take(self, event: dict[str, Any]) -> None:
        match event["event"]:
            case "environment":
                self._begin(Environment.model_validate(event["environment"]), event)
            case "progress":
                self.at = event["case"]
                self.listener.step(event["case"], event["what"])
            case "case":
                self._keep(Case.parse(event["case"]), [Measurement.model_validate(m) for m in event["measurements"]])
            case "done":
                self._update(after=Conditions.model_validate(event["conditions"]))
            case "refused":
                if self.store is None:
                    self.refusal = str(event["message"])
                raise _Fault(f"refused to go on ({event['message']})")

    def _begin(self, environment: Environment, event: dict[str, Any]) -> None:
        """The first worker says where the run takes place; its successors must be there too."""
        if self.store is None:
            self.store = self.create()
            self.outcome.kept = True
            where = "cpu" if environment.device == "cpu" else f"cuda:{environment.device_index}"
            self.shard = replace(self.shard, device=where)
            self._update(environment=environment, before=Conditions.model_validate(event["conditions"]))
            self.listener.started(environment, event["total"])
        elif environment != self.manifest.environment:
            raise _Fault("found another device or other software than the run began on")

    def _keep(self, case: Case, measurements: list[Measurement]) -> None:
        assert self.store is not None
        assert self.manifest.environment is not None
        fingerprint = self.manifest.environment.fingerprint
        derived = records_of(case, measurements, self.shard.run_id, fingerprint, self.shard.replicate)
        kept = [self.store.write(record, samples) for record, samples in derived]
        self.outcome.records += kept
        self.listener.measured(kept)

    def _keep_lost(self, case: Case, fate: str) -> None:
        """A case whose worker died: a failed record for each of its profiles."""
        reason = f"the measuring process {fate}; see worker.log"
        lost = [
            Measurement(case=case.name, profile=name, status=Status.FAILED, reason=reason)
            for name in self.shard.profiles
            if backends.serves(name, case.op)
        ]
        self._keep(case, lost)

    def _fate(self, code: int) -> str:
        if self.fault is not None:
            return self.fault
        if code >= 0:
            return f"ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def _finish(self) -> None:
        state = "interrupted" if self.outcome.interrupted is not None else "finished"
        self._update(state=state, finished_at=now())

    def _update(self, **changes: Any) -> None:
        self.manifest = self.manifest.model_copy(update=changes)
        if self.store is not None:
            self.store.write_manifest(self.manifest)


class _Tail:
    """What a worker printed, the last megabyte of it."""

    def __init__(self) -> None:
        self.text = ""

    def read(self, stream: Any) -> None:
        for line in stream:
            self.text = (self.text + line.decode(errors="replace"))[-(2**20) :]


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
        if session.worker is not None and session.worker.poll() is None:
            os.killpg(session.worker.pid, signal.SIGKILL)
