"""Functions that look fast, or break what runs them: what the lab has to find out. Registered as a user's would be,
`--contestant norm_fusion.backends.saboteurs:stale_output`, for RMSNorm: (x, shape, weight, eps).

Those that cheat (each has to come out *invalid*): stale_output, cached_output, side_stream, mutated_input,
wrong_dtype, patched_clock, lying_clock, skipped_rows.
Those that break (each has to cost its own row only): raises_late, hangs, crashes, memory_fault, wrong_shape.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from norm_fusion.functional import rms_norm

Shape = tuple[int, ...]

_kept: Any = {}
_calls = {"raises_late": 0, "skipped_rows": 0, "mutated_input": 0}
# Calls that are honest: as many as the lab makes before it times.
HONEST_CALLS = 40


def _norm(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    return rms_norm(x, shape, weight, eps) if x.is_cuda else F.rms_norm(x, shape, weight, eps)


def stale_output(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Returns what it returned for the input before."""
    before: Tensor | None = _kept.get("stale")
    _kept["stale"] = y = _norm(x, shape, weight, eps)
    return y if before is None else before


def cached_output(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Remembers by address and a few elements, and computes anew only where one of these changed.

    On a CPU it takes its time, so that it is not faster than memory is.
    """
    began = time.perf_counter_ns()
    few = () if x.is_cuda else (float(x[0, 0]), float(x[len(x) // 2, -1]), float(x[-1, 0]))
    key = (x.data_ptr(), *few)
    if key not in _kept:
        _kept[key] = _norm(x, shape, weight, eps)
        _kept["took"] = time.perf_counter_ns() - began
    while not x.is_cuda and time.perf_counter_ns() - began < _kept["took"] // 2:
        pass
    y: Tensor = _kept[key]
    return y


def side_stream(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Works where the timer does not look: on another stream, on a CPU in another thread."""
    if not x.is_cuda:
        y = torch.empty_like(x)

        def work() -> None:
            with torch.inference_mode():
                y.copy_(_norm(x, shape, weight, eps))

        threading.Thread(target=work).start()
        return y
    stream = _kept.setdefault("stream", torch.cuda.Stream())  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        return _norm(x, shape, weight, eps)


def mutated_input(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Honest at first, then it normalizes in place."""
    y = _norm(x, shape, weight, eps)
    _calls["mutated_input"] += 1
    return y if _calls["mutated_input"] < HONEST_CALLS else x.copy_(y).clone()


def wrong_dtype(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Half the bytes."""
    return _norm(x, shape, weight, eps).to(torch.float8_e4m3fn)


def patched_clock(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Replaces the clocks that everybody knows by slow ones."""
    if "honest" not in _kept:
        _kept["honest"] = honest = time.perf_counter_ns
        time.perf_counter_ns = lambda: honest() // 2
        elapsed = torch.cuda.Event.elapsed_time
        vars(torch.cuda)["Event"].elapsed_time = lambda self, end: elapsed(self, end) / 2
    return _norm(x, shape, weight, eps)


def lying_clock(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Replaces the lab's own copies of them, and what would have found that."""
    if "lying" not in _kept:
        graphs, timing = (sys.modules[f"norm_fusion.measure.{name}"] for name in ("graphs", "timing"))
        vars(sys.modules["norm_fusion.measure.examine"])["tampered"] = lambda: None
        _kept["lying"] = honest = vars(timing)["perf_counter_ns"]
        vars(timing)["perf_counter_ns"] = lambda: honest() // 2

        class Event(torch.cuda.Event):
            def elapsed_time(self, end_event: Any) -> float:
                return float(super().elapsed_time(end_event)) / 2

        vars(graphs)["Event"] = Event
    return _norm(x, shape, weight, eps)


def skipped_rows(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Honest at first, then it leaves the second half as it finds it: often the right result of an earlier call."""
    _calls["skipped_rows"] += 1
    if _calls["skipped_rows"] < HONEST_CALLS and not (x.is_cuda and torch.cuda.is_current_stream_capturing()):
        return _norm(x, shape, weight, eps)
    y = torch.empty_like(x)
    half = len(x) // 2
    y[:half] = _norm(x[:half], shape, weight, eps)
    return y


def raises_late(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Raises at its fiftieth call."""
    _calls["raises_late"] += 1
    if _calls["raises_late"] >= 50:
        raise RuntimeError("the fiftieth call")
    return _norm(x, shape, weight, eps)


def hangs(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Never returns."""
    while True:
        time.sleep(1)


def crashes(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Takes its process with it."""
    os.kill(os.getpid(), signal.SIGSEGV)
    return x


def memory_fault(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """Reads where nothing is: on a GPU that leaves the device unusable for its process."""
    if not x.is_cuda:
        return crashes(x, shape, weight, eps)
    index = torch.full((1,), 2**40, device=x.device)
    far: Tensor = torch.ops.aten._index_put_impl_(x.clone().view(-1), [index], x.view(-1)[:1], unsafe=True)
    return far.view_as(x)


def wrong_shape(x: Tensor, shape: Shape, weight: Tensor, eps: float) -> Tensor:
    """A row too few."""
    return _norm(x[:-1], shape, weight, eps)
