"""The process that measures one shard: reads a task as a line of JSON, tells messages on stdout, a line each. No torch.

The same here and on a cluster's node. SIGTERM asks for an early end, a second one ends it at once.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from typing import TYPE_CHECKING

from norm_fusion.engine.processes import Worker
from norm_fusion.lifeline import die_with_parent

if TYPE_CHECKING:
    from norm_fusion.engine import messages as m


def main() -> int:
    """Measure the shard on stdin; the exit code is 0 where it could be told to its end."""
    die_with_parent()
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what anything else prints is no message
    worker = Worker()  # it imports PyTorch, and we meanwhile what follows from its samples

    from norm_fusion.engine import messages as m
    from norm_fusion.engine.session import Session

    telling = threading.Lock()

    def tell(message: m.Message) -> None:
        with telling:
            out.write(message.model_dump_json(by_alias=True) + "\n")
            out.flush()

    session = Session(m.Task.model_validate_json(sys.stdin.readline()), tell, worker)
    signal.signal(signal.SIGTERM, lambda number, frame: session.stop(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started us decides what Ctrl-C means
    over = threading.Event()

    def beat() -> None:
        while not over.wait(m.BEAT_S):
            tell(m.Beat())

    threading.Thread(target=beat, daemon=True).start()
    session.measure()
    over.set()
    return 0


if __name__ == "__main__":
    sys.exit(main())
