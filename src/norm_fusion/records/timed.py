"""What was timed: a record and its samples, and what a worker tells that they are made of."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, FiniteFloat

from norm_fusion.records.base import SCHEMA, Cache, Count, Status, Stored, Timer
from norm_fusion.spec import is_users


class Code(StrEnum):
    """Why a row has no figures that may be quoted, as one word that does not change."""

    WRONG_OUTPUT = "wrong-output"
    WRONG_KIND = "wrong-kind"  # its shape, dtype, device or type
    MUTATED_INPUT = "mutated-input"
    TIMER = "timer"  # its own clock and the parent's disagree, or a sample is no duration
    RAISED = "raised"
    CRASHED = "crashed"
    HUNG = "hung"
    OUT_OF_MEMORY = "out-of-memory"
    MISSING = "missing"
    INTERRUPTED = "interrupted"
    UNREADABLE = "unreadable"  # a file of its records or samples is damaged


class Event(Stored):
    """Why a series is doubted: company on the card, heat, power, clocks, stolen time, or the parent's clock outside."""

    kind: Literal["company", "thermal", "power", "clock", "steal", "outside"]
    detail: str


class Record(Stored):
    """One case x profile x timer x cache x replicate, or, where `replicate` is null, all its processes pooled."""

    schema_version: int = SCHEMA
    run_id: str
    case: str
    op: str
    pass_: str = Field(default="forward", alias="pass")
    rows: Count
    cols: Count
    dtype: str
    profile: str
    resolved_backend: str | None = None  # what really ran
    control_of: str | None = None  # of the A/A control: the profile that it is, a second time
    status: Status
    code: Code | None = None
    reason: str | None = None
    remedy: str | None = None
    timer: Timer = "none"
    cache: Cache = "none"
    attempt: Count = 0  # 0, then 1 and 2 for the automatic reruns
    replicate: Count | None = 0  # the process, counted from 0
    processes: Count | None = None  # pooled: how many
    p50_ms: FiniteFloat | None = None
    p95_ms: FiniteFloat | None = None
    noise_ratio: FiniteFloat | None = None
    noise: Literal["good", "warn", "rerun"] | None = None
    gbps: FiniteFloat | None = None
    roof_gbps: FiniteFloat | None = None
    roof_share: FiniteFloat | None = None
    read_gbps: FiniteFloat | None = None  # measured with the case: the physical ceiling
    write_gbps: FiniteFloat | None = None
    tflops: FiniteFloat | None = None
    process_spread: FiniteFloat | None = None  # pooled: largest over smallest of the processes' medians
    speedup: dict[str, FiniteFloat] = Field(default_factory=dict)  # over each torch profile, and over torch-baseline
    interval: dict[str, tuple[FiniteFloat, FiniteFloat]] = Field(default_factory=dict)  # pooled: 95%, of the speedup
    call: dict[str, str] = Field(default_factory=dict)  # pooled: the label of each speedup
    regime: Literal["launch-bound", "L2-resident", "DRAM-bound", "cache-resident"] | None = None
    correct: bool | None = None
    max_abs_error: FiniteFloat | None = None
    max_rel_error: FiniteFloat | None = None
    tolerance: FiniteFloat | None = None
    checked_rows: int | None = None  # rows compared with the fp64 reference in each verification
    n_samples: int = 0
    settled: bool | None = None  # did warm-up reach three blocks within 1%?
    rotation: int | None = None  # input and output sets in rotation
    outside_ms: FiniteFloat | None = None  # one call, by the parent's clock around many
    probe: FiniteFloat | None = None  # median of a fixed amount of work timed beside its blocks, over the ring's median
    probe_ms: FiniteFloat | None = None  # the same, in ms: what two runs on one device are compared by
    events: list[Event] = Field(default_factory=list)
    samples_file: str | None = None
    samples_sha256: str | None = None
    fingerprint: str
    notes: list[str] = Field(default_factory=list)

    @property
    def amiss(self) -> bool:
        """Is it wrong or failed, or a contestant of the user's own that was not there? A second try may mend it."""
        return self.status.bad or (self.status is Status.UNAVAILABLE and is_users(self.profile))

    @property
    def key(self) -> str:
        """Unique within a run; the record's file name."""
        attempt = f"a{self.attempt}." if self.attempt else ""
        process = "pooled" if self.replicate is None else f"r{self.replicate}"
        profile = self.profile.replace(":", "-")
        return f"{self.case}.{profile}.{self.timer}.{self.cache}.{attempt}{process}"


class Samples(Stored):
    """The raw samples of one record, warm-up included, in time order."""

    key: str
    unit: Literal["ms"] = "ms"
    blocks: list[list[FiniteFloat]]  # one list a round
    positions: list[int]  # the contestant's place in each round's order
    calls_per_sample: int = 1
    warmup: list[FiniteFloat] = Field(default_factory=list)
    probes_ms: list[FiniteFloat] = Field(default_factory=list)  # the clock probe beside each block


class Series(Stored):
    """One timer's raw samples of one contestant, as the worker sends them."""

    timer: Timer
    cache: Cache
    blocks: list[list[FiniteFloat]]
    positions: list[int]
    calls_per_sample: int = 1
    warmup: list[FiniteFloat] = Field(default_factory=list)
    probes_ms: list[FiniteFloat] = Field(default_factory=list)
    settled: bool | None = None
    rotation: int | None = None
    began_s: FiniteFloat | None = None  # monotonic clock
    ended_s: FiniteFloat | None = None
    events: list[Event] = Field(default_factory=list)  # the parent's: a worker sees none


class Measurement(Stored):
    """What the worker says of one contestant of one case: samples and errors, no conclusions."""

    case: str
    profile: str
    status: Status
    code: Code | None = None
    reason: str | None = None
    remedy: str | None = None
    resolved_backend: str | None = None
    control_of: str | None = None
    max_abs_error: FiniteFloat | None = None
    max_rel_error: FiniteFloat | None = None
    checked_rows: int | None = None
    outside_ms: dict[str, FiniteFloat] = Field(default_factory=dict)  # by timer: one call by the parent's clock
    read_gbps: FiniteFloat | None = None  # of the device, measured in the same process
    write_gbps: FiniteFloat | None = None
    series: list[Series] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
