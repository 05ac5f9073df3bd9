"""A call's kernels and their time by torch.profiler: a second source beside hardware counters, without permissions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median
from typing import Any

import torch
from torch.autograd import DeviceType  # type: ignore[attr-defined]

# Cold ones, each behind a read of neutral memory twice the cache's size.
CALLS = 10
# CUPTI tells copies and fills beside kernels; a call's time includes them, its kernels do not.
COPIES = ("Memcpy", "Memset")
MARK = "spin_kernel"


class NotTraced(Exception):
    """The trace does not show what a call does: the message says why."""


def trace(call: Callable[[], object], device: torch.device) -> tuple[int, float]:
    """How many kernels a call launches, and its time on the device in ms, gaps left out: the median of cold calls.

    Raises:
        NotTraced: there are no kernels in the trace, or not the same of each call.
    """
    neutral = torch.zeros(2 * torch.cuda.get_device_properties(device).L2_cache_size // 4, device=device)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as session:
        torch.cuda.synchronize()
        for _ in range(CALLS):
            # Kernels of known name: between the first and the second lies what empties the cache, then the call.
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
            neutral.sum()
            torch.cuda._sleep(1)  # type: ignore[no-untyped-call]
            call()
        torch.cuda.synchronize()
    return counted(session.profiler.kineto_results.events())


def counted(events: Iterable[Any]) -> tuple[int, float]:
    """The same of a trace's events, as torch.profiler's Kineto has them."""
    done = sorted(
        (event.start_ns(), event.duration_ns(), event.name())
        for event in events
        if event.device_type() == DeviceType.CUDA and not event.is_user_annotation()
    )
    spans: list[list[tuple[str, int]]] = []
    for _, duration, name in done:
        if MARK in name:
            spans.append([])
        elif spans:
            spans[-1].append((name, duration))
    calls = spans[1::2]
    if not done or not spans:
        raise NotTraced("CUPTI traced no kernels here")
    if len(spans) != 2 * CALLS:
        raise NotTraced(f"CUPTI traced {len(spans)} of {2 * CALLS} marks between the calls")
    kernels = [sum(not name.startswith(COPIES) for name, _ in call) for call in calls]
    if not all(calls):
        raise NotTraced("CUPTI traced no kernels of some calls")
    if len(set(kernels)) > 1:
        raise NotTraced(f"its kernels do not repeat from call to call: {min(kernels)} to {max(kernels)}")
    return kernels[0], median(sum(duration for _, duration in call) for call in calls) / 1e6
