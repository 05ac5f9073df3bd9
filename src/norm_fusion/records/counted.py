"""What hardware counters and a trace say of a call."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from norm_fusion.records.base import SCHEMA, Count, NotNegative, Status, Stored


class KernelCounters(Stored):
    """One kernel of a call as hardware counters saw it: replayed alone, caches flushed, clocks left as they were.

    Its duration is that of one replay, never a latency. What was not collected is null.
    """

    name: str
    grid: tuple[int, int, int] | None = None  # blocks in x, y, z
    block: tuple[int, int, int] | None = None  # threads
    registers: Count | None = None  # a thread
    duration_ms: NotNegative | None = None
    dram_read_bytes: Count | None = None
    dram_write_bytes: Count | None = None  # while it ran: what L2 still holds at its end is not counted
    dram_pct: NotNegative | None = None  # of the peak throughput of memory
    occupancy_pct: NotNegative | None = None  # warps resident on a multiprocessor that has any, of the most it can hold
    l2_hit_pct: NotNegative | None = None  # of sectors; two passes count what it is a ratio of: may exceed 100
    sm_pct: NotNegative | None = None  # of the peak of the multiprocessors' busiest part
    tensor_pct: NotNegative | None = None  # of the peak of the tensor pipes


class Counters(Stored):
    """One cold call of one profile of one case: what hardware counters say of its kernels, and what a trace says.

    Totals are sums of the kernels, percentages their means weighted by duration, registers the most of any. What was
    not collected is null, with a reason and a remedy; so are all totals of a call some kernel of which lacks a value.
    """

    schema_version: int = SCHEMA
    run_id: str
    case: str
    profile: str
    resolved_backend: str | None = None  # what really ran
    status: Status
    reason: str | None = None
    remedy: str | None = None
    tool: str | None = None  # which profiler, and what read its report
    kernels: list[KernelCounters] = Field(default_factory=list)  # in the order of their launches
    duration_ms: NotNegative | None = None
    dram_bytes: Count | None = None  # read and written
    dram_pct: NotNegative | None = None
    occupancy_pct: NotNegative | None = None
    l2_hit_pct: NotNegative | None = None
    sm_pct: NotNegative | None = None
    tensor_pct: NotNegative | None = None
    registers: Count | None = None
    compulsory_bytes: Annotated[Count, Field(gt=0)]
    traced_kernels: Count | None = None  # of a call, by torch.profiler, which needs no permission
    traced_ms: NotNegative | None = None  # the same call's time on the device, gaps left out: median of some cold calls
    traced_reason: str | None = None  # why it was not traced
    fingerprint: str
