"""The processes of a run: one that measures, and one that judges rows out of its reach.

Little is imported here: a shard's process starts its worker before anything else, as that takes seconds to be ready.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from norm_fusion.spec import CRUMB, CRUMB_BYTES, STANDBY

WORKER = [sys.executable, "-m", "norm_fusion.measure.worker"]
VERIFIER = [sys.executable, "-m", "norm_fusion.measure.verifier"]
# Before its first case a worker imports PyTorch, which on a slow disk takes longer than any contestant should.
START_S = 120
# One that said its last word has this long to go.
END_S = 20
# The verifier judges a few rows: longer than this and it hangs.
VERIFIER_S = 120
# A message is at most a few rows in base64, or the samples of a case: longer is rubbish.
MAX_LINE = 2**30
# A worker keeps the memory that it frees (glibc): else every large output is new memory that the kernel has to zero,
# which takes three to five times as long as a normalization on a CPU, and p95 twice as long again.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
# What is kept of all that a worker prints: the end.
LOG_CHARACTERS = 2**20


class Unjudged(Exception):
    """No verifier lives long enough to judge."""


@dataclass(frozen=True)
class Remains:
    """What a worker leaves: its exit code, what it printed, and case and profile whose code ran last."""

    code: int
    log: str
    last: tuple[str, str] | None


class Worker:
    """A measuring process. `lines` are its messages with the moment of their arrival, an empty one at the end.

    `standby`: it imports PyTorch and waits, so that a run of several has not to wait for that each time.
    """

    def __init__(self, standby: bool = False) -> None:
        self.crumb = tempfile.TemporaryFile()  # noqa: SIM115 - has no name: nobody has to clean up behind us
        self.crumb.write(bytes(CRUMB_BYTES))
        self.crumb.flush()
        # A session of its own: the terminal's Ctrl-C reaches us alone, and we decide.
        self.process = subprocess.Popen(
            WORKER + [STANDBY] * standby,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            pass_fds=[self.crumb.fileno()],
            env=os.environ | KEEP_MEMORY | {CRUMB: f"/dev/fd/{self.crumb.fileno()}"},
        )
        self.lines: queue.Queue[tuple[float, bytes]] = queue.Queue()
        self.spoke = threading.Event()
        self.log = ""
        self.printing = threading.Thread(target=self._print, daemon=True)
        self.printing.start()
        self.reading = threading.Thread(target=self._read, daemon=True)
        self.reading.start()

    @property
    def gone(self) -> bool:
        """Has it ended, asked or not?"""
        return self.process.poll() is not None

    @property
    def pid(self) -> int:
        return self.process.pid

    def ready(self) -> None:
        """Wait until one on standby has nothing left to import, or is gone."""
        self.spoke.wait(START_S)

    def tell(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it died meanwhile: its exit code says so
            self.process.stdin.write(json.dumps(message).encode() + b"\n")
            self.process.stdin.flush()

    def stop(self, at_once: bool, grace_s: float) -> None:
        """Ask it to end after the current round, or end it."""
        self.process.send_signal(signal.SIGKILL if at_once else signal.SIGTERM)
        timer = threading.Timer(grace_s, self.process.kill)
        timer.daemon = True
        timer.start()

    def kill(self) -> None:
        """It, and whatever it started."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:
            self.process.kill()

    def end(self) -> Remains:
        """Wait for its end, which it has announced or was brought about, and clean up behind it."""
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self._killed()
        self.kill()  # what it started and left behind
        # A child that made a session of its own outlives that, and holds our pipes open: they are left to it.
        self.printing.join(timeout=1)
        self.reading.join(timeout=1)
        if not self.printing.is_alive() and not self.reading.is_alive():
            _close(self.process)
        with self.crumb as crumb:
            crumb.seek(0)
            left = crumb.read().rstrip(b"\0").decode(errors="replace").split("\n")
        return Remains(code, self.log, (left[0], left[1]) if len(left) == 2 else None)

    def _killed(self) -> int:
        """The code of one that was killed; one that is stuck in a driver does not die, and is left to it."""
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(END_S)
        return -signal.SIGKILL

    def _read(self) -> None:
        assert self.process.stdout is not None
        line = b"first"
        while line:
            line = self.process.stdout.readline(MAX_LINE)
            self.lines.put((time.monotonic(), line))
            self.spoke.set()

    def _print(self) -> None:
        stream: Any = self.process.stderr
        while data := stream.read1(2**16):
            self.log = (self.log + data.decode(errors="replace"))[-LOG_CHARACTERS:]


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
        raise Unjudged("could not be judged: the verifier died twice; its last words are above")

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            _close(self.process)
            self.process = None


def _close(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
