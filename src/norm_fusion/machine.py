"""What the driver and the kernel say of this machine. Ground floor: no torch, and nothing is ever changed."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from norm_fusion.records import Conditions


class Card:
    """A GPU as NVML sees it, by its UUID; `nvml` is None where the driver's library cannot be reached."""

    def __init__(self, uuid: str) -> None:
        self.nvml: Any = None
        try:
            import pynvml
        except ModuleNotFoundError:
            return
        with suppress(pynvml.NVMLError):
            pynvml.nvmlInit()
            self.handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith("GPU-") else f"GPU-{uuid}")
            self.nvml = pynvml

    def facts(self) -> dict[str, Any]:
        """What does not change: driver, power limit, largest clocks, ECC, MIG. Fields of `Environment`."""
        nvml = self.nvml
        if nvml is None:
            return {}
        found: dict[str, Any] = {"driver": nvml.nvmlSystemGetDriverVersion()}
        with suppress(nvml.NVMLError):
            found["power_limit_w"] = nvml.nvmlDeviceGetEnforcedPowerLimit(self.handle) / 1e3
        with suppress(nvml.NVMLError):
            found["sm_clock_max_mhz"] = nvml.nvmlDeviceGetMaxClockInfo(self.handle, nvml.NVML_CLOCK_SM)
            found["memory_clock_max_mhz"] = nvml.nvmlDeviceGetMaxClockInfo(self.handle, nvml.NVML_CLOCK_MEM)
        with suppress(nvml.NVMLError):
            found["ecc"] = bool(nvml.nvmlDeviceGetEccMode(self.handle)[0])
        with suppress(nvml.NVMLError):
            found["mig"] = bool(nvml.nvmlDeviceGetMigMode(self.handle)[0])
        return found

    def conditions(self, ours: Collection[int]) -> Conditions:
        """Clocks, temperature, power and company now. `ours`: the processes that are not company."""
        read: dict[str, Any] = {}
        nvml = self.nvml
        if nvml is None:
            return Conditions(**_moment())
        with suppress(nvml.NVMLError):
            read["sm_clock_mhz"] = nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_SM)
            read["memory_clock_mhz"] = nvml.nvmlDeviceGetClockInfo(self.handle, nvml.NVML_CLOCK_MEM)
        with suppress(nvml.NVMLError):
            read["temperature_c"] = nvml.nvmlDeviceGetTemperature(self.handle, nvml.NVML_TEMPERATURE_GPU)
        with suppress(nvml.NVMLError):
            read["power_w"] = nvml.nvmlDeviceGetPowerUsage(self.handle) / 1e3
        with suppress(nvml.NVMLError):
            read["throttle_reasons"] = f"{nvml.nvmlDeviceGetCurrentClocksEventReasons(self.handle):#x}"
        with suppress(nvml.NVMLError):
            pids = [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(self.handle)]
            others = [pid for pid in pids if pid not in ours]
            # In a container NVML names processes by the host's numbers: where it knows none of ours, one of them is.
            read["other_processes"] = max(0, len(others) - (bool(ours) and len(others) == len(pids)))
        return Conditions(**_moment(), **read)


def gpus() -> int:
    """How many GPUs NVML knows of: none where the driver's library cannot be reached."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return 0
    try:
        pynvml.nvmlInit()
        return int(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return 0


class Host:
    """The machine's own processors."""

    def __init__(self) -> None:
        self.before = _cpu_ticks()

    def conditions(self) -> Conditions:
        """Load, and the share of time that the hypervisor gave to others since the last reading."""
        now, before = _cpu_ticks(), self.before
        steal = None
        if now is not None and before is not None and now[1] > before[1]:
            steal = (now[0] - before[0]) / (now[1] - before[1])
        self.before = now
        return Conditions(**_moment(), load_1m=os.getloadavg()[0], steal=steal)


def _moment() -> dict[str, Any]:
    return {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "monotonic_s": time.monotonic()}


def _cpu_ticks() -> tuple[int, int] | None:
    """Stolen and all ticks of all processors since boot; None where the kernel does not say."""
    try:
        with open("/proc/stat") as file:
            ticks = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return None
    return (ticks[7], sum(ticks)) if len(ticks) == 8 else None
