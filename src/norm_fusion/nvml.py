"""What the NVIDIA driver's library (NVML) says of the cards: read only, and None for what a card does not tell.

Ground floor: no torch.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

# NVML's bits, as its header names them: nvmlClocksEventReason...
REASONS = {
    0x1: "idle",
    0x2: "application clocks setting",
    0x4: "software power cap",
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clock setting",
}
# What holds a clock down: heat, by software, hardware or both; power, by a brake or a cap.
THERMAL, POWER = 0x20 | 0x40 | 0x08, 0x80 | 0x04


@dataclass(frozen=True)
class Process:
    """A compute process on a card; `memory` in bytes."""

    pid: int
    name: str | None
    memory: int | None


@dataclass(frozen=True)
class Card:
    """One card: MHz, W, degrees Celsius, bytes. `bus` is its PCI (domain, bus, device)."""

    index: int
    name: str | None = None
    uuid: str | None = None
    bus: tuple[int, int, int] | None = None
    sm_clock: int | None = None
    sm_clock_max: int | None = None
    sm_clock_set: int | None = None  # the application clock, and what it is by default
    sm_clock_default: int | None = None
    memory_clock: int | None = None
    memory_clock_max: int | None = None
    power_limit: float | None = None
    power_limit_default: float | None = None
    temperature: int | None = None
    slowdown_at: int | None = None
    reasons: int | None = None
    persistence: bool | None = None
    mig: bool | None = None
    ecc: bool | None = None
    display: bool | None = None
    memory_free: int | None = None
    memory_total: int | None = None
    processes: tuple[Process, ...] | None = None


@dataclass(frozen=True)
class Nvml:
    """`problem` is why there are no cards here; `bindings` is False where nvidia-ml-py itself is missing."""

    cards: tuple[Card, ...] = ()
    driver: str | None = None
    cuda: tuple[int, int] | None = None
    problem: str | None = None
    bindings: bool = True


class Unreachable(Exception):
    """NVML cannot be asked; `bindings` is False where nvidia-ml-py itself is missing."""

    def __init__(self, problem: str, bindings: bool) -> None:
        super().__init__(problem)
        self.bindings = bindings


class Asker:
    """Calls a function of NVML by name; None where the card, the driver or the bindings lack it.

    Raises:
        Unreachable: there is no NVML here.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise Unreachable(f"Python package nvidia-ml-py: {error}", bindings=False) from error
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise Unreachable(str(error), bindings=True) from error
        self.nvml: Any = pynvml

    def __call__(self, function: str, *words: Any) -> Any:
        try:
            return getattr(self.nvml, function)(*words)
        except (self.nvml.NVMLError, AttributeError, UnicodeDecodeError):
            return None

    @property
    def cards(self) -> int:
        return int(self("nvmlDeviceGetCount") or 0)

    @property
    def uuids(self) -> list[str]:
        """Of all cards, in NVML's order."""
        handles = [self("nvmlDeviceGetHandleByIndex", index) for index in range(self.cards)]
        return [uuid for handle in handles if (uuid := _string(self("nvmlDeviceGetUUID", handle))) is not None]

    @property
    def driver(self) -> str | None:
        return _string(self("nvmlSystemGetDriverVersion"))

    def by_uuid(self, uuid: str) -> Any:
        """The handle of a card, or of the card that a MIG instance is a part of; with or without `GPU-` before it."""
        bare = uuid.removeprefix("GPU-").removeprefix("MIG-")
        card = self("nvmlDeviceGetHandleByUUID", f"GPU-{bare}")
        if card is not None:
            return card
        instance = self("nvmlDeviceGetHandleByUUID", f"MIG-{bare}")
        return None if instance is None else self("nvmlDeviceGetDeviceHandleFromMigDeviceHandle", instance)

    def reasons(self, handle: Any) -> int | None:
        """The bits of what holds a card's clocks down now."""
        bits = self("nvmlDeviceGetCurrentClocksEventReasons", handle)
        if bits is None:  # its name before driver 535
            bits = self("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return None if bits is None else int(bits)


def read() -> Nvml:
    """All cards of this machine."""
    try:
        ask = Asker()
    except Unreachable as why:
        return Nvml(problem=str(why), bindings=why.bindings)
    try:
        newest = ask("nvmlSystemGetCudaDriverVersion_v2")
        handles = [ask("nvmlDeviceGetHandleByIndex", i) for i in range(ask.cards)]
        return Nvml(
            cards=tuple(Card(i) if h is None else snapshot(ask, h, i) for i, h in enumerate(handles)),
            driver=ask.driver,
            cuda=(newest // 1000, newest % 1000 // 10) if newest else None,
        )
    finally:
        ask("nvmlShutdown")


def reason_names(bits: int) -> list[str]:
    """The names of the bits, those that are not known by their number."""
    named = [name for bit, name in REASONS.items() if bits & bit]
    rest = bits & ~sum(REASONS)
    return [*named, f"{rest:#x}"] if rest else named


def snapshot(ask: Asker, handle: Any, index: int) -> Card:
    """All that one card tells."""
    nvml = ask.nvml
    pci, memory = ask("nvmlDeviceGetPciInfo", handle), ask("nvmlDeviceGetMemoryInfo", handle)
    limit, usual = (
        ask("nvmlDeviceGetEnforcedPowerLimit", handle),
        ask("nvmlDeviceGetPowerManagementDefaultLimit", handle),
    )
    return Card(
        index=index,
        name=_string(ask("nvmlDeviceGetName", handle)),
        uuid=_string(ask("nvmlDeviceGetUUID", handle)),
        bus=(pci.domain, pci.bus, pci.device) if pci else None,
        sm_clock=ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_SM),
        sm_clock_max=ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_SM),
        sm_clock_set=ask("nvmlDeviceGetApplicationsClock", handle, nvml.NVML_CLOCK_SM),
        sm_clock_default=ask("nvmlDeviceGetDefaultApplicationsClock", handle, nvml.NVML_CLOCK_SM),
        memory_clock=ask("nvmlDeviceGetClockInfo", handle, nvml.NVML_CLOCK_MEM),
        memory_clock_max=ask("nvmlDeviceGetMaxClockInfo", handle, nvml.NVML_CLOCK_MEM),
        power_limit=None if limit is None else limit / 1e3,
        power_limit_default=None if usual is None else usual / 1e3,
        temperature=ask("nvmlDeviceGetTemperature", handle, nvml.NVML_TEMPERATURE_GPU),
        slowdown_at=ask("nvmlDeviceGetTemperatureThreshold", handle, nvml.NVML_TEMPERATURE_THRESHOLD_SLOWDOWN),
        reasons=ask.reasons(handle),
        persistence=_flag(ask("nvmlDeviceGetPersistenceMode", handle)),
        mig=_flag(_first(ask("nvmlDeviceGetMigMode", handle))),
        ecc=_flag(_first(ask("nvmlDeviceGetEccMode", handle))),
        display=_flag(ask("nvmlDeviceGetDisplayActive", handle)),
        memory_free=memory.free if memory else None,
        memory_total=memory.total if memory else None,
        processes=_processes(ask, handle),
    )


def _processes(ask: Asker, handle: Any) -> tuple[Process, ...] | None:
    found = ask("nvmlDeviceGetComputeRunningProcesses", handle)
    if found is None:
        return None
    return tuple(
        Process(p.pid, _string(ask("nvmlSystemGetProcessName", p.pid)), p.usedGpuMemory)
        for p in found
        if p.pid != os.getpid()
    )


def _string(value: Any) -> str | None:
    # Older bindings return bytes.
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _first(pair: Any) -> Any:
    """Of the current and the pending mode the current one."""
    return None if pair is None else pair[0]


def _flag(value: Any) -> bool | None:
    return None if value is None else bool(value)
