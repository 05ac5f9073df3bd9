"""What is stored: environment, manifest of a run, a record per series, a call per claim. Ground floor: no torch.

Units are in the names. What was not measured is null, with its reason, never 0.
"""

from __future__ import annotations

from enum import StrEnum
from hashlib import sha256
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

# 2: replicates, attempts, intervals and calls. Files of schema 1 are read: they are runs of one process.
# 3: probe_ms, and the hash of each file in SHA256SUMS.
# 4: runs of several cards, that go on after an end, and with hardware counters.
SCHEMA = 4


def first_line(error: BaseException) -> str:
    """An exception as a reason that can be kept: its kind and the first line that it prints, at most 300 characters."""
    text = str(error).encode("utf-8", "backslashreplace").decode().strip().splitlines()
    return f"{type(error).__name__}: {text[0][:300]}" if text else type(error).__name__


class Status(StrEnum):
    """How the attempt at a record ended."""

    OK = "ok"
    CHECKED = "checked"  # correct, not timed: Triton's interpreter
    WRONG = "wrong"
    FAILED = "failed"
    UNAVAILABLE = "unavailable"

    @property
    def bad(self) -> bool:
        """It computed something else, or did not end: nothing of it may be quoted."""
        return self in (Status.WRONG, Status.FAILED)


Timer = Literal["device", "graph", "host", "wall", "none"]
Cache = Literal["cold", "hot", "none"]


class Stored(BaseModel):
    """What is written to files: no field that is not known, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Environment(Stored):
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
    source: str | None = None  # hash of the package's own files
    commit: str | None = None
    dirty: bool | None = None

    @property
    def fingerprint(self) -> str:
        """Hash of everything above: two records may be compared when theirs agree."""
        return sha256(self.model_dump_json().encode()).hexdigest()[:16]

    def unlike(self, other: Environment) -> dict[str, tuple[Any, Any]]:
        """In what this and another differ: what it is here, and there."""
        here, there = self.model_dump(), other.model_dump()
        return {name: (here[name], there[name]) for name in here if here[name] != there[name]}


class Conditions(Stored):
    """What changes while a run goes on: read before, after and several times a second. Not part of the fingerprint."""

    at: str
    device_uuid: str | None = None  # of which card
    monotonic_s: FiniteFloat | None = None  # the machine's monotonic clock: the same for all processes of a run
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    temperature_c: int | None = None
    power_w: FiniteFloat | None = None
    throttle_reasons: str | None = None
    other_processes: int | None = None  # compute processes on the card that are not ours
    load_1m: FiniteFloat | None = None  # CPU: load average of the last minute
    steal: FiniteFloat | None = None  # CPU: share of time that the hypervisor gave to others since the last reading

    @property
    def throttle_bits(self) -> int:
        """`throttle_reasons` as NVML's bits; 0 where nothing was told, or nothing that is a number."""
        try:
            return int(self.throttle_reasons or "0", 16)
        except ValueError:
            return 0


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
    rows: int
    cols: int
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
    attempt: int = 0  # 0, then 1 and 2 for the automatic reruns
    replicate: int | None = 0  # the process, counted from 0
    processes: int | None = None  # pooled: how many
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


class Label(StrEnum):
    """What a rule says of a claim."""

    SUPPORTED = "supported"
    REGRESSION = "regression"
    NO_DIFFERENCE = "no difference"
    INCONCLUSIVE = "inconclusive"
    RERUN_NOISE = "rerun noise"
    INVALID = "invalid"


class Call(Stored):
    """The label of one claim: `profile` is faster than `baseline` on `case`, in one series."""

    case: str
    profile: str
    baseline: str
    timer: Timer
    cache: Cache
    label: Label
    code: str  # why, as one word that does not change
    reason: str  # why, as a sentence
    rule: int  # the version of the rule
    attempt: int = 0  # which attempt it was judged from
    processes: int = 0
    speedup: FiniteFloat | None = None
    low: FiniteFloat | None = None  # 95% interval of the speedup
    high: FiniteFloat | None = None
    ratios: list[FiniteFloat] = Field(default_factory=list)  # the speedup in each process
    earlier: list[Call] = Field(default_factory=list)  # the attempts before: all are kept

    @property
    def claim(self) -> tuple[str, str, str, Timer, Cache]:
        """What it is the label of."""
        return self.case, self.profile, self.baseline, self.timer, self.cache


