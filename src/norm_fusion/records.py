"""What is stored: the environment, the manifest of a run, and one record per series. Ground floor: no torch.

Units are in the names. What was not measured is null, with its reason, never 0.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

SCHEMA = 1


class Status(StrEnum):
    """How the attempt at a record ended."""

    OK = "ok"
    CHECKED = "checked"  # correct, not timed: Triton's interpreter
    WRONG = "wrong"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"


Timer = Literal["device", "graph", "host", "wall", "none"]
Cache = Literal["cold", "hot", "none"]


class _Stored(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Environment(_Stored):
    """The machine and software that a number belongs to."""

    device: Literal["cuda", "cpu"]
    device_name: str
    device_index: int | None = None
    device_uuid: str | None = None
    compute_capability: str | None = None
    sm_count: int | None = None
    memory_bytes: int
    cache_bytes: int  # L2 of a GPU, last-level cache of a CPU
    threads: int | None = None  # CPU: torch's intra-op threads
    driver: str | None = None
    mig: bool | None = None
    ecc: bool | None = None
    power_limit_w: FiniteFloat | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    python: str
    platform: str
    torch: str
    cuda: str | None = None
    triton: str | None = None
    peers: dict[str, str] = Field(default_factory=dict)  # installed libraries that can change a baseline
    inductor: dict[str, Any] = Field(default_factory=dict)
    norm_fusion: str
    commit: str | None = None
    dirty: bool | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of everything above: two records may be compared when theirs agree."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:16]


class Conditions(_Stored):
    """What changes while a run goes on, read before and after. Not part of the fingerprint."""

    at: str
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: FiniteFloat | None = None
    throttle_reasons: str | None = None
    other_processes: int | None = None  # compute processes on the card that are not ours
    load_1m: FiniteFloat | None = None  # CPU: load average of the last minute


class Record(_Stored):
    """One case x profile x timer x cache x replicate."""

    schema_version: int = SCHEMA
    run_id: str
    case: str
    op: str
    pass_: str = Field(default="forward", alias="pass")
    rows: int
    cols: int
    dtype: str
    profile: str
    resolved_backend: str | None = None  # what really ran
    status: Status
    reason: str | None = None
    remedy: str | None = None
    timer: Timer = "none"
    cache: Cache = "none"
    replicate: int = 0
    p50_ms: FiniteFloat | None = None
    p95_ms: FiniteFloat | None = None
    noise_ratio: FiniteFloat | None = None
    noise: Literal["good", "warn", "rerun"] | None = None
    gbps: FiniteFloat | None = None
    roof_gbps: FiniteFloat | None = None
    roof_share: FiniteFloat | None = None
    tflops: FiniteFloat | None = None
    speedup: dict[str, FiniteFloat] = Field(default_factory=dict)  # over each torch profile, and over torch-baseline
    correct: bool | None = None
    max_abs_error: FiniteFloat | None = None
    max_rel_error: FiniteFloat | None = None
    tolerance: FiniteFloat | None = None
    checked_rows: int | None = None  # rows compared with the fp64 reference in each verification
    n_samples: int = 0
    settled: bool | None = None  # did warm-up reach three blocks within 1%?
    rotation: int | None = None  # input and output sets in rotation
    samples_file: str | None = None
    samples_sha256: str | None = None
    fingerprint: str
    notes: list[str] = Field(default_factory=list)

    @property
    def key(self) -> str:
        """Unique within a run; the record's file name."""
        return f"{self.case}.{self.profile}.{self.timer}.{self.cache}.r{self.replicate}"


class Samples(_Stored):
    """The raw samples of one record, warm-up included, in time order."""

    key: str
    unit: Literal["ms"] = "ms"
    blocks: list[list[FiniteFloat]]  # one list a round
    positions: list[int]  # the contestant's place in each round's order
    calls_per_sample: int = 1
    warmup: list[FiniteFloat] = Field(default_factory=list)


class Manifest(_Stored):
    """What a run was asked, where it ran and how it ended."""

    schema_version: int = SCHEMA
    run_id: str
    title: str
    question: str
    suite: str | None = None
    command: list[str]
    cases: list[str]
    profiles: list[str]
    device: str
    quick: bool
    seed: int
    started_at: str
    finished_at: str | None = None
    state: Literal["running", "finished", "interrupted"] = "running"
    environment: Environment | None = None
    before: Conditions | None = None
    after: Conditions | None = None
    notes: list[str] = Field(default_factory=list)  # what went wrong with the run itself


class Series(_Stored):
    """One timer's raw samples of one contestant, as the worker sends them."""

    timer: Timer
    cache: Cache
    blocks: list[list[FiniteFloat]]
    positions: list[int]
    calls_per_sample: int = 1
    warmup: list[FiniteFloat] = Field(default_factory=list)
    settled: bool | None = None
    rotation: int | None = None


class Measurement(_Stored):
    """What the worker says of one contestant of one case: samples and errors, no conclusions."""

    case: str
    profile: str
    status: Status
    reason: str | None = None
    remedy: str | None = None
    resolved_backend: str | None = None
    max_abs_error: FiniteFloat | None = None
    max_rel_error: FiniteFloat | None = None
    checked_rows: int | None = None
    series: list[Series] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
