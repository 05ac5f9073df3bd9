"""The process whose calls are profiled: `python -m norm_fusion.profiling.cells FOLDER`, which holds a job.

Each cell, a profile of a case, is prepared as it is when measured: the same inputs, everything compiled and tuned
before. Then one call lies within an NVTX range that names the cell, for Nsight Compute around this process; or, where
the job says `trace`, a few lie in a trace of torch.profiler. One that raises costs its own cell.

Events, lines of JSON in the folder's file of that name: `ready`, or `refused` alone; of each cell `begin`, then `done`
or `failed`; `finished`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from norm_fusion.profiling import child
from norm_fusion.profiling.counters import Label
from norm_fusion.records import Status, first_line
from norm_fusion.spec import ITEMSIZE, ROOF, Case, Matmul, Pass, profiled

if TYPE_CHECKING:
    import torch

# Calls that compile, tune and settle, outside of all ranges.
WARM_UP = 3
BROKEN = 70  # exit code: the device does not work any more in this process

Call = Callable[[], object]


def main() -> int:
    """Run the job of a folder; returns the exit code: 0 done, 2 refused, 70 broken."""
    folder = Path(sys.argv[1])
    _own_folder()
    threading.Thread(target=_leashed, args=[folder / "leash"], daemon=True).start()
    _await(folder / child.TURN)
    job = json.loads((folder / "job").read_text())
    with (folder / "events").open("a") as file:

        def say(event: str, **data: Any) -> None:
            file.write(json.dumps({"event": event, **data}) + "\n")
            file.flush()

        return _work(job, say)


def _own_folder() -> None:
    """Temporary files are where the caller's are, our card's lock and what compilers keep among them: see ncu.py."""
    told = os.environ.pop(child.TEMPORARY, None)
    if told is not None:
        del os.environ["TMPDIR"]
        os.environ |= {"TMPDIR": told} if told else {}
        tempfile.tempdir = None


def _leashed(path: Path) -> None:
    """End, with whoever profiles this process, when the one that asked for it is gone: see child.py."""
    with path.open("rb") as leash:
        leash.read()
    os.killpg(0, signal.SIGKILL)


def _await(turn: Path) -> None:
    """Import what takes seconds, and wait until the device is ours to use."""
    if turn.exists():
        return
    from norm_fusion.measure import environment

    environment.import_compiler()
    while not turn.exists():
        time.sleep(child.LOOK_UP_S)


def _work(job: Mapping[str, Any], say: Callable[..., None]) -> int:
    # torch takes seconds to import.
    import torch

    from norm_fusion.measure import environment

    try:
        device = environment.resolve_device(job["device"])
        held = environment.lock(device)
    except environment.Refused as refusal:
        say("refused", message=str(refusal))
        return 2
    say("ready", pid=os.getpid())
    before = None
    for number, name, profile in job["cells"]:
        case = profiled(name)
        if case != before and "torch._dynamo" in sys.modules:
            torch._dynamo.reset()  # a recompile limit that earlier cases reached would turn compiled profiles eager
        before = case
        say("begin", cell=number)
        try:
            with _gradients(case):
                say("done", cell=number, **_run(case, profile, device, job))
        except Exception as error:  # noqa: BLE001 - a contestant may raise anything: it costs its own cell
            traceback.print_exception(error)
            say("failed", cell=number, **_why(error))
            if _broken(device):
                return BROKEN
        if device.type == "cuda":
            torch.cuda.empty_cache()  # each replay of a kernel saves and restores what the process holds
    say("finished")
    if held is not None:
        held.release()
    return 0


@contextmanager
def _gradients(case: Case | Matmul) -> Iterator[None]:
    """As when it is measured; and a backward runs in this thread, since a range is its thread's own."""
    import torch

    if isinstance(case, Matmul) or case.pass_ is Pass.FORWARD:
        with torch.inference_mode():
            yield
    else:
        with torch.inference_mode(False), torch.no_grad(), torch.autograd.set_multithreading_enabled(False):
            yield


def _run(case: Case | Matmul, profile: str, device: torch.device, job: Mapping[str, Any]) -> dict[str, Any]:
    """What there is to say of a cell: which calls it is, as names, and of a trace what that found of the fastest."""
    import torch

    calls = calls_of(case, profile, device, job["seed"])
    found = {"resolved": list(calls)}
    traced = []
    for variant, call in enumerate(calls.values()):
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize()
        if job["trace"]:
            from norm_fusion.profiling.traced import trace

            traced.append(trace(call, device))
        else:
            with _named(Label(case.name, profile, variant)):
                call()
                torch.cuda.synchronize()
    if not traced:
        return found
    kernels, ms = min(traced, key=lambda one: one[1])
    return found | {"kernels": kernels, "ms": ms}


@contextmanager
def _named(label: Label) -> Iterator[None]:
    """A range of NVTX around a call."""
    from torch.cuda import nvtx

    nvtx.range_push(str(label))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        nvtx.range_pop()  # type: ignore[no-untyped-call]


def calls_of(case: Case | Matmul, profile: str, device: torch.device, seed: int) -> Mapping[str, Call]:
    """A profile's call on fresh operands, by the name of what really runs; of the roof all copies to choose from.

    Raises:
        Unavailable: something that the profile needs is missing on this machine.
    """
    from norm_fusion import backends
    from norm_fusion.backends import matmul, roof
    from norm_fusion.backends.passes import get_ready
    from norm_fusion.measure.inputs import draw_input, draw_operands

    if isinstance(case, Matmul):
        ready = matmul.prepare(profile, case, device, seed)
        return {ready.resolved: ready.launch}
    x = draw_input(case, device, seed + 1)
    if profile == ROOF:
        copies = roof.copies([x], case.moved_bytes // 2 // ITEMSIZE[case.dtype])
        return {name: partial(copy, x) for name, copy in copies.items()}
    prepared = backends.prepare(profile, draw_operands(case, device, seed), device)
    get_ready(prepared.launch, x)
    return {prepared.resolved: partial(prepared.launch, x)}


def _why(error: Exception) -> dict[str, str | None]:
    """An exception as status, reason and remedy."""
    import torch

    from norm_fusion.backends.builtin import Unavailable, missing_program
    from norm_fusion.profiling.traced import NotTraced

    if isinstance(error, Unavailable):
        return {"status": Status.UNAVAILABLE, "reason": error.reason, "remedy": error.remedy}
    if isinstance(error, NotTraced):
        remedy: str | None = (
            "detach other profilers (nsys, ncu, DCGM); see that libcupti belongs to torch's CUDA version"
        )
        return {"status": Status.FAILED, "reason": str(error), "remedy": remedy}
    if program := missing_program(error):
        reason = f"it runs the program {program!r}, which is not on PATH"
        return {"status": Status.UNAVAILABLE, "reason": reason, "remedy": "install it"}
    full = isinstance(error, (torch.OutOfMemoryError, MemoryError))
    remedy = "use fewer rows or columns, or a GPU with more memory" if full else None
    return {"status": Status.FAILED, "reason": first_line(error), "remedy": remedy}


def _broken(device: torch.device) -> bool:
    """Did an error leave the device unusable for this process?"""
    import torch

    if device.type != "cuda":
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


if __name__ == "__main__":
    sys.exit(main())
