"""The process that measures a shard: reads it as a line of JSON, answers in JSON lines on stdout. The lab's main path.

Events, in order: `environment` once; then for each case `progress` many times, `change`, `output` and `rows`, `bracket`
and `bracket-end`, `quiet` (these six wait for an answer), `beat` while nothing else is said, and `case` with its
measurements; `done`. Before all of them `ready`, from one that was started to stand by.
`refused` alone where the shard cannot run here; `broken` where a contestant left the device unusable. What libraries
and contestants print goes to stderr instead.
"""

from __future__ import annotations

import ctypes
import json
import os
import random
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, TextIO

from norm_fusion import backends
from norm_fusion.lifeline import die_with_parent
from norm_fusion.spec import CONTROL, EFFORTS, STANDBY, Shard

if TYPE_CHECKING:
    from norm_fusion.measure.parent import Parent

BROKEN = 70  # exit code: the device does not work any more in this process


def main() -> int:
    """Measure the shard on stdin; returns the exit code: 0 done, 2 refused, 70 broken."""
    out = _claim_stdout()
    die_with_parent()
    stopping = _stop_on_signal()
    answers = sys.stdin.buffer

    # torch takes seconds to import: after the channel, so that the parent's signals find their handler. The clocks
    # are taken here, before any contestant's code is.
    from norm_fusion.measure import environment
    from norm_fusion.measure.parent import Parent

    parent = Parent(out, answers, stopping)
    if STANDBY in sys.argv[1:]:
        _get_ready(parent)
    shard = Shard.from_dict(json.loads(answers.readline()))
    try:
        device = environment.resolve_device(shard.device)
        held = environment.lock(device)
    except environment.Refused as refusal:
        parent.send("refused", message=str(refusal))
        return 2
    if device.type == "cpu":
        # Before anything imports Triton: our kernels are verified in its interpreter here.
        os.environ["NORM_FUSION_FORCE_TRITON"] = os.environ["TRITON_INTERPRET"] = "1"
    environment.tune_anew()
    where = environment.describe(device)
    parent.send(
        "environment",
        environment=where.model_dump(),
        conditions=environment.conditions(device).model_dump(),
        total=_steps(shard, device.type),
    )

    import torch

    from norm_fusion.measure.case import Broken, CaseRun
    from norm_fusion.measure.ceiling import ceilings

    moved = ceilings(device, where.cache_bytes)
    effort = shard.effort or EFFORTS[device.type, shard.quick]
    order = list(shard.cases)
    random.Random(shard.seed).shuffle(order)
    with torch.inference_mode():
        for case in order:
            if stopping:
                break
            run = CaseRun(case, shard, device, effort, where.cache_bytes, moved, parent, lambda: bool(stopping))
            try:
                measurements = run.run()
            except Broken as broken:
                profile, reason = broken.args
                parent.send("broken", case=case.name, profile=profile, reason=reason)
                out.flush()
                os._exit(BROKEN)  # nothing on such a device can be cleaned up
            parent.send(
                "case",
                case=case.name,
                measurements=[m.model_dump(mode="json") for m in measurements],
                environment=environment.describe(device).model_dump(),
            )
            del run, measurements
            if device.type == "cuda":
                torch.cuda.empty_cache()
            else:
                _trim()
    parent.send(
        "done",
        conditions=environment.conditions(device).model_dump(),
        interrupted=bool(stopping),
    )
    if held is not None:
        held.release()
    out.flush()
    os._exit(0)  # nothing is left to do, and taking PyTorch down in order takes one to two seconds


def _get_ready(parent: Parent) -> None:
    """Import what measuring on a GPU needs, and say so; nothing is begun on the device.

    Compiling too: on an H200 a process that had to import that when its turn came took seven seconds longer.
    """
    from norm_fusion.measure import environment

    environment.import_compiler()
    import norm_fusion.measure.case
    import norm_fusion.measure.ceiling  # noqa: F401

    parent.send("ready")


def _trim() -> None:
    """Give memory that is free back to the system, which otherwise counts it as taken (glibc)."""
    with suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _steps(shard: Shard, device: str) -> int:
    """How many progress events a whole shard sends."""
    from norm_fusion.measure.case import series_of

    series = len(series_of(shard, device))
    skipped = {case for case, profile in shard.skip if profile == CONTROL}
    return sum(
        1
        + series
        + shard.yardsticks * (1 + (case.name not in skipped))
        + sum(
            backends.serves(name, case.op, case.pass_) and (case.name, name) not in shard.skip
            for name in shard.profiles
        )
        for case in shard.cases
    )


def _claim_stdout() -> TextIO:
    """The real stdout for events alone; whatever else is printed, by Python or below it, goes to stderr."""
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return channel


def _stop_on_signal() -> list[int]:
    """SIGTERM asks for an early end: the list is no longer empty, and loops look at it between rounds."""
    received: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    return received


if __name__ == "__main__":
    sys.exit(main())
