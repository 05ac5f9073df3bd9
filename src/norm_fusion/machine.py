"""What the driver and the kernel say of this machine. Ground floor: no torch, and nothing is ever changed."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Collection
from contextlib import suppress
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import norm_fusion
from norm_fusion import nvml
from norm_fusion.records import Conditions

ROOT = Path("/")  # a test's machine has another


class Card:
    """A GPU as NVML sees it, by its UUID; it tells nothing where the driver's library cannot be reached."""

    def __init__(self, uuid: str) -> None:
        self.uuid = uuid
        self.ask: nvml.Asker | None = None
        with suppress(nvml.Unreachable):
            self.ask = nvml.Asker()
            self.handle = self.ask.by_uuid(uuid)
            if self.handle is None:
                self.ask = None

    def facts(self) -> dict[str, Any]:
        """What does not change: driver, power limit, largest clocks, ECC, MIG. Fields of `Environment`."""
        if self.ask is None:
            return {}
        card = nvml.snapshot(self.ask, self.handle, 0)
        told = {
            "driver": self.ask.driver,
            "power_limit_w": card.power_limit,
            "sm_clock_max_mhz": card.sm_clock_max,
            "memory_clock_max_mhz": card.memory_clock_max,
            "ecc": card.ecc,
            "mig": card.mig,
        }
        return {name: value for name, value in told.items() if value is not None}

    def conditions(self, ours: Collection[int]) -> Conditions:
        """Clocks, temperature, power and company now. `ours`: the processes that are not company."""
        ask = self.ask
        if ask is None:
            return Conditions(**_moment(), device_uuid=self.uuid)
        power, bits = ask("nvmlDeviceGetPowerUsage", self.handle), ask.reasons(self.handle)
        there = ask("nvmlDeviceGetComputeRunningProcesses", self.handle)
        return Conditions(
            **_moment(),
            device_uuid=self.uuid,
            sm_clock_mhz=ask("nvmlDeviceGetClockInfo", self.handle, ask.nvml.NVML_CLOCK_SM),
            memory_clock_mhz=ask("nvmlDeviceGetClockInfo", self.handle, ask.nvml.NVML_CLOCK_MEM),
            temperature_c=ask("nvmlDeviceGetTemperature", self.handle, ask.nvml.NVML_TEMPERATURE_GPU),
            power_w=None if power is None else power / 1e3,
            throttle_reasons=None if bits is None else f"{bits:#x}",
            other_processes=None if there is None else _company([process.pid for process in there], ours),
        )


def gpus() -> int:
    """How many GPUs NVML knows of: none where the driver's library cannot be reached."""
    try:
        return nvml.Asker().cards
    except nvml.Unreachable:
        return 0


def visible() -> list[str]:
    """The GPUs that a process may use, each by a name that CUDA_VISIBLE_DEVICES takes: what that says, else all."""
    said = os.environ.get("CUDA_VISIBLE_DEVICES")
    if said is not None:
        return [name.strip() for name in said.split(",") if name.strip() not in ("", "-1")]
    try:
        return nvml.Asker().uuids
    except nvml.Unreachable:
        return []


# What code travels as, where there is no checkout around it: its commit, and `+` where that had changes.
COMMIT = "NORM_FUSION_COMMIT"


def code() -> dict[str, Any]:
    """This package's code: `source`, a hash of its files; `commit` and `dirty`, where they are a checkout's or told."""
    root = Path(norm_fusion.__file__).parents[2]
    told = os.environ.get(COMMIT)
    if not (root / ".git").exists():
        known = {} if told is None else {"commit": told.removesuffix("+"), "dirty": told.endswith("+")}
        return {"source": source(), **known}

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, status = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    dirty = None if commit is None or status is None else bool(status)
    return {"source": source(), "commit": commit, "dirty": dirty}


def source() -> str:
    """Hash of this package's files: the same commit, edited between two processes, is another program."""
    root = Path(norm_fusion.__file__).parent
    read = sha256()
    for path in sorted(root.rglob("*.py")):
        read.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return read.hexdigest()[:16]


def _company(pids: Collection[int], ours: Collection[int]) -> int:
    """How many of them are not ours."""
    others = [pid for pid in pids if pid not in ours]
    # In a container NVML names processes by the host's numbers: where it knows none of ours, one of them is.
    return max(0, len(others) - (bool(ours) and len(others) == len(pids)))


class Host:
    """The machine's own processors."""

    def __init__(self) -> None:
        self.before = cpu_ticks()

    def conditions(self) -> Conditions:
        """Load, and the share of time that the hypervisor gave to others since the last reading."""
        now, before = cpu_ticks(), self.before
        steal = None
        if now is not None and before is not None and now[0] > before[0]:
            steal = (now[1] - before[1]) / (now[0] - before[0])
        self.before = now
        return Conditions(**_moment(), load_1m=os.getloadavg()[0], steal=steal)


def _moment() -> dict[str, Any]:
    return {"at": datetime.now(UTC).isoformat(timespec="milliseconds"), "monotonic_s": time.monotonic()}


def cpu_ticks(root: Path = ROOT) -> tuple[int, int] | None:
    """All CPUs' ticks since boot, and the part of them that the hypervisor gave to others; None where nobody says."""
    words = (text(root / "proc/stat") or "").partition("\n")[0].split()
    if len(words) < 9 or words[0] != "cpu" or not all(word.isdecimal() for word in words[1:9]):
        return None
    ticks = [int(word) for word in words[1:9]]  # user nice system idle iowait irq softirq steal; guests are in user
    return sum(ticks), ticks[7]


def cpu_name(root: Path = ROOT) -> str | None:
    """The processor's model, where the kernel names it, else its kind."""
    found = re.search(r"^model name\s*:\s*(.+)$", text(root / "proc/cpuinfo") or "", re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine() or None


def text(path: Path) -> str | None:
    """What a file of the kernel's says; None where there is none."""
    try:
        return path.read_text(errors="replace").strip()
    except (OSError, ValueError):
        return None
