"""The physical ceiling: how fast this device reads and writes its memory, measured in the process that measures.

No kernel that moves its compulsory bytes can be faster, whatever its size: a cold series above it is not of such a
kernel. It is taken from a buffer far larger than the cache, so that no launch and no hit is in it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from norm_fusion.backends import roof
from norm_fusion.measure.clocks import perf_counter_ns
from norm_fusion.metrics import gbps

# Eight times the cache: a tenth of the buffer may survive in it from one pass to the next, and makes the ceiling high.
CACHE_MULTIPLE = 8
PASSES = 9


def ceilings(device: torch.device, cache_bytes: int) -> dict[str, float]:
    """`read` and `write` in GB/s, the best of several passes each; nothing where memory is too short to measure it."""
    try:
        buffer = torch.zeros(CACHE_MULTIPLE * cache_bytes // 4, device=device)
        return _on_gpu(buffer) if device.type == "cuda" else _on_cpu(buffer)
    except (torch.OutOfMemoryError, MemoryError):
        return {}


def _on_gpu(buffer: Tensor) -> dict[str, float]:
    def ms(move: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(PASSES):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
            torch.cuda._sleep(100_000)  # type: ignore[no-untyped-call]  # behind it the queue is never empty
            start.record()
            move()
            end.record()
            end.synchronize()
            best = min(best, start.elapsed_time(end))
        return best

    return _rates(buffer, min(map(ms, roof.reads(buffer))), ms(buffer.zero_))


def _on_cpu(buffer: Tensor) -> dict[str, float]:
    def ms(move: Callable[[], object]) -> float:
        best = float("inf")
        for _ in range(PASSES):
            start = perf_counter_ns()
            move()
            best = min(best, (perf_counter_ns() - start) / 1e6)
        return best

    return _rates(buffer, ms(buffer.sum), ms(buffer.zero_))


def _rates(buffer: Tensor, read_ms: float, write_ms: float) -> dict[str, float]:
    return {"read": gbps(buffer.nbytes, read_ms), "write": gbps(buffer.nbytes, write_ms)}