class Conclusions(Stored):
    """What a rule made of a run's records. Derived: it can be made again from records and samples at any time."""

    schema_version: int = SCHEMA
    rule: int
    pooled: list[Record]
    calls: list[Call]
    digest: str | None = None  # of all above and of the files of records: what either was edited since is not believed


class Manifest(Stored):
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
    fewest: int = 1  # processes: how many at least, how many at most
    most: int = 1
    precision: FiniteFloat = 0.01  # half-width of an interval at which no further process is added
    budget_s: FiniteFloat | None = None
    processes: int = 1  # how many there were, reruns not counted
    contestants: list[str] = Field(default_factory=list)  # the user's own, module:function
    profiled: list[tuple[str, str]] = Field(default_factory=list)  # whose hardware counters: case and profile
    model: str | None = None  # of GPU that was asked for, on a cluster
    source: str | None = None  # hash of the package's files that asked
    commit: str | None = None
    dirty: bool | None = None
    started_at: str
    finished_at: str | None = None
    # partial: not all cases are done, and nothing is being measured; blocked: none, for the reason in the notes.
    state: Literal["running", "finished", "interrupted", "partial", "blocked"] = "running"
    done: list[str] = Field(default_factory=list)  # cases that need no further process
    cut: list[str] = Field(default_factory=list)  # files of records that an interruption cut short
    environment: Environment | None = None
    further: list[Environment] = Field(default_factory=list)  # of the other cards
    before: Conditions | None = None
    after: Conditions | None = None
    notes: list[str] = Field(default_factory=list)  # what went wrong with the run itself

    @property
    def environments(self) -> list[Environment]:
        """Of all cards that took part, in the order in which they began."""
        return [*([self.environment] if self.environment is not None else []), *self.further]

    def environment_of(self, fingerprint: str) -> Environment | None:
        """That of a record with this fingerprint; the first where no other has it."""
        began = fingerprint.partition(",")[0]  # "a, then b": it changed meanwhile
        return next((one for one in self.environments if one.fingerprint == began), self.environment)

    @property
    def whole(self) -> bool:
        """Does no case need a further process?"""
        return set(self.cases) <= set(self.done)


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


class KernelCounters(Stored):
    """One kernel of a call as hardware counters saw it: replayed alone, caches flushed, clocks left as they were.

    Its duration is that of one replay, never a latency. What was not collected is null.
    """

    name: str
    grid: tuple[int, int, int] | None = None  # blocks in x, y, z
    block: tuple[int, int, int] | None = None  # threads
    registers: int | None = None  # a thread
    duration_ms: FiniteFloat | None = None
    dram_read_bytes: int | None = None
    dram_write_bytes: int | None = None  # while it ran: what L2 still holds at its end is not counted
    dram_pct: FiniteFloat | None = None  # of the peak throughput of memory
    occupancy_pct: FiniteFloat | None = None  # warps resident on a multiprocessor that has any, of the most it can hold
    l2_hit_pct: FiniteFloat | None = None  # of sectors; two passes count what it is a ratio of: may exceed 100
    sm_pct: FiniteFloat | None = None  # of the peak of the multiprocessors' busiest part
    tensor_pct: FiniteFloat | None = None  # of the peak of the tensor pipes


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
    duration_ms: FiniteFloat | None = None
    dram_bytes: int | None = None  # read and written
    dram_pct: FiniteFloat | None = None
    occupancy_pct: FiniteFloat | None = None
    l2_hit_pct: FiniteFloat | None = None
    sm_pct: FiniteFloat | None = None
    tensor_pct: FiniteFloat | None = None
    registers: int | None = None
    compulsory_bytes: int
    traced_kernels: int | None = None  # of a call, by torch.profiler, which needs no permission
    traced_ms: FiniteFloat | None = None  # the same call's time on the device, gaps left out: median of some cold calls
    traced_reason: str | None = None  # why it was not traced
    fingerprint: str
