"""Clocks, taken before any contestant's code is imported, and the probe that says how fast the machine runs meanwhile.

A contestant shares this process and could replace any of them, what of the lab reads them, or what it is compared with.
`tampered` finds what was replaced by name; what it cannot find, the parent may find with its own clock around many
calls (engine).
"""

from __future__ import annotations

import sys
import time
from typing import Any

import torch
import torch.nn.functional as F

perf_counter_ns = time.perf_counter_ns
monotonic = time.monotonic

# Whoever wants to look faster, right, or faster than others, replaces one of these.
_WATCHED: list[tuple[Any, str]] = [
    (time, "perf_counter_ns"),
    (time, "perf_counter"),
    (time, "monotonic"),
    (torch.cuda, "synchronize"),
    (torch.cuda.Event, "record"),
    (torch.cuda.Event, "elapsed_time"),
    (torch.cuda.Event, "synchronize"),
    (torch.cuda.CUDAGraph, "replay"),
    (torch.profiler, "profile"),
    *((F, name) for name in ("rms_norm", "layer_norm")),
    *((torch, name) for name in ("compile", "empty_like", "equal", "rsqrt", "rms_norm", "layer_norm")),
    *((torch.Tensor, name) for name in ("clone", "copy_", "fill_", "float", "mean", "mul", "pow", "sum", "to", "view")),
]
_ORIGINALS = [getattr(owner, name) for owner, name in _WATCHED]

# 100 us at 2 GHz: an event's resolution of 0.5 us is half a percent of it, and medians over blocks are compared.
GPU_PROBE_CYCLES = 200_000
# About 0.1 ms of Python's own arithmetic.
CPU_PROBE_STEPS = 4_000


def watch(owner: str | type, *names: str) -> None:
    """Count names of one of the lab's own modules, or classes, as clocks too."""
    where = sys.modules[owner] if isinstance(owner, str) else owner
    for name in names:
        _WATCHED.append((where, name))
        _ORIGINALS.append(getattr(where, name))


def tampered() -> str | None:
    """The names of clocks that are no longer the ones of this process's start, put back; None if all are."""
    found = []
    for (owner, name), original in zip(_WATCHED, _ORIGINALS, strict=True):
        if getattr(owner, name) is not original:
            setattr(owner, name, original)
            found.append(f"{getattr(owner, '__name__', owner)}.{name}")
    return ", ".join(found) or None


class GpuProbe:
    """A fixed number of the SM's cycles, timed by events: enqueue it before a block, read it after the block's end."""

    def __init__(self) -> None:
        self.start, self.end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]

    def enqueue(self) -> None:
        # Ahead of it as much again, so that the queue is never empty: a slow host needs 30 us for what follows.
        torch.cuda._sleep(GPU_PROBE_CYCLES)  # type: ignore[no-untyped-call]
        self.start.record()
        torch.cuda._sleep(GPU_PROBE_CYCLES)  # type: ignore[no-untyped-call]
        self.end.record()

    def ms(self) -> float:
        self.end.synchronize()
        return float(self.start.elapsed_time(self.end))


class CpuProbe:
    """A fixed amount of arithmetic on this thread."""

    def enqueue(self) -> None:
        start = perf_counter_ns()
        total = 0
        for step in range(CPU_PROBE_STEPS):
            total += step
        self.took = (perf_counter_ns() - start) / 1e6

    def ms(self) -> float:
        return self.took
