"""The machine and the software that a number belongs to, and what changes on it meanwhile."""

from __future__ import annotations

from hashlib import sha256
from typing import Any, Literal

from pydantic import Field, FiniteFloat

from norm_fusion.records.base import Count, Stored


class Environment(Stored):
    """The machine and software that a number belongs to."""

    device: Literal["cuda", "cpu"]
    device_name: str
    device_index: int | None = None
    device_uuid: str | None = None
    compute_capability: str | None = None
    sm_count: Count | None = None
    memory_bytes: Count
    cache_bytes: Count  # L2 of a GPU, last-level cache of a CPU
    threads: Count | None = None  # CPU: torch's intra-op threads
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


def began_at(fingerprint: str) -> str:
    """The fingerprint of where a record's process began: "a, then b" says that it changed meanwhile."""
    return fingerprint.partition(",")[0]


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
