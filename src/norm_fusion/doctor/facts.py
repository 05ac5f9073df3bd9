"""Facts of the host, read and not judged: no torch, nothing is changed, and what cannot be read is None.

`root` stands for `/`, so that a test can hand in a machine of its own making.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from norm_fusion.backends import CUTE, PEERS
from norm_fusion.machine import ROOT, cpu_name, cpu_ticks, text

STEAL_PAUSE_S = 0.2
PROGRAM_TIMEOUT_S = 5
CAP_SYS_ADMIN = 21

BENCH = ("filelock", "numpy", "nvidia-ml-py", "pydantic", "rich", "scipy", "typer")
REPORT = ("altair", "jinja2", "vl-convert-python")
SECOND_OPINION = "cuda-bench"
# Each changes what is measured, or who else measures, without a trace in the figures.
VARIABLES = (
    "CUDA_INJECTION64_PATH",
    "CUDA_LAUNCH_BLOCKING",
    "LD_PRELOAD",
    "NORM_FUSION_FORCE_TRITON",
    "PYTORCH_NO_CUDA_MEMORY_CACHING",
    "TORCHDYNAMO_DISABLE",
    "TORCH_COMPILE_DISABLE",
    "TRITON_DEBUG",
    "TRITON_INTERPRET",
)


@dataclass(frozen=True)
class Cpu:
    """`quota` is in CPUs; `stolen` and `sampled` are ticks of a short sample; `stolen_since_boot` is a share."""

    model: str | None = None
    logical: int | None = None
    usable: int | None = None
    physical: int | None = None
    smt: bool | None = None
    quota: float | None = None
    load_1m: float | None = None
    stolen: int | None = None
    sampled: int | None = None
    stolen_since_boot: float | None = None
    governor: str | None = None
    turbo: bool | None = None


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    free: int | None = None
    total: int | None = None
    shm: int | None = None


@dataclass(frozen=True)
class Folder:
    """A folder that may not exist yet: then `writable` and `free` (bytes) are its nearest parent's."""

    path: str | None
    writable: bool | None = None
    free: int | None = None
    blocked: str | None = None  # something on the way that is no folder


@dataclass(frozen=True)
class Clock:
    """time.perf_counter, and the kernel's clock behind it; `read_ns` is what one reading costs."""

    implementation: str
    resolution_s: float
    monotonic: bool
    source: str | None = None
    read_ns: float | None = None


@dataclass(frozen=True)
class Compiler:
    """What CC or CXX holds, the program that it names, and what PATH has."""

    variable: str
    value: str | None = None
    named: str | None = None
    on_path: str | None = None


@dataclass(frozen=True)
class Software:
    """Versions by package name, and the programs that the lab calls."""

    versions: dict[str, str] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    c: Compiler = Compiler("CC")
    cxx: Compiler = Compiler("CXX")
    headers: bool = False
    ptxas: str | None = None
    ncu: str | None = None
    ncu_version: str | None = None
    restricted: bool | None = None  # hardware counters for administrators alone
    admin: bool | None = None


def number(path: Path) -> int | None:
    found = re.fullmatch(r"-?\d{1,30}", text(path) or "", re.ASCII)
    return int(found[0]) if found else None


def packages(names: Sequence[str]) -> dict[str, str]:
    found = {}
    for name in names:
        # A broken installation raises any of these, or has no version.
        with suppress(PackageNotFoundError, KeyError, TypeError, ValueError, OSError):
            found[name] = version(name) or "of no version"
    return found


