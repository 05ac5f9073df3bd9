"""Runs a process of cells.py, under Nsight Compute or alone, and hears from it: what it hangs or dies at costs that.

What passes between them lies in a folder: the job, the events, whatever anybody prints. Standard input and output are
not used, as Nsight Compute stands in between. Nor is the death signal of a parent: that of cells.py is a thread of
Nsight Compute's. Instead both ends hold a pipe of the folder's, and when this end is gone, the other one goes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from norm_fusion.profiling.problems import Problem
from norm_fusion.records import Status

# Before its first cell a process imports PyTorch, which on a slow disk takes longer than any cell should.
START_S = 120.0
# Nsight Compute writes its report once the profiled process is gone; it has this long.
GRACE_S = 20.0
LOOK_UP_S = 0.1
# A file of the folder: from now on the process may use the device; until then it imports what it needs.
TURN = "turn"
# Where a process finds the TMPDIR that was the caller's, if it is to have another than who runs it; empty: none.
TEMPORARY = "NORM_FUSION_TMPDIR"

Event = Mapping[str, Any]


@dataclass
class Told:
    """What a process said of its cells, by their numbers, and how it ended.

    `done`: what it found; `failed`: why it found nothing; `lost`: the cell that it was on when it ended, if on any.
    """

    done: dict[int, Event] = field(default_factory=dict)
    failed: dict[int, Problem] = field(default_factory=dict)
    lost: int | None = None
    pid: int | None = None
    refused: str | None = None
    finished: bool = False
    how: str = ""
    printed: str = ""

    def take(self, event: Event) -> None:
        match event["event"]:
            case "ready":
                self.pid = int(event["pid"])
            case "refused":
                self.refused = str(event["message"])
            case "begin":
                self.lost = int(event["cell"])
            case "done":
                self.done[int(event["cell"])] = event
                self.lost = None
            case "failed":
                told = Problem(Status(event["status"]), str(event["reason"]), event["remedy"])
                self.failed[int(event["cell"])] = told
                self.lost = None
            case "finished":
                self.finished = True


def run(
    command: Sequence[str],
    job: Event,
    folder: Path,
    timeout_s: float,
    heard: Callable[[Event], None],
    hopeless: Callable[[str], bool] = lambda printed: False,
    environment: Mapping[str, str] | None = None,
    meanwhile: Callable[[], None] = lambda: None,
) -> Told:
    """Run a process to its end, or to the moment when it has said nothing for so long.

    `folder` gets the job, and stays the caller's; `heard` is told of each event, and what it raises ends the process;
    `hopeless` looks at what was printed; `environment`: what it has beside ours; `meanwhile` is called while it starts.
    """
    (folder / "job").write_text(json.dumps(job))
    events, printed = folder / "events", folder / "printed"
    events.touch()
    told = Told()
    with _leash(folder / "leash"), printed.open("wb") as sink:
        try:
            # A session of its own: the terminal's Ctrl-C reaches us alone, and we decide.
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=sink,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=os.environ | (environment or {}),
            )
        except OSError as error:
            told.how = f"could not be started: {error.strerror}"
            return told
        try:
            meanwhile()
            (folder / TURN).touch()
            for event in _events(process, events, printed, told, timeout_s, hopeless):
                told.take(event)
                heard(event)
        finally:
            _kill(process)
    told.how = told.how or _how(process.returncode)
    told.printed = printed.read_text(errors="replace")
    return told


@contextmanager
def _leash(path: Path) -> Iterator[None]:
    """A pipe that this process alone writes to, and never does: it ends when this process does, however that is."""
    os.mkfifo(path)
    held = os.open(path, os.O_RDWR)  # for reading too, or it would wait for the other end
    try:
        yield
    finally:
        os.close(held)


def _events(
    process: subprocess.Popen[bytes],
    path: Path,
    printed: Path,
    told: Told,
    timeout_s: float,
    hopeless: Callable[[str], bool],
) -> Iterator[Event]:
    patience, spoke = max(timeout_s, START_S), time.monotonic()
    part, looked_at = "", 0
    with path.open() as file:
        while True:
            over = process.poll() is not None  # asked first: what it said before its end is read after
            while line := file.readline():
                part += line
                if part.endswith("\n"):
                    yield json.loads(part)
                    part, patience, spoke = "", timeout_s, time.monotonic()
            if over:
                return
            size = printed.stat().st_size
            if size != looked_at and hopeless(printed.read_text(errors="replace")):
                return
            looked_at = size
            if time.monotonic() - spoke > patience:
                told.how = f"gave no sign of life for {patience:.0f} s"
                _end_gently(process, told.pid)
                return
            with suppress(subprocess.TimeoutExpired):
                process.wait(LOOK_UP_S)


def _end_gently(process: subprocess.Popen[bytes], pid: int | None) -> None:
    """End the process that hangs and let Nsight Compute keep what it has of the cells before."""
    if pid is not None and pid != process.pid:
        with suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """It, and whatever it started."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):  # one that is stuck in a driver does not die: leave it
        process.wait(GRACE_S)


def _how(code: int | None) -> str:
    if code is None:
        return "could not be ended"
    if code >= 0:
        return f"ended with exit code {code}"
    with suppress(ValueError):
        return f"was killed by {signal.Signals(-code).name}"
    return f"was killed by signal {-code}"
