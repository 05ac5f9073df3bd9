"""What we write to may go away before we end: a pipe into head, a pager that is closed, a terminal whose line drops."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

GONE = (errno.EPIPE, errno.EIO)  # its reader; the terminal


class Lasting:
    """A stream that others may close: what is written afterwards goes nowhere, and nothing ends with it."""

    def __init__(self, stream: TextIO, bears: Callable[[OSError], bool]) -> None:
        self.stream, self.bears = stream, bears

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def _try(self, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as error:
            if not self.bears(error):
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.stream.fileno())
            os.close(nowhere)


def make_lasting() -> None:
    """From now on what is told on stderr never ends a command, and a reader of stdout may go when it has enough."""
    sys.stderr = Lasting(sys.stderr, lambda error: True)
    sys.stdout = Lasting(sys.stdout, lambda error: error.errno in GONE)
