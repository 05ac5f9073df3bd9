"""The worker's end of its conversation with the process that judges: JSON lines out, answers in, and a breadcrumb."""

from __future__ import annotations

import json
import mmap
import os
from collections.abc import Sequence
from typing import Any, BinaryIO, TextIO

from norm_fusion.measure.clocks import monotonic, watch
from norm_fusion.spec import CRUMB, CRUMB_BYTES

# The parent gives up on a worker that says nothing for longer than its timeout: inside a series this is often enough.
BEAT_S = 1.0


class Parent:
    """Who started this process. `out` carries events alone, `answers` its replies to those that ask.

    `stopping` is not empty once a signal came: whose code ran then is what stays noted.
    """

    def __init__(self, out: TextIO, answers: BinaryIO, stopping: Sequence[int] = ()) -> None:
        self.out, self.answers, self.stopping = out, answers, stopping
        self.pid = os.getpid()
        self.last_beat = monotonic()
        self.crumb: mmap.mmap | None = None
        if os.environ.get(CRUMB):
            with open(os.environ[CRUMB], "r+b") as file:
                self.crumb = mmap.mmap(file.fileno(), CRUMB_BYTES)

    def send(self, event: str, **data: Any) -> None:
        if os.getpid() != self.pid:
            os._exit(1)  # a contestant forked: what is measured, is measured by one process
        self.out.write(json.dumps({"event": event, **data}) + "\n")
        self.out.flush()

    def ask(self, event: str, **data: Any) -> dict[str, Any]:
        """Send an event and wait for the answer."""
        self.send(event, **data)
        line = self.answers.readline()
        if not line:
            raise EOFError("the process that started this one is gone")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def at(self, case: str, profile: str) -> None:
        """Note whose code runs next: read after a crash or a hang, when nobody can be asked any more."""
        if self.crumb is not None and not self.stopping and os.getpid() == self.pid:
            self.crumb[:] = f"{case}\n{profile}".encode()[:CRUMB_BYTES].ljust(CRUMB_BYTES, b"\0")
        if monotonic() - self.last_beat > BEAT_S:
            self.last_beat = monotonic()
            self.send("beat")


watch(Parent, "send", "ask", "at")