def says(*words: str) -> str | None:
    """What a program prints; None if it fails."""
    try:
        done = subprocess.run(
            words, capture_output=True, text=True, errors="replace", timeout=PROGRAM_TIMEOUT_S, stdin=subprocess.DEVNULL
        )
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def software(root: Path = ROOT) -> Software:
    names = ("torch", "triton", *PEERS, *CUTE, *BENCH, *REPORT, SECOND_OPINION)
    ncu = find_ncu(root)
    return Software(
        versions=packages(names),
        variables={name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        c=compiler("CC", ("gcc", "clang")),
        # Inductor looks for g++ alone, unless CXX names another.
        cxx=compiler("CXX", ("g++",)),
        headers=(Path(_include()) / "Python.h").is_file(),
        ptxas=_release_line(says(_ptxas(), "--version")),
        ncu=ncu,
        ncu_version=_release_line(says(ncu, "--version")) if ncu else None,
        restricted=counters_restricted(root),
        admin=is_admin(root),
    )


def compiler(variable: str, names: Sequence[str]) -> Compiler:
    value = os.environ.get(variable)
    return Compiler(
        variable,
        value,
        named=shutil.which(value) if value else None,
        on_path=next((found for name in names if (found := shutil.which(name))), None),
    )


def _include() -> str:
    # As Triton does: on Debian the default scheme points to a folder without the headers.
    scheme = sysconfig.get_default_scheme()
    return sysconfig.get_paths(scheme="posix_prefix" if scheme == "posix_local" else scheme)["include"]


def _ptxas() -> str:
    """The assembler that Triton would call; it brings its own."""
    if named := os.environ.get("TRITON_PTXAS_PATH"):
        return named
    try:
        spec = find_spec("triton")
    except (ImportError, ValueError):
        spec = None
    return str(Path(spec.origin).parent / "backends/nvidia/bin/ptxas") if spec and spec.origin else "ptxas"


def _release_line(said: str | None) -> str | None:
    found = re.search(r"(?:release|Version) ([\w.]{1,40})", said or "")
    return found[1] if found else None


def find_ncu(root: Path = ROOT) -> str | None:
    """Nsight Compute on PATH, under CUDA_HOME, or in the usual places: the newest by name."""
    if found := shutil.which("ncu"):
        return found
    homes = [Path(home) for name in ("CUDA_HOME", "CUDA_PATH") if (home := os.environ.get(name))]
    places = [home / "bin/ncu" for home in homes]
    for pattern in (
        "usr/local/cuda*/bin/ncu",
        "opt/nvidia/nsight-compute/*/ncu",
        "usr/local/NVIDIA-Nsight-Compute*/ncu",
    ):
        with suppress(OSError):
            places += sorted(root.glob(pattern), reverse=True)
    return next((str(place) for place in places if os.access(place, os.X_OK)), None)


def counters_restricted(root: Path = ROOT) -> bool | None:
    """What the loaded NVIDIA module says; None where it is not loaded or does not say."""
    params = text(root / "proc/driver/nvidia/params") or ""
    found = re.search(r"(?:RmProfilingAdminOnly|RestrictProfilingToAdminUsers)\s*[:=]\s*(\d)", params)
    return found[1] != "0" if found else None


def is_admin(root: Path = ROOT) -> bool | None:
    """CAP_SYS_ADMIN, which root in a container lacks as a rule."""
    found = re.search(r"^CapEff:\s*([0-9a-fA-F]{1,16})$", text(root / "proc/self/status") or "", re.MULTILINE)
    return bool(int(found[1], 16) >> CAP_SYS_ADMIN & 1) if found else None


def cpu(root: Path = ROOT, pause_s: float = STEAL_PAUSE_S) -> Cpu:
    before = cpu_ticks(root)
    time.sleep(pause_s)
    after = cpu_ticks(root)
    stolen = sampled = None
    if before and after:
        sampled, stolen = after[0] - before[0], after[1] - before[1]
    load = None
    with suppress(OSError, AttributeError):
        load = os.getloadavg()[0]
    smt = number(root / "sys/devices/system/cpu/smt/active")
    return Cpu(
        model=cpu_name(root),
        logical=os.cpu_count(),
        usable=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        physical=_physical(root),
        smt=None if smt is None else smt == 1,
        quota=quota(root),
        load_1m=load,
        stolen=stolen,
        sampled=sampled,
        stolen_since_boot=after[1] / after[0] if after and after[0] else None,
        governor=text(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        turbo=_turbo(root),
    )


def _physical(root: Path) -> int | None:
    cores = set()
    with suppress(OSError):
        for path in root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/thread_siblings_list"):
            cores.add(text(path))
    return len(cores - {None}) or None


def _turbo(root: Path) -> bool | None:
    off = number(root / "sys/devices/system/cpu/intel_pstate/no_turbo")
    if off is not None:
        return off == 0
    boost = number(root / "sys/devices/system/cpu/cpufreq/boost")
    return None if boost is None else boost == 1


def quota(root: Path = ROOT) -> float | None:
    """The CPUs' time that the tightest control group above us allows; None without a limit."""
    allowed = []
    groups = root / "sys/fs/cgroup"
    for line in (text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if ".." in path:
            continue
        if not controllers:
            for folder in _upwards(groups, path):
                words = (text(folder / "cpu.max") or "").split()
                if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
                    allowed.append(int(words[0]) / int(words[1]))
        elif "cpu" in controllers.split(","):
            for folder in (*_upwards(groups / "cpu", path), *_upwards(groups / "cpu,cpuacct", path)):
                most, period = number(folder / "cpu.cfs_quota_us"), number(folder / "cpu.cfs_period_us")
                if most is not None and most > 0 and period:
                    allowed.append(most / period)
    return min(allowed, default=None)


def _upwards(top: Path, path: str) -> list[Path]:
    """The folder of a control group, and those above it; a container sees its own as the top."""
    here = Path(path.strip("/"))
    return [top / part for part in (here, *here.parents)]


def memory(root: Path = ROOT) -> Memory:
    read = dict(re.findall(r"^(\w+):\s+(\d+) kB$", text(root / "proc/meminfo") or "", re.MULTILINE))
    free, total = (int(read[name]) * 1024 if name in read else None for name in ("MemAvailable", "MemTotal"))
    groups = root / "sys/fs/cgroup"
    for most, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, now = number(groups / most), number(groups / used)
        if limit is not None and now is not None and total is not None and limit < total:
            total, free = limit, min(max(limit - now, 0), free if free is not None else limit)
    return Memory(free, total, _disk(root / "dev/shm", total=True))


def _disk(path: Path, total: bool = False) -> int | None:
    try:
        usage = shutil.disk_usage(path)
    except (OSError, ValueError):
        return None
    return usage.total if total else usage.free


def folder(path: Path) -> Folder:
    """What writing below it would meet; nothing is written."""
    try:
        nearest = next((p for p in (path, *path.absolute().parents) if p.exists() or p.is_symlink()), None)
        if nearest is None:
            return Folder(str(path))
        if not nearest.is_dir():
            return Folder(str(path), writable=False, blocked=str(nearest))
        return Folder(str(path), os.access(nearest, os.W_OK | os.X_OK), _disk(nearest))
    except (OSError, ValueError):  # a parent that may not be searched; a name with a zero in it
        return Folder(str(path))


def temporary() -> Folder:
    try:
        return folder(Path(tempfile.gettempdir()))
    except FileNotFoundError:
        return Folder(None, writable=False)


def clock(root: Path = ROOT) -> Clock:
    info = time.get_clock_info("perf_counter")
    readings = 1000
    start = time.perf_counter_ns()
    for _ in range(readings):
        time.perf_counter_ns()
    return Clock(
        info.implementation,
        info.resolution,
        info.monotonic,
        text(root / "sys/devices/system/clocksource/clocksource0/current_clocksource"),
        (time.perf_counter_ns() - start) / readings,
    )


def held_locks(place: str | None) -> tuple[str, ...]:
    """Lock files of runs that go on now. Asked with a shared lock, let go at once: none is taken from anybody."""
    if place is None or sys.platform == "win32":
        return ()
    import fcntl

    held = []
    with suppress(OSError):
        for path in sorted(Path(place).glob("norm-fusion-*.lock")):
            with suppress(OSError), path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    held.append(str(path))
    return tuple(held)
