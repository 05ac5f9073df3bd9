"""Preflight: the device a shard runs on, its environment and conditions, and the lock that keeps it to one run."""

from __future__ import annotations

import os
import platform
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

import norm_fusion
from norm_fusion.backends import CUTE, PEERS
from norm_fusion.machine import Card, Host, code, cpu_name
from norm_fusion.records import Conditions, Environment


class Refused(Exception):
    """The shard cannot run here at all: one line that says what was seen, what is allowed and what to do."""


def resolve_device(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` as a device that exists.

    Raises:
        Refused: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        built = f"CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        raise Refused(
            f"--device {name}: PyTorch {torch.__version__} (built {built}) sees no GPU here; "
            "use --device cpu to run on the CPU"
        )
    index = int(name.partition(":")[2] or torch.cuda.current_device())
    count = torch.cuda.device_count()
    if index >= count:
        raise Refused(f"--device {name}: this machine has {count} GPU(s), cuda:0 to cuda:{count - 1}")
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def import_compiler() -> None:
    """Import what torch.compile needs, which takes seconds; nothing is begun on the device.

    Without the processes that it would start: somebody else is at work there.
    """
    os.environ["TORCH_WARM_POOL"] = "0"
    import torch._inductor.compile_fx  # noqa: F401


def lock(device: torch.device) -> FileLock | None:
    """Hold the GPU for this process until it exits, so that two runs never measure each other."""
    if device.type != "cuda":
        return None
    uuid = torch.cuda.get_device_properties(device).uuid
    held = FileLock(Path(tempfile.gettempdir()) / f"norm-fusion-{uuid}.lock", mode=0o666)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise Refused(f"{device} is being measured by another run ({held.lock_file}): wait until it ends") from None
    except OSError as error:
        raise Refused(f"cannot lock {device} with {held.lock_file}: {error.strerror}; remove that file") from None
    return held


def describe(device: torch.device) -> Environment:
    """The machine and software that this process's numbers belong to."""
    common: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "triton": _version("triton"),
        "peers": {name: found for name in (*PEERS, *CUTE) if (found := _version(name))},
        "norm_fusion": norm_fusion.__version__,
        **code(),
    }
    if device.type == "cpu":
        return Environment(
            device="cpu",
            device_name=cpu_name() or "CPU",
            memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
            cache_bytes=_cpu_cache_bytes(),
            threads=torch.get_num_threads(),
            **common,
        )
    properties = torch.cuda.get_device_properties(device)
    return Environment(
        device="cuda",
        device_name=properties.name,
        device_index=device.index,
        device_uuid=str(properties.uuid),
        compute_capability=f"{properties.major}.{properties.minor}",
        sm_count=properties.multi_processor_count,
        memory_bytes=properties.total_memory,
        cache_bytes=properties.L2_cache_size,
        inductor=_inductor_settings(),
        **Card(str(properties.uuid)).facts(),
        **common,
    )


def conditions(device: torch.device) -> Conditions:
    """Clocks, temperature and company at this moment."""
    if device.type == "cpu":
        return Host().conditions()
    return Card(str(torch.cuda.get_device_properties(device).uuid)).conditions({os.getpid()})


def available_bytes(device: torch.device) -> int:
    """Memory that can still be had on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["MemAvailable"].split()[0]) * 1024


def tune_anew() -> None:
    """Have each process tune anew: a choice kept on disk would be the same in all, and their spread not show it."""
    from torch._inductor import config

    config.autotune_local_cache = False


def _inductor_settings() -> dict[str, Any]:
    from torch._inductor import config

    return {name: getattr(config.triton, name, None) for name in ("multi_kernel", "persistent_reductions")} | {
        "autotune_local_cache": config.autotune_local_cache
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_cache_bytes() -> int:
    """The last-level cache; 32 MiB where the system does not say."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        sizes.append(int(text.rstrip("KMG")) * {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1], 1))
    return max(sizes, default=32 * 2**20)
