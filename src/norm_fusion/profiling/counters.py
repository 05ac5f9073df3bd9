"""What is counted, and pure arithmetic on it: a report's rows as kernels, kernels as the totals of a call."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from norm_fusion.records import KernelCounters

# By the record's field: the metric of Nsight Compute, and what it stands for.
METRICS: Mapping[str, tuple[str, str]] = {
    "duration_ms": ("gpu__time_duration.sum", "time from a kernel's start to its end, replayed alone"),
    "dram_read_bytes": ("dram__bytes_read.sum", "bytes read from memory"),
    "dram_write_bytes": ("dram__bytes_write.sum", "bytes written to memory, while the kernel ran"),
    "dram_pct": ("dram__throughput.avg.pct_of_peak_sustained_elapsed", "memory's throughput, of its peak"),
    "occupancy_pct": ("sm__warps_active.avg.pct_of_peak_sustained_active", "resident warps, of the most there can be"),
    "registers": ("launch__registers_per_thread", "registers of a thread"),
    "l2_hit_pct": ("lts__t_sector_hit_rate.pct", "sectors found in L2"),
    "sm_pct": ("sm__throughput.avg.pct_of_peak_sustained_elapsed", "the busiest part of a multiprocessor, of its peak"),
    "tensor_pct": ("sm__pipe_tensor_cycles_active.avg.pct_of_peak_sustained_elapsed", "tensor pipes busy"),
}
# The dimensions of a launch: always there, whatever is asked for.
DIMENSIONS: Mapping[str, tuple[str, str, str]] = {
    what: (f"launch__{what}_dim_x", f"launch__{what}_dim_y", f"launch__{what}_dim_z") for what in ("grid", "block")
}
WHOLE = ("registers", "dram_read_bytes", "dram_write_bytes")
# Factors to the record's own unit: ms and bytes. A value in a unit that is not here is taken for not collected.
TIMES = {"ns": 1e-6, "nsecond": 1e-6, "us": 1e-3, "usecond": 1e-3, "ms": 1.0, "msecond": 1.0, "s": 1e3, "second": 1e3}
SIZES = {"byte": 1.0, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}
UNITS: Mapping[str, Mapping[str, float]] = {
    "duration_ms": TIMES,
    "dram_read_bytes": SIZES,
    "dram_write_bytes": SIZES,
    "registers": {"register/thread": 1.0, "": 1.0},
}
PERCENT = {"%": 1.0}
# A template's name goes on for thousands of characters, its beginning tells it from others.
NAME_CHARACTERS = 200


@dataclass(frozen=True)
class Row:
    """One kernel of a report: the name of the range that it ran in, its own, and values with their units, by metric."""

    range: str
    name: str
    values: Mapping[str, tuple[float, str]] = field(default_factory=dict)


@dataclass(frozen=True)
class Label:
    """Which call a range was around; `variant` where a profile is the best of several calls, as a copy is."""

    case: str
    profile: str
    variant: int = 0

    PREFIX = "cell:"

    def __str__(self) -> str:
        return f"{self.PREFIX}{self.case}|{self.profile}" + (f"|{self.variant}" if self.variant else "")

    @classmethod
    def parse(cls, text: str) -> Label | None:
        """The label that `str` made a text of; None of any other."""
        case, _, rest = text.removeprefix(cls.PREFIX).partition("|")
        profile, _, variant = rest.partition("|")
        if not text.startswith(cls.PREFIX) or not case or not profile or not (variant or "0").isdecimal():
            return None
        return cls(case, profile, int(variant or 0))


def kernel_of(row: Row) -> KernelCounters:
    """A report's row as it is recorded."""
    found: dict[str, Any] = {name: _value(name, row.values.get(metric)) for name, (metric, _) in METRICS.items()}
    for what, metrics in DIMENSIONS.items():
        sizes = [row.values[metric][0] for metric in metrics if metric in row.values]
        found[what] = tuple(int(size) for size in sizes) if len(sizes) == len(metrics) else None
    return KernelCounters(name=row.name[:NAME_CHARACTERS], **found)


def _value(name: str, found: tuple[float, str] | None) -> float | int | None:
    if found is None:
        return None
    factor = UNITS.get(name, PERCENT).get(found[1])
    if factor is None:
        return None
    return round(found[0] * factor) if name in WHOLE else found[0] * factor


def by_call(rows: Iterable[Row]) -> dict[tuple[str, str], dict[int, list[KernelCounters]]]:
    """The kernels of each call by case and profile, then by variant; in the report's order, that of the launches."""
    calls: dict[tuple[str, str], dict[int, list[KernelCounters]]] = {}
    for row in rows:
        label = Label.parse(row.range)
        if label is not None:
            variants = calls.setdefault((label.case, label.profile), {})
            variants.setdefault(label.variant, []).append(kernel_of(row))
    return calls


def fastest(variants: Mapping[int, Sequence[KernelCounters]]) -> int:
    """Which variant's kernels take the least time in all; one whose time is not known comes last."""

    def duration(variant: int) -> float:
        total = totals(variants[variant])["duration_ms"]
        return float("inf") if total is None else total

    return min(variants, key=lambda variant: (duration(variant), variant))


def totals(kernels: Sequence[KernelCounters]) -> dict[str, Any]:
    """A call's totals, by the record's fields: sums, means weighted by duration, the most registers.

    Null where some kernel lacks what the total is of: a sum of the others would look like less work than there was.
    """
    durations = [kernel.duration_ms for kernel in kernels]
    read, written = ([getattr(kernel, name) for kernel in kernels] for name in ("dram_read_bytes", "dram_write_bytes"))
    registers = [kernel.registers for kernel in kernels]
    found: dict[str, Any] = {
        "duration_ms": _sum(durations),
        "dram_bytes": _sum([*read, *written]),
        "registers": None if None in registers else max((r for r in registers if r is not None), default=None),
    }
    for name in ("dram_pct", "occupancy_pct", "l2_hit_pct", "sm_pct", "tensor_pct"):
        found[name] = _weighted([getattr(kernel, name) for kernel in kernels], durations)
    return found


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known and len(known) == len(values) else None


def _weighted(values: Sequence[float | None], weights: Sequence[float | None]) -> float | None:
    total = _sum(weights)
    products = [None if v is None or w is None else v * w for v, w in zip(values, weights, strict=True)]
    found = _sum(products)
    return None if found is None or not total else found / total
