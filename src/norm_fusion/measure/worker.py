"""The process that measures a shard: reads it as JSON from stdin, answers in JSON lines on stdout. The lab's main path.

Events, in order: `environment` once; `progress` many times; `case` with its measurements after each case; `done`.
`refused` alone where the shard cannot run here. What libraries and contestants print goes to stderr instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
from typing import Any, TextIO

from norm_fusion import backends
from norm_fusion.spec import EFFORTS, Case, Shard

PR_SET_PDEATHSIG = 1


class Channel:
    """Events to the parent, one JSON line each."""

    def __init__(self, out: TextIO) -> None:
        self.out = out

    def send(self, event: str, **data: Any) -> None:
        self.out.write(json.dumps({"event": event, **data}) + "\n")
        self.out.flush()


def main() -> int:
    """Measure the shard on stdin; returns the exit code: 0 done, 2 refused."""
    channel = Channel(_claim_stdout())
    _die_with_parent()
    stopping = _stop_on_signal()
    shard = Shard.from_dict(json.load(sys.stdin))

    # torch takes seconds to import: after the channel, so that the parent's signals find their handler.
    from norm_fusion.measure import environment

    try:
        device = environment.resolve_device(shard.device)
        held = environment.lock(device)
    except environment.Refused as refusal:
        channel.send("refused", message=str(refusal))
        return 2
    if device.type == "cpu":
        # Before anything imports Triton: our kernels are verified in its interpreter here.
        os.environ["NORM_FUSION_FORCE_TRITON"] = os.environ["TRITON_INTERPRET"] = "1"
    where = environment.describe(device)
    before = environment.conditions(device)
    channel.send(
        "environment", environment=where.model_dump(), conditions=before.model_dump(), total=_steps(shard, device.type)
    )

    import torch

    from norm_fusion.measure.case import CaseRun

    effort = EFFORTS[device.type, shard.quick]
    order = list(shard.cases)
    random.Random(shard.seed).shuffle(order)
    with torch.inference_mode():
        for case in order:
            if stopping:
                break
            channel.send("progress", case=case.name, what="draw inputs")

            def progress(what: str, case: Case = case) -> None:
                channel.send("progress", case=case.name, what=what)

            run = CaseRun(
                case, shard.profiles, device, effort, where.cache_bytes, shard.seed, progress, lambda: bool(stopping)
            )
            measurements = run.run()
            channel.send("case", case=case.name, measurements=[m.model_dump(mode="json") for m in measurements])
            del run, measurements
            if device.type == "cuda":
                torch.cuda.empty_cache()
    channel.send("done", conditions=environment.conditions(device).model_dump(), interrupted=bool(stopping))
    if held is not None:
        held.release()
    return 0


def _steps(shard: Shard, device: str) -> int:
    """How many progress events a whole shard sends."""
    from norm_fusion.measure.case import CPU_SERIES, CUDA_SERIES

    series = CPU_SERIES if device == "cpu" else CUDA_SERIES
    return sum(1 + len(series) + sum(backends.serves(name, case.op) for name in shard.profiles) for case in shard.cases)


def _claim_stdout() -> TextIO:
    """The real stdout for events alone; whatever else is printed, by Python or below it, goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _die_with_parent() -> None:
    """A measuring process without its parent would hold the device for nobody (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop_on_signal() -> list[int]:
    """SIGTERM asks for an early end: the list is no longer empty, and loops look at it between rounds."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    return received


if __name__ == "__main__":
    sys.exit(main())
