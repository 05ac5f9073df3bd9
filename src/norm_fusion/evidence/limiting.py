"""What limits a profile of a case, from its hardware counters: a kind, and a sentence with the figures it follows from.

The yardstick of memory is a copy of the same bytes, profiled the same way: one cold call of a few dozen MB reaches a
little more than half of memory's peak, whoever makes it, as it has to begin and to end, and some of what it wrote stays
in L2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from norm_fusion.records import Counters, Status

Kind = Literal["memory roof", "launch", "tensor pipe", "instructions", "occupancy", "latency", "not collected"]

# Kernels of four programs that touch 22 kB take 2.1 to 2.4 us on an H200: up to twice that, one is mostly its own
# beginning and end.
LAUNCH_MS = 0.0048
# Where the copy itself is no longer than that, up to so much longer than the copy: on an H200 what takes 1.9 times as
# long has a twentieth of the warps resident, and what takes 1.6 times as long is like the copy in everything else.
AS_THE_COPY = 1.6
# Nsight Compute's own rules call a resource above 80% of its peak the limit: of memory the roof stands for the peak.
NEAR_ROOF = 0.8
# They speak of latency where everything is below 60% of its peak.
SATURATED_PCT = 60.0
# Where no copy was profiled: what an H200 reaches in one cold call that copies 67 MB.
COPY_PCT = 55.0
# An H200 needs 4.8 TB/s x 0.7 us = 25 KB in flight on each of its 132 SMs to fill its memory's bandwidth. With two
# loads of 16 bytes a thread, two fifths of the 2,048 threads have them.
RESIDENT_PCT = 40.0
# A matrix product keeps its tiles in registers and runs few warps by design: cuBLAS has 15% resident and the tensor
# pipes 90% busy. Occupancy says nothing of a kernel that uses them.
TENSOR_IDLE_PCT = 5.0
# Bytes moved over those that have to be: more than this is worth a word.
MUCH_TRAFFIC = 1.25


@dataclass(frozen=True)
class Limit:
    """What limits a call, and from which counters that follows."""

    kind: Kind
    sentence: str


@dataclass(frozen=True)
class Traffic:
    """Bytes that memory moved over the compulsory ones, and what that ratio does not say."""

    ratio: float
    sentence: str


def limit(counters: Counters, roof: Counters | None = None) -> Limit:
    """What limits a call; `roof`: the counters of the copy of the same case, on the same device."""
    dram, sm, tensor = counters.dram_pct, counters.sm_pct, counters.tensor_pct
    duration, resident = counters.duration_ms, counters.occupancy_pct
    if counters.status is not Status.OK or dram is None or duration is None or not counters.kernels:
        return Limit("not collected", counters.reason or "not collected: the counters that it follows from are missing")
    reached, memory = _of_the_roof(dram, roof)
    each = duration / len(counters.kernels)
    # A copy that is mostly its own beginning and end says nothing of memory.
    copy_ms = _each(roof)
    small = copy_ms is not None and copy_ms <= LAUNCH_MS
    if each <= LAUNCH_MS or (copy_ms is not None and small and each <= AS_THE_COPY * copy_ms):
        kernels = "its kernel takes" if len(counters.kernels) == 1 else f"its {len(counters.kernels)} kernels take"
        on_average = "" if len(counters.kernels) == 1 else " on average"
        why = "about what it takes to begin and end one"
        if each > LAUNCH_MS and copy_ms is not None:
            why = f"and the copy's {copy_ms * 1e3:.1f} µs, which is mostly its beginning and end"
        sentence = f"{kernels} {each * 1e3:.1f} µs{on_average}, {why}; {memory}{_much_traffic(counters)}"
        return _limit("launch", sentence)
    if tensor is not None and tensor >= max(SATURATED_PCT, min(100.0, 100 * reached)):
        return _limit("tensor pipe", f"the tensor pipes are busy {tensor:.0f}% of the time; DRAM is at {dram:.0f}%")
    if reached >= NEAR_ROOF and not small:
        return _limit("memory roof", f"{memory}{_with_resident(resident)}{_much_traffic(counters)}")
    if sm is not None and sm >= SATURATED_PCT:
        busiest = f"the multiprocessors' busiest part is at {sm:.0f}% of its peak; {memory}"
        return _limit("instructions", busiest + _much_traffic(counters))
    if resident is not None and resident < RESIDENT_PCT and (tensor is None or tensor < TENSOR_IDLE_PCT):
        few = f"only {resident:.0f}% of the warps are resident, too few to wait for memory while others work"
        return _limit("occupancy", f"{few}; {memory}{_much_traffic(counters)}")
    busy = [f"{name} at {pct:.0f}%" for name, pct in (("multiprocessors", sm), ("tensor pipes", tensor)) if pct]
    others = f", {', '.join(busy)}" if busy else ""
    return _limit(
        "latency", f"nothing is saturated: {memory}{others}{_with_resident(resident)}{_much_traffic(counters)}"
    )


def _each(counters: Counters | None) -> float | None:
    """The time of a kernel, on average."""
    if counters is None or counters.duration_ms is None or not counters.kernels:
        return None
    return counters.duration_ms / len(counters.kernels)


def traffic(counters: Counters) -> Traffic | None:
    """What memory moved against what has to be moved; None where it was not collected."""
    if counters.status is not Status.OK or counters.dram_bytes is None:
        return None
    ratio = counters.dram_bytes / counters.compulsory_bytes
    said = (
        f"DRAM moved {counters.dram_bytes / 1e6:.1f} MB, {ratio:.2f} of the {counters.compulsory_bytes / 1e6:.1f} MB "
        "that have to be; what L2 still held to be written when a kernel ended is not counted"
    )
    return Traffic(ratio, said + (", so less than 1 saves nothing" if ratio < 1 else ""))


def _limit(kind: Kind, sentence: str) -> Limit:
    return Limit(kind, f"{kind}: {sentence}")


def _of_the_roof(dram_pct: float, roof: Counters | None) -> tuple[float, str]:
    """Memory's throughput over a copy's, and that in words."""
    if roof is None or not roof.dram_pct:
        known = f"an H200's copy reaches {COPY_PCT:.0f}%, none was profiled here"
        return dram_pct / COPY_PCT, f"DRAM at {dram_pct:.0f}% of its peak ({known})"
    reached = dram_pct / roof.dram_pct
    copy = f"what a copy of the same bytes reaches ({roof.dram_pct:.0f}%)"
    return reached, f"DRAM at {dram_pct:.0f}% of its peak is {reached:.2f} of {copy}"


def _with_resident(resident: float | None) -> str:
    return "" if resident is None else f", with {resident:.0f}% of the warps resident"


def _much_traffic(counters: Counters) -> str:
    found = traffic(counters)
    if found is None or found.ratio < MUCH_TRAFFIC:
        return ""
    count = len(counters.kernels)
    return f"; {'it moves' if count == 1 else f'its {count} kernels move'} {found.ratio:.1f} times the bytes needed"
